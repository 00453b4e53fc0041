"""`dragoman memory`, and what memory, glossary, strategies and steering do to `dragoman translate`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dragoman import cli
from dragoman.commands import memory, translate
from dragoman.errors import ConfigError, DataError
from dragoman.translation.memory import Memory
from dragoman.translation.request import Answer


class Copier:
    """An engine that copies its nearest neighbour, or shouts."""

    batch = 8

    def __init__(self):
        self.asked = []

    def answers(self, requests, template):
        for i, request in enumerate(requests):
            self.asked.append(request)
            yield i, Answer(request.neighbours[-1].target if request.neighbours else request.source.upper())


@pytest.fixture
def engine(tmp_path, monkeypatch):
    copier = Copier()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(translate, "_engine", lambda config: copier)
    monkeypatch.setattr(translate, "_identity", lambda model: f"{model} by content")
    return copier


def test_a_file_that_cannot_be_read_leaves_no_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tsv").write_text("en\tde\nSave\tSpeichern\n")
    (tmp_path / "b.tsv").write_text("en\tfr\nSave\tSauver\n")
    with pytest.raises(DataError, match=r"b\.tsv has no column de; it has en, fr"):
        memory.import_files(Path("m.sqlite"), Path("a.tsv"), Path("b.tsv"), to="de", quiet=True)
    assert not (tmp_path / "m.sqlite").exists()


def test_import_add_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tsv").write_text("en\tde\nOpen the file\tDatei öffnen\nSave\tSpeichern\nRain falls\tEs regnet\n")
    (tmp_path / "test.txt").write_text("rain falls\n")
    cli.run(["memory", "import", "m.sqlite", "a.tsv", "--to", "de", "--held-out", "test.txt"])
    assert "a.tsv: 2 new pairs\nm.sqlite: 2 pairs; 1 kept out by the guard" in capsys.readouterr().out
    cli.run(["memory", "add", "m.sqlite", "Save", "Sichern", "--to", "de"])
    cli.run(["memory", "search", "m.sqlite", "save", "--to", "de"])
    assert capsys.readouterr().out == "m.sqlite: 2 pairs\n1.00  Save\n      Sichern\n"
    (tmp_path / "c.yaml").write_text("to: de\nlimit: 1\n")
    cli.run(["memory", "search", "m.sqlite", "open the files", "--config", "c.yaml"])
    assert "Datei öffnen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("memory search none.sqlite text --to de", "no translation memory none.sqlite; make one with"),
        ("memory import m.sqlite --to de", "no files to import"),
        ("memory import m.sqlite a.tsv --to en", "source and target are both en"),
        ("memory add m.sqlite text Text --to en", "source and target are both en"),
        ("memory search m.sqlite text --to de --limit 0", "limit is at least 1"),
    ],
)
def test_errors(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        cli.run(line.split())
    assert not list(tmp_path.iterdir())


def test_what_the_memory_has_is_reused_and_corrections_win(tmp_path, engine):
    store = Memory.open("m.sqlite")
    pairs = [("Open the file", "Datei öffnen"), ("Open it {1}", "Öffne {1}"), ("Close the door", "Tür zu")]
    store.add(pairs, "en", "de")
    (tmp_path / "a.md").write_text("Open the file\n\nOpen it `now`\n\nClose the doors\n")
    config = translate.Config(("a.md",), to="de", memory=Path("m.sqlite"), strategy=("adaptive",), quiet=True)
    counts = translate.run(config)["counts"]
    assert (tmp_path / "translation/a.md").read_text() == "Datei öffnen\n\nÖffne `now`\n\nTür zu\n"
    assert (counts["reused"], counts["translated"], counts["segments"]) == (2, 1, 3)
    assert [request.source for request in engine.asked] == ["Close the doors"]
    store.add([("Close the doors", "Türen zumachen")], "en", "de", replace=True)
    record = translate.run(config)
    assert (tmp_path / "translation/a.md").read_text().endswith("Türen zumachen\n"), "over what the journal has"
    assert record["prompts"] == {"from_memory": 3}
    (tmp_path / "held.txt").write_text("Open the file\n")
    held = replace(config, held_out=(Path("held.txt"),), out=Path("o"))
    assert translate.run(held)["prompts"]["from_memory"] == 2
    (tmp_path / "references.txt").write_text("Tür zu\nTüren zumachen\n")
    held = replace(config, held_out=(Path("references.txt"),), out=Path("o2"))
    assert translate.run(held)["prompts"]["from_memory"] == 2, "a reference is no answer either"
    assert "Türen zumachen" not in (tmp_path / "o2/a.md").read_text()
    for text in ("Open it `now`", "Öffne `now`"):
        (tmp_path / "held.txt").write_text(f"{text}\n")
        held = replace(config, held_out=(Path("held.txt"),), out=Path(f"o {text}"))
        assert translate.run(held)["prompts"]["from_memory"] == 2, "with its pieces it is held out"
    store.close()


def test_the_memory_has_texts_with_placeholders_as_they_stand(tmp_path, engine):
    store = Memory.open("m.sqlite")
    pairs = {
        "Save %s now": "Sichere jetzt %s",
        "Copy %s to {name}": "Nach {name} %s kopieren",
        "Close %s": "Schließen",
        "Open %s": "%s und %s öffnen",
        "Move %s to %s": "%s nach %s",
        "Print %d of %s": "Drucke %s von %d, {x}",
        "Use `it`": "Nutze `it`",
        "Read **all** of it": "Lies **alles**",
    }
    store.add(pairs.items(), "en", "de")
    store.close()
    (tmp_path / "a.md").write_text("\n\n".join(pairs))
    config = translate.Config(("a.md",), to="de", memory=Path("m.sqlite"), steps=("zero_shot",), quiet=True)
    assert translate.run(config)["prompts"]["from_memory"] == 3
    texts = (tmp_path / "translation/a.md").read_text().split("\n\n")
    reused = ["Sichere jetzt %s", "Nach {name} %s kopieren", "Nutze `it`"]
    assert [text for text in texts if text in pairs.values()] == reused
    assert len(engine.asked) == 5, "a piece that is missing, there twice, invented or the same as another: asked for"


def test_answers_whose_prompts_showed_test_sentences_are_not_reused(tmp_path, engine):
    store = Memory.open("m.sqlite")
    store.add([("Close the door", "Tür zu")], "en", "de")
    store.close()
    (tmp_path / "a.txt").write_text("Close the doors\n")
    (tmp_path / "held.txt").write_text("Close the door\n")
    config = translate.Config(("a.txt",), to="de", memory=Path("m.sqlite"), strategy=("adaptive",), quiet=True)
    translate.run(config)
    held = replace(config, held_out=(Path("held.txt"),))
    with pytest.raises(ConfigError, match="another job: held_out differ"):
        translate.run(held)
    translate.run(replace(held, out=Path("o")))
    (tmp_path / "held.txt").write_text("Close the door\nSave\n")
    with pytest.raises(ConfigError, match="another job: held_out differ"):
        translate.run(replace(held, out=Path("o")))


def test_missing_terms_are_doubts_and_the_next_strategy_mends_them(tmp_path, engine, capsys):
    (tmp_path / "g.tsv").write_text("en\tde\nfile\tDatei\n")
    (tmp_path / "a.txt").write_text("A long text about a file\n")
    says = {"zero_shot": "Ein langer Text über etwas", "post_edit_terms": "Ein langer Text über eine Datei"}
    engine.answers = lambda requests, template: ((i, Answer(says[template])) for i, _ in enumerate(requests))
    config = {"to": "de", "glossary": Path("g.tsv"), "quiet": True}
    record = translate.run(translate.Config(("a.txt",), **config, steps=("zero_shot",)))
    assert record["segments"][0]["reasons"] == ("terms",)
    record = translate.run(
        translate.Config(("a.txt",), **config, steps=("zero_shot", "post_edit_terms"), out=Path("translation2"))
    )
    assert record["counts"]["translated"] == 1
    assert record["strategies"]["post_edit_terms"]["won"] == 1
    translate.show(record)
    assert re.search("post_edit_terms against its draft: won 1  lost 0", capsys.readouterr().out)
    record["strategies"]["post_edit_terms"] |= {"won": 0, "unjudged": 1}
    translate.show(record)
    assert "unjudged: there is no quality estimate without the extra embedding" in capsys.readouterr().out


def test_folders_of_held_out_sentences_go_by_what_is_in_them(tmp_path, engine):
    store = Memory.open("m.sqlite")
    store.add([("Save", "Sichern")], "en", "de")
    store.close()
    (tmp_path / "a.txt").write_text("Save\n")
    for name, text in {"dev/eng_Latn.dev": "Save\n", "dev/deu_Latn.dev": "Speichern\n"}.items():
        (tmp_path / "flores" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flores" / name).write_text(text)
    config = translate.Config(("a.txt",), to="de", memory=Path("m.sqlite"), held_out=(Path("flores"),), quiet=True)
    assert translate.run(config)["prompts"]["from_memory"] == 0
    (tmp_path / "flores/dev/deu_Latn.dev").write_text("Sichern\n")
    with pytest.raises(ConfigError, match="another job: held_out differ"):
        translate.run(config)


@pytest.mark.parametrize(("model", "draft"), [("", "FINAL"), ("drafter", "DRAFT")])
def test_another_model_writes_the_drafts(tmp_path, engine, monkeypatch, model, draft):
    class Named(Copier):
        def answers(self, requests, template):
            self.asked += [(template, draft.text) for request in requests for draft in request.drafts]
            yield from ((i, Answer(self.says)) for i, _ in enumerate(requests))

    engines = {}

    def open_engine(config):
        found = engines.setdefault(config.model, Named())
        found.says = "DRAFT" if config.model == "drafter" else "FINAL"
        return found

    monkeypatch.setattr(translate, "_engine", open_engine)
    Memory.open("m.sqlite").close()
    (tmp_path / "a.txt").write_text("Save\n")
    settings = {"memory": Path("m.sqlite"), "draft_model": model, "quiet": True, "steps": ("scale",)}
    translate.run(translate.Config(("a.txt",), to="de", server="http://x", concurrency=2, **settings))
    assert engines["mini-moe"].asked == [("scale", draft)]


def test_apertium_drafts_in_the_language_of_the_drafts(tmp_path, engine, monkeypatch):
    """All directions that will be asked for are opened at the start, and no other."""
    opened = []
    monkeypatch.setattr(translate, "_engine", lambda config: opened.append((config.model, config.to)) or engine)
    Memory.open("m.sqlite").close()
    (tmp_path / "a.txt").write_text("Save\n")
    settings = {"memory": Path("m.sqlite"), "via": "nl", "quiet": True, "draft_model": "apertium"}
    for strategies, into in ((("scale_pivot",), ["nl"]), (("pmp", "scale"), ["nl", "de"])):
        translate.run(translate.Config(("a.txt",), to="de", strategy=strategies, out=Path(strategies[0]), **settings))
        assert opened == [("mini-moe", "de"), *(("apertium", to) for to in into)]
        opened.clear()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": ("adaptive",)}, "adaptive without --memory"),
        ({"strategy": ("pmp", "post_edit_terms")}, "post_edit_terms without --glossary; pmp without --via"),
        ({"strategy": ("scale",), "steps": ("zero_shot",)}, "--strategy would have no effect beside --steps"),
        ({"steps": ("by_piece",)}, "takes a text as a whole"),
        ({"via": "nl"}, "--via would have no effect"),
        ({"held_out": ("x",)}, "--held-out would have no effect"),
        ({"draft_model": "x"}, "--draft-model would have no effect"),
        ({"accept_if_better": True}, "--accept-if-better would have no effect"),
        ({"server": "http://x", "steer": "s.json"}, "--steer would have no effect"),
        ({"model": "apertium", "steer": "s.json"}, "--steer would have no effect"),
        ({"model": "apertium", "strategy": ("adaptive",), "memory": "m"}, "so adaptive would ask what zero_shot asks"),
        ({"model": "apertium", "steps": ("zero_shot", "instruct")}, "so instruct would ask what zero_shot asks"),
        ({"server": "http://x", "batch": 8}, "--batch would have no effect"),
    ],
)
def test_settings_without_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        translate.Config(("a.md",), to="de", **settings)


def test_a_draft_model_goes_by_its_content(tmp_path, engine, monkeypatch):
    Memory.open("m.sqlite").close()
    (tmp_path / "a.txt").write_text("Save\n")
    settings = {"memory": Path("m.sqlite"), "draft_model": "drafter", "quiet": True, "steps": ("scale",)}
    config = translate.Config(("a.txt",), to="de", **settings)
    translate.run(config)
    monkeypatch.setattr(translate, "_identity", lambda model: f"{model} by {len(model)}")
    with pytest.raises(ConfigError, match="another job: draft_model, model differ"):
        translate.run(config)


def test_steering_changes_answers(tmp_path, monkeypatch):
    """Hard steering with every expert of the first layers forced: the built-in model says something else."""
    from dragoman.methods.steer import Steering

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Click the button to save the file.\n")
    experts = dict.fromkeys(range(8), (0, 1, 2, 3))
    Steering("hard", 1.0, experts, {}, dict.fromkeys(range(8), 32), "by hand").save(tmp_path / "s.json")
    Steering("soft", 0.0, experts, {}, dict.fromkeys(range(8), 32), "by hand").save(tmp_path / "none.json")
    texts, plain = {}, translate.Config(("a.txt",), to="de", steps=("zero_shot",), quiet=True)
    for name in ("s.json", "none.json", ""):
        steer = Path(name) if name else None
        translate.run(replace(plain, steer=steer, out=Path(f"o{name}")))
        texts[name] = (tmp_path / f"o{name}/a.txt").read_text()
    assert texts["none.json"] == texts[""] != texts["s.json"]
    with pytest.raises(ConfigError, match="another job: steer differ"):
        translate.run(replace(plain, steer=Path("s.json"), out=Path("o")))
    many = Steering("hard", 1.0, dict.fromkeys(range(8), tuple(range(5))), {}, dict.fromkeys(range(8), 32), "by hand")
    many.save(tmp_path / "many.json")
    with pytest.raises(ConfigError, match="more experts are forced than a token is sent to: 5 of at most 4 in layer 0"):
        translate.run(replace(plain, steer=Path("many.json"), out=Path("no")))
    assert not (tmp_path / "no").exists(), "refused before there is a journal"
