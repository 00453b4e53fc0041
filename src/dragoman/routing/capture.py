"""Capture: run text through a model and count what its routers chose.

Shape letters: B sequences of a batch, S positions, T tokens, G languages, L MoE layers, E experts, K chosen per token,
N segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import DataError, ModelError
from dragoman.modeling import (
    MoELayer,
    Routed,
    context_length,
    hidden_states,
    moe_layers,
    router_probabilities,
    tap_routers,
)
from dragoman.record import sha256
from dragoman.routing.trace import RoutingTrace

Progress = Callable[[int], Any]
"""Called with the number of tokens just done."""


def capture(
    model: PreTrainedModel,
    sequences: Mapping[str, Sequence[Sequence[int]]],
    *,
    start_id: int,
    batch_tokens: int = 4096,
    per_segment: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda tokens: None,
) -> RoutingTrace:
    """Routing of token-id lists by language, in one forward pass without the language-model head.

    Every segment is read alone, behind `start_id`, which is not counted; neither is padding. Segments longer than the
    model's context are cut into pieces that count as one segment. With `per_segment` the trace also holds the choices
    of each segment, in the given order, which intervals and per-sequence statistics need (memory grows with N).

    Raises ModelError for a model without MoE layers or with logits that are not numbers, DataError for a language
    without text or an empty segment.
    """
    layers = moe_layers(model)
    _require_text(sequences)
    tally = {g: _Tally(layers, len(s), per_segment) for g, s in sequences.items()}
    was_training = model.training
    model.eval()
    with torch.no_grad(), tap_routers(model, layers) as seen:
        for language, segments in sequences.items():
            for batch, rows in _batches(segments, context_length(model) - 1, batch_tokens):
                ids, mask = _padded(batch, start_id, model.device)
                hidden_states(model, ids, mask)
                tally[language].add(seen, mask, rows)
                seen.clear()
                progress(sum(map(len, batch)))
    model.train(was_training)
    return _trace(layers, tally, sequences, dict(about or {}))


def _require_text(sequences: Mapping[str, Sequence[Sequence[int]]]) -> None:
    empty = [g for g, s in sequences.items() if not s]
    holes = [f"{g} segment {i}" for g, s in sequences.items() for i, ids in enumerate(s) if not len(ids)]
    if not sequences or empty or holes:
        what = ", ".join([*empty, *holes[:5]]) or "no language at all"
        raise DataError(f"nothing to capture for {what}; give at least one non-empty segment for every language")


def _batches(
    segments: Sequence[Sequence[int]], longest: int, batch_tokens: int
) -> Iterator[tuple[list[Sequence[int]], list[int]]]:
    """Pieces of like length together, with the segment that each belongs to; at most `batch_tokens` with padding."""
    pieces = [(s[i : i + longest], n) for n, s in enumerate(segments) for i in range(0, len(s), longest)]
    pieces.sort(key=lambda p: -len(p[0]))
    batch: list[Sequence[int]] = []
    rows: list[int] = []
    for piece, row in pieces:
        if batch and (len(batch) + 1) * (len(batch[0]) + 1) > batch_tokens:
            yield batch, rows
            batch, rows = [], []
        batch.append(piece)
        rows.append(row)
    if batch:
        yield batch, rows


def _padded(batch: list[Sequence[int]], start_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = len(batch[0]) + 1
    ids = torch.full((len(batch), width), start_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, piece in enumerate(batch):
        ids[i, 1 : len(piece) + 1] = torch.as_tensor(piece)
        mask[i, : len(piece) + 1] = 1
    return ids.to(device), mask.to(device)


class _Tally:
    """Sums of one language."""

    def __init__(self, layers: Sequence[MoELayer], segments: int, per_segment: bool):
        self.layers = layers
        width = max(layer.num_experts for layer in layers)
        shape = (len(layers), width)
        self.chosen_LE = np.zeros(shape, np.int64)
        self.gate_mass_LE, self.router_mass_LE = np.zeros(shape), np.zeros(shape)
        self.segment_chosen_NLE = np.zeros((segments, *shape), np.int32) if per_segment else None
        self.tokens = 0

    def add(self, seen: Sequence[Routed], mask_BS: torch.Tensor, rows: Sequence[int]) -> None:
        counted_BS = mask_BS.bool().clone()
        counted_BS[:, 0] = False  # the start token is ours, not the text's
        counted_T = counted_BS.flatten()
        batch_T = torch.arange(len(rows), device=mask_BS.device).repeat_interleave(mask_BS.shape[1])[counted_T]
        self.tokens += int(counted_T.sum())
        for row, (layer, routed) in enumerate(zip(self.layers, seen, strict=True)):
            self._add_layer(row, layer, routed, counted_T, batch_T, rows)

    def _add_layer(
        self,
        row: int,
        layer: MoELayer,
        routed: Routed,
        counted_T: torch.Tensor,
        batch_T: torch.Tensor,
        rows: Sequence[int],
    ) -> None:
        num_experts = layer.num_experts
        indices_TK, weights_TK = routed.indices_TK[counted_T], routed.weights_TK[counted_T].double()
        mass_E = router_probabilities(routed.logits_TE[counted_T]).sum(0, dtype=torch.float64)
        if not torch.isfinite(mass_E).all():
            raise ModelError(f"the router of layer {layer.layer_id} gave values that are no numbers; check the weights")
        slot_TK = batch_T[:, None] * num_experts + indices_TK
        count_BE = torch.bincount(slot_TK.flatten(), minlength=len(rows) * num_experts).view(len(rows), num_experts)
        gate_E = torch.zeros(num_experts, dtype=torch.float64, device=weights_TK.device)
        gate_E.index_add_(0, indices_TK.flatten(), weights_TK.flatten())
        self.chosen_LE[row, :num_experts] += count_BE.sum(0).cpu().numpy()
        self.gate_mass_LE[row, :num_experts] += gate_E.cpu().numpy()
        self.router_mass_LE[row, :num_experts] += mass_E.cpu().numpy()
        if self.segment_chosen_NLE is not None:
            np.add.at(self.segment_chosen_NLE[:, row, :num_experts], list(rows), count_BE.cpu().numpy())


def _trace(
    layers: Sequence[MoELayer],
    tally: Mapping[str, _Tally],
    sequences: Mapping[str, Sequence[Sequence[int]]],
    about: dict[str, Any],
) -> RoutingTrace:
    parts = list(tally.values())
    text = sha256(*(f"{g}:{list(map(list, s))}" for g, s in sequences.items()))
    return RoutingTrace(
        languages=tuple(tally),
        layer_ids=tuple(layer.layer_id for layer in layers),
        num_experts=tuple(layer.num_experts for layer in layers),
        top_k=tuple(layer.top_k for layer in layers),
        chosen_GLE=np.stack([t.chosen_LE for t in parts]),
        gate_mass_GLE=np.stack([t.gate_mass_LE for t in parts]),
        router_mass_GLE=np.stack([t.router_mass_LE for t in parts]),
        tokens_G=np.array([t.tokens for t in parts], dtype=np.int64),
        segment_chosen_NLE={g: t.segment_chosen_NLE for g, t in tally.items() if t.segment_chosen_NLE is not None},
        about={"text_sha256": text, "excluded": "padding and the start token", **about},
    )
