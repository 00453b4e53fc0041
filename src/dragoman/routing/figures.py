"""Curves over depth, and systems beside each other.

Shape letters: L MoE layers, E experts (the largest number over layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dragoman.routing.drawing import (
    KNOWN,
    MUTED,
    SYSTEM_COLOURS,
    SYSTEM_MARKERS,
    TARGET,
    Cast,
    Curves,
    Limits,
    Values,
    axes_with_margins,
    free_places,
    inline,
    label_ends,
    layer_axis,
    panels,
)

FEW = 6
"""So many languages, or fewer, all have their intervals drawn."""
MANY = 20
"""From so many languages on, those not singled out are drawn fainter."""
MOST_NAMED_EXPERTS = 6


def _over_layers(axes: Axes, layer_ids: Sequence[int]) -> None:
    layer_axis(axes, layer_ids)
    last = len(layer_ids) - 1
    axes.set_xlim(0 if last else -0.5, last or 0.5)


def _language_curves(
    curves: Curves, layer_ids: Sequence[int], cast: Cast, intervals: Mapping[str, Limits], floor: float | None
) -> tuple[Figure, Axes, Callable[[], None]]:
    """Axes with one line a language; the function returned puts on the names once the axes' limits stand."""
    height, dot = 250, "o" if len(layer_ids) == 1 else ""
    faint: Any = {"alpha": 0.6, "linewidth": 0.8} if len(curves) > MANY else {}
    figure, axes = axes_with_margins(height, left=48, right=92)
    for tag, (low_L, high_L) in intervals.items():
        if tag in curves and (cast.marked(tag) or len(curves) <= FEW):
            axes.fill_between(range(len(layer_ids)), low_L, high_L, color=cast.colour(tag), alpha=0.25, linewidth=0)
    for tag, curve_L in curves.items():
        axes.plot(range(len(layer_ids)), curve_L, marker=dot, **cast.line(tag) | ({} if cast.marked(tag) else faint))
    _over_layers(axes, layer_ids)
    axes.set_ylim(bottom=floor)
    return figure, axes, lambda: label_ends(axes, height, {g: curve_L[-1] for g, curve_L in curves.items()}, cast)


@inline
def divergence_curves(
    divergence: Curves,
    layer_ids: Sequence[int],
    cast: Cast,
    intervals: Mapping[str, Limits] | None = None,
    placebo_L: Values | None = None,
    label: str = "divergence (D_H-JS)",
    band: Sequence[int] | None = None,
) -> tuple[Figure, str]:
    """A distance of routing over depth, one line a language.

    divergence: {language: [L]}; intervals: {language: ([L], [L])}, drawn for target and parent, and for all where
        there are few; placebo_L: the distance between two halves of one language, a band from zero; band: first and
        last layer (model layers) of the middle, shaded.
    """
    figure, axes, name_lines = _language_curves(divergence, layer_ids, cast, intervals or {}, floor=0)
    if placebo_L is not None:
        axes.fill_between(range(len(layer_ids)), 0, placebo_L, color=MUTED, alpha=0.45, linewidth=0)
    if band is not None:
        rows = [i for i, layer in enumerate(layer_ids) if band[0] <= layer <= band[1]]
        axes.axvspan(rows[0] - 0.3, rows[-1] + 0.3, color=MUTED, alpha=0.1, linewidth=0, zorder=0)
        _over_layers(axes, layer_ids)
    axes.set_ylabel(label)
    name_lines()
    return figure, f"{label} by layer, one line a language"


@inline
def entropy_curves(
    entropy: Curves, layer_ids: Sequence[int], cast: Cast, intervals: Mapping[str, Limits] | None = None
) -> tuple[Figure, str]:
    """Effective number of experts, exp(H), over depth, one line a language.

    entropy: {language: [L]} in nats; intervals: {language: ([L], [L])} of exp(H).
    """
    effective = {tag: np.exp(entropy_L) for tag, entropy_L in entropy.items()}
    figure, axes, name_lines = _language_curves(effective, layer_ids, cast, intervals or {}, floor=None)
    axes.set_ylabel("effective experts, exp(H)")
    name_lines()
    return figure, "Effective number of experts by layer, one line a language"


