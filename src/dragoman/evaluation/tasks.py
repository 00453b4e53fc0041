"""Tasks: how an answer to an item is judged, by the likelihood of options or by a check of generated text.

A task is an entry of `TASKS`, found by what its items say (`TaskItems.judged`). To add one: a class with the parts of
`Task`, a line there, and items that name it.
"""

# Shape letters: N items, O options of one item.

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from dragoman.corpora.items import Item
from dragoman.corpora.numbers import number_in, same_number
from dragoman.errors import DataError
from dragoman.evaluation.base import Metric, ratio, score
from dragoman.evaluation.instructions import follows
from dragoman.evaluation.options import OptionAccuracy


class Task(Protocol):
    """How answers are judged."""

    generates: bool
    """Whether an answer is a text that the model writes; else [(bits, what they are held against) of each option]."""

    def points(self, answer: Any, item: Item) -> float:
        """1 for a right answer, 0 for a wrong one; options that tie share the point."""

    def chance(self, items: Sequence[Item]) -> float:
        """What guessing would score, 0 to 1."""

    def signature(self) -> str:
        """Settings, as `key:value` joined by `|`."""


class ByLikelihood:
    """The right option is the likeliest, by one of the normalisations of `options.py`."""

    generates = False

    def __init__(self, normalise: str = "bytes") -> None:
        self.normalise = normalise
        self._metric = OptionAccuracy(normalise)

    def points(self, answer: Sequence[tuple[float, int]], item: Item) -> float:
        return self._metric.segment_sums(answer, item.right)[0]

    def chance(self, items: Sequence[Item]) -> float:
        return float(np.mean([1 / len(item.options) for item in items]))

    def signature(self) -> str:
        return f"judged:options|{self._metric.signature()}"


class _Generated:
    generates = True
    judged = ""

    def chance(self, items: Sequence[Item]) -> float:
        return 0.0

    def signature(self) -> str:
        return f"judged:{self.judged}|decoding:greedy"


class ByNumber(_Generated):
    """The number behind ####, or else the last one of the answer, is the expected one.

    Source: Cobbe et al. 2021 (GSM8K, arXiv:2110.14168) for the mark; the last number is the usual fallback.
    """

    judged = "number"

    def points(self, answer: str, item: Item) -> float:
        found, expected = number_in(answer), number_in(item.expected)
        if expected is None:
            raise DataError(f"item {item.key} expects {item.expected!r}, which holds no number; leave it out")
        return float(same_number(found, expected))


class ByExactMatch(_Generated):
    """The first line of the answer is the expected text, but for case, spaces and punctuation at its ends."""

    judged = "exact"

    def points(self, answer: str, item: Item) -> float:
        wanted = _plain(item.expected)
        if not wanted:  # a mark is the answer
            return float(answer.strip() == item.expected.strip())
        return float(_plain(answer) == wanted)


class ByInstructions(_Generated):
    """The answer follows every instruction (`instructions.py`)."""

    judged = "instructions"

    def points(self, answer: str, item: Item) -> float:
        return float(follows(answer, item.instructions))


@dataclass(frozen=True)
class ByMetric:
    """A translation is right where a metric of the segment reaches a threshold. An extension of ours, see docs."""

    metric: Metric
    threshold: float
    """In the metric's unit; at least this much where higher is better, else at most."""
    generates = True

    def value(self, answer: str, item: Item) -> float:
        """The metric of one answer."""
        return score(self.metric, self.metric.all_sums([answer], [item.expected])).value

    def points(self, answer: str, item: Item) -> float:
        value = self.value(answer, item)
        return float(value >= self.threshold if self.metric.higher_is_better else value <= self.threshold)

    def chance(self, items: Sequence[Item]) -> float:
        return 0.0

    def signature(self) -> str:
        return f"judged:translation|threshold:{self.threshold:g}|{self.metric.name}|{self.metric.signature()}"


TASKS: dict[str, Callable[[], Task]] = {
    "options": ByLikelihood,
    "number": ByNumber,
    "exact": ByExactMatch,
    "instructions": ByInstructions,
}
"""What items say of themselves -> how they are judged; `translation` is `ByMetric`, which needs a threshold."""


class TaskAccuracy(Metric):
    """Share of a task's items with a right answer, in percent; higher is better. Sums are [points, items]."""

    name = "task accuracy"
    higher_is_better = True
    needs = ()

    def __init__(self, task: Task | None = None) -> None:
        self._task = task

    def segment_sums(self, hypothesis: float, *against: Any, **never: Any) -> list[float]:
        """hypothesis: the points of an answer."""
        return [hypothesis, 1]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1], scale=100)

    def signature(self) -> str:
        return self._task.signature() if self._task else "judged:as given"


# Texts


def _plain(text: str) -> str:
    line = next((part for part in text.splitlines() if part.strip()), "")
    folded = " ".join(unicodedata.normalize("NFKC", line).casefold().split())
    return folded.strip(" .,;:!?\"'`()[]«»“”„。、！？「」")
