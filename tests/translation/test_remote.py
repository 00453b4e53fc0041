"""The engine on a server, against one that fails in every way."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dragoman.errors import ConfigError, ModelError
from dragoman.translation import job
from dragoman.translation.documents import read_document
from dragoman.translation.formats import Options
from dragoman.translation.journal import Journal
from dragoman.translation.remote import KEY, Pace, RemoteEngine
from dragoman.translation.request import Request
from tests.translation.faults import SERVER_FAULTS


def said(text, reason="stop"):
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": reason}]}).encode()


class Handler(BaseHTTPRequestHandler):
    """Each prompt names its faults: `500 500 Sail` fails twice, then is answered."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.completes = self.path.endswith("/v1/completions")
        prompt = body["prompt"] if self.completes else body["messages"][0]["content"]
        source = prompt.rsplit(": ", 1)[1].split("\n")[0]
        with self.server.lock:
            n = self.server.seen[source] = self.server.seen.get(source, 0) + 1
            self.server.keys.add(self.headers.get("authorization"))
        words = source.split()
        getattr(self, f"on_{words[n - 1]}", self.on_good)(source)

    def send(self, status, data, length=None, **headers):
        self.send_response(status)
        self.send_header("content-length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def on_good(self, source):
        if self.server.dies_after is not None and len(self.server.seen) > self.server.dies_after:
            return self.on_drop(source)
        done = json.dumps({"choices": [{"text": f" {source.upper()}", "index": 0, "finish_reason": "stop"}]}).encode()
        self.send(200, done if self.completes else said(source.upper()))

    def on_500(self, source):
        self.send(500, b"oops")

    def on_429(self, source):
        self.send(429, b"", retry_after="7")

    def do_GET(self):
        self.send(self.server.models, b"{}")

    def on_400(self, source):
        self.send(400, b"too long")

    def on_401(self, source):
        self.send(401, b"")

    def on_stall(self, source):
        self.server.release.wait(5)
        self.close_connection = True

    def on_cut(self, source):
        self.send(200, said("half")[:20], length=400)
        self.close_connection = True

    def on_drop(self, source):
        self.connection.close()
        self.close_connection = True

    def on_garbage(self, source):
        self.send(200, b"\xff<html>")

    def on_stream(self, source):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"10\r\n" + said("half")[:16] + b"\r\n")
        self.close_connection = True

    def on_shape(self, source):
        self.send(200, b'{"choices": []}')

    def on_two(self, source):
        self.send(200, b'{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}')

    def on_index(self, source):
        self.send(200, b'{"choices": [{"index": 3, "message": {"content": "a"}}]}')

    def on_error(self, source):
        self.send(200, b'{"error": {"message": "overloaded"}}')

    def on_null(self, source):
        self.send(200, said(None))

    def on_parts(self, source):
        self.send(200, said([{"type": "text", "text": "a"}]))

    def on_empty(self, source):
        self.send(200, said("  "))

    def on_limit(self, source):
        self.send(200, said("half an", "length"))

    def log_message(self, *words):
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        pass


@pytest.fixture
def server():
    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.models, server.dies_after = 503, None
        server.seen, server.keys, server.lock, server.release = {}, set(), threading.Lock(), threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


def engine(server, **settings):
    waits = []
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    made = RemoteEngine(url, "m", timeout=0.4, wait=waits.append, concurrency=4, **settings)
    return made, waits


def ask(made, *sources):
    answers = dict(made.answers([Request(s, "en", "ca") for s in sources], "instruct"))
    assert sorted(answers) == list(range(len(sources))), "each request is answered once"
    return [answers[i] for i in range(len(sources))]


@pytest.mark.parametrize("fault", SERVER_FAULTS, ids=lambda fault: fault.word)
def test_faults_that_pass_are_tried_again(server, fault):
    made, waits = engine(server)
    sources = [f"{fault.word} {fault.word} Sail", "Sail"]
    assert [a.text for a in ask(made, *sources)] == [s.upper() for s in sources]
    assert server.seen[sources[0]] == 3
    assert waits == ([7.0, 7.0] if fault.word == "429" else [0.5, 1.0])


@pytest.mark.parametrize("fault", SERVER_FAULTS, ids=lambda fault: fault.word)
def test_faults_that_stay_are_the_segments_own(server, fault):
    made, waits = engine(server, tries=3)
    bad, good = ask(made, " ".join([fault.word] * 9), "Sail")
    assert good.text == "SAIL"
    assert bad.text is None and bad.passing is fault.passes and fault.message in bad.fault
    assert len(waits) == 2


@pytest.mark.parametrize("words", ["500 429 empty", "empty empty 500"])
def test_a_server_that_failed_between_empty_answers_is_asked_again(server, words):
    (bad, _) = ask(engine(server, tries=3)[0], f"{words} Sail", "Sail")
    assert bad.text is None and bad.passing


