"""Two texts that should match line by line: where they part, and whether one was never translated.

The texts may be a system's output and a reference or two languages: lines are compared by shared letter trigrams
(names, numbers, markup, loanwords) and by length. Where a line was lost, the lines after it match better one line on.
"""

# Shape letters: N lines of the shorter text.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dragoman.errors import DataError

MOST_LOST = 10
"""Lines lost in one place that are looked for."""
WINDOW = 12
"""Lines on each side of a place that must say the same."""
CLEAR = 0.05
"""Mean gain in similarity within the window under which nothing is said."""

Feature = tuple[set[str], float]
"""A line's letter trigrams and its length, scaled to the other language's."""


def require_same_length(a: Sequence[str], b: Sequence[str], name_a: str, name_b: str) -> None:
    """DataError for texts that are empty or not of one length, with the first line where they part if it is clear."""
    if empty := [name for name, text in ((name_a, a), (name_b, b)) if not any(line.strip() for line in text)]:
        raise DataError(f"{' and '.join(empty)} has no text; every segment needs a line in both files")
    if len(a) == len(b):
        return
    place = where_they_part(a, b, name_a, name_b)
    raise DataError(f"{name_a} has {len(a)} lines and {name_b} {len(b)}, but line n must match line n; {place}")


def where_they_part(a: Sequence[str], b: Sequence[str], name_a: str, name_b: str) -> str:
    """`first_parting` in words."""
    line, shorter = first_parting(a, b), name_a if len(a) < len(b) else name_b
    if line is None:
        return "where they part is not clear; look for empty lines and for line ends inside segments"
    if line > min(len(a), len(b)):
        return f"they match up to line {line - 1}, where {shorter} ends: its end is missing"
    return f"they seem to part near line {line}: from there on, what {shorter} has belongs to later lines"


def first_parting(a: Sequence[str], b: Sequence[str]) -> int | None:
    """The first line, from 1, at which the shorter text stops matching the longer; None where that is not clear."""
    long, short = (a, b) if len(a) > len(b) else (b, a)
    ratio = (sum(map(len, long)) + 1) / (sum(map(len, short)) + 1)
    features = [(_trigrams(x), len(x) + 1) for x in long], [(_trigrams(y), ratio * (len(y) + 1)) for y in short]
    stay_N = _similarities(*features)
    lost = range(1, min(len(long) - len(short), MOST_LOST) + 1)
    found = [_change(_similarities(features[0][n:], features[1]) - stay_N) for n in lost]
    return min((at + 1 for at in found if at is not None), default=None)


def _change(gain_N: np.ndarray) -> int | None:
    """The place before which gains are negative and after which they are positive, if both are clear."""
    before_N = np.concatenate([[0], np.cumsum(gain_N)])
    at = int(np.argmax(before_N[-1] - 2 * before_N))
    sides = [-gain_N[max(0, at - WINDOW) : at], gain_N[at : at + WINDOW]]
    return at if all(side.mean() > CLEAR for side in sides if len(side)) else None


def _similarities(a: Sequence[Feature], b: Sequence[Feature]) -> np.ndarray:
    """Similarity_N of lines with the same number; 0 where there is no such line."""
    found_N = np.zeros(len(b))
    for i, ((x, size_x), (y, size_y)) in enumerate(zip(a, b, strict=False)):
        dice = 2 * len(x & y) / max(1, len(x) + len(y))
        found_N[i] = dice + min(size_x, size_y) / max(size_x, size_y)
    return found_N


def _trigrams(text: str) -> set[str]:
    text = text.lower()
    return {text[i : i + 3] for i in range(len(text) - 2)}


def refuse_untranslated(sources: Sequence[str], references: Sequence[str], where: str) -> None:
    """DataError where every reference is its source: such a test set was never translated."""
    if len(sources) and all(s.strip() == r.strip() for s, r in zip(sources, references, strict=True)):
        raise DataError(
            f"all {len(references)} references of {where} are equal to their sources, so nothing was translated; "
            "check that the right files were given"
        )
