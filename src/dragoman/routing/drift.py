"""Drift: how far routing moved between two traces of one layout, per language and layer.

Shape letters: G languages, L MoE layers, E experts, N segments of one language, D units (documents, or segments where
these are not known), R resamples, S splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import DataError
from dragoman.routing.resampling import bootstrap_interval, half_placebo
from dragoman.routing.sample import sample_of
from dragoman.routing.stats import jensen_shannon, slot_share
from dragoman.routing.trace import RoutingTrace

RESAMPLES = 200
FEW = 4


@dataclass(frozen=True)
class Drift:
    """What `drift` found; divergences are JSD in nats, from 0 to ln 2."""

    layer_ids: tuple[int, ...]
    divergence: dict[str, np.ndarray]
    """Language -> [L], pooled over its text."""
    interval: dict[str, list[np.ndarray]]
    """Language -> [low [L], high [L]], 95%; only where both traces keep the segments of one text."""
    placebo: dict[str, np.ndarray]
    """Language -> [L], mean over splits: the first trace against itself, two halves of the text; as `interval`."""
    left_out: tuple[str, ...]
    """Languages that only one of the traces has."""
    unit: str
    """What intervals and placebo draw: documents, where the first trace names ten or more of every language, or
    segments."""
    other_text: tuple[str, ...]
    """Languages whose text is not the same in both, by its numbers of slots: their drift is that of the text too."""


def half_distance(counts_DLE: np.ndarray, seed: int, splits: int = 20) -> np.ndarray:
    """JSD in nats between two random halves of one language's units: what sampling noise looks like; [S, L].

    Raises DataError for fewer than two, or a half without a token in a layer.
    """
    return half_placebo(_distance, counts_DLE, seed=seed, splits=splits)


def _distance(first_XLE: np.ndarray, second_XLE: np.ndarray) -> np.ndarray:
    return jensen_shannon(slot_share(first_XLE), slot_share(second_XLE))


def noise_distance(trace: RoutingTrace, seed: int) -> float | None:
    """JSD / ln 2 between halves of one language, mean over layers, splits and languages; None without segments.

    In the unit of 1 - `routing_similarity`: languages that are nearer than that are not told apart.
    """
    sample = sample_of(trace, trace.languages[0], seed)
    units = [sample.grouped(g, n) for g, n in trace.segment_chosen_NLE.items() if len(n) > 1]
    return float(np.mean([half_distance(n, seed).mean() for n in units]) / np.log(2)) if units else None


def drift(before: RoutingTrace, after: RoutingTrace, seed: int = 0) -> Drift:
    """Divergence of each language's use of experts after from that before, layer by layer.

    Of the same text both sides share the sampling noise: an unchanged model has a drift of exactly 0. The placebo says
    what a change of text alone would make. Raises DataError where layers or experts differ, or no language is in both.
    Source: jensen_shannon of `dragoman.routing.stats`; that it is measured per language and layer is ours.
    """
    _require_same_layout(before, after)
    languages = [g for g in before.languages if g in after.languages]
    if not languages:
        raise DataError(
            f"the traces have no language in common: {', '.join(before.languages)} and {', '.join(after.languages)}; "
            "capture both on the same corpus"
        )
    shares_GLE = [slot_share(t.select(languages).chosen_GLE, languages, t.layer_ids) for t in (before, after)]
    moved_GL = jensen_shannon(*shares_GLE)
    slots = {g: [t.chosen_GLE[t.index(g)].sum(axis=-1).tolist() for t in (before, after)] for g in languages}
    pairs = {g: [t.segment_chosen_NLE.get(g, np.zeros(0)) for t in (before, after)] for g in languages}
    same = [g for g, n in pairs.items() if slots[g][0] == slots[g][1] and len(n[0]) == len(n[1]) > 1]
    sample = sample_of(before, languages[0], seed)
    units = {g: [sample.grouped(g, n) for n in (pairs[g] if g in same else pairs[g][:1])] for g in languages}
    return Drift(
        layer_ids=before.layer_ids,
        divergence=dict(zip(languages, moved_GL, strict=True)),
        interval={g: _interval(units[g], seed) for g in same},
        placebo={g: half_distance(n[0], seed).mean(axis=0) for g, n in units.items() if len(n[0]) > 1},
        left_out=tuple(sorted(set(before.languages) ^ set(after.languages))),
        unit=sample.unit,
        other_text=tuple(g for g, (a, b) in slots.items() if a != b),
    )


def _interval(both_DLE: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    found = bootstrap_interval(_distance, *both_DLE, seed=seed, resamples=RESAMPLES)
    return [found.low, found.high]


def _require_same_layout(before: RoutingTrace, after: RoutingTrace) -> None:
    names = {"layer_ids": "MoE layers", "num_experts": "experts", "top_k": "chosen per token"}
    pairs = {words: (getattr(before, name), getattr(after, name)) for name, words in names.items()}
    if wrong := [f"{words} {_in_short(a)} and {_in_short(b)}" for words, (a, b) in pairs.items() if a != b]:
        raise DataError(
            f"drift needs two traces of one layout, these differ in {'; '.join(wrong)}; compare a model with what it "
            "was trained from"
        )


def _in_short(numbers: Sequence[int]) -> str:
    """All of a few; of many `0 to 7` for a run, `8 x 32` for one number throughout."""
    if len(numbers) <= FEW:
        return str(list(numbers))
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)} x {numbers[0]}" if len(set(numbers)) == 1 else str(list(numbers))
