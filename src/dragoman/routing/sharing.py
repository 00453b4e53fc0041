"""Exclusive and shared experts, by each published rule: one function and one line in RULES a rule.

Shape letters: G languages, L MoE layers, E experts (padding columns are never selected).

The rules do not agree, and are not meant to: they compare different quantities and two of them always find the number
that they are told to find. So `found_in_halves` says how many experts a rule gives to one half of a language's text and
not to the other: that many it finds where there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dragoman.errors import ConfigError, DataError
from dragoman.routing.resampling import half_placebo
from dragoman.routing.stats import slot_share, token_share

ROUNDING = 1e-12
"""A value that equals a threshold but for floating-point rounding passes."""
EDGE = 0.375
"""Depth zones of RISE: shallow and deep are 37.5 % of the layers each, the middle is the rest."""


@dataclass(frozen=True)
class Counted:
    """What the rules read of a trace."""

    count_GLE: np.ndarray
    """Times that each expert was chosen."""
    num_experts_L: np.ndarray
    top_k_L: np.ndarray
    reference: int = 0
    """Row of the language that `contrast` compares with."""

    @property
    def real_LE(self) -> np.ndarray:
        """Columns that are experts, not padding."""
        return np.arange(self.count_GLE.shape[-1]) < self.num_experts_L[:, None]


@dataclass(frozen=True)
class Sharing:
    """Which experts a rule calls exclusive to a language, and which shared by all."""

    exclusive_GLE: np.ndarray
    """bool"""
    shared_LE: np.ndarray
    """bool; all False for a rule that knows no shared experts."""


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """SSFT."""

    alpha: float | None = None
    """Least gap, in shares of slots, to the second language; default 0.64 / E."""
    shared: int | None = None
    """Shared experts per layer; default 5 E / 64, rounded, at least one."""


@dataclass(frozen=True, kw_only=True)
class FractionConfig:
    """Shared-expert steering."""

    exclusive: float = 0.4
    """An expert is a language's where its fraction exceeds this."""
    shared: float = 0.7
    """An expert is shared where every fraction is below this."""
    keep: int | None = None
    """Most used experts of a layer that count in each language; default 20 E / 128, rounded, at least one."""


@dataclass(frozen=True, kw_only=True)
class SpecificityConfig:
    """RISE."""

    experts: int | None = None
    """Experts to select for a language, over all layers; default 1/48 of the model's, as 128 of 6144."""
    alpha: float = 10.0
    """Weight of usage beside specificity or overlap."""
    budget: tuple[float, float, float] = (0.35, 0.25, 0.40)
    """Shares of the shallow, middle and deep zone."""


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Routing Steering."""

    tau: float = 0.3
    """An expert is a language's where its share of tokens exceeds the reference's by more."""


def gap(counted: Counted, config: GapConfig) -> Sharing:
    """Exclusive: the first language of an expert leads the second by alpha; shared: the k largest mean shares.

        a_g(e) = C_g(e) / sum_e C_g(e);   e is exclusive to g = argmax a  iff  a_g - (second largest) >= alpha
        shared = the k experts of a layer with the largest mean of a over languages

    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), expert selection and its code (alpha 0.01, k 5, E 64).
    Differs: alpha and k scale with E, as in the planner `ssft`. An expert may be both.
    """
    share_GLE = slot_share(counted.count_GLE)
    ordered_GLE = np.sort(share_GLE, axis=0)
    alpha_L1 = 0.64 / counted.num_experts_L[:, None] if config.alpha is None else config.alpha
    clear_LE = (ordered_GLE[-1] - ordered_GLE[-2] >= alpha_L1 - ROUNDING) & counted.real_LE
    first_GLE = np.arange(len(share_GLE))[:, None, None] == share_GLE.argmax(axis=0)
    mean_LE = np.where(counted.real_LE, share_GLE.mean(axis=0), -1)
    return Sharing(first_GLE & clear_LE, _largest(mean_LE, _per_layer(counted, config.shared, 5 / 64)))


def fraction(counted: Counted, config: FractionConfig) -> Sharing:
    """Exclusive: a language has most of an expert's use; shared: all use it and none has nearly all.

        f_g(e) = tokens of g that chose e / tokens of g, zero outside the K most used experts of the layer
        s_g(e) = f_g(e) / sum_g f_g(e);   exclusive to g iff s_g > 0.4;   shared iff all f_g > 0 and all s_g < 0.7

    Raises DataError for fewer than three languages: of two, an expert used alike is exclusive to both.
    Source: Chen et al. 2026 (arXiv:2601.14050) and its code: K 20 of 128 experts, eight languages.
    Differs: the paper's shared experts are those of a pair, English and Chinese, where s < 0.7 of both means that both
    use it; here all languages of the trace must. K scales with E.
    """
    if len(counted.count_GLE) < 3:
        raise DataError(f"the rule `fraction` needs three languages or more, {len(counted.count_GLE)} given")
    kept_GLE, part_GLE = kept_shares(counted, config.keep)
    shared_LE = np.all((kept_GLE > 0) & (part_GLE < config.shared), axis=0)
    return Sharing(part_GLE > config.exclusive, shared_LE)


def kept_shares(counted: Counted, keep: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Share of each language's tokens that chose an expert, zero outside its K most used of the layer; and the same
    over its sum over languages; both [G, L, E]. keep: K; default 20 E / 128.
    """
    share_GLE = token_share(counted.count_GLE, counted.top_k_L)
    keep_L = _per_layer(counted, keep, 20 / 128)
    kept_GLE = np.stack([np.where(_largest(share_LE, keep_L), share_LE, 0) for share_LE in share_GLE])
    total_LE = kept_GLE.sum(axis=0)
    return kept_GLE, kept_GLE / np.where(total_LE > 0, total_LE, 1)


