"""Shared: the experts that two languages both use, weighed by the first one's share; for the steering rule `shared`.

Shape letters: G languages (here the two), L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.parents import target_problems
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import chosen_layers, from_places, layer_problems, of_tunable, rows_of
from dragoman.routing.sharing import Counted, kept_shares
from dragoman.routing.trace import RoutingTrace

FIRST, LAST = 10 / 48, 39 / 48
"""The layers that the paper steers, 10 to 39 of 48, as shares of the depth."""


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """The experts that two languages share."""

    between: tuple[str, ...] = ("en", "zh")
    """Two languages that the model serves well; the first one's share is the weight of an expert."""
    below: float = 0.7
    """An expert is shared where neither language has so much of its use."""
    keep: int | None = None
    """Most used experts of a layer that count in each language; default 20 of 128."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default from 10/48 to 39/48 of the depth."""
    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    train_routers: bool = False
    """Train the routers of the planned layers too."""


def shared_plan(trace: RoutingTrace, config: SharedConfig) -> ExpertPlan:
    """Experts among the most used of both languages, of which neither has nearly all the use.

        f_g(e) = tokens of g that chose e / tokens of g, zero outside the K most used experts of the layer
        s_g(e) = f_g(e) / sum of both f(e);   planned iff both f > 0 and both s < 0.7;   statistic: s of the first

    Raises ConfigError for settings that do not fit the trace, all in one message, and for a plan that would be empty.
    Source: Chen et al. 2026 (shared-expert steering, arXiv:2601.14050) and its code: English and Chinese, K 20 of 128
    experts, layers 10 to 39 of 48.
    Differs: shares are of the two languages' use, where the code divides by that of all; K and the layers scale.
    """
    if problems := _problems(trace, config):
        raise ConfigError("; ".join(problems))
    first, second = config.between
    layers = _layers(trace) if config.layers is None else chosen_layers(trace, config.layers)
    rows = list(rows_of(trace, layers).values())
    counted = Counted(
        trace.chosen_GLE[[trace.index(g) for g in config.between]][:, rows],
        np.array([trace.num_experts[row] for row in rows]),
        np.array([trace.top_k[row] for row in rows]),
    )
    kept_GLE, share_GLE = kept_shares(counted, config.keep)
    kept_GLE = of_tunable(kept_GLE, trace, layers)
    planned_LE = np.all((kept_GLE > 0) & (share_GLE < config.below), axis=0)
    places = [(row, e) for row, e in np.argwhere(planned_LE).tolist()]
    planned = from_places(places, layers, share_GLE[0], "shared", config.below)
    why = [
        f"{int(planned_LE.sum())} of the {int((kept_GLE > 0).any(axis=0).sum())} experts that {first} or {second} use "
        f"most in layers {layers[0]} to {layers[-1]} are used by both, neither with {config.below:g} of their use",
        f"the statistic is the share of {first}, by which the steering rule `shared` weighs",
    ]
    settings = {"between": [first, second], "below": config.below, "keep": config.keep, "layers": list(layers)}
    return assembled("shared", trace, config, planned, settings=settings, why=why, way_out="raise keep or below")


def _layers(trace: RoutingTrace) -> tuple[int, ...]:
    known = chosen_layers(trace, None)
    first, last = (min(len(known) - 1, round(edge * len(known))) for edge in (FIRST, LAST))
    return known[first : last + 1]


def _problems(trace: RoutingTrace, config: SharedConfig) -> list[str]:
    problems = target_problems(trace, config.target) + layer_problems(trace, config.layers)
    if len(set(config.between)) != 2:
        problems.append(f"between takes two languages, not {_listed(config.between)}")
    if absent := [g for g in config.between if g not in trace.languages]:
        problems.append(f"the trace holds no {_listed(absent)}, only {_listed(trace.languages)}; name others (between)")
    if not 0.5 < config.below <= 1:
        problems.append(f"below is {config.below:g}, but of two shares one is a half or more; above 0.5 up to 1")
    if config.keep is not None and config.keep < 1:
        problems.append(f"keep is {config.keep}, at least 1")
    return problems


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
