"""Train only the experts a plan names, by the plan's choice the routers of their layers, on request embeddings.

    W_e = tuned_e  if e is planned, else base_e

Source: Wang et al. 2024 (ESFT, arXiv:2407.01906), sec. 3; routers of the planned layers train as in Khandelwal et al.
2026 (SSFT, arXiv:2605.29714), released code.
Differs: planned rows are parameters of their own, so an optimizer never sees the frozen rows: under a gradient mask
AdamW's weight decay still moves them. Gradients of frozen rows are never computed (`modeling/planned.py`); under an
experts implementation that was chosen by hand, or in a family of another layout, they are computed and dropped.
Trains: planned rows of the expert weights, routers if the plan says so, on request embeddings or rows of language tags.
Merges: exactly.
"""

# Shape letters: E experts, P planned experts, F expert width, D model width (the last two stand for any trailing axes).

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import tag_rows
from dragoman.methods.base import Rows, require_fit
from dragoman.modeling import (
    MoELayer,
    TunedRows,
    embedding_names,
    expert_weights,
    local_share,
    moe_layers,
    planned_forward,
    runs_planned,
    why_not_tunable,
)
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "bits"
NEEDS_PLAN = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """What of the planned layers trains."""

    routers: bool | None = None
    """Train the routers of the planned layers; default: what the plan says."""
    embeddings: str = "none"
    """none, tags (rows of language tags, of the head too) or all (with the head)."""
    tag_rows: tuple[int, ...] = ()
    """For tags: which rows; `dragoman adapt` takes that of the target's tag."""

    def __post_init__(self) -> None:
        if self.embeddings not in ("none", "tags", "all"):
            raise ConfigError(f"embeddings is none, tags or all, not {self.embeddings!r}")
        if self.tag_rows and self.embeddings != "tags":
            raise ConfigError(f"tag_rows would have no effect where embeddings is {self.embeddings!r}; leave it out")


