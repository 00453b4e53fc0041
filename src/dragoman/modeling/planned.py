"""Stacked experts of which single rows train: gradients of those rows' weights alone, of inputs only where asked.

Autograd's gradient of a stack has all E rows, and its forward pass keeps what all of them need. Here the whole network
of the experts is one step of the graph, which keeps the inputs of planned experts only. Where nothing below trains, its
backward pass runs through planned experts only.

Shape letters: T tokens, K chosen per token, S slots in the order of experts (T * K, and filler), R those of planned
experts, E experts, P planned experts, D model width, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.integrations import moe

from dragoman.modeling.experts import GROUPED, SORTED, Placed, computing_dtype


@dataclass(frozen=True)
class TunedRows:
    """A stacked weight [E, ...] that is frozen, and the parameter [P, ...] in place of its planned rows."""

    stack: torch.Tensor
    tuned: nn.Parameter
    planned: tuple[int, ...]

    def write(self) -> torch.Tensor:
        """The stack with the tuned rows in it, in place: P rows are copied, not E."""
        stack = self.stack.detach()
        for row, expert in enumerate(self.planned):
            stack[expert].copy_(self.tuned.detach()[row])
        return stack


def runs_planned(experts: nn.Module, names: Sequence[str]) -> bool:
    """Whether `planned_forward` computes what the experts' module does, `names` being its stacked weights."""
    if getattr(getattr(experts, "config", None), "_experts_implementation", None) not in (*GROUPED, SORTED):
        return False
    odd = [getattr(experts, flag, False) for flag in ("has_post_expert_norm", "_is_expert_parallel")]
    return hasattr(experts, "is_transposed") and not any(odd) and sorted(names) == sorted(_names(experts))


def _names(experts: Any) -> list[str]:
    weights = ["gate_up_proj" if getattr(experts, "has_gate", True) else "up_proj", "down_proj"]
    return weights + [f"{name}_bias" for name in weights if getattr(experts, "has_bias", False)]


def planned_forward(
    experts: Any,
    rows: Mapping[str, TunedRows],
    x_TD: torch.Tensor,
    indices_TK: torch.Tensor,
    weights_TK: torch.Tensor,
) -> torch.Tensor:
    """What transformers' `grouped_mm` computes with the tuned rows in the stacks, to the bit."""
    ordered = [rows[name] for name in _names(experts)]
    placed = Placed(indices_TK, experts.num_experts, computing_dtype(rows["down_proj"].stack))
    stacks = [r.write().to(placed.dtype) for r in ordered]
    network = _Network(experts, stacks, placed, ordered[0].planned)
    y_SD = _Planned.apply(network, placed.there(x_TD), *(r.tuned for r in ordered))
    return placed.back(y_SD, weights_TK).to(x_TD.dtype)


class _Network:
    """The two layers of all experts, for slots in the order of experts, forth and back."""

    def __init__(
        self,
        experts: Any,
        stacks: Sequence[torch.Tensor],
        placed: Placed,
        planned: tuple[int, ...],
    ):
        self.transposed = experts.is_transposed
        self.gate = experts._apply_gate if getattr(experts, "has_gate", True) else experts.act_fn
        self.up, self.down = stacks[:2]
        self.biases = stacks[2:]
        self.expert_S = placed.expert_P() if self.biases else None
        self.ends_E = placed.ends_E
        ends = [0, *self.ends_E.tolist()]
        self.spans = [(ends[e], ends[e + 1]) for e in planned]
        sizes = [end - start for start, end in self.spans]
        self.inner_spans = [(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def forth(self, x_SD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Output of the first layer before the activation, and of the second."""
        up_bias, down_bias = (b[self.expert_S] for b in self.biases) if self.biases else (None, None)
        layout = {"is_transposed": self.transposed}
        before_SF = moe._grouped_linear(x_SD, self.up, self.ends_E, bias=up_bias, **layout)
        return before_SF, moe._grouped_linear(self.gate(before_SF), self.down, self.ends_E, bias=down_bias, **layout)

    def of_planned(self, t_S: torch.Tensor) -> torch.Tensor:
        """Rows of the planned experts' slots, [R, ...], in the order of the plan."""
        return torch.cat([t_S[start:end] for start, end in self.spans])

    def back(self, grad: torch.Tensor, weights: torch.Tensor, whole: bool) -> torch.Tensor:
        """Gradient of a layer's input. `weights` are the stack, or the planned rows alone with their slots."""
        ends = self.ends_E if whole else self.ends_E.new_tensor([end for _, end in self.inner_spans])
        return moe._grouped_linear(grad, weights.to(self.up.dtype), ends, is_transposed=not self.transposed)

    def weight_gradient(
        self, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], like: torch.Tensor
    ) -> torch.Tensor:
        """[P, ...] from the inputs and output gradients of each planned expert's slots."""
        out = torch.zeros_like(like)  # an expert without a slot has the gradient zero
        for row, x, grad in zip(out, inputs, grads, strict=True):
            factors = (x.T, grad) if self.transposed else (grad.T, x)
            if row.dtype == x.dtype:
                torch.mm(*factors, out=row)
            else:  # float32 weights computed in bfloat16
                row.copy_(torch.mm(*factors))
        return out


class _Planned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, network: _Network, x_SD: torch.Tensor, *tuned: torch.Tensor) -> torch.Tensor:
        before_SF, y_SD = network.forth(x_SD)
        ctx.network, ctx.whole = network, ctx.needs_input_grad[1]
        before = before_SF if ctx.whole else network.of_planned(before_SF)
        ctx.save_for_backward(network.of_planned(x_SD), before, *tuned)
        return y_SD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_RD, before, *tuned = ctx.saved_tensors
        network, whole = ctx.network, ctx.whole
        grad_y = grads[0] if whole else network.of_planned(grads[0])
        spans = network.spans if whole else network.inner_spans
        with torch.enable_grad():
            before = before.detach().requires_grad_()
            hidden = network.gate(before)
        grad_hidden = network.back(grad_y, network.down if whole else tuned[1], whole)
        (grad_before,) = torch.autograd.grad(hidden, before, grad_hidden)
        x = [x_RD[start:end] for start, end in network.inner_spans]
        hidden_, below, above = (
            [t[start:end] for start, end in spans] for t in (hidden.detach(), grad_before, grad_y)
        )
        of_tuned = [network.weight_gradient(x, below, tuned[0]), network.weight_gradient(hidden_, above, tuned[1])]
        of_tuned += [torch.stack([g.sum(0) for g in parts]) for parts in (below, above)[: len(tuned) - 2]]
        return None, network.back(grad_before, network.up, True) if whole else None, *of_tuned
