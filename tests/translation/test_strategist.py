"""Strategies: what stands in prompts, what becomes of drafts, what never gets in."""

from dataclasses import replace

import pytest

from dragoman.errors import ConfigError
from dragoman.translation.glossary import Glossary, Term
from dragoman.translation.memory import Memory
from dragoman.translation.memory_files import HeldOut
from dragoman.translation.request import Answer, Request, render
from dragoman.translation.strategies import STRATEGIES, Strategy, load
from dragoman.translation.strategist import Aids, Strategist

TEXT = Request("Open the file", "en", "de")


class Scribe:
    """An engine of one function (request, template) -> text; it keeps the prompts that it was asked."""

    batch = 4

    def __init__(self, say):
        self.say, self.prompts = say, []

    def answers(self, requests, template):
        for i, request in enumerate(requests):
            self.prompts.append(render(request, template))
            answer = self.say(request, template)
            yield i, answer if isinstance(answer, Answer) else Answer(answer)


class Sure(Scribe):
    """One that has probabilities."""

    def confidences(self, requests, template, texts):
        return [tuple(0.25 for _ in text.split()) for text in texts]


def memory(*pairs):
    store = Memory.open(":memory:")
    store.add(pairs, "en", "de")
    return store


def ask(name, engine, requests=(TEXT,), drafter=None, strategies=None, **aids):
    """Answers by request, and the strategist."""
    used = strategies or load([name, "zero_shot"])
    asked = Strategist(engine, used, Aids(**aids), "zero_shot", drafter)
    found = dict(asked.answers(list(requests), name))
    assert sorted(found) == list(range(len(requests))), "every request has its answer"
    return [found[i].text for i in range(len(requests))], asked


PAIRS = [("Open a file", "Eine Datei öffnen"), ("Open the window", "Das Fenster öffnen"), ("Rain", "Regen")]


def test_adaptive_shows_the_nearest_last():
    engine = Scribe(lambda r, t: "Datei öffnen")
    glossary = Glossary([Term("file", ("Datei",)), Term("rain", ("Regen",))], "en", "de")
    _, asked = ask("adaptive", engine, memory=memory(*PAIRS), glossary=glossary)
    assert engine.prompts == [
        "English: Open the window\nGerman: Das Fenster öffnen\nEnglish: Open a file\nGerman: Eine Datei öffnen\n"
        "Terms: file = Datei\nEnglish: Open the file\nGerman:"
    ]
    assert asked.shown == {"neighbours": 2, "terms": 1, "kept_out": 0}


def test_few_shot_shows_every_text_the_same():
    engine = Scribe(lambda r, t: "x")
    ask("few_shot", engine, [TEXT, replace(TEXT, source="Snow")], memory=memory(*PAIRS))
    blocks = [prompt.rsplit("English:", 1)[0] for prompt in engine.prompts]
    assert blocks[0] == blocks[1] and blocks[0].count("English:") == 3


def test_held_out_sentences_are_in_no_prompt():
    """By source and by likeness, whatever their translation; else the reference would be copied."""
    pairs = [*PAIRS, ("Open the file", "REFERENCE"), ("Open the  files", "REFERENCE"), ("Elsewhere", "REFERENCE")]
    engine = Scribe(lambda r, t: "x")
    for name in ("adaptive", "few_shot", "scale", "scale_several"):
        ask(name, engine, memory=memory(*pairs), held_out=HeldOut(["open the file", "reference"]))
    assert engine.prompts and not any("REFERENCE" in prompt for prompt in engine.prompts)
    ask("adaptive", engine, memory=memory(*pairs))
    assert "REFERENCE" in engine.prompts[-1], "otherwise this test sees nothing"


def test_a_correction_changes_the_next_answer():
    """An engine that copies its nearest neighbour, as one that adapts would."""
    engine = Scribe(lambda r, t: r.neighbours[-1].target if r.neighbours else "?")
    store = memory(*PAIRS)
    assert ask("adaptive", engine, memory=store)[0] == ["Eine Datei öffnen"]
    store.add([("Open a file", "Datei aufmachen")], "en", "de", replace=True)
    assert ask("adaptive", engine, memory=store)[0] == ["Datei aufmachen"]


def test_scale_shows_triplets_with_confidences():
    engine = Sure(lambda r, t: f"draft of {r.source}" if t == "zero_shot" else "final")
    answers, _ = ask("scale", engine, [TEXT, replace(TEXT, source="Snow")], memory=memory(*PAIRS[:1]))
    assert answers == ["final", "final"]
    draft = "draft(0.25) of(0.25) Open(0.25) a(0.25) file(0.25)"
    triplet = f"English: Open a file\nDraft: {draft}\nGerman: Eine Datei öffnen"
    assert all(triplet in prompt for prompt in engine.prompts[-2:])
    assert engine.prompts.count("English: Open a file\nGerman:") == 1, "a neighbour is drafted once"
    plain = Scribe(engine.say)
    ask("scale", plain, memory=memory(*PAIRS[:1]))
    assert "confidence" not in plain.prompts[-1] and "(0." not in plain.prompts[-1]