class _WriteRows(torch.autograd.Function):
    """Writes the tuned rows into the stack and passes back their gradient: P rows are copied, not E."""

    @staticmethod
    def forward(ctx: Any, tuned_PFD: torch.Tensor, stack_EFD: torch.Tensor, planned_P: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(planned_P)
        stack_EFD.index_copy_(0, planned_P, tuned_PFD)
        return stack_EFD.view_as(stack_EFD)

    @staticmethod
    def backward(ctx: Any, grad_EFD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (planned_P,) = ctx.saved_tensors
        return grad_EFD.index_select(0, planned_P), None, None


class PlannedRows(nn.Module):
    """Parametrization of stacked expert weights: planned rows come from `tuned_PFD`, the others stay what they are."""

    def __init__(self, base_EFD: torch.Tensor, planned: tuple[int, ...]):
        super().__init__()
        self.planned_P: torch.Tensor
        self.register_buffer("planned_P", torch.tensor(planned, device=base_EFD.device), persistent=False)
        self.planned = planned
        self.tuned_PFD = nn.Parameter(base_EFD[list(planned)].detach().clone())
        self.here: list[int] | None = None

    def keep_share(self, first: int, size: int) -> None:
        """The stack has only `size` experts from `first` on from now: of the planned rows, those alone go there."""
        self.here = [row for row, expert in enumerate(self.planned) if first <= expert < first + size]
        self.planned = tuple(self.planned[row] - first for row in self.here)
        self.planned_P = torch.tensor(self.planned, dtype=torch.long, device=self.tuned_PFD.device)

    @property
    def own_PFD(self) -> torch.Tensor:
        """The tuned rows whose experts are in the stack."""
        return self.tuned_PFD if self.here is None else self.tuned_PFD[self.here]

    def forward(self, base_EFD: torch.Tensor) -> torch.Tensor:
        """The stack with the planned rows in place, [E, F, D]."""
        stack_EFD = local_share(base_EFD).detach()
        return _WriteRows.apply(self.own_PFD, stack_EFD, self.planned_P) if self.planned else stack_EFD


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> None:
    """Freeze the model and make the planned rows trainable. Raises where the plan does not fit the model."""
    if plan is None:
        raise ConfigError("the method expert_tuning trains what a plan names; make one with `dragoman plan`")
    layers = _planned_layers(model, plan)
    routers = plan.train_routers if config.routers is None else config.routers
    model.requires_grad_(False)
    for layer, planned in layers:
        for name in expert_weights(layer.experts):
            rows = PlannedRows(getattr(layer.experts, name), planned)
            parametrize.register_parametrization(layer.experts, name, rows, unsafe=True)
        layer.experts.forward = MethodType(_forward, layer.experts)
        layer.router.requires_grad_(routers)
    if config.embeddings == "tags":
        tag_rows.apply(model, config.tag_rows)
    for name in embedding_names(model) if config.embeddings == "all" else ():
        model.get_parameter(name).requires_grad_(True)


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan) -> Rows:
    """The planned rows of every stack, and the routers of their layers where they train."""
    routers = plan.train_routers if config.routers is None else config.routers
    paths = {m: n for n, m in model.named_modules()}
    rows: Rows = {}
    for layer, planned in _planned_layers(model, plan):
        rows |= dict.fromkeys((f"{paths[layer.experts]}.{name}" for name in expert_weights(layer.experts)), planned)
        own = [f"{paths[layer.router]}.{n}" for n, _ in layer.router.named_parameters()]
        rows |= dict.fromkeys(own if routers else ())
    if config.embeddings != "none":
        rows |= dict.fromkeys(embedding_names(model), config.tag_rows if config.embeddings == "tags" else None)
    return rows


def _forward(experts: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the forward of an experts module whose stacks have planned rows."""
    stacks = dict(experts.parametrizations.items())
    rows = {n: TunedRows(local_share(x.original), x[0].own_PFD, x[0].planned) for n, x in stacks.items()}
    if any(r.planned for r in rows.values()) and not kwargs and runs_planned(experts, tuple(rows)):
        return planned_forward(experts, rows, *args)
    with parametrize.cached():  # within one pass the rows are written once, however often the code looks at its weights
        out = type(experts).forward(experts, *args, **kwargs)
    if any(r.planned for r in rows.values()):
        return out
    return out + 0 * sum(x[0].tuned_PFD.sum() for x in stacks.values())  # all processes must have a gradient to add


def _planned_layers(model: PreTrainedModel, plan: ExpertPlan) -> list[tuple[MoELayer, tuple[int, ...]]]:
    layers = moe_layers(model)
    if reason := why_not_tunable(layers):
        raise ModelError(f"single experts of {type(model).__name__} cannot be trained: {reason}; use the method full")
    require_fit(layers, plan.num_experts)
    found = {layer.layer_id: layer for layer in layers}
    sizes = {i: layer.num_experts - layer.num_skips for i, layer in found.items()}
    beyond = {i: [e for e in planned if e >= sizes[i]] for i, planned in plan.experts().items()}
    if faults := [f"layer {i} has {sizes[i]} that can be trained, it names {odd}" for i, odd in beyond.items() if odd]:
        raise ModelError(f"the plan names what is no expert: {'; '.join(faults)}; take these out of it")
    return [(found[i], planned) for i, planned in sorted(plan.experts().items()) if planned]


def merge(model: PreTrainedModel) -> None:
    """Write the tuned rows into the stacks for good; plain parameters again, to the bit."""
    tag_rows.merge(model)
    for layer in moe_layers(model):
        vars(layer.experts).pop("forward", None)
        for name in list(getattr(layer.experts, "parametrizations", {})):
            with torch.no_grad():
                merged_EFD = getattr(layer.experts, name).clone()
            parametrize.remove_parametrizations(layer.experts, name, leave_parametrized=False)
            getattr(layer.experts, name).data.copy_(merged_EFD)
