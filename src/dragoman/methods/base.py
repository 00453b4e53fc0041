"""What every adaptation method has, and what the training command does with it.

A method is one module: docstring with formula, `Source:` and `Differs:`, then `Config`, `apply`, `merge`, and
`extra_loss` where the paper has a term of its own (`LossMethod`). What a method trains is what requires gradients after
`apply`, and nothing else says so. The contract test runs over all methods
(`tests/methods/test_contract.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from torch import nn
from transformers import PreTrainedModel

from dragoman.routing.plan import ExpertPlan


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


def named(module: ModuleType) -> Any:
    """The module, seen as a Method."""
    return module
