"""Engines: what turns prompts into translations. Now the one on a loaded model, greedy and in batches by length.

A batch is padded on the left, keeps keys and values, and shrinks: a row that has ended leaves it. Each row has the
limit that it would have alone, so that a translation does not depend on its neighbours, apart from rounding: in fp32
the order of a sum differs with the shape of a batch, and where two tokens are all but equally likely the other one may
win (`first_parting` measures how near).

Shape letters: B prompts of a batch, S positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from dragoman.errors import DataError, ModelError
from dragoman.modeling import TextCodec, left_padded, positions, rows_can_be_chosen


@dataclass(frozen=True)
class Stops:
    """Tokens after which a translation is over."""

    ends: frozenset[int]
    """End-of-text tokens; not part of the result."""
    lines: frozenset[int] = frozenset()
    """Tokens whose text holds a line end; part of the result, since text may stand before it."""


def stops_of(model: PreTrainedModel, codec: TextCodec) -> Stops:
    """The end tokens of tokenizer and generation config, and every token with a line end: a segment is one line."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = [named] if isinstance(named, int) else list(named or ())
    texts = codec.tokenizer.batch_decode([[i] for i in range(len(codec.tokenizer))])
    ends = frozenset([codec.end_id, *more])
    return Stops(ends, frozenset(i for i, text in enumerate(texts) if "\n" in text) - ends)


def translate_greedy(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Stops,
    pad_id: int,
    max_new: Callable[[int], int] | Sequence[int] = lambda prompt_tokens: 2 * prompt_tokens + 20,
    context: int | None = None,
    batch: int = 128,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[list[int]]:
    """The likeliest next token again and again, until a stop, `max_new` tokens or a full context.

    Returns the new tokens of each prompt, in the given order, without the end token.

    max_new: most new tokens by the tokens of a prompt, or a number for each prompt.
    context: most tokens of prompt and translation together; None sets no limit.
    batch: prompts at once; changes speed and memory only (and near-ties, see above).
    Raises DataError for prompts that are empty or fill the context, ModelError where the model gives NaN.
    """
    limits = _limits(prompts, max_new, context)
    results: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    model.eval()
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        new = _decode(model, [prompts[i] for i in chosen], [limits[i] for i in chosen], stops, pad_id)
        for i, ids in zip(chosen, new, strict=True):
            results[i] = ids
        progress(len(chosen))
    return results


def _limits(
    prompts: Sequence[Sequence[int]], max_new: Callable[[int], int] | Sequence[int], context: int | None
) -> list[int]:
    most = [max_new(len(p)) for p in prompts] if callable(max_new) else list(max_new)
    room = [n if context is None else min(n, context - len(p)) for n, p in zip(most, prompts, strict=True)]
    if bad := [i for i, (n, p) in enumerate(zip(room, prompts, strict=True)) if n < 1 or not len(p)]:
        some = ", ".join(map(str, bad[:8])) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise DataError(
            f"no room to translate segments {some}: their prompts are empty or fill the context of {context} tokens; "
            "leave them out or split them"
        )
    return room


@dataclass
class _Row:
    limit: int
    new: list[int] = field(default_factory=list)
    ended: bool = False

    def take(self, token: int, stops: Stops) -> None:
        """Add the next token; a row that has ended takes no more."""
        if self.ended:
            return
        if token not in stops.ends:
            self.new.append(token)
        self.ended = token in stops.ends or token in stops.lines or len(self.new) >= self.limit


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], limits: Sequence[int], stops: Stops, pad_id: int
) -> list[list[int]]:
    """New tokens of one batch of prompts."""
    takes = inspect.signature(model.forward).parameters
    few: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    feed_BS, mask_BS = left_padded(prompts, pad_id, model.device)
    rows = [_Row(limit) for limit in limits]
    live, cache = rows, None
    while True:
        place = {"position_ids": positions(mask_BS)[:, -feed_BS.shape[1] :]} if "position_ids" in takes else {}
        out = model(input_ids=feed_BS, attention_mask=mask_BS, past_key_values=cache, use_cache=True, **place, **few)
        next_B, cache = _likeliest(out.logits[:, -1]), getattr(out, "past_key_values", None)
        for row, token in zip(live, next_B.tolist(), strict=True):
            row.take(token, stops)
        stay = [b for b, row in enumerate(live) if not row.ended]
        if not stay:
            return [row.new for row in rows]
        if len(stay) < len(live) and (cache is None or rows_can_be_chosen(cache)):  # else ended rows stay
            kept_B = torch.tensor(stay, device=feed_BS.device)
            live, next_B, feed_BS, mask_BS = [live[b] for b in stay], next_B[kept_B], feed_BS[kept_B], mask_BS[kept_B]
            if cache is not None:
                cache.batch_select_indices(kept_B)
        mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(live), 1)], dim=1)
        feed_BS = next_B[:, None] if cache is not None else torch.cat([feed_BS, next_B[:, None]], dim=1)


def _likeliest(logits_BV: torch.Tensor) -> torch.Tensor:
    if logits_BV.isnan().any():
        raise ModelError(
            "the model gave logits that are not numbers while translating; float16 overflows and broken weights do "
            "this: load it in float32 or bfloat16, or check its weights"
        )
    return logits_BV.argmax(dim=-1)


@dataclass(frozen=True)
class Parting:
    """Where two translations of one prompt part, and how near the two tokens were to each other."""

    position: int
    """Tokens that they share."""
    gap: float
    """Distance of the logits of the two tokens (an end counts as token), read alone and in float32."""
    spread: float
    """Standard deviation of all logits there, as a scale."""


@torch.inference_mode()
def first_parting(
    model: PreTrainedModel, prompt: Sequence[int], a: Sequence[int], b: Sequence[int], stops: Stops
) -> Parting | None:
    """The first place where two translations part and the gap of the two tokens' logits; None where they are equal.

    A translation that is a prefix of the other ended there by the likeliest of the end tokens.
    """
    if list(a) == list(b):
        return None
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ids = torch.tensor([[*prompt, *a[:shared]]], device=model.device)
    logits_V = model(input_ids=ids).logits[0, -1].float()
    end = max(stops.ends, key=lambda i: float(logits_V[i]))
    one, other = (ids[shared] if shared < len(ids) else end for ids in (list(a), list(b)))
    return Parting(shared, abs(float(logits_V[one] - logits_V[other])), float(logits_V.std()))
