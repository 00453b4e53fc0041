"""Experts of one token and of neighbouring tokens: co-activation over all pairs, and token consistency (Jaccard).

Shape letters: T tokens, K chosen per token, L MoE layers, E experts, N segments; `X` is any leading axes. Pair counts
[E, E] hold tokens that chose both experts, on the diagonal those that chose the one.
"""

from __future__ import annotations

import numpy as np

from dragoman.errors import DataError

STEPS = 1000
TOLERANCE = 1e-9


def pair_counts(chosen_TK: np.ndarray, num_experts: int) -> np.ndarray:
    """Tokens for which two experts were chosen together: all pairs, not neighbours in rank; int64 [E, E].

    chosen_TK: ids of the chosen experts. The diagonal has the tokens that chose each expert.
    Source: none published in full; released scripts count neighbours in rank only, which misses K - 2 of every K - 1.
    """
    hit_TE = np.zeros((len(chosen_TK), num_experts), dtype=np.int64)
    np.put_along_axis(hit_TE, np.asarray(chosen_TK), 1, axis=1)
    return hit_TE.T @ hit_TE


def expected_pairs(pairs_EE: np.ndarray) -> np.ndarray:
    """Pair counts if experts joined by their use alone: x_e x_f off the diagonal, with the row sums of the data.

    The diagonal is 0 in the result. Independence, n_e n_f / T, would be the wrong yardstick: a token chooses K
    *different* experts, so pairs fall below it even by lot.
    Raises DataError where no two experts were ever chosen together (top-1 routing).
    Source: Goodman 1968, quasi-independence in tables with empty cells; fitted by iterated proportional scaling.
    """
    observed_EE = _off_diagonal(pairs_EE)
    margin_E = observed_EE.sum(axis=1)
    if not margin_E.any():
        raise DataError("co-activation needs tokens that choose two experts or more; this layer's choose one")
    x_E = margin_E / np.sqrt(margin_E.sum())
    for _ in range(STEPS):
        fitted_E = x_E * (x_E.sum() - x_E)
        if np.abs(fitted_E - margin_E).max() <= TOLERANCE * margin_E.max():
            break
        x_E = x_E * np.sqrt(np.divide(margin_E, fitted_E, out=np.zeros_like(margin_E), where=fitted_E > 0))
    return _off_diagonal(np.outer(x_E, x_E))


def lift(pairs_EE: np.ndarray) -> np.ndarray:
    """Observed over expected pairs, [E, E]: above 1 two experts seek each other; nan where none are expected.

    Raises DataError as `expected_pairs` does.
    """
    expected_EE = expected_pairs(pairs_EE)
    empty_EE = np.full(expected_EE.shape, np.nan)
    return np.divide(_off_diagonal(pairs_EE), expected_EE, out=empty_EE, where=expected_EE > 0)


def pairing(pairs_XEE: np.ndarray) -> np.ndarray:
    """Share of pairs that would have to change for experts to join by use alone, sum |o - e| / 2 sum o; [...].

    Raises DataError as `expected_pairs` does.
    Source: none; total variation distance from quasi-independence.
    """
    flat = pairs_XEE.reshape(-1, *pairs_XEE.shape[-2:])
    found = [np.abs(_off_diagonal(p) - expected_pairs(p)).sum() / (2 * _off_diagonal(p).sum()) for p in flat]
    return np.array(found).reshape(pairs_XEE.shape[:-2])


def pairing_placebo(pairs_XEE: np.ndarray, seed: int) -> np.ndarray:
    """`pairing` of as many pairs drawn by lot from what is expected: what sampling alone makes of it; [...].

    Raises DataError as `expected_pairs` does.
    Source: none; parametric, because pair counts of single segments are not kept.
    """
    rng = np.random.default_rng(seed)
    flat = pairs_XEE.reshape(-1, *pairs_XEE.shape[-2:])
    return pairing(np.array([_drawn(p, rng) for p in flat])).reshape(pairs_XEE.shape[:-2])


def _drawn(pairs_EE: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    above_EE = np.triu(expected_pairs(pairs_EE), 1)
    number = int(np.triu(pairs_EE, 1).sum())
    drawn_EE = rng.multinomial(number, (above_EE / above_EE.sum()).ravel()).reshape(above_EE.shape)
    return drawn_EE + drawn_EE.T


def _off_diagonal(pairs_EE: np.ndarray) -> np.ndarray:
    return np.where(np.eye(len(pairs_EE), dtype=bool), 0.0, pairs_EE)


def token_consistency(chosen_TK: np.ndarray) -> float:
    """Mean Jaccard index |A & B| / |A | B| of the expert sets of every two tokens of one sequence, in one layer.

    chosen_TK: ids of the chosen experts of each token; memory grows with T^2. Two tokens or more.
    Raises DataError for fewer.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), per-token consistency.
    Differs: over all pairs of tokens; which pairs the paper takes we could not read.
    """
    num_tokens, k = chosen_TK.shape
    if num_tokens < 2:
        raise DataError(f"token consistency compares tokens, {num_tokens} given; give two or more")
    hit_TE = np.zeros((num_tokens, int(chosen_TK.max()) + 1))
    np.put_along_axis(hit_TE, chosen_TK, 1.0, axis=1)
    both_TT = hit_TE @ hit_TE.T
    jaccard_TT = both_TT / (2 * k - both_TT)
    return float((jaccard_TT.sum() - num_tokens) / (num_tokens * (num_tokens - 1)))


def consistency_sums(count_NLE: np.ndarray, top_k_L: np.ndarray) -> np.ndarray:
    """Per segment, summed over its pairs of tokens: size of what two tokens' expert sets share, and of both together.

    count_NLE: counts of each segment; top_k_L: experts per token. Returns [N, 2, L], the two sums that `consistency`
    divides; segments of one token add nothing.

    Exact from counts: an expert that n tokens chose is shared by n (n - 1) / 2 pairs, and of two sets of K that share i
    the union has 2 K - i.
    """
    count_NLE = count_NLE.astype(np.float64)
    top_k_L = np.asarray(top_k_L)
    tokens_NL = count_NLE.sum(axis=-1) / top_k_L
    shared_NL = (count_NLE * (count_NLE - 1)).sum(axis=-1) / 2
    union_NL = top_k_L * tokens_NL * (tokens_NL - 1) - shared_NL
    return np.stack([shared_NL, union_NL], axis=1)


def consistency(sums_X2L: np.ndarray) -> np.ndarray:
    """Token consistency from summed `consistency_sums`: shared over united experts of two tokens; [..., L].

    nan where no segment has two tokens.
    Source: as `token_consistency`.
    Differs: the ratio of sums over pairs, where that is the mean of ratios; it needs counts of segments only.
    """
    shared_XL, union_XL = sums_X2L[..., 0, :], sums_X2L[..., 1, :]
    return np.divide(shared_XL, union_XL, out=np.full_like(shared_XL, np.nan), where=union_XL > 0)
