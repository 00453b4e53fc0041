"""Finding the feed-forwards of a dense model, by the shapes of their maps.

    gated: W_d (act(W_g x) * W_u x)        plain: W_d act(W_u x)

No names are known: a feed-forward is a module with one linear map D -> F, or two, or both in one D -> 2F (Phi-3, GLM),
one F -> D, no other linear map, and one activation. Its weights, if any, are single numbers (Apertus); it may be a
function that the module calls (LFM2). Which of two maps is the gate is found by running the module. One that is given
the residual too (BLOOM, MPT) has to run its parts in a row; it stays, with a block in place of its first map, and what
it does then, to add the residual behind dropout, it does as before.

Shape letters: T tokens, D model width, F width of the feed-forward.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dragoman.errors import ModelError
from dragoman.modeling.probing import find_routers, hidden_size

LINEAR = (nn.Linear, Conv1D)
"""Linear maps; GPT-2's `Conv1D` is one that keeps its weight transposed."""
NO_ACTIVATION = (*LINEAR, nn.Dropout, nn.Identity, nn.LayerNorm)


@dataclass(frozen=True)
class FeedForward:
    """One of them, where it stands and what it is made of."""

    layer_id: int
    path: str
    """Of the module that holds the maps: one of its own, or the whole layer (OPT)."""
    holder: nn.Module
    parent: nn.Module
    ups: tuple[str, ...]
    """Maps into the inner width; of two, or of the halves of one, `gate_first` says which is the gate."""
    down: str
    act_name: str
    """Empty where the activation is a function."""
    act: nn.Module
    size: int
    width: int
    stays: bool
    """Whether the module that holds the maps runs a block in their place: a whole layer, or what adds the residual."""

    @property
    def has_bias(self) -> bool:
        """Whether a map has a bias."""
        return any(getattr(self.holder, n).bias is not None for n in (*self.ups, self.down))

    @property
    def fused(self) -> bool:
        """Whether one map holds the gate and the other."""
        return _sizes(getattr(self.holder, self.ups[0]))[1] == 2 * self.width

    @property
    def gated(self) -> bool:
        """Whether it has a gate."""
        return len(self.ups) == 2 or self.fused

    @property
    def place(self) -> str:
        """Path that a block in its place has."""
        return f"{self.path}.{self.ups[0]}" if self.stays else self.path

    def weights(self) -> tuple[str, ...]:
        """Names, as in the model, of its weights and biases, and of what its activation keeps."""
        maps = [f"{self.path}.{n}.{p}" for n in (*self.ups, self.down) for p in ("weight", "bias")]
        return (*maps, *(f"{self.path}.{self.act_name}.{n}" for n in self.act.state_dict()))

    def replace(self, block: nn.Module) -> None:
        """Put a block in its place; where the module stays, the block is the first map and the rest pass on."""
        if self.stays:
            setattr(self.holder, self.ups[0], block)
            setattr(self.holder, self.act_name, nn.Identity())
            setattr(self.holder, self.down, nn.Identity())
        else:
            setattr(self.parent, self.path.rpartition(".")[2], block)


def feed_forwards(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """Every feed-forward in order of depth; works on the meta device. Empty where nothing fits.

    Maps of a layer around one are none: those of Gemma 3n take what each layer embeds.
    """
    width = hidden_size(model)
    fitting = [_fitting(model, path, module, width) for path, module in list(model.named_modules())]
    found = [ffn for ffn in fitting if ffn is not None]
    return tuple(a for a in found if not any(b.path.startswith(f"{a.path}.") for b in found))


def dense_maps(model: PreTrainedModel) -> dict[str, int]:
    """Path -> model layer of the linear maps of feed-forwards, those in layers with experts left out."""
    routed = {int(n) for name, *_ in find_routers(model) for n in re.findall(r"\.(\d+)\.", name)[:1]}
    found = [ffn for ffn in feed_forwards(model) if ffn.layer_id not in routed]
    return {f"{ffn.path}.{n}": ffn.layer_id for ffn in found for n in (*ffn.ups, ffn.down)}


def _fitting(model: nn.Module, path: str, module: nn.Module, size: int) -> FeedForward | None:
    children: dict[str, Any] = dict(module.named_children())
    maps = {n: _sizes(m) for n, m in children.items() if isinstance(m, LINEAR)}
    downs = [n for n, (inputs, outputs) in maps.items() if outputs == size and inputs != size]
    numbers = re.findall(r"\.(\d+)(?:\.|$)", path)
    if len(maps) not in (2, 3) or len(downs) != 1 or not numbers:
        return None
    width = maps[downs[0]][0]
    inner = (width, 2 * width) if len(maps) == 2 else (width,)
    ups = [n for n, (inputs, outputs) in maps.items() if inputs == size and outputs in inner]
    act = _activation(module, ups, size) if len(ups) == len(maps) - 1 else None
    if act is None:
        return None
    layer, inputs = path.rpartition(".")[2].isdigit(), _inputs(module)
    parent, stays = model.get_submodule(path.rpartition(".")[0]), layer or inputs > 1
    found = FeedForward(int(numbers[0]), path, module, parent, tuple(ups), downs[0], *act, size, width, stays)
    if stays and (found.gated or not found.act_name):
        return None
    parts = (*ups, found.act_name, found.down)
    return found if layer or not stays or _in_a_row(module, parts, inputs, size) else None


def _activation(module: nn.Module, ups: Sequence[str], size: int) -> tuple[str, nn.Module] | None:
    """Name and module of the only one; a function has no name."""
    others = [(n, m) for n, m in module.named_children() if not isinstance(m, NO_ACTIVATION)]
    held = [(n, m) for n, m in others if all(p.numel() == 1 for p in m.parameters())]
    if held:
        return held[0] if len(held) == 1 else None
    called = _function(module, ups, size)
    return None if called is None else ("", called)


def _sizes(linear: Any) -> tuple[int, int]:
    """Of the inputs and the outputs of a linear map."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def matrix(linear: Any) -> torch.Tensor:
    """The weight of a linear map, [outputs, inputs]."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def _inputs(module: nn.Module) -> int:
    """How many tensors its forward has to be given."""
    named = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind is named and p.default is p.empty for p in parameters)


