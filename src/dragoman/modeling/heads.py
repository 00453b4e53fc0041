"""Logits of some tokens alone: with a large vocabulary and few labels the output embedding is most of a pass.

Shape letters: B rows, S tokens per row, T the chosen tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch


def logits_at(model: Any, places_T: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [T, V] of the tokens at places_T of the flattened rows `input_ids`, in one pass over all of them.

    The output embedding computes these alone where it is a module that is given one state for each token ([B, S, D]);
    elsewhere all logits are computed, and chosen from.
    """
    shape = inputs["input_ids"].shape

    def chosen(_head: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        whole = len(given) == 1 and given[0].shape[:2] == shape
        return (given[0].flatten(0, 1)[places_T][None],) if whole else None

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    hook = head.register_forward_pre_hook(chosen) if head is not None else None
    try:
        logits_BSV = model(**inputs).logits
    finally:
        if hook:
            hook.remove()
    return logits_BSV.flatten(0, 1)[places_T] if logits_BSV.shape[:2] == shape else logits_BSV.flatten(0, 1)
