"""Activation: the K experts that a language's tokens choose most often, wherever they stand.

Shape letters: L MoE layers (here those to plan), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.parents import target_problems
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import (
    PER_EXPERT,
    Layers,
    chosen_layers,
    from_places,
    layer_problems,
    numbers,
    of_tunable,
    ranked,
    rows_of,
    tunable,
)
from dragoman.routing.planners.budgets import budget_problems, largest_within
from dragoman.routing.stats import token_share
from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class ActivationConfig:
    """The experts that a language chooses most often."""

    target: str
    """Language whose text in the trace is counted."""
    experts: int | None = None
    """How many experts to plan over all layers; default one of 40."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds the largest number of experts that fits."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default all MoE layers."""
    train_routers: bool = False
    """Train the routers of the planned layers too."""


def activation_plan(trace: RoutingTrace, config: ActivationConfig) -> ExpertPlan:
    """The K experts with the largest share of the target's tokens, over all layers together.

        a(l, e) = K_l C(l, e) / sum_e C(l, e)          K_l: experts chosen per token in layer l

    Of equal shares the earlier layer, then the smaller id. Experts that were never chosen, or mean "skip", are never
    planned.
    Raises ConfigError for settings that do not fit the trace or each other, all in one message, and for a budget that
    nothing fits.
    Source: Zheng et al. 2026 (RISE, arXiv:2604.03592), the top-K baseline (by a secondary source it does better than
    RISE for Bengali on Phi-3.5-MoE).
    Differs: the paper does not say whether its baseline ranks by layer; this ranks over all, as RISE over its zones.
    """
    if problems := _problems(trace, config):
        raise ConfigError("; ".join(problems))
    layers = chosen_layers(trace, config.layers)
    rows = list(rows_of(trace, layers).values())
    count_1LE = trace.chosen_GLE[[trace.index(config.target)]][:, rows]
    share_1LE = token_share(count_1LE, [trace.top_k[row] for row in rows], [config.target], layers)
    share_LE = of_tunable(share_1LE[0], trace, layers)
    number = _number(trace, config, share_LE, layers)
    planned = _select(share_LE, layers, number)
    why = [f"the {number} experts that most tokens of {config.target} choose, over layers together"]
    settings = {"experts": number, "layers": list(layers)}
    chose = f"{number} experts are the most that fit"
    return assembled("activation", trace, config, planned, settings=settings, why=why, chose=chose)


def _number(trace: RoutingTrace, config: ActivationConfig, share_LE: np.ndarray, layers: Sequence[int]) -> int:
    ever = int((share_LE > 0).sum())
    if not ever:
        raise ConfigError(f"{config.target} chose no expert that has weights in layers {numbers(layers)}; plan others")
    if config.budget is not None:
        options = range(1, ever + 1)
        return largest_within(
            config.budget, trace, options, lambda n: _select(share_LE, layers, n), config.train_routers
        )
    if config.experts is not None and config.experts > ever:
        raise ConfigError(
            f"{config.experts} experts were asked for, but {config.target} chose no more than {ever} in these layers; "
            "plan fewer"
        )
    of_layer = [n for layer, n in tunable(trace).items() if layer in layers]
    return min(config.experts or max(1, round(sum(of_layer) / PER_EXPERT)), ever)


def _select(share_LE: np.ndarray, layers: Sequence[int], number: int) -> Layers:
    best = ranked(share_LE.ravel())[:number]
    places = [divmod(place, share_LE.shape[1]) for place in best]
    return from_places(places, layers, share_LE, "used", share_LE.flat[best[-1]])


def _problems(trace: RoutingTrace, config: ActivationConfig) -> list[str]:
    problems = target_problems(trace, config.target) + layer_problems(trace, config.layers)
    if config.experts is not None and config.experts < 1:
        problems.append(f"experts is {config.experts}, but a plan names at least one")
    return problems + budget_problems(trace, config.budget, experts=config.experts)
