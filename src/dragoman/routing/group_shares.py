"""How much of the routing goes to a group of experts, for several kinds of text, layer by layer.

    share = sum over tokens and chosen experts of the group of w_e / tokens,   w the weights of the chosen, sum 1

Source: the claim of Li et al. 2026 (Mix-MoE, arXiv:2605.24681) that routing separates language modelling from
translation; the paper's own measurement is not known.
Differs: beside the claim stand the same share between two halves of the monolingual text (placebo), and between
language pairs, so that what is the text's content and what is its form can be told apart.

Shape letters: L MoE layers, N segments, B sequences, S positions, T tokens, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from dragoman.errors import DataError
from dragoman.modeling import hidden_states, moe_layers, tap_routers
from dragoman.routing.drawing import MUTED, SYSTEM_COLOURS, axes_with_margins, inline, layer_axis

BATCH = 32
"""Segments at once."""


@torch.no_grad()
def group_mass(model: PreTrainedModel, segments: Sequence[Sequence[int]], first: int) -> np.ndarray:
    """sums_LN2: of each segment, mass on experts from `first` on and tokens; its first token, the start, not counted.

    Raises DataError for segments without a token behind the start.
    """
    if short := [n for n, ids in enumerate(segments) if len(ids) < 2]:
        raise DataError(f"segments {short[:8]} have no token behind the start token; leave them out")
    layers = moe_layers(model)
    sums_LN2 = np.zeros((len(layers), len(segments), 2))
    order = sorted(range(len(segments)), key=lambda n: -len(segments[n]))
    model.eval()
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        ids_BS = torch.zeros(len(batch), len(segments[batch[0]]), dtype=torch.long, device=model.device)
        mask_BS = torch.zeros_like(ids_BS)
        for b, n in enumerate(batch):
            ids_BS[b, : len(segments[n])] = torch.as_tensor(segments[n])
            mask_BS[b, : len(segments[n])] = 1
        with tap_routers(model, layers) as seen:
            hidden_states(model, ids_BS, mask_BS)
        counted_BS = mask_BS.clone()
        counted_BS[:, 0] = 0
        for row, routed in enumerate(seen):
            mass_BS = (routed.weights_TK.float() * (routed.indices_TK >= first)).sum(-1).view(ids_BS.shape)
            sums_LN2[row, batch, 0] = (mass_BS * counted_BS).sum(-1).cpu().numpy()
            sums_LN2[row, batch, 1] = counted_BS.sum(-1).cpu().numpy()
    return sums_LN2


def share(sums: np.ndarray) -> np.ndarray:
    """Mass over tokens, of summed sums [..., 2]."""
    return sums[..., 0] / sums[..., 1]


def by_layer(sums_LN2: np.ndarray) -> list[float]:
    """The share in each layer."""
    return share(sums_LN2.sum(1)).tolist()


def halves(sums_LN2: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the segments, by lot; of an odd number one is left out."""
    order = np.random.default_rng(seed).permutation(sums_LN2.shape[1])
    size = len(order) // 2
    return sums_LN2[:, order[:size]], sums_LN2[:, order[size : 2 * size]]


@inline
def group_share_figure(
    shares: Mapping[str, Sequence[float]], placebo: tuple[Sequence[float], Sequence[float]], layer_ids: Sequence[int]
) -> tuple[Figure, str]:
    """Share of routing that goes to translation experts over depth, one line a kind of text.

    shares: {kind: [L]}; placebo: the shares of two halves of one kind, a grey band between them.
    """
    height = 250
    figure, axes = axes_with_margins(height, left=48, right=12)
    places = range(len(layer_ids))
    axes.fill_between(places, *placebo, color=MUTED, alpha=0.4, linewidth=0, label="two halves (placebo)")
    axes.plot(places, placebo[0], color=MUTED, linewidth=0.8)
    for (kind, share_L), colour in zip(shares.items(), _colours(len(shares)), strict=True):
        mono = "-" not in kind
        axes.plot(places, share_L, color=colour, linestyle="--" if mono else "-", linewidth=1.6, label=kind)
    layer_axis(axes, layer_ids)
    axes.set_ylim(0, 1)
    axes.set_ylabel("mass on translation experts")
    axes.legend(fontsize=8, ncol=2, frameon=False)
    largest = max(shares, key=lambda kind: float(np.mean(shares[kind])))
    return figure, (
        f"Share of routing to translation experts by layer; the largest on average is that of {largest}, "
        f"{np.mean(shares[largest]):.2f}. Dashed, monolingual text."
    )


def _colours(number: int) -> list[Any]:
    return [SYSTEM_COLOURS[1 + i % (len(SYSTEM_COLOURS) - 1)] for i in range(number)]
