"""What kind of router a model has, and where its parameters are.

A router's kind is found by its behaviour: it is run alone with random weights in place of its own, so nothing needs to
be loaded, and what it returns is compared with what each kind would.

Shape letters: T tokens, E experts, K chosen per token, D model width.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dragoman.modeling.probing import (
    MoELayer,
    expert_weights,
    find_routers,
    hidden_size,
    moe_layers,
    routed_parameters,
)
from dragoman.modeling.tapping import Routed, router_probabilities, tap_routers

State = dict[str, torch.Tensor]

SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": router_probabilities,
    "sigmoid": torch.sigmoid,
    "sqrt-softplus": lambda logits: nn.functional.softplus(logits).sqrt(),
    "softplus": nn.functional.softplus,
}
"""Name -> scores [T, E] of logits, to which the weights of the chosen experts are proportional."""
GROUPS = ("router", "routed experts", "shared experts", "attention", "embeddings", "other")
TRIAL_TOKENS = 64


def score_names(model: PreTrainedModel, layers: Sequence[MoELayer]) -> tuple[str, ...]:
    """Score function of each layer's router, a name of SCORES; one router of a class speaks for all."""
    of_class = {type(layer.router): layer for layer in reversed(layers)}  # asking takes time
    found = {cls: router_kind(model, layer)[0] for cls, layer in of_class.items()}
    return tuple(found[type(layer.router)] if found[type(layer.router)] in SCORES else "softmax" for layer in layers)


def expert_shares(logits_TE: torch.Tensor, score: str) -> torch.Tensor:
    """Each token's distribution over all experts: softmax, or scores of another kind over their sum; [T, E] float32."""
    if score == "softmax":
        return router_probabilities(logits_TE)
    score_TE = SCORES[score](logits_TE.float())
    return score_TE / score_TE.sum(-1, keepdim=True)


def router_kind(model: PreTrainedModel, layer: MoELayer) -> tuple[str, ...]:
    """Score function, then "bias-corrected" and "grouped" where they apply; ("unknown",) where it cannot be asked.

    bias-corrected: a tensor [E] moves the selection and not the logits. grouped: with equal biases the selection is
    still not the top-k of the logits. The router is asked alone, or else within its block.
    """
    for module in (layer.router, model.get_submodule(layer.name)):
        trial = _Trial(layer, module, hidden_size(model))
        plain = trial.run({})
        if plain is not None:
            return _kind(trial, plain, layer)
    return ("unknown",)


def _kind(trial: _Trial, plain: Routed, layer: MoELayer) -> tuple[str, ...]:
    score = next((name for name, score in SCORES.items() if _explains(plain, score)), "other scores")
    best_TK = plain.logits_TE.topk(layer.top_k).indices
    differs_T = (best_TK.sort().values != plain.indices_TK.sort().values).any(-1)
    further = {"bias-corrected": trial.has_selection_bias(plain), "grouped": bool(differs_T.float().mean() > 0.05)}
    return (score, *(name for name, holds in further.items() if holds))


class _Trial:
    """A router, or the block it stands in, run on random hidden states with weights that make its behaviour plain."""

    def __init__(self, layer: MoELayer, module: nn.Module, width: int):
        self.layer, self.module = layer, module
        generator = torch.Generator().manual_seed(0)
        self.hidden_TD = torch.randn(TRIAL_TOKENS, width, generator=generator)
        experts = set() if layer.experts is layer.router else set(layer.experts.parameters())
        self.state = _random_state(module, experts - set(layer.router.parameters()), generator)

    def run(self, changes: State) -> Routed | None:
        """What the router chose; the run ends before its experts compute. None where it cannot be run like that."""
        for hidden in (self.hidden_TD, self.hidden_TD[None]):
            with contextlib.suppress(Exception), torch.no_grad(), tap_routers(self.module, [self.layer]) as seen:
                with _stopping_at(self.layer), contextlib.suppress(_EnoughError):
                    functional_call(self.module, self.state | changes, (hidden,))
                if seen:
                    return seen[0]
        return None

    def has_selection_bias(self, plain: Routed) -> bool:
        """Whether a tensor [E] can pull every token to an expert and leave the logits as they are."""
        pull_E = torch.zeros(self.layer.num_experts)
        pull_E[1] = 100.0
        fitting = [n for n, t in self.state.items() if t.numel() == len(pull_E) and t.is_floating_point()]
        for name in fitting:
            pulled = self.run({name: pull_E.view(self.state[name].shape)})
            if pulled is not None and torch.allclose(pulled.logits_TE, plain.logits_TE):
                return bool((pulled.indices_TK == 1).any(-1).all())
        return False


