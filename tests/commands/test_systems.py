"""Several models in one `dragoman evaluate`: what is asked of all before the first is scored, and one at a time."""

import gc
import json
import weakref
from dataclasses import replace

import pytest

import dragoman
from dragoman.commands import evaluate, scoring
from dragoman.errors import ConfigError, DataError
from tests.texts import corpus

CONTEXTS = {"long": 64, "short": 24, "other": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from dragoman.modeling import TextCodec, save_model
    from tests.models import tiny
    from tests.texts import tokenizer

    folder = tmp_path_factory.mktemp("models")
    codec = TextCodec(tokenizer())
    for name, context in CONTEXTS.items():
        model = tiny("olmoe", len(name), vocab_size=len(codec.tokenizer), max_position_embeddings=context)
        save_model(model, codec, folder / name)
    corpus().save(folder / "text.tsv.gz")
    return folder


@pytest.fixture
def never(monkeypatch):
    """Nothing is scored."""
    monkeypatch.setattr(scoring, "score_model", lambda *_, **__: 1 / 0)


def choices(folder, long):
    """Three sentences with a wrong one each, in two languages; one Catalan sentence has `long` words."""
    for tag, size in (("eng", 3), ("cat", long)):
        (folder / tag).mkdir(parents=True)
        rows = [("save it", "it save"), ("now " * size, "name " * size), ("and it", "it and")]
        lines = ["sen\twrong_sen", *map("\t".join, rows)]
        (folder / tag / "data.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_choices_without_room_are_told_before_anything_is_scored(place, tmp_path, never):
    settings = {"corpus": str(place / "text.tsv.gz"), "out": tmp_path / "o", "quiet": True}
    told = r"context of {} tokens has no room for 1 of 3 multiple-choice items in ca, as \S+; leave them out"
    with pytest.raises(DataError, match=told.format(64)):
        dragoman.evaluate(str(place / "long"), choices=choices(tmp_path / "c", 99), **settings)
    with pytest.raises(ConfigError, match=rf"nothing was scored: .*short: .*{told.format(24)}"):
        against = (str(place / "short"),)
        dragoman.evaluate(str(place / "long"), choices=choices(tmp_path / "d", 30), against=against, **settings)
    assert not (tmp_path / "o").exists()


def test_prompts_without_room_are_told_before_anything_is_scored(place, tmp_path, never):
    rows = [f"k{i}\td\ten {i}\tca {i}\n" for i in range(4)] + [f"k9\td\t{'the house ' * 40}\tla casa\n"]
    (tmp_path / "t.tsv").write_text("key\tdocument\ten\tca\n" + "".join(rows))
    settings = {"test_set": (str(tmp_path / "t.tsv"),), "directions": ("en-ca", "ca-en"), "out": tmp_path / "o"}
    with pytest.raises(DataError, match=r"64 tokens has no room for 1 of 5 prompts of en-ca, as \S+; leave them out"):
        dragoman.evaluate(str(place / "long"), quiet=True, **settings)
    assert not (tmp_path / "o").exists()


def test_one_model_is_in_memory_at_a_time(place, tmp_path, monkeypatch):
    from dragoman.methods import delta

    seen, alive = [], []
    original = delta.open_both

    def open_both(name, **settings):
        gc.collect()
        alive.append(sum(ref() is not None for ref in seen))
        found = original(name, **settings)
        seen.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(delta, "open_both", open_both)
    names = [str(place / name) for name in CONTEXTS]
    settings = {"corpus": str(place / "text.tsv.gz"), "languages": ("ca",), "segments": 4, "quiet": True}
    record = dragoman.evaluate(names[0], against=tuple(names[1:]), out=tmp_path / "o", **settings)
    assert record["systems"] == names and alive == [0, 0, 0]
    long, short = ("unit:utf-8-byte|special:excluded|context:{}|stride:{}|tokenizer:any".format(*x) for x in
                   ((64, 32), (24, 12)))  # fmt: skip
    assert {s: by["bits_per_byte"] for s, by in record["signatures_of"].items()} == {
        names[0]: long, names[1]: short, names[2]: long
    }  # fmt: skip
    assert any(f"different settings of bits_per_byte ({names[0]}: {long}; {names[1]}: {short})" in w
               for w in record["warnings"])  # fmt: skip


def test_what_was_scored_is_there_when_a_later_model_fails(place, tmp_path, monkeypatch):
    first, second = str(place / "long"), str(place / "other")
    original = scoring.score_model
    done = []

    def score_model(*given, **settings):
        if done:
            raise MemoryError
        done.append(1)
        return original(*given, **settings)

    monkeypatch.setattr(scoring, "score_model", score_model)
    settings = {"corpus": str(place / "text.tsv.gz"), "directions": ("en-ca",), "segments": 4, "quiet": True}
    with pytest.raises(MemoryError):
        dragoman.evaluate(first, against=(second,), metrics=("chrf",), out=tmp_path / "o", **settings)
    kept = json.loads((tmp_path / "o" / "segments.json").read_text())
    assert list(kept["outputs"]) == [first] and len(kept["outputs"][first]["en-ca"]) == 4


def test_a_part_of_a_test_set_is_spread_over_it_and_told(place, tmp_path):
    (tmp_path / "t.tsv").write_text("en\tca\n" + "".join(f"the house {i}\tla casa {i}\n" for i in range(12)))
    settings = {"directions": ("en-ca",), "metrics": ("chrf",), "quiet": True}
    config = evaluate.Config(str(place / "long"), test_set=(str(tmp_path / "t.tsv"),), segments=4, **settings)
    record = evaluate.run(replace(config, out=tmp_path / "o"))
    kept = json.loads((tmp_path / "o" / "segments.json").read_text())
    assert kept["outputs"]["copy"]["en-ca"] == [f"the house {i}" for i in (0, 3, 6, 9)]
    assert record["segments_scored"] == {"en-ca": 4} and record["segments_there"] == {"en": 12, "ca": 12, "en-ca": 12}
    (told,) = [w for w in record["warnings"] if "part of the test set" in w]
    assert "en-ca (4 of 12)" in told and "--segments 12 takes all" in told
    whole = evaluate.run(replace(config, segments=12, out=tmp_path / "p"))
    assert not [w for w in whole["warnings"] if "part of the test set" in w]
    own = {"corpus": str(place / "text.tsv.gz"), "segments": 4, "out": tmp_path / "q"}
    first = dragoman.evaluate(str(place / "long"), **settings, **own)
    kept = json.loads((tmp_path / "q" / "segments.json").read_text())
    rows = scoring.cells(corpus().select(["en", "ca"], "devtest", complete=True), "en")
    assert kept["outputs"]["copy"]["en-ca"] == rows[:4] and first["segments_there"]["en-ca"] > 4
    assert not [w for w in first["warnings"] if "part of the test set" in w]
