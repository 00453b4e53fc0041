"""Complete layers and the whole model: the upper controls of plans that choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dragoman.errors import ConfigError
from dragoman.routing.parents import target_problems
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import (
    Layers,
    chosen_layers,
    last_layers,
    layer_problems,
    members,
    numbers,
    tunable,
)
from dragoman.routing.planners.budgets import budget_problems, largest_within
from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Every expert of some layers."""

    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default the last two MoE layers."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds how many of the last MoE layers fit."""
    train_routers: bool = True
    """Train the routers of the planned layers too."""


@dataclass(frozen=True, kw_only=True)
class AllConfig:
    """Every expert of every layer."""

    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    train_routers: bool = True
    """Train the routers too."""


def complete_layers(trace: RoutingTrace, config: LayersConfig) -> ExpertPlan:
    """Every expert of some layers, default the last two MoE layers, or as many of the last as a budget allows.

    Raises ConfigError for a layer that the trace does not have, a target it does not hold or a budget too small.
    Source: SSFT (arXiv:2605.29714), AEFT baseline.
    """
    problems = target_problems(trace, config.target) + layer_problems(trace, config.layers)
    if problems := problems + budget_problems(trace, config.budget, layers=config.layers):
        raise ConfigError("; ".join(problems))
    if config.budget is None:
        return _plan(trace, "layers", last_layers(trace, config.layers), config)
    every = chosen_layers(trace, None)
    number = largest_within(
        config.budget, trace, range(1, len(every) + 1), lambda n: _complete(trace, every[-n:]), config.train_routers
    )
    return _plan(trace, "layers", every[-number:], config)


def all_experts(trace: RoutingTrace, config: AllConfig) -> ExpertPlan:
    """Every expert of every MoE layer.

    Raises ConfigError for a target that the trace does not hold.
    """
    if problems := target_problems(trace, config.target):
        raise ConfigError("; ".join(problems))
    return _plan(trace, "all", chosen_layers(trace, None), config)


def _plan(trace: RoutingTrace, planner: str, layers: Sequence[int], config: LayersConfig | AllConfig) -> ExpertPlan:
    settings, why = {"layers": list(layers)}, [f"every expert of layers {numbers(layers)}"]
    chose = f"layers {numbers(layers)} are the most of the last ones that fit"
    return assembled(planner, trace, config, _complete(trace, layers), settings=settings, why=why, chose=chose)


def _complete(trace: RoutingTrace, layers: Sequence[int]) -> Layers:
    there = tunable(trace)
    return {layer: members(range(there[layer]), "all") for layer in layers}
