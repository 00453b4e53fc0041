"""Do languages that share vocabulary, or a family, share experts? Correlations of distances, with Mantel's test.

Shape letters: G languages, P pairs of languages (G (G - 1) / 2), L MoE layers, M relabellings of the languages; `X` is
any leading axes. All matrices are distances: by a positive correlation what is near in one is near in the other.

Pairs are not independent observations (each language is in G - 1 of them), so a p-value of a plain correlation over
pairs is wrong; Mantel's test permutes whole languages.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from dragoman.corpora.languages import language
from dragoman.errors import DataError
from dragoman.routing.stats import jensen_shannon, slot_share

FEWEST_LANGUAGES = 4
"""Three languages have six labellings, so no p-value below 1/6 could come out."""
MOST_EXACT = 10_000
"""Where there are at most so many labellings of the languages (seven have 5,040), all are tried."""
ROUNDING = 1e-9
BLOCK_ELEMENTS = 1 << 22
"""Pairs of relabelled languages that are held at once: 32 MB an array."""

Method = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class Mantel:
    """A correlation of distance matrices and how often chance reaches it; arrays [...]."""

    r: np.ndarray
    p: np.ndarray
    """Two-sided: share of labellings with |r| as large or larger."""
    null_low: np.ndarray
    """2.5 % quantile of r over labellings: the placebo."""
    null_high: np.ndarray
    permutations: int
    exact: bool
    """Whether every labelling was tried; otherwise they are drawn, and the one observed counts among them."""


def routing_distance(count_XGLE: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in nats between every two languages, in each layer: [..., L, G, G].

    count_XGLE: counts. Raises DataError for a language without a token in a layer.
    Source: SSFT (arXiv:2605.29714), pairwise JSD; plain, as its scale is the same for every pair.
    """
    share_XGLE = slot_share(count_XGLE)
    # One language against all at a time: all pairs at once would hold G * G * L * E numbers.
    languages = range(share_XGLE.shape[-3])
    rows = [jensen_shannon(share_XGLE[..., g : g + 1, :, :], share_XGLE) for g in languages]
    return np.moveaxis(np.stack(rows, axis=-1), -2, -3)


def overlap_distance(overlap: Mapping[str, Mapping[str, float]], languages: Sequence[str]) -> np.ndarray:
    """1 - vocabulary overlap between every two languages, [G, G], from {a: {b: overlap}}.

    Raises DataError that names the pairs without a value.
    """
    if missing := [f"{a}-{b}" for a in languages for b in languages if a < b and b not in overlap.get(a, {})]:
        raise DataError(f"no vocabulary overlap is given for {', '.join(missing)}; measure it on the text of both")
    return np.array([[0.0 if a == b else 1 - overlap[a][b] for b in languages] for a in languages])


def family_distance(languages: Sequence[str]) -> np.ndarray:
    """0 within a family, 1 between families (branches within Indo-European): [G, G].

    Raises DataError for languages whose family is not known.
    Source: SSFT (arXiv:2605.29714) sets family against overlap; the families are those of `corpora.languages`.
    Differs: same or not the same; a tree of languages would have depths, of which no table is at hand.
    """
    families = [language(tag).family for tag in languages]
    if unknown := [tag for tag, family in zip(languages, families, strict=True) if not family]:
        raise DataError(f"the family of {', '.join(unknown)} is not known; leave them out of this comparison")
    return np.array([[float(a != b) for b in families] for a in families])


def pairs_of(matrix_XGG: np.ndarray) -> np.ndarray:
    """Values above the diagonal, row by row: [..., P]."""
    return matrix_XGG[(..., *np.triu_indices(matrix_XGG.shape[-1], 1))]


def correlation(a_XGG: np.ndarray, b_GG: np.ndarray, method: Method = "pearson") -> np.ndarray:
    """Pearson's or Spearman's correlation over pairs of languages; [...].

    nan where all pairs of a are alike. Raises DataError for fewer than four languages or a b whose pairs are all alike.
    Source: SSFT (arXiv:2605.29714), Pearson's r of JSD and overlap at one layer.
    Differs: both as distances, so the sign is turned; Spearman's beside it.
    """
    _require_pairs(b_GG)
    return _standard(pairs_of(a_XGG), method) @ _standard(pairs_of(b_GG), method)