@contextlib.contextmanager
def _seen(module: nn.Module, names: Sequence[str]) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Input and output of each call of these children within the block."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    children = [getattr(module, n) for n in names]
    hooks = [m.register_forward_hook(lambda _m, args, output: found.append((args[0], output))) for m in children]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _run(module: nn.Module, inputs: int, size: int) -> None:
    """The module on so many states, without values; whatever stops it, it stops there."""
    with contextlib.suppress(Exception), torch.no_grad():
        tensors = {n: t.to("meta") for n, t in [*module.named_parameters(), *module.named_buffers()]}
        state_1TD = torch.empty(1, 4, size, dtype=next(module.parameters()).dtype, device="meta")
        functional_call(module, tensors, (state_1TD,) * inputs)


def _in_a_row(module: nn.Module, names: Sequence[str], inputs: int, size: int) -> bool:
    """Whether the module runs these children, each once, the next on what the last returned."""
    with _seen(module, names) as calls:
        _run(module, inputs, size)
    return len(calls) == len(names) and all(a[1] is b[0] for a, b in pairwise(calls))


class Called(nn.Module):
    """An activation that is a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape."""
        return self.function(x)


class _Calls(TorchFunctionMode):
    """Keeps what torch is called with."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, Any, Any, Any]] = []
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.kept.append((func, args, kwargs or {}, output))
        return output


def _function(module: nn.Module, ups: Sequence[str], size: int) -> Called | None:
    """The one function of one tensor that the module calls with what a map returned; None without it."""
    with _seen(module, ups) as maps, _Calls() as calls:
        _run(module, 1, size)
    found = [
        partial(func, **kwargs)
        for func, args, kwargs, output in calls.kept
        if len(args) == 1 and any(args[0] is y for _, y in maps) and getattr(output, "shape", None) == args[0].shape
    ]
    return Called(found[0]) if len(found) == 1 else None


Map = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [F, D] and bias [F] of a linear map."""


@torch.no_grad()
def gate_first(ffn: FeedForward) -> list[Map]:
    """The maps into the inner width, the gate before the other. ModelError where they do not explain what it computes.

    Of a module that stays the map is taken as it is: what else the module does it goes on doing.
    """
    maps = [(matrix(m), m.bias) for m in (getattr(ffn.holder, n) for n in ffn.ups)]
    if ffn.stays:
        return maps
    if ffn.fused:
        (weight_XD, bias_X), width = maps[0], ffn.width
        biases = (None, None) if bias_X is None else bias_X.split(width)
        maps = list(zip(weight_XD.split(width), biases, strict=True))
    weight_FD = maps[0][0]
    x_1TD = torch.randn(1, 8, ffn.size, generator=torch.Generator().manual_seed(0))
    x_1TD = x_1TD.to(weight_FD.device, weight_FD.dtype)
    wanted_1TD = torch.full_like(x_1TD, torch.nan).float()
    with contextlib.suppress(Exception):  # whatever the reason, so it needs more than states
        wanted_1TD = ffn.holder(x_1TD).float()
    for order in (maps, maps[::-1])[: len(maps)]:
        first_1TF, *others = [nn.functional.linear(x_1TD, weight_FD, bias_F) for weight_FD, bias_F in order]
        made_1TD = getattr(ffn.holder, ffn.down)(reduce(torch.mul, others, ffn.act(first_1TF))).float()
        if (made_1TD - wanted_1TD).norm() <= 1e-2 * wanted_1TD.norm():
            return order
    raise ModelError(f"{ffn.path} is no {_not_explained(ffn)} can be split")


def _not_explained(ffn: FeedForward) -> str:
    if not ffn.gated:
        return (
            f"plain feed-forward: {ffn.ups[0]}, its activation and {ffn.down} do not explain what it computes; only "
            "W_d act(W_u x)"
        )
    part = "half " if ffn.fused else ""
    return (
        f"gated feed-forward: neither {part}of {' and '.join(ffn.ups)} is a gate that explains what it computes; only "
        "W_d (act(W_g x) * W_u x)"
    )
