"""Jobs: every segment accounted for, retries, and a journal that survives kills."""

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.translation import job
from dragoman.translation.documents import read_document
from dragoman.translation.formats import Options, apply, lines_of
from dragoman.translation.journal import Attempt, Journal
from dragoman.translation.request import Answer

OPTIONS = Options("en", "ca")
STEPS = ("zero_shot", "by_sentence", "by_piece")


class Talker:
    """An engine of one function; it remembers what it was asked."""

    batch = 3

    def __init__(self, say):
        self.say, self.asked = say, []

    def answers(self, requests, template):
        for i, request in enumerate(requests):
            self.asked.append(request.source)
            yield i, self.say(request.source)


def work(tmp_path, text, say, checks=None, name="a.md"):
    """What became of the document, its lines, and the engine."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    document, engine = read_document(tmp_path / name, OPTIONS), Talker(say)
    journal = Journal(tmp_path / "j.sqlite", {"text": text})
    best = job.run(job.units_of([document]), engine, journal, ("en", "ca"), STEPS, checks or {}, lambda done: None)
    journal.close()
    edits, lines = job.fill(document, name, best, set())
    return apply(document.text, edits), lines, engine


def test_contexts_tell_texts_apart_and_notes_are_asked_with(tmp_path):
    """Open the file, and the shop is open: the same text, two translations; the third is like the first."""
    entry = '#. {}\nmsgctxt "{}"\nmsgid "Open"\nmsgstr ""\n\n'
    (tmp_path / "a.po").write_text("".join(entry.format(*told) for told in (("do", "verb"), ("is", "state")) * 2))
    document, asked = read_document(tmp_path / "a.po", OPTIONS), []

    class Reader(Talker):
        def answers(self, requests, template):
            asked.extend((request.context, request.notes) for request in requests)
            yield from ((i, Answer(f"{r.context}: {r.source}")) for i, r in enumerate(requests))

    journal = Journal(tmp_path / "j.sqlite", {})
    units = job.units_of([document])
    best = job.run(units, Reader(None), journal, ("en", "ca"), STEPS, {}, lambda done: None)
    journal.close()
    edits, lines = job.fill(document, "a.po", best, set())
    assert asked == [("verb", ("do",)), ("state", ("is",))]
    assert re.findall('msgstr "(.*)"', apply(document.text, edits)) == ["verb: Open", "state: Open"] * 2
    assert [line.state for line in lines] == ["translated", "translated", "reused", "reused"]


def loses_marks(text):
    return Answer(f"«{text.replace('{1}', '')}»")


def test_every_segment_is_accounted_for(tmp_path):
    def say(text):
        return Answer(None, "cannot") if "bad" in text else Answer(text.upper())

    new, lines, engine = work(tmp_path, "Good.\n\nA bad one.\n\nGood.\n\n12\n\nLast\n", say)
    assert new == "GOOD.\n\nA bad one.\n\nGOOD.\n\n12\n\nLAST\n"
    assert [(x.line, x.state, x.reasons) for x in lines] == [
        (1, "translated", ()),
        (3, "failed", ("cannot",)),
        (5, "reused", ()),
        (9, "translated", ()),
    ]
    assert engine.asked.count("Good.") == 1


def test_lost_marks_lead_to_translation_piece_by_piece(tmp_path):
    new, lines, engine = work(tmp_path, "Save **all** to {path}.\n", loses_marks)
    assert new == "«Save» **«all»** «to» {path}.\n"
    assert lines[0].state == "translated"
    assert engine.asked == ["Save {1}all{2} to {3}.", "Save", "all", "to"]


def test_long_texts_go_by_sentence(tmp_path):
    def say(text):
        return Answer(None, too_long=True) if len(text) > 20 else Answer(text.lower())

    new, lines, _ = work(tmp_path, "We sail at dawn. Then  we rest. And so on.\n", say)
    assert new == "we sail at dawn. then  we rest. and so on.\n"
    assert lines[0].state == "translated"
    _, lines, _ = work(tmp_path / "..", "A sentence that is too long by itself.\n", say, name=f"{tmp_path.name}.md")
    assert (lines[0].state, lines[0].reasons) == ("failed", ("does not fit the context",))


def test_doubts_are_named_and_the_least_doubtful_answer_is_used(tmp_path):
    checks = {"shouts": lambda s, t: t.isupper(), "numbers": lambda s, t: "7" not in t}

    def say(text):
        return Answer("SEVEN {1}") if "{1}" in text else Answer("7 FILES")

    new, lines, _ = work(tmp_path, "7 files in {x}\n", say, checks)
    assert new == "7 FILES {x}\n"
    assert (lines[0].state, lines[0].reasons) == ("doubtful", ("shouts",))


def test_faults_that_pass_are_asked_again_by_the_next_run(tmp_path):
    def down(text):
        return Answer(None, "status 500", passing=True) if "two" in text else Answer(text.upper())

    new, lines, _ = work(tmp_path, "One.\n\nAnd two.\n", down)
    assert [x.state for x in lines] == ["translated", "failed"]
    new, lines, engine = work(tmp_path, "One.\n\nAnd two.\n", lambda text: Answer(text.upper()))
    assert (new, engine.asked) == ("ONE.\n\nAND TWO.\n", ["And two."])


def test_a_fault_that_passes_leaves_the_better_step_to_the_next_run(tmp_path):
    def by_pieces_alone(text):
        return Answer(text.upper()) if "{1}" not in text else Answer(None, "status 429", passing=True)

    new, lines, engine = work(tmp_path, "Open {x} now.\n", by_pieces_alone)
    assert (new, lines[0].state, lines[0].reasons) == ("Open {x} now.\n", "failed", ("status 429",))
    assert engine.asked == ["Open {1} now."], "no step behind it is asked"
    new, lines, engine = work(tmp_path, "Open {x} now.\n", lambda text: Answer(text.upper()))
    assert (new, engine.asked) == ("OPEN {x} NOW.\n", ["Open {1} now."])


def test_what_another_process_has_answered_goes_before_a_fault_that_passes(tmp_path):
    document, path = tmp_path / "a.txt", tmp_path / "j.sqlite"
    document.write_text("One.\n")
    units = job.units_of([read_document(document, OPTIONS)])
    (key,) = units

    def other(text):
        journal = Journal(path, {})
        journal.add(key, "zero_shot", Attempt("UN.", ()))
        journal.close()
        return Answer(None, "status 429", passing=True)

    journal = Journal(path, {})
    best = job.run(units, Talker(other), journal, ("en", "ca"), STEPS, {}, lambda done: None)
    journal.close()
    assert best[key].answer == "UN."


def test_markup_that_an_answer_brings_is_a_failure(tmp_path):
    new, lines, _ = work(tmp_path, "Sail north.\n", lambda text: Answer("# Sail *north*"))
    assert new == "Sail north.\n"
    assert lines[0].state == "failed"


def test_markup_that_only_its_surroundings_make_is_a_failure(tmp_path):
    """markdown-it is the judge of the whole document: here a line below a paragraph would make it a heading."""
    from dragoman.translation.documents import misfits
    from dragoman.translation.formats import Edit

    text = "One\n\nTwo\n\n- three\n- four\n\nFive\n"
    (tmp_path / "a.md").write_text(text)
    document = read_document(tmp_path / "a.md", OPTIONS)

    def edit(old, new):
        return [Edit(text.index(old), text.index(old) + len(old), new)]

    fine = [edit("One", "Un"), edit("Two", "Dos"), edit("three", "tres"), edit("four", "a *b"), edit("Five", "[x]")]
    assert misfits(document, fine) == set()
    for bad in ("Dos\n===", "# Dos", "*Dos*", "    Dos", "`Dos`", "![Dos](x)", "[x]: y", "a | b\n---|---"):
        assert misfits(document, [*fine[:1], edit("Two", bad), *fine[2:]]) == {1}, bad
    assert misfits(document, [edit("One", "# Un"), *fine[1:4], edit("Five", "1. Cinc")]) == {0, 4}


def test_lines_of_places_are_found_without_counting_from_the_start(tmp_path):
    """The naive count is the oracle; in `fill` it would take time with the square of a file's size."""

    class Read(str):
        def count(self, *what):
            pytest.fail("a text is read once")

    for text in ("a\nb\r\nc\n\n", "\ra\r\rb", "a", ""):
        line_at = lines_of(text)
        naive = [(text.count("\n", 0, at) or text.count("\r", 0, at)) + 1 for at in range(len(text) + 1)]
        assert [line_at(at) for at in range(len(text) + 1)] == naive
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\nOne.\n")
    document = read_document(tmp_path / "a.txt", OPTIONS)
    best = {key: Attempt("Un.", ()) for key in job.units_of([document])}
    _, lines = job.fill(replace(document, text=Read(document.text)), "a.txt", best, set())
    assert [line.line for line in lines] == [1, 3, 4]