def _random_state(module: nn.Module, left_out: set[nn.Parameter], generator: torch.Generator) -> State:
    """Random matrices, vectors of ones, buffers of zeros: equal biases, and scales that change nothing."""
    state: State = {}
    for name, p in module.named_parameters():
        is_matrix = p.numel() > max(p.shape, default=1)
        if p not in left_out:
            random = torch.randn(p.shape, generator=generator) * 2 * p.shape[-1] ** -0.5 if is_matrix else None
            state[name] = torch.ones(p.shape) if random is None else random
    return state | {n: torch.zeros(b.shape, dtype=b.dtype) for n, b in module.named_buffers()}


class _EnoughError(Exception):
    """Ends a trial run before the experts compute."""


@contextlib.contextmanager
def _stopping_at(layer: MoELayer) -> Any:
    def stop(*_: Any) -> None:
        raise _EnoughError

    inside = layer.experts is layer.router
    handle = None if inside else layer.experts.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _explains(routed: Routed, score: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether weights are proportional to scores: within each token, or over tokens where one expert is chosen."""
    score_TK = score(routed.logits_TE.float()).gather(-1, routed.indices_TK)
    weight_TK = routed.weights_TK.float()
    if weight_TK.shape[-1] == 1:
        kept = weight_TK[:, 0] != 0
        score_TK, weight_TK = score_TK[kept].T, weight_TK[kept].T
    return torch.allclose(weight_TK * score_TK[:, :1], score_TK * weight_TK[:, :1], rtol=1e-3, atol=1e-6)


def parameter_counts(model: PreTrainedModel) -> dict[str, int]:
    """Parameters by group, on any device. Tied weights count once; shared experts are told by their name."""
    layers = moe_layers(model) if find_routers(model) else ()
    kinds = _routed(model, layers) | _of_routers(layers)
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    kinds = {p: "embeddings" for e in embeddings if e is not None for p in e.parameters()} | kinds
    owners = [(n, m) for n, m in model.named_modules() if (n, m) and next(m.parameters(), None) is not None]
    for path, module in owners:
        if group := _group_by_name(path, module):
            kinds = dict.fromkeys(module.parameters(), group) | kinds
    counts = dict.fromkeys(GROUPS, 0)
    for p in model.parameters():
        counts[kinds.get(p, "other")] += p.numel()
    return counts


def _routed(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> dict[nn.Parameter, str]:
    """Of layers that choose by a table of token ids, too: they have the same experts and no recorded router."""
    own = [p for layer in layers for p in routed_parameters(layer)]
    classes = tuple({type(layer.experts) for layer in layers if _of_own_class(layer)})
    unrouted = [m for m in model.modules() if classes and isinstance(m, classes)]
    known = {m for layer in layers for m in layer.experts.modules()}
    return dict.fromkeys([*own, *(p for m in unrouted if m not in known for p in m.parameters())], "routed experts")


def _of_own_class(layer: MoELayer) -> bool:
    return layer.experts is not layer.router and not isinstance(layer.experts, (nn.ModuleList, nn.ModuleDict))


def _of_routers(layers: tuple[MoELayer, ...]) -> dict[nn.Parameter, str]:
    """A router that is a whole block has its own weights in the one linear map that is called like one."""
    found: dict[nn.Parameter, str] = {}
    for layer in layers:
        inside = layer.experts is layer.router
        holders = [m for n, m in layer.router.named_children() if "router" in n] if inside else [layer.router]
        found |= dict.fromkeys((p for m in holders for p in m.parameters()), "router")
    return found


def _group_by_name(path: str, module: nn.Module) -> str | None:
    last = path.rpartition(".")[2]
    if "shared" in last:
        return "shared experts"
    if re.fullmatch(r"(.*_)?(attn|attention)", last) or "Attention" in type(module).__name__:
        return "attention"
    return None


def layer_sizes(model: PreTrainedModel) -> dict[str, Any]:
    """What a plan's share is counted with: parameters in total, and by MoE layer those of an expert and of its router.

    On any device. Tied weights count once, experts that mean "skip" have none and do not count: `skips` says how many a
    layer has, behind the others.
    """
    layers = moe_layers(model)
    routed = [routed_parameters(x) for x in layers]
    routers = [set(x.router.parameters()) - set(own) for x, own in zip(layers, routed, strict=True)]
    return {
        "total": sum(p.numel() for p in model.parameters()),
        "expert": [_of_an_expert(x, own) for x, own in zip(layers, routed, strict=True)],
        "router": [sum(p.numel() for p in own) for own in routers],
        "skips": [x.num_skips for x in layers],
    }


def _of_an_expert(layer: MoELayer, routed: list[nn.Parameter]) -> int:
    """By the rows that expert tuning trains; of experts that are not stacked, an even part of all."""
    experts = layer.num_experts - layer.num_skips
    rows = [p for n, p in layer.experts.named_parameters(recurse=False) if n in expert_weights(layer.experts)]
    return sum(p.numel() for p in rows or routed) // experts


def layer_numbers(model: PreTrainedModel) -> tuple[int, ...]:
    """Numbers of the model layers."""
    return tuple(range(len(_decoder(model)[1])))


def linear_maps(model: PreTrainedModel, group: str) -> dict[str, int]:
    """Path -> model layer of the linear maps in the layers' attention, or in their shared experts (`shared`)."""
    path, layers = _decoder(model)
    wanted = {"attention": "attention", "shared": "shared experts"}[group]
    found: dict[str, int] = {}
    for i, layer in enumerate(layers):
        holders = [n for n, m in layer.named_modules() if n and _group_by_name(n, m) == wanted]
        maps = [n for n, m in layer.named_modules() if type(m) in (nn.Linear, Conv1D)]
        inside = [n for n in maps if any(n.startswith(f"{holder}.") for holder in holders)]
        found |= {f"{path}.{i}.{n}": i for n in inside}
    return found


def _decoder(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's layers: the largest list of modules, so never an encoder of images."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))


def active_parameters(model: PreTrainedModel, counts: dict[str, int]) -> int:
    """Parameters that one token passes: all, less the routed experts that it is not sent to."""
    layers = moe_layers(model) if find_routers(model) else ()
    sizes = [sum(p.numel() for p in routed_parameters(x)) for x in layers]
    used = sum(size * x.top_k / (x.num_experts - x.num_skips) for size, x in zip(sizes, layers, strict=True))
    idle_share = 1 - used / sum(sizes) if layers else 0.0  # holds for experts behind a table of token ids, too
    return round(sum(counts.values()) - counts["routed experts"] * idle_share)


def upstream_parameters(model: PreTrainedModel, layer: MoELayer) -> list[nn.Parameter]:
    """Parameters that the logits of a layer's router depend on: embeddings, the layers before, its own but the experts.

    Norms count as before the router wherever they stand in the layer.
    """
    *_, place = re.finditer(r"\.\d+(?=\.|$)", layer.name)
    stem = layer.name[: place.start()]  # all layers stand in one list
    before = [f"{stem}.{i}." for i in range(layer.layer_id)]
    own, block = f"{layer.name[: place.end()]}.", f"{layer.name}."
    found = list(model.get_input_embeddings().parameters()) + list(layer.router.parameters())
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(before)) or (name.startswith(own) and not name.startswith(block)):
            found.append(parameter)
    return list(dict.fromkeys(found))
