"""Statistics of routing: how a language spreads over experts, how far languages are apart, and how sure that is.

Shape letters: G languages, L MoE layers, E experts (the largest number over layers), N segments, R resamples; `X` is
any leading axes. Entropies and divergences are in nats. Counts are slots: a token that chooses K experts fills K.
Layers with fewer than E experts have columns of padding, which are zero and never count: where the number of experts
matters it is given as `num_experts_L`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from dragoman.errors import ConfigError, DataError
from dragoman.routing.trace import RoutingTrace

SMALLEST_DENOMINATOR = 1e-6
"""Clamp of D_H-JS where both distributions are uniform."""
BLOCK_ELEMENTS = 1 << 22
"""Numbers that one block of resampled counts may hold: 32 MB."""


# ---- shares of one language ----------------------------------------------------------------------------------------


def slot_share(
    count_XLE: np.ndarray, rows: Sequence[str] | None = None, layer_ids: Sequence[int] | None = None
) -> np.ndarray:
    """Share of a layer's slots that each expert took: a = C / sum_e C; sums to 1 over E.

    count_XLE: times the expert was chosen, [..., L, E]; returns float64 of the same shape.
    rows, layer_ids: names of the first axis and of the layers, for the error message.
    Raises DataError that names every row and layer without a token.
    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), usage q; counts, as their code does.
    """
    slots_XL = count_XLE.sum(axis=-1)
    if not slots_XL.all():
        raise DataError(
            f"no token was routed {_empty_places(slots_XL, rows, layer_ids)}; capture more text of it or leave it out"
        )
    return count_XLE / slots_XL[..., None]


def _empty_places(slots_XL: np.ndarray, rows: Sequence[str] | None, layer_ids: Sequence[int] | None) -> str:
    num_layers = slots_XL.shape[-1]
    layer_ids = range(num_layers) if layer_ids is None else layer_ids
    slots_YL = slots_XL.reshape(-1, num_layers)
    places = []
    for row in np.flatnonzero((slots_YL == 0).any(axis=1)).tolist():
        empty = [str(layer_ids[i]) for i in np.flatnonzero(slots_YL[row] == 0).tolist()]
        where = "any layer" if len(empty) == num_layers else f"layer {', '.join(empty)}"
        places.append(f"for {rows[row] if rows is not None else f'row {row}'} in {where}")
    return ", ".join(places)


def token_share(
    count_XLE: np.ndarray,
    top_k_L: ArrayLike,
    rows: Sequence[str] | None = None,
    layer_ids: Sequence[int] | None = None,
) -> np.ndarray:
    """Share of tokens that chose each expert: K * C / sum_e C; sums to K over E. The measure of RISE and of steering.

    count_XLE: as in `slot_share`; top_k_L: experts chosen per token in each layer. Returns float64 [..., L, E].
    Raises DataError as `slot_share` does.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), expert identification; Zheng et al. 2026 (RISE,
    arXiv:2604.03592), activation a.
    Differs: pooled over the text; the steering paper takes the mean over sequences (feed single segments for that).
    """
    return slot_share(count_XLE, rows, layer_ids) * np.asarray(top_k_L)[:, None]


def entropy(share_XE: np.ndarray) -> np.ndarray:
    """Shannon entropy in nats, H = -sum_e p ln p, over the last axis: [..., E] -> [...]. From 0 to ln E.

    Source: SSFT (arXiv:2605.29714), usage entropy.
    """
    return entr(share_XE).sum(axis=-1)


@dataclass(frozen=True)
class LoadBalance:
    """How evenly the experts of each layer work; arrays [..., L]."""

    variation_XL: np.ndarray
    """Coefficient of variation of an expert's count: population standard deviation over mean. 0 is balanced."""
    dead_XL: np.ndarray
    """Number of experts that were never chosen."""


def load_balance(count_XLE: np.ndarray, num_experts_L: ArrayLike) -> LoadBalance:
    """Balance of each layer over its real experts; padding columns are left out.

    count_XLE: [..., L, E]; sum over languages first for the balance of a whole text.
    Raises DataError for a layer without a token.
    Source: coefficient of variation as in Shazeer et al. 2017 (arXiv:1701.06538), importance loss.
    Differs: per layer and on counts; the unsquared coefficient.
    """
    share_XLE = slot_share(count_XLE)
    experts_L = np.asarray(num_experts_L)
    real_LE = np.arange(share_XLE.shape[-1]) < experts_L[:, None]
    mean_L1 = 1 / experts_L[:, None]
    variance_XL = (real_LE * (share_XLE - mean_L1) ** 2).sum(axis=-1) / experts_L
    return LoadBalance(np.sqrt(variance_XL) * experts_L, (real_LE & (share_XLE == 0)).sum(axis=-1))


# ---- distance between languages ------------------------------------------------------------------------------------