def test_processes_share_a_job(tmp_path):
    """Three at once, one of them killed: each text is answered once, and all that end write the same document."""
    names = [tmp_path / n for n in ("a.txt", "log", "j.sqlite")]
    lines = [f"Line number {i}." for i in range(120)]
    names[0].write_text("\n".join(lines))
    outs = [tmp_path / f"out{n}.txt" for n in range(3)]
    processes = [subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, [*names, out])]) for out in outs]
    while len(log_of(names[1])) < 30:
        time.sleep(0.001)
    processes[0].kill()
    assert [process.wait() for process in processes] == [-signal.SIGKILL, 0, 0]
    assert [out.read_text() for out in outs[1:]] == 2 * ["\n".join(lines).upper()]
    assert len(stored(names[2])) == len(lines)
    asked = log_of(names[1])
    assert set(asked) == {*lines} and len(asked) <= len(lines) + 4, "at most what the killed one had asked comes twice"


SCRIPT = """
import sys, time
from pathlib import Path
from dragoman.translation import job
from dragoman.translation.documents import read_document
from dragoman.translation.formats import Options
from dragoman.translation.journal import Journal
from dragoman.translation.request import Answer

class Slow:
    batch = 4
    def answers(self, requests, template):
        for i, r in enumerate(requests):
            time.sleep(0.002)
            with open(sys.argv[2], "a") as log:
                log.write(r.source + "\\n")
            yield i, Answer(r.source.upper())

document = read_document(Path(sys.argv[1]), Options("en", "ca"))
journal = Journal(Path(sys.argv[3]), {})
best = job.run(job.units_of([document]), Slow(), journal, ("en", "ca"), ("zero_shot",), {}, lambda done: None)
edits, lines = job.fill(document, "a", best, set())
Path(sys.argv[4]).write_bytes(document.filled(edits))
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_it_goes_on(kills, tmp_path):
    """What is in the journal is never asked again, and the end is that of a run that nothing disturbed."""
    names = [tmp_path / n for n in ("a.txt", "log", "j.sqlite", "out.txt")]
    names[0].write_text("".join(f"Line number {i}.\n" for i in range(60 * kills)))
    chance = random.Random(kills)
    lines, killed = 60 * kills, 0
    while not names[3].exists():
        before = stored(names[2])
        start = log_of(names[1])
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, names)])
        if killed < kills:
            while process.poll() is None and len(log_of(names[1])) < len(start) + chance.randint(1, 50):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        assert not before & set(log_of(names[1])[len(start) :]), "a stored answer was asked for again"
    assert killed == kills
    assert names[3].read_text() == names[0].read_text().upper()
    assert len(stored(names[2])) == lines
    assert len(log_of(names[1])) <= lines + kills, "at most the answer in flight is lost"


def stored(path):
    if not path.exists():
        return set()
    with sqlite3.connect(path) as base:
        try:
            return {answer.capitalize() for (answer,) in base.execute("select answer from attempts")}
        except sqlite3.OperationalError:
            return set()


def log_of(path):
    return path.read_text().splitlines() if path.exists() else []


def test_the_command_on_the_built_in_model(tmp_path, monkeypatch, capsys):
    """End to end, and again without a model: the second run only reads the journal."""
    from dragoman.commands import translate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.md").write_text("# Open\n\nSave **it** {name}.\n\nOpen\n\n12\n")
    config = translate.Config(("a.md",), to="de", quiet=True)
    record = translate.run(config)
    counts = record["counts"]
    assert counts["segments"] == 3 == sum(counts[s] for s in translate.STATES)
    new = (tmp_path / "translation" / "a.md").read_text()
    assert new.startswith("# ")
    assert new.endswith("\n\n12\n")
    assert new.count("{name}") == 1 and new.count("**") == 2
    monkeypatch.setattr(translate, "_engine", lambda config: Talker(pytest.fail))
    assert translate.run(config)["counts"] == counts
    translate.show(json.loads((tmp_path / "translation" / "record.json").read_text()))
    assert "segments 3" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="another job: languages differ"):
        translate.run(replace(config, to="fr"))
    engine = Talker(lambda text: Answer("Geändert"))
    monkeypatch.setattr(translate, "_engine", lambda config: engine)
    (tmp_path / "a.md").write_text("# Open\n\nChanged\n")
    translate.run(config)
    assert engine.asked == ["Changed"], "of a changed file only what is new"


def test_estimate_writes_nothing(tmp_path, monkeypatch):
    from dragoman.commands import translate
    from dragoman.modeling import open_tokenizer

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("One\nOne\nTwo\n")
    record = translate.run(translate.Config(("a.txt",), to="de", estimate=True))
    tokens = sum(map(len, open_tokenizer("mini-moe").encode(["One", "Two"])))
    expected = {"segments": 3, "kept": 0, "to_translate": 2, "characters": 6}
    assert record["estimate"] == expected | {"tokens": tokens}
    record = translate.run(translate.Config(("a.txt",), to="de", estimate=True, server="http://localhost:1/v1"))
    assert record["estimate"] == expected, "what a server makes of a text is not known"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "en"}, "source and target are both en"),
        ({"to": "de", "keys": ("a",)}, "--keys would have no effect"),
        ({"to": "de", "steps": ("guess",)}, "there is no strategy guess"),
        ({"to": "de", "concurrency": 2}, "--concurrency would have no effect"),
    ],
)
def test_settings_without_sense_are_refused(settings, message):
    from dragoman.commands import translate

    with pytest.raises(ConfigError, match=message):
        translate.Config(("a.md",), **settings)


def test_keys_that_fit_no_text_are_told(tmp_path):
    from dragoman.commands import translate

    (tmp_path / "a.json").write_text('{"title": "One", "menu": {"open": "Two", "id": "3"}}')
    (tmp_path / "b.yaml").write_text("label: Three\n")
    some = {"to": "de", "estimate": True, "server": "http://x"}
    config = translate.Config((str(tmp_path),), keys=("tilte", "menu.*"), **some)
    with pytest.raises(ConfigError, match=r"no text has a key that fits tilte; .* are: title, menu\.open, label"):
        translate.run(config)
    assert translate.run(replace(config, keys=("title", "label")))["estimate"]["segments"] == 2


def test_a_sentence_in_place_of_a_file_is_told(tmp_path, monkeypatch):
    from dragoman.commands import translate

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="is in none of the formats"):
        translate.run(translate.Config(("Translate this. " * 40,), to="de", estimate=True, server="http://x"))


def test_settings_of_formats_that_a_folder_lacks_are_refused(tmp_path):
    from dragoman.commands import translate

    (tmp_path / "a.md").write_text("One\n")
    config = translate.Config((str(tmp_path),), to="de", keys=("a",), wrapped=True, estimate=True, server="http://x")
    with pytest.raises(ConfigError, match="--keys, --wrapped would have no effect"):
        translate.run(config)
    (tmp_path / "a.txt").write_text("One\n")
    (tmp_path / "a.json").write_text('{"a": "One"}')
    assert translate.run(config)["estimate"]["segments"] == 3
