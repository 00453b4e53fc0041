"""Relations: whether languages that share vocabulary or a family are routed alike, as it stands in a record.

Shape letters: G languages, L MoE layers, E experts, P pairs of languages, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dragoman.corpora.languages import language
from dragoman.routing import correlation
from dragoman.routing.resampling import half_placebo
from dragoman.routing.sample import Sample

WORK = 2e9
"""Numbers whose logarithm the bootstrap of a correlation may take; it gets fewer resamples where languages are many."""
METHODS: tuple[correlation.Method, ...] = ("pearson", "spearman")


def relations(sample: Sample, middle: Sequence[int]) -> dict[str, Any] | None:
    """Distance of routing between languages, and its correlation with overlap and family; None for one language.

    middle: rows of the middle band, beside all layers. Correlations need four languages whose pairs differ in the
    measure; where they do not, the measure is absent and `left_out` says why. In `by_layer` a layer that routes all
    pairs alike has None.
    """
    trace = sample.trace
    if len(trace.languages) < 2:
        return None
    distance_LGG = correlation.routing_distance(trace.chosen_GLE)
    groups = {"all": list(range(len(trace.layer_ids)))} | ({"middle": list(middle)} if middle else {})
    by_group = {name: distance_LGG[rows].mean(axis=0) for name, rows in groups.items()}
    measures, left_out = _measures(sample)
    for name, (languages, _) in list(measures.items()):
        if _is_flat(sample, by_group["all"], languages):
            left_out[name] = "all pairs of languages are routed alike"
            del measures[name]
    found: dict[str, Any] = {"distance": by_group, "placebo": _placebo(sample), "left_out": left_out, "measures": {}}
    for name, (languages, matrix_GG) in measures.items():
        rows = [trace.index(g) for g in languages]
        square = np.ix_(rows, rows)
        found["measures"][name] = {
            "languages": languages,
            "layers": {
                group: {m: _tested(sample, by_group[group][square], matrix_GG, m) for m in METHODS}
                for group in groups
                if not _is_flat(sample, by_group[group], languages)
            },
            "by_layer": _plain(correlation.mantel(distance_LGG[:, square[0], square[1]], matrix_GG, seed=sample.seed)),
            "interval": _interval(sample, rows, matrix_GG),
            "reliability": _reliability(sample, rows),
        }
    return found | {"partial": _partial(sample, by_group["all"], measures)}


def _is_flat(sample: Sample, distance_GG: np.ndarray, languages: Sequence[str]) -> bool:
    """Whether all pairs of languages are as far apart in their routing, as where routers have collapsed."""
    rows = [sample.trace.index(g) for g in languages]
    return bool(correlation.is_flat(correlation.pairs_of(distance_GG[np.ix_(rows, rows)])))


def headline(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Pearson's correlation with overlap by types over all layers, where there is one: the number that SSFT reports."""
    measure = (found or {}).get("measures", {}).get("overlap")
    return measure["layers"]["all"]["pearson"] if measure else None


def _placebo(sample: Sample) -> np.ndarray | None:
    """Distance between two halves of the reference, by layer."""

    def between(a_SLE: np.ndarray, b_SLE: np.ndarray) -> np.ndarray:
        return correlation.routing_distance(np.stack([a_SLE, b_SLE], axis=1))[..., 0, 1]

    found = sample.placebo(between)
    return None if found is None else found.mean(axis=0)


