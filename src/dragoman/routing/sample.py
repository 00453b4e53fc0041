"""Sample: a trace and how its text is resampled.

Shape letters: G languages, L MoE layers, E experts, N segments, D units (documents or segments), R resamples, S splits;
`X` is any trailing axes.

A unit is what is resampled: documents where the trace says which segments belong together (`about["documents"]`, the
document of each segment by language), segments otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from dragoman.errors import DataError
from dragoman.routing.resampling import Interval, bootstrap_interval, by_document, half_placebo
from dragoman.routing.trace import RoutingTrace

RESAMPLES = 200
MIN_DOCUMENTS = 10
"""Documents from which on they are what is resampled; fewer are no sample of documents."""

Unit = Literal["documents", "segments"]


@dataclass(frozen=True)
class Sample:
    """A trace and how its text is resampled."""

    trace: RoutingTrace
    reference: str
    seed: int
    unit: Unit
    documents: dict[str, list[Hashable]]
    """Document of each segment, by language; empty where segments are resampled."""

    @property
    def paired(self) -> bool:
        """Whether unit i is the same text in every language."""
        return bool(self.trace.about.get("parallel"))

    @property
    def others(self) -> list[str]:
        """Languages but for the reference."""
        return [g for g in self.trace.languages if g != self.reference]

    @cached_property
    def units(self) -> list[np.ndarray]:
        """Counts by unit, one array [D, L, E] a language; empty where the trace kept no segments."""
        segments = self.trace.segment_chosen_NLE
        kept = all(g in segments for g in self.trace.languages)
        return [self.grouped(g, segments[g]) for g in self.trace.languages] if kept else []

    @property
    def fewest(self) -> int | None:
        """Units of the language that has fewest; None where the trace kept no segments."""
        return min(map(len, self.units), default=None)

    def grouped(self, language: str, rows_NX: np.ndarray) -> np.ndarray:
        """Rows of a language's segments as rows of its units."""
        return by_document(rows_NX, self.documents[language]) if self.unit == "documents" else rows_NX

    def of_counts(self, statistic: Callable[[np.ndarray], np.ndarray], **settings: Any) -> Interval | None:
        """Interval of a statistic of counts [R, G, L, E]; None where the trace kept no segments."""
        if not self.units:
            return None
        settings = {"seed": self.seed, "resamples": RESAMPLES, "paired": self.paired, "unit": self.unit} | settings
        return bootstrap_interval(lambda *c_RLE: statistic(np.stack(c_RLE, axis=1)), *self.units, **settings)

    def placebo(self, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray | None:
        """The statistic between halves of the reference's units, [splits, L]; no half has more than `fewest`."""
        if not self.units:
            return None
        return half_placebo(statistic, self.units[self.trace.index(self.reference)], seed=self.seed, most=self.fewest)


def sample_of(trace: RoutingTrace, reference: str, seed: int, unit: Unit | None = None) -> Sample:
    """How a trace is resampled. Default: over documents where every language has text of ten or more.

    Raises DataError where documents are asked for and the trace does not name two of them for every language, or does
    not hold the reference.
    """
    trace.index(reference)
    named: dict[str, list[Hashable]] = trace.about.get("documents") or {}
    segments = trace.segment_chosen_NLE
    fit = [g for g in trace.languages if g in segments and len(named.get(g, [])) == len(segments[g])]
    documents = {g: named[g] for g in fit} if len(fit) == len(trace.languages) else {}
    fewest = min((len(set(names)) for names in documents.values()), default=0)
    if unit == "documents" and fewest < 2:
        raise DataError(
            "resampling documents needs a trace that names two or more for every language; capture from a corpus with "
            "a column `document`, or resample segments"
        )
    unit = unit or ("documents" if fewest >= MIN_DOCUMENTS else "segments")
    return Sample(trace, reference, seed, unit, documents if unit == "documents" else {})
