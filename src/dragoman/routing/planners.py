"""Planners: a trace in, an ExpertPlan out. To add one: a Config, a function (trace, config), one line in PLANNERS.

Shape letters: G languages (here the known ones), L MoE layers, E experts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dragoman.errors import ConfigError, ModelError
from dragoman.record import sha256
from dragoman.routing.parents import ParentChoice, choose_parent, parent_problems, target_problems
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.stats import layer_rows, slot_share
from dragoman.routing.trace import ARRAYS, RoutingTrace

ROUNDING = 1e-12
"""A gap that equals alpha but for floating-point rounding passes."""
DIGITS = 6
"""Decimals of the statistics that a plan keeps."""
DEFAULT_LAYERS = 2
"""The last so many MoE layers, as in SSFT."""


@dataclass(frozen=True, kw_only=True)
class SsftConfig:
    """Language experts by the gap rule and shared experts, for a language the model does not know."""

    target: str
    """Language to adapt to; the trace must hold text of it."""
    known: tuple[str, ...] = ()
    """Languages the model was trained on; the rule compares these alone. At least two."""
    parent: str | None = None
    """Known language whose experts the target takes; by default the one whose routing is most similar."""
    variant: Literal["ssft", "seft"] = "ssft"
    """`ssft`: language and shared experts; `seft`: language experts only."""
    alpha: float | None = None
    """Least gap, in shares of slots, between the first and the second language of an expert; default 0.64 / E."""
    shared: int | None = None
    """Shared experts per layer; default 5 E / 64, rounded, at least one."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default the last two MoE layers."""
    train_routers: bool = True
    """Train the routers of the planned layers too, as SSFT does."""
    overlap: dict[str, float] = field(default_factory=dict)
    """Vocabulary overlap of the target with each known language, to be ranked beside the routing."""


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """As many experts in the same layers as another plan, by lot: the control of that plan."""

    like: Path | None = None
    """Plan whose layers and numbers of experts to copy."""
    seed: int = 0
    """Seed of the draw."""
    disjoint: bool = False
    """Draw only experts that the other plan does not name."""


@dataclass(frozen=True, kw_only=True)
class LayersConfig:
    """Every expert of some layers."""

    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    layers: tuple[int, ...] | None = None
    """Model layers to plan; default the last two MoE layers."""
    train_routers: bool = True
    """Train the routers of the planned layers too."""


@dataclass(frozen=True, kw_only=True)
class AllConfig:
    """Every expert of every layer."""

    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    train_routers: bool = True
    """Train the routers too."""


# ---- the planners --------------------------------------------------------------------------------------------------


def ssft(trace: RoutingTrace, config: SsftConfig) -> ExpertPlan:
    """The parent's language experts and, in the variant `ssft`, the experts that all known languages share.

        a_g(e)  = C_g(e) / sum_e C_g(e)                        share of slots, known languages g only
        gap(e)  = a_1(e) - a_2(e)                              first and second language of expert e
        e belongs to language 1  iff  gap(e) >= alpha
        shared  = the k experts with the largest mean of a over the known languages

    An expert that is both is planned once, as `language`.
    Raises ConfigError for settings that do not fit the trace or each other, all in one message, and for a plan that
    would be empty.
    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), expert selection, and its code (alpha 0.01, k 5, E 64).
    Differs: alpha and k scale with the number of experts of each layer (0.64 / E, 5 E / 64), because a share of slots
    shrinks as experts grow in number. Rounding is to even: 2 of 32 experts are shared by default. The expert lists of
    the paper's repository cannot come from its stated rule alone (some experts appear for targets of three different
    parents, though an expert has one first language); we follow the rule as written, which gives fewer experts than the
    five to eight a layer of the paper, and for some parents none: `why` says so.
    """
    if problems := _ssft_problems(trace, config):
        raise ConfigError("; ".join(problems))
    layers = _chosen_layers(trace, config.layers)
    choice = choose_parent(trace, config.target, config.known, layers, config.overlap)
    parent = config.parent or choice.parent
    rules = {layer: _rule(config, trace.num_experts[row]) for layer, row in _rows(trace, layers).items()}
    planned, reasons = {}, []
    for layer, (alpha, shared) in rules.items():
        planned[layer] = _ssft_layer(trace, config.known, parent, layer, alpha, shared)
        reasons.append(_layer_reason(layer, planned[layer], parent, alpha, shared))
    settings = {
        "variant": config.variant,
        "known": list(config.known),
        "parent_by": "setting" if config.parent else "routing",
        "alpha": {str(layer): alpha for layer, (alpha, _) in rules.items()},
        "shared": {str(layer): shared for layer, (_, shared) in rules.items()},
    }
    return ExpertPlan(
        planner="ssft",
        target=config.target,
        parent=parent,
        train_routers=config.train_routers,
        settings=settings,
        why=(_parent_reason(config, choice), *choice.why, *reasons),
        **_common(trace, planned),
    )


class _Rule(NamedTuple):
    alpha: float
    shared: int


