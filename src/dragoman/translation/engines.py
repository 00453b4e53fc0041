"""Engines: what turns prompts into translations. Now the one on a loaded model, greedy and in batches by length.

Shape letters: B prompts of a batch, S positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel


def translate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    pad_id: int,
    max_new: Callable[[int], int] = lambda prompt_tokens: 2 * prompt_tokens + 20,
    batch: int = 128,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[list[int]]:
    """The likeliest next token again and again, until `end_id` or `max_new(longest prompt of the batch)` tokens.

    Returns the new tokens of each prompt, in the given order, without the end token.
    """
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    model.eval()
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        width = len(prompts[chosen[0]])
        ids = torch.full((len(chosen), width), pad_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.as_tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        settings = GenerationConfig(
            max_new_tokens=max_new(width), do_sample=False, eos_token_id=end_id, pad_token_id=pad_id
        )
        with torch.inference_mode():
            out = model.generate(  # type: ignore[operator]
                ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )
        for row, i in enumerate(chosen):
            new = out[row, width:].tolist()
            results[i] = new[: new.index(end_id)] if end_id in new else new
        progress(len(chosen))
    return results
