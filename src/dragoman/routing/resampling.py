"""How sure a statistic is: bootstrap intervals over segments or documents, and a placebo from two halves of one text.

Shape letters: N segments or documents of one language, L MoE layers, E experts, R resamples, S splits; `X` is any
trailing axes.

Every statistic here is a function of sums over segments, so a resample is one product of weights and counts. Segments
of one document are alike: resample documents (`by_document`) where they are known, or intervals come out too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dragoman.errors import DataError

BLOCK_ELEMENTS = 1 << 22
"""Numbers that one block of resampled counts may hold: 32 MB."""

Statistic = Callable[..., np.ndarray]
"""Takes one array of sums [R, X] per array of segments, returns [R, ...]."""


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval; arrays of the statistic's shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    signature: str
    """Everything that must match before two intervals may be compared."""


def by_document(segment_counts_NX: np.ndarray, documents_N: Sequence[Hashable]) -> np.ndarray:
    """Sums of each document's segments, in order of first appearance: one row a document.

    Raises DataError where the number of names is not the number of segments.
    """
    if len(documents_N) != len(segment_counts_NX):
        raise DataError(
            f"{len(documents_N)} names of documents were given for {len(segment_counts_NX)} segments; "
            "name the document of every segment"
        )
    row_of = {document: row for row, document in enumerate(dict.fromkeys(documents_N))}
    sums = np.zeros((len(row_of), *segment_counts_NX.shape[1:]), dtype=segment_counts_NX.dtype)
    np.add.at(sums, [row_of[document] for document in documents_N], segment_counts_NX)
    return sums


def resampled(
    *counts_NX: np.ndarray, seed: int, resamples: int = 1000, paired: bool = True
) -> Iterator[tuple[np.ndarray, ...]]:
    """Sums over segments drawn with replacement, in blocks: one array [r, X] per array given.

    paired: the same draws for all arrays, so that n-way parallel segments stay together; otherwise each array has
        draws and a length of its own.
    Raises DataError where an array has fewer than two segments, or paired arrays differ in length.
    """
    _require_segments(counts_NX, paired)
    flat = [counts.reshape(len(counts), -1).astype(np.float64) for counts in counts_NX]
    largest = max(*(len(f) for f in flat), sum(f.shape[1] for f in flat))
    block = max(1, BLOCK_ELEMENTS // largest)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = [_draws(rng, len(f), size) for f in (flat[:1] if paired else flat)] * (len(flat) if paired else 1)
        pairs = zip(weights, flat, counts_NX, strict=True)
        yield tuple((weight_RN @ f).reshape(size, *counts.shape[1:]) for weight_RN, f, counts in pairs)


def _draws(rng: np.random.Generator, segments: int, resamples: int) -> np.ndarray:
    return rng.multinomial(segments, np.full(segments, 1 / segments), size=resamples).astype(np.float64)


def _require_segments(counts_NX: Sequence[np.ndarray], paired: bool) -> None:
    lengths = [len(counts) for counts in counts_NX]
    if min(lengths) < 2 or (paired and len(set(lengths)) != 1):
        needed = "the same segments for all, two or more" if paired else "two segments or more of each"
        raise DataError(
            f"segments given: {', '.join(map(str, lengths))}; resampling needs {needed}; capture "
            + ("only the segments that all languages have" if paired else "more text")
        )


def bootstrap_interval(
    statistic: Statistic,
    *segment_counts_NX: np.ndarray,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    kind: Literal["basic", "percentile"] = "basic",
    paired: bool = True,
    unit: str = "segments",
) -> Interval:
    """Interval of a pooled statistic over resampled segments, or over documents where rows are those of `by_document`.

    statistic: takes one array of summed counts [R, X] per array given here, returns [R, ...]; nan where a resample has
        none, which is then left out.
    segment_counts_NX: counts per segment, mostly [N, L, E], one array a language. Memory: a float64 copy of each, and
        32 MB for resamples.
    kind: `basic` reflects the quantiles about the value, [2v - q_high, 2v - q_low]; `percentile` takes them unchanged.
        Divergences of samples lie above those of the populations, and those of resamples above again: the basic
        interval takes that bias off, the percentile interval doubles it. Where noise makes up most of a value, the
        basic interval lies below the value, and its lower bound may fall below 0.
    paired: as in `resampled`. unit: what a row is, for the signature.
    Raises DataError as `resampled` does.
    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, basic and percentile intervals; resampling
    of whole documents as clusters, sec. 3.8.
    """
    blocks = resampled(*segment_counts_NX, seed=seed, resamples=resamples, paired=paired)
    drawn = np.concatenate([statistic(*sums) for sums in blocks])
    value = statistic(*(counts.sum(axis=0, dtype=np.float64)[None] for counts in segment_counts_NX))[0]
    quantile = np.nanquantile if np.isnan(drawn).any() else np.quantile
    low, high = quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if kind == "basic":
        low, high = 2 * value - high, 2 * value - low
    lengths = [len(counts) for counts in segment_counts_NX]
    number = str(lengths[0]) if paired else ",".join(map(str, lengths))
    signature = f"bootstrap:{kind}|level:{level}|resamples:{resamples}|{unit}:{number}|seed:{seed}"
    return Interval(value, low, high, signature)


def half_placebo(
    statistic: Statistic,
    *segment_counts_NX: np.ndarray,
    seed: int | Sequence[int],
    splits: int = 20,
    most: int | None = None,
) -> np.ndarray:
    """A statistic between two random halves of one language's segments: what sampling noise alone looks like; [S, ...].

    statistic: takes the summed first halves [S, X] of every array, then their second halves; returns [S, ...].
    segment_counts_NX: arrays of the same segments, split alike. A half holds N/2 segments (one is left out where N is
        odd), so this is the noise of a comparison on half as much text: a cautious floor, where all have as much.
    seed: a number, or several for draws of their own, as of each language.
    most: segments of the text that has fewest, where others are compared with this one: a half has no more, for the
        noise of a comparison is mostly that of its smaller side.
    Raises DataError for fewer than two segments.
    Source: none; the placebo that stands beside every claim here.
    """
    number = len(segment_counts_NX[0])
    if number < 2:
        raise DataError(f"two halves need at least 2 segments, {number} given; capture more text")
    first_SN, second_SN = _halves(number, seed, splits, most)
    flat = [counts.reshape(number, -1).astype(np.float64) for counts in segment_counts_NX]
    sums = [
        (weight_SN @ f).reshape(splits, *counts.shape[1:])
        for weight_SN in (first_SN, second_SN)
        for f, counts in zip(flat, segment_counts_NX, strict=True)
    ]
    return statistic(*sums)


def _halves(number: int, seed: int | Sequence[int], splits: int, most: int | None = None) -> np.ndarray:
    """Weights 0 or 1 of the two halves, [2, S, N]; a half has at most `most`."""
    rng = np.random.default_rng(seed)
    half = number // 2 if most is None else max(1, min(number // 2, most))
    weights = np.zeros((2, splits, number))
    for split in range(splits):
        order_N = rng.permutation(number)
        weights[0, split, order_N[:half]] = 1
        weights[1, split, order_N[half : 2 * half]] = 1
    return weights
