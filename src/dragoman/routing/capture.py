"""Capture: run text through a model and count what its routers chose.

Shape letters: B sequences of a batch, S positions, T tokens, C counted tokens, G languages, L MoE layers, E experts,
K chosen per token, N segments, R segments of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import DataError, ModelError
from dragoman.modeling import (
    SCORES,
    MoELayer,
    Routed,
    TextCodec,
    context_length,
    hidden_states,
    moe_layers,
    router_probabilities,
    router_scores,
    tap_routers,
)
from dragoman.record import sha256
from dragoman.routing.gathering import Ranks, segment_counts
from dragoman.routing.segments import Batch, read_segments
from dragoman.routing.trace import RoutingTrace

Progress = Callable[[int], Any]
"""Called with the number of tokens just done."""


def capture(
    model: PreTrainedModel,
    sequences: Mapping[str, Sequence[str] | Sequence[Sequence[int]]],
    *,
    codec: TextCodec | None = None,
    start_id: int | None = None,
    chat: bool = False,
    count_special: bool = True,
    per_segment: bool | Path | str = True,
    coactivation: bool = False,
    distributed: bool = False,
    batch_tokens: int = 4096,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda tokens: None,
) -> RoutingTrace:
    """Routing of text by language, in one forward pass without the language-model head.

    sequences: strings, which need a `codec` (`open_tokenizer`), or token ids, which need a codec or a `start_id`.
        Every segment is read alone, behind the start token, which is not counted; neither is padding. Segments longer
        than the model's context are cut into pieces that count as one segment.
    chat: strings go through the model's chat template; only tokens of the text are counted.
    count_special: whether special tokens among the ids are counted.
    per_segment: also keep the choices of each segment, in the given order, which intervals need: in memory, or
        streamed to files in a new folder, so that memory does not grow with the text.
    coactivation: also count pairs of experts that a token chose together, 8 G L E^2 bytes.
    distributed: share the batches out over the ranks of torch.distributed; every rank must call, and every rank gets
        the whole trace (with a folder, rank 0 alone has the counts per segment).

    Memory above the forward pass does not grow with the number of tokens otherwise.
    Raises ModelError for a model without MoE layers or with logits that are not numbers, DataError for a language
    without text or an empty segment, ConfigError for settings that do not fit together.
    """
    layers = moe_layers(model)
    texts = read_segments(sequences, codec=codec, start_id=start_id, chat=chat, count_special=count_special)
    ranks = Ranks.all() if distributed else Ranks()
    kinds, width = router_scores(model, layers), max(layer.num_experts for layer in layers)
    shapes = {g: (len(text.ids), len(layers), width) for g, text in texts.items()}
    parts: dict[str, dict[str, np.ndarray]] = {}
    with segment_counts(per_segment, shapes, ranks) as kept, _evaluating(model):
        for shift, (language, text) in enumerate(texts.items()):
            tally = _Tally(layers, kinds, coactivation)
            for batch in ranks.share(text.batches(context_length(model), batch_tokens), shift):
                count_RLE = tally.read(model, batch, split=kept is not None)
                if kept is not None and count_RLE is not None:
                    kept.add(language, batch.segments, count_RLE)
                progress(batch.tokens)
            parts[language] = tally.total(ranks)
            if kept is not None:
                kept.add_up(language, ranks)
        _require_tokens(parts)
    facts = {"text_sha256": sha256(*(f"{g}:{text.checksum()}" for g, text in texts.items()))}
    facts |= {"routers_sha256": _routers_checksum(layers), "router_mass": kinds[0]}
    facts |= {"excluded": _excluded(chat, count_special)}
    return _trace(layers, parts, kept.kept() if kept is not None else {}, facts | dict(about or {}))


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _routers_checksum(layers: Sequence[MoELayer]) -> str:
    """SHA-256 over the routers' own weights: tells models apart at no cost, if not those that share their routers."""
    states = (t for x in layers for t in x.router.state_dict().values() if t.ndim < 3 and not t.is_meta)
    return sha256(*(t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for t in states))


def _excluded(chat: bool, count_special: bool) -> str:
    special = "special tokens" if chat or not count_special else "the start token"
    return f"padding and {special}" + (", all of the chat template" if chat else "")


