"""Random plans: the control that every plan made by a rule needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dragoman.errors import ConfigError
from dragoman.routing.controls import draw, pools
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import common
from dragoman.routing.planners.base import experts_by_layer, members, tunable
from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """As many experts in the same layers as another plan, by lot: the control of that plan."""

    like: Path | None = None
    """Plan whose layers and numbers of experts to copy."""
    seed: int = 0
    """Seed of the draw."""
    disjoint: tuple[Path, ...] = ()
    """Plans whose experts are not drawn; that of `like` may be one of them."""


def random_plan(trace: RoutingTrace, config: RandomConfig) -> ExpertPlan:
    """As many experts, in the same layers, as the plan at `config.like`; see `random_like`.

    Raises ConfigError where no plan is given.
    """
    if config.like is None:
        raise ConfigError("a random plan copies layers and numbers from another plan; name its file (like)")
    avoid = [ExpertPlan.load(path) for path in config.disjoint]
    return random_like(trace, ExpertPlan.load(config.like), config.seed, avoid)


def random_like(
    trace: RoutingTrace, reference: ExpertPlan, seed: int = 0, avoid: Sequence[ExpertPlan] = ()
) -> ExpertPlan:
    """The control of `reference`: per layer as many experts by lot, uniform without replacement, all else equal.

    avoid: plans whose experts are not drawn. Every layer has a draw of its own, from seed and layer.
    Raises ConfigError for a seed below 0, where a plan is for another model, where too few experts are left (all layers
    named), or where the reference names all experts of its layers and a draw would repeat it.
    Source: none; the control that methods with experts chosen by rule need.
    """
    experts = reference.experts()
    left = pools(reference, avoid, tunable(trace))
    if problems := _problems(trace, reference, avoid, left, seed):
        raise ConfigError("; ".join(problems))
    drawn = {layer: draw(left[layer], len(ids), seed, layer) for layer, ids in experts.items()}
    again = sum(len(set(drawn[layer]) & set(ids)) for layer, ids in experts.items())
    left_out = [f"none is in the {len(avoid)} plans to be disjoint from"] if avoid else []
    return ExpertPlan(
        planner="random",
        target=reference.target,
        parent=reference.parent,
        train_routers=reference.train_routers,
        settings={"seed": seed, "like": reference.planner, "disjoint": [plan.planner for plan in avoid]},
        why=(
            f"control of a plan by {reference.planner}: {reference.size} experts by lot, the same number in each layer",
            f"{again} of them are in that plan too",
            *left_out,
        ),
        **common(trace, {layer: members(ids, "random") for layer, ids in drawn.items()}, "name another plan"),
    )


def _problems(
    trace: RoutingTrace,
    reference: ExpertPlan,
    avoid: Sequence[ExpertPlan],
    left: Mapping[int, Sequence[int]],
    seed: int,
) -> list[str]:
    here = experts_by_layer(trace)
    if foreign := [plan for plan in (reference, *avoid) if plan.num_experts != here]:
        return [
            f"the plan by {plan.planner} is for a model with experts by layer {plan.num_experts}, the trace has "
            f"{here}; make both from traces of one model"
            for plan in foreign
        ]
    experts, there, problems = reference.experts(), tunable(trace), []
    if seed < 0:
        problems.append(f"seed is at least 0, not {seed}")
    short = [
        f"layer {layer} has {len(left[layer])} left for {len(ids)}"
        for layer, ids in experts.items()
        if len(left[layer]) < len(ids)
    ]
    if short:
        problems.append(
            f"a disjoint plan of this size is impossible: {', '.join(short)}; draw without disjoint or plan fewer"
        )
    elif all(len(ids) == there[layer] for layer, ids in experts.items()):
        problems.append("the plan names every expert of its layers, so a draw would repeat it; take a smaller plan")
    return problems
