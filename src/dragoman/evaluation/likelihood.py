"""Likelihood: the exact number of bits that a causal language model spends on a text.

    bits(t_1 .. t_n) = - sum_i log2 p(t_i | start, t_1 .. t_{i-1})

A segment longer than the context is read in windows that end half a context apart. Every window fills the context and
only its new tokens are counted, so each token counts once and sees at least half a context to its left (all there is,
near the beginning).

Source: transformers documentation, "Perplexity of fixed-length models", for the strided windows.
Differs: a start token stands before the first token, so that one is counted too; nothing is averaged over windows.
"""

# Shape letters: N segments, B windows or prompts in a batch, S positions, T counted tokens, R rows, V vocabulary,
# O continuations of one prompt, C rows of like length.

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.evaluation.checks import some
from dragoman.modeling import left_padded, logits_at, positions, rows_can_be_chosen

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
    named: Sequence[int] | None = None,
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
    named: the number by which messages name each segment; by default its place.
    progress: called after each batch with the windows done and the windows in all.

    Raises DataError for segments without tokens, ConfigError for a context below 2, ModelError where the model gives
    a likelihood that is not finite.
    """
    _require_context(context)
    if empty := [n for n, tokens in enumerate(token_ids) if not len(tokens)]:
        raise DataError(f"segments {some(empty)} have no tokens; leave out segments without text before scoring")
    bits_N, names_N = np.zeros(len(token_ids)), np.arange(len(token_ids)) if named is None else np.array(named)
    batches = _batches(_windows(token_ids, context), batch_tokens)
    done, windows = 0, sum(map(len, batches))
    with _evaluating(model), torch.inference_mode():
        for number, batch in enumerate(batches, start=1):
            segment_T, bits_T = _batch_bits(model, batch, token_ids, start_id, given or [0] * len(token_ids))
            _refuse_not_finite(names_N[segment_T], bits_T, f"batch {number} of {len(batches)}")
            np.add.at(bits_N, segment_T, bits_T)
            done += len(batch)
            if progress:
                progress(done, windows)
    return bits_N


def continuation_bits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    start_id: int,
    context: int,
    batch_tokens: int = 8192,
) -> list[np.ndarray]:
    """Bits_O, float64, of the continuations of each prompt, one array a prompt; settings as in `text_bits`.

    A prompt is read once, and all its continuations go on from the keys and values that the model keeps of it. Where it
    keeps something else (linear attention), shows none (PEFT's and compiled models) or does not come to the same bits,
    which is tried first, each is read with its prompt; also where that is less than twice as many tokens, since passes
    over a few tokens are slow.
    A prompt and a continuation together fit the context. A pass has at most `batch_tokens`, of continuations with what
    is kept of their prompts; keys and values of about twice as many are held at once.

    Raises DataError for prompts without continuations, for continuations without tokens and for those that do not fit
    the context with their prompt, and what `text_bits` raises.
    """
    _require_context(context)
    if faults := _faults(prompts, continuations, context):
        raise DataError(faults)
    settings: dict[str, Any] = {"start_id": start_id, "context": context, "batch_tokens": batch_tokens}
    with _evaluating(model), torch.inference_mode():
        if not _spares_half(prompts, continuations) or not _reads_on(model, prompts, continuations, **settings):
            return _each_with_its_prompt(model, prompts, continuations, **settings)
        found: list[np.ndarray] = [np.empty(0)] * len(prompts)
        batches = _batches([_Window(n, 0, len(p) + 1, 0) for n, p in enumerate(prompts)], batch_tokens)
        for number, batch in enumerate([[window.segment for window in windows] for windows in batches], start=1):
            chosen = [continuations[n] for n in batch]
            bits_R = _branched_bits(model, [prompts[n] for n in batch], chosen, start_id, batch_tokens)
            segment_R = np.repeat(batch, [len(of_one) for of_one in chosen])
            _refuse_not_finite(segment_R, bits_R, f"batch {number} of {len(batches)}")
            for n in batch:
                found[n] = bits_R[segment_R == n]
    return found


def _require_context(context: int) -> None:
    if context < 2:
        raise ConfigError(f"a context of {context} tokens leaves nothing to predict from; give 2 or more")


def _faults(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], context: int
) -> str:
    empty = [n for n, of_one in enumerate(continuations) if not len(of_one) or not all(len(c) for c in of_one)]
    both = zip(prompts, continuations, strict=True)
    long = [n for n, (p, of_one) in enumerate(both) if len(p) + max(map(len, of_one), default=0) > context]
    found = [f"prompts {some(empty)} have no continuation, or one without tokens"] if empty else []
    found += [f"prompts {some(long)} do not fit the context of {context} tokens with what follows"] if long else []
    return "; ".join(found) + ("; leave them out" if found else "")


def _spares_half(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Whether prompts that are read once leave half of the tokens at most."""
    both = list(zip(prompts, continuations, strict=True))
    once = sum(len(p) + sum(map(len, of_one)) for p, of_one in both)
    return 2 * once <= sum(len(p) + len(c) for p, of_one in both for c in of_one)


def _each_with_its_prompt(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], **settings: Any
) -> list[np.ndarray]:
    """The same bits, where every continuation is read with its prompt before it."""
    owner_R = [n for n, of_one in enumerate(continuations) for _ in of_one]
    rows = [[*p, *c] for p, of_one in zip(prompts, continuations, strict=True) for c in of_one]
    given = [len(prompts[n]) for n in owner_R]
    bits_R = text_bits(model, rows, given=given, named=owner_R, **settings)
    return np.split(bits_R, np.cumsum([len(of_one) for of_one in continuations])[:-1])