def _require_tokens(parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    if silent := [g for g, part in parts.items() if not part["tokens"]]:
        raise DataError(f"no token of {', '.join(silent)} is counted: all are special; give text, or count them")


class _Tally:
    """Sums of one language."""

    def __init__(self, layers: Sequence[MoELayer], kinds: Sequence[str], coactivation: bool):
        self.sums = [_LayerSums(x, kind, coactivation) for x, kind in zip(layers, kinds, strict=True)]
        self.width = max(x.num_experts for x in layers)
        self.layers, self.coactivation, self.tokens = layers, coactivation, 0

    def read(self, model: PreTrainedModel, batch: Batch, split: bool) -> np.ndarray | None:
        """One forward pass. Choices of each segment, int32 [R, L, E], where `split` asks for them."""
        num_rows = len(batch.segments) if split else 1
        places_C = batch.places_C.to(model.device)
        rows_C = batch.rows_C.to(model.device) if split else torch.zeros_like(places_C)
        found: list[tuple[int, torch.Tensor]] = []
        with tap_routers(
            model, self.layers, lambda r: found.append((r.row, self.sums[r.row].add(r, places_C, rows_C, num_rows)))
        ):
            hidden_states(model, batch.ids_BS.to(model.device), batch.mask_BS.to(model.device))
        self._require_all([row for row, _ in found])
        self.tokens += len(places_C)
        if not split:
            return None
        count_RLE = np.zeros((num_rows, len(self.layers), self.width), np.int32)
        for row, count_RE in found:
            count_RLE[:, row, : count_RE.shape[1]] = count_RE.cpu().numpy()
        return count_RLE

    def _require_all(self, rows: Sequence[int]) -> None:
        times = [rows.count(row) for row in range(len(self.layers))]
        if wrong := [f"{x.layer_id} ({x.name}) {n} times" for x, n in zip(self.layers, times, strict=True) if n != 1]:
            raise ModelError(f"in one forward pass every router should choose once; those of {', '.join(wrong)}")

    def total(self, ranks: Ranks) -> dict[str, np.ndarray]:
        """Sums over all ranks: tokens [1], chosen, gate and router mass [L, E], pairs [L, E, E] where asked for."""
        square = (self.width, self.width)
        found = {
            "tokens": np.array([self.tokens]),
            "chosen": _padded([s.chosen_E for s in self.sums], np.int64, square[:1]),
            "gate": _padded([s.gate_E for s in self.sums], np.float64, square[:1]),
            "router": _padded([s.mass_E for s in self.sums], np.float64, square[:1]),
        }
        if self.coactivation:
            found["pairs"] = _padded([s.pairs_EE for s in self.sums], np.int64, square)
        for array in found.values():
            ranks.add_up(array)
        if len(broken := np.flatnonzero(~np.isfinite(found["router"]).all(-1))):
            layer = self.layers[broken[0]]
            raise ModelError(f"the router of layer {layer.layer_id} gave values that are no numbers; check the weights")
        return found


class _LayerSums:
    """Sums of one language in one layer, on the device of its router; nothing here waits for the device."""

    def __init__(self, layer: MoELayer, kind: str, coactivation: bool):
        self.num_experts, self.kind, self.coactivation = layer.num_experts, kind, coactivation
        self.chosen_E: Any = 0
        self.gate_E: Any = 0
        self.mass_E: Any = 0
        self.pairs_EE: Any = 0

    def add(self, routed: Routed, places_C: torch.Tensor, rows_C: torch.Tensor, num_rows: int) -> torch.Tensor:
        """Count the tokens at these places; choices by row, int64 [rows, E]."""
        device, num_experts = routed.logits_TE.device, self.num_experts
        places_C, rows_C = places_C.to(device), rows_C.to(device)
        indices_CK, weights_CK = (t.index_select(0, places_C) for t in (routed.indices_TK, routed.weights_TK))
        slots = (rows_C[:, None] * num_experts + indices_CK).flatten()
        count = torch.zeros(num_rows * num_experts, dtype=torch.int64, device=device)
        count_RE = count.index_add_(0, slots, torch.ones_like(slots)).view(num_rows, num_experts)
        gate_E = torch.zeros(num_experts, dtype=torch.float64, device=device)
        self.gate_E = gate_E.index_add_(0, indices_CK.flatten(), weights_CK.flatten().double()) + self.gate_E
        self.chosen_E = count_RE.sum(0) + self.chosen_E
        self.mass_E = self._distribution(routed.logits_TE.index_select(0, places_C)).sum(0).double() + self.mass_E
        if self.coactivation:
            hit_CE = torch.zeros(len(places_C), num_experts, device=device).scatter_(1, indices_CK.long(), 1.0)
            self.pairs_EE = (hit_CE.T @ hit_CE).long() + self.pairs_EE  # exact: floats count to 2**24
        return count_RE

    def _distribution(self, logits_CE: torch.Tensor) -> torch.Tensor:
        if self.kind == "softmax":
            return router_probabilities(logits_CE)
        score_CE = SCORES[self.kind](logits_CE.float())
        return score_CE / score_CE.sum(-1, keepdim=True)


def _padded(parts: Sequence[Any], dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Arrays of experts, [E] or [E, E] with E of each layer, as one [L, ...] with zeros behind."""
    whole: np.ndarray = np.zeros((len(parts), *shape), dtype)
    for row, part in enumerate(parts):
        if isinstance(part, torch.Tensor):  # a rank without a batch has none
            whole[row][tuple(slice(n) for n in part.shape)] = part.cpu().numpy()
    return whole


def _trace(
    layers: Sequence[MoELayer],
    parts: Mapping[str, Mapping[str, np.ndarray]],
    segments: dict[str, np.ndarray],
    about: dict[str, Any],
) -> RoutingTrace:
    stacked = {name: np.stack([p[name] for p in parts.values()]) for name in next(iter(parts.values()))}
    return RoutingTrace(
        languages=tuple(parts),
        layer_ids=tuple(layer.layer_id for layer in layers),
        num_experts=tuple(layer.num_experts for layer in layers),
        top_k=tuple(layer.top_k for layer in layers),
        chosen_GLE=stacked["chosen"],
        gate_mass_GLE=stacked["gate"],
        router_mass_GLE=stacked["router"],
        tokens_G=stacked["tokens"][:, 0],
        segment_chosen_NLE=segments,
        pairs_GLEE=stacked.get("pairs"),
        about=about,
    )
