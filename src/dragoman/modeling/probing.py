"""Finding the Mixture-of-Experts parts of a model, and reading what its routers chose.

Nothing here knows an architecture by name. transformers records router outputs through `_can_record_outputs`, whose
`router_logits` entry names the router class and which of its outputs is recorded. What a router gives is found by
running it alone on the meta device, its experts by the shape of the weights beside it. What cannot be found is refused
with a sentence that says what was looked for.

Shape letters: B sequences, S positions, T tokens, L MoE layers, E experts, K chosen per token, D model width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from dragoman.errors import ModelError

TOP_K_NAMES = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
NUM_EXPERTS_NAMES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class MoELayer:
    """One router and the experts it feeds. A model layer has several where it has several routers."""

    layer_id: int
    """Index of the model layer it stands in."""
    name: str
    """Path of the block that holds router and experts, as in `named_modules`."""
    router: nn.Module
    """The module whose output transformers records as router logits."""
    experts: nn.Module
    """The module that holds the routed experts' weights."""
    num_experts: int
    """What a token can be sent to: experts with weights, then those that mean "skip"."""
    top_k: int
    num_skips: int = 0
    """How many of them have no weights; they are the last ones."""
    logits_at: int = 0
    """Which of the router's outputs is recorded."""


def moe_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """Every MoE layer of a model, in order of depth. ModelError for a dense model or a layout that cannot be probed.

    Works on the meta device too. Layers that choose by a fixed table of token ids are none: they do not route.
    """
    found = find_routers(model)
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no Mixture-of-Experts layers: no module of a class that transformers records "
            "as `router_logits` was found; diagnose and expert tuning need an MoE model, for a dense one use "
            "`dragoman adapt` with the method full"
        )
    return tuple(_probe(model, name, router, index) for name, router, index in found)


def find_routers(model: PreTrainedModel) -> list[tuple[str, nn.Module, int]]:
    """Path, module and recorded output of every router; empty for a dense model.

    Where a recorded module holds another one, as attention that passes on the logits of its router, the inner one is
    the router.
    """
    recorders = _recorders(model)
    found = [(n, m, r[1]) for n, m in model.named_modules() for r in recorders if _records(r, n, m)]
    unique = {name: (name, module, index) for name, module, index in found}
    return [x for name, x in unique.items() if not any(other.startswith(f"{name}.") for other in unique)]


def _recorders(model: PreTrainedModel) -> list[tuple[Any, int, str]]:
    """(class or end of a path, output, part of a path) of what is recorded as router logits, of submodels too."""
    found: dict[tuple[Any, int, str], None] = {}
    for module in model.modules():
        recorded = getattr(module, "_can_record_outputs", None)
        if isinstance(recorded, dict) and "router_logits" in recorded:
            entry = recorded["router_logits"]
            for one in entry if isinstance(entry, (list, tuple)) else [entry]:
                target = getattr(one, "target_class", None) or getattr(one, "class_name", None) or one
                found[target, getattr(one, "index", 1), getattr(one, "layer_name", None) or ""] = None
    return list(found)


def _records(recorder: tuple[Any, int, str], name: str, module: nn.Module) -> bool:
    target, _, layer_name = recorder
    fits = isinstance(module, target) if isinstance(target, type) else name.endswith(str(target))
    return fits and f".{layer_name.strip('.')}." in f".{name}." if layer_name else fits


def _probe(model: PreTrainedModel, name: str, router: nn.Module, index: int) -> MoELayer:
    columns, top_k = _trial(router, index, hidden_size(model))
    stated = _first_number(router, names=NUM_EXPERTS_NAMES)
    if stated and (columns is None or columns**2 == stated):  # product keys: an expert is a pair of columns
        columns = stated
    block_name, experts, rows = _beside(model, name, router, columns)
    block = model.get_submodule(block_name)
    top_k = top_k or _first_number(router, block, model.config.get_text_config(), model.config, names=TOP_K_NAMES)
    columns = columns or rows
    numbers = re.findall(r"\.(\d+)\.", f".{name}.")
    looked_for = {
        "experts beside it (stacked weights [E, ...], a list of modules, embeddings)": experts,
        "a layer number in its path": numbers,
        f"the number chosen per token ({', '.join(TOP_K_NAMES)})": top_k,
    }
    if experts is None or not numbers or not top_k or not columns:
        raise ModelError(
            f"the router {name} of {type(model).__name__} has a layout that cannot be probed: not found: "
            f"{'; '.join(what for what, found in looked_for.items() if not found)}; please report the model's class"
        )
    return MoELayer(int(numbers[0]), block_name, router, experts, columns, top_k, columns - rows, index)


