"""The frontier: what arms gain against what they lose, one panel a target, as SVG whose bytes depend on the data alone.

Written without a drawing library: a figure that is compared with a committed one must not change with its version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, GAP = 300, 240, 48, 40, 26, 14
ACROSS = 4
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222222")
"""Distinct for most readers; arms are named beside their points too. Source: P. Tol, "bright"."""


@dataclass(frozen=True)
class Point:
    """An arm on a target: (value, low, high) on both axes."""

    arm: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def frontier(panels: Mapping[str, Sequence[Point]], x_title: str, y_title: str) -> str:
    """Panels with the same axes, ACROSS in a row; bars are intervals."""
    points = [p for by in panels.values() for p in by]
    arms = list(dict.fromkeys(p.arm for p in points))
    ranges = [_range([v for p in points for v in getattr(p, axis)]) for axis in ("x", "y")]
    width = LEFT + min(len(panels), ACROSS) * (WIDTH + GAP)
    height = TOP + -(-len(panels) // ACROSS) * (HEIGHT + BOTTOM)
    body = []
    for k, (target, by) in enumerate(panels.items()):
        row, column = divmod(k, ACROSS)
        left, top = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + BOTTOM)
        x = _scale(ranges[0], left, left + WIDTH)
        y = _scale(ranges[1], top + HEIGHT, top)
        body += _frame(target, (left, top), ranges, x, y, first=column == 0)
        for p in by:
            body += _point(p, COLOURS[arms.index(p.arm) % len(COLOURS)], x, y)
    body.append(_text(LEFT, height - 6, x_title))
    body.append(_text(LEFT, 12, y_title))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f"<title>{escape(y_title)} against {escape(x_title)}</title>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.06 * (high - low or 1.0)
    return low - margin, high + margin


def _scale(limits: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    low, high = limits
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _frame(
    title: str,
    corner: tuple[float, float],
    ranges: Sequence[tuple[float, float]],
    x: Callable[[float], float],
    y: Callable[[float], float],
    first: bool,
) -> list[str]:
    left, top = corner
    drawn = [f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>']
    drawn.append(_text(left + WIDTH - 4, top + 14, title, "end"))
    for tick in ticks(*ranges[0]):
        drawn.append(_text(x(tick), top + HEIGHT + 14, f"{tick:g}", "middle"))
    for tick in ticks(*ranges[1]) if first else []:
        drawn.append(_text(left - 4, y(tick) + 4, f"{tick:g}", "end"))
    return drawn


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two limits."""
    rough = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [round(float(k * step), 10) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _point(p: Point, colour: str, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    cx, cy = x(p.x[0]), y(p.y[0])
    return [
        f'<path d="M{x(p.x[1]):.1f} {cy:.1f}H{x(p.x[2]):.1f}M{cx:.1f} {y(p.y[1]):.1f}V{y(p.y[2]):.1f}" '
        f'stroke="{colour}" fill="none"/>',
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" fill="{colour}"/>',
        _text(cx + 5, cy - 5, p.arm),
    ]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
