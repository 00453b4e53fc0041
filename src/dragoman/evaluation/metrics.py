"""Metrics: sums per segment, then one formula, then a signature.

A segment gives a few numbers that add up (n-gram counts, bits and bytes). A score is a formula over their sum, so the
score of a corpus, of a bootstrap resample and of a document come from the same sums and nothing is counted twice.

    sums_NS = sums_per_segment(metric, hypotheses, references)
    print(score(metric, sums_NS))                # chrF2|nrefs:1|case:mixed|... = 54.3
    metric.from_sums(weights_RN @ sums_NS)       # [R]: the score of each resample
"""

# Shape letters: N segments, S sums of a metric, R resamples, O n-gram orders.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import sacrebleu.metrics
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError, DataError

BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Tokenizers of sacrebleu that need neither a download nor an extra package."""


@dataclass(frozen=True)
class Score:
    """A number with everything that must match before it may be compared with another."""

    name: str
    value: float
    """0..100 for BLEU and chrF (higher is better); bits per byte for likelihood (lower is better)."""
    signature: str

    def __str__(self) -> str:
        return f"{self.name}|{self.signature} = {self.value:.{1 if self.value >= 10 else 3}f}"


class Metric(Protocol):
    """What a metric gives; all the rest (corpus scores, intervals, tests) follows from it."""

    name: str
    higher_is_better: bool

    def segment_sums(self, hypothesis: Any, reference: str) -> list[float]:
        """[S] numbers that add up over segments. hypothesis: the system's answer, most often a text."""

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        """Scores of summed sums; the last axis is S and goes away: [S] -> scalar, [R, S] -> [R]."""

    def signature(self) -> str:
        """Settings and versions, as `key:value` joined by `|`."""


class CHRF:
    """Character n-gram F-score (chrF2; `word_order=2` makes it chrF2++), 0..100.

        P, R = means of the n-gram precisions and recalls over the orders that occur on both sides
        chrF = 100 * (1 + 2^2) * P * R / (2^2 * P + R)

    Source: Popović 2015 (W15-3049); Popović 2017 (W17-4770) for word n-grams; counts and signature by sacrebleu.
    """

    higher_is_better = True

    def __init__(self, word_order: int = 0) -> None:
        self._counter = sacrebleu.metrics.CHRF(word_order=word_order)
        self._counter.num_refs = 1
        self.name = "chrF2" + "+" * word_order

    def segment_sums(self, hypothesis: str, reference: str) -> list[float]:
        """[3 * O]: n-grams of hypothesis, of reference, matches; for every order."""
        return self._counter._extract_corpus_statistics([hypothesis], [[reference]])[0]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        precision, recall, orders = (np.zeros(sums.shape[:-1]) for _ in range(3))
        for first in range(0, sums.shape[-1], 3):  # order by order, as sacrebleu adds them: equal to the last bit
            in_hypothesis, in_reference, matches = (sums[..., first + i] for i in range(3))
            counts = (in_hypothesis > 0) & (in_reference > 0)
            precision += np.where(counts, matches / np.where(counts, in_hypothesis, 1), 0)
            recall += np.where(counts, matches / np.where(counts, in_reference, 1), 0)
            orders += counts
        orders = np.maximum(orders, 1)
        precision, recall = precision / orders, recall / orders
        weighted = 4 * precision + recall
        return np.asarray(100 * (5 * precision * recall / np.where(weighted > 0, weighted, 1)))

    def signature(self) -> str:
        return self._counter.get_signature().format()


class BLEU:
    """Corpus BLEU, 0..100: brevity penalty times the geometric mean of n-gram precisions, exponential smoothing.

    tokenize: one of BLEU_TOKENIZERS; anything else raises ConfigError.

    Source: Papineni et al. 2002 (P02-1040); Post 2018 (W18-6319) for signature and tokenizers; counts by sacrebleu.
    """

    name = "BLEU"
    higher_is_better = True

    def __init__(self, tokenize: str = "13a") -> None:
        if tokenize not in BLEU_TOKENIZERS:
            raise ConfigError(f"BLEU has no tokenizer {tokenize!r} here; choose from {', '.join(BLEU_TOKENIZERS)}")
        self._counter = sacrebleu.metrics.BLEU(tokenize=tokenize)
        self._counter.num_refs = 1

    def segment_sums(self, hypothesis: str, reference: str) -> list[float]:
        """[2 + 4 + 4]: words of hypothesis and of reference, matches per order, n-grams per order."""
        return self._counter._extract_corpus_statistics([hypothesis], [[reference]])[0]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        in_hypothesis, in_reference = sums[..., 0], sums[..., 1]
        matches, total = sums[..., 2:6], sums[..., 6:10]
        missed = matches == 0
        defined = ~missed.all(axis=-1) & (total > 0).all(axis=-1)
        # the k-th order without a match counts as 2**-k matches
        smoothed = np.where(missed, 0.5 ** missed.cumsum(axis=-1), matches)
        log_precision = np.log(smoothed / np.maximum(total, 1)).mean(axis=-1)
        log_brevity = np.minimum(1 - in_reference / np.maximum(in_hypothesis, 1), 0)
        return np.where(defined, 100 * np.exp(log_precision + log_brevity), 0.0)

    def signature(self) -> str:
        return self._counter.get_signature().format()


class BitsPerByte:
    """Bits that a model spends on a text per UTF-8 byte of it; lower is better. Sums: [bits, bytes].

    What is predicted is the text's own tokens given a start token; start, end and language tags are conditions and
    cost nothing. Bytes do not depend on the tokenizer, so models with different vocabularies may be compared. A text
    has several tokenizations and only one is scored, so the value bounds the model's true rate from above.

    context: tokens a model sees at once; longer segments are scored in windows that move by half of it
        (`likelihood.text_bits`).
    """

    name = "bits per byte"
    higher_is_better = False

    def __init__(self, context: int) -> None:
        self.context = context

    def segment_sums(self, hypothesis: float, reference: str) -> list[float]:
        """[bits, bytes]; hypothesis: the bits that the model spent on the reference."""
        return [hypothesis, len(reference.encode())]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return np.asarray(sums[..., 0] / sums[..., 1])

    def signature(self) -> str:
        return f"unit:utf-8-byte|special:excluded|context:{self.context}|stride:{self.context // 2}|tokenizer:any"


METRICS: dict[str, Callable[..., Metric]] = {
    "bits_per_byte": BitsPerByte,
    "chrf": CHRF,
    "chrf++": partial(CHRF, word_order=2),
    "bleu": BLEU,
}


def sums_per_segment(metric: Metric, hypotheses: Sequence[Any], references: Sequence[str]) -> np.ndarray:
    """Sums_NS of every segment, float64 (exact for counts).

    Raises DataError where there is nothing to score, or not one hypothesis for one reference.
    """
    if not len(hypotheses) or len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} hypotheses and {len(references)} references were given, but every segment needs one "
            "of each; look for empty files and for lines that were lost or split"
        )
    pairs = zip(hypotheses, references, strict=True)
    return np.array([metric.segment_sums(hypothesis, reference) for hypothesis, reference in pairs], dtype=np.float64)


def score(metric: Metric, sums_NS: np.ndarray) -> Score:
    """The corpus score that the segments' sums give."""
    return Score(metric.name, float(metric.from_sums(sums_NS.sum(axis=0))), metric.signature())
