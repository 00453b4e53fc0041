"""A model's layers as a sequence: where training begins, what enters there, and running the later ones alone.

Shape letters: B sequences, S positions, D model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ModelError

LINKS = {
    "num_kv_shared_layers": "its later layers share keys and values of earlier ones",
    "hidden_size_per_layer_input": "its layers take inputs of their own from the token ids",
}
"""Settings that, above zero, say that a layer needs more of those below than their output."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that text passes one after the other. ModelError where there is no such list."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise ModelError(
            f"{type(model).__name__} has no list of {depth} layers, so what enters one of them cannot be kept; train "
            "without a trunk cache"
        )
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def lowest_trained(model: PreTrainedModel) -> int:
    """Index of the lowest layer with a parameter that requires gradients. ModelError where no layer has one."""
    for i, layer in enumerate(decoder_layers(model)):
        if any(p.requires_grad for p in layer.parameters()):
            return i
    raise ModelError("no layer of the model trains, so there is nothing that a trunk cache could lead to")


def why_no_trunk(model: PreTrainedModel) -> str | None:
    """Why later layers need more than the output of earlier ones, as far as the settings tell; None if they do not."""
    config = model.config.get_text_config()
    return next((why for name, why in LINKS.items() if getattr(config, name, 0)), None)


class _Stop(Exception):
    """The trunk has run; what follows is not needed."""


def trunk_output(model: PreTrainedModel, cut: int, inputs: dict[str, Any]) -> torch.Tensor:
    """Hidden states [B, S, D] that leave layer cut - 1; the layers above do not run."""
    kept: list[torch.Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        kept.append(_hidden(output))
        raise _Stop

    handle = decoder_layers(model)[cut - 1].register_forward_hook(stop)
    try:
        with contextlib.suppress(_Stop):
            model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return kept[0]


def _hidden(output: Any) -> torch.Tensor:
    """The hidden states that a layer returns: alone, or first of a tuple with nothing else in it."""
    first, *others = output if isinstance(output, tuple) else (output,)
    if not isinstance(first, torch.Tensor) or any(o is not None for o in others):
        raise ModelError("a layer of this model returns more than hidden states; train without a trunk cache")
    return first


@contextlib.contextmanager
def without_trunk(model: PreTrainedModel, cut: int, source: Callable[[], torch.Tensor | None]) -> Iterator[None]:
    """Within the block layers below `cut` do not run where `source` has what leaves the last of them; None: they do."""
    below = decoder_layers(model)[:cut]
    for layer in below[:-1]:
        layer.forward = MethodType(_instead(lambda hidden: hidden if source() is not None else None), layer)
    below[-1].forward = MethodType(_instead(lambda _: source()), below[-1])
    try:
        yield
    finally:
        for layer in below:
            del layer.forward


def has_cached_trunk(model: PreTrainedModel) -> bool:
    """Whether the model is within a block of `without_trunk`."""
    return any("forward" in vars(layer) for layer in decoder_layers(model))


def _instead(given: Callable[[torch.Tensor | None], torch.Tensor | None]) -> Callable[..., Any]:
    def forward(layer: nn.Module, hidden_states: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        out = given(hidden_states)
        return type(layer).forward(layer, hidden_states, *args, **kwargs) if out is None else out

    return forward
