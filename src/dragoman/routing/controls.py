"""Controls of a plan, made from the plan alone: as many experts by lot, in its own layers or in others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.plan import ExpertPlan, PlannedExpert


def by_lot(plan: ExpertPlan, seed: int = 0) -> ExpertPlan:
    """In every layer as many experts, none of them the plan's; ConfigError where a layer has too few others."""
    left = pools(plan, [plan], plan.num_experts)
    if short := [layer for layer, pool in left.items() if len(pool) < len(plan.layers[layer])]:
        raise ConfigError(
            f"layers {short} have too few experts that the plan does not name; control it by other layers (elsewhere)"
        )
    drawn = {layer: draw(pool, len(plan.layers[layer]), seed, layer) for layer, pool in left.items()}
    return _control(plan, drawn, "random", f"as many other experts in each layer, by lot (seed {seed})")


def elsewhere(plan: ExpertPlan, seed: int = 0) -> ExpertPlan:
    """As many experts by lot, or as there is room for, in layers that the plan does not name; ConfigError without any.

    The plan's layers in order take the others in order, from the first again where these are fewer; a layer gives no
    more than it has.
    """
    others = [layer for layer in sorted(plan.num_experts) if layer not in plan.layers]
    if not others:
        raise ConfigError("the plan names every layer, so no other is left for a control; control it by lot (random)")
    wanted: Counter[int] = Counter()
    for i, (_, planned) in enumerate(sorted(plan.layers.items())):
        wanted[others[i % len(others)]] += len(planned)
    sizes = {layer: (n, plan.num_experts[layer]) for layer, n in sorted(wanted.items())}
    drawn = {layer: draw(range(there), min(n, there), seed, layer) for layer, (n, there) in sizes.items()}
    number = sum(map(len, drawn.values()))
    reason = f"{number} experts for the plan's {plan.size}, in layers that it leaves out (seed {seed})"
    return _control(plan, drawn, "elsewhere", reason)


CONTROLS = {"random": by_lot, "elsewhere": elsewhere}
"""Name -> control of a plan."""


def pools(plan: ExpertPlan, avoid: Sequence[ExpertPlan], num_experts: Mapping[int, int]) -> dict[int, list[int]]:
    """Layer of the plan -> experts, of the first `num_experts` of the layer, that no plan in `avoid` names there."""
    named = {layer: {i for other in avoid for i in other.experts().get(layer, ())} for layer in plan.layers}
    return {layer: sorted(set(range(num_experts.get(layer, 0))) - out) for layer, out in named.items()}


def draw(pool: Sequence[int], number: int, seed: int, layer: int) -> list[int]:
    """Experts of a layer, uniform without replacement; every layer has a draw of its own."""
    return sorted(np.random.default_rng([seed, layer]).choice(pool, number, replace=False).tolist())


def _control(plan: ExpertPlan, drawn: Mapping[int, list[int]], planner: str, reason: str) -> ExpertPlan:
    """The plan's statistics go along in order, so that a rule that weighs by them has the same weights."""
    weights = (e.statistic for _, planned in sorted(plan.layers.items()) for e in planned)
    layers = {
        layer: tuple(PlannedExpert(i, "random", next(weights)) for i in ids) for layer, ids in sorted(drawn.items())
    }
    settings = {"like": plan.planner, "experts_of_the_plan": plan.size}
    return replace(plan, planner=planner, layers=layers, settings=settings, why=(f"control: {reason}",))