def test_a_neighbour_is_drafted_without_sight_of_its_translation():
    engine = Scribe(lambda r, t: "x")
    ask("scale_several", engine, memory=memory(*PAIRS[:1]))
    assert not any(p.count("Open a file") > 1 for p in engine.prompts)
    ask("scale_several", engine, [replace(TEXT, source="Open file {1}")], memory=memory(("Open file {0}", "Datei {0}")))
    assert not any(p.count("Open file {0}") > 1 for p in engine.prompts)


def test_pivot_and_auxiliary_language():
    engine = Scribe(lambda r, t: f"{r.target_lang}!")
    ask("scale_pivot", engine, memory=memory(*PAIRS[:1]), via="nl")
    assert engine.prompts[0] == "English: Open a file\nDutch:"
    assert "given in Dutch;" in engine.prompts[-1] and "Draft: nl!\nGerman:" in engine.prompts[-1]
    written = Scribe(engine.say)
    ask("pmp", written, via="nl")
    assert written.prompts[0] == "English: Open the file\nDutch:"
    assert written.prompts[1].endswith("English: Open the file\nDutch: nl!\nGerman:")
    store, given = memory(), Scribe(engine.say)
    store.add([("Open the file", "Open het bestand")], "en", "nl")
    ask("pmp", given, via="nl", memory=store)
    assert len(given.prompts) == 1 and "Dutch: Open het bestand\nGerman:" in given.prompts[0]
    for held in ("open the file", "open het bestand"):
        guarded = Scribe(engine.say)
        ask("pmp", guarded, via="nl", memory=store, held_out=HeldOut([held]))
        assert len(guarded.prompts) == 2 and "Open het bestand" not in "".join(guarded.prompts)


def test_post_edit_touches_only_what_lacks_a_term():
    glossary = Glossary([Term("file", ("Datei",))], "en", "de")
    drafts = {"Open the file": "Akte öffnen", "A file": "Eine Datei", "The file": "Die Akte", "Rain": "Regen"}

    def say(request, template):
        if template == "zero_shot":
            return drafts[request.source]
        return {"Open the file": "Datei öffnen", "The file": "Das Ding"}[request.source]

    engine = Scribe(say)
    answers, asked = ask("post_edit_terms", engine, [Request(s, "en", "de") for s in drafts], glossary=glossary)
    assert answers == ["Datei öffnen", "Eine Datei", "Die Akte", "Regen"]
    assert len(engine.prompts) == 4 + 2
    assert asked.tallies["post_edit_terms"] == {"won": 1, "unjudged": 1, "unchanged": 2}
    aids = {"glossary": glossary, "quality": lambda s, texts: [float(t == "Das Ding") for t in texts]}
    answers, asked = ask("post_edit_terms", engine, [Request("The file", "en", "de")], **aids)
    assert answers == ["Die Akte"], "whatever the estimate says, it has no more terms"
    assert +asked.tallies["post_edit_terms"] == {"unchanged": 1}


def by_length(sources, texts):
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    ("final", "verdict", "accepting", "not_accepting"),
    [
        ("a longer text", "won", "a longer text", "a longer text"),
        ("short", "lost", "draft.", "short"),
        ("draft!", "unchanged", "draft.", "draft!"),  # the same estimate
        ("draft.", "unchanged", "draft.", "draft."),
        (Answer(None, "no text"), "unchanged", "draft.", "draft."),
        (Answer(None, "server down", passing=True), "unchanged", None, None),
    ],
)
def test_the_gate(final, verdict, accepting, not_accepting):
    engine = Scribe(lambda r, t: "draft." if t == "zero_shot" else final)
    for accept, expected in ((True, accepting), (False, not_accepting)):
        aids = {"memory": memory(*PAIRS), "quality": by_length, "accept_if_better": accept}
        answers, asked = ask("scale", engine, **aids)
        assert answers == [expected]
        assert +asked.tallies["scale"] == {verdict: 1}


def test_a_draft_bears_its_quality():
    def say(request, template):
        return "Datei" if template == "zero_shot" else "final"

    used = load(["zero_shot"]) | {"mine": Strategy("scale", drafts=("plain",), quality=True)}
    for quality, shown in ((lambda s, t: [0.25 for _ in t], True), (None, False)):
        engine = Scribe(say)
        ask("mine", engine, strategies=used, quality=quality)
        assert ("Estimated quality of the draft: 0.25" in engine.prompts[-1]) is shown


def test_an_improvement_that_loses_marks_is_never_taken():
    engine = Scribe(lambda r, t: "Datei {1}auf{2}" if t == "zero_shot" else "Datei wirklich auf")
    request = replace(TEXT, source="{1}Open{2} the file")
    answers, asked = ask("scale", engine, [request], memory=memory(*PAIRS), quality=by_length)
    assert answers == ["Datei {1}auf{2}"]
    assert asked.tallies["scale"] == {"lost": 1, "unchanged": 0}