def _rule(config: SsftConfig, num_experts: int) -> _Rule:
    alpha = 0.64 / num_experts if config.alpha is None else config.alpha
    shared = max(1, round(5 * num_experts / 64)) if config.shared is None else config.shared
    return _Rule(alpha, 0 if config.variant == "seft" else shared)


def _ssft_layer(
    trace: RoutingTrace, known: Sequence[str], parent: str, layer: int, alpha: float, shared: int
) -> tuple[PlannedExpert, ...]:
    row = _rows(trace, [layer])[layer]
    count_G1E = trace.select(list(known)).chosen_GLE[:, [row], : trace.num_experts[row]]
    share_GE = slot_share(count_G1E, known, [layer])[:, 0]
    mean_E, sorted_GE = share_GE.mean(axis=0), np.sort(share_GE, axis=0)
    gap_E = sorted_GE[-1] - sorted_GE[-2]
    mine_E = (share_GE.argmax(axis=0) == known.index(parent)) & (gap_E >= alpha - ROUNDING)
    planned = {e: PlannedExpert(e, "shared", _kept(mean_E[e])) for e in _largest(mean_E, shared)}
    planned |= {e: PlannedExpert(e, "language", _kept(gap_E[e])) for e in np.flatnonzero(mine_E).tolist()}
    return tuple(planned[e] for e in sorted(planned))


def _largest(value_E: np.ndarray, count: int) -> list[int]:
    """Of equal values the smaller id."""
    return np.argsort(-value_E, kind="stable")[:count].tolist()


def _kept(value: float) -> float:
    return round(float(value), DIGITS)


def _ssft_problems(trace: RoutingTrace, config: SsftConfig) -> list[str]:
    problems = parent_problems(trace, config.target, config.known, config.overlap)
    fewest = min(trace.num_experts)
    try:
        layers = _chosen_layers(trace, config.layers)
        fewest = min(trace.num_experts[row] for row in _rows(trace, layers).values())
    except ConfigError as e:
        problems.append(str(e))
    if len(config.known) == 1:
        problems.append(f"the gap rule needs two known languages, only {config.known[0]} was given; name another")
    if config.parent and config.parent not in config.known:
        problems.append(f"the parent {config.parent!r} is not a known language; take one of {', '.join(config.known)}")
    if config.alpha is not None and not 0 < config.alpha <= 1:
        problems.append(
            f"alpha is {config.alpha}, but it is a share of slots, above 0 up to 1; leave it out for 0.64 / E"
        )
    if config.variant == "seft" and config.shared is not None:
        problems.append(f"shared = {config.shared} has no effect in the variant 'seft'; leave it out or take 'ssft'")
    elif config.shared is not None and not 1 <= config.shared <= fewest:
        problems.append(f"shared is {config.shared}, but it may be 1 to {fewest}; for none take the variant 'seft'")
    return problems


def _parent_reason(config: SsftConfig, choice: ParentChoice) -> str:
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


def random_plan(trace: RoutingTrace, config: RandomConfig) -> ExpertPlan:
    """As many experts, in the same layers, as the plan at `config.like`; see `random_like`.

    Raises ConfigError where no plan is given.
    """
    if config.like is None:
        raise ConfigError("a random plan copies layers and numbers from another plan; name its file (like)")
    return random_like(trace, ExpertPlan.load(config.like), config.seed, config.disjoint)


def random_like(trace: RoutingTrace, reference: ExpertPlan, seed: int = 0, disjoint: bool = False) -> ExpertPlan:
    """The control of `reference`: per layer as many experts by lot, uniform without replacement, all else equal.

    disjoint: only experts that the reference does not name. Every layer has a draw of its own, from seed and layer.
    Raises ConfigError where the reference is for another model, where too few experts are left for a disjoint plan
    (all layers named), or where the reference names all experts of its layers and a draw would repeat it.
    Source: none; the control that methods with experts chosen by rule need.
    """
    experts = reference.experts()
    pools = {layer: _pool(ids, reference.num_experts[layer], disjoint) for layer, ids in experts.items()}
    if problems := _random_problems(trace, reference, pools, disjoint):
        raise ConfigError("; ".join(problems))
    drawn = {
        layer: np.sort(np.random.default_rng([seed, layer]).choice(pools[layer], len(ids), replace=False)).tolist()
        for layer, ids in experts.items()
    }
    again = sum(len(set(drawn[layer]) & set(ids)) for layer, ids in experts.items())
    return ExpertPlan(
        planner="random",
        target=reference.target,
        parent=reference.parent,
        train_routers=reference.train_routers,
        settings={"seed": seed, "disjoint": disjoint, "like": reference.planner},
        why=(
            f"control of a plan by {reference.planner}: {reference.size} experts by lot, the same number in each layer",
            f"{again} of them are in that plan too",
        ),
        **_common(trace, {layer: _members(ids, "random") for layer, ids in drawn.items()}),
    )


def _pool(planned: Sequence[int], num_experts: int, disjoint: bool) -> list[int]:
    return sorted(set(range(num_experts)) - set(planned if disjoint else ()))


