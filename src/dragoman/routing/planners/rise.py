"""RISE: experts specific to a language at both ends of the model, experts that languages share in its middle.

Shape letters: G languages (the target first), L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.parents import parent_problems
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import PER_EXPERT, Layers, from_places, of_tunable, ranked, rows_of, tunable
from dragoman.routing.planners.budgets import budget_problems, known_sizes, largest_within
from dragoman.routing.sizes import Sizes
from dragoman.routing.stats import token_share
from dragoman.routing.trace import RoutingTrace

ZONES = ("shallow", "middle", "deep")
ENOUGH_LANGUAGES = 4
"""Below, specificity and overlap are nearly functions of one ratio."""


@dataclass(frozen=True, kw_only=True)
class RiseConfig:
    """Language-specific experts of the first and last layers, shared ones of the middle."""

    target: str
    """Language to adapt to; the trace must hold text of it."""
    known: tuple[str, ...] = ()
    """Languages to compare it with, three or more by preference."""
    experts: int | None = None
    """How many experts to plan over all layers; default one of 40, at least 3."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds the number of experts that fits."""
    zones: tuple[float, ...] = (0.375, 0.25, 0.375)
    """Shares of the layers that are shallow, middle and deep."""
    shares: tuple[float, ...] = (0.35, 0.25, 0.4)
    """Shares of the experts for the three zones."""
    magnitude: float = 10.0
    """How much frequent use counts beside preference (alpha of the paper)."""
    train_routers: bool = False
    """Train the routers of the planned layers too; RISE does not."""


def rise_plan(trace: RoutingTrace, config: RiseConfig) -> ExpertPlan:
    """K experts over three zones of depth, each ranked over its layers together.

        a_g        = share of the tokens of g that choose the expert; mean m and deviation s over all languages
        specificity = a_target / m (1 + w a_target)           shallow and deep zone, role `language`
        overlap     = 1 / (1 + s / m) (1 + w m)               middle zone, role `shared`
        K_shallow = floor(0.35 K), K_middle = floor(0.25 K), K_deep the rest; what a zone cannot hold goes to the zone
        with most room

    The deviation is that of a population, w is `magnitude`.
    Raises ConfigError for settings that do not fit the trace or each other, all in one message, and for a budget that
    nothing fits.
    Source: Zheng et al. 2026 (RISE, arXiv:2604.03592), algorithm 1, and its released code (zones, shares, w 10).
    Differs: an expert that no token of the target chose (shallow, deep), or of any language (middle), is never planned;
    the released code gives a dead expert of the middle the overlap of a perfectly shared one. K is given in no general
    form (128 of 6,144, 16 of 512); ours is 2.5 % of the experts.
    """
    if problems := _problems(trace, config):
        raise ConfigError("; ".join(problems))
    zones = _zones(trace, config)
    number = _number(trace, config, zones)
    split = _split(zones, number, config)
    planned = _select(zones, split)
    settings = {"known": list(config.known), "experts": number, "zones": list(config.zones)}
    settings |= {"shares": list(config.shares), "magnitude": config.magnitude}
    why, chose = _reasons(trace, config, zones, split), f"{number} experts are the most that fit"
    return assembled("rise", trace, config, planned, settings=settings, why=why, chose=chose)


class _Zone(NamedTuple):
    layers: tuple[int, ...]
    role: str
    score_LE: np.ndarray
    order: tuple[tuple[int, int], ...]
    """(row of the zone, expert) from the best score down, those that may be planned."""


def _zones(trace: RoutingTrace, config: RiseConfig) -> list[_Zone]:
    layers = sorted(set(trace.layer_ids))
    rows = rows_of(trace, layers)
    ends = [round(len(layers) * part) for part in (config.zones[0], config.zones[0] + config.zones[1])]
    zones = []
    for name, part in zip(ZONES, np.split(np.array(layers), ends), strict=True):
        mine = [rows[layer] for layer in part.tolist()]
        count_GLE = trace.select([config.target, *config.known]).chosen_GLE[:, mine]
        top_k_L = [trace.top_k[row] for row in mine]
        share_GLE = token_share(count_GLE, top_k_L, (config.target, *config.known), part.tolist())
        score_LE = _overlap(share_GLE, config) if name == "middle" else _specificity(share_GLE, config)
        score_LE = of_tunable(score_LE, trace, part.tolist())
        order = [divmod(place, score_LE.shape[1]) for place in ranked(score_LE.ravel()) if score_LE.flat[place] > 0]
        zones.append(_Zone(tuple(part.tolist()), "shared" if name == "middle" else "language", score_LE, tuple(order)))
    return zones


