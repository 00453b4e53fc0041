"""Statistics of routing: how a language spreads over experts, how far languages are apart, and how sure that is.

Shape letters: G languages, L MoE layers, E experts (the largest number over layers), N segments; `X` is any leading
axes. Entropies and divergences are in nats. Counts are slots: a token that chooses K experts fills K.
Layers with fewer than E experts have columns of padding, which are zero and never count: where the number of experts
matters it is given as `num_experts_L`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

from dragoman.errors import ConfigError, DataError
from dragoman.routing.resampling import Interval as Interval  # known by this place too
from dragoman.routing.resampling import bootstrap_interval as bootstrap_interval
from dragoman.routing.resampling import half_placebo
from dragoman.routing.trace import RoutingTrace

SMALLEST_DENOMINATOR = 1e-6
"""Clamp of D_H-JS where both distributions are uniform."""
SLOTS_PER_EXPERT = 10
"""Slots that a language must fill per expert of a layer; see `tokens_needed`."""


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
    return slot_share(count_XLE, rows, layer_ids) * np.asarray(top_k_L)[..., None]


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


def sequence_divergence_from(trace: RoutingTrace, reference: str = "en") -> dict[str, np.ndarray]:
    """`sequence_divergence` of every other language from `reference`: {language: [N, L]}.

    Raises DataError where the trace's text is not parallel, or it lacks the reference.
    """
    trace.index(reference)
    require_parallel(trace, "divergence per sequence")
    segments = trace.segment_chosen_NLE
    others = [g for g in trace.languages if g != reference]
    return {g: sequence_divergence(segments[g], segments[reference], trace.num_experts) for g in others}


def language_specialisation(
    count_XGLE: np.ndarray, rows: Sequence[str] | None = None, layer_ids: Sequence[int] | None = None
) -> np.ndarray:
    """I(L;E) / H(L) of each layer: how much of the language a slot's expert tells; [..., L] in [0, 1], no unit.

    With rows normalised first, p(language) = 1/G and I = H(mean_g p_g) - mean_g H(p_g), H(L) = ln G.
    Raises DataError for fewer than two languages, or one without a token in a layer.
    Source: SSFT (arXiv:2605.29714), language specialisation.
    Differs: every language weighs the same; the released code takes raw counts, which unequal token counts bias.
    """
    languages = count_XGLE.shape[-3]
    if languages < 2:
        raise DataError(f"language specialisation needs two languages or more, {languages} given; capture another")
    share_XGLE = slot_share(count_XGLE, rows, layer_ids)
    information_XL = entropy(share_XGLE.mean(axis=-3)) - entropy(share_XGLE).mean(axis=-2)
    return np.clip(information_XL / np.log(languages), 0, 1)


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


# ---- the noise floor, and how much text is enough -------------------------------------------------------------------


def split_half_placebo(
    segment_counts_NLE: np.ndarray, seed: int, num_experts_L: ArrayLike, splits: int = 20, most: int | None = None
) -> np.ndarray:
    """D_H-JS between two random halves of one language's segments: what sampling noise alone looks like; [splits, L].

    As `half_placebo`, `most` too; the noise shrinks about as 1/N. Raises DataError for fewer than two segments, or a
    half without a token in a layer.
    Source: none; the placebo that our figures carry.
    """

    def between(a_SLE: np.ndarray, b_SLE: np.ndarray) -> np.ndarray:
        return normalised_divergence(slot_share(a_SLE), slot_share(b_SLE), num_experts_L)

    return half_placebo(between, segment_counts_NLE, seed=seed, splits=splits, most=most)


def tokens_needed(num_experts_L: ArrayLike, top_k_L: ArrayLike) -> int:
    """Tokens that a language needs for statistics of its counts: 10 slots per expert in every layer.

        tokens = max over layers of 10 E / K

    By then sampling alone makes the JSD of two texts of one distribution about (E - 1) / 4n <= 0.025 nats for n slots
    each, and usage entropy at most (E - 1) / 2n <= 0.05 nats too low. Tokens of running text are not independent: this
    is the least, not enough, which is why every figure carries a placebo.
    Source: Miller 1955 (bias of plug-in entropy); the number 10 is ours.
    """
    return int(np.ceil(SLOTS_PER_EXPERT * np.asarray(num_experts_L) / np.asarray(top_k_L)).max())


def require_tokens(tokens: Mapping[str, int], num_experts_L: ArrayLike, top_k_L: ArrayLike) -> None:
    """DataError that names every text with fewer tokens than `tokens_needed`, and how many it has."""
    needed = tokens_needed(num_experts_L, top_k_L)
    if short := [f"{name} {n}" for name, n in tokens.items() if n < needed]:
        raise DataError(
            f"too few tokens: {', '.join(short)}; statistics of this model's routing need {needed} of each "
            f"({SLOTS_PER_EXPERT} slots per expert); give more text or leave them out"
        )


def require_parallel(trace: RoutingTrace, statistic: str) -> None:
    """DataError where the trace does not say that its segments are the same texts in all languages."""
    if not trace.about.get("parallel"):
        numbers = ", ".join(f"{g} {len(n)}" for g, n in trace.segment_chosen_NLE.items()) or "none kept"
        raise DataError(
            f"{statistic} compares segment i of one language with segment i of another, but the text of this trace is "
            f"not parallel (segments: {numbers}); give rows complete in all languages, or pool"
        )
