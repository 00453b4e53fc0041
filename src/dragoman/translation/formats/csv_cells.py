"""CSV and TSV: the cells of the columns that `--keys` picks by their names in the first row.

    id,text,note            --keys text
    ok,"Yes, sail",button   -> "Yes, sail" with the context "text"

The delimiter is the one of , ; | and tab that the first row has most of. A cell keeps its quotation marks; one without
gets them where its translation needs them. Everything else stays, line ends and all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from dragoman.errors import DataError
from dragoman.translation.formats.base import Options, Part, Place, has_letters, in_place, line_of
from dragoman.translation.formats.json_values import chosen

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class _Cell:
    start: int
    end: int
    value: str
    quoted: bool


def places(text: str, options: Options) -> list[Place]:
    first = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    delimiter = max(DELIMITERS, key=first.count)
    if delimiter not in first:  # one column, and perhaps signs in its cells that separate nothing
        delimiter = next((d for d in DELIMITERS if all(len(row) == 1 for row in _rows(text, d))), delimiter)
    rows = [row for row in _rows(text, delimiter) if len(row) > 1 or row[0].end > row[0].start]
    header = [cell.value for cell in rows[0]] if rows else []
    _require(text, header, rows, options.keys)
    return [
        in_place(cell.start, cell.end, [Part(cell.value)], partial(_encoded, cell.quoted, delimiter), name)
        for row in rows[1:]
        for name, cell in zip(header, row, strict=True)
        if chosen(name, options.keys) and has_letters([Part(cell.value)])
    ]


def _require(text: str, header: list[str], rows: list[list[_Cell]], keys: tuple[str, ...]) -> None:
    """DataError where no column is chosen, a pattern fits none, or rows have not as many cells as there are names."""
    if not keys:
        raise DataError(f"which of its columns are text? Name them with --keys; it has {', '.join(header)}")
    if unused := [key for key in keys if not any(chosen(name, (key,)) for name in header)]:
        raise DataError(f"no column is named {', '.join(unused)}; it has {', '.join(header)}")
    if odd := [line_of(text, row[0].start) for row in rows if len(row) != len(header)]:
        some = ", ".join(map(str, odd[:8]))
        raise DataError(f"the first row has {len(header)} cells, but other numbers stand at lines {some}; mend them")


def _rows(text: str, delimiter: str) -> list[list[_Cell]]:
    """Every cell and where it stands, quotation marks included."""
    rest = re.escape(delimiter) + r"\r\n"
    cell = re.compile(rf'(?:"((?:[^"]|"")*)"|([^"{rest}][^{rest}]*)?)({re.escape(delimiter)}|\r\n|\r|\n|\Z)')
    rows: list[list[_Cell]] = [[]]
    at = 0
    while True:
        match = cell.match(text, at)
        if match is None:
            raise DataError(f"the quotation marks at line {line_of(text, at)} do not enclose a cell; mend the file")
        quoted = match[1] is not None
        value = match[1].replace('""', '"') if quoted else match[2] or ""
        rows[-1].append(_Cell(match.start(), match.start(3), value, quoted))
        at = match.end()
        if not match[3]:
            return rows
        if match[3] != delimiter:
            rows.append([])


def _encoded(quoted: bool, delimiter: str, text: str) -> str:
    needs = any(c in text for c in f'{delimiter}"\r\n')
    return '"' + text.replace('"', '""') + '"' if quoted or needs else text
