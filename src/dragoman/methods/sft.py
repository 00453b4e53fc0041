"""Supervised fine-tuning of the parts that RA-MoE trains: its baseline, without the alignment.

    L = CE(all items)

Source: the SFT baseline of Deng et al. 2026 (RA-MoE, arXiv:2605.28306).
Differs: what of the model they train is not known; here it is the same choice as in `ra_moe.py`, so that a comparison
differs in the loss alone.
Trains: routers; by choice LoRA on attention too, or everything. Merges: to the bit, with LoRA to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.methods import trainable
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "rounding"
NEEDS_PLAN = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """What trains."""

    train: Literal["routers", "lora", "full"] = "routers"
    """What trains: every router, routers and LoRA on attention, or everything."""
    rank: int | None = None
    """Of LoRA; default 8."""

    def __post_init__(self) -> None:
        trainable.require_part(self.train, self.rank)


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze what does not train. ConfigError for a plan, which would have no effect."""
    if plan is not None:
        raise ConfigError("the method sft has no use for a plan; leave out --plan")
    trainable.let_train(model, config.train, config.rank)


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> dict[str, tuple[int, ...] | None]:
    """What of the plain model training may change: name -> rows, None for all."""
    return trainable.may_change(model, config.train)


def merge(model: PreTrainedModel) -> None:
    """Plain maps again where LoRA was."""
    trainable.take_off(model)
