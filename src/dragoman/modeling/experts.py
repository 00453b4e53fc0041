"""Faster ways to run stacked experts, in training and, on a CPU, without gradients; transformers takes them by name.

Shape letters: T tokens, K chosen per token, S = T * K slots, P places of slots (S, and filler between experts where
their numbers of rows are rounded up), E experts, D model width, F width of an expert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import moe

SORTED = "dragoman_sorted"
BY_DEVICE = "dragoman_by_device"
"""What Mix-MoE models run by default."""
GROUPED = ("grouped_mm", BY_DEVICE)
"""Implementations that compute, where gradients are asked for, what `grouped_mm` of transformers does."""
MULTIPLE = 32
"""A CPU's products in bfloat16 have a multiple of this many rows an expert: oneDNN compiles for each number of rows,
which changes from pass to pass, and keeps 1,024 of what it compiled."""
COMPILES_BFLOAT16 = torch.__version__ >= "2.11"
"""With older torch transformers asks, while it is compiled, where weights in bfloat16 lie."""


@contextlib.contextmanager
def sorted_experts(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, stacked experts gather their slots by a permutation, whose gradient is a gather too.

    The usual gradient of a gather adds rows in an order of chance, and takes a fifth of a training step on a CPU.
    Results differ from the `grouped_mm` of transformers by rounding. Experts that are no gated stack, models whose
    implementation was chosen by hand, and versions of transformers that know no registered ones stay as they are.
    """
    config = model.config.get_text_config()
    before = getattr(config, "_experts_implementation", None)
    if before not in GROUPED or not _taken(model):
        yield
        return
    try:
        yield
    finally:
        model.set_experts_implementation(before)


def _taken(model: PreTrainedModel) -> bool:
    moe.ALL_EXPERTS_FUNCTIONS.register(SORTED, _forward)
    try:
        model.set_experts_implementation(SORTED)
    except ValueError:  # transformers 5.0 has a fixed list
        return False
    return True


def register_by_device() -> None:
    """Make transformers know `BY_DEVICE`."""
    moe.ALL_EXPERTS_FUNCTIONS.register(BY_DEVICE, _by_device)


