"""Reading what routers chose, while a model runs.

Routers say it in several forms: indices and weights, a row of weights that is zero but for the chosen, slots sorted by
expert; some say nothing, and their experts are asked what they received.

Shape letters: T tokens, E experts, K chosen per token, D model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dragoman.errors import ModelError
from dragoman.modeling.probing import MoELayer, embedded_experts


@dataclass
class Routed:
    """What one router did in one forward pass."""

    logits_TE: torch.Tensor
    indices_TK: torch.Tensor
    weights_TK: torch.Tensor
    row: int = 0
    """Which of the tapped layers it is."""


@contextlib.contextmanager
def tap_routers(
    model: nn.Module,
    layers: Sequence[MoELayer],
    each: Callable[[Routed], None] | None = None,
    *,
    training: bool = False,
) -> Iterator[list[Routed]]:
    """Within the block, every forward pass appends one Routed per MoE layer to the list, in order of depth.

    With `each`, that is called instead as soon as a layer has chosen, and nothing is kept: memory of one layer.
    The indices are the router's own selection, not a top-k re-applied to logits: sigmoid routers choose with a
    correction bias that the recorded logits do not hold. Where a router returns none, they are what its experts
    received. With `training`, what modules do in evaluation mode goes unseen. Clear the list between passes.
    ModelError, at the end, for a selection that could not be read.
    """
    seen: list[Routed] = []

    def keep(routed: Routed) -> None:
        seen.append(routed)
        if len(seen) == len(layers):  # the order of running need not be that of `layers`
            seen.sort(key=lambda r: r.row)

    taps = [_Tap(layer, row, each or keep, training) for row, layer in enumerate(layers)]
    handles = [h for tap in taps for h in tap.handles()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    if unread := [tap for tap in taps if tap.output is not None]:
        raise ModelError(_unreadable(unread[0].layer, unread[0].output))


class _Tap:
    """Hooks of one layer. A router that returns no indices waits for its experts, or they for it."""

    def __init__(self, layer: MoELayer, row: int, keep: Any, training: bool):
        self.layer, self.row, self.keep, self.training = layer, row, keep, training
        self.output: Any = None
        self.received: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.experts_first = any(m is layer.experts for m in layer.router.modules())

    def handles(self) -> list[Any]:
        layer = self.layer
        inside = layer.experts is layer.router
        receiver = embedded_experts(layer.router, layer.num_experts)[0] if inside else layer.experts
        return [
            layer.router.register_forward_hook(self.on_router),
            receiver.register_forward_pre_hook(self.on_experts, with_kwargs=True),
        ]

    def on_router(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if self.training and not module.training:
            return
        selection = returned_selection(self.layer, output) or self.received
        self.output, self.received = output, None
        if selection is not None:
            self._finish(selection)

    def on_experts(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self.training and not module.training:
            return
        if self.output is None and not self.experts_first:
            return  # the router itself told
        flat = _flat([*args, *kwargs.values()])
        self.received = _indices_and_weights(self.layer, flat) or _filled_rows(self.layer, flat)
        if self.output is not None and self.received is not None:
            self._finish(self.received)

    def _finish(self, selection: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        logits_TE = _logits(self.layer, self.output)
        indices_TK, weights_TK = selection
        if weights_TK is None:
            weights_TK = logits_TE.float().gather(-1, indices_TK).softmax(-1)
        if self.layer.num_skips == 1:  # some send what skips to expert 0 with weight zero
            indices_TK = indices_TK.masked_fill(weights_TK == 0, self.layer.num_experts - 1)
        self.output = self.received = None
        self.keep(Routed(logits_TE, indices_TK, weights_TK, self.row))


def _flat(output: Any) -> list[torch.Tensor]:
    parts = output if isinstance(output, (tuple, list)) else [output]
    return [t.reshape(-1, t.shape[-1]) for t in parts if isinstance(t, torch.Tensor) and t.ndim > 1]


def _logits(layer: MoELayer, output: Any) -> torch.Tensor:
    parts = output if isinstance(output, (tuple, list)) else [output]
    recorded = parts[layer.logits_at]
    if recorded.ndim == 3 and recorded.shape[-1] ** 2 == layer.num_experts:
        first_TX, second_TY = recorded  # product keys: an expert is a pair, its logit their sum
        return (first_TX[:, :, None] + second_TY[:, None, :]).flatten(1)
    if recorded.shape[-1] != layer.num_experts:
        raise ModelError(_unreadable(layer, output))
    return recorded.reshape(-1, layer.num_experts)


def returned_selection(layer: MoELayer, output: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Indices and weights [T, K] that a router's output holds in one of the known forms, None where it holds none."""
    flat = _flat(output)
    return _indices_and_weights(layer, flat) or _sorted_slots(layer, output) or _dense_weights(layer, output, flat)


