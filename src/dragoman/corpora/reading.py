"""Users' files as columns: TSV, JSON lines, Moses. Every fault is named with its line; all faults in one message."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dragoman.corpora.languages import TABLE, normalise_tags
from dragoman.corpora.parting import where_they_part
from dragoman.errors import DataError

META = ("key", "document", "split")
FORMATS = "a .tsv or .jsonl file (each also .gz), or Moses files name.en, name.de given as name"
SHOWN = 5
HALF = re.compile("[\ud800-\udfff]")
"""Half a character (a lone surrogate), which JSON can say and no file can hold."""

Cells = list[str | None]
Columns = tuple[list[str], dict[str, list[str]], dict[str, Cells]]


def read_columns(path: Path) -> Columns:
    """(language tags, meta columns that are there, language -> cells) of the file at `path`."""
    name = path.name.lower().removesuffix(".gz")
    if path.is_file() and name.endswith(".jsonl"):
        return _from_jsonl(path)
    if path.is_file() and name.endswith(".tsv"):
        return _from_tsv(path)
    if path.is_file():
        raise DataError(f"cannot tell the format of {path}; a corpus is {FORMATS}")
    if sisters := _moses_sisters(path):
        return _from_moses(path, sisters)
    raise DataError(f"there is no corpus at {path}; give {FORMATS}")


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, gzipped or not; DataError where it is empty, cut off or not UTF-8."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"cannot read {path}: {e}; get the file again or check its permissions") from None
    if not data.strip():
        raise DataError(f"{path} is empty; give a file with text, one segment a line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        bad = [n for n, line in enumerate(data.split(b"\n"), 1) if not _is_utf8(line)]
        raise DataError(f"{path} is not valid UTF-8 in {_listed(bad)}; convert it, e.g. with iconv -t UTF-8") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:SHOWN]))}{more}"


def _tags(names: Sequence[str], path: Path) -> list[str]:
    others = f"columns other than {', '.join(META)} are languages"
    if small := [f"{name} as {name.strip().lower()}" for name in names if name.strip().lower() in META]:
        raise DataError(f"{path}: {others}, so write {', '.join(small)}")
    try:
        tags = normalise_tags(names)
    except DataError as e:
        raise DataError(f"{path}: {e}; {others}") from None
    repeated = sorted({tag for tag in tags if tags.count(tag) > 1})
    if repeated:
        raise DataError(f"{path}: column {', '.join(repeated)} appears more than once; keep one of them")
    if not names:
        raise DataError(f"{path} has no language columns; name them by BCP-47 tags, beside {', '.join(META)}")
    return tags


def _from_tsv(path: Path) -> Columns:
    header, *lines = read_lines(path)
    names = header.split("\t")
    if repeated := [name for name in META if names.count(name) > 1]:
        raise DataError(f"{path}: column {', '.join(repeated)} appears more than once; keep one of them")
    tags = _tags([name for name in names if name not in META], path)
    if not lines:
        raise DataError(f"{path} has a header but no rows")
    rows = [line.split("\t") for line in lines]
    if bad := [n for n, row in enumerate(rows, 2) if len(row) != len(names)]:
        widths = sorted({len(rows[n - 2]) for n in bad})
        raise DataError(
            f"{path}: {len(bad)} of {len(rows)} rows have not the {len(names)} columns of the header but "
            f"{', '.join(map(str, widths))}: {_listed(bad)}; a missing translation is an empty cell between tabs"
        )
    cells = dict(zip(names, (list(column) for column in zip(*rows, strict=True)), strict=True))
    meta = {name: cells.pop(name) for name in META if name in cells}
    empty = {name: [n for n, cell in enumerate(column, 2) if not cell.strip()] for name, column in meta.items()}
    if holes := [f"{name} in {_listed(lines)}" for name, lines in empty.items() if lines]:
        raise DataError(f"{path}: no {'; no '.join(holes)}; give it on every row, or leave the column out")
    return tags, meta, dict(zip(tags, cells.values(), strict=True))


def _from_jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    faults: list[int] = []
    for n, line in enumerate(read_lines(path), 1):
        row = _json_row(line)
        if row is None:
            faults.append(n)
        else:
            rows.append(row)
    if faults:
        raise DataError(
            f'{path}: {_listed(faults)} hold no JSON object of texts such as {{"en": "a house", "de": "ein Haus"}}; '
            f"one object a line, values are strings or null, without half characters (a lone \\ud800 to \\udfff)"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    tags = _tags([name for name in names if name not in META], path)
    meta = {name: [row.get(name) for row in rows] for name in META if name in names}
    empty = {name: [not (value or "").strip() for value in values] for name, values in meta.items()}
    if holes := [name for name, rows_N in empty.items() if any(rows_N)]:
        n = empty[holes[0]].index(True) + 1
        raise DataError(f"{path}: {', '.join(holes)} is given on some rows but not on line {n}; give it on all or none")
    languages = [name for name in names if name not in META]
    columns = {tag: [row.get(name) for row in rows] for tag, name in zip(tags, languages, strict=True)}
    return tags, meta, columns  # type: ignore[return-value]


def _json_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    good = isinstance(row, dict) and all(value is None or isinstance(value, str) for value in row.values())
    whole = good and not any(HALF.search(text) for text in (*row, *filter(None, row.values())))
    return row if whole else None


def _moses_sisters(path: Path) -> list[Path]:
    if not path.parent.is_dir():
        return []
    suffix = re.compile(re.escape(path.name) + r"\.([a-zA-Z]{2,3})(?:[-_][a-zA-Z0-9]{2,8})*(\.gz)?")
    found = ((p, suffix.fullmatch(p.name)) for p in path.parent.iterdir())
    return sorted(p for p, match in found if match and (len(match[1]) == 2 or match[1].lower() in TABLE))


def _from_moses(path: Path, sisters: Sequence[Path]) -> Columns:
    names = [sister.name.removeprefix(path.name + ".").removesuffix(".gz") for sister in sisters]
    tags = _tags(names, path)
    columns = [read_lines(sister) for sister in sisters]
    if other := next((i for i, column in enumerate(columns) if len(column) != len(columns[0])), None):
        found = ", ".join(f"{s.name} {len(column)}" for s, column in zip(sisters, columns, strict=True))
        place = where_they_part(columns[0], columns[other], sisters[0].name, sisters[other].name)
        raise DataError(
            f"the Moses files of {path} differ in length ({found} lines); line n must match line n; {place}"
        )
    return tags, {}, {tag: list(column) for tag, column in zip(tags, columns, strict=True)}
