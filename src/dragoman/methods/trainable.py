"""What the methods that align routing let train: routers alone, routers and LoRA on attention, or everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import linear_maps, moe_layers, upstream_parameters

Part = Literal["routers", "lora", "upstream", "full"]
RANK = 8


def require_part(train: Part, rank: int | None) -> None:
    """ConfigError for a rank that has no effect or is none."""
    if rank is not None and train != "lora":
        raise ConfigError(f"rank {rank} has no effect where {train} trains; take lora or leave it out")
    if rank is not None and rank < 1:
        raise ConfigError(f"the rank is {rank}, at least 1")


def let_train(model: PreTrainedModel, train: Part, rank: int | None = None, last_layer: int | None = None) -> None:
    """Freeze what does not train, in place; the model computes what it did. ModelError where routers cannot be told.

    last_layer: model layer whose router is the last thing to train under `upstream`.
    Source of LoRA: Hu et al. 2021 (arXiv:2106.09685), here that of the package peft, on every linear map of attention.
    """
    own = _own(model, train, last_layer)
    model.requires_grad_(False)
    if train == "lora":
        _inject(model, rank or RANK)
    for parameter in own:
        parameter.requires_grad_(True)


def _own(model: PreTrainedModel, train: Part, last_layer: int | None) -> list[nn.Parameter]:
    """The plain model's own parameters that train."""
    if train == "full":
        return list(model.parameters())
    layers = moe_layers(model)
    if train == "upstream":
        return upstream_parameters(model, next(layer for layer in layers if layer.layer_id == last_layer))
    if whole := [layer.layer_id for layer in layers if layer.experts is layer.router]:
        raise ModelError(
            f"the routers of layers {', '.join(map(str, whole))} are one module with their experts, so they do not "
            "train alone; train full"
        )
    return [p for layer in layers for p in layer.router.parameters()]


def may_change(
    model: PreTrainedModel, train: Part, last_layer: int | None = None
) -> dict[str, tuple[int, ...] | None]:
    """Name of every weight of the plain model that training may change, with None for all its rows."""
    own = {id(p) for p in _own(model, train, last_layer)}
    if train == "lora":
        own |= {id(model.get_submodule(path).weight) for path in linear_maps(model, "attention")}
    return {name: None for name, p in model.named_parameters(remove_duplicate=False) if id(p) in own}


def _inject(model: PreTrainedModel, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("LoRA on attention needs PEFT; install it with: pip install 'dragoman[lora]'") from None
    names = list(linear_maps(model, "attention"))
    if not names:
        raise ConfigError("no linear map was found in this model's attention for LoRA; train routers or full")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # A is random, B zero
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), model)


def take_off(model: PreTrainedModel) -> None:
    """Write LoRA's product into the weights and put the plain maps back; nothing to do where there is none."""
    for path, module in _adapted(model):
        module.merge()
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module.get_base_layer())
    vars(model).pop("peft_config", None)


def _adapted(model: PreTrainedModel) -> Iterable[tuple[str, Any]]:
    return [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Module) and hasattr(m, "lora_A")]
