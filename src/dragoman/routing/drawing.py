"""What all figures share: SVG text that stands in a page, no files, no pyplot, the same bytes for the same numbers.

Shape letters: L MoE layers, N labels.

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
Values = Sequence[float] | np.ndarray
"""One number a layer, [L]."""
Limits = tuple[Values, Values]
"""Lower and upper bounds."""
Curves = Mapping[str, Values]
"""Language -> its value in each layer, [L]."""


@dataclass(frozen=True)
class Cast:
    """Who the languages are: how the figures tell them apart."""

    known: Sequence[str] = ()
    """Languages that the model was trained on; empty where that is not known, and then all are drawn alike."""
    target: str | None = None
    parent: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    """Tag -> name; a tag without one, or with a long one, stands for itself."""

    def name(self, tag: str) -> str:
        """What stands beside a line or a row."""
        name = self.names.get(tag) or tag
        return name if len(name) <= LONGEST_NAME else tag

    def marked(self, tag: str) -> bool:
        """Whether the figures single it out."""
        return tag in (self.target, self.parent)

    def seen(self, tag: str) -> bool:
        """False for languages that the model is known not to have been trained on."""
        return not self.known or tag in self.known

    def colour(self, tag: str) -> str:
        """Vermilion target, green parent, blue known, grey unseen."""
        special = {self.parent: PARENT, self.target: TARGET}
        return special.get(tag) or (KNOWN if self.seen(tag) else UNSEEN)

    def line(self, tag: str) -> dict[str, Any]:
        """How its line is drawn."""
        special = self.marked(tag)
        dash: Any = "-" if tag == self.target or self.seen(tag) else (0, (4, 2))
        return {
            "color": self.colour(tag),
            "linewidth": 2.4 if special else 1.2,
            "linestyle": (0, (7, 1.2, 1.6, 1.2)) if tag == self.parent else dash,
            "zorder": 3 if special else 2,
        }


def inline(draw: Callable[P, tuple[Figure, str]]) -> Callable[P, str]:
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


def axes_with_margins(
    height: float, left: float = 44, right: float = 12, top: float = 10, bottom: float = 38
) -> tuple[Figure, Axes]:
    """One pair of axes with margins in units of the picture; height is that of the axes alone."""
    total = height + top + bottom
    figure = Figure(figsize=(WIDTH / 72, total / 72))
    return figure, figure.add_axes((left / WIDTH, bottom / total, (WIDTH - left - right) / WIDTH, height / total))


def panels(heights: Sequence[float], left: float = 44, right: float = 12) -> tuple[Figure, list[Axes]]:
    """Axes one above the other, of these heights, with a common margin at the foot."""
    gap, top, bottom = 10, 8, 38
    total = sum(heights) + gap * (len(heights) - 1) + top + bottom
    figure = Figure(figsize=(WIDTH / 72, total / 72))
    axes, y = [], total - top
    for height in heights:
        y -= height
        axes.append(figure.add_axes((left / WIDTH, y / total, (WIDTH - left - right) / WIDTH, height / total)))
        y -= gap
    return figure, axes


def layer_axis(axes: Axes, layer_ids: Sequence[int]) -> None:
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


def label_ends(axes: Axes, height: float, ends: Mapping[str, float], cast: Cast) -> None:
    """Names at the right ends of lines, apart from each other; where not all fit, the highlighted and an even rest."""
    first = [g for g in ends if cast.marked(g)]
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


PLACES = [(1, 0), (-1, 0), (1, 8), (-1, 8), (1, -8), (-1, -8), (0, 10), (0, -10), (0, 19), (0, -19), (1, 16), (-1, -16)]
"""Where a label may stand beside its point: side (of the label's width), height above it."""
TAKEN, CROWDED = 10_000, 4


def free_places(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], others: Sequence[Any], height: float
) -> None:
    """Write each text beside its point, where it covers fewest points (`others`); left out where all are crowded.

    Coordinates are data; height is that of the axes in units of the picture. The axes' limits must stand.
    """
    width = axes.get_position().width * WIDTH
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    scale, origin = np.array([width / (x1 - x0), height / (y1 - y0)]), np.array([x0, y0])
    dots_N2 = (np.asarray(others, dtype=np.float64).reshape(-1, 2) - origin) * scale
    axes.set_xlim(x0, x1)
    axes.set_ylim(y0, y1)
    boxes: list[np.ndarray] = []
    for point, text in zip(points, texts, strict=True):
        at, half = (np.array(point) - origin) * scale, np.array([2.9 * len(text) + 1, 5.5])
        places = [at + np.array([side * (half[0] + 5), up]) for side, up in PLACES]
        best = min(places, key=lambda c: _crowding(c, half, dots_N2, boxes, (width, height)))
        if _crowding(best, half, dots_N2, boxes, (width, height)) >= CROWDED:
            continue
        boxes.append(np.array([best - half, best + half]))
        x, y = best / scale + origin
        axes.text(x, y, text, ha="center", va="center", fontsize=8.5, zorder=4)


def _crowding(
    centre: np.ndarray, half: np.ndarray, dots_N2: np.ndarray, boxes: Sequence[np.ndarray], size: tuple[float, float]
) -> float:
    """How much a label there would cover: points count once; `TAKEN` where it meets another label or the edge."""
    low, high = centre - half, centre + half
    covered = ((dots_N2 > low - 2) & (dots_N2 < high + 2)).all(axis=1).sum()
    texts = sum(bool((low < box[1]).all() and (high > box[0]).all()) for box in boxes)
    outside = bool((low < 0).any() or (high > size).any())
    return covered + TAKEN * (texts + outside)


def standalone(svg: str) -> str:
    """The SVG with plain colours for its CSS variables, for programs other than browsers."""
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", svg)
