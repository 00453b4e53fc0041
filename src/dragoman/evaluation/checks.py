"""Is there something to compare? Columns of equal length, with text in them, whose references are translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dragoman.corpora.parting import where_they_part
from dragoman.errors import DataError


def require_segments(columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise DataError unless all columns list the same segments, at least one, and references are not the sources.

    columns: name -> one entry a segment; `hypotheses` is the first, `references`, `sources` and others follow.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1 or not min(sizes.values()):
        counted = " and ".join(f"{n} {name}" for name, n in sizes.items())
        raise DataError(f"{counted} were given, but every segment needs one of each; {_place(columns)}")
    texts = {name: column for name, column in columns.items() if _is_text(column)}
    if blank := [name for name, column in texts.items() if not any(text.strip() for text in column)]:
        raise DataError(f"all {sizes[blank[0]]} {' and '.join(blank)} are empty; look at how the file was written")
    references, sources = texts.get("references"), texts.get("sources")
    if references and sources and all(r.strip() == s.strip() for r, s in zip(references, sources, strict=True)):
        raise DataError(
            f"all {len(references)} references equal their sources: this test set is not translated; "
            "give the target side as references"
        )


def _is_text(column: Sequence[Any]) -> bool:
    return len(column) > 0 and all(isinstance(cell, str) for cell in column)


def _place(columns: Mapping[str, Sequence[Any]]) -> str:
    """Where the first text and one of another length part."""
    texts = {name: column for name, column in columns.items() if _is_text(column)}
    first, *others = texts or [""]
    for other in others:
        if len(texts[other]) != len(texts[first]):
            return where_they_part(texts[first], texts[other], first, other)
    return "look for empty files and for lines that were lost or split"


def some(indices: Sequence[int], most: int = 16) -> str:
    """The first indices with commas, and how many more there are."""
    shown = ", ".join(map(str, indices[:most]))
    return shown if len(indices) <= most else f"{shown} and {len(indices) - most} more"
