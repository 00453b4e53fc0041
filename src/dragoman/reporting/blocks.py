"""What a page is made of: cells, figures with their sentences, blocks, sections; and what several sections share."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment
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
class Table:
    """The numbers of a figure."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """As a CSV file; numbers to six significant digits."""
        page = io.StringIO()
        rows = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in self.rows]
        csv.writer(page, lineterminator="\n").writerows([self.head, *rows])
        return page.getvalue()


@dataclass(frozen=True)
class Chart:
    """A figure with its two sentences: what it shows, and what it says here; and its numbers under a name."""

    title: str
    svg: Markup
    shows: str
    says: str
    name: str = ""
    table: Table | None = None

    @property
    def href(self) -> str:
        """The numbers inside the address, so that the page needs no second file."""
        text = self.table.csv if self.table else ""
        return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


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


def render(title: str, about: str, headline: str, sections: Sequence[Section]) -> str:
    """One self-contained HTML page of the sections that have content."""
    filled = [Section(s.title, blocks) for s in sections if (blocks := [b for b in s.blocks if b.content])]
    template = (resources.files("dragoman") / "assets" / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(title=title, about=about, headline=headline, sections=filled)


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