def _indices_and_weights(
    layer: MoELayer, flat: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """An integer tensor [T, K], and a float one of the same shape or one [T, E] to gather from."""
    found = [t for t in flat if not t.is_floating_point() and t.shape[-1] == layer.top_k]
    if not found:
        return None
    floats = [t for t in flat if t.is_floating_point() and len(t) == len(found[0])]
    weights = [t for i, t in enumerate(floats) if t.shape == found[0].shape and (i or t.shape[-1] < layer.num_experts)]
    if weights:
        return found[0], weights[0]
    wide = [t for t in floats if t.shape[-1] == layer.num_experts]
    dense = wide[1:] or [t for t in wide if bool(((t != 0).sum(-1) <= layer.top_k).all())]
    return found[0], dense[0].gather(-1, found[0]) if dense else None


def _filled_rows(layer: MoELayer, flat: Sequence[torch.Tensor]) -> tuple[torch.Tensor, None] | None:
    """Every token once for every expert, [E * T, D], times zero where the expert was not chosen."""
    if len(flat) != 1 or not flat[0].is_floating_point() or len(flat[0]) % layer.num_experts:
        return None
    size_TE = flat[0].view(layer.num_experts, -1, flat[0].shape[-1]).abs().sum(-1).T
    fits = bool(((size_TE > 0).sum(-1) <= layer.top_k).all())
    return (size_TE.topk(layer.top_k).indices, None) if fits else None


def _sorted_slots(layer: MoELayer, output: Any) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Slots sorted by expert: a permutation of all T * K, their weights, and how many each expert got."""
    parts = output if isinstance(output, (tuple, list)) else []
    sizes = next((p for p in parts if isinstance(p, list) and len(p) == layer.num_experts), None)
    lines = [t for t in parts if isinstance(t, torch.Tensor) and t.ndim == 1]
    order = next((t for t in lines if not t.is_floating_point() and len(t) == sum(sizes or [])), None)
    if sizes is None or order is None:
        return None
    expert = torch.arange(len(sizes), device=order.device).repeat_interleave(torch.tensor(sizes, device=order.device))
    weights = next(t for t in lines if t.is_floating_point())
    indices_TK = torch.empty_like(order).index_copy_(0, order, expert).view(-1, layer.top_k)
    return indices_TK, torch.empty_like(weights).index_copy_(0, order, weights).view(-1, layer.top_k)


def _dense_weights(
    layer: MoELayer, output: Any, flat: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A row of E weights per token that is zero but for the K chosen; the experts receive inputs scaled by it."""
    logits = _logits(layer, output) if flat else None
    for t in flat:
        wide = t.is_floating_point() and t.shape[-1] == layer.num_experts and layer.top_k < layer.num_experts
        if wide and logits is not None and len(t) == len(logits) and bool(((t != 0).sum(-1) <= layer.top_k).all()):
            weights_TK, indices_TK = t.topk(layer.top_k, dim=-1)
            return indices_TK, weights_TK
    return None


def _unreadable(layer: MoELayer, output: Any) -> str:
    parts = output if isinstance(output, (tuple, list)) else [output]
    shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in parts if isinstance(t, torch.Tensor))
    return (
        f"the router of layer {layer.layer_id} ({layer.name}) returned {shapes or type(output).__name__}; looked for "
        f"integer indices of the {layer.top_k} chosen experts, there or where the experts receive them, and a row of "
        f"{layer.num_experts} scores per token"
    )


def router_probabilities(logits_TE: torch.Tensor) -> torch.Tensor:
    """Softmax over experts in float32. Rows that are probabilities already stay as they are.

    Some versions of transformers record logits and some probabilities; the first rows tell. Nothing here waits for a
    device.
    """
    rows = logits_TE.float()
    return torch.where(are_probabilities(rows), rows, rows.softmax(-1))


def are_probabilities(rows_TE: torch.Tensor) -> torch.Tensor:
    """Whether what a router recorded are probabilities and no logits, by the first rows: one value."""
    some = rows_TE[:64].float()
    return (some >= 0).all() & ((some.sum(-1) - 1).abs() < 1e-3).all()
