"""Term recall: are the terms that a glossary requires in the answer?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from dragoman.corpora.languages import script_of
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import Metric, ratio

MATCHES = ("prefix", "folded", "exact")
UNSPACED = {"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}
ENDING = 4
"""Most letters that an inflected form may have beyond the shared beginning."""

Term = str | Sequence[str]
"""A required term, or the variants of which one is required."""


class TermRecall(Metric):
    """Share of required terms that the answer contains; in percent, higher is better.

    match: how a term is looked for.
        prefix   case folded; every word of the term must be met by a word that shares its beginning (70 % of the term's
                 letters, 3 at least) and has at most 4 letters after it; words follow one another. This bridges endings
                 ("Tabelle", "Tabellen"), not umlauts or prefixes ("Haus", "Häuser"), and takes some longer words.
        folded   case folded, whole words as they stand
        exact    whole words as they stand, in this case
    In scripts without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan) a term is found wherever it stands.
    A term that is required twice must come twice. Segments without terms add nothing.

    Raises ConfigError for an unknown match, DataError for a term without a letter or digit.
    """

    name = "term recall"
    higher_is_better = True
    needs = ("terms",)

    def __init__(self, match: str = "prefix") -> None:
        if match not in MATCHES:
            raise ConfigError(f"terms are not matched by {match!r}; choose from {', '.join(MATCHES)}")
        self.match = match

    def segment_sums(self, hypothesis: str, terms: Sequence[Term]) -> list[float]:
        """[found, required]."""
        required = Counter((term,) if isinstance(term, str) else tuple(term) for term in terms)
        text = _normalise(hypothesis, self.match)
        found = sum(min(n, sum(_count(v, text, self.match) for v in variants)) for variants, n in required.items())
        return [found, required.total()]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1], scale=100, empty=100.0)

    def signature(self) -> str:
        rule = "|beginning:70%,3|ending:4" if self.match == "prefix" else ""
        return f"match:{self.match}{rule}|case:{'kept' if self.match == 'exact' else 'folded'}|unicode:NFC|twice:twice"


def _normalise(text: str, match: str) -> str:
    text = unicodedata.normalize("NFC", text)
    return text if match == "exact" else text.casefold()


def _count(term: str, text: str, match: str) -> int:
    return len(_pattern(term, match).findall(text))


@cache
def _pattern(term: str, match: str) -> re.Pattern[str]:
    words = re.findall(r"\w+", _normalise(term, match))
    if not words:
        raise DataError(f"the required term {term!r} has no letter or digit; take it out of the glossary")
    if any(c.isalpha() and script_of(c) in UNSPACED for c in term):
        return re.compile(re.escape(_normalise(term, match).strip()))
    return re.compile(r"(?<!\w)" + r"\W+".join(_word(word, match) for word in words) + r"(?!\w)")


def _word(word: str, match: str) -> str:
    beginning = max(3, -(-7 * len(word) // 10))
    if match != "prefix" or len(word) < beginning or not word.isalpha():
        return re.escape(word)
    rest = len(word) - beginning
    return re.escape(word[:beginning]) + rf"\w{{0,{rest + ENDING}}}"
