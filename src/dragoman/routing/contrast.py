"""Contrast: which experts a text set (a task, a domain) uses more than the general corpus does.

Shape letters: L MoE layers, E experts, N segments or documents, R resamples, S splits.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import DataError
from dragoman.routing.resampling import Interval, bootstrap_interval, by_document, half_placebo
from dragoman.routing.stats import token_share

FEWEST_TEXTS = 20
"""Texts of each side from which on a mean over texts is given: its standard error is then at most 0.5 / sqrt(20), 0.11
of tokens, against a tau of 0.25 to 0.5."""


@dataclass(frozen=True)
class Contrast:
    """Delta of every expert, how sure it is, and what it would be without any difference."""

    delta: Interval
    """[L, E], in shares of tokens, -1 to 1."""
    placebo_SLE: np.ndarray
    """Delta between two halves of the general corpus."""

    def specialised(self, tau: float = 0.3) -> np.ndarray:
        """Experts with Delta above tau; bool [L, E]. Source: Routing Steering, tau 0.25 to 0.5."""
        return self.delta.value > tau


def expert_frequency(count_NLE: np.ndarray, top_k_L: ArrayLike) -> np.ndarray:
    """Mean over texts of the share of tokens that chose each expert, mean_n K C_n(e) / sum_e C_n(e); [L, E].

    count_NLE: counts of each text alone. Every layer sums to K; a short text weighs as much as a long one.
    Raises DataError for a text without a token.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), expert identification.
    """
    return _frequencies(count_NLE, top_k_L).mean(axis=0)


def contrast(text_NLE: np.ndarray, general_NLE: np.ndarray, top_k_L: ArrayLike) -> np.ndarray:
    """Delta = frequency in the text set - frequency in the general corpus; [L, E], every layer sums to 0.

    Raises DataError as `expert_frequency` does.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694); counts, not weights, as there.
    """
    return expert_frequency(text_NLE, top_k_L) - expert_frequency(general_NLE, top_k_L)


def contrast_with_interval(
    text_NLE: np.ndarray,
    general_NLE: np.ndarray,
    top_k_L: ArrayLike,
    *,
    seed: int,
    resamples: int = 200,
    documents: Sequence[Hashable] | None = None,
    general_documents: Sequence[Hashable] | None = None,
) -> Contrast:
    """`contrast` with bootstrap intervals over texts, or over documents where their names are given, and a placebo.

    The two sides are resampled apart. The placebo is Delta between two halves of the general corpus.
    Raises DataError for a side with fewer than 20 texts or a text without a token.
    """
    if short := [
        f"{n} {side}"
        for side, n in (("in the text set", len(text_NLE)), ("in general", len(general_NLE)))
        if n < FEWEST_TEXTS
    ]:
        raise DataError(
            f"a contrast needs {FEWEST_TEXTS} texts or more on both sides, there are {', '.join(short)}; give more"
        )
    shape = general_NLE.shape[1:]
    text, general = (
        _grouped(_frequencies(count_NLE, top_k_L), names)
        for count_NLE, names in ((text_NLE, documents), (general_NLE, general_documents))
    )

    def delta(a_RX: np.ndarray, b_RX: np.ndarray) -> np.ndarray:
        return (a_RX[:, :-1] / a_RX[:, -1:] - b_RX[:, :-1] / b_RX[:, -1:]).reshape(-1, *shape)

    unit = "segments" if documents is None and general_documents is None else "documents"
    interval = bootstrap_interval(delta, text, general, seed=seed, resamples=resamples, paired=False, unit=unit)
    return Contrast(interval, half_placebo(delta, general, seed=seed))


def _frequencies(count_NLE: np.ndarray, top_k_L: ArrayLike) -> np.ndarray:
    return token_share(count_NLE, top_k_L, [f"text {n}" for n in range(len(count_NLE))])


def _grouped(frequency_NLE: np.ndarray, documents: Sequence[Hashable] | None) -> np.ndarray:
    """One row a segment or document: its frequencies, flat, and in the last column how many segments they sum."""
    flat = frequency_NLE.reshape(len(frequency_NLE), -1)
    with_number = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
    return with_number if documents is None else by_document(with_number, documents)