def jensen_shannon(p_XE: np.ndarray, q_XE: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in nats, H(m) - (H(p) + H(q)) / 2 with m = (p + q) / 2; in [0, ln 2].

    p_XE, q_XE: distributions over the last axis, leading axes broadcast; [..., E] -> [...]. Equal to the square of
    SciPy's `jensenshannon` distance.
    Source: SSFT (arXiv:2605.29714), pairwise JSD.
    """
    excess_X = entropy((p_XE + q_XE) / 2) - (entropy(p_XE) + entropy(q_XE)) / 2
    return np.clip(excess_X, 0, np.log(2))


def normalised_divergence(p_XLE: np.ndarray, q_XLE: np.ndarray, num_experts_L: ArrayLike) -> np.ndarray:
    """D_H-JS = JSD(p, q) / (ln E - (H(p) + H(q)) / 2): the share of the possible divergence; in [0, 1], no unit.

    p_XLE, q_XLE: distributions [..., L, E]; num_experts_L: real experts of each layer (a number serves for all).
    Returns [..., L]. Two uniform distributions give 0 (the denominator is at least 1e-6).
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), divergence of routing.
    Differs: fed with shares of slots (counts); the paper's two versions take full-softmax or top-k weights.
    """
    spread_XL = (entropy(p_XLE) + entropy(q_XLE)) / 2
    possible_XL = np.maximum(np.log(num_experts_L) - spread_XL, SMALLEST_DENOMINATOR)
    return np.clip(jensen_shannon(p_XLE, q_XLE) / possible_XL, 0, 1)


def divergence_from(trace: RoutingTrace, reference: str = "en") -> dict[str, np.ndarray]:
    """Pooled D_H-JS of every other language from `reference`: {language: [L]}.

    Raises DataError where the trace lacks the reference, or a language has no token in a layer.
    Source, Differs: as `normalised_divergence`; pooled over the text where the paper averages over parallel sequences
    (`sequence_divergence` does that).
    """
    share_GLE = slot_share(trace.chosen_GLE, trace.languages, trace.layer_ids)
    reference_LE = share_GLE[trace.index(reference)]
    divergence_GL = normalised_divergence(share_GLE, reference_LE, trace.num_experts)
    return {g: d_L for g, d_L in zip(trace.languages, divergence_GL, strict=True) if g != reference}


def sequence_divergence(count_NLE: np.ndarray, reference_NLE: np.ndarray, num_experts_L: ArrayLike) -> np.ndarray:
    """D_H-JS of each segment from the same segment in the reference language: [N, L]; its mean over N is Div(language).

    count_NLE, reference_NLE: counts of n-way parallel segments in the same order (`RoutingTrace.segment_chosen_NLE`).
    Raises DataError where the numbers of segments differ or a segment has no token.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), Div.
    Differs: counts for weights, as `normalised_divergence`.
    """
    if len(count_NLE) != len(reference_NLE):
        raise DataError(
            f"{len(count_NLE)} segments were given against {len(reference_NLE)} of the reference, but segment i of "
            "both must be the same text; capture only the segments that all languages have"
        )
    names = [f"segment {n}" for n in range(len(count_NLE))]
    return normalised_divergence(slot_share(count_NLE, names), slot_share(reference_NLE, names), num_experts_L)


def language_specialisation(
    count_GLE: np.ndarray, rows: Sequence[str] | None = None, layer_ids: Sequence[int] | None = None
) -> np.ndarray:
    """I(L;E) / H(L) of each layer: how much of the language a slot's expert tells; [L] in [0, 1], no unit.

    With rows normalised first, p(language) = 1/G and I = H(mean_g p_g) - mean_g H(p_g), H(L) = ln G.
    Raises DataError for fewer than two languages, or one without a token in a layer.
    Source: SSFT (arXiv:2605.29714), language specialisation.
    Differs: every language weighs the same; the released code takes raw counts, which unequal token counts bias.
    """
    if len(count_GLE) < 2:
        raise DataError(f"language specialisation needs two languages or more, {len(count_GLE)} given; capture another")
    share_GLE = slot_share(count_GLE, rows, layer_ids)
    information_L = entropy(share_GLE.mean(axis=0)) - entropy(share_GLE).mean(axis=0)
    return np.clip(information_L / np.log(len(count_GLE)), 0, 1)


def layer_rows(trace: RoutingTrace, layers: Sequence[int]) -> list[int]:
    """Rows of the trace's arrays that belong to these model layers, in their order.

    Raises ConfigError that names the layers that have no router, and those that have.
    """
    if missing := sorted(set(layers) - set(trace.layer_ids)):
        raise ConfigError(f"no MoE layer {', '.join(map(str, missing))}; choose from {_listed(trace.layer_ids)}")
    return [row for layer in layers for row, known in enumerate(trace.layer_ids) if known == layer]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(layers))))


def routing_similarity(trace: RoutingTrace, layers: Sequence[int] | None = None) -> np.ndarray:
    """1 - JSD / ln 2 between every two languages, mean over model layers (default all): [G, G], 1 on the diagonal.

    Plain JSD, because its scale is the same for every pair: the denominator of D_H-JS grows as the pair concentrates
    on fewer experts, which would rank concentrated languages as near.
    Raises ConfigError for a layer that is not in the trace, DataError for a language without a token there.
    Source: SSFT (arXiv:2605.29714), JSD between languages.
    Differs: turned into a similarity and averaged over layers.
    """
    rows = list(range(len(trace.layer_ids))) if layers is None else layer_rows(trace, layers)
    share_GLE = slot_share(trace.chosen_GLE[:, rows], trace.languages, [trace.layer_ids[r] for r in rows])
    # One language against all at a time: all pairs at once would hold G * G * L * E numbers.
    return np.stack([1 - jensen_shannon(p_LE, share_GLE).mean(axis=-1) / np.log(2) for p_LE in share_GLE])


def vocabulary_overlap(a: Mapping[Hashable, int], b: Mapping[Hashable, int], weighted: bool = False) -> float:
    """How much of the tokenizer's vocabulary two texts share, in [0, 1].

    a, b: token -> times seen. By type: |Va & Vb| / |Va | Vb| over the tokens seen. `weighted`: sum over tokens of the
    smaller of the two relative frequencies.
    Raises DataError where a text has no token.
    Source: SSFT (arXiv:2605.29714), overlap of token vocabularies.
    Differs: the paper's formula is not released; both of these are our reading.
    """
    totals = sum(a.values()), sum(b.values())
    if not all(totals):
        raise DataError(f"vocabulary overlap needs tokens in both texts, {totals[0]} and {totals[1]} given; add text")
    if weighted:
        smaller = (min(n * totals[1], b.get(token, 0) * totals[0]) for token, n in a.items())
        return sum(smaller) / (totals[0] * totals[1])
    types_a, types_b = ({token for token, n in counts.items() if n} for counts in (a, b))
    return len(types_a & types_b) / len(types_a | types_b)


# ---- how sure ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval; arrays of the statistic's shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    signature: str
    """Everything that must match before two intervals may be compared."""


def bootstrap_interval(
    statistic: Callable[..., np.ndarray],
    *segment_counts_NLE: np.ndarray,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    kind: Literal["basic", "percentile"] = "basic",
) -> Interval:
    """Interval of a pooled statistic over resampled segments.

    statistic: takes one array of summed counts [R, L, E] per array given here, returns [R, ...].
    segment_counts_NLE: counts per segment, one array a language; all are resampled with the same draws, so n-way
        parallel segments stay paired. Memory: a float64 copy of each, and 32 MB for resamples.
    kind: `basic` reflects the quantiles about the value, [2v - q_high, 2v - q_low]; `percentile` takes them unchanged.
        Divergences of samples lie above those of the populations, and those of resamples above again: the basic
        interval takes that bias off, the percentile interval doubles it. Where noise makes up most of a value, the
        basic interval lies below the value, and its lower bound may fall below 0.
    Raises DataError where the numbers of segments differ or are below two.
    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, basic and percentile intervals.
    """
    num_segments = _same_length(segment_counts_NLE)
    flat = [counts.reshape(num_segments, -1).astype(np.float64) for counts in segment_counts_NLE]
    shape = segment_counts_NLE[0].shape[1:]

    def pooled(weight_RN: np.ndarray) -> np.ndarray:
        return statistic(*[(weight_RN @ counts).reshape(-1, *shape) for counts in flat])

    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // max(num_segments, flat[0].shape[1] * len(flat)))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    chance_N = np.full(num_segments, 1 / num_segments)
    drawn = np.concatenate([pooled(rng.multinomial(num_segments, chance_N, size=r).astype(np.float64)) for r in sizes])
    value = pooled(np.ones((1, num_segments)))[0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if kind == "basic":
        low, high = 2 * value - high, 2 * value - low
    signature = f"bootstrap:{kind}|level:{level}|resamples:{resamples}|segments:{num_segments}|seed:{seed}"
    return Interval(value, low, high, signature)


def _same_length(segment_counts_NLE: Sequence[np.ndarray]) -> int:
    lengths = [len(counts) for counts in segment_counts_NLE]
    if len(set(lengths)) != 1 or lengths[0] < 2:
        raise DataError(
            f"segments given: {', '.join(map(str, lengths))}; resampling needs the same segments for all, two or "
            "more; capture only the segments that all languages have"
        )
    return lengths[0]


def split_half_placebo(
    segment_counts_NLE: np.ndarray, seed: int, num_experts_L: ArrayLike, splits: int = 20
) -> np.ndarray:
    """D_H-JS between two random halves of one language's segments: what sampling noise alone looks like; [splits, L].

    Each half holds N/2 segments (one is left out where N is odd), so this is the noise of a comparison on half as
    much text: a cautious floor, which shrinks about as 1/N.
    Raises DataError for fewer than two segments, or a half without a token in a layer.
    Source: none; the placebo that our figures carry.
    """
    half = len(segment_counts_NLE) // 2
    if half < 1:
        raise DataError(f"two halves need at least 2 segments, {len(segment_counts_NLE)} given; capture more text")
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(splits):
        order_N = rng.permutation(len(segment_counts_NLE))
        halves.append([segment_counts_NLE[order_N[i * half : (i + 1) * half]].sum(axis=0) for i in (0, 1)])
    share_R2LE = slot_share(np.array(halves))
    return normalised_divergence(share_R2LE[:, 0], share_R2LE[:, 1], num_experts_L)
