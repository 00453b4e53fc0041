"""Batches that are padded on the left, as reading on from kept keys and values needs them.

Shape letters: B prompts of a batch, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

PLAIN_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer"}
"""Layers of transformers' caches that choosing rows makes new tensors of; by name, as not all versions have all."""


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts that end together, and their mask (1 for tokens, 0 for filler): both int64 [B, S]."""
    width = max(map(len, prompts))
    ids_BS = torch.full((len(prompts), width), pad_id)
    mask_BS = torch.zeros_like(ids_BS)
    for b, prompt in enumerate(prompts):
        ids_BS[b, width - len(prompt) :] = torch.as_tensor(prompt)
        mask_BS[b, width - len(prompt) :] = 1
    return ids_BS.to(device), mask_BS.to(device)


def positions(mask_BS: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own text, [B, S]; 0 for filler before it."""
    return (mask_BS.cumsum(dim=1) - 1).clamp(min=0)


def rows_can_be_chosen(cache: Any) -> bool:
    """Whether rows of a cache can be dropped or repeated: it holds keys and values alone.

    Caches with states of linear attention or of convolutions have the method too, and leave those states as they are.
    """
    layers = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    return type(cache).__name__ == "DynamicCache" and layers <= PLAIN_LAYERS
