"""Expert parallelism: the experts of each layer are spread over processes, and tokens travel to them.

Which experts can be spread says the class itself, in its `ep_plan`; how tokens reach them is transformers' own
exchange. Here both are applied to a model that is whole in every process, because ours is read and probed first.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

WEIGHTS, MODULES = "grouped_gemm", "ep_dispatch_experts"
"""What a plan says of stacked weights, and of the module that holds them."""


def why_not_spread(model: PreTrainedModel, processes: int) -> str:
    """Why the experts of a model cannot be spread over so many processes; empty where they can."""
    name = type(model).__name__
    if not _offered():
        return "this version of transformers does not spread experts in training; 5.23 does"
    plan = getattr(model, "ep_plan", None) or {}
    found = _planned(model, MODULES)
    if not found or set(plan.values()) - {WEIGHTS, MODULES}:
        return f"transformers has no plan for {name} by which whole experts are spread"
    stacks = {path: len(w) for name, module in found.items() for path, w in _stacks(name, module).items()}
    if own := sorted(stacks.keys() - _planned(model, WEIGHTS).keys()):
        return f"what the method trains in {own[0]} cannot be spread; whole stacks (full) and planned rows can"
    if odd := sorted({size for size in stacks.values() if size % processes}):
        return f"{odd[0]} experts can be spread over a divisor of {odd[0]}, not over {processes} processes"
    return ""


def spread_experts(model: PreTrainedModel, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Keep in each process its share of every layer's experts; returns their weights, DTensors by experts from now on.

    mesh: of the processes, with a second dimension "same" of size 1. Gradients of the experts' weights are means over
    the processes' batches, as those of FSDP are; those of a parametrization's own weights are FSDP's to add up. The
    model must be one for which `why_not_spread` is empty.
    """
    from transformers.distributed.expert_parallel import apply_expert_parallelism

    weights, modules = _planned(model, WEIGHTS), _planned(model, MODULES)
    for name, module in modules.items():
        module.num_experts = len(next(iter(_stacks(name, module).values()))) // mesh.size()
        if parametrize.is_parametrized(module):
            for rows in _followers(module):
                rows.keep_share(mesh["experts"].get_local_rank() * module.num_experts, module.num_experts)
        else:
            module.forward = _mean_gradients(module, mesh.size())
    plan = dict.fromkeys(weights, WEIGHTS) | dict.fromkeys(modules, MODULES)
    apply_expert_parallelism(model, mesh["experts"], mesh["same"], plan, ep_implementation="all_to_all")
    for module in modules.values():
        # It makes transformers look for tokens of other processes' experts; this exchange brings none. Without it the
        # experts run as they do in one process.
        module._is_expert_parallel = False
    return [model.get_parameter(name) for name in weights]


class _Scaled(torch.autograd.Function):
    """x as it is, its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.factor, None


def _mean_gradients(experts: Any, processes: int) -> Any:
    """The forward of an experts module, whose weights get the mean over processes where they would get a sum.

    On the way, because hooks of parameters are lost when these move to a device; tokens get what they would.
    """
    run = experts.forward

    def forward(x_TD: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return _Scaled.apply(run(_Scaled.apply(x_TD, processes), *given), 1 / processes)

    return forward


def _offered() -> bool:
    try:
        from transformers.distributed.expert_parallel import EPImplementationInterface
    except ImportError:
        return False
    return "all_to_all" in EPImplementationInterface()


def _planned(model: PreTrainedModel, style: str) -> dict[str, Any]:
    """Path -> weight or module of which the class's plan says so."""
    plan = getattr(model, "ep_plan", None) or {}
    patterns = [re.escape(key).replace(r"\*", r"\d+") for key, value in plan.items() if value == style]
    members = model.named_parameters() if style == WEIGHTS else model.named_modules()
    return {name: x for name, x in members if any(re.fullmatch(pattern, _plain(name)) for pattern in patterns)}


def _plain(name: str) -> str:
    """The path that a stack had before it was parametrized."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)


def _stacks(name: str, experts: nn.Module) -> dict[str, nn.Parameter]:
    """Path -> weight of all that an experts module holds, but for what follows its stack."""
    following = {parameter for rows in _followers(experts) for parameter in rows.parameters()}
    return {f"{name}.{path}": w for path, w in experts.named_parameters() if w not in following}


def _followers(experts: nn.Module) -> list[Any]:
    """Parametrizations that work on a share of their stack too, once they are told which."""
    return [module for module in experts.modules() if hasattr(module, "keep_share")]


def local_share(stack: torch.Tensor) -> torch.Tensor:
    """Of a stack that is spread what is here; any other as it is."""
    return stack.to_local() if isinstance(stack, DTensor) else stack
