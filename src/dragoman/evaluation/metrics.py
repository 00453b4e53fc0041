"""The metrics by name: those of sacrebleu, bits per byte, and what the other files of this room define.

All are classes of sums per segment (`base.Metric`); `METRICS` makes one by name. BLEU, chrF and TER count with
sacrebleu and equal its corpus scores.
"""

# Shape letters: S sums of a metric, R resamples, O n-gram orders.

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import sacrebleu.metrics
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError
from dragoman.evaluation.base import Metric, Score, ratio, score, sums_per_segment
from dragoman.evaluation.coverage import Unaligned
from dragoman.evaluation.kept import Kept
from dragoman.evaluation.neural import Comet, MetricX
from dragoman.evaluation.options import OptionAccuracy
from dragoman.evaluation.rates import Copies, LengthRatio, OffTarget, OverGeneration
from dragoman.evaluation.reference_free import EmbeddingQuality
from dragoman.evaluation.tasks import TaskAccuracy
from dragoman.evaluation.terms import TermRecall

__all__ = ["BLEU", "BLEU_TOKENIZERS", "CHRF", "METRICS", "TER", "BitsPerByte", "Metric", "Score", "score",
           "sums_per_segment"]  # fmt: skip

BLEU_TOKENIZERS = ("13a", "intl", "zh", "char", "none")
"""Tokenizers of sacrebleu that need neither a download nor an extra package."""


class CHRF(Metric):
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


class BLEU(Metric):
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


class TER(Metric):
    """Translation edit rate in percent: edits and shifts of words per word of the reference; lower is better.

    asian: characters of Chinese, Japanese and the like are words (sacrebleu's `normalized` and `asian_support`).
        Without it a text without spaces is one word, and TER says little.

    Source: Snover et al. 2006 (AMTA), edits counted by sacrebleu.
    """

    name = "TER"
    higher_is_better = False

    def __init__(self, asian: bool = False) -> None:
        self._counter = sacrebleu.metrics.TER(normalized=asian, asian_support=asian)
        self._counter.num_refs = 1

    def segment_sums(self, hypothesis: str, reference: str) -> list[float]:
        """[edits, words of the reference]."""
        return self._counter._extract_corpus_statistics([hypothesis], [[reference]])[0]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        edits, words = sums[..., 0], sums[..., 1]
        return 100 * np.where(words > 0, ratio(edits, words), edits > 0)

    def signature(self) -> str:
        return self._counter.get_signature().format()


class BitsPerByte(Metric):
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
    "ter": TER,
    "option_accuracy": OptionAccuracy,
    "task_accuracy": TaskAccuracy,
    "term_recall": TermRecall,
    "off_target": OffTarget,
    "copies": Copies,
    "over_generation": OverGeneration,
    "length_ratio": LengthRatio,
    "placeholders": partial(Kept, "placeholders"),
    "numbers": partial(Kept, "numbers"),
    "unaligned_source": partial(Unaligned, "source"),
    "unaligned_hypothesis": partial(Unaligned, "hypothesis"),
    "embedding": EmbeddingQuality,
    "comet": Comet,
    "metricx": MetricX,
}
"""Names in records and on the command line. Some need arguments (a language, an aligner, a folder of weights); coverage
and `embedding` need an extra, `comet` and `metricx` local weights."""
