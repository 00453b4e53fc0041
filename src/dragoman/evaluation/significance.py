"""Is a difference more than noise? Intervals and paired tests over segments or, better, over documents.

Everything works on the sums that metrics give per segment: a resample is a vector of weights, its score the metric's
formula over `weights @ sums`. Segments of one document resemble each other; where documents are known, whole documents
are drawn, because segments drawn one by one would promise more certainty than the text gives.

Few units give narrow intervals and small p-values that should not be believed (below about 30 documents); results
therefore say how many units they rest on.
"""

# Shape letters: N segments, U units (documents or segments), S sums of a metric, R resamples.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import DataError

FromSums = Callable[[np.ndarray], np.ndarray]
"""[R, S] summed sums -> [R] scores; `from_sums` of a metric."""

CELLS = 1 << 22
"""Size of the largest block of weights [R, U] made at once."""


@dataclass(frozen=True)
class Interval:
    """A corpus score with its percentile interval."""

    value: float
    low: float
    high: float
    resamples: int
    unit: str
    """What was resampled: `segment` or `document`."""
    units: int


@dataclass(frozen=True)
class Comparison:
    """Score of a minus score of b, with its percentile interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    resamples: int
    unit: str
    """What was resampled: `segment` or `document`."""
    units: int


def interval(
    sums_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a corpus score.

    documents: the document of each segment; without it, segments are resampled.
    Raises DataError for sums that are not finite and for fewer than two units.

    Source: Efron & Tibshirani 1993, sec. 13.3; for documents, resampling of clusters with replacement.
    """
    (sums_US,) = _by_unit([sums_NS], documents)
    scores_R = from_sums(_resample(sums_US, resamples, seed))
    low, high = _limits(scores_R, level)
    return Interval(_score(sums_US, from_sums), low, high, resamples, _unit(documents), len(sums_US))


def paired_bootstrap(
    sums_a_NS: np.ndarray,
    sums_b_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Difference of two systems on the same segments; every resample takes the same units of both.

        p = (1 + #{|d_r - d| >= |d|}) / (1 + R)      d observed difference, d_r difference in resample r

    The distribution of d_r around d stands for that of differences around zero, were the systems equal.

    documents: the document of each segment; without it, segments are resampled.
    Raises DataError for unequal numbers of segments, sums that are not finite and fewer than two units.

    Source: Koehn 2004 (W04-3250), paired bootstrap resampling; Riezler & Maxwell 2005 (W05-0908), fig. 2, for testing
        with a distribution shifted to the null hypothesis (Efron & Tibshirani 1993, ch. 16).
    Differs: Koehn gives the share of resamples that one system wins, which is one-sided; sacrebleu shifts |d_r| by
        its own mean and counts the upper tail only, about half of this p, and calls identical systems different
        (p = 1 / (R + 1)) because ties do not count there. Here both tails and ties count: identical systems have p = 1.
    """
    sums_a_US, sums_b_US = _by_unit([sums_a_NS, sums_b_NS], documents)
    difference = _score(sums_a_US, from_sums) - _score(sums_b_US, from_sums)
    difference_R = from_sums(_resample(sums_a_US, resamples, seed)) - from_sums(_resample(sums_b_US, resamples, seed))
    low, high = _limits(difference_R, level)
    p_value = _p_value(difference_R - difference, difference)
    return Comparison(difference, low, high, p_value, resamples, _unit(documents), len(sums_a_US))


def approximate_randomisation(
    sums_a_NS: np.ndarray,
    sums_b_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    trials: int = 10000,
    seed: int = 0,
) -> float:
    """Two-sided p-value: how often is a difference as large when each unit's two outputs are swapped by a coin?

        p = (1 + #{|d_r| >= |d|}) / (1 + R)

    documents: the document of each segment; whole documents are swapped.
    Raises DataError as `paired_bootstrap` does.

    Source: Noreen 1989; Riezler & Maxwell 2005 (W05-0908), fig. 1.
    Differs: from sacrebleu in that ties count, so that identical systems have p = 1.
    """
    sums_a_US, sums_b_US = _by_unit([sums_a_NS, sums_b_NS], documents)
    difference = _score(sums_a_US, from_sums) - _score(sums_b_US, from_sums)
    total_a_S, total_b_S, gain_US = sums_a_US.sum(axis=0), sums_b_US.sum(axis=0), sums_a_US - sums_b_US
    rng = np.random.default_rng(seed)
    differences = []
    for block in _blocks(trials, len(gain_US)):
        swapped_RS = rng.integers(2, size=(block, len(gain_US))).astype(np.float64) @ gain_US
        differences.append(from_sums(total_a_S - swapped_RS) - from_sums(total_b_S + swapped_RS))
    return _p_value(np.concatenate(differences), difference)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for testing all of them, in the order given; reject where adjusted <= alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _unit(documents: Sequence[str] | None) -> str:
    return "segment" if documents is None else "document"


def _score(sums_US: np.ndarray, from_sums: FromSums) -> float:
    return float(from_sums(sums_US.sum(axis=0)))


def _by_unit(systems: list[np.ndarray], documents: Sequence[str] | None) -> list[np.ndarray]:
    """Sums of each system per unit, float64 [U, S]; units in order of first appearance."""
    sizes = [len(sums_NS) for sums_NS in systems] + ([] if documents is None else [len(documents)])
    if len(set(sizes)) > 1:
        raise DataError(f"systems and documents must list the same segments, but their lengths are {sizes}")
    arrays = [np.asarray(sums_NS, dtype=np.float64) for sums_NS in systems]
    if bad := sorted({n for sums_NS in arrays for n in np.argwhere(~np.isfinite(sums_NS))[:, 0].tolist()}):
        raise DataError(f"sums of {len(bad)} segments are not finite, first segment {bad[0]}; score them again")
    if documents is not None:
        arrays = [_sum_documents(sums_NS, documents) for sums_NS in arrays]
    if len(arrays[0]) < 2:
        raise DataError(
            f"resampling needs two units or more, but there is {len(arrays[0])} {_unit(documents)}; "
            "take more text, or compare by segment where all of it is one document"
        )
    return arrays


def _sum_documents(sums_NS: np.ndarray, documents: Sequence[str]) -> np.ndarray:
    row = {document: u for u, document in enumerate(dict.fromkeys(documents))}
    sums_US = np.zeros((len(row), sums_NS.shape[1]))
    np.add.at(sums_US, [row[document] for document in documents], sums_NS)
    return sums_US


def _blocks(resamples: int, units: int) -> Iterator[int]:
    """Sizes of blocks that make up `resamples` without holding more than CELLS weights."""
    size = max(1, CELLS // units)
    for first in range(0, resamples, size):
        yield min(size, resamples - first)


def _resample(sums_US: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Summed sums [R, S] of units drawn with replacement; the same seed draws the same units."""
    rng = np.random.default_rng(seed)
    units = len(sums_US)
    totals = []
    for block in _blocks(resamples, units):
        drawn_RU = rng.integers(units, size=(block, units)) + np.arange(block)[:, None] * units
        weights_RU = np.bincount(drawn_RU.ravel(), minlength=block * units).reshape(block, units)
        totals.append(weights_RU.astype(np.float64) @ sums_US)
    return np.concatenate(totals)


def _limits(values_R: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _p_value(null_R: np.ndarray, observed: float) -> float:
    """Share of the null distribution as far from zero as the observed value; the observed one is in it.

    Ties count, also those that rounding has split.
    """
    as_far = np.abs(null_R) >= abs(observed) * (1 - 1e-9)
    return float((1 + as_far.sum()) / (1 + len(null_R)))
