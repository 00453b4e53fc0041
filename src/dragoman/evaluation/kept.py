"""Placeholders and numbers: does what must survive translation survive it, and does nothing of the kind appear?

Both are compared as multisets: order may change, each piece must come as often as in the source.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from dragoman.corpora.placeholders import PLACEHOLDER
from dragoman.errors import ConfigError
from dragoman.evaluation.base import Rate

FAULTS = ("any", "lost", "invented")

GROUPED = r"\d{1,3}(?:(?P<mark>[.,'’٬ \u00a0\u202f\u2009])\d{3})(?:(?P=mark)\d{3})*(?!\d)"
NUMBER = re.compile(rf"(?<!\d[.,])(?:{GROUPED}|\d+)(?:[.,٫]\d+(?![.,]?\d))?|\d+")
"""A number with or without thousands in groups of three and a decimal part; of dates and versions, each part."""


def placeholders(text: str) -> Counter[str]:
    """Each placeholder and how often it comes: printf, Python and brace formats, `%NAME`, tags, entities, `\\n`."""
    return Counter(PLACEHOLDER.findall(text))


def numbers(text: str) -> Counter[str]:
    """Each number outside placeholders and how often it comes: ASCII digits, no grouping, a point before decimals."""
    return Counter(_plain(match[0]) for match in NUMBER.finditer(PLACEHOLDER.sub(" ", text)))


def _plain(number: str) -> str:
    digits = "".join(str(unicodedata.digit(c)) if c.isdecimal() else c for c in number)
    whole, mark, decimals = re.fullmatch(r"(.*?)(?:([.,٫])(\d{1,2}|\d{4,}))?", digits).groups()  # type: ignore[union-attr]
    whole = re.sub(r"\D", "", whole).lstrip("0") or "0"
    return f"{whole}.{decimals}" if mark else whole


PIECES = {"placeholders": placeholders, "numbers": numbers}


class Kept(Rate):
    """Share of segments that lose or invent placeholders or numbers; in percent, lower is better.

    what: `placeholders` or `numbers`. Numbers are compared by value as far as their form tells: 1,000.5 equals 1 000,5,
        05 equals 5, and three digits after one mark are thousands (1.500 is 1500 on both sides). One that is written
        out as a word on one side only counts as lost or invented.
    fault: `any`, `lost` or `invented`: which of them the value counts.

    Segments with no such piece in source or answer are not judged. Raises ConfigError for an unknown `what` or `fault`.
    """

    higher_is_better = False
    needs = ("sources",)

    def __init__(self, what: str, fault: str = "any") -> None:
        if what not in PIECES or fault not in FAULTS:
            raise ConfigError(
                f"there is no check of {what!r} for {fault!r}; choose one of {', '.join(PIECES)} "
                f"and one of {', '.join(FAULTS)}"
            )
        self.what, self.fault = what, fault
        self.counted = FAULTS.index(fault)
        self.name = f"{what} {'lost or invented' if fault == 'any' else fault}"

    def segment_sums(self, hypothesis: str, source: str) -> list[float]:
        """[any fault, lost, invented, judged]."""
        before, after = PIECES[self.what](source), PIECES[self.what](hypothesis)
        lost, invented = bool(before - after), bool(after - before)
        return [lost or invented, lost, invented, bool(before or after)]

    def signature(self) -> str:
        return f"what:{self.what}|fault:{self.fault}|order:free|patterns:1"
