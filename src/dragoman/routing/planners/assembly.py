"""From the experts that a rule chose to a plan: the fields that every plan has, and what a budget came to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dragoman.errors import ConfigError
from dragoman.record import sha256
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.base import Layers, experts_by_layer, ids_of, numbers
from dragoman.routing.planners.budgets import known_sizes, percent
from dragoman.routing.sizes import sizes_of
from dragoman.routing.trace import ARRAYS, RoutingTrace


def assembled(
    planner: str,
    trace: RoutingTrace,
    config: Any,
    planned: Layers,
    *,
    settings: dict[str, Any],
    why: Sequence[str],
    chose: str = "",
    way_out: str = "name another layer",
    parent: str | None = None,
) -> ExpertPlan:
    """The plan of a planner.

    config: the planner's; target, train_routers and, where it has one, budget are taken from it.
    chose: what a budget chose, in words. way_out: of an empty plan, which is a ConfigError.
    """
    fields, budget = common(trace, planned, way_out), getattr(config, "budget", None)
    if budget is not None:
        settings = settings | {"budget": budget}
        why = [*why, _budget_reason(budget, trace, planned, config.train_routers, chose)]
    return ExpertPlan(
        planner=planner,
        target=config.target,
        parent=parent,
        train_routers=config.train_routers,
        settings=settings,
        why=tuple(why),
        **fields,
    )


def common(trace: RoutingTrace, planned: Layers, way_out: str) -> dict[str, Any]:
    """Fields that every plan has from its trace; layers without planned experts are left out.

    Raises ConfigError with the `way_out` where no expert is planned.
    """
    layers = {layer: experts for layer, experts in sorted(planned.items()) if experts}
    if not layers:
        raise ConfigError(f"the rule selects no expert in layers {numbers(sorted(planned))}; {way_out}")
    about = {"num_experts": experts_by_layer(trace), "trace_sha256": checksum(trace), "sizes": sizes_of(trace)}
    return {"layers": layers, "model_sha256": trace.about.get("model_sha256") or None, **about}


def _budget_reason(budget: float, trace: RoutingTrace, planned: Layers, routers: bool, chose: str) -> str:
    """What a budget chose and what share it reached, in words."""
    sizes, ids = known_sizes(trace), ids_of(planned)
    return (
        f"budget {percent(budget)}: {chose}; it trains {sizes.trained(ids, routers):,} of {sizes.total:,} parameters "
        f"({percent(sizes.share(ids, routers))}), routers {'included' if routers else 'frozen'}"
    )


def checksum(trace: RoutingTrace) -> str:
    """SHA-256 of what a plan depends on: languages, layers, experts, counts and masses; the same after a reload."""
    shape = [trace.languages, trace.layer_ids, trace.num_experts, trace.top_k]
    return sha256(json.dumps(shape), *[np.ascontiguousarray(getattr(trace, name)).tobytes() for name in ARRAYS])