@inline
def specialisation_curve(
    specialisation_L: Values,
    layer_ids: Sequence[int],
    interval: Limits | None = None,
    placebo_L: Values | None = None,
) -> tuple[Figure, str]:
    """I(L;E) / H(L) over depth with its interval; placebo_L: the same between halves of one language."""
    figure, axes = axes_with_margins(180, left=52)
    if interval is not None:
        axes.fill_between(range(len(layer_ids)), *interval, color=KNOWN, alpha=0.25, linewidth=0)
    if placebo_L is not None:
        axes.fill_between(range(len(layer_ids)), 0, placebo_L, color=MUTED, alpha=0.45, linewidth=0)
    _depth_line(axes, specialisation_L)
    axes.set_ylabel("specialisation")
    layer_axis(axes, layer_ids)
    return figure, "Language specialisation by layer"


def _depth_line(axes: Axes, values_L: Values) -> None:
    """One line over layers; dots where they would not touch."""
    axes.plot(values_L, color=KNOWN, linewidth=2, marker="o" if len(values_L) <= 30 else "", markersize=4)
    axes.set_ylim(bottom=0)


@inline
def load_balance(
    variation_L: Values, dead_L: Sequence[int], layer_ids: Sequence[int], interval: Limits | None = None
) -> tuple[Figure, str]:
    """Coefficient of variation of the experts' load over depth with its interval, and beneath it the dead experts."""
    figure, (upper, lower) = panels((130, 55), left=52)
    if interval is not None:
        upper.fill_between(range(len(layer_ids)), *interval, color=KNOWN, alpha=0.25, linewidth=0)
    _depth_line(upper, variation_L)
    upper.set_ylabel("variation (CV)")
    lower.bar(range(len(layer_ids)), dead_L, color=TARGET, width=0.7)
    lower.set_ylim(0, max(1, *dead_L) * 1.1)
    lower.set_yticks([0, max(1, *dead_L)])
    lower.set_ylabel("dead\nexperts")
    for axes in (upper, lower):
        layer_axis(axes, layer_ids)
        axes.set_xlim(-0.6, len(layer_ids) - 0.4)
    upper.set_xlabel("")
    upper.tick_params(labelbottom=False)
    return figure, "Variation of the experts' load and number of dead experts by layer"


@inline
def contrast_depth(
    delta_LE: np.ndarray,
    layer_ids: Sequence[int],
    num_experts: Sequence[int],
    threshold: float | None = None,
    placebo_L: Values | None = None,
) -> tuple[Figure, str]:
    """Contrast of a text with the general corpus, Delta, over depth: the range of experts, and those past a threshold.

    delta_LE: share of tokens that choose the expert, text minus corpus; columns from num_experts on are padding.
    threshold: experts beyond it either way are marked, the farthest named; placebo_L: largest size of Delta between
        halves of one text, a band about zero.
    """
    height, rows = 230, range(len(layer_ids))
    figure, axes = axes_with_margins(height, left=52)
    real = [d_E[:n] for d_E, n in zip(delta_LE, num_experts, strict=True)]
    axes.vlines(rows, [d.min() for d in real], [d.max() for d in real], color=MUTED, linewidth=1)
    quantiles = np.array([np.quantile(d, [0.05, 0.95]) for d in real])
    axes.vlines(rows, quantiles[:, 0], quantiles[:, 1], color=MUTED, linewidth=5 if len(rows) <= 30 else 3)
    if placebo_L is not None:
        axes.fill_between(rows, -np.asarray(placebo_L), placebo_L, color=MUTED, alpha=0.25, linewidth=0, step="mid")
    layer_axis(axes, layer_ids)
    axes.set_xlim(-0.6, len(layer_ids) - 0.4)
    axes.margins(y=0.12)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.set_ylabel("Δ, share of tokens")
    if threshold is not None:
        _past_threshold(axes, real, threshold, height)
    return figure, "Contrast of the experts' use by layer"


