"""Controls of a plan, made from the plan alone: as many experts by lot, or the same number in other layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.plan import ExpertPlan, PlannedExpert


def by_lot(plan: ExpertPlan, seed: int = 0) -> ExpertPlan:
    """In every layer as many experts, none of them the plan's; ConfigError where a layer has too few others."""
    pools = {layer: sorted(set(range(plan.num_experts[layer])) - set(ids)) for layer, ids in plan.experts().items()}
    if short := [layer for layer, pool in pools.items() if len(pool) < len(plan.layers[layer])]:
        raise ConfigError(
            f"layers {short} have too few experts that the plan does not name; control it by other layers (elsewhere)"
        )
    layers = {layer: _drawn(plan, layer, pools[layer], [seed, layer]) for layer in plan.layers}
    return _control(plan, layers, "random", f"as many other experts in each layer, by lot (seed {seed})")


def elsewhere(plan: ExpertPlan, seed: int = 0) -> ExpertPlan:
    """As many experts by lot, in layers that the plan does not name; ConfigError where there are no such layers.

    The plan's layers in order take the others in order, from the first again where these are fewer.
    """
    others = [layer for layer in sorted(plan.num_experts) if layer not in plan.layers]
    if not others:
        raise ConfigError("the plan names every layer, so no other is left for a control; control it by lot (random)")
    counts = dict.fromkeys(others, 0)
    for i, (_, planned) in enumerate(sorted(plan.layers.items())):
        counts[others[i % len(others)]] += len(planned)
    full = {layer: min(n, plan.num_experts[layer]) for layer, n in counts.items() if n}
    layers = {
        layer: _members(np.random.default_rng([seed, layer]).choice(plan.num_experts[layer], n, replace=False), [])
        for layer, n in full.items()
    }
    return _control(plan, layers, "elsewhere", f"as many experts in layers that the plan leaves out (seed {seed})")


CONTROLS = {"random": by_lot, "elsewhere": elsewhere}
"""Name -> control of a plan."""


def _drawn(plan: ExpertPlan, layer: int, pool: list[int], seed: list[int]) -> tuple[PlannedExpert, ...]:
    planned = plan.layers[layer]
    drawn = np.random.default_rng(seed).choice(pool, len(planned), replace=False)
    return _members(drawn, [e.statistic for e in planned])


def _members(ids: np.ndarray, statistics: list[float | None]) -> tuple[PlannedExpert, ...]:
    """The plan's statistics go along, so that a rule that weighs by them has the same weights."""
    values = statistics or [None] * len(ids)
    return tuple(PlannedExpert(int(i), "random", v) for i, v in zip(sorted(ids), values, strict=True))


def _control(
    plan: ExpertPlan, layers: dict[int, tuple[PlannedExpert, ...]], planner: str, reason: str
) -> ExpertPlan:
    settings = {"like": plan.planner, "experts_of_the_plan": plan.size}
    return replace(plan, planner=planner, layers=layers, settings=settings, why=(f"control: {reason}",))