def hidden_size(model: PreTrainedModel) -> int:
    """Width D of a model's layers."""
    return model.config.get_text_config().hidden_size


def _trial(router: nn.Module, index: int, width: int) -> tuple[int | None, int | None]:
    """Columns of a router's logits and how many it chooses, None for what it does not tell."""
    state = {n: t.to("meta") for n, t in [*router.named_parameters(), *router.named_buffers()]}
    output = run_alone(router, torch.empty(5, width, device="meta", dtype=_dtype(router)), state)
    parts = output if isinstance(output, (tuple, list)) else [output]
    tensors = [t for t in parts if isinstance(t, torch.Tensor)]
    chosen = [t.shape[-1] for t in tensors if not t.is_floating_point() and t.ndim > 1]
    recorded = parts[index] if index < len(parts) else None
    return recorded.shape[-1] if isinstance(recorded, torch.Tensor) else None, chosen[0] if chosen else None


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)


def run_alone(module: nn.Module, hidden_TD: torch.Tensor, state: Mapping[str, torch.Tensor]) -> Any:
    """A module's output for hidden states, given as [T, D] or [1, T, D], with `state` in place of its weights.

    None where it needs more than hidden states, or cannot do without values on the meta device.
    """
    for hidden in (hidden_TD, hidden_TD[None]):
        with contextlib.suppress(Exception), torch.no_grad():  # whatever the reason, so it cannot be asked
            return functional_call(module, dict(state), (hidden,))
    return None


def _first_number(*holders: Any, names: Sequence[str]) -> int | None:
    values = (getattr(h, n, None) for h in holders for n in names)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


# Experts


def _beside(
    model: PreTrainedModel, name: str, router: nn.Module, columns: int | None
) -> tuple[str, nn.Module | None, int]:
    """The smallest block around a router that holds experts, the experts and how many of them have weights."""
    block_name = name
    while block_name:
        experts, rows = _experts_of(model.get_submodule(block_name), router, columns)
        if experts is not None or block_name.rpartition(".")[2].isdigit():
            return block_name, experts, rows
        block_name = block_name.rpartition(".")[0]
    return name, None, 0


def _experts_of(block: nn.Module, router: nn.Module, columns: int | None) -> tuple[nn.Module | None, int]:
    inside = set() if block is router else set(router.modules())
    others = [m for m in block.modules() if m not in inside]
    stacks = [(m, _rows(m)) for m in others if _stacked(m)]
    fitting = [(m, rows) for m, rows in stacks if columns is None or rows <= columns]
    if fitting:  # a stack of shared experts is smaller than that of the routed ones
        most = max(rows for _, rows in fitting)
        owners = [m for m, rows in fitting if rows == most]
        return (owners[0] if len(owners) == 1 else block), most
    for module in others:
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and len(module) == columns:
            return module, len(module)
        if module is not block and module is not router and getattr(module, "num_experts", None) == columns:
            return module, columns or 0
    return (block, columns or 0) if _embeddings(block, columns) else (None, 0)


def _embeddings(block: nn.Module, rows: int | None) -> list[nn.Module]:
    return [m for m in block.children() if isinstance(m, nn.Embedding) and m.num_embeddings == rows]


def _stacked(module: nn.Module) -> list[torch.Tensor]:
    """Expert weights [E, ...] that the module itself owns, parametrized or not."""
    parametrized = getattr(module, "parametrizations", {})
    found = [p.original if hasattr(p, "original") else p.original0 for p in parametrized.values()]
    found += [p for p in module.parameters(recurse=False) if p.ndim == 3]
    return found if hasattr(module, "num_experts") or len(found) > 1 else []


