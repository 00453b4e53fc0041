"""What a metric is: sums per segment, then one formula, then a signature.

A segment gives a few numbers that add up (n-gram counts, bits and bytes). A score is a formula over their sum, so the
score of a corpus, of a bootstrap resample and of a document come from the same sums and nothing is counted twice.

    sums_NS = sums_per_segment(metric, hypotheses, references, sources=sources)
    print(score(metric, sums_NS))                # chrF2|nrefs:1|case:mixed|... = 54.3
    metric.from_sums(weights_RN @ sums_NS)       # [R]: the score of each resample
"""

# Shape letters: N segments, S sums of a metric, R resamples.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import DataError
from dragoman.evaluation.checks import require_segments, some


@dataclass(frozen=True)
class Score:
    """A number with everything that must match before it may be compared with another."""

    name: str
    value: float
    """In the unit that the metric's docstring states."""
    signature: str

    def __str__(self) -> str:
        return f"{self.name}|{self.signature} = {self.value:.{1 if abs(self.value) >= 10 else 3}f}"


class Metric(Protocol):
    """What a metric gives; all the rest (corpus scores, intervals, tests) follows from it."""

    name: str
    higher_is_better: bool | None
    """None where the best value lies in between, as with a length ratio."""
    needs: tuple[str, ...] = ("references",)
    """What a hypothesis is held against, in the order that `segment_sums` takes: of references, sources, terms."""
    chosen_by: tuple[str, ...] = ()
    """What `segment_sums` takes after `needs`, only to tell which segments are judged."""

    def segment_sums(self, hypothesis: Any, *against: Any, **never: Any) -> list[float]:
        """[S] numbers that add up over segments. hypothesis: the system's answer, most often a text."""

    def all_sums(self, hypotheses: Sequence[Any], *against: Sequence[Any]) -> np.ndarray:
        """Sums_NS; metrics that run in batches have their own."""
        return np.array([self.segment_sums(*row) for row in zip(hypotheses, *against, strict=True)], dtype=np.float64)

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        """Scores of summed sums; the last axis is S and goes away: [S] -> scalar, [R, S] -> [R]."""

    def signature(self) -> str:
        """Settings and versions, as `key:value` joined by `|`."""

    def judged(self, sums: ArrayLike) -> int | None:
        """How many segments summed sums [S] are of; None where every segment is judged."""
        return None

    def cut(self, hypotheses: Sequence[Any], *against: Sequence[Any]) -> list[int]:
        """Numbers of the segments of which only the beginning is read."""
        return []


def sums_per_segment(
    metric: Metric,
    hypotheses: Sequence[Any],
    references: Sequence[Any] | None = None,
    *,
    sources: Sequence[str] | None = None,
    terms: Sequence[Any] | None = None,
) -> np.ndarray:
    """Sums_NS of every segment, float64 (exact for counts).

    terms: the required terms of each segment (`terms.TermRecall`). Columns that the metric does not need are checked
    with the others and left unused.

    Raises DataError where there is nothing to score, columns differ in length, the references are the sources, the
    metric needs a column that was not given, or a sum is not finite.
    """
    given = {"references": references, "sources": sources, "terms": terms}
    columns = {name: column for name, column in given.items() if column is not None}
    taken = (*metric.needs, *metric.chosen_by)
    if missing := [name for name in taken if name not in columns]:
        raise DataError(f"{metric.name} needs {' and '.join(missing)}; give them, or leave this metric out")
    require_segments({"hypotheses": hypotheses, **columns})
    sums_NS = metric.all_sums(hypotheses, *(columns[name] for name in taken))
    if bad := np.flatnonzero(~np.isfinite(sums_NS).all(axis=1)).tolist():
        raise DataError(f"{metric.name}: sums of segments {some(bad)} are not finite; score the model's answers again")
    return sums_NS


def score(metric: Metric, sums_NS: np.ndarray) -> Score:
    """The corpus score that the segments' sums give."""
    return Score(metric.name, float(metric.from_sums(sums_NS.sum(axis=0))), metric.signature())


def ratio(part: np.ndarray, whole: np.ndarray, scale: float = 1.0, empty: float = 0.0) -> np.ndarray:
    """`scale * part / whole`, and `empty` where there is no whole."""
    return np.where(whole > 0, scale * part / np.where(whole > 0, whole, 1), empty)


class Rate(Metric):
    """Share of segments in percent. The last sum counts the segments that could be judged; a subclass gives the rest.

    `counted`: which of the sums the value is about; the others are kept, so that all of them can be read from one pass.
    Where nothing could be judged (`judged` is 0) the formula gives 0, which is no value: show none, compare none.
    """

    counted: int = 0

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., self.counted], sums[..., -1], scale=100)

    def judged(self, sums: ArrayLike) -> int | None:
        return int(np.asarray(sums)[-1])
