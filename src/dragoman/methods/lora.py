"""Train low-rank updates of attention and of stacked experts, each expert its own.

    W = base W + alpha / rank * B A,   in a stack for each expert e:  W_e = base W_e + alpha / rank * B_e A_e

Source: Hu et al. 2021 (LoRA, arXiv:2106.09685), sec. 4.1, as PEFT has it; stacks through its `target_parameters`.
Differs: what is trained is found by probing and given to PEFT by whole paths, then looked for in the model. By a name
such as `down_proj` alone PEFT takes shared experts and leaves the routed ones frozen without a word, in some families;
in others it takes the routed ones where whole paths of shared ones are given, so those go in as parameters, too.
Trains: A and B. Merges: to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dragoman.errors import ConfigError, ModelError
from dragoman.methods.base import Rows, require_fit
from dragoman.modeling import dense_maps, expert_stacks, layer_numbers, linear_maps, moe_layers
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "rounding"
NEEDS_PLAN = False

PARTS = {
    "attention": "linear maps of attention",
    "experts": "routed experts",
    "shared": "shared experts",
    "feed_forward": "linear maps of dense feed-forwards",
}
"""Name of a part -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What gets updates, and of which rank."""

    rank: int = 8
    """Rank of every update; of stacked experts, of each expert."""
    alpha: float = 16.0
    """Updates are scaled by alpha / rank."""
    parts: tuple[str, ...] = ("attention", "experts")
    """Any of attention, experts (the routed ones), shared (shared experts), feed_forward (of dense layers)."""
    layers: tuple[int, ...] = ()
    """Model layers; default: those of the plan, without a plan all. In them all experts train, planned or not."""
    seed: int = 0
    """Of the random A; B starts at zero."""

    def __post_init__(self) -> None:
        faults = [f"there is no part {p!r}, parts are {', '.join(PARTS)}" for p in self.parts if p not in PARTS]
        faults += ["parts is empty"] if not self.parts else []
        faults += [f"rank is {self.rank}, at least 1"] if self.rank < 1 else []
        faults += [f"alpha is {self.alpha}, more than 0"] if not self.alpha > 0 else []
        if faults:
            raise ConfigError(f"LoRA cannot be so: {'; '.join(faults)}")


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze the model and put updates of zero beside its weights. Raises where a part or a layer has none."""
    peft = _peft()
    maps, weights = _targets(model, config, plan)
    transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in maps)  # GPT-2's, all of them
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=maps,
        target_parameters=weights,
        fan_in_fan_out=transposed,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        peft.inject_adapter_in_model(settings, model)
    reached = {name for name, _ in _updates(model)}
    if missed := sorted({*(f"{m}.weight" for m in maps), *weights} - reached):
        raise ModelError(f"PEFT {peft.__version__} left {', '.join(missed)} frozen; leave out their part or layers")


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> Rows:
    """All rows of every weight that has an update."""
    maps, weights = _targets(model, config, plan)
    return dict.fromkeys([*(f"{m}.weight" for m in maps), *weights])


def merge(model: PreTrainedModel) -> None:
    """Add the updates to the weights and take PEFT's modules out again."""
    tuned = _tuned(model)
    for path, module in tuned.items():
        while hasattr(module, "base_layer"):
            module.merge(safe_merge=True)
            module = module.base_layer
        model.set_submodule(path, module)
    del model.peft_config


def matched_rank(model: PreTrainedModel, config: Config, parameters: int, plan: ExpertPlan | None = None) -> int:
    """The rank with which LoRA trains as many parameters as it can without training more; asked on the plain model.

    Raises ConfigError where rank 1 trains more already.
    """
    maps, weights = _targets(model, config, plan)
    shapes = [model.get_parameter(name).shape for name in (*(f"{m}.weight" for m in maps), *weights)]
    of_one = sum(math.prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in shapes)
    if parameters < of_one:
        raise ConfigError(f"LoRA of rank 1 trains {of_one:,} parameters here; give as many or more, not {parameters:,}")
    return parameters // of_one


def save_peft(model: PreTrainedModel, base: str, folder: Path) -> None:
    """Write the updates as a PEFT adapter, which `PeftModel.from_pretrained` puts on the base."""
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.inference_mode = base, True
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(folder)
    trained = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    stored = {f"base_model.model.{n.replace('.default.', '.')}": t for n, t in trained.items()}
    save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise ConfigError("the method lora needs PEFT; install it with: pip install 'dragoman[lora]'") from None
    return peft


def _targets(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> tuple[list[str], list[str]]:
    """Paths of linear maps, and of weights. Raises for a layer, and for a part, with nothing to train."""
    if config.layers and plan is not None:
        raise ConfigError("lora takes its layers from the setting layers or from a plan; leave one out")
    if plan is not None:
        require_fit(moe_layers(model), plan.num_experts)
    known = layer_numbers(model)
    wanted = set(config.layers or (plan.experts() if plan else known))
    if foreign := sorted(wanted - set(known)):
        raise ModelError(f"lora is to train layers {foreign}; {type(model).__name__} has layers {_span(known)}")
    found = {part: {p: i for p, i in _part(model, part).items() if i in wanted} for part in config.parts}
    faults = [f"there are no {PARTS[part]} in layers {sorted(wanted)}" for part, paths in found.items() if not paths]
    idle = sorted(wanted - {i for paths in found.values() for i in paths.values()})
    if (config.layers or plan) and idle and not faults:
        faults.append(f"layers {idle} have no {' and no '.join(PARTS[p] for p in config.parts)}")
    if faults:
        raise ModelError(f"lora would train nothing there: {'; '.join(faults)}; leave it out of parts or layers")
    shared = [f"{path}.weight" for path in found.get("shared", {})]
    maps = [*found.get("attention", {}), *found.get("feed_forward", {})]
    return maps, [*found.get("experts", {}), *shared]


def _part(model: PreTrainedModel, part: str) -> dict[str, int]:
    """Path -> model layer of what a part consists of."""
    if part == "experts":
        return expert_stacks(model)
    return dense_maps(model) if part == "feed_forward" else linear_maps(model, part)


def _span(layers: tuple[int, ...]) -> str:
    return f"{layers[0]} to {layers[-1]}"


def _tuned(model: nn.Module) -> dict[str, Any]:
    """Path -> outermost module that PEFT put in, inner ones left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {n: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    return {n: m for n, m in found.items() if not any(n.startswith(f"{other}.") for other in found)}


def _updates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name in the plain model, and module, of every weight that has an update that trains."""
    for path, module in _tuned(model).items():
        while hasattr(module, "base_layer"):
            if all(p.requires_grad for part in (module.lora_A, module.lora_B) for p in part.parameters()):
                yield f"{path}.{getattr(module, 'parameter_name', 'weight')}", module
            module = module.base_layer
