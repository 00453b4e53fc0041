"""Numbers in texts, in the digits and with the separators of any language."""

from __future__ import annotations

import re
import unicodedata

_SEPARATOR = r"[,.'’\u00a0\u202f\u066c]"
_THOUSANDS = rf"[1-9]\d?(?:,\d\d)+,\d{{3}}(?!\d)|[1-9]\d{{0,2}}(?:{_SEPARATOR}\d{{3}})+(?!\d)"
GROUPED = re.compile(_THOUSANDS)
NUMBER = re.compile(rf"(?:(?<!\d)[-−])?(?:{_THOUSANDS}|\d+)(?:[.,\u066b]\d+)?(?![\d])")


def number_in(text: str) -> float | None:
    """The number behind the last ####, or else the last number; None where there is none.

    Digits of any script. A separator before groups of exactly three digits groups thousands, whichever it is, and
    commas group as in India; another one is decimal: 1,234 and 1.234 are 1234, 1,00,000 is 100000, 12.50 and 12,50 are
    12.5, 0.125 is an eighth.
    """
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    marked = digits.rpartition("####")
    found = NUMBER.findall(marked[2]) if marked[1] else []
    picked = found[:1] or NUMBER.findall(digits)[-1:]
    return _value(picked[0]) if picked else None


def same_number(found: float | None, expected: float | None) -> bool:
    """Whether both are there and equal to rounding."""
    return None not in (found, expected) and abs(found - expected) <= 1e-6 * max(1.0, abs(expected))  # type: ignore[operator, arg-type]


def _value(text: str) -> float:
    sign = -1.0 if text[0] in "-−" else 1.0
    text = text.lstrip("-−")
    grouped = GROUPED.match(text)
    whole = re.sub(r"\D", "", grouped[0]) if grouped else re.match(r"\d+", text)[0]  # type: ignore[index]
    rest = text[len(grouped[0] if grouped else whole) :]
    return sign * float(f"{whole}.{rest[1:] or 0}")
