"""Whether a model keeps documents that are packed into one row apart.

Models of transformers tell documents by positions that begin anew, where no mask and no cache is given. Some classes
build their mask without the positions, and their tokens would attend to other documents without a word.

Shape letters: B sequences, S positions.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

APART = 1e-3
"""Difference of logits, relative to the largest, that rounding may make."""


def isolates(model: PreTrainedModel) -> bool:
    """Whether the tokens of a second document are read alike whatever the first one is; asked with a pass."""
    ids_BS = torch.tensor([[5, 6, 7, 8, 9, 10], [9, 8, 5, 8, 9, 10]], device=model.device)
    places_BS = torch.tensor([[0, 1, 2, 0, 1, 2]] * 2, device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        second = model(input_ids=ids_BS, position_ids=places_BS, use_cache=False).logits[:, 3:].float()
    model.train(was_training)
    return bool((second[0] - second[1]).abs().max() <= APART * second.abs().max())
