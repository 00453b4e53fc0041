"""What the methods that align routing let train: routers alone, routers and LoRA on attention, or everything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.modeling import attention_maps, moe_layers, upstream_parameters

Part = Literal["routers", "lora", "upstream", "full"]
RANK = 8


def part_faults(train: Part, rank: int | None) -> list[str]:
    """What is wrong with the two settings together."""
    if rank is None:
        return []
    if train != "lora":
        return [f"rank {rank} has no effect where {train} trains; take lora or leave it out"]
    return [] if rank >= 1 else [f"the rank is {rank}, at least 1"]


def let_train(model: PreTrainedModel, train: Part, rank: int | None = None, last_layer: int | None = None) -> None:
    """Freeze what does not train, in place; the model computes what it did.

    last_layer: model layer whose router is the last thing to train under `upstream`.
    Source of LoRA: Hu et al. 2021 (arXiv:2106.09685), here that of the package peft, on every linear map of attention.
    """
    layers = moe_layers(model)
    model.requires_grad_(train == "full")
    if train == "upstream":
        aligned = next(layer for layer in layers if layer.layer_id == last_layer)
        for parameter in upstream_parameters(model, aligned):
            parameter.requires_grad_(True)
    elif train != "full":
        if train == "lora":
            _inject(model, rank or RANK)
        for layer in layers:
            layer.router.requires_grad_(True)


def _inject(model: PreTrainedModel, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("training attention by LoRA needs the package peft: pip install peft") from None
    names = list(attention_maps(model))
    if not names:
        raise ConfigError("no linear map was found in this model's attention for LoRA; train routers or full")
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