def _past_threshold(axes: Axes, real: list[np.ndarray], threshold: float, height: float) -> None:
    found = [(layer, int(e), float(d[e])) for layer, d in enumerate(real) for e in np.flatnonzero(abs(d) > threshold)]
    for sign, colour, mark in ((1, TARGET, "^"), (-1, KNOWN, "v")):
        axes.axhline(sign * threshold, color=colour, linewidth=0.9, linestyle=":")
        one_N2 = np.array([(layer, d) for layer, _, d in found if sign * d > 0]).reshape(-1, 2)
        axes.scatter(one_N2[:, 0], one_N2[:, 1], s=26, color=colour, marker=mark, zorder=3)
    named = sorted(found, key=lambda f: -abs(f[2]))[:MOST_NAMED_EXPERTS]
    texts = [str(expert) for _, expert, _ in named]
    free_places(axes, [(layer, d) for layer, _, d in named], texts, [(layer, d) for layer, _, d in found], height)


# ---- systems beside each other -------------------------------------------------------------------------------------


@inline
def quality_dots(
    values: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
    label: str,
    names: Mapping[str, str],
    digits: int = 3,
) -> tuple[Figure, str]:
    """One dot a system with its interval [low, high], its value at the right; a line at the first system's value."""
    shown = {s: names.get(s, s) for s in values}
    left = 12 + 6 * max(map(len, shown.values()))
    figure, axes = axes_with_margins(24 * len(values), left=left, right=56, bottom=38)
    for row, (system, value) in enumerate(values.items()):
        low, high = intervals.get(system, (value, value))
        mark: Any = {"color": SYSTEM_COLOURS[row % 8], "marker": SYSTEM_MARKERS[row % 8]}
        axes.errorbar(
            [value], [row], xerr=[[max(value - low, 0)], [max(high - value, 0)]], capsize=3, markersize=6, **mark
        )
        axes.text(1.03, row, f"{value:.{digits}f}", transform=axes.get_yaxis_transform(), va="center")
    axes.axvline(next(iter(values.values())), color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_yticks(range(len(values)), list(shown.values()))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label)
    return figure, f"{label}, one dot a system"


@dataclass(frozen=True)
class Trade:
    """What one system gained and cost."""

    gain: tuple[float, float, float]
    """Bits per byte of the target: value, low, high."""
    cost: tuple[float, float, float]
    """Change in bits per byte of the known languages: mean, least, largest."""


@inline
def frontier(trades: Mapping[str, Trade], names: Mapping[str, str], target: str) -> tuple[Figure, str]:
    """Bits per byte of the target against the change on the known languages: a point a system.

    The upright bar is the interval of the target's value, the level bar reaches from the least to the most changed
    known language. Low and left is best.
    """
    lines = -(-len(trades) // 2)
    figure, axes = axes_with_margins(230, left=52, top=14 + 15 * lines, bottom=40)
    for i, (system, trade) in enumerate(trades.items()):
        (y, y_low, y_high), (x, x_low, x_high) = trade.gain, trade.cost
        bars: Any = {
            "xerr": [[max(x - x_low, 0)], [max(x_high - x, 0)]],
            "yerr": [[max(y - y_low, 0)], [max(y_high - y, 0)]],
        }
        mark: Any = {"color": SYSTEM_COLOURS[i % 8], "marker": SYSTEM_MARKERS[i % 8]}
        axes.errorbar([x], [y], **bars, markersize=7, linestyle="", label=names.get(system, system), **mark)
    axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=":")
    axes.margins(0.08)
    axes.locator_params(nbins=6)
    axes.set_xlabel("change on known languages, bits per byte")
    axes.set_ylabel(f"{target}, bits per byte")
    axes.text(0.02, 0.03, "↙ better", transform=axes.transAxes, color=MUTED, fontsize=9.5)
    place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.1, 1.01), "ncols": 2, "borderpad": 0}
    axes.legend(**place, frameon=False, fontsize=9.5, handletextpad=0.3)
    return figure, "Quality in the target language against the change on known languages"
