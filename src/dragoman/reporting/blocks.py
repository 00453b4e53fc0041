"""What a page is made of: cells, figures with their sentences, blocks, sections; and what several sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dragoman.reporting import sentences as say
from dragoman.reporting.sentences import Record, limits, number

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell, a small line under it, and whether it stands out."""

    text: str
    small: str = ""
    mark: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure with its two sentences: what it shows, and what it says here."""

    title: str
    svg: Markup
    shows: str
    says: str


@dataclass(frozen=True)
class Block:
    """A piece of a section; the template has one branch for each `kind`."""

    kind: str
    content: Any
    title: str = ""
    head: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; those without content are left out, and so is a section without any."""

    title: str
    blocks: list[Block]


def table_rows(rows: Iterable[Iterable[Any]]) -> list[list[Cell]]:
    """Rows of cells from rows of texts and cells."""
    return [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]


def measured(record: Record, metric: str, system: str) -> Cell:
    """A system's value on the target, with its interval."""
    value = record.get(metric, {}).get(system, {}).get(record.get("target"))
    if value is None:
        return Cell(MISSING)
    digits = say.METRICS[metric][1]
    interval = record.get(f"{metric}_interval", {}).get(system, {}).get(record["target"])
    return Cell(number(value, digits), limits(interval[0], interval[1], digits) if interval else "")


def systems(record: Record) -> list[str]:
    """Every system of the record in its order, copying last."""
    found = dict.fromkeys([*record.get("bits_per_byte", {}), *record.get("chrf", {})])
    return sorted(found, key=lambda s: s == say.COPY)


def duration(seconds: float) -> str:
    """Seconds in words; empty for none."""
    if not seconds:
        return ""
    if seconds < 100:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
