"""Commands as functions: what callers write becomes what commands expect, and mistakes are told."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

import dragoman
from dragoman.commands import adapt, diagnose, evaluate, plan, translate
from dragoman.commands.calling import made
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError


def test_words_for_paths_and_for_lists_of_one():
    config = made(diagnose.Config, "diagnose", ("mini-moe",), {"out": "run", "languages": "ca"})
    assert (config.model, config.out, config.languages) == ("mini-moe", Path("run"), ("ca",))
    given = {"files": "a.md", "to": "de", "memory": "m", "held_out": ["t.txt", Path("u")]}
    config = made(translate.Config, "translate", (), given)
    assert config.files == ("a.md",) and config.memory == Path("m") and config.held_out == (Path("t.txt"), Path("u"))
    assert made(evaluate.Config, "evaluate", ("m",), {"against": ["a", "b"]}).against == ("a", "b")
    config = made(plan.Config, "plan", (Path("t.npz"),), {"target": "ca", "out": "p.json"})
    assert config.trace == Path("t.npz") and config.out == Path("p.json")
    assert made(plan.Config, "plan", ("./model",), {"out": "p.json"}).trace == "./model", "a path or a model"
    nested = made(adapt.Config, "adapt", ("m",), {"target": "ca", "evaluation": {"known": "fr", "segments": 4}})
    assert nested.evaluation.known == ("fr",) and nested.evaluation.segments == 4
    nested = made(adapt.Config, "adapt", ("m",), {"target": "ca", "text": {"sources": {"x": "x.txt"}}})
    assert nested.text.sources == {"x": Path("x.txt")}


@pytest.mark.parametrize("name", dragoman.VERBS)
def test_a_setting_that_there_is_not(name):
    with pytest.raises(ConfigError, match=rf"{name}: (got an unexpected|missing a required) .*; its settings are \w+"):
        getattr(dragoman, name)(nosuch=1)
    with pytest.raises(ConfigError, match=f"{name}: too many positional arguments; its settings are"):
        getattr(dragoman, name)(*range(99))


def test_a_word_that_a_setting_does_not_take():
    assert "resample" in {f.name for f in fields(diagnose.Config)}
    with pytest.raises(ConfigError, match="diagnose: resample is documents, segments, not 'document'"):
        dragoman.diagnose("mini-moe", resample="document")
    with pytest.raises(ConfigError, match="adapt: evaluation: got an unexpected keyword argument 'knwon'"):
        dragoman.adapt("m", target="ca", evaluation={"knwon": ["fr"]})


def test_the_readmes_function_runs(tmp_path, monkeypatch):
    """As it stands there, but for fewer segments."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (call,) = re.findall(r"`dragoman\.(diagnose\(.*?\))`", readme)
    monkeypatch.chdir(tmp_path)
    few = {"segments": 8, "languages": ["en", "ca"], "quiet": True}
    eval(call, {"diagnose": lambda *args, **given: dragoman.diagnose(*args, **given, **few)})
    assert (tmp_path / "run" / "trace.npz").is_file()


def test_languages_that_are_joined_by_commas_are_told():
    text = NText(("en", "ca"), ("a",), ("d",), ("train",), {"en": ["One"], "ca": ["U"]}, {"name": "own"})
    with pytest.raises(DataError, match=r"no column en,ca in corpus own .write several with spaces between: en ca"):
        text.require(["en,ca"])
