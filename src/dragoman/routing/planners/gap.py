"""Language experts by the gap rule, alone (`seft`) or with the experts that all known languages share (`ssft`).

Shape letters: G languages (here the known ones), E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.parents import ParentChoice, choose_parent, parent_problems
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import (
    ROUNDING,
    Layers,
    kept,
    last_layers,
    layer_problems,
    of_tunable,
    ranked,
    rows_of,
    tunable,
)
from dragoman.routing.planners.budgets import budget_problems, largest_within
from dragoman.routing.stats import slot_share
from dragoman.routing.trace import RoutingTrace

EVEN_GAP = 0.64
"""Alpha in shares of an even expert's slots, 1 / E: the paper's 0.01 with 64 experts."""


@dataclass(frozen=True, kw_only=True)
class SeftConfig:
    """Language experts by the gap rule, for a language the model does not know."""

    target: str
    """Language to adapt to; the trace must hold text of it."""
    known: tuple[str, ...] = ()
    """Languages the model was trained on; the rule compares these alone. At least two."""
    parent: str | None = None
    """Known language whose experts the target takes; by default the one whose routing is most similar."""
    alpha: float | None = None
    """Least gap, in shares of slots, between the first and the second language of an expert; default 0.64 / E."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds the least alpha that fits, in multiples of 1 / E."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default the last two MoE layers."""
    train_routers: bool = True
    """Train the routers of the planned layers too, as SSFT does."""
    overlap: dict[str, float] = field(default_factory=dict)
    """Vocabulary overlap of the target with each known language, to be ranked beside the routing."""


@dataclass(frozen=True, kw_only=True)
class SsftConfig(SeftConfig):
    """Language experts by the gap rule and shared experts, for a language the model does not know."""

    shared: int | None = None
    """Shared experts per layer; default 5 E / 64, rounded, at least one. A budget takes these first."""


def seft(trace: RoutingTrace, config: SeftConfig) -> ExpertPlan:
    """The parent's language experts alone.

        a_g(e)  = C_g(e) / sum_e C_g(e)                        share of slots, known languages g only
        gap(e)  = a_1(e) - a_2(e)                              first and second language of expert e
        e belongs to language 1  iff  gap(e) >= alpha

    Raises ConfigError for settings that do not fit the trace or each other, all in one message, for a plan that would
    be empty and for a budget that nothing fits.
    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), expert selection, and its code (alpha 0.01, E 64).
    Differs: alpha scales with the number of experts of each layer (0.64 / E), because a share of slots shrinks as
    experts grow in number. The expert lists of the paper's repository cannot come from its stated rule alone (some
    experts appear for targets of three different parents, though an expert has one first language); we follow the rule
    as written, which gives fewer experts than the five to eight a layer of the paper, and for some parents none: `why`
    says so. Gaps of 0 never count.
    """
    return _plan("seft", trace, config, {})


def ssft(trace: RoutingTrace, config: SsftConfig) -> ExpertPlan:
    """The parent's language experts, as `seft`, and the experts that all known languages share.

        shared = the k experts with the largest mean of a over the known languages

    An expert that is both is planned once, as `language`.
    Raises ConfigError as `seft` does.
    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), expert selection, and its code (k 5, E 64).
    Differs: as `seft`; k scales too (5 E / 64). Rounding is to even: 2 of 32 experts are shared by default.
    """
    sizes = trace.num_experts
    shared = {
        layer: max(1, round(5 * sizes[row] / 64)) if config.shared is None else config.shared
        for row, layer in enumerate(trace.layer_ids)
    }
    return _plan("ssft", trace, config, shared)


def _plan(planner: str, trace: RoutingTrace, config: SeftConfig, shared_of: Mapping[int, int]) -> ExpertPlan:
    if problems := _problems(trace, config):
        raise ConfigError("; ".join(problems))
    layers = last_layers(trace, config.layers)
    shared = {layer: shared_of.get(layer, 0) for layer in layers}
    choice = choose_parent(trace, config.target, config.known, layers, config.overlap)
    parent = config.parent or choice.parent
    usage = {layer: _usage(trace, config.known, parent, layer, row) for layer, row in rows_of(trace, layers).items()}
    alpha = _alpha(trace, config, usage, shared)
    planned = _select(usage, alpha, shared)
    reasons = [_layer_reason(layer, planned[layer], parent, alpha[layer], shared[layer]) for layer in layers]
    settings: dict[str, Any] = {"known": list(config.known), "parent_by": "setting" if config.parent else "routing"}
    settings |= {"alpha": {str(layer): value for layer, value in alpha.items()}}
    settings |= {"shared": {str(layer): k for layer, k in shared.items()}} if shared_of else {}
    return assembled(
        planner,
        trace,
        config,
        planned,
        settings=settings,
        why=(_parent_reason(config, choice), *choice.why, *reasons),
        chose="the least alpha that fits is " + ", ".join(f"{a:.4g} in layer {i}" for i, a in alpha.items()),
        way_out="lower alpha, take more layers, or plan shared experts too (planner ssft)",
        parent=parent,
    )


class _Usage(NamedTuple):
    """What the known languages use of one layer."""

    gap_E: np.ndarray
    """To the second language where the parent is the first and ahead, 0 elsewhere."""
    mean_E: np.ndarray


def _usage(trace: RoutingTrace, known: Sequence[str], parent: str, layer: int, row: int) -> _Usage:
    count_G1E = trace.select(list(known)).chosen_GLE[:, [row], : trace.num_experts[row]]
    share_GE = slot_share(count_G1E, known, [layer])[:, 0]
    sorted_GE = np.sort(share_GE, axis=0)
    is_first_E = share_GE.argmax(axis=0) == known.index(parent)
    gap_E = np.where(is_first_E, sorted_GE[-1] - sorted_GE[-2], 0)
    return _Usage(*of_tunable(np.stack([gap_E, share_GE.mean(axis=0)]), trace, [layer]))


def _alpha(
    trace: RoutingTrace, config: SeftConfig, usage: Mapping[int, _Usage], shared: Mapping[int, int]
) -> dict[int, float]:
    """Alpha of each layer: as set, by default, or the least that the budget allows."""
    num_experts = {layer: len(u.gap_E) for layer, u in usage.items()}
    if config.budget is None:
        return {layer: EVEN_GAP / n if config.alpha is None else config.alpha for layer, n in num_experts.items()}

    def scaled(even_gap: float) -> dict[int, float]:
        return {layer: min(1.0, even_gap / n) for layer, n in num_experts.items()}

    gaps = {float(gap) for u in usage.values() for gap in u.gap_E[u.gap_E > ROUNDING] * len(u.gap_E)}
    none = {float(max(num_experts.values()))} if any(shared.values()) or not gaps else set()  # a gap of every slot
    options = sorted(gaps | none, reverse=True)
    found = largest_within(
        config.budget, trace, options, lambda gap: _select(usage, scaled(gap), shared), config.train_routers
    )
    return scaled(found)


def _select(usage: Mapping[int, _Usage], alpha: Mapping[int, float], shared: Mapping[int, int]) -> Layers:
    return {layer: _layer(u, alpha[layer], shared[layer]) for layer, u in usage.items()}


def _layer(usage: _Usage, alpha: float, shared: int) -> tuple[PlannedExpert, ...]:
    gap_E, mean_E = usage
    best = ranked(mean_E)[:shared]
    mine = np.flatnonzero((gap_E >= alpha - ROUNDING) & (gap_E > 0)).tolist()
    planned = {e: PlannedExpert(e, "shared", kept(mean_E[e]), kept(mean_E[best[-1]])) for e in best}
    planned |= {e: PlannedExpert(e, "language", kept(gap_E[e]), kept(alpha)) for e in mine}
    return tuple(planned[e] for e in sorted(planned))


def _problems(trace: RoutingTrace, config: SeftConfig) -> list[str]:
    problems = parent_problems(trace, config.target, config.known, config.overlap)
    problems += layer_problems(trace, config.layers)
    if len(config.known) == 1:
        problems.append(f"the gap rule needs two known languages, only {config.known[0]} was given; name another")
    if config.parent and config.parent not in config.known:
        problems.append(f"the parent {config.parent!r} is not a known language; take one of {', '.join(config.known)}")
    if config.alpha is not None and not 0 < config.alpha <= 1:
        problems.append(
            f"alpha is {config.alpha}, but it is a share of slots, above 0 up to 1; leave it out for 0.64 / E"
        )
    if isinstance(config, SsftConfig) and config.shared is not None:
        problems += _shared_problems(trace, config.shared, config.layers)
    return problems + budget_problems(trace, config.budget, alpha=config.alpha)


def _shared_problems(trace: RoutingTrace, shared: int, layers: Sequence[int] | None) -> list[str]:
    asked = last_layers(trace, None) if layers is None else layers
    there = tunable(trace)
    fewest = min([n for layer, n in there.items() if layer in asked] or there.values())
    if 1 <= shared <= fewest:
        return []
    return [f"shared is {shared}, but it may be 1 to {fewest}; for none take the planner seft"]


def _parent_reason(config: SeftConfig, choice: ParentChoice) -> str:
    if config.parent is None:
        return f"parent {choice.parent}: of the known languages the one routed most like {config.target}"
    if config.parent == choice.parent:
        return f"parent {config.parent}: as set, and routing would choose it too"
    return f"parent {config.parent}: as set; routing would choose {choice.parent}"


def _layer_reason(layer: int, planned: Sequence[PlannedExpert], parent: str, alpha: float, shared: int) -> str:
    language, only_shared = (sum(e.role == role for e in planned) for role in ("language", "shared"))
    if language:
        first = f"language experts of {parent}: {language}, by a gap of {alpha:.4g} of slots to the next known language"
    else:
        first = f"language experts of {parent}: none, as no gap to the next known language reaches {alpha:.4g} of slots"
    if not shared:
        return f"layer {layer}: {first}"
    also = f" (of these language experts too: {shared - only_shared})" if only_shared < shared else ""
    return f"layer {layer}: {first}; shared experts{'' if language else ' alone'}: {shared}{also}"