def _random_problems(
    trace: RoutingTrace, reference: ExpertPlan, pools: Mapping[int, Sequence[int]], disjoint: bool
) -> list[str]:
    if reference.num_experts != (here := _num_experts(trace)):
        return [
            f"the other plan is for a model with experts by layer {reference.num_experts}, the trace has {here}; "
            "make both from traces of one model"
        ]
    experts = reference.experts()
    short = [
        f"layer {layer} has {len(pools[layer])} left for {len(ids)}"
        for layer, ids in experts.items()
        if len(pools[layer]) < len(ids)
    ]
    if short:
        return [f"a disjoint plan of this size is impossible: {', '.join(short)}; draw without disjoint or plan fewer"]
    if not disjoint and all(len(ids) == reference.num_experts[layer] for layer, ids in experts.items()):
        return ["the other plan names every expert of its layers, so a draw would repeat it; take a smaller plan"]
    return []


def complete_layers(trace: RoutingTrace, config: LayersConfig) -> ExpertPlan:
    """Every expert of some layers, default the last two MoE layers.

    Raises ConfigError for a layer that the trace does not have or a target it does not hold.
    Source: SSFT (arXiv:2605.29714), AEFT baseline.
    """
    problems = target_problems(trace, config.target)
    try:
        layers = _chosen_layers(trace, config.layers)
    except ConfigError as e:
        problems.append(str(e))
    if problems:
        raise ConfigError("; ".join(problems))
    return _complete(trace, "layers", layers, config.target, config.train_routers)


def all_experts(trace: RoutingTrace, config: AllConfig) -> ExpertPlan:
    """Every expert of every MoE layer.

    Raises ConfigError for a target that the trace does not hold.
    """
    if problems := target_problems(trace, config.target):
        raise ConfigError("; ".join(problems))
    return _complete(trace, "all", sorted(_num_experts(trace)), config.target, config.train_routers)


def _complete(
    trace: RoutingTrace, planner: str, layers: Sequence[int], target: str | None, train_routers: bool
) -> ExpertPlan:
    num_experts = _num_experts(trace)
    return ExpertPlan(
        planner=planner,
        target=target,
        train_routers=train_routers,
        settings={"layers": list(layers)},
        why=(f"every expert of layers {_numbers(layers)}",),
        **_common(trace, {layer: _members(range(num_experts[layer]), "all") for layer in layers}),
    )


def _members(ids: Sequence[int], role: str) -> tuple[PlannedExpert, ...]:
    return tuple(PlannedExpert(i, role) for i in ids)


# ---- what all planners share ---------------------------------------------------------------------------------------


def checksum(trace: RoutingTrace) -> str:
    """SHA-256 of what a plan depends on: languages, layers, experts, counts and masses; the same after a reload."""
    shape = [trace.languages, trace.layer_ids, trace.num_experts, trace.top_k]
    return sha256(json.dumps(shape), *[np.ascontiguousarray(getattr(trace, name)).tobytes() for name in ARRAYS])


def _common(trace: RoutingTrace, planned: Mapping[int, tuple[PlannedExpert, ...]]) -> dict[str, Any]:
    """Fields that every plan has from its trace; layers without planned experts are left out."""
    layers = {layer: experts for layer, experts in sorted(planned.items()) if experts}
    if not layers:
        raise ConfigError(
            f"the rule selects no expert in layers {_numbers(list(planned))}; lower alpha, take more layers, or plan "
            "shared experts too (variant 'ssft')"
        )
    return {"layers": layers, "num_experts": _num_experts(trace), "trace_sha256": checksum(trace)}


def _num_experts(trace: RoutingTrace) -> dict[int, int]:
    return {layer: trace.num_experts[row] for layer, row in _rows(trace, trace.layer_ids).items()}


def _rows(trace: RoutingTrace, layers: Sequence[int]) -> dict[int, int]:
    """Model layer -> row of the trace; ModelError where a layer has several, which a plan could not tell apart."""
    if several := sorted({layer for layer in trace.layer_ids if trace.layer_ids.count(layer) > 1}):
        raise ModelError(
            f"layers {_numbers(several)} have several routers, and a plan names one set of experts a layer; "
            "such a model can be diagnosed, not planned"
        )
    return dict(zip(layers, layer_rows(trace, layers), strict=True))


def _chosen_layers(trace: RoutingTrace, layers: Sequence[int] | None) -> tuple[int, ...]:
    known = sorted(set(trace.layer_ids))
    if layers is None:
        return tuple(known[-DEFAULT_LAYERS:])
    if not layers:
        raise ConfigError(f"no layer was given; choose from {_numbers(known)}")
    layer_rows(trace, layers)
    return tuple(sorted(set(layers)))


def _numbers(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


class Planner(NamedTuple):
    """A planner's settings and its function."""

    config: type
    make: Callable[[RoutingTrace, Any], ExpertPlan]


PLANNERS: dict[str, Planner] = {
    "ssft": Planner(SsftConfig, ssft),
    "random": Planner(RandomConfig, random_plan),
    "layers": Planner(LayersConfig, complete_layers),
    "all": Planner(AllConfig, all_experts),
}
