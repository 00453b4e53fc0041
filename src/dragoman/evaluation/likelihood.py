"""Likelihood: the exact number of bits that a causal language model spends on a text.

    bits(t_1 .. t_n) = - sum_i log2 p(t_i | start, t_1 .. t_{i-1})

A segment longer than the context is read in windows that end half a context apart. Every window fills the context and
only its new tokens are counted, so each token counts once and sees at least half a context to its left (all there is,
near the beginning).

Source: transformers documentation, "Perplexity of fixed-length models", for the strided windows.
Differs: a start token stands before the first token, so that one is counted too; nothing is averaged over windows.
"""

# Shape letters: N segments, B windows in a batch, S positions, T counted tokens, R = B * S rows, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.evaluation.checks import some
from dragoman.modeling import logits_at

ROWS = 512
"""Positions whose [., V] logits are held in float32 at once."""


class _Window(NamedTuple):
    segment: int
    begin: int
    """First predicted token; the input begins one token earlier (or with the start token)."""
    end: int
    counted: int
    """How many of the last tokens were not predicted by an earlier window."""


Batch = list[_Window]


def text_bits(
    model: Any,
    token_ids: Sequence[Sequence[int]],
    *,
    start_id: int,
    context: int,
    batch_tokens: int = 8192,
    given: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Bits_N, float64: -log2 of the probability of each segment's tokens, in input order.

    model: a torch module; `model(input_ids=, attention_mask=).logits` [B, S, V] and `model.device` are all that is
        used. It runs in evaluation mode and is left in the mode it came in.
    token_ids: the text's own tokens, no special tokens. With a byte-level vocabulary they stand for
        `len(text.encode())` bytes.
    start_id: token that stands before each segment; it is a condition and costs nothing.
    context: most tokens the model may see at once (start token included), 2 or more.
    batch_tokens: most tokens in a batch, padding included (one window always fits). Changes speed and memory only:
        the model's own [B, S, V] logits are the largest array, and no second copy of them is made.
    given: of each segment, how many of its first tokens are a condition and cost nothing, like the start token; 0.
    progress: called after each batch with the windows done and the windows in all.

    Raises DataError for segments without tokens, ConfigError for a context below 2, ModelError where the model gives
    a likelihood that is not finite.
    """
    if context < 2:
        raise ConfigError(f"a context of {context} tokens leaves nothing to predict from; give 2 or more")
    if empty := [n for n, tokens in enumerate(token_ids) if not len(tokens)]:
        raise DataError(f"segments {some(empty)} have no tokens; leave out segments without text before scoring")
    bits_N = np.zeros(len(token_ids))
    batches = _batches(_windows(token_ids, context), batch_tokens)
    done, windows = 0, sum(map(len, batches))
    with _evaluating(model), torch.inference_mode():
        for number, batch in enumerate(batches, start=1):
            segment_T, bits_T = _batch_bits(model, batch, token_ids, start_id, given or [0] * len(token_ids))
            _refuse_not_finite(segment_T, bits_T, f"batch {number} of {len(batches)}")
            np.add.at(bits_N, segment_T, bits_T)
            done += len(batch)
            if progress:
                progress(done, windows)
    return bits_N


def _windows(token_ids: Sequence[Sequence[int]], context: int) -> list[_Window]:
    windows = []
    for segment, tokens in enumerate(token_ids):
        end = counted = min(len(tokens), context)
        windows.append(_Window(segment, 0, end, counted))
        while end < len(tokens):
            counted = min(context // 2, len(tokens) - end)
            end += counted
            windows.append(_Window(segment, end - context, end, counted))
    return windows


def _batches(windows: list[_Window], batch_tokens: int) -> list[Batch]:
    """Windows of similar length together, the longest first: a batch that does not fit shows at once."""
    batches: list[Batch] = []
    room = 0
    for window in sorted(windows, key=lambda w: w.begin - w.end):
        if room == 0:
            batches.append([])
            room = max(1, batch_tokens // (window.end - window.begin))
        batches[-1].append(window)
        room -= 1
    return batches


def _batch_bits(
    model: Any, batch: Batch, token_ids: Sequence[Sequence[int]], start_id: int, given: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(segment_T, bits_T) of the tokens that the batch counts."""
    shape = len(batch), max(w.end - w.begin for w in batch)
    input_BS, target_BS = np.full(shape, start_id), np.full(shape, start_id)
    mask_BS, counted_BS = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for b, window in enumerate(batch):
        size = window.end - window.begin
        tokens = token_ids[window.segment][window.begin : window.end]
        before = token_ids[window.segment][window.begin - 1] if window.begin else start_id
        target_BS[b, :size] = tokens
        input_BS[b, :size] = [before, *tokens[:-1]]
        mask_BS[b, :size] = 1
        counted_BS[b, max(size - window.counted, given[window.segment] - window.begin) : size] = True
    input_ids, attention_mask = (torch.from_numpy(array).to(model.device) for array in (input_BS, mask_BS))
    place_T = torch.from_numpy(np.flatnonzero(counted_BS)).to(model.device)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if counted_BS.sum() < mask_BS.sum():  # else there is hardly a logit to be spared, and choosing would copy them all
        logits_RV, row_T = logits_at(model, place_T, **inputs), torch.arange(len(place_T))
    else:
        logits_RV, row_T = model(**inputs).logits.flatten(0, 1), place_T
    target_T = torch.from_numpy(target_BS[counted_BS])
    bits_T = _target_bits(logits_RV, target_T.to(logits_RV.device), row_T.to(logits_RV.device))
    segment_B = np.array([w.segment for w in batch])
    return np.repeat(segment_B, counted_BS.sum(axis=1)), bits_T


def _target_bits(logits_RV: torch.Tensor, target_T: torch.Tensor, row_T: torch.Tensor) -> np.ndarray:
    """-log2 softmax at the targets, in the rows asked for; log-sum-exp in float32, ROWS positions at a time."""
    nats = []
    for rows, targets in zip(row_T.split(ROWS), target_T.split(ROWS), strict=True):
        logits_TV = logits_RV[rows].float()
        chosen_T = logits_TV.gather(1, targets.unsqueeze(1)).squeeze(1)
        nats.append((logits_TV.logsumexp(dim=1) - chosen_T).double().cpu().numpy())
    return np.concatenate(nats) / math.log(2)


def _refuse_not_finite(segment_T: np.ndarray, bits_T: np.ndarray, where: str) -> None:
    if bad := sorted(set(segment_T[~np.isfinite(bits_T)].tolist())):
        raise ModelError(
            f"the model gave likelihoods that are not finite for segments {some(bad)} ({where}); "
            "float16 overflows and broken weights do this: load it in float32 or bfloat16, or check its weights"
        )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, no router noise); every submodule gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
