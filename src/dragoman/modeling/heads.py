"""The output embedding: logits of some tokens alone, and whether logits are its product and nothing more. With a large
vocabulary it is most of a pass.

Shape letters: B rows, S tokens per row, T the chosen tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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


@dataclass(frozen=True)
class PlainHead:
    """A model in two parts: logits are `linear` of what `trunk` gives first, and nothing more is done to them."""

    trunk: nn.Module
    linear: nn.Linear

    def states(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The last hidden states, [B, S, D]."""
        return self.trunk(**inputs, use_cache=False)[0]


def plain_head(model: Any) -> PlainHead | None:
    """The two parts, or None where the model scales or caps logits or states, or its head is no plain matrix.

    The model is asked: in a pass of two tokens its head gives numbers far apart, which have to come out as they are.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    trunk = getattr(model, "base_model", model)
    if type(head) is not nn.Linear or trunk is model or head._forward_hooks or head._forward_pre_hooks:
        return None
    if "forward" in vars(head):  # rows of tags train so
        return None
    ids_BS, seen = torch.tensor([[0, 1]], device=model.device), []
    numbers_BSV = torch.arange(2 * head.out_features, dtype=head.weight.dtype, device=model.device).view(1, 2, -1) - 1e4

    def instead(_head: nn.Module, given: tuple[torch.Tensor, ...], _logits: torch.Tensor) -> torch.Tensor:
        seen.append(given[0])
        return numbers_BSV

    hooks = [
        trunk.register_forward_hook(lambda _trunk, _given, out: seen.append(out[0])),
        head.register_forward_hook(instead),
    ]
    try:
        with torch.no_grad():
            logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    same = len(seen) == 2 and torch.equal(*seen) and torch.equal(logits_BSV, numbers_BSV)
    return PlainHead(trunk, head) if same else None
