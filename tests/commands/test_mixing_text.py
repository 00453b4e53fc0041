"""Pairs that stage 2 reads: all of them in every round, by lot, encoded no sooner than needed."""

import re
from dataclasses import replace
from itertools import islice

import pytest

from dragoman.commands.mixing_text import ENCODED, Pairs, StageRows, Train, stage_rows
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


def settings(steps, **changes):
    given = {"stage": 2, "directions": tuple(BOTH), "block": 64, "training": replace(STEPS, steps=steps)}
    return Train("x", out="no", **(given | changes))


def rows_of(codec, corpus, steps, **changes):
    return stage_rows(settings(steps, **changes), codec, corpus, BOTH)


def test_every_round_has_each_pair_that_fits_once_in_an_order_of_its_own(codec, monkeypatch):
    corpus, encoded, encode = text(30), [], TextCodec.encode
    monkeypatch.setattr(TextCodec, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    found = [(pair, *texts) for pair in BOTH.values() for texts in corpus.pairs(*pair)]
    pairs = Pairs(settings(1), codec, found)
    stream = iter(pairs)
    rounds = [list(islice(stream, 54)) for _ in range(3)]
    assert len(encoded) == 2 * 60, "sources and targets, once"
    every = [codec.pairs([source], [target], *pair, {})[0] for pair, source, target in found]
    fit = [sample for sample in every if len(sample[0]) <= 64]
    assert len(fit) == 54 and all(sorted(one) == sorted(fit) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert pairs.too_long == 6
    assert list(islice(iter(Pairs(settings(1), codec, found)), 54)) == rounds[0], "the same by the same seed"
    assert list(islice(iter(Pairs(settings(1, seed=1), codec, found)), 54)) != rounds[0]


def test_replay_reads_documents_to_their_end(codec):
    """Of one document of 40 rows, some 160 tokens, every row is read in rows of 32."""
    columns = {"en": [f"file {n}" for n in range(40)], "de": [f"datei {n}" for n in range(40)]}
    columns["ca"] = [f"fitxer {n}" for n in range(40)]
    about = {"split": ["train"] * 40, "document": ["d"] * 40}
    rows = rows_of(
        codec, from_columns(("en", "de", "ca"), columns, about), steps=4, block=32, languages=("ca",), replay=0.5
    )
    read = " ".join(codec.decode([i for i in row.tolist() if i != codec.pad_id]) for row in rows.tokens_NS)
    missing = [n for n in range(40) if not re.search(rf"fitxer {n}(?!\d)", read)]
    assert len(missing) <= 2, f"{missing}; a row may end within a number"


def test_filler_is_counted_by_hand(codec):
    rows = rows_of(codec, text(30), steps=2)
    assert 0 < rows.filler_share == (rows.tokens_NS == codec.pad_id).mean()
    assert StageRows(rows.tokens_NS, None, [], 0).filler_share == 0


def test_what_does_not_fit_is_counted(codec):
    assert rows_of(codec, text(30), steps=6).too_long == 6, "three in each direction, however often they come round"


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
