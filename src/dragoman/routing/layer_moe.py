"""LayerMoE: how many experts each layer needs, from how alike languages are there.

    S_i = (likeness of new and new + likeness of new and old) / 2    likeness: mean cosine of all pairs of tokens
    N_i = ceil( (1 / S_i) / sum_j (1 / S_j) * budget )               the first expert included

Layers where languages are alike share experts; where they differ they get more. The mean cosine over all pairs of
tokens of two languages is the product of their mean unit vectors, so no matrix of pairs is made.

Source: Zhang et al. 2025 (LayerMoE, arXiv:2505.22582), sec. 3.1, and the released code.
Differs: of one language with itself a token's cosine with itself counts (one pair of n). Likeness below `least` counts
as that: with a product near or below zero a layer would take the whole budget. The second stage's classifier, which
reads the whole sequence in the release and so looks ahead, is not here.

Shape letters: G languages, L layers, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import hidden_states
from dragoman.modeling.feed_forwards import feed_forwards
from dragoman.modeling.probing import find_routers

LEAST = 1e-3


def similarity(unit_GLD: Mapping[str, np.ndarray], new: Sequence[str], old: Sequence[str]) -> np.ndarray:
    """S_L of mean unit vectors. ConfigError without languages on both sides."""
    missing = [g for g in (*new, *old) if g not in unit_GLD]
    if missing or not new or not old:
        raise ConfigError(
            f"LayerMoE compares new languages with old ones; given were new {', '.join(new) or 'none'}, old "
            f"{', '.join(old) or 'none'}, without text {', '.join(missing) or 'none'}"
        )

    def mean(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        return np.mean([(unit_GLD[x] * unit_GLD[y]).sum(-1) for x in a for y in b], axis=0)

    return (mean(new, new) + mean(new, old)) / 2


def experts_per_layer(similarity_L: Sequence[float], budget: int, least: float = LEAST) -> list[int]:
    """Experts of each layer, at least one; the sum exceeds the budget by less than the number of layers."""
    if budget < len(similarity_L):
        raise ConfigError(f"a budget of {budget} experts leaves none for some of {len(similarity_L)} layers; give more")
    inverse = [1 / max(s, least) for s in similarity_L]
    return [math.ceil(round(x / sum(inverse) * budget, 9)) for x in inverse]


@torch.no_grad()
def mean_unit_vectors(model: PreTrainedModel, texts: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, np.ndarray]:
    """Of each language, the mean over its tokens of the direction of each feed-forward's input, [L, D].

    texts: token ids behind a start token, which is not counted. Raises ModelError for a model that is not dense,
    DataError for a language without text.
    """
    found = feed_forwards(model)
    if find_routers(model) or not found:
        why = "has experts already" if find_routers(model) else "has no feed-forward that was found"
        name = type(model).__name__
        raise ModelError(f"LayerMoE compares languages at the feed-forwards of a dense model, and {name} {why}")
    if empty := [g for g, segments in texts.items() if not any(len(ids) > 1 for ids in segments)]:
        raise DataError(f"there is no text in {', '.join(empty)} to compare; give other languages or more segments")
    holders = [getattr(ffn.holder, ffn.ups[0]) for ffn in found]
    result = {}
    for g, segments in texts.items():
        sums_LD = torch.zeros(len(found), found[0].size, dtype=torch.float64)

        def add(row: int, state: torch.Tensor, sums_LD: torch.Tensor = sums_LD) -> None:
            unit_TD = torch.nn.functional.normalize(state.reshape(-1, state.shape[-1])[1:].double(), dim=-1)
            sums_LD[row] += unit_TD.sum(0).cpu()

        hooks = [
            m.register_forward_pre_hook(lambda _m, args, row=i, add=add: add(row, args[0]))
            for i, m in enumerate(holders)
        ]
        try:
            for ids in segments:
                row_BS = torch.tensor([list(ids)], device=model.device)
                hidden_states(model, row_BS, torch.ones_like(row_BS))
        finally:
            for hook in hooks:
                hook.remove()
        result[g] = (sums_LD / sum(len(ids) - 1 for ids in segments)).numpy()
    return result
