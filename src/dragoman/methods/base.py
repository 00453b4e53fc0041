"""What every adaptation method has, and what the training command does with it.

A method is one module: docstring with formula, `Source:` and `Differs:`, then `Config`, `apply`, `changes`, `merge`,
and `extra_loss` where the paper has a term of its own (`LossMethod`). What a method trains is what requires gradients
after `apply`, and nothing else says so; what that changes of the plain model says `changes`. The contract test runs
over all methods (`tests/methods/test_contract.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import MoELayer
from dragoman.routing.plan import ExpertPlan

Rows = dict[str, tuple[int, ...] | None]
"""Name of a weight of the plain model -> rows of it; None for all."""


class Method(Protocol):
    """The parts of a method's module."""

    STARTS_AT_BASE: bool
    """Whether the model computes what the base does, to the bit, before the first update."""
    MERGE: str
    """How the plain model after `merge` relates to the trained one: "bits", "rounding" or "none" (not defined)."""
    NEEDS_PLAN: bool

    Config: type

    def apply(self, model: PreTrainedModel, config: Any, plan: ExpertPlan | None) -> None:
        """Freeze what does not train and add what does, in place; what trains requires gradients."""

    def changes(self, model: PreTrainedModel, config: Any, plan: ExpertPlan | None) -> Rows:
        """What of the plain model training may change, found on the plain model; every other row keeps its bits."""

    def merge(self, model: PreTrainedModel) -> None:
        """Turn the model back into a plain one of the base's class, in place."""


@runtime_checkable
class LossMethod(Protocol):
    """A method with a loss term over pairs of parallel items. It trains where such pairs are: `dragoman align`."""

    def extra_loss(self, model: PreTrainedModel, config: Any, plan: ExpertPlan | None, pairs: Any, folder: Path) -> Any:
        """The term, an `alignment.AlignmentLoss`; called on the base, before `apply`. pairs: an `alignment.Pairs`.

        folder: where what the base says of the pairs is kept.
        """


@dataclass(frozen=True)
class Trained:
    """What trains and what part of the model that is."""

    names: tuple[str, ...]
    parameters: int
    total: int

    @property
    def share(self) -> float:
        """Trained parameters over those of the base model."""
        return self.parameters / self.total


def trained(model: nn.Module, base_parameters: int) -> Trained:
    """Names and number of the parameters that require gradients; what `apply` reports, counted on the model itself."""
    own = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    return Trained(tuple(n for n, _ in own), sum(size for _, size in own), base_parameters)


def settings(name: str, method: Method, given: Mapping[str, Any]) -> Any:
    """The method's Config of what was given, None left out. ConfigError for what the method has no such setting for."""
    known = [f.name for f in fields(method.Config)]
    stated = {k: v for k, v in given.items() if v is not None}
    if unknown := sorted(set(stated) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"its settings are {', '.join(known) or 'none'}"
        raise ConfigError(f"{', '.join(unknown)} would have no effect on the method {name}; {hint}")
    return method.Config(**stated)


def require_fit(layers: Sequence[MoELayer], num_experts: Mapping[int, int]) -> None:
    """ModelError for a plan of another model: MoE layers or numbers of experts that are not those of `layers`."""
    here = {layer.layer_id: layer.num_experts for layer in layers}
    odd = [i for i in sorted({*here, *num_experts}) if here.get(i) != num_experts.get(i)]
    if odd:
        theirs, ours = (
            ", ".join(f"{x[i]} experts in layer {i}" if i in x else f"no MoE layer {i}" for i in odd)
            for x in (num_experts, here)
        )
        raise ModelError(
            f"the plan is of another model, which has {theirs}; this one has {ours}: make a plan from a trace of this "
            "model"
        )


def named(module: ModuleType) -> Any:
    """The module, seen as a Method."""
    return module