def _measures(sample: Sample) -> tuple[dict[str, tuple[list[str], np.ndarray]], dict[str, str]]:
    """Measure -> (languages, distance [G, G]), and the reason for each that cannot be had."""
    trace = sample.trace
    every = list(trace.languages)
    known = [g for g in every if language(g).family]
    measures = {"family": (known, correlation.family_distance(known))}
    for name, key in (("overlap", "overlap"), ("weighted_overlap", "overlap_weighted")):
        if all(b in trace.about.get(key, {}).get(a, {}) for a in every for b in every if a != b):
            measures[name] = (every, correlation.overlap_distance(trace.about[key], every))
    reasons = {}
    for name, (languages, matrix_GG) in list(measures.items()):
        if len(languages) < correlation.FEWEST_LANGUAGES:
            reasons[name] = f"{len(languages)} languages, {correlation.FEWEST_LANGUAGES} are needed"
        elif np.ptp(correlation.pairs_of(matrix_GG)) == 0:
            reasons[name] = "all pairs of languages are alike in it"
    reasons |= {n: "not measured when the trace was made" for n in ("overlap", "weighted_overlap") if n not in measures}
    return {n: m for n, m in measures.items() if n not in reasons}, reasons


def _tested(
    sample: Sample, distance_GG: np.ndarray, matrix_GG: np.ndarray, method: correlation.Method
) -> dict[str, Any]:
    return _plain(correlation.mantel(distance_GG, matrix_GG, method=method, seed=sample.seed))


def _plain(found: correlation.Mantel) -> dict[str, Any]:
    r, p, low, high = map(_with_none, (found.r, found.p, found.null_low, found.null_high))
    return {
        "r": r,
        "p": p,
        "placebo": [low, high],
        "permutations": found.permutations,
        "exact": found.exact,
    }


def _with_none(values: np.ndarray) -> Any:
    """None in place of nan, which JSON has not."""
    missing = np.atleast_1d(np.isnan(values))
    if values.ndim == 0:
        return None if missing[0] else values
    return [None if gone else x for x, gone in zip(values, missing, strict=True)] if missing.any() else values


def _interval(sample: Sample, rows: Sequence[int], matrix_GG: np.ndarray) -> list[np.ndarray] | None:
    """Of Pearson's r over all layers, for other text of the same languages; overlap is held fixed."""
    trace = sample.trace
    resamples = int(np.clip(WORK / (len(rows) ** 2 * trace.chosen_GLE[0].size), 20, 200))

    def r(count_RGLE: np.ndarray) -> np.ndarray:
        distance_RGG = correlation.routing_distance(count_RGLE[:, rows]).mean(axis=1)
        return correlation.correlation(distance_RGG, matrix_GG)

    found = sample.of_counts(r, resamples=resamples, kind="percentile")
    return [found.low, found.high] if found else None


def _reliability(sample: Sample, rows: Sequence[int]) -> float | None:
    """Correlation of the distances in two halves of parallel text: about the most that a measure could correlate."""
    if not (sample.units and sample.paired):
        return None

    def agreement(*halves: np.ndarray) -> np.ndarray:
        first, second = (np.stack(part, axis=1) for part in (halves[: len(rows)], halves[len(rows) :]))
        a_SGG, b_SGG = (correlation.routing_distance(c).mean(axis=1) for c in (first, second))
        told = ~correlation.is_flat(correlation.pairs_of(b_SGG))
        each = zip(a_SGG, b_SGG, told, strict=True)
        return np.array([correlation.correlation(a, b) if differs else np.nan for a, b, differs in each])

    found = half_placebo(agreement, *[sample.units[r] for r in rows], seed=sample.seed, splits=5)
    return None if np.isnan(found).all() else float(np.nanmean(found))


def _partial(
    sample: Sample, distance_GG: np.ndarray, measures: dict[str, tuple[list[str], np.ndarray]]
) -> dict[str, Any] | None:
    """Overlap with family held fixed, and the reverse; all layers, on the languages that have both."""
    if not {"overlap", "family"} <= set(measures):
        return None
    names, family_GG = measures["family"]
    every, overlap_GG = measures["overlap"]
    square = np.ix_([every.index(g) for g in names], [every.index(g) for g in names])
    near_GG, overlap_GG = distance_GG[square], overlap_GG[square]
    return {
        "overlap_given_family": _plain(correlation.mantel(near_GG, overlap_GG, family_GG, seed=sample.seed)),
        "family_given_overlap": _plain(correlation.mantel(near_GG, family_GG, overlap_GG, seed=sample.seed)),
    }
