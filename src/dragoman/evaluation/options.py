"""Option likelihood accuracy: does the model find the right one of several continuations the most likely?

    right if argmin over options o of   none   bits(o | prompt)
                                        bytes  bits(o | prompt) / UTF-8 bytes of o
                                        pmi    bits(o | prompt) - bits(o | last token of the prompt)
    is the right one

Without normalisation a short option wins by being short; per byte, a long predictable one does; by pointwise mutual
information (pmi) the one that the prompt makes likelier than it is anyway. None is the truth, so the choice stands in
the signature.

Source: Brown et al. 2020 (arXiv:2005.14165), sec. 2.4, for choosing by likelihood, and for what an option costs without
its question; lm-evaluation-harness has the three as `acc`, `acc_norm` and `acc_mutual_info`.
Differs: equal likelihoods share the point, where an argmax gives it to whichever option is listed first. Under pmi the
prompt's last token stays, as the "Answer:" of Brown et al. does; the harness leaves nothing.
"""

# Shape letters: N segments, O options of one segment.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import Metric, ratio
from dragoman.evaluation.checks import some

COSTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": lambda bits_O, against_O: bits_O,
    "bytes": lambda bits_O, against_O: bits_O / against_O,
    "pmi": lambda bits_O, against_O: bits_O - against_O,
}
"""Normalisation -> what each option costs, given its bits and what they are held against."""


class Options(NamedTuple):
    """One item: what the model is shown and what it may go on with, as tokens."""

    prompt: Sequence[int]
    options: Sequence[Sequence[int]]
    """Tokens of each option as it follows the prompt (with its leading space, where the language has one)."""


def option_bits(
    model: Any, items: Sequence[Options], *, start_id: int, context: int, batch_tokens: int = 8192
) -> list[np.ndarray]:
    """Bits_O of every option given its prompt, one array an item; settings as in `likelihood.text_bits`.

    Raises DataError for items with fewer than two options, options without tokens, and options that do not fit the
    context with their prompt: a prompt cut short would be another question.
    """
    from dragoman.evaluation.likelihood import continuation_bits

    if few := [n for n, item in enumerate(items) if len(item.options) < 2]:
        raise DataError(f"items {some(few)} have fewer than two options; there is nothing to choose between")
    if empty := [n for n, item in enumerate(items) if not all(len(option) for option in item.options)]:
        raise DataError(f"items {some(empty)} have options without tokens; leave them out")
    if long := [n for n, item in enumerate(items) if len(item.prompt) + max(map(len, item.options)) > context]:
        raise DataError(f"items {some(long)} do not fit the context of {context} tokens; shorten or leave them out")
    prompts, options = [item.prompt for item in items], [item.options for item in items]
    return continuation_bits(
        model, prompts, options, start_id=start_id, context=context, batch_tokens=batch_tokens
    )


class OptionAccuracy(Metric):
    """Share of items whose right option is the most likely, in percent; higher is better.

    normalise: see above. A hypothesis is [(bits, what they are held against) of each option]: bytes, or for `pmi` the
    bits without the question; a reference is the index of the right option. Raises ConfigError for an unknown
    normalisation, DataError for likelihoods that are not finite.
    """

    higher_is_better = True

    def __init__(self, normalise: str = "bytes") -> None:
        if normalise not in COSTS:
            raise ConfigError(f"options are not normalised by {normalise!r}; choose from {', '.join(COSTS)}")
        self.normalise = normalise
        self.name = "option accuracy" + {"none": "", "bytes": " per byte", "pmi": " by pmi"}[normalise]

    def segment_sums(self, hypothesis: Sequence[tuple[float, int]], reference: int) -> list[float]:
        """[points, items]; k equally likely best options, one of them right, give 1 / k."""
        bits_O, against_O = np.array(hypothesis, dtype=np.float64).T
        if not np.isfinite(bits_O).all():
            raise DataError(f"an item has options with bits {bits_O.tolist()}, not all finite; score the model again")
        cost_O = COSTS[self.normalise](bits_O, against_O)
        best_O = cost_O <= cost_O.min() + 1e-12 * abs(cost_O.min())
        return [float(best_O[reference] / best_O.sum()), 1]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1], scale=100)

    def signature(self) -> str:
        return f"normalised:{self.normalise}|ties:shared|prompt:given|tokens:prompt+option"