def specificity(counted: Counted, config: SpecificityConfig) -> Sharing:
    """A fixed number of experts: the most specific of the shallow and deep layers, the most even of the middle.

        S_g(e) = a_g(e) / mean_g a(e), ranked by S (1 + alpha a_g)             shallow and deep zone: exclusive to g
        O(e)   = 1 / (1 + sd_g a(e) / mean_g a(e)), ranked by O (1 + alpha mean_g a(e))   middle zone: shared

    a is the share of tokens; zones are 37.5, 25 and 37.5 % of the layers, with 35, 25 and 40 % of the budget; a ranking
    runs over a whole zone. What rounding leaves, and what does not fit a zone, goes to the zone with most room.
    Source: Zheng et al. 2026 (RISE, arXiv:2604.03592) and its code (alpha 10; 128 of 6144 experts for Qwen3-30B-A3B).
    Differs: how zones and budgets round is ours. The rule finds its number whatever the text.
    """
    share_GLE = token_share(counted.count_GLE, counted.top_k_L)
    mean_LE, real_LE = share_GLE.mean(axis=0), counted.real_LE
    safe_LE = np.where(mean_LE > 0, mean_LE, 1)
    zones = _zones(len(mean_LE))
    budgets = _budgets(config, [int(real_LE[zone].sum()) for zone in zones], int(real_LE.sum()))
    even_LE = (mean_LE > 0) / (1 + share_GLE.std(axis=0) / safe_LE) * (1 + config.alpha * mean_LE)
    shared_LE = _top_of_zone(np.where(real_LE, even_LE, -1), zones[1], budgets[1])
    own_GLE = np.where(real_LE, share_GLE / safe_LE * (1 + config.alpha * share_GLE), -1)
    outer = (0, 2)
    exclusive = [sum(_top_of_zone(own_LE, zones[z], budgets[z]) for z in outer) > 0 for own_LE in own_GLE]
    return Sharing(np.array(exclusive), shared_LE)


def contrast(counted: Counted, config: ContrastConfig) -> Sharing:
    """Exclusive: far more tokens of the language choose the expert than of the reference; no shared experts.

        Delta_g(e) = K C_g(e) / sum C_g - K C_ref(e) / sum C_ref;   e is g's iff Delta_g > tau

    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), multilingual experts; tau 0.25 to 0.5.
    Differs: pooled over the text (`dragoman.routing.contrast` takes the mean over sequences). An expert may be that of
    several languages, and the reference has none.
    """
    share_GLE = token_share(counted.count_GLE, counted.top_k_L)
    more_GLE = share_GLE - share_GLE[counted.reference] > config.tau
    return Sharing(more_GLE, np.zeros(more_GLE.shape[1:], dtype=bool))


