"""`dragoman translate` where something is amiss: files that cannot be written, what makes a job another one."""

import json
import shutil
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from dragoman.commands import translate
from dragoman.corpora.languages import Language
from dragoman.errors import ConfigError, DataError
from dragoman.translation.journal import Attempt, Journal
from dragoman.translation.request import Answer


class Talker:
    """An engine of one function; it remembers what it was asked."""

    batch = 4

    def __init__(self, say):
        self.say, self.asked = say, []

    def answers(self, requests, template):
        for i, request in enumerate(requests):
            self.asked.append((request.source, request.notes))
            yield i, Answer(self.say(request.source))


@pytest.fixture
def engine(tmp_path, monkeypatch):
    talker = Talker(lambda text: f"Шум {text}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(translate, "_engine", lambda config: talker)
    monkeypatch.setattr(translate, "checks", lambda target: {})
    return talker


PO = 'msgid ""\nmsgstr "Content-Type: text/plain; charset={}\\n"\n\nmsgid "{}"\nmsgstr ""\n'


def test_files_whose_encoding_lacks_a_letter_are_told_at_the_end(tmp_path, engine):
    for name, charset, text in (("a", "iso-8859-1", "One"), ("b", "utf-8", "Two"), ("c", "us-ascii", "Three")):
        (tmp_path / f"{name}.po").write_text(PO.format(charset, text))
    config = translate.Config(("a.po", "b.po", "c.po"), to="ru", steps=("zero_shot",), server="http://x", quiet=True)
    with pytest.raises(DataError, match=r"a\.po is in iso-8859-1, .* 'Ш'; .*c\.po is in us-ascii, .* all else is") as e:
        translate.run(config)
    assert "b.po" not in str(e.value) and "convert it to UTF-8" in str(e.value)
    assert sorted(p.name for p in (tmp_path / "translation").glob("*.po")) == ["b.po"]
    record = json.loads((tmp_path / "translation/record.json").read_text(encoding="utf-8"))
    assert record["counts"] == {"segments": 3, "translated": 1, "reused": 0, "kept": 0, "doubtful": 0, "failed": 2}
    assert [file["output"] for file in record["files"]] == [None, "translation/b.po", None]
    assert [line["reasons"] for line in record["segments"]] == 2 * [[translate.UNWRITTEN]]
    for name, text in (("a", "One"), ("c", "Three")):
        (tmp_path / f"{name}.po").write_text(PO.format("utf-8", text))
    assert translate.run(config)["counts"]["translated"] == 3
    assert len(engine.asked) == 3, "the journal has the answers"


def test_a_note_that_is_added_is_asked_with(tmp_path, engine):
    path, config = tmp_path / "a.po", translate.Config(("a.po",), to="ru", server="http://x", quiet=True)
    path.write_text(PO.format("utf-8", "Open"))
    translate.run(config)
    path.write_text(path.read_text().replace('msgid "Open"', '# a button\nmsgid "Open"'))
    for _ in range(2):
        translate.run(config)
    assert engine.asked == [("Open", ()), ("Open", ("a button",))]


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_a_model_is_another_one_when_it_reads_or_ends_texts_otherwise(tmp_path, name):
    from dragoman.modeling import model_path

    shutil.copytree(model_path("mini-moe"), tmp_path / "m")
    before = translate._reading([str(tmp_path / "m")])
    assert before == translate._reading(["mini-moe"]) and not translate._reading(["allenai/none"])
    path = Path(tmp_path / "m" / name)
    path.write_text((path.read_text() if path.exists() else "") + " ")
    assert translate._reading([str(tmp_path / "m")]) != before


def test_a_journal_that_does_not_say_how_its_model_reads_goes_on_and_says_so_from_now(tmp_path):
    job = {"model": "sum", "languages": ["en", "de"]}
    with closing(Journal(tmp_path / "j", job)) as journal:
        journal.add("u", "s", Attempt("x", ()))
    for _ in range(2):
        with closing(Journal(tmp_path / "j", job | {"reading": "one"})) as journal:
            assert journal.attempts()
    with pytest.raises(ConfigError, match="holds another job: reading differ"):
        Journal(tmp_path / "j", job | {"reading": "two"})


@pytest.mark.parametrize(("to", "differs"), [("zh-Hant", True), ("de", False)])
def test_a_job_whose_prompts_named_its_language_otherwise_is_another_one(tmp_path, engine, monkeypatch, to, differs):
    (tmp_path / "a.po").write_text(PO.format("utf-8", "Open"))
    config = translate.Config(("a.po",), to=to, server="http://x", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(translate, "language", lambda tag: Language(tag, "Chinese", (), "", ""))
        translate.run(config)
    with pytest.raises(ConfigError, match="names differ") if differs else nullcontext():
        translate.run(config)
