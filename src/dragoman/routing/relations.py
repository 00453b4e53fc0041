"""Languages among each other: tree, overlap of vocabulary, cost of the tokenizer.

Shape letters: G languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from dragoman.routing.drawing import (
    INK,
    KNOWN,
    MUTED,
    TARGET,
    WIDTH,
    Cast,
    axes_with_margins,
    free_places,
    inline,
)

MOST_NAMED_PAIRS = 8
RASTER = 600
"""From so many points on, they are drawn as an image: a page with each as a mark of its own would be megabytes."""


def language_tree(distance_GG: np.ndarray) -> np.ndarray:
    """Average linkage of languages by a symmetric distance, leaves turned so that neighbours are alike.

    distance_GG: [G, G] with G of two or more. Returns SciPy's linkage matrix, [G - 1, 4].
    Source: Sokal & Michener 1958 (average linkage, UPGMA); Bar-Joseph et al. 2001 (order of leaves).
    """
    near = squareform((distance_GG + distance_GG.T) / 2, checks=False).clip(min=0)
    return linkage(near, method="average", optimal_ordering=True)


def _row_height(rows: int) -> float:
    return 15 if rows <= 20 else 12.5


def _name_rows(axes: Axes, tags: Sequence[str], cast: Cast, side: str) -> None:
    axes.set_yticks(range(len(tags)), [cast.name(g) for g in tags], fontsize=10 if len(tags) <= 20 else 9.5)
    axes.tick_params(axis="y", length=0, labelleft=side == "left", labelright=side == "right")
    for text, tag in zip(axes.get_yticklabels(), tags, strict=True):
        bold, plain = cast.marked(tag), cast.marked(tag) or cast.seen(tag)
        text.set(color=cast.colour(tag) if bold else INK, fontweight="bold" if bold else "normal")
        text.set(fontstyle="normal" if plain else "italic")


@inline
def language_dendrogram(
    distance_GG: np.ndarray, tags: Sequence[str], cast: Cast, placebo: float | None = None
) -> tuple[Figure, str]:
    """Which languages are routed alike: two branches join at the mean distance between their languages.

    distance_GG: symmetric, from 0; placebo: the distance between two halves of one language, a dotted line.
    """
    tree = dendrogram(language_tree(distance_GG), no_plot=True)
    order, height = [tags[i] for i in tree["leaves"]], _row_height(len(tags)) * len(tags)
    right = 14 + 6.3 * max(len(cast.name(g)) for g in tags)
    figure, axes = axes_with_margins(height, left=14, right=right, top=8 if placebo is None else 20)
    for level, row in zip(tree["dcoord"], tree["icoord"], strict=True):
        axes.plot(level, (np.array(row) - 5) / 10, color=INK, linewidth=1.2, solid_joinstyle="miter")
    farthest = max(map(max, tree["dcoord"])) or 1.0
    axes.set_xlim(1.04 * farthest, 0)
    axes.set_ylim(len(tags) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _name_rows(axes, order, cast, "right")
    axes.set_xlabel("distance of routing (JSD / ln 2)")
    axes.locator_params(axis="x", nbins=5)
    if placebo is not None:
        axes.axvline(placebo, color=MUTED, linewidth=1.2, linestyle=":")
        axes.text(placebo, -0.7, "noise", ha="center", va="bottom", fontsize=9, color=MUTED)
    return figure, "Tree of languages by distance of routing"


@inline
def overlap_scatter(
    overlap_P: Sequence[float], similarity_P: Sequence[float], pairs: Sequence[tuple[str, str]], related: Sequence[bool]
) -> tuple[Figure, str]:
    """Similarity of routing against overlap of vocabulary, one dot a pair of languages, with the line of least squares.

    related: whether the two are of one family; such pairs are filled dots. The pairs of the largest overlap and those
    farthest from the line are named.
    """
    x_P, y_P, family_P = np.asarray(overlap_P), np.asarray(similarity_P), np.asarray(related, dtype=bool)
    height = 230
    figure, axes = axes_with_margins(height, left=52, top=26)
    small: Any = {"s": 26 if len(x_P) <= 120 else 12, "rasterized": len(x_P) > RASTER}
    axes.scatter(x_P[~family_P], y_P[~family_P], **small, facecolors="none", edgecolors=KNOWN, label="other pairs")
    axes.scatter(x_P[family_P], y_P[family_P], **small, color=TARGET, marker="D", label="of one family")
    axes.margins(0.08)
    away_P = np.zeros(len(x_P))
    if len(x_P) > 2 and np.ptp(x_P) > 0:
        slope, start = np.polyfit(x_P, y_P, 1)
        ends = np.array([x_P.min(), x_P.max()])
        axes.plot(ends, slope * ends + start, color=MUTED, linewidth=1, linestyle="--", zorder=1)
        away_P = abs(y_P - slope * x_P - start)
    named = list(dict.fromkeys([*np.argsort(-x_P)[: MOST_NAMED_PAIRS // 2], *np.argsort(-away_P)]))[:MOST_NAMED_PAIRS]
    points = [(x_P[i], y_P[i]) for i in named]
    free_places(axes, points, ["–".join(pairs[i]) for i in named], list(zip(x_P, y_P, strict=True)), height)
    axes.set_xlabel("overlap of vocabulary")
    axes.set_ylabel("similarity of routing")
    if family_P.any():
        place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 2, "borderpad": 0}
        axes.legend(**place, frameon=False, fontsize=9.5, handletextpad=0.2)
    return figure, "Similarity of routing against overlap of vocabulary, one dot a pair of languages"


@inline
def tokenizer_dots(
    per_byte: Mapping[str, float],
    relative: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]],
    reference: str,
    cast: Cast,
) -> tuple[Figure, str]:
    """What the tokenizer makes of each language: tokens per byte, and tokens relative to the reference, dearest last.

    relative: on parallel text, with intervals [low, high]; empty where the text is not parallel, and left out then.
    """
    by = relative or per_byte
    tags = sorted(per_byte, key=lambda g: by.get(g, 1.0))
    left, top = 14 + 6.3 * max(len(cast.name(g)) for g in tags), 8
    height = _row_height(len(tags)) * len(tags)
    total, wide = height + top + 38, (WIDTH - left - 12 - 16 * bool(relative)) / (2 if relative else 1)
    figure = Figure(figsize=(WIDTH / 72, total / 72))
    columns = [("tokens per byte", per_byte)] + [(f"relative to {cast.name(reference)}", relative)] * bool(relative)
    for i, (label, values) in enumerate(columns):
        place = ((left + i * (wide + 16)) / WIDTH, 38 / total, wide / WIDTH, height / total)
        axes = figure.add_axes(place)
        for row, tag in enumerate(tags):
            low, high = intervals.get(tag, (values[tag],) * 2) if i else (values[tag],) * 2
            axes.plot([low, high], [row, row], color=MUTED, linewidth=1.4)
            filled = cast.seen(tag) or cast.marked(tag)
            face = cast.colour(tag) if filled else "none"
            axes.plot([values[tag]], [row], "o", markersize=5, color=cast.colour(tag), markerfacecolor=face)
        axes.set_ylim(len(tags) - 0.5, -0.5)
        axes.set_xlim(0, 1.08 * max([*values.values(), *(intervals[g][1] for g in intervals if i)]))
        axes.set_xlabel(label, fontsize=9.5)
        axes.locator_params(axis="x", nbins=4)
        if i:
            axes.set_yticks(range(len(tags)), [""] * len(tags))
        else:
            _name_rows(axes, tags, cast, "left")
    figure.axes[-1].axvline(by.get(reference, 1.0), color=MUTED, linewidth=0.9, linestyle=":")
    return figure, "Tokens per byte, and relative to the reference, one row a language"