class Rule(NamedTuple):
    """A rule's settings, its function and the fewest languages that it can compare."""

    config: type
    find: Callable[[Counted, Any], Sharing]
    least: int
    source: str


RULES: dict[str, Rule] = {
    "gap": Rule(GapConfig, gap, 2, "SSFT (arXiv:2605.29714)"),
    "fraction": Rule(FractionConfig, fraction, 3, "shared-expert steering (arXiv:2601.14050)"),
    "specificity": Rule(SpecificityConfig, specificity, 2, "RISE (arXiv:2604.03592)"),
    "contrast": Rule(ContrastConfig, contrast, 2, "Routing Steering (arXiv:2510.04694)"),
}


def find(name: str, counted: Counted, config: Any = None) -> Sharing:
    """What the rule of that name selects; default settings where none are given.

    Raises ConfigError for a rule that does not exist, DataError for too few languages or one without a token.
    """
    if name not in RULES:
        raise ConfigError(f"there is no rule {name!r} for exclusive and shared experts; rules are {', '.join(RULES)}")
    rule, languages = RULES[name], len(counted.count_GLE)
    if languages < rule.least:
        raise DataError(f"the rule {name!r} needs {rule.least} languages or more, {languages} given; capture another")
    return rule.find(counted, config or rule.config())


def found_in_halves(
    name: str, counted: Counted, language: int, segment_counts_NLE: np.ndarray, seed: int, splits: int = 5
) -> np.ndarray:
    """Experts that the rule gives to one half of a language and not to the other, where both halves stand as languages
    beside the rest; [S], mean of the two halves.

    language: row of the language in `counted`; segment_counts_NLE: its segments or documents.
    Raises DataError as `find` does, or for fewer than two segments.
    Source: none; our placebo.
    """
    rest_GLE = np.delete(counted.count_GLE, language, axis=0)
    reference = 0 if language == counted.reference else counted.reference + 2 - (language < counted.reference)

    def differ(first_SLE: np.ndarray, second_SLE: np.ndarray) -> np.ndarray:
        found = []
        for a_LE, b_LE in zip(first_SLE, second_SLE, strict=True):
            tables_GLE = np.concatenate([np.stack([a_LE, b_LE]), rest_GLE])
            halves = Counted(tables_GLE, counted.num_experts_L, counted.top_k_L, reference)
            first_LE, second_LE = find(name, halves).exclusive_GLE[:2]
            found.append((first_LE ^ second_LE).sum() / 2)
        return np.array(found)

    return half_placebo(differ, segment_counts_NLE, seed=seed, splits=splits)


def _per_layer(counted: Counted, given: int | None, portion: float) -> np.ndarray:
    if given is not None:
        return np.minimum(given, counted.num_experts_L)
    return np.maximum(1, np.round(counted.num_experts_L * portion)).astype(int)


def _largest(value_LE: np.ndarray, number_L: np.ndarray) -> np.ndarray:
    """The so many largest of each layer, as bool; of equal values the smaller id."""
    rank_LE = np.argsort(np.argsort(-value_LE, axis=-1, kind="stable"), axis=-1, kind="stable")
    return rank_LE < number_L[:, None]


def _top_of_zone(value_LE: np.ndarray, zone: slice, number: int) -> np.ndarray:
    chosen_LE = np.zeros(value_LE.shape, dtype=bool)
    part = value_LE[zone]
    chosen = np.zeros(part.size, dtype=bool)
    chosen[np.argsort(-part.ravel(), kind="stable")[:number]] = True
    chosen_LE[zone] = chosen.reshape(part.shape)
    return chosen_LE


def _zones(num_layers: int) -> tuple[slice, slice, slice]:
    edge = round(EDGE * num_layers)
    return slice(0, edge), slice(edge, num_layers - edge), slice(num_layers - edge, num_layers)


def _budgets(config: SpecificityConfig, room: list[int], total: int) -> list[int]:
    wanted = min(max(1, round(total / 48)) if config.experts is None else config.experts, total)
    given = [min(int(wanted * share + ROUNDING), r) for share, r in zip(config.budget, room, strict=True)]
    for _ in range(wanted - sum(given)):
        given[max(range(3), key=lambda z: room[z] - given[z])] += 1
    return given
