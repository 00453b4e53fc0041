"""Figures as SVG text that stands in a page: no files, no pyplot, the same bytes for the same numbers.

Shape letters: G languages, L MoE layers, E experts, N labels.

A figure is 380 units wide and scales to the width it is given, so its type is readable on a telephone. Its neutral
colours are CSS variables (--ink, --muted, --rule) with defaults; the others were chosen to differ in lightness and
in dash or marker too. Names are printed as they come, never read as mathematics.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from html import escape
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.optimize import isotonic_regression

from dragoman.record import sha256

WIDTH = 380
INK, MUTED, RULE = "#1f2328", "#6a7178", "#d3d7dc"
THEME = {INK: f"var(--ink, {INK})", MUTED: f"var(--muted, {MUTED})", RULE: f"var(--rule, {RULE})"}
KNOWN, UNSEEN, TARGET, PARENT = "#3b87c4", "#8b9198", "#d9541e", "#24855e"
SYSTEM_COLOURS = ("#8b9198", "#d9541e", "#3b87c4", "#b07d00", "#a8568f", "#1f8a66", "#7a6fd0", "#5aa9b8")
SYSTEM_MARKERS = "osD^vPX*"
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "dragoman", "text.parse_math": False, "axes.formatter.use_mathtext": False,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10.5, "axes.labelsize": 10.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.7, "text.color": INK,
    "xtick.labelsize": 10, "xtick.color": MUTED, "xtick.labelcolor": INK, "xtick.major.size": 3,
    "ytick.labelsize": 10, "ytick.color": MUTED, "ytick.labelcolor": INK, "ytick.major.size": 3,
}  # fmt: skip
LINE_HEIGHT = 12.5
LONGEST_NAME = 13
MOST_TICKS = 12
MOST_EXPERT_IDS = 40

P = ParamSpec("P")
Limits = tuple[Sequence[float], Sequence[float]]
"""Lower and upper bounds."""
Curves = Mapping[str, Sequence[float] | np.ndarray]
"""Language -> its value in each layer, [L]."""


@dataclass(frozen=True)
class Cast:
    """Who the languages are: how the figures tell them apart."""

    known: Sequence[str] = ()
    """Languages that the model was trained on."""
    target: str | None = None
    parent: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Tag -> name; a tag without one, or with a long one, stands for itself."""

    def name(self, tag: str) -> str:
        """What stands beside a line or a row."""
        name = self.names.get(tag) or tag
        return name if len(name) <= LONGEST_NAME else tag

    def colour(self, tag: str) -> str:
        """Vermilion target, green parent, blue known, grey unseen."""
        special = {self.parent: PARENT, self.target: TARGET}
        return special.get(tag) or (KNOWN if tag in self.known else UNSEEN)

    def line(self, tag: str) -> dict[str, Any]:
        """How its line is drawn."""
        special = tag in (self.target, self.parent)
        return {
            "color": self.colour(tag),
            "linewidth": 2.4 if special else 1.2,
            "linestyle": "-" if special or tag in self.known else (0, (4, 2)),
            "zorder": 3 if special else 2,
        }


def _inline(draw: Callable[P, tuple[Figure, str]]) -> Callable[P, str]:
    """Turn a function that draws (figure, description) into one that returns SVG text for a page."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        with matplotlib.rc_context(STYLE):
            figure, description = draw(*args, **kwargs)
            page = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(page, format="svg", transparent=True, metadata=nothing)
        return _for_page(page.getvalue(), description)

    return drawn


def _for_page(svg: str, description: str) -> str:
    """Without prologue and fixed size; ids that no other figure has; neutral colours as CSS variables."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    own = f"f{sha256(body)[:8]}-"
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}", body)
    for colour, variable in THEME.items():
        body = body.replace(colour, variable)
    head, rest = body.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} width="100%" role="img" aria-label="{escape(description)}">{rest}'


def _axes(
    height: float, left: float = 44, right: float = 12, top: float = 10, bottom: float = 38
) -> tuple[Figure, Axes]:
    """One pair of axes with margins in units of the picture; height is that of the axes alone."""
    total = height + top + bottom
    figure = Figure(figsize=(WIDTH / 72, total / 72))
    return figure, figure.add_axes((left / WIDTH, bottom / total, (WIDTH - left - right) / WIDTH, height / total))


