"""Tables of a description that no figure draws, as rows for CSV files. Names are stable.

Shape letters: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dragoman.routing.correlation import pairs_of


class Rows(NamedTuple):
    """One table."""

    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]


CURVES = {
    "entropy": ("entropy", "entropy_interval", "entropy_placebo"),
    "token-consistency": ("consistency", "consistency_interval", "consistency_placebo"),
}
"""Table -> keys of the description: {language: [L]}, {language: [low, high]}, [L]."""


def tables(described: Mapping[str, Any], overlap: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Rows]:
    """Name -> table; those whose numbers are missing are left out.

    described: what `describe` returns. overlap: measure -> {a: {b: value}}, to stand beside distances of pairs.
    """
    layers = described["layer_ids"]
    found = {name: _curves(layers, *map(described.get, keys)) for name, keys in CURVES.items() if described[keys[0]]}
    if sequences := described.get("sequence_divergence"):
        found["sequence-divergence"] = _curves(layers, *(sequences[k] for k in ("mean", "interval", "placebo")))
    found["exclusive-experts"] = _selected(described["sharing"])
    found["exclusive-counts"] = _numbers(described["sharing"])
    if relations := described.get("relations"):
        found["language-pairs"] = _pairs(list(described["tokens"]), relations, overlap)
        found["correlations"] = _correlations(relations)
    return found


def contrast_table(task: Mapping[str, Any], layer_ids: Sequence[int], num_experts: Sequence[int]) -> Rows:
    """Delta of every expert of a task with its interval."""
    low_LE, high_LE = task["interval"]
    rows = [
        (layer, e, task["delta"][i][e], low_LE[i][e], high_LE[i][e], task["placebo"][i])
        for i, layer in enumerate(layer_ids)
        for e in range(num_experts[i])
    ]
    return Rows(("layer", "expert", "delta", "low", "high", "largest_placebo"), rows)


def _curves(layers: Sequence[int], curves: Any, intervals: Any, placebo_L: Any) -> Rows:
    intervals = intervals or {}
    rows = [
        (
            g,
            layer,
            curve_L[i],
            *(limit_L[i] for limit_L in intervals.get(g, ())),
            *([] if placebo_L is None else [placebo_L[i]]),
        )
        for g, curve_L in curves.items()
        for i, layer in enumerate(layers)
    ]
    limits = ("low", "high") if intervals else ()
    return Rows(("language", "layer", "value", *limits, *(() if placebo_L is None else ("placebo",))), rows)


def _selected(rules: Mapping[str, Any]) -> Rows:
    rows = [
        (rule, name, layer, expert)
        for rule, found in rules.items()
        for name, experts in found["experts"].items()
        for layer, expert in experts
    ]
    return Rows(("rule", "language", "layer", "expert"), rows)


def _numbers(rules: Mapping[str, Any]) -> Rows:
    rows = []
    for rule, found in rules.items():
        for name, number in found["number"].items():
            low, high = found.get("interval", {}).get(name, ("", ""))
            again, placebo = (found.get(key, {}).get(name, "") for key in ("again", "placebo"))
            rows.append((rule, name, number, low, high, "" if again is None else again, placebo))
    return Rows(("rule", "language", "experts", "low", "high", "selected_again", "placebo"), rows)


def _pairs(languages: Sequence[str], relations: Mapping[str, Any], overlap: Mapping[str, Any]) -> Rows:
    distances = {name: pairs_of(np.asarray(matrix_GG)) for name, matrix_GG in relations["distance"].items()}
    first, second = np.triu_indices(len(languages), 1)
    rows = [
        (
            languages[i],
            languages[j],
            *(d_P[p] for d_P in distances.values()),
            *(by.get(languages[i], {}).get(languages[j], "") for by in overlap.values()),
        )
        for p, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    ]
    return Rows(("language", "other", *(f"distance_{name}" for name in distances), *overlap), rows)


def _correlations(relations: Mapping[str, Any]) -> Rows:
    head = ("measure", "layers", "method", "r", "p", "placebo_low", "placebo_high", "permutations", "exact")
    return Rows(head, list(_tests(relations)))


def _tests(relations: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for measure, found in relations["measures"].items():
        for group, by_method in found["layers"].items():
            for method, test in by_method.items():
                yield measure, group, method, *_row(test)
    for measure, test in (relations.get("partial") or {}).items():
        yield measure, "all", "partial pearson", *_row(test)


def _row(test: Mapping[str, Any]) -> tuple[Any, ...]:
    numbers = (float(x) for x in (test["r"], test["p"], *test["placebo"]))
    return (*numbers, test["permutations"], test["exact"])
