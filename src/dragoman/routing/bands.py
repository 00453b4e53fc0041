"""The middle band: the layers between the two ends where languages part, by rule from the curve of divergence.

Shape letters: G languages, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import ConfigError, DataError

FRACTION = 1 / 3
"""How far above its minimum, as a share of the way up to the edge, the curve may be inside the band."""


@dataclass(frozen=True)
class Band:
    """A run of MoE layers, both ends included."""

    first: int
    """Model layer."""
    last: int
    """Model layer."""
    rows: tuple[int, ...]
    """Rows of the trace that it covers."""
    how: str
    """The rule with its numbers, or that it was set."""
    valley: bool
    """Whether the smoothed curve is higher at both edges than inside, so that there is a middle to speak of."""


def window_of(num_layers: int) -> int:
    """Layers that are averaged: an odd number, about a fifth of the depth (9 of 48, 3 of 16, 1 of 8)."""
    return 2 * (num_layers // 10) + 1


def smoothed(curve_L: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean; at the ends over the layers that are there."""
    half = window // 2
    return np.array([curve_L[max(0, i - half) : i + half + 1].mean() for i in range(len(curve_L))])


def middle_band(divergence_GL: np.ndarray, layer_ids: Sequence[int], fraction: float = FRACTION) -> Band:
    """The run of layers about the smoothed curve's minimum in which it stays low.

        c      = moving mean over layers of mean_g D_g(l)
        inside = c(l) <= min c + fraction (edge - min c),  edge: the first layer's c to the left of the minimum, the
                 last layer's to the right

    divergence_GL: D_H-JS from the reference, of the other languages. layer_ids: model layer of each row, ascending.
    Raises DataError for fewer than three layers, which have no middle.
    Source: Deng et al. 2026 (RA-MoE, arXiv:2605.28306) and Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694)
    profile and steer middle layers only; neither says how the band is found (8-35 of 48 for Qwen3-30B-A3B).
    Differs: this rule is ours. The raw curve has bumps that would cut a band in two, and each side has its own edge,
    because the last layers part more than the first. The fraction was set on one model, Qwen3-30B-A3B (6-38), where
    the bands of three papers are 8-35, 7-34 and 10-39; give a band of your own where one is published.
    """
    curve_L = np.asarray(divergence_GL).mean(axis=0)
    if len(curve_L) < 3:
        raise DataError(f"{len(curve_L)} MoE layers have no middle; a band needs three or more, or set one")
    window = window_of(len(curve_L))
    smooth_L = smoothed(curve_L, window)
    lowest = int(smooth_L.argmin())
    edge_L = np.where(np.arange(len(curve_L)) < lowest, smooth_L[0], smooth_L[-1])
    inside_L = smooth_L <= smooth_L[lowest] + fraction * (edge_L - smooth_L[lowest])
    first, last = lowest, lowest
    while first > 0 and inside_L[first - 1]:
        first -= 1
    while last < len(curve_L) - 1 and inside_L[last + 1]:
        last += 1
    how = f"divergence, mean of {window} layers, within {fraction:.2f} of the way from its minimum to the edges"
    valley = first > 0 and last < len(curve_L) - 1
    return Band(layer_ids[first], layer_ids[last], tuple(range(first, last + 1)), how, valley)


def given_band(first: int, last: int, layer_ids: Sequence[int]) -> Band:
    """A band that somebody set, by model layers, both included.

    Raises ConfigError for layers that are no MoE layers or stand the wrong way round.
    """
    known = sorted(set(layer_ids))
    if first > last or not {first, last} <= set(known):
        raise ConfigError(
            f"the middle band {first} to {last} does not fit; give two of the MoE layers "
            f"{', '.join(map(str, known))}, the lower first"
        )
    rows = tuple(row for row, layer in enumerate(layer_ids) if first <= layer <= last)
    return Band(first, last, rows, "as set", valley=first > known[0] and last < known[-1])