def test_an_answer_cut_at_the_limit_is_too_long(server):
    assert ask(engine(server)[0], "limit Sail", "Sail")[0].too_long


def test_a_dead_server_stops_the_job(server):
    made, _ = engine(server)
    with pytest.raises(ModelError, match=r"answered none of 2 requests.*the same command goes on"):
        ask(made, "500 500 500 500 a", "drop drop drop drop b")


def test_a_server_that_dies_within_a_job(server, tmp_path):
    """The job stops with what it has, and goes on with the rest when the server is back."""
    (tmp_path / "a.txt").write_text("".join(f"Line number {i}\n" for i in range(40)))
    units = job.units_of([read_document(tmp_path / "a.txt", Options("en", "ca"))])

    def work():
        journal = Journal(tmp_path / "j.sqlite", {})
        try:
            made, _ = engine(server)
            return job.run(units, made, journal, ("en", "ca"), ("zero_shot",), {}, lambda done: None)
        finally:
            journal.close()

    server.dies_after = 20
    with pytest.raises(ModelError, match="the same command goes on"):
        work()
    before, server.dies_after = set(server.seen), None
    server.seen.clear()
    best = work()
    assert sorted(a.answer for a in best.values()) == sorted(u.masked.text.upper() for u in units.values())
    assert len(before - set(server.seen)) == 20, "what was answered is not asked again"


def test_base_models_complete(server):
    made, _ = engine(server, completions=True)
    assert [a.text for a in ask(made, "Sail", "500 null Sail")] == ["SAIL", "500 NULL SAIL"]


def test_requests_keep_their_pace():
    """By hand: 30 a minute is one every two seconds; time that passes unused is not made up for."""
    now, waits = [100.0], []

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds

    pace = Pace(30, wait, lambda: now[0])
    for _ in range(3):
        pace.take()
    assert waits == [2.0, 2.0]
    now[0] += 60
    pace.take()
    pace.take()
    assert waits == [2.0, 2.0, 2.0]
    Pace(0, pytest.fail, pytest.fail).take()


def test_a_limit_of_requests_holds_over_threads_and_retries(server):
    made, waits = engine(server, per_minute=60, clock=lambda: 0.0)
    ask(made, *["500 a", "b", "c", "d"])
    assert sorted(waits) == [0.5, 1.0, 2.0, 3.0, 4.0], "five requests at a standing clock, and one wait before a retry"


def test_a_server_that_lives_and_fails_does_not_stop_it(server):
    server.models = 200
    made, _ = engine(server)
    (answer,) = ask(made, "500 500 500 500 a")
    assert answer.passing and "status 500" in answer.fault
    (answer,) = ask(made, "400 a")
    assert "refuses this text with status 400" in answer.fault and not answer.passing
    assert server.seen["400 a"] == 1, "what is refused is not asked again"


def test_the_key_comes_from_the_environment_and_is_never_told(server, monkeypatch):
    monkeypatch.setenv(KEY, "secret-of-mine")
    made, _ = engine(server)
    ask(made, "Sail")
    assert server.keys == {"Bearer secret-of-mine"}
    assert "secret" not in repr(made)
    with pytest.raises(ModelError, match="401") as e:
        ask(made, "401 Sail")
    assert "secret" not in str(e.value)


def test_what_waits_is_not_sent_behind_a_fatal_answer(server):
    """Four threads: three are held up, the fourth is refused and may have taken one more."""
    made, _ = engine(server)
    with pytest.raises(ModelError, match="401"):
        ask(made, *(" ".join(["stall"] * 9 + [str(i)]) for i in range(3)), "401 a", *(f"stall b{i}" for i in range(60)))
    assert len(server.seen) <= 6
    server.seen.clear()
    answers = made.answers([Request(f"a{i}" if i < 1 else f"stall b{i}", "en", "ca") for i in range(60)], "instruct")
    assert next(answers)[1].text == "A0"
    answers.close()
    assert len(server.seen) <= 6, "nor when nobody wants the answers any more"


@pytest.mark.parametrize("url", ["localhost", "http://127.0.0.1:876S/v1", "http://[::1/v1"])
def test_an_address_is_needed(url):
    with pytest.raises(ConfigError, match=r"no address of a server.*give one such as http://localhost:8000/v1"):
        RemoteEngine(url, "m")


@pytest.mark.parametrize("key", ["schlüssel", "secret\r", " secret"])
def test_a_key_that_no_header_can_carry_is_told_without_telling_it(key, monkeypatch):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ConfigError, match=f"{KEY} has spaces or line ends") as e:
        RemoteEngine("http://localhost:1/v1", "m")
    assert key.strip() not in str(e.value)
