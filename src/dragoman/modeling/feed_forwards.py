"""Finding the feed-forwards of a dense model, by the shapes of their maps.

    gated: W_d (act(W_g x) * W_u x)        plain: W_d act(W_u x)

No names are known: a feed-forward is a module with one linear map D -> F, or two, or both in one D -> 2F (Phi-3, GLM),
one F -> D, no other linear map, and one activation, that is called with the state alone. Which of two maps is the gate
is found by running it. Not found are activations with weights (Apertus), and those that take the residual too (BLOOM,
MPT).

Shape letters: T tokens, D model width, F width of the feed-forward.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
    size: int
    width: int

    @property
    def act(self) -> nn.Module:
        """The activation."""
        return getattr(self.holder, self.act_name)

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
    def is_layer(self) -> bool:
        """Whether its maps stand in the layer itself."""
        return self.path.rpartition(".")[2].isdigit()

    @property
    def place(self) -> str:
        """Path that a block in its place has."""
        return f"{self.path}.{self.ups[0]}" if self.is_layer else self.path

    def weights(self) -> tuple[str, ...]:
        """Names, as in the model, of its weights and biases."""
        return tuple(f"{self.path}.{n}.{p}" for n in (*self.ups, self.down) for p in ("weight", "bias"))

    def replace(self, block: nn.Module) -> None:
        """Put a block in its place; where the layer itself runs the maps, it is the first and the rest pass on."""
        if self.is_layer:
            setattr(self.holder, self.ups[0], block)
            setattr(self.holder, self.act_name, nn.Identity())
            setattr(self.holder, self.down, nn.Identity())
        else:
            setattr(self.parent, self.path.rpartition(".")[2], block)


def feed_forwards(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """Every feed-forward in order of depth; works on the meta device. Empty where nothing fits."""
    width = hidden_size(model)
    found = [_fitting(model, path, module, width) for path, module in list(model.named_modules())]
    return tuple(ffn for ffn in found if ffn is not None)


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
    bare = {n: m for n, m in children.items() if next(m.parameters(), None) is None}
    acts = [n for n, m in bare.items() if not isinstance(m, NO_ACTIVATION)]
    if len(ups) != len(maps) - 1 or len(acts) != 1:
        return None
    parent = model.get_submodule(path.rpartition(".")[0])
    found = FeedForward(int(numbers[0]), path, module, parent, tuple(ups), downs[0], acts[0], size, width)
    return found if found.is_layer or _inputs(module) == 1 else None


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


Map = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [F, D] and bias [F] of a linear map."""


@torch.no_grad()
def gate_first(ffn: FeedForward) -> list[Map]:
    """The maps into the inner width, the gate before the other. ModelError where neither order explains it."""
    maps = [(matrix(m), m.bias) for m in (getattr(ffn.holder, n) for n in ffn.ups)]
    if not ffn.gated:
        return maps
    if ffn.fused:
        (weight_XD, bias_X), width = maps[0], ffn.width
        biases = (None, None) if bias_X is None else bias_X.split(width)
        maps = list(zip(weight_XD.split(width), biases, strict=True))
    generator, linear = torch.Generator().manual_seed(0), nn.functional.linear
    weight_FD = maps[0][0]
    x_TD = torch.randn(8, ffn.size, generator=generator).to(weight_FD.device, weight_FD.dtype)
    wanted_TD = ffn.holder(x_TD).float()
    for order in (maps, maps[::-1]):
        gate_TF, up_TF = (linear(x_TD, weight_FD, bias_F) for weight_FD, bias_F in order)
        made_TD = getattr(ffn.holder, ffn.down)(ffn.act(gate_TF) * up_TF).float()
        if (made_TD - wanted_TD).norm() <= 1e-2 * wanted_TD.norm():
            return order
    part = "half " if ffn.fused else ""
    raise ModelError(
        f"{ffn.path} is no gated feed-forward: neither {part}of {' and '.join(ffn.ups)} is a gate that explains what "
        "it computes; only W_d (act(W_g x) * W_u x) can be split"
    )
