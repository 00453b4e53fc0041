"""Which metrics a translation gets: those that its language has, and those for which the user gave files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.corpora.parting import require_same_length
from dragoman.corpora.reading import read_lines
from dragoman.errors import ConfigError, DataError, UserError
from dragoman.evaluation.coverage import WordAligner
from dragoman.evaluation.metrics import METRICS, BitsPerByte, Metric
from dragoman.evaluation.neural import Comet, MetricX

Formula = Callable[[np.ndarray], np.ndarray]

OF_LIKELIHOODS = ("bits_per_byte", "option_accuracy", "task_accuracy")
"""Metrics whose hypotheses are no translations."""
OF_WEIGHTS: dict[str, type[Comet] | type[MetricX]] = {"comet": Comet, "metricx": MetricX}
"""Metrics that are models: `--weights.NAME FOLDER`."""
OF_ALIGNERS = ("unaligned_source", "unaligned_hypothesis")
"""Metrics that align words: `--aligner-text SOURCES TRANSLATIONS`."""
WAYS = {
    "folder": "local weights: --weights.{name} FOLDER",
    "aligner": "parallel text that a word aligner learns from: --aligner-text SOURCES TRANSLATIONS",
    "terms": "the terms of each segment: --terms FILE, with --hypotheses",
}
"""What a metric may need beside texts, and how it is given."""
NO_SPACES = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo", "dz")
ARGUMENTS: dict[str, Callable[[str], Any]] = {
    "target": lambda tag: tag,
    "tokenize": lambda tag: {"zh": "zh", "yue": "zh"}.get(_base(tag), "char" if _base(tag) in NO_SPACES else "13a"),
    "asian": lambda tag: _base(tag) in ("zh", "yue", "ja"),
}
"""What metrics may want to know about the language translated into, by the name of their argument."""


def _base(tag: str) -> str:
    return tag.split("-")[0]


def from_files(
    weights: Mapping[str, Path], aligner_text: Sequence[str], terms: Path | None, target: str
) -> dict[str, Metric]:
    """The metrics that files make possible, by name; terms are of answers in the target language.

    Raises ConfigError for names that take no weights and for one file without the other, ModelError for a folder
    without the weights, DataError for text that does not make an aligner.
    """
    if odd := [name for name in weights if name not in OF_WEIGHTS]:
        raise ConfigError(f"no weights are read for {', '.join(odd)}; --weights.NAME takes {' and '.join(OF_WEIGHTS)}")
    if aligner_text and len(aligner_text) != 2:
        raise ConfigError(f"--aligner-text takes two files, sources and translations, not {len(aligner_text)}")
    made: dict[str, Metric] = {}
    for name, folder in weights.items():
        from dragoman.modeling import default_device

        made[name] = OF_WEIGHTS[name](folder, device=default_device())
    if aligner_text:
        sources, targets = (read_lines(Path(file)) for file in aligner_text)
        require_same_length(sources, targets, *aligner_text)
        aligner = WordAligner(sources, targets)
        made |= {name: METRICS[name](aligner) for name in OF_ALIGNERS}
    return made | ({"term_recall": METRICS["term_recall"](target=target)} if terms else {})


def read_terms(file: Path) -> list[list[str]]:
    """The required terms of each segment: one line a segment, tabs between terms; an empty line requires none."""
    return [[term for term in line.split("\t") if term.strip()] for line in read_lines(file)]


def metrics_for(
    target: str, names: Iterable[str] = (), given: Mapping[str, Metric] | None = None
) -> tuple[dict[str, Metric], dict[str, str]]:
    """The named metrics (by default all that apply) for texts in a language, and why others are left out.

    given: metrics that are made already, `from_files`. Raises what keeps a metric that was named from being made.
    """
    made: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for name in names or [name for name in METRICS if name not in OF_LIKELIHOODS]:
        try:
            made[name] = (given or {}).get(name) or _make(name, target)
        except UserError as e:
            if names:
                raise type(e)(f"{name}: {e}") from None
            left_out[name] = str(e)
    return made, left_out


def _make(name: str, target: str) -> Metric:
    if name in OF_LIKELIHOODS:
        raise DataError("it scores likelihoods, no texts; leave it out")
    every = inspect.signature(METRICS[name]).parameters.values()
    wanted = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in wanted if p.default is p.empty and p.name not in ARGUMENTS]
    if missing := missing or (["terms"] if name == "term_recall" else []):
        raise DataError(f"it needs {' and '.join(WAYS[need].format(name=name) for need in missing)}")
    return METRICS[name](**{p.name: ARGUMENTS[p.name](target) for p in wanted if p.name in ARGUMENTS})


def formula(name: str) -> Formula:
    """How summed sums of a metric become a value; it does not depend on the language."""
    return _anyhow(name).from_sums


def judged(name: str, sums_S: np.ndarray) -> int | None:
    """How many segments a metric could judge, by their summed sums; None where it judges all."""
    return _anyhow(name).judged(sums_S)


def title(name: str) -> str:
    """A metric's name for tables."""
    return _anyhow(name).name


def better(name: str) -> bool | None:
    """Whether higher is better; None where the best value lies in between."""
    return _anyhow(name).higher_is_better


@cache
def _anyhow(name: str) -> Any:
    """The metric with any settings, or its class: for what does not depend on them."""
    if name == "bits_per_byte":
        return BitsPerByte(0)
    if name in OF_WEIGHTS:
        return OF_WEIGHTS[name].__new__(OF_WEIGHTS[name])  # without its weights
    if name in OF_ALIGNERS:
        return METRICS[name](aligner=None)
    return METRICS[name]() if name in (*OF_LIKELIHOODS, "term_recall") else _make(name, "en")
