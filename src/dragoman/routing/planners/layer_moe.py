"""LayerMoE: how many experts each layer of a dense model needs, from how alike languages are there.

Shape letters: G languages, L layers, T tokens, D model width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.planners.base import kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling.feed_forwards import FeedForward

LEAST = 1e-3


@dataclass(frozen=True, kw_only=True)
class LayerMoeConfig:
    """More experts where languages are less alike."""

    new: tuple[str, ...]
    """Languages that the experts are for."""
    known: tuple[str, ...]
    """Languages that they are compared with."""
    experts: int
    """Experts of all layers together. Each layer gets one or more; rounding up adds less than one a layer."""

    def __post_init__(self) -> None:
        named = Counter((*self.new, *self.known))
        problems = [f"no {side} language is given" for side in ("new", "known") if not getattr(self, side)]
        if several := [g for g, times in named.items() if times > 1]:
            problems.append(f"{', '.join(several)} is named more than once")
        if problems:
            raise ConfigError(f"LayerMoE compares new languages with known ones: {'; '.join(problems)}")


def layer_moe_numbers(
    model: PreTrainedModel, samples: Mapping[str, Sequence[Sequence[int]]], config: LayerMoeConfig
) -> ExpertNumbers:
    """How many translation experts each layer gets: more where languages are less alike.

        S_i = (likeness of new and new + likeness of new and known) / 2    likeness: mean cosine of all pairs of tokens
        N_i = ceil( (1 / S_i) / sum_j (1 / S_j) * experts )                the first expert included

    The mean cosine over all pairs of tokens of two languages is the product of their mean unit vectors, so no matrix of
    pairs is made.
    samples: token ids of each language, behind a start token, which is not counted.
    Raises ModelError for a model that is not dense, ConfigError for fewer experts than layers, DataError for a language
    without text.
    Source: Zhang et al. 2025 (LayerMoE, arXiv:2505.22582), sec. 3.1, and the released code.
    Differs: of one language with itself a token's cosine with itself counts (one pair of n). Likeness below `LEAST`
    counts as that: with a product near or below zero a layer would take the whole budget. The numbers are those of
    translation experts, beside slices of the feed-forward; in the paper they are of copies for new languages, the dense
    feed-forward among them. The second stage's classifier, which reads the whole sequence in the release and so looks
    ahead, is not here.
    """
    found = _feed_forwards(model)
    experts_per_layer([1.0] * len(found), config.experts)  # refused before the text is read
    unit_GLD = mean_unit_vectors(model, {g: samples.get(g, ()) for g in (*config.new, *config.known)})
    similarity_L = similarity(unit_GLD, config.new, config.known).tolist()
    layers, numbers = [ffn.layer_id for ffn in found], experts_per_layer(similarity_L, config.experts)
    ordered = sorted(zip(similarity_L, layers, strict=True))
    (low, least), (high, most) = ordered[0], ordered[-1]
    return ExpertNumbers(
        planner="layer_moe",
        experts=dict(zip(layers, numbers, strict=True)),
        statistic={layer: kept(s) for layer, s in zip(layers, similarity_L, strict=True)},
        width=found[0].size,
        feed_forwards={ffn.layer_id: ffn.width for ffn in found},
        settings={"new": list(config.new), "known": list(config.known), "experts": config.experts},
        why=(
            f"the statistic is the likeness of {', '.join(config.new)} among themselves and with "
            f"{', '.join(config.known)} at the input of each feed-forward; experts go by 1 / likeness",
            f"they are least alike in layer {least} ({low:.3f}) and most in layer {most} ({high:.3f})",
            f"{sum(numbers)} experts for a budget of {config.experts}: each layer's number is rounded up",
        ),
    )


def similarity(unit_GLD: Mapping[str, np.ndarray], new: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """S_L of mean unit vectors."""

    def mean(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        return np.mean([(unit_GLD[x] * unit_GLD[y]).sum(-1) for x in a for y in b], axis=0)

    return (mean(new, new) + mean(new, known)) / 2


def experts_per_layer(similarity_L: Sequence[float], budget: int, least: float = LEAST) -> list[int]:
    """Experts of each layer, at least one; the sum exceeds the budget by less than the number of layers."""
    if budget < len(similarity_L):
        raise ConfigError(f"a budget of {budget} experts leaves none for some of {len(similarity_L)} layers; give more")
    inverse = [1 / max(s, least) for s in similarity_L]
    return [math.ceil(round(x / sum(inverse) * budget, 9)) for x in inverse]


def mean_unit_vectors(model: PreTrainedModel, texts: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, np.ndarray]:
    """Of each language, the mean over its tokens of the direction of each feed-forward's input, [L, D].

    texts: token ids behind a start token, which is not counted. Raises ModelError for a model that is not dense,
    DataError for a language without text.
    """
    import torch

    from dragoman.modeling import hidden_states

    found = _feed_forwards(model)
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
                with torch.no_grad():
                    hidden_states(model, row_BS, torch.ones_like(row_BS))
        finally:
            for hook in hooks:
                hook.remove()
        result[g] = (sums_LD / sum(len(ids) - 1 for ids in segments)).numpy()
    return result


def _feed_forwards(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    from dragoman.modeling.feed_forwards import feed_forwards
    from dragoman.modeling.probing import find_routers

    found, routers = feed_forwards(model), find_routers(model)
    if routers or not found:
        why = "has experts already" if routers else "has no feed-forward that was found"
        name = type(model).__name__
        raise ModelError(f"LayerMoE compares languages at the feed-forwards of a dense model, and {name} {why}")
    return found