def _specificity(share_GLE: np.ndarray, config: RiseConfig) -> np.ndarray:
    mean_LE = share_GLE.mean(axis=0)
    relative_LE = np.divide(share_GLE[0], mean_LE, out=np.zeros_like(mean_LE), where=mean_LE > 0)
    return relative_LE * (1 + config.magnitude * share_GLE[0])


def _overlap(share_GLE: np.ndarray, config: RiseConfig) -> np.ndarray:
    mean_LE, deviation_LE = share_GLE.mean(axis=0), share_GLE.std(axis=0)
    even_LE = np.divide(mean_LE, mean_LE + deviation_LE, out=np.zeros_like(mean_LE), where=mean_LE > 0)
    return even_LE * (1 + config.magnitude * mean_LE)


def _number(trace: RoutingTrace, config: RiseConfig, zones: Sequence[_Zone]) -> int:
    room, routers = sum(len(zone.order) for zone in zones), config.train_routers
    if config.budget is not None:
        least = largest_within(config.budget, trace, [1], lambda n: _select(zones, _split(zones, n, config)), routers)
        return _most_within(config.budget, known_sizes(trace), zones, config, range(least, room + 1))
    number = config.experts or max(len(ZONES), round(sum(tunable(trace).values()) / PER_EXPERT))
    if number > room:
        raise ConfigError(f"{number} experts were asked for, but there are {room} that the text chose; plan fewer")
    return number


def _most_within(
    budget: float, sizes: Sizes, zones: Sequence[_Zone], config: RiseConfig, options: Sequence[int]
) -> int:
    """The largest of the options that fits; all are counted, as one expert more can train less.

    So it is where a zone gives one up for two in layers whose experts are smaller.
    """
    costs = []
    for zone in zones:
        layers = [zone.layers[row] for row, _ in zone.order]
        new = [layers.index(layer) == k for k, layer in enumerate(layers)]
        each = [sizes.expert[i] + config.train_routers * n * sizes.router[i] for i, n in zip(layers, new, strict=True)]
        costs.append([0, *accumulate(each)])
    trained = {n: sum(c[k] for c, k in zip(costs, _split(zones, n, config), strict=True)) for n in options}
    return max(n for n, parameters in trained.items() if parameters / sizes.total <= budget)


def _split(zones: Sequence[_Zone], number: int, config: RiseConfig) -> list[int]:
    """Experts of each zone; the surplus of zones that are too small goes where most room is left."""
    first, second = (int(number * part + 1e-9) for part in config.shares[:2])  # 0.35 * 20 is 7, if not in binary
    wanted, room = [first, second, number - first - second], [len(zone.order) for zone in zones]
    split = [min(n, most) for n, most in zip(wanted, room, strict=True)]
    while surplus := number - sum(split):
        left = [most - n for n, most in zip(split, room, strict=True)]
        roomiest = left.index(max(left))
        if not left[roomiest]:
            break
        split[roomiest] += min(surplus, left[roomiest])
    return split


def _select(zones: Sequence[_Zone], split: Sequence[int]) -> Layers:
    planned: Layers = {}
    for zone, number in zip(zones, split, strict=True):
        if number:
            places = zone.order[:number]
            planned |= from_places(places, zone.layers, zone.score_LE, zone.role, zone.score_LE[places[-1]])
    return planned


def _reasons(trace: RoutingTrace, config: RiseConfig, zones: Sequence[_Zone], split: Sequence[int]) -> list[str]:
    languages = len(config.known) + 1
    why = [f"{config.target} compared with {', '.join(config.known)}"]
    if languages < ENOUGH_LANGUAGES:
        why.append(f"only {languages} languages: specificity and overlap say little; {ENOUGH_LANGUAGES} say more")
    if not trace.about.get("parallel"):
        why.append("the text is not parallel, so differences of content count as differences of language")
    for name, zone, number in zip(ZONES, zones, split, strict=True):
        rule = "overlap" if zone.role == "shared" else "specificity"
        where = f"layers {zone.layers[0]} to {zone.layers[-1]}" if zone.layers else "no layers"
        why.append(f"{name} zone, {where}: {number} of {len(zone.order)} experts that the text chose, by {rule}")
    return why


def _problems(trace: RoutingTrace, config: RiseConfig) -> list[str]:
    problems = parent_problems(trace, config.target, config.known, None)
    for name, parts in (("zones", config.zones), ("shares", config.shares)):
        if len(parts) != len(ZONES) or min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
            problems.append(f"{name} are three parts of 1 (shallow, middle, deep), not {', '.join(map(str, parts))}")
    if config.experts is not None and config.experts < 1:
        problems.append(f"experts is {config.experts}, but a plan names at least one")
    if config.magnitude < 0:
        problems.append(f"magnitude is {config.magnitude}, but it is at least 0")
    return problems + budget_problems(trace, config.budget, experts=config.experts)