def mantel(
    a_XGG: np.ndarray,
    b_GG: np.ndarray,
    control_GG: np.ndarray | None = None,
    *,
    method: Method = "pearson",
    permutations: int = 4999,
    seed: int = 0,
) -> Mantel:
    """Correlation of distance matrices with Mantel's permutation test, or the partial one where a control is given.

    control_GG: a third distance, whose linear part is taken out of both: r_ab.c = (r_ab - r_ac r_bc) /
        sqrt((1 - r_ac^2) (1 - r_bc^2)). The languages of a are relabelled, those of b and c stay together.
    permutations: labellings drawn where there are more than 10,000; all are tried otherwise.
    All is nan where the pairs of a are all alike, as in the layer of a router that has collapsed.
    Raises DataError for fewer than four languages, or a b or control whose pairs are all alike.
    Source: Mantel 1967; Smouse, Long & Sokal 1986 (partial); p of drawn labellings as (1 + hits) / (1 + drawn).
    """
    _require_pairs(b_GG, *([] if control_GG is None else [control_GG]))
    labels_MG, exact = _labellings(len(b_GG), permutations, seed)
    a_XP = _standard(pairs_of(a_XGG), method)
    null_XM = _relabelled(a_XP, b_GG, labels_MG, method)
    if control_GG is not None:
        with_control_XM = _relabelled(a_XP, control_GG, labels_MG, method)
        between = float(_standard(pairs_of(b_GG), method) @ _standard(pairs_of(control_GG), method))
        spread_XM = np.sqrt(np.maximum((1 - with_control_XM**2) * (1 - between**2), ROUNDING))
        null_XM = (null_XM - with_control_XM * between) / spread_XM
    r_X = null_XM[..., 0]  # the first labelling is the one observed
    reached_XM = np.abs(null_XM) >= np.abs(r_X)[..., None] - ROUNDING
    low_X, high_X = np.quantile(null_XM, [0.025, 0.975], axis=-1)
    p_X = np.where(np.isnan(r_X), np.nan, reached_XM.mean(axis=-1))
    return Mantel(r_X, p_X, low_X, high_X, len(labels_MG), exact)


def _labellings(languages: int, number: int, seed: int) -> tuple[np.ndarray, bool]:
    """Relabellings [M, G], the identity first, and whether they are all there are."""
    if factorial(languages) <= MOST_EXACT:
        return np.array(list(itertools.permutations(range(languages)))), True
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(languages) for _ in range(number)]
    return np.array([np.arange(languages), *drawn]), False


def _relabelled(a_XP: np.ndarray, matrix_GG: np.ndarray, labels_MG: np.ndarray, method: Method) -> np.ndarray:
    """Correlation of standardised pairs with those of the matrix under each labelling, [..., M]; block by block."""
    first_P, second_P = np.triu_indices(len(matrix_GG), 1)
    block = max(1, BLOCK_ELEMENTS // len(first_P))
    parts = (labels_MG[start : start + block] for start in range(0, len(labels_MG), block))
    found = [a_XP @ _standard(matrix_GG[part[:, first_P], part[:, second_P]], method).T for part in parts]
    return np.concatenate(found, axis=-1)


def _standard(values_XP: np.ndarray, method: Method) -> np.ndarray:
    """Centred and of length one, so that a product of two is their correlation; nan where all values are alike."""
    alike_X1 = is_flat(values_XP)[..., None]
    values_XP = rankdata(values_XP, axis=-1) if method == "spearman" else values_XP
    centred_XP = values_XP - values_XP.mean(axis=-1, keepdims=True)
    length_X1 = np.where(alike_X1, np.nan, np.linalg.norm(centred_XP, axis=-1, keepdims=True))
    return centred_XP / length_X1


def is_flat(values_XP: np.ndarray) -> np.ndarray:
    """Whether all values are alike, to rounding; [...]."""
    return np.ptp(values_XP, axis=-1) <= ROUNDING


def _require_pairs(*matrices: Any) -> None:
    languages = matrices[0].shape[-1]
    if languages < FEWEST_LANGUAGES:
        raise DataError(
            f"a correlation over pairs of languages needs {FEWEST_LANGUAGES} languages or more, {languages} given; "
            "capture more"
        )
    if any(is_flat(pairs_of(m)).any() for m in matrices):
        raise DataError(
            "all pairs of languages are equally far apart in one of the measures, so nothing can correlate with it; "
            "add languages that differ in it"
        )
