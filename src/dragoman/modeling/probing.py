"""Finding the Mixture-of-Experts parts of a model.

Nothing here knows an architecture by name. transformers records router outputs through `_can_record_outputs`, whose
`router_logits` entry names the router class and which of its outputs is recorded. What a router gives is found by
running it alone on the meta device, its experts by the shape of the weights beside it. What cannot be found is refused
with a sentence that says what was looked for.

Shape letters: T tokens, E experts, D model width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from dragoman.errors import ModelError

TOP_K_NAMES = (
    "top_k",
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
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
            "as `router_logits` was found, and none that scores the experts it stands beside; diagnose and expert "
            "tuning need an MoE model, for a dense one use `dragoman adapt` with the method full"
        )
    return tuple(_probe(model, name, router, index) for name, router, index in found)


def find_routers(model: PreTrainedModel) -> list[tuple[str, nn.Module, int]]:
    """Path, module and recorded output of every router; empty for a dense model.

    Where a recorded module holds another one, as attention that passes on the logits of its router, the inner one is
    the router.
    """
    recorders, modules = _recorders(model), list(model.named_modules())
    found = [(n, m, r[1]) for n, m in modules for r in recorders if _records(r, n, m)]
    if not found:  # some versions name a class that is no longer there, and the right path
        found = [
            (n, m, i) for n, m in modules for _, i, path in recorders if path and n.endswith(f".{path.strip('.')}")
        ]
    unique = {name: (name, module, index) for name, module, index in found or _beside_experts(model)}
    return [x for name, x in unique.items() if not any(other.startswith(f"{name}.") for other in unique)]


def _beside_experts(model: PreTrainedModel) -> list[tuple[str, nn.Module, int]]:
    """Routers by where they stand: transformers before 5.19 records none of DeepSeek-V3, GLM-4 and some twenty others.

    A block that holds stacked experts has its router among its other children: the only one that scores experts.
    """
    rows: dict[str, int] = {}
    for name, module in model.named_modules():
        if name and _stacked(module):
            block_name = name.rpartition(".")[0]
            rows[block_name] = max(rows.get(block_name, 0), _rows(module))  # shared experts are fewer
    found = []
    for block_name, most in rows.items():
        scoring = _scoring(model.get_submodule(block_name), most, hidden_size(model))
        found += [(f"{block_name}.{n}", m, at) for n, m, at in scoring] if len(scoring) == 1 else []
    return found


def _scoring(block: nn.Module, rows: int, width: int) -> list[tuple[str, nn.Module, int]]:
    """Children of a block that score so many experts, and which output the scores are.

    No bare linear map: DeepSeek-V2 of transformers 5.0 reads its gate's weight and never runs the gate.
    """
    children = [(n, m) for n, m in block.named_children() if type(m) is not nn.Linear and not _stacked(m)]
    return [(n, m, at) for n, m in children if (at := _scores_at(m, rows, width)) is not None]


def _scores_at(module: nn.Module, rows: int, width: int) -> int | None:
    """Which output of a module is a score for each of so many experts, or for more of them; None where none is.

    It chooses among them too, or else its matrices map hidden states to scores and nothing else.
    """
    parts = _alone(module, width)
    floats = [(i, t) for i, t in enumerate(parts) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    chooses = any(isinstance(t, torch.Tensor) and not t.is_floating_point() and t.ndim > 1 for t in parts)
    maps = {p.shape for p in module.parameters() if p.ndim > 1} == {torch.Size([rows, width])}
    at = [i for i, t in floats if t.ndim > 1 and (t.shape[-1] == rows or (chooses and t.shape[-1] > rows))]
    if chooses or not maps:
        return at[0] if at and chooses else None
    return at[-1] if at else None  # Llama 4 gives what the inputs are multiplied by, then the logits


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
    name, router, index = _inner_router(name, router, index, hidden_size(model))
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
        "experts beside it (stacked weights [E, ...], a list of modules, embeddings)": experts is not None and columns,
        "a layer number in its path": numbers,
        f"the number chosen per token ({', '.join(TOP_K_NAMES)})": top_k,
    }
    if experts is None or not numbers or not top_k or not columns:
        raise ModelError(
            f"the router {name} of {type(model).__name__} has a layout that cannot be probed: not found: "
            f"{'; '.join(what for what, found in looked_for.items() if not found)}; please report the model's class"
        )
    return MoELayer(int(numbers[0]), block_name, router, experts, columns, top_k, columns - rows, index)


def _inner_router(name: str, module: nn.Module, index: int, width: int) -> tuple[str, nn.Module, int]:
    """Some versions record a whole block. The module in it that returns indices is the router, or that scores alone."""
    stacks = [m for m in module.modules() if m is not module and _stacked(m)]
    for path, child in module.named_modules() if stacks else ():
        columns, top_k = _trial(child, 0, width) if path and child not in stacks else (None, None)
        if columns and top_k:
            return f"{name}.{path}", child, 0
    scoring = _scoring(module, max(map(_rows, stacks)), width) if stacks else []
    if len(scoring) == 1:
        return f"{name}.{scoring[0][0]}", *scoring[0][1:]
    return name, module, index


def hidden_size(model: PreTrainedModel) -> int:
    """Width D of a model's layers."""
    return model.config.get_text_config().hidden_size


def _trial(router: nn.Module, index: int, width: int) -> tuple[int | None, int | None]:
    """Columns of a router's logits and how many it chooses, None for what it does not tell."""
    parts = _alone(router, width)
    tensors = [t for t in parts if isinstance(t, torch.Tensor)]
    chosen = [t.shape[-1] for t in tensors if not t.is_floating_point() and t.ndim > 1]
    recorded = parts[index] if index < len(parts) else None
    return recorded.shape[-1] if isinstance(recorded, torch.Tensor) else None, chosen[0] if chosen else None


def _alone(module: nn.Module, width: int) -> Sequence[Any]:
    """What a module returns for a few hidden states, without values."""
    state = {n: t.to("meta") for n, t in [*module.named_parameters(), *module.named_buffers()]}
    output = run_alone(module, torch.empty(5, width, device="meta", dtype=_dtype(module)), state)
    return output if isinstance(output, (tuple, list)) else [output]


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
        if columns and module is not block and module is not router and getattr(module, "num_experts", 0) == columns:
            return module, columns
    return (block, columns) if columns and embedded_experts(block, columns) else (None, 0)


def embedded_experts(block: nn.Module, rows: int | None) -> list[nn.Module]:
    """Children of a block that look up an expert's weights as a row of theirs."""
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


def expert_stacks(model: PreTrainedModel) -> dict[str, int]:
    """Path -> model layer of every stacked matrix [E, ...] of routed experts; empty for a dense model."""
    layers = moe_layers(model) if find_routers(model) else ()
    paths = {m: n for n, m in model.named_modules()}
    return {
        f"{paths[x.experts]}.{name}": x.layer_id
        for x in layers
        for name in expert_weights(x.experts)
        if getattr(x.experts, name).ndim == 3
    }


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
        return [p for m in embedded_experts(layer.router, layer.num_experts) for p in m.parameters()]
    inside = set(layer.router.parameters())
    owners = [layer.experts] if _stacked(layer.experts) else [m for m in layer.experts.modules() if _stacked(m)]
    return [p for m in owners or [layer.experts] for p in m.parameters() if p not in inside]
