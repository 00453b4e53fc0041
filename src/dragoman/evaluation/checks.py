"""Is there something to compare? Columns of equal length, with text in them, whose references are translations.

Where two columns differ in length, the place where they part is looked for: the cut that makes the lines before it,
and the lines after it once the surplus is skipped, most alike.
"""

# Shape letters: N segments.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dragoman.errors import DataError

MIN_GAIN = 0.5
"""How much more alike (in segments that match fully) the best cut must make two columns, to be worth a word."""


def require_segments(columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise DataError unless all columns list the same segments, at least one, and references are not the sources.

    columns: name -> one entry a segment; `hypotheses` is the first, `references`, `sources` and others follow.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1 or not min(sizes.values()):
        counted = " and ".join(f"{n} {name}" for name, n in sizes.items())
        raise DataError(
            f"{counted} were given, but every segment needs one of each; "
            f"look for empty files and for lines that were lost or split{_hint(columns)}"
        )
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


def _hint(columns: Mapping[str, Sequence[Any]]) -> str:
    texts = {name: column for name, column in columns.items() if _is_text(column)}
    first, *others = texts or [""]
    for other in others:
        unequal = len(texts[other]) != len(texts[first])
        if unequal and (at := first_parting(texts[first], texts[other])) is not None:
            return f": {first} and {other} seem to part at line {at + 1}"
    return ""


def first_parting(a: Sequence[str], b: Sequence[str]) -> int | None:
    """Index of the line from which two texts of different length no longer match, None where nothing shows it.

    The longer one has `gap` lines too many. For every cut k, lines before k are held against the line of the same
    number and lines from k on against the one `gap` later; the cut with the largest sum of similarities (Jaccard of
    character trigrams) is it, if it beats having no cut, or all lines shifted, by MIN_GAIN.
    """
    if len(a) < len(b):
        a, b = b, a
    gap = len(a) - len(b)
    grams_a, grams_b = [_grams(text) for text in a], [_grams(text) for text in b]
    straight_N = [_alike(x, y) for x, y in zip(grams_a, grams_b, strict=False)]
    shifted_N = [_alike(x, y) for x, y in zip(grams_a[gap:], grams_b, strict=False)]
    total = np.concatenate([[0.0], np.cumsum(straight_N)]) + np.concatenate([np.cumsum(shifted_N[::-1])[::-1], [0.0]])
    cut = int(total.argmax())
    other = total[0] if cut == len(b) else total[-1]
    return cut if total[cut] >= other + MIN_GAIN else None


def _grams(text: str) -> set[str]:
    text = text.casefold()
    return {text[i : i + 3] for i in range(max(1, len(text) - 2))}


def _alike(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def some(indices: Sequence[int], most: int = 16) -> str:
    """The first indices with commas, and how many more there are."""
    shown = ", ".join(map(str, indices[:most]))
    return shown if len(indices) <= most else f"{shown} and {len(indices) - most} more"
