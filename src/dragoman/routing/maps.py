"""Maps: one row a language, one column a layer or an expert, a colour for each number.

Shape letters: G languages, L MoE layers, E experts, N rows, X columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

from dragoman.routing.drawing import (
    INK,
    MOST_EXPERT_IDS,
    SYSTEM_COLOURS,
    WIDTH,
    Cast,
    Curves,
    axes_with_margins,
    inline,
    layer_axis,
)


def _heat_axes(
    values_GX: np.ndarray, tags: Sequence[str], cast: Cast, scale: str, bottom: float = 32, above: Sequence[str] = ()
) -> tuple[Figure, Axes]:
    """A map with one row a language, rows of marks above and the colour scale below; the top 1% share a colour."""
    row = 15 if len(tags) <= 20 else 12.5
    height, top, foot = row * len(tags), 8 + 14 * len(above), bottom + 34
    left = 14 + 6.3 * max(map(len, [*above, *map(cast.name, tags)]))
    figure, axes = axes_with_margins(height, left=left, top=top, bottom=foot)
    highest = float(np.quantile(values_GX, 0.99)) or 1.0
    axes.imshow(values_GX, aspect="auto", interpolation="none", cmap="cividis", vmin=0, vmax=highest)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_yticks(range(len(tags)), [cast.name(g) for g in tags], fontsize=10 if row == 15 else 9.5)
    for text, tag in zip(axes.get_yticklabels(), tags, strict=True):
        marked = cast.marked(tag)
        style = "normal" if marked or cast.seen(tag) else "italic"
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


@inline
def divergence_map(
    divergence: Curves, layer_ids: Sequence[int], cast: Cast, scale: str = "divergence (D_H-JS)"
) -> tuple[Figure, str]:
    """A distance of routing, languages (near to far) by layers; divergence: {language: [L]}, scale: what it is."""
    tags = sorted(divergence, key=lambda g: float(np.mean(divergence[g])))
    values_GL = np.array([divergence[g] for g in tags], dtype=np.float64)
    figure, axes = _heat_axes(values_GL, tags, cast, scale)
    layer_axis(axes, layer_ids)
    return figure, f"{scale}, languages by layers"


def similar_together(values_NX: np.ndarray) -> list[int]:
    """An order of the rows in which neighbours resemble each other: leaves of average linkage, optimally turned.

    Source: Bar-Joseph et al. 2001, "Fast optimal leaf ordering for hierarchical clustering".
    """
    if len(values_NX) < 3:
        return list(range(len(values_NX)))
    tree = linkage(values_NX, method="average")
    return leaves_list(optimal_leaf_ordering(tree, values_NX)).tolist()


@inline
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