def _layer_axis(axes: Axes, layer_ids: Sequence[int]) -> None:
    step = -(-len(layer_ids) // MOST_TICKS)
    axes.set_xticks(range(0, len(layer_ids), step), [str(i) for i in layer_ids[::step]])
    axes.set_xlabel("model layer")
    axes.grid(visible=False, axis="x")


def label_positions(wanted_N: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Places at least `gap` apart between low and high, in the order wanted, as near as least squares allow."""
    order_N = np.argsort(wanted_N, kind="stable")
    steps_N = gap * np.arange(len(wanted_N))
    near_N = isotonic_regression(np.asarray(wanted_N)[order_N] - steps_N).x
    placed_N = np.empty(len(wanted_N))
    placed_N[order_N] = np.clip(near_N, low, max(low, high - steps_N[-1])) + steps_N
    return placed_N


def _label_ends(axes: Axes, height: float, ends: Mapping[str, float], cast: Cast) -> None:
    """Names at the right ends of lines, apart from each other; where not all fit, the highlighted and an even rest."""
    first = [g for g in ends if g in (cast.target, cast.parent)]
    rest = sorted((g for g in ends if g not in first), key=ends.__getitem__)
    room = max(2, int(height // LINE_HEIGHT) - len(first))
    if len(rest) > room:
        rest = [rest[i] for i in np.linspace(0, len(rest) - 1, room).round().astype(int)]
    shown = [*first, *rest]
    low, high = axes.get_ylim()
    wanted_N = np.array([(ends[g] - low) / (high - low) * height for g in shown])
    for tag, want, place in zip(shown, wanted_N, label_positions(wanted_N, LINE_HEIGHT, 4, height), strict=True):
        shared: Any = {"transform": axes.transAxes, "color": cast.colour(tag)}
        axes.plot([1, 1.035], [want / height, place / height], clip_on=False, linewidth=0.6, **shared)
        weight = "bold" if tag in first else "normal"
        axes.text(1.045, place / height, cast.name(tag), va="center", fontsize=9.5, fontweight=weight, **shared)


def _language_curves(
    curves: Curves,
    layer_ids: Sequence[int],
    cast: Cast,
    intervals: Mapping[str, Limits],
    floor: float | None,
) -> tuple[Figure, Axes, Callable[[], None]]:
    """Axes with one line a language; the function returned puts on the names once the axes' limits stand."""
    height = 250
    figure, axes = _axes(height, right=92)
    for tag, (low_L, high_L) in intervals.items():
        if tag in (cast.target, cast.parent) and tag in curves:
            axes.fill_between(range(len(layer_ids)), low_L, high_L, color=cast.colour(tag), alpha=0.18, linewidth=0)
    for tag, curve_L in curves.items():
        axes.plot(range(len(layer_ids)), curve_L, **cast.line(tag))
    axes.set_xlim(0, max(len(layer_ids) - 1, 1))
    axes.set_ylim(bottom=floor)
    _layer_axis(axes, layer_ids)
    return figure, axes, lambda: _label_ends(axes, height, {g: curve_L[-1] for g, curve_L in curves.items()}, cast)


@_inline
def divergence_curves(
    divergence: Curves,
    layer_ids: Sequence[int],
    cast: Cast,
    intervals: Mapping[str, Limits] | None = None,
    placebo_L: Sequence[float] | None = None,
) -> tuple[Figure, str]:
    """Distance of routing from the reference over depth, one line a language.

    divergence: {language: [L]}; intervals: {language: ([L], [L])}, drawn for target and parent; placebo_L: the
        distance between two halves of the reference, a band from zero.
    """
    figure, axes, label = _language_curves(divergence, layer_ids, cast, intervals or {}, floor=0)
    if placebo_L is not None:
        axes.fill_between(range(len(layer_ids)), 0, placebo_L, color=MUTED, alpha=0.35, linewidth=0)
    axes.set_ylabel("divergence (D_H-JS)")
    label()
    return figure, "Divergence of routing by layer, one line a language"


@_inline
def entropy_curves(entropy: Curves, layer_ids: Sequence[int], cast: Cast) -> tuple[Figure, str]:
    """Effective number of experts, exp(H), over depth, one line a language; entropy: {language: [L]} in nats."""
    effective = {tag: np.exp(entropy_L) for tag, entropy_L in entropy.items()}
    figure, axes, label = _language_curves(effective, layer_ids, cast, {}, floor=None)
    axes.set_ylabel("effective experts, exp(H)")
    label()
    return figure, "Effective number of experts by layer, one line a language"


@_inline
def specialisation_curve(
    specialisation_L: Sequence[float], layer_ids: Sequence[int], interval: Limits | None = None
) -> tuple[Figure, str]:
    """I(L;E) / H(L) over depth with its interval."""
    figure, axes = _axes(180, left=52)
    if interval is not None:
        axes.fill_between(range(len(layer_ids)), *interval, color=KNOWN, alpha=0.25, linewidth=0)
    axes.plot(range(len(layer_ids)), specialisation_L, color=KNOWN, linewidth=2, marker="o", markersize=4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("specialisation")
    _layer_axis(axes, layer_ids)
    return figure, "Language specialisation by layer"


def _heat_axes(
    values_GX: np.ndarray, tags: Sequence[str], cast: Cast, scale: str, bottom: float = 32, above: Sequence[str] = ()
) -> tuple[Figure, Axes]:
    """A map with one row a language, rows of marks above and the colour scale below; the top 1% share a colour."""
    row = 15 if len(tags) <= 20 else 12.5
    height, top, foot = row * len(tags), 8 + 14 * len(above), bottom + 34
    left = 14 + 6.3 * max(map(len, [*above, *map(cast.name, tags)]))
    figure, axes = _axes(height, left=left, top=top, bottom=foot)
    highest = float(np.quantile(values_GX, 0.99)) or 1.0
    axes.imshow(values_GX, aspect="auto", interpolation="none", cmap="cividis", vmin=0, vmax=highest)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(tags)), [cast.name(g) for g in tags], fontsize=10 if row == 15 else 9.5)
    for text, tag in zip(axes.get_yticklabels(), tags, strict=True):
        marked = tag in (cast.target, cast.parent)
        style = "normal" if marked or tag in cast.known else "italic"
        text.set(color=cast.colour(tag) if marked else INK, fontweight="bold" if marked else "normal", fontstyle=style)
    limit = f"{'≥ ' * bool(values_GX.max() > highest)}{highest:.2g}"
    _colour_scale(figure, left / WIDTH, height + top + foot, limit, scale)
    return figure, axes


def _colour_scale(figure: Figure, left: float, total: float, limit: str, title: str) -> None:
    bar = figure.add_axes((left, 14 / total, 0.3, 8 / total))
    bar.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap="cividis", interpolation="none", extent=(0, 1, 0, 1))
    bar.set_xticks([0, 1], ["0", limit], fontsize=9)
    bar.set_yticks([])
    bar.tick_params(length=0, pad=2)
    bar.spines[:].set_visible(False)
    bar.grid(visible=False)
    bar.text(1.06, 0.5, title, transform=bar.transAxes, va="center", fontsize=9.5)