def _rows(experts: nn.Module) -> int:
    """Experts that every stack has a row of."""
    return min(len(p) for p in _stacked(experts))


def expert_weights(experts: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of an experts module that have one row per expert; empty where they are not stacked."""
    sizes = {len(p) for p in _stacked(experts)}
    return tuple(n for n, p in experts.named_parameters(recurse=False) if p.ndim >= 2 and len(p) in sizes)


def why_not_tunable(layers: Sequence[MoELayer]) -> str | None:
    """Why single experts of a model cannot be trained, None where they can."""
    ids = [layer.layer_id for layer in layers]
    several = sorted({i for i in ids if ids.count(i) > 1})
    loose = sorted({layer.layer_id for layer in layers if not _stacked(layer.experts)})
    if several:
        return f"layers {several} have several routers each, and a plan names experts by layer alone"
    if loose:
        return f"the experts of layers {loose} are not stacked in weights [E, ...] of one module"
    return None


def routed_parameters(layer: MoELayer) -> list[nn.Parameter]:
    """Parameters of the routed experts of a layer, whatever their layout."""
    if layer.experts is layer.router:
        return [p for m in _embeddings(layer.router, layer.num_experts) for p in m.parameters()]
    inside = set(layer.router.parameters())
    owners = [layer.experts] if _stacked(layer.experts) else [m for m in layer.experts.modules() if _stacked(m)]
    return [p for m in owners or [layer.experts] for p in m.parameters() if p not in inside]


# What a router chose


@dataclass
class Routed:
    """What one router did in one forward pass."""

    logits_TE: torch.Tensor
    indices_TK: torch.Tensor
    weights_TK: torch.Tensor
    row: int = 0
    """Which of the tapped layers it is."""


@contextlib.contextmanager
def tap_routers(model: nn.Module, layers: Sequence[MoELayer]) -> Iterator[list[Routed]]:
    """Within the block, every forward pass appends one Routed per MoE layer to the list, in order of depth.

    The indices are the router's own selection, not a top-k re-applied to logits: sigmoid routers choose with a
    correction bias that the recorded logits do not hold. Where a router returns none, they are what its experts
    received. Clear the list between passes. ModelError, at the end, for a selection that could not be read.
    """
    seen: list[Routed] = []

    def keep(routed: Routed) -> None:
        seen.append(routed)
        if len(seen) == len(layers):  # the order of running need not be that of `layers`
            seen.sort(key=lambda r: r.row)

    taps = [_Tap(layer, row, keep) for row, layer in enumerate(layers)]
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

    def __init__(self, layer: MoELayer, row: int, keep: Any):
        self.layer, self.row, self.keep = layer, row, keep
        self.output: Any = None
        self.received: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def handles(self) -> list[Any]:
        layer = self.layer
        inside = layer.experts is layer.router
        receiver = _embeddings(layer.router, layer.num_experts)[0] if inside else layer.experts
        return [
            layer.router.register_forward_hook(self.on_router),
            receiver.register_forward_pre_hook(self.on_experts, with_kwargs=True),
        ]

    def on_router(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        selection = returned_selection(self.layer, output) or self.received
        self.output, self.received = output, None
        if selection is not None:
            self._finish(selection)

    def on_experts(self, _module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self.output is None and self.layer.experts is not self.layer.router:
            return  # the router itself told
        tensors = [t for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor)]
        self.received = _indices_and_weights(self.layer, [t.reshape(-1, t.shape[-1]) for t in tensors])
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
    floats = [t for i, t in enumerate(flat) if t.is_floating_point() and len(t) == len(found[0])]
    weights = [t for i, t in enumerate(floats) if t.shape == found[0].shape and (i or t.shape[-1] < layer.num_experts)]
    dense = [t for t in floats if t.shape[-1] == layer.num_experts][1:]
    return found[0], weights[0] if weights else dense[0].gather(-1, found[0]) if dense else None


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

    Some versions of transformers record logits and some probabilities; the rows themselves tell.
    """
    rows = logits_TE.float()
    sums = rows.sum(-1)
    already = bool((rows >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return rows if already else rows.softmax(-1)
