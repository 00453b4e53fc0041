"""Pairs that stage 2 reads: all of them in every round, by lot, encoded no sooner than needed."""

from collections import Counter
from dataclasses import replace

import pytest

from dragoman.commands.mixing_text import ENCODED, Train, stage_rows
from dragoman.corpora.ntext import from_columns
from dragoman.errors import DataError
from dragoman.methods import training
from dragoman.modeling import TextCodec
from tests.texts import tokenizer

STEPS = training.Config(steps=1, batch=8, micro_batch=8, warmup=1, decay=0, balance=0.01)
BOTH = {"en-de": ("en", "de"), "de-en": ("de", "en")}


@pytest.fixture(scope="module")
def codec():
    return TextCodec(tokenizer())


def text(rows):
    """Rows of two languages that all differ; every tenth is too long for a row of 64 tokens."""
    columns = {"en": [f"file {n}" + " the file" * (60 * (n % 10 == 9)) for n in range(rows)]}
    columns["de"] = [f"datei {n}" for n in range(rows)]
    return from_columns(("en", "de"), columns, {"split": ["train"] * rows})


def rows_of(codec, corpus, steps, directions=BOTH, **changes):
    settings = {"stage": 2, "directions": tuple(directions), "block": 64, "training": replace(STEPS, steps=steps)}
    return stage_rows(Train("x", out="no", **(settings | changes)), codec, corpus, directions)


def pairs_in(codec, rows):
    """Translations as they are read, row after row: (tag, text)."""
    found = []
    for tokens, labels in zip(rows.tokens_NS.tolist(), rows.labels_NS.tolist(), strict=True):
        for at, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            if label >= 0 and labels[at - 1] < 0:  # the tag of the target stands before its first token
                answer = tokens[at : tokens.index(codec.end_id, at)]
                found.append((codec.tokenizer.convert_ids_to_tokens(tokens[at - 1]), codec.decode(answer)))
            assert label in (-100, token)
    return found


def test_a_round_has_every_pair_that_fits_once_and_the_next_one_another_order(codec):
    corpus = text(30)
    rows = rows_of(codec, corpus, steps=6)
    found = pairs_in(codec, rows)
    whole = {("<de>", f"datei {n}") for n in range(30) if n % 10 != 9} | {
        ("<en>", f"file {n}") for n in range(30) if n % 10 != 9
    }
    times = Counter(found)
    assert set(times) == whole and max(times.values()) - min(times.values()) <= 2, "rows are filled first fit"
    assert rows.too_long == 6, "three in each direction, counted once however often they come round"
    again = rows_of(codec, corpus, steps=6)
    assert (again.tokens_NS == rows.tokens_NS).all()
    other = rows_of(codec, corpus, steps=6, seed=1)
    assert pairs_in(codec, other)[:20] != found[:20]


def test_no_more_is_encoded_than_a_stage_reads(codec, monkeypatch):
    seen, encode = [], TextCodec.encode
    monkeypatch.setattr(TextCodec, "encode", lambda self, texts: seen.extend(texts) or encode(self, texts))
    rows_of(codec, text(20 * ENCODED), steps=1)
    assert len(seen) == 2 * ENCODED, "of twenty times as many pairs in two directions"


def test_all_directions_without_text_are_named_and_pairs_that_all_are_too_long(codec):
    halves = from_columns(("en", "de"), {"en": ["a", None], "de": [None, "b"]}, {"split": ["train"] * 2})
    with pytest.raises(DataError, match="no train text en -> de, de -> en; give other directions"):
        rows_of(codec, halves, steps=1)
    with pytest.raises(DataError, match="no pair fits into 8 tokens; give a larger block"):
        rows_of(codec, text(30), steps=1, block=8)