@_inline
def divergence_map(divergence: Curves, layer_ids: Sequence[int], cast: Cast) -> tuple[Figure, str]:
    """Distance of routing from the reference, languages (near to far) by layers; divergence: {language: [L]}."""
    tags = sorted(divergence, key=lambda g: float(np.mean(divergence[g])))
    values_GL = np.array([divergence[g] for g in tags], dtype=np.float64)
    figure, axes = _heat_axes(values_GL, tags, cast, "divergence (D_H-JS)")
    _layer_axis(axes, layer_ids)
    return figure, "Divergence of routing, languages by layers"


def similar_together(values_NX: np.ndarray) -> list[int]:
    """An order of the rows in which neighbours resemble each other: leaves of average linkage, optimally turned.

    Source: Bar-Joseph et al. 2001, "Fast optimal leaf ordering for hierarchical clustering".
    """
    if len(values_NX) < 3:
        return list(range(len(values_NX)))
    tree = linkage(values_NX, method="average")
    return leaves_list(optimal_leaf_ordering(tree, values_NX)).tolist()


@_inline
def expert_map(
    share_GE: np.ndarray, tags: Sequence[str], cast: Cast, planned: Mapping[str, Sequence[int]] | None = None
) -> tuple[Figure, str]:
    """Share of slots of each expert of one layer, in multiples of an even share, languages by experts.

    share_GE: sums to 1 over the layer's real experts; planned: {name of a plan: experts}, marked above their columns.
    Similar languages, and experts that similar languages use, stand together.
    """
    planned = planned or {}
    even_GE = share_GE * share_GE.shape[1]
    rows, columns = similar_together(np.sqrt(even_GE)), similar_together(np.sqrt(even_GE).T)
    values_GE = even_GE[rows][:, columns]
    ids = len(columns) <= MOST_EXPERT_IDS
    scale, bottom = "times an even share of slots", 46 if ids else 30
    figure, axes = _heat_axes(values_GE, [tags[i] for i in rows], cast, scale, bottom, above=list(planned))
    axes.set_xticks(range(len(columns)) if ids else [])
    axes.set_xticklabels(list(map(str, columns)) if ids else [], rotation=90, fontsize=8)
    axes.set_xlabel("expert" if ids else f"{len(columns)} experts")
    points = axes.get_position().height * figure.get_figheight() * 72
    for i, (name, experts) in enumerate(planned.items()):
        y, xs, colour = 1 + (8 + 14 * i) / points, [columns.index(e) for e in experts], SYSTEM_COLOURS[(i + 1) % 8]
        mark = "vDo^"[i % 4]
        axes.scatter(
            xs, [y] * len(xs), s=30, c=colour, marker=mark, transform=axes.get_xaxis_transform(), clip_on=False
        )
        axes.text(-0.02, y, name, transform=axes.transAxes, ha="right", va="center", fontsize=9, color=colour)
    return figure, "Share of slots, languages by experts"


@_inline
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
    figure, axes = _axes(24 * len(values), left=left, right=56, bottom=38)
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


@_inline
def frontier(trades: Mapping[str, Trade], names: Mapping[str, str], target: str) -> tuple[Figure, str]:
    """Bits per byte of the target against the change on the known languages: a point a system.

    The upright bar is the interval of the target's value, the level bar reaches from the least to the most changed
    known language. Low and left is best.
    """
    lines = -(-len(trades) // 2)
    figure, axes = _axes(230, left=52, top=14 + 15 * lines, bottom=40)
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
