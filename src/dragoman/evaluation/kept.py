"""Placeholders and numbers: does what must survive translation survive it, and does nothing of the kind appear?

Both are compared as multisets: order may change, each piece must come as often as in the source.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from dragoman.errors import ConfigError
from dragoman.evaluation.base import Rate

FAULTS = ("any", "lost", "invented")

PLACEHOLDER = re.compile(
    r"%%"
    r"|%(?:\d+\$)?[-+#0]*(?:\d+)?(?:\.\d+)?(?:hh|h|ll|l|L|z|j|t|q)?[diouxXeEfFgGcsSpn@](?![A-Za-z])"  # printf
    r"|%\(\w+\)[#0+ -]*\d*(?:\.\d+)?[a-zA-Z]"  # Python
    r"|%[A-Z][A-Z_]+%?"  # %PRODUCTNAME
    r"|\$\{[^{}\s]+\}|\{\{[^{}]+\}\}|\{[\w.:!,-]*\}"  # ${name}, {{name}}, {0}, {}
    r"|</?[A-Za-z][^<>\s]*(?:\s+[\w:-]+=(?:\"[^\"]*\"|'[^']*'))*\s*/?>"  # tags
    r"|&(?:[A-Za-z]+|#\d+|#x[0-9A-Fa-f]+);"  # entities
    r"|\\[nrt]"
)
NUMBER = re.compile(r"\d{1,3}(?:[ \u00a0\u202f\u2009]\d{3})+(?:[.,٫]\d+)?(?!\d)|\d+(?:[.,'’٫٬]\d+)*")


def placeholders(text: str) -> Counter[str]:
    """Each placeholder and how often it comes: printf, Python and brace formats, `%NAME`, tags, entities, `\\n`."""
    return Counter(PLACEHOLDER.findall(text))


def numbers(text: str) -> Counter[str]:
    """Each number outside placeholders and how often it comes: its digits as ASCII, without separators."""
    found = NUMBER.findall(PLACEHOLDER.sub(" ", text))
    return Counter("".join(str(unicodedata.digit(c)) for c in number if c.isdecimal()) for number in found)


PIECES = {"placeholders": placeholders, "numbers": numbers}


class Kept(Rate):
    """Share of segments that lose or invent placeholders or numbers; in percent, lower is better.

    what: `placeholders` or `numbers`. Numbers are compared by their digits, so that 1,000.5 equals 1 000,5; one that is
        written out as a word counts as lost.
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
