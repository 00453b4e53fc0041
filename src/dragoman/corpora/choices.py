"""Multiple choice: items of Belebele and MultiBLiMP, in which a model should find the right text likelier.

    Belebele     eng_Latn.jsonl: {"link": "...", "question_number": 1, "flores_passage": "...", "question": "...",
                 "mc_answer1": "...", ..., "mc_answer4": "...", "correct_answer_num": "1"}
    MultiBLiMP   cat/data.tsv, cat.tsv (or .csv): columns sen (right), wrong_sen, phenomenon

A path is one file or a folder of them; the language is the name of the file, or of the folder it lies in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman.corpora.codes import by_tag
from dragoman.corpora.reading import HALF, read_lines
from dragoman.errors import DataError

LAYOUTS = "Belebele (eng_Latn.jsonl) or MultiBLiMP (cat/data.tsv), a file or a folder of them"
_ANSWERS = tuple(f"mc_answer{n}" for n in range(1, 5))
_BELEBELE = ("flores_passage", "question", *_ANSWERS, "correct_answer_num")
_BLIMP = ("sen", "wrong_sen")


@dataclass(frozen=True)
class Choice:
    """One item: which of the options goes on from the context?"""

    key: str
    document: str
    """What its items share, such as the page of a passage; a pair of sentences has its own."""
    context: str
    """Text before the options; empty where whole sentences are compared."""
    options: tuple[str, ...]
    answer: int
    """Number of the right option, from 0."""


def read_choices(path: Path) -> dict[str, list[Choice]]:
    """Items by language tag. Raises DataError that names file and line."""
    files = sorted(_files(path))
    if not files:
        raise DataError(f"there are no multiple-choice items at {path}; give {LAYOUTS}")
    return {tag: list(_items(file)) for tag, file in by_tag([(_code(file), file) for file in files]).items()}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (f for pattern in ("*", "*/data.*") for f in path.glob(pattern) if f.suffix in READERS)


def _code(file: Path) -> str:
    stem = file.name.split(".")[0]
    return file.parent.name if stem == "data" else stem


def _items(file: Path) -> Iterator[Choice]:
    if file.suffix not in READERS:
        raise DataError(f"cannot tell the layout of {file}; multiple choice is {LAYOUTS}")
    return READERS[file.suffix](file)


def _belebele(file: Path) -> Iterator[Choice]:
    for n, line in enumerate(read_lines(file), 1):
        row = _object(line)
        _require(file, n, row, _BELEBELE)
        answer = str(row["correct_answer_num"]).removesuffix(".0")
        if answer not in ("1", "2", "3", "4"):
            raise DataError(f"{file}: line {n} has the answer {answer!r}; it is a number from 1 to 4")
        page = str(row.get("link") or "text")
        key = f"{page}#{row.get('question_number', n)}#{n}"
        context = f"{row['flores_passage']}\n{row['question']}\n"
        yield Choice(key, page, context, tuple(str(row[a]) for a in _ANSWERS), int(answer) - 1)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) and not HALF.search(json.dumps(row, ensure_ascii=False)) else {}


def _multiblimp(file: Path) -> Iterator[Choice]:
    for n, row in enumerate(_rows(file), 2):
        if None in row or None in row.values():
            raise DataError(
                f"{file}: line {n} has not the columns of the header; a cell that begins with a quotation mark is read "
                "up to the next one: put it in quotation marks, with those in it doubled"
            )
        _require(file, n, row, _BLIMP)
        if row["sen"] == row["wrong_sen"]:
            raise DataError(f"{file}: line {n} has the same sentence as right and wrong; drop it")
        key = f"{file.stem}#{n}"
        yield Choice(key, key, "", (row["sen"], row["wrong_sen"]), 0)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(read_lines(file), delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
    try:
        yield from rows
    except csv.Error as e:
        raise DataError(
            f"{file}: not well-formed behind line {rows.line_num}: {e}; a cell with quotation marks is in quotation "
            "marks, with its own doubled"
        ) from None


def _require(file: Path, line: int, row: dict[str, Any], names: Sequence[str]) -> None:
    if absent := [name for name in names if not row.get(name)]:
        raise DataError(f"{file}: line {line} has no {', '.join(absent)}; multiple choice is {LAYOUTS}")


READERS = {".jsonl": _belebele, ".tsv": _multiblimp, ".csv": _multiblimp}
