"""Coverage: source words that nothing in the answer stands for, and words of the answer that stand for nothing.

Words are aligned by fast_align in both directions and the links that both agree on are kept: of the usual ways to join
two directions, the one that told answers with a dropped third apart best (docs/evaluation.md). An aligner is trained
once, on a parallel text that is not the answers: trained on the answers, it would learn their faults, and a segment's
value would depend on the others.

Good translations leave words unaligned too (articles, compounds): read a system beside the references.

Source: Dyer et al. 2013 (N13-1073) for the alignment model, by sil-thot; intersection of two directions: Och & Ney 2003
(J03-1002).
"""

# Shape letters: N segments, S sums of a metric, R resamples.

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import Metric, ratio
from dragoman.record import sha256

SIDES = ("source", "hypothesis")
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
MIN_PAIRS = 100


def words(text: str) -> list[str]:
    """Case-folded runs of letters and digits; in scripts without spaces every character is a word."""
    return WORD.findall(text.casefold())


class WordAligner:
    """fast_align in both directions, trained on a parallel text; needs the extra `coverage`.

    iterations: of expectation maximisation, in each direction.
    Raises ConfigError where the extra is not installed, DataError for texts of different length and for fewer than 100
    pairs with words.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str], iterations: int = 5) -> None:
        thot = _thot()
        if len(sources) != len(targets):
            raise DataError(f"an aligner needs pairs, but {len(sources)} sources and {len(targets)} targets were given")
        pairs = [(words(s), words(t)) for s, t in zip(sources, targets, strict=True)]
        pairs = [(s, t) for s, t in pairs if s and t]
        if len(pairs) < MIN_PAIRS:
            raise DataError(f"an aligner learns nothing from {len(pairs)} pairs with words; give {MIN_PAIRS} or more")
        direct = _trained(thot, pairs, iterations)
        inverse = _trained(thot, [(t, s) for s, t in pairs], iterations)
        self._both = thot.SymmetrizedAligner(direct, inverse)
        self._both.heuristic = thot.SymmetrizationHeuristic.INTERSECTION
        digest = sha256("\n".join(f"{' '.join(s)}\t{' '.join(t)}" for s, t in pairs))
        self.signature = (
            f"aligner:fast_align|joined:intersection|iterations:{iterations}|pairs:{len(pairs)}|text:{digest[:12]}"
            f"|words:casefold,characters where unspaced|sil-thot:{version('sil-thot')}"
        )

    def linked(self, source: str, hypothesis: str) -> tuple[np.ndarray, np.ndarray]:
        """Two boolean arrays: which words of the source have a link, and which of the hypothesis."""
        a, b = words(source), words(hypothesis)
        if not a or not b:
            return np.zeros(len(a), dtype=bool), np.zeros(len(b), dtype=bool)
        links = self._both.get_best_alignment(a, b)[1].to_numpy()[: len(a), : len(b)].astype(bool)
        return links.any(axis=1), links.any(axis=0)


def _thot() -> Any:
    try:
        import thot.alignment
    except ImportError:
        raise ConfigError(
            "coverage needs the word aligner sil-thot, which is not installed: pip install 'dragoman[coverage]'"
        ) from None
    return thot.alignment


def _trained(thot: Any, pairs: list[tuple[list[str], list[str]]], iterations: int) -> Any:
    model = thot.FastAlignModel()
    for source, target in pairs:
        model.add_sentence_pair(source, target, 1)
    model.start_training()
    for _ in range(iterations):
        model.train()
    model.end_training()
    return model


class Unaligned(Metric):
    """Share of words without a link, in percent; lower is better.

    side: `source` (what the answer left out) or `hypothesis` (what it put in). Raises ConfigError for another side.
    """

    higher_is_better = False
    needs = ("sources",)

    def __init__(self, side: str, aligner: WordAligner) -> None:
        if side not in SIDES:
            raise ConfigError(f"words can be unaligned on the side of {' or '.join(SIDES)}, not of {side!r}")
        self.side, self.aligner = side, aligner
        self.name = f"unaligned {side} words"

    def segment_sums(self, hypothesis: str, source: str) -> list[float]:
        """[source words without a link, source words, hypothesis words without a link, hypothesis words]."""
        in_source, in_hypothesis = self.aligner.linked(source, hypothesis)
        return [(~in_source).sum(), len(in_source), (~in_hypothesis).sum(), len(in_hypothesis)]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        first = 2 * SIDES.index(self.side)
        return ratio(sums[..., first], sums[..., first + 1], scale=100)

    def signature(self) -> str:
        return f"side:{self.side}|{self.aligner.signature}"
