"""The engine on a loaded model: prompts of models with language tags, of those with a chat template, and of others."""

from types import SimpleNamespace

import pytest

from dragoman.translation.engines import Stops, translate_greedy
from dragoman.translation.local import LocalEngine
from dragoman.translation.request import Draft, Neighbour, Pair, Request, Version, render


@pytest.fixture(scope="module")
def opened():
    from dragoman.modeling import open_both

    return open_both("mini-moe")


def test_prompts_with_tags(opened):
    model, codec = opened
    engine = LocalEngine(model, codec, batch=2)

    def shown(request):
        return codec.tokenizer.decode(engine.prompt(request, "zero_shot")).replace(" ", "")

    start, end = (codec.tokenizer.decode([i]) for i in (codec.start_id, codec.end_id))
    plain = Request("Open", "en", "de")
    assert shown(plain) == f"{start}<en>Open<de>"
    full = Request(
        "Open",
        "en",
        "de",
        neighbours=(Neighbour("Close", "Schließen", drafts=(Draft("Zu", "de"),)),),
        terms=(Pair("file", "Datei"),),
        auxiliary=(Version("Obre", "ca"),),
        drafts=(Draft("Auf", "de"),),
    )
    assert shown(full) == (
        f"{start}<en>Close<de>Zu<de>Schließen{end}{start}<en>file<de>Datei{end}{start}<en>Open<ca>Obre<de>Auf<de>"
    )
    many = Request("Open", "en", "de", neighbours=tuple(Neighbour(f"{i} file" * 20, "x") for i in range(80)))
    prompt = engine._fitting(many, "zero_shot", 1024)
    assert 800 < len(prompt) < 1024
    assert "79file" in codec.tokenizer.decode(prompt).replace(" ", ""), "the most similar stays"


def test_an_answer_that_fills_the_context_is_too_long(opened, monkeypatch):
    """The context has room for the answer and its end, then for all but the end, which is cut for all one can tell."""
    model, codec = opened
    request, engine = Request("Open the file", "en", "de"), LocalEngine(model, codec, batch=2)
    prompt, ids = engine.prompt(request, "zero_shot"), []
    monkeypatch.setattr(engine, "_needed", lambda request: 1)

    def answer(context):
        monkeypatch.setattr("dragoman.modeling.context_length", lambda model: context)
        ((_, found),) = engine.answers([request], "zero_shot")
        return found

    whole = answer(1024)
    ids = translate_greedy(model, [prompt], stops=engine._stops, pad_id=codec.pad_id)[0]
    assert whole.text and ids[-1] not in engine._stops.lines
    assert answer(len(prompt) + len(ids) + 1) == whole
    for less in range(3):
        found = answer(len(prompt) + len(ids) - less)
        assert (found.text, found.too_long) == (None, True)
    engine.__dict__["_stops"] = Stops(engine._stops.ends, frozenset(ids[2:3]))
    assert answer(len(prompt) + 3).text, "a line end ends it, be there room or not"


def test_no_more_than_a_batch_at_once(opened):
    """As the model sees it: rows of what goes through its embedding."""
    model, codec = opened
    rows = []
    hook = model.get_input_embeddings().register_forward_hook(lambda layer, given, out: rows.append(len(given[0])))
    requests = [Request("Open", "en", "de")] * 5
    assert len(list(LocalEngine(model, codec, batch=2).answers(requests, "zero_shot"))) == 5
    hook.remove()
    assert max(rows) == 2


class Untagged:
    """A codec without language tags, whose tokens are letters."""

    start_id = -1

    def __init__(self, template):
        self.tokenizer = SimpleNamespace(chat_template=template, apply_chat_template=self.chat)

    def tag_id(self, language):
        return None

    def encode(self, texts):
        return [list(text) for text in texts]

    def chat(self, messages, **settings):
        return ["<user>", *messages[0]["content"]]


@pytest.mark.parametrize(
    ("template", "chat_template", "start"),
    [
        ("zero_shot", "x", -1),
        ("adaptive", "x", -1),
        ("scale", "x", "<user>"),
        ("pmp", "x", "<user>"),
        ("scale", "", -1),
    ],
)
def test_instructions_go_through_the_chat_template(template, chat_template, start):
    request = Request("Open", "en", "de", drafts=(Draft("Auf", "de"),))
    engine = LocalEngine(None, Untagged(chat_template), batch=1)
    assert engine.prompt(request, template) == [start, *render(request, template)]


def test_the_length_of_an_answer_goes_by_the_text():
    engine, request = LocalEngine(None, Untagged(""), batch=1), Request("Open", "en", "de")
    prompt = engine.prompt(request, "zero_shot")
    assert engine._most(request, prompt) == 2 * len(prompt) + 20
    aided = Request("Open", "en", "de", neighbours=(Neighbour("Close", "Zu"),))
    assert engine._most(aided, engine.prompt(aided, "adaptive")) == 2 * len("Open") + 20
