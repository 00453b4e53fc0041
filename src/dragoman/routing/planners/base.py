"""What planners share: layers and rows, ranks, and the registry's type.

Shape letters: L MoE layers, E experts; `X` is any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dragoman.errors import ConfigError, ModelError
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.stats import layer_rows
from dragoman.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layers = dict[int, tuple[PlannedExpert, ...]]
"""Model layer -> planned experts in order of their ids."""

ROUNDING = 1e-12
"""A statistic that equals its threshold but for floating-point rounding passes."""
DIGITS = 6
"""Decimals of the statistics and thresholds that a plan keeps."""
DEFAULT_LAYERS = 2
"""The last so many MoE layers, as in SSFT."""
PER_EXPERT = 40
"""Rules that rank all layers together take one of so many experts by default: 2.5 %, between RISE's 2.1 and 3.1."""


class Planner(NamedTuple):
    """A planner's settings and its function."""

    config: type
    make: Callable[[RoutingTrace, Any], ExpertPlan]


class NumberPlanner(NamedTuple):
    """Of a dense model: the settings, and the function of the model and of token ids by language."""

    config: type
    make: Callable[[PreTrainedModel, Mapping[str, Sequence[Sequence[int]]], Any], ExpertNumbers]


def ids_of(planned: Mapping[int, Sequence[PlannedExpert]]) -> dict[int, tuple[int, ...]]:
    """Model layer -> ids."""
    return {layer: tuple(e.id for e in experts) for layer, experts in planned.items()}


def from_places(
    places: Sequence[tuple[int, int]], layers: Sequence[int], statistic_LE: np.ndarray, role: str, threshold: float
) -> Layers:
    """Experts at (row, id) of a statistic; `layers` names its rows."""
    planned: dict[int, list[PlannedExpert]] = {layer: [] for layer in layers}
    for row, i in sorted(places):
        planned[layers[row]].append(PlannedExpert(i, role, kept(statistic_LE[row, i]), kept(threshold)))
    return {layer: tuple(experts) for layer, experts in planned.items()}


def members(ids: Sequence[int], role: str) -> tuple[PlannedExpert, ...]:
    """Experts of which nothing was measured."""
    return tuple(PlannedExpert(i, role) for i in ids)


def ranked(value_E: np.ndarray) -> list[int]:
    """Places from the largest value down; of equal values the smaller place first."""
    return np.argsort(-value_E, kind="stable").tolist()


def kept(value: float) -> float:
    """As a plan keeps it."""
    return round(float(value), DIGITS)


# ---- layers --------------------------------------------------------------------------------------------------------


def experts_by_layer(trace: RoutingTrace) -> dict[int, int]:
    """Model layer -> experts it has."""
    return {layer: trace.num_experts[row] for layer, row in rows_of(trace, trace.layer_ids).items()}


def tunable(trace: RoutingTrace) -> dict[int, int]:
    """Model layer -> experts that have weights, which are its first; those behind them mean "skip" and cannot train."""
    skips_L = (trace.about.get("sizes") or {}).get("skips") or [0] * len(trace.layer_ids)
    return {layer: trace.num_experts[row] - skips_L[row] for layer, row in rows_of(trace, trace.layer_ids).items()}


def of_tunable(value_XLE: np.ndarray, trace: RoutingTrace, layers: Sequence[int]) -> np.ndarray:
    """A statistic with 0 for experts that mean "skip", which no plan may name; `layers` names its rows."""
    there = tunable(trace)
    number_L = np.array([there[layer] for layer in layers], dtype=int)
    return np.where(np.arange(value_XLE.shape[-1]) < number_L[:, None], value_XLE, 0)


def rows_of(trace: RoutingTrace, layers: Sequence[int]) -> dict[int, int]:
    """Model layer -> row of the trace; ModelError where a layer has several, which a plan could not tell apart."""
    if several := sorted({layer for layer in trace.layer_ids if trace.layer_ids.count(layer) > 1}):
        raise ModelError(
            f"layers {numbers(several)} have several routers, and a plan names one set of experts a layer; "
            "such a model can be diagnosed, not planned"
        )
    return dict(zip(layers, layer_rows(trace, layers), strict=True))


def last_layers(trace: RoutingTrace, layers: Sequence[int] | None) -> tuple[int, ...]:
    """These model layers in order, by default the last two MoE layers."""
    return chosen_layers(trace, layers) if layers is not None else chosen_layers(trace, None)[-DEFAULT_LAYERS:]


def chosen_layers(trace: RoutingTrace, layers: Sequence[int] | None) -> tuple[int, ...]:
    """These model layers in order, by default all MoE layers. ConfigError for none, and for others than those."""
    known = sorted(set(trace.layer_ids))
    if layers is None:
        return tuple(known)
    if not layers:
        raise ConfigError(f"no layer was given; choose from {numbers(known)}")
    layer_rows(trace, layers)
    return tuple(sorted(set(layers)))


def layer_problems(trace: RoutingTrace, layers: Sequence[int] | None) -> list[str]:
    """What is wrong with the layers that were asked for, in words."""
    try:
        chosen_layers(trace, layers)
    except ConfigError as e:
        return [str(e)]
    return []


def numbers(layers: Sequence[int]) -> str:
    """Layers in a sentence."""
    return ", ".join(map(str, layers))
