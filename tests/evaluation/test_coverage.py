import random
import sys

import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.coverage import Unaligned, WordAligner, words


def test_words_by_hand():
    assert words("Die Tabelle, 2. Teil") == ["die", "tabelle", "2", "teil"]
    assert words("选择 Table 单元") == ["选", "择", "table", "单", "元"]
    assert words("...") == []


class Diagonal:
    """Links word i to word i."""

    signature = "aligner:diagonal"

    def linked(self, source, hypothesis):
        a, b = len(words(source)), len(words(hypothesis))
        return np.arange(a) < b, np.arange(b) < a


def test_sums_by_hand():
    metric = Unaligned("source", Diagonal())
    sums_NS = sums_per_segment(metric, ["a b", "a b c", ""], sources=["x y z", "x", "x y"])
    assert sums_NS.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3], [2, 2, 0, 0]]
    assert score(metric, sums_NS).value == 50
    assert score(Unaligned("hypothesis", Diagonal()), sums_NS).value == 40
    assert metric.signature() == "side:source|aligner:diagonal"


def dictionary_pairs(n, seed=0):
    """Sentences of a made language: every English word has one translation, order is turned round."""
    rng = random.Random(seed)
    vocabulary = [(f"word{i}", f"mot{i}") for i in range(40)]
    chosen = [rng.sample(vocabulary, rng.randint(3, 8)) for _ in range(n)]
    return [" ".join(e for e, _ in c) for c in chosen], [" ".join(f for _, f in reversed(c)) for c in chosen]


@pytest.fixture(scope="module")
def aligner():
    pytest.importorskip("thot")
    return WordAligner(*dictionary_pairs(400))


def test_an_aligner_finds_what_was_dropped(aligner):
    in_source, in_target = aligner.linked("word1 word2 word3 word4 word5", "mot5 mot3 mot2 mot1")
    assert in_target.all()
    assert (in_source == [True, True, True, False, True]).all()


def test_whole_translations_are_covered(aligner):
    sources, targets = dictionary_pairs(50, seed=1)
    whole = sums_per_segment(Unaligned("source", aligner), targets, sources=sources)
    halves = [" ".join(t.split()[: len(t.split()) // 2]) for t in targets]
    half = sums_per_segment(Unaligned("source", aligner), halves, sources=sources)
    assert score(Unaligned("source", aligner), whole).value < 5
    assert score(Unaligned("source", aligner), half).value > 40


def test_the_same_text_gives_the_same_aligner(aligner):
    again = WordAligner(*dictionary_pairs(400))
    assert again.signature == aligner.signature
    for source, target in zip(*dictionary_pairs(30, seed=2), strict=True):
        assert all(
            (a == b).all() for a, b in zip(again.linked(source, target), aligner.linked(source, target), strict=True)
        )
    assert WordAligner(*dictionary_pairs(401)).signature != aligner.signature


def test_errors(monkeypatch):
    with pytest.raises(ConfigError, match="source or hypothesis, not of 'target'"):
        Unaligned("target", Diagonal())
    monkeypatch.setitem(sys.modules, "thot", None)
    monkeypatch.setitem(sys.modules, "thot.alignment", None)
    with pytest.raises(ConfigError, match=r"sil-thot, which is not installed: pip install 'dragoman\[coverage\]'"):
        WordAligner(["a"], ["b"])


def test_too_little_text_is_refused():
    pytest.importorskip("thot")
    with pytest.raises(DataError, match="2 sources and 1 targets"):
        WordAligner(["a", "b"], ["c"])
    with pytest.raises(DataError, match="learns nothing from 1 pairs with words; give 100"):
        WordAligner(["a", "..."], ["c", "d"])