def _by_device(experts: Any, x_TD: torch.Tensor, indices_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """Without gradients on a CPU the experts' own `one_by_one`, whose parts stay in its caches; else `grouped_mm`."""
    if x_TD.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return moe.grouped_mm_experts_forward(experts, x_TD, indices_TK, weights_TK)
    return experts.one_by_one(x_TD, indices_TK, weights_TK)


class _Permuted(torch.autograd.Function):
    """Rows of x, each used K times, in the order of `slots`; `back` says where each slot stands in it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, slots_P: torch.Tensor, back_S: torch.Tensor, k: int, filler: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(back_S)
        ctx.k, ctx.filler = k, filler
        return x.index_select(0, slots_P // k)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (back_S,) = ctx.saved_tensors
        if ctx.filler:
            grad_SD = grads[0].index_select(0, back_S.clamp(min=0)).masked_fill((back_S < 0)[:, None], 0.0)
        else:
            grad_SD = grads[0].index_select(0, back_S)
        return grad_SD.view(-1, ctx.k, grad_SD.shape[-1]).sum(1), None, None, None, None


def permuted(
    x: torch.Tensor, slots_P: torch.Tensor, back_S: torch.Tensor, k: int, filler: bool = False
) -> torch.Tensor:
    """Rows of x, each used k times, in the order of `slots_P`; `back_S` is its inverse. The gradient is a gather.

    filler: whether `back_S` has -1 for rows of x that nobody reads: their gradient is zero.
    """
    return _Permuted.apply(x, slots_P, back_S, k, filler)


def computing_dtype(weight: torch.Tensor) -> torch.dtype:
    """What grouped products of a weight [E, ...] are computed in: autocast does not reach them, and a GPU loops in
    float32.
    """
    if _trains_in_bfloat16(weight):
        return torch.bfloat16
    if weight.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return weight.dtype


def by_expert(
    indices_TK: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots in the order of experts, the inverse permutation, the expert of each, and where each expert's slots end."""
    expert_S, slots_S = torch.sort(indices_TK.flatten(), stable=True)
    back_S = torch.empty_like(slots_S).scatter_(0, slots_S, torch.arange(len(slots_S), device=slots_S.device))
    load_E = slots_per_expert(expert_S, num_experts)
    return slots_S, back_S, expert_S, load_E.cumsum(0, dtype=torch.int32)


def by_expert_rounded(
    indices_TK: torch.Tensor, num_experts: int, multiple: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slots in the order of experts, each expert's number rounded up by places of -1; their places; experts' ends.

    How many places there are, P, does not depend on the choices: what is behind the last end is never computed.
    """
    slots_S, _, expert_S, ends_E = by_expert(indices_TK, num_experts)
    load_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    rounded_E = (load_E + multiple - 1) // multiple * multiple
    before_E = rounded_E.cumsum(0) - rounded_E - (ends_E - load_E)  # filler before each expert
    place_S = torch.arange(len(slots_S), device=slots_S.device) + before_E[expert_S]
    slots_P = slots_S.new_full((len(slots_S) + num_experts * (multiple - 1),), -1).scatter_(0, place_S, slots_S)
    back_S = torch.empty_like(slots_S).scatter_(0, slots_S, place_S)
    return slots_P, back_S, rounded_E.cumsum(0, dtype=torch.int32)


def slots_per_expert(
    indices_TK: torch.Tensor, num_experts: int, real_T: torch.Tensor | None = None
) -> torch.Tensor:
    """How many slots each expert has, [E]; with real_T those of text alone. Nothing here waits for a device."""
    # histc, as in transformers: bincount has no fixed shape, which compilers need; on a CPU it takes floats only, and
    # of thousands of bins rounding would mistake some: there each number stands in the middle of its bin
    floats = indices_TK.device.type in ("cpu", "mps")
    counted = indices_TK.float() + 0.5 if floats else indices_TK.int()
    if real_T is not None:
        counted = counted.masked_fill(~real_T.view(-1, *[1] * (counted.ndim - 1)), -1)
    return torch.histc(counted, bins=num_experts, min=0, max=num_experts if floats else num_experts - 1)


def _forward(experts: Any, x_TD: torch.Tensor, indices_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    told = [getattr(experts, flag, False) for flag in ("has_bias", "has_post_expert_norm", "_is_expert_parallel")]
    if any(told) or not getattr(experts, "has_gate", True):
        return moe.grouped_mm_experts_forward(experts, x_TD, indices_TK, weights_TK)
    layout = {"is_transposed": experts.is_transposed}
    placed = Placed(indices_TK, experts.num_experts, computing_dtype(experts.down_proj))
    up, down = (w.to(placed.dtype) for w in (experts.gate_up_proj, experts.down_proj))
    hidden_PF = experts._apply_gate(moe._grouped_linear(placed.there(x_TD), up, placed.ends_E, **layout))
    return placed.back(moe._grouped_linear(hidden_PF, down, placed.ends_E, **layout), weights_TK).to(x_TD.dtype)


class Placed:
    """Where the rows of a pass go for grouped products in a dtype, and how they come back."""

    def __init__(self, indices_TK: torch.Tensor, num_experts: int, dtype: torch.dtype):
        self.top_k, self.dtype = indices_TK.shape[-1], dtype
        on_cpu = indices_TK.device.type == "cpu"
        # below, filler would be more than a quarter of the rows, and few numbers of rows come up
        self.filler = on_cpu and dtype == torch.bfloat16 and indices_TK.numel() >= 2 * MULTIPLE * num_experts
        if self.filler:
            self.slots_P, self.back_S, self.ends_E = by_expert_rounded(indices_TK, num_experts, MULTIPLE)
        else:
            self.slots_P, self.back_S, _, self.ends_E = by_expert(indices_TK, num_experts)

    def there(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The rows of their slots, [P, D]."""
        if self.filler:
            return permuted(x_TD.to(self.dtype), self.slots_P.clamp(min=0), self.back_S, self.top_k)
        return permuted(x_TD, self.slots_P, self.back_S, self.top_k).to(self.dtype)

    def back(self, y_PD: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """The weighted sum of each token's slots, [T, D]."""
        y_SD = permuted(y_PD, self.back_S, self.slots_P, 1, self.filler)
        return (y_SD.view(-1, self.top_k, y_SD.shape[-1]) * weights_TK[..., None]).sum(1)

    def expert_P(self) -> torch.Tensor:
        """The expert of each place; of what is behind the last one's end, the last."""
        places_P = torch.arange(len(self.slots_P), device=self.ends_E.device)
        return torch.searchsorted(self.ends_E, places_P, right=True).clamp(max=len(self.ends_E) - 1)


def _trains_in_bfloat16(weight_EXX: torch.Tensor) -> bool:
    """Whether a CPU trains so. Without gradients it computes as without `sorted_experts`: a base that is measured
    beside the model in training stays comparable. Grouped products want rows of whole 16 bytes.
    """
    asked = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    even = all(size % 8 == 0 for size in weight_EXX.shape[1:])
    compiles = COMPILES_BFLOAT16 or not torch.compiler.is_compiling()
    return weight_EXX.device.type == "cpu" and asked and even and compiles and torch.is_grad_enabled()
