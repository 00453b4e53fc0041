"""ESFT: in each layer the experts that take the largest part of a text, until that part reaches p.

Shape letters: L MoE layers (here those to plan), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.parents import target_problems
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import (
    ROUNDING,
    Layers,
    chosen_layers,
    experts_by_layer,
    kept,
    layer_problems,
    of_tunable,
    ranked,
    rows_of,
)
from dragoman.routing.planners.budgets import budget_problems, largest_within
from dragoman.routing.stats import slot_share
from dragoman.routing.trace import RoutingTrace

DEFAULT_P = 0.2
"""Of the released code's README, with token scores."""


@dataclass(frozen=True, kw_only=True)
class EsftConfig:
    """The experts that a text uses most, layer by layer."""

    target: str
    """Language (or task) whose text in the trace is scored."""
    score: Literal["token", "gate"] = "token"
    """`token`: share of the slots that an expert fills; `gate`: share of the weights with which it was chosen."""
    p: float | None = None
    """Part of a layer's score that its experts must reach together; default 0.2."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds the largest p that fits."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default all MoE layers."""
    train_routers: bool = False
    """Train the routers of the planned layers too; ESFT does not."""


def esft_plan(trace: RoutingTrace, config: EsftConfig) -> ExpertPlan:
    """In each layer the fewest experts, from the largest score down, whose scores reach p together.

        r(e) = C(e) / sum_e C(e)     token score: C counts choices by the target's tokens
        r(e) = g(e) / sum_e g(e)     gate score: g sums the weights of the chosen experts
        planned = the first n experts by r,  n the least with r_1 + ... + r_n >= p

    The same p for all layers: a layer that a text concentrates on few experts gives few.
    Raises ConfigError for settings that do not fit the trace or each other, all in one message, and for a budget that
    nothing fits.
    Source: Wang et al. 2024 (ESFT, arXiv:2407.01906), sec. 3, and its released code (token score, p 0.2).
    Differs: scores are normalised over the experts of each layer, as the paper has them; the released script divides by
    sums over layers. Experts that were never chosen, or mean "skip", are never planned. For one of many
    languages in a trace where the paper takes one task.
    """
    if problems := _problems(trace, config):
        raise ConfigError("; ".join(problems))
    layers = chosen_layers(trace, config.layers)
    score_LE = _scores(trace, config, layers)
    p = DEFAULT_P if config.p is None else config.p
    if config.budget is not None:
        options = sorted({float(part) for part in np.sort(score_LE)[:, ::-1].cumsum(axis=1).clip(max=1).flat})
        p = largest_within(
            config.budget,
            trace,
            options,
            lambda part: _select(score_LE, layers, part),
            config.train_routers,
            "raise the budget or plan fewer layers",
        )
    planned = _select(score_LE, layers, p)
    why = [
        f"layer {layer}: {sum(e.statistic or 0 for e in experts):.1%} of the {config.score} score in {len(experts)} of "
        f"{experts_by_layer(trace)[layer]} experts"
        for layer, experts in planned.items()
    ]
    settings = {"score": config.score, "p": p, "layers": list(layers)}
    first = f"in each layer the fewest experts that take {p:.4g} of the {config.score} score of {config.target}"
    chose = f"the largest p that fits is {p:.4g}"
    return assembled("esft", trace, config, planned, settings=settings, why=[first, *why], chose=chose)


def _scores(trace: RoutingTrace, config: EsftConfig, layers: Sequence[int]) -> np.ndarray:
    array_GLE = trace.chosen_GLE if config.score == "token" else trace.gate_mass_GLE
    score_LE = array_GLE[trace.index(config.target), list(rows_of(trace, layers).values())]
    return of_tunable(slot_share(score_LE[None], [config.target], layers)[0], trace, layers)


def _select(score_LE: np.ndarray, layers: Sequence[int], p: float) -> Layers:
    planned: Layers = {}
    for layer, score_E in zip(layers, score_LE, strict=True):
        order = [e for e in ranked(score_E) if score_E[e] > 0]
        if not order:  # all that the text chose there means "skip"
            planned[layer] = ()
            continue
        number = int(np.searchsorted(score_E[order].cumsum(), p - ROUNDING)) + 1
        taken, least = sorted(order[:number]), kept(score_E[order[:number][-1]])
        planned[layer] = tuple(PlannedExpert(e, "used", kept(score_E[e]), least) for e in taken)
    return planned


def _problems(trace: RoutingTrace, config: EsftConfig) -> list[str]:
    problems = target_problems(trace, config.target) + layer_problems(trace, config.layers)
    if config.score not in ("token", "gate"):
        problems.append(f"score is {config.score!r}; take token or gate")
    if config.p is not None and not 0 < config.p <= 1:
        problems.append(f"p is {config.p}, but it is a part of a layer's score, above 0 up to 1")
    if config.score == "gate" and not np.isfinite(trace.gate_mass_GLE).all():
        problems.append(
            "the trace holds no weights of the experts, as those from an inference server; take the token score"
        )
    return problems + budget_problems(trace, config.budget, p=config.p)