def _reads_on(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], **settings: Any
) -> bool:
    """Whether a model keeps rows that can be repeated, and goes on from them to the bits that it gives otherwise.

    That is tried on the two shortest prompts, of unlike length where there are such: some models count positions from
    filler, or keep more than their cache shows. In half precision 3 % are let pass, which most such faults exceed.
    """
    if not {"past_key_values", "use_cache"} <= set(inspect.signature(model.forward).parameters) or not prompts:
        return False
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    other = next((n for n in by_length if len(prompts[n]) > len(prompts[by_length[0]])), by_length[-1])
    tried, after = zip(*[(prompts[n], continuations[n]) for n in (by_length[0], other)], strict=True)
    weights = next(model.parameters()).dtype
    far = 1e-3 if weights in (torch.float32, torch.float64) else 0.03
    try:
        start_BS = torch.full((1, 1), settings["start_id"], device=model.device)
        read = model(input_ids=start_BS, attention_mask=torch.ones_like(start_BS), use_cache=True)
        if not rows_can_be_chosen(getattr(read, "past_key_values", None)):
            return False
        bits_R = _branched_bits(model, tried, after, settings["start_id"], settings["batch_tokens"])
        expected_R = np.concatenate(_each_with_its_prompt(model, tried, after, **settings))
    except Exception:  # whatever keeps it from reading on: reading all of it does without, or says what is wrong
        return False
    return np.allclose(bits_R, expected_R, rtol=far, atol=far)


def _branched_bits(
    model: Any,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    start_id: int,
    batch_tokens: int,
) -> np.ndarray:
    """Bits_R of all continuations of a batch, in order of the prompts."""
    rows = [row for of_one in continuations for row in of_one]
    prompt_R = torch.tensor([b for b, of_one in enumerate(continuations) for _ in of_one], device=model.device)
    input_BS, mask_BS = left_padded([[start_id, *prompt] for prompt in prompts], start_id, model.device)
    takes = inspect.signature(model.forward).parameters
    few: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    read = model(**_inputs(model, input_BS, mask_BS), use_cache=True, **few)
    first_R = torch.tensor([row[0] for row in rows], device=read.logits.device)
    bits_R = _target_bits(read.logits[:, -1], first_R, prompt_R.to(first_R.device))
    for which in _of_like_length(rows, lambda size: batch_tokens // (mask_BS.shape[1] + size)):
        cache, prompt_C = copy.copy(read.past_key_values), prompt_R[which]
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # choosing rows makes new tensors, not new layers
        cache.batch_select_indices(prompt_C.cpu())  # layers may be on several devices, and take these everywhere
        np.add.at(bits_R, *_later_bits(model, cache, mask_BS[prompt_C], rows, which))
    return bits_R


def _of_like_length(rows: Sequence[Sequence[int]], most: Callable[[int], int]) -> list[list[int]]:
    """Rows of more than one token, the longest first, the shortest of a group more than half as long as the longest.

    most: how many may be in a group, by the length of its longest; one always may.
    """
    groups: list[list[int]] = []
    longest = room = 0
    for r in sorted((r for r, row in enumerate(rows) if len(row) > 1), key=lambda r: -len(rows[r])):
        if room == 0 or 2 * len(rows[r]) <= longest:
            groups.append([])
            longest = len(rows[r])
            room = max(1, most(longest))
        groups[-1].append(r)
        room -= 1
    return groups


def _later_bits(
    model: Any, cache: Any, read_CS: torch.Tensor, rows: Sequence[Sequence[int]], which: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(row_T, bits_T) of all tokens but the first of some rows; read_CS: the mask of what the cache holds."""
    shape = len(which), max(len(rows[r]) for r in which) - 1
    input_CS, target_CS, counted_CS = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for c, r in enumerate(which):
        size = len(rows[r]) - 1
        input_CS[c, :size], target_CS[c, :size], counted_CS[c, :size] = rows[r][:-1], rows[r][1:], 1
    mask_CS = torch.cat([read_CS, torch.from_numpy(counted_CS).to(model.device)], dim=1)
    inputs = _inputs(model, torch.from_numpy(input_CS).to(model.device), mask_CS)
    place_T = torch.from_numpy(np.flatnonzero(counted_CS)).to(model.device)
    logits_TV = logits_at(model, place_T, **inputs, past_key_values=cache)
    target_T = torch.from_numpy(target_CS[counted_CS > 0]).to(logits_TV.device)
    bits_T = _target_bits(logits_TV, target_T, torch.arange(len(target_T), device=logits_TV.device))
    return np.repeat(which, counted_CS.sum(axis=1)), bits_T


def _inputs(model: Any, input_BS: torch.Tensor, mask_BS: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a forward takes of tokens whose mask, and that of all before them, is mask_BS."""
    inputs = {"input_ids": input_BS, "attention_mask": mask_BS}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = positions(mask_BS)[:, -input_BS.shape[1] :]
    return inputs


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
