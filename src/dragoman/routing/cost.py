"""What a tokenizer makes of each language: tokens per byte, and tokens for the same text.

Shape letters: N segments, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import DataError
from dragoman.routing.stats import bootstrap_interval


@dataclass(frozen=True)
class TokenizerCost:
    """Of one language."""

    tokens: int
    bytes: int
    """UTF-8."""
    per_byte: float
    """Tokens per byte: 1 is a tokenizer of bytes."""
    relative: float | None
    """Tokens over those of the reference for the same text; None where the text is not parallel."""
    interval: tuple[float, float] | None
    """Of `relative`, 95%, bootstrap over segments."""


def tokenizer_cost(
    num_tokens: Mapping[str, Sequence[int]],
    texts: Mapping[str, Sequence[str]],
    reference: str,
    parallel: bool = True,
    seed: int = 0,
) -> dict[str, TokenizerCost]:
    """Tokens per byte of each language, and on parallel text tokens relative to the reference.

    num_tokens: language -> tokens of each segment, special tokens left out; texts: language -> those segments.
    parallel: segment i is the same text in every language.
    Raises DataError for languages without text, and where numbers of tokens and of segments differ.
    Source: tokens relative to English on parallel text as in Petrov et al. 2023 (arXiv:2305.15425), premium.
    Differs: pooled over the text, with an interval.
    """
    sizes_N2 = {
        g: np.array([n, [len(t.encode()) for t in texts[g]]], dtype=np.int64).T for g, n in _counted(num_tokens, texts)
    }
    if empty := [g for g, size_N2 in sizes_N2.items() if not size_N2.sum(axis=0).all()]:
        raise DataError(f"the cost of the tokenizer needs text, none of {', '.join(empty)} was given; leave them out")
    return {g: _cost(size_N2, sizes_N2[reference] if parallel else None, seed) for g, size_N2 in sizes_N2.items()}


def _counted(
    num_tokens: Mapping[str, Sequence[int]], texts: Mapping[str, Sequence[str]]
) -> list[tuple[str, list[int]]]:
    if wrong := [f"{g} {len(n)} and {len(texts[g])}" for g, n in num_tokens.items() if len(n) != len(texts[g])]:
        raise DataError(f"numbers of tokens and texts must be of the same segments, given were {', '.join(wrong)}")
    return [(g, list(n)) for g, n in num_tokens.items()]


def _cost(size_N2: np.ndarray, reference_N2: np.ndarray | None, seed: int) -> TokenizerCost:
    tokens, num_bytes = map(int, size_N2.sum(axis=0))
    if reference_N2 is None:
        return TokenizerCost(tokens, num_bytes, tokens / num_bytes, None, None)
    relative = tokens / int(reference_N2[:, 0].sum())
    if len(size_N2) < 2:
        return TokenizerCost(tokens, num_bytes, tokens / num_bytes, relative, None)
    found = bootstrap_interval(_ratio, size_N2[:, :1, None], reference_N2[:, :1, None], seed=seed)
    return TokenizerCost(tokens, num_bytes, tokens / num_bytes, relative, (float(found.low), float(found.high)))


def _ratio(tokens_R11: np.ndarray, reference_R11: np.ndarray) -> np.ndarray:
    return (tokens_R11 / reference_R11)[:, 0, 0]