def test_an_answer_with_all_marks_goes_before_a_draft_that_has_lost_some():
    used = load(["scale", "post_edit_terms", "zero_shot"])
    aids = {"memory": memory(), "quality": by_length, "accept_if_better": True}
    aids["glossary"] = Glossary([Term("file", ("Datei",))], "en", "de")
    for name in ("scale", "post_edit_terms"):
        engine = Scribe(lambda r, t: "ein längerer Entwurf" if t == "zero_shot" else "{1}auf{2}")
        answers, asked = ask(name, engine, [replace(TEXT, source="{1}Open{2} the file")], strategies=used, **aids)
        assert answers == ["{1}auf{2}"]
        assert +asked.tallies[name] == {"won": 1}


def test_failed_drafts_are_the_answer():
    engine = Scribe(lambda r, t: Answer(None, too_long=True))
    strategist = Strategist(engine, load(["scale", "zero_shot"]), Aids(memory=memory(*PAIRS)), "zero_shot")
    assert dict(strategist.answers([TEXT], "scale")) == {0: Answer(None, too_long=True)}


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("pmp", "English: Open the file\nDutch:"),
        ("scale", "English: Open the file\nGerman:"),
        ("scale", "English: Open a file\nGerman:"),  # a neighbour's draft
        ("scale_several", "English: Open a file\nGerman: Eine Datei öffnen\nEnglish: Open the file\nGerman:"),
    ],
)
def test_an_aid_that_fails_for_now_leaves_its_text_for_the_next_run(name, failing):
    down = [failing]

    def say(request, template):
        return Answer(None, "429", passing=True) if render(request, template) in down else "final"

    aids = {"memory": memory(*PAIRS[:1]), "via": "nl"}
    engine = Scribe(say)
    snow = replace(TEXT, source="Snow")
    asked = Strategist(engine, load([name, "zero_shot"]), Aids(**aids), "zero_shot")
    found = dict(asked.answers([TEXT, snow], name))
    assert found[0] == Answer(None, "429", passing=True)
    assert (found[1].text is None) == (failing.startswith("English: Open a file\nGerman:") and name == "scale")
    assert engine.prompts.count(failing) == 1
    down.clear()
    assert dict(asked.answers([TEXT], name)) == {0: Answer("final")}, "and nothing of it is remembered"


def test_terms_stand_in_requests_of_the_glossarys_languages_alone():
    used = load(["scale_pivot", "pmp"]) | {"zero_shot": Strategy("instruct", terms=5)}
    for name in ("scale_pivot", "pmp"):
        engine = Scribe(lambda r, t: "x")
        glossary = Glossary([Term("file", ("Datei",))], "en", "de")
        ask(name, engine, strategies=used, memory=memory(), via="nl", glossary=glossary)
        assert "into Dutch" in engine.prompts[0] and "Datei" not in engine.prompts[0]
        ask("zero_shot", engine, strategies=used, glossary=glossary)
        assert 'Translate "file" as "Datei".' in engine.prompts[-1]


def test_another_engine_drafts():
    drafter, engine = Scribe(lambda r, t: "by the drafter"), Scribe(lambda r, t: "final")
    ask("scale", engine, memory=memory(), drafter=drafter)
    assert "Draft: by the drafter" in engine.prompts[-1]
    assert len(engine.prompts) == len(drafter.prompts) == 1


def test_every_built_in_strategy_loads_and_a_file_too(tmp_path):
    assert {*load(STRATEGIES)} == {*STRATEGIES}
    path = tmp_path / "mine.yaml"
    path.write_text("template: scale\ndrafts: [adaptive]\nneighbours: 2\n")
    assert load([str(path)])[str(path)] == Strategy("scale", drafts=("adaptive",), neighbours=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("template: guess\nneighbour: 1\nterms: -1\npick: best\n", r"unknown keys neighbour;.*template is one of"),
        ("neighbours: 1\n", "must hold `key: value` lines"),
        ("template: [scale]\n", r"template is one of .*, not \['scale'\]"),
        ("template: post_edit_terms\nterms: 3\n", "edits drafts; name strategies under drafts"),
        ("template: scale\npick: drawn\n", "pick would have no effect without neighbours"),
        ("template: scale\nthreshold: 0\n", "threshold would have no effect without neighbours"),
        ("template: scale\nneighbours: 1\npick: drawn\nthreshold: 0.3\n", "threshold would have no effect on pairs"),
        ("template: scale\ndrafts: [plain]\nneighbour_drafts: true\n", "neighbour_drafts would have no .* neighbours"),
        ("template: scale\ndrafts: [plain]\nonly_missing_terms: true\n", "only_missing_terms would have no .* terms"),
        ("template: scale\nquality: true\n", "quality would have no effect without drafts"),
        ("template: adaptive\nquality: true\ndrafts: [plain]\n", "quality would have no effect but with the .* scale"),
        ("template: scale\nconfidence: true\n", "confidence would have no effect without drafts"),
        ("template: [\n", "cannot be read as YAML"),
        ("template: scale\ndrafts: [nothing]\n", "there is no strategy nothing"),
        ("template: scale\ndrafts: [NAME]\n", "in a circle"),
    ],
)
def test_bad_strategies(tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text.replace("NAME", str(path)))
    with pytest.raises(ConfigError, match=message):
        load([str(path)])
