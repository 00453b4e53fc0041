"""Term recall: are the terms that a glossary requires in the answer?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from dragoman.corpora.matching import MATCHES, ending_of, match_of, normalised, term_pattern
from dragoman.errors import ConfigError
from dragoman.evaluation.base import Metric, ratio

Term = str | Sequence[str]
"""A required term, or the variants of which one is required."""


class TermRecall(Metric):
    """Share of required terms that the answer contains; in percent, higher is better.

    match: how a term is looked for: `prefix` (and one in capitals exactly, as in glossaries), `folded` or `exact`, as
        corpora/matching.py says.
    target: language of the answers, which says how long an ending may be.
    A term that is required twice must come twice. Segments without terms add nothing.

    Raises ConfigError for an unknown match, DataError for a term without a letter or digit.
    """

    name = "term recall"
    higher_is_better = True
    needs = ("terms",)

    def __init__(self, match: str = "prefix", target: str = "") -> None:
        if match not in MATCHES:
            raise ConfigError(f"terms are not matched by {match!r}; choose from {', '.join(MATCHES)}")
        self.match, self.ending = match, ending_of(target)

    def segment_sums(self, hypothesis: str, terms: Sequence[Term]) -> list[float]:
        """[found, required]."""
        required = Counter((term,) if isinstance(term, str) else tuple(term) for term in terms)
        found = sum(min(n, sum(self._count(v, hypothesis) for v in variants)) for variants, n in required.items())
        return [found, required.total()]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1], scale=100, empty=100.0)

    def signature(self) -> str:
        rule = f"|beginning:70%,3|ending:{self.ending}|capitals:exact" if self.match == "prefix" else ""
        return f"match:{self.match}{rule}|case:{'kept' if self.match == 'exact' else 'folded'}|unicode:NFC|twice:twice"

    def _count(self, term: str, hypothesis: str) -> int:
        match = match_of(term) if self.match == "prefix" else self.match
        return len(term_pattern(term, match, self.ending).findall(normalised(hypothesis, match)))
