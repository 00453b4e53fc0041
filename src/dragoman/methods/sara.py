"""SARA: route an item in the new language as in English, over all experts.

    L    = CE(all items) + weight * L_JS
    L_JS = mean over layers l of the band  JS( q_en || q )

q_en: mean distribution over experts of the parallel English item in the frozen base; q: that of the item in the model
being trained (`alignment.py`).

Source: Dong et al. 2026 (SARA, arXiv:2606.25821): weight 1.5, layers 7 to 34 of 48, full fine-tuning, items that the
base gets right in English.
Differs: the band scales with the depth, counted in MoE layers. The cross-entropy is over all items, and the term over
those right in English; theirs keeps those items alone. A load-balance loss, whose weight is not
known, is a setting of the training.
`items` takes those right in English and wrong in the new language, as RA-MoE does, or all that are given.
Trains: everything; by choice routers, or routers and LoRA on attention. Merges: to the bit, with LoRA to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.methods import trainable
from dragoman.methods.alignment import (
    AlignmentLoss,
    Pairs,
    Sequences,
    band_of,
    jensen_shannon,
    require_weight,
)
from dragoman.methods.reference import against_base
from dragoman.modeling import moe_layers
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "rounding"
NEEDS_PLAN = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly, where and on what routing is aligned, and what trains."""

    weight: float = 1.5
    """Of the alignment beside the cross-entropy (lambda)."""
    items: Literal["ci", "right", "all"] = "right"
    """Items that are aligned: those right in English (right), of these the ones wrong in the new language (ci), all."""
    band: tuple[int, int] | None = None
    """First and last model layer; default: from 7/48 to 34/48 of the depth."""
    sequence: Sequences = "both"
    """Tokens whose routing is averaged."""
    train: Literal["routers", "lora", "full"] = "full"
    """What trains: every router, routers and LoRA on attention, or everything."""
    rank: int | None = None
    """Of LoRA; default 8."""

    def __post_init__(self) -> None:
        require_weight(self.weight)
        trainable.require_part(self.train, self.rank)


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze what does not train. ConfigError for a plan, which would have no effect, or a band outside the model."""
    if plan is not None:
        raise ConfigError("the method sara aligns all experts, a plan has no effect on it; leave out --plan")
    band_of(moe_layers(model), config.band)
    trainable.let_train(model, config.train, config.rank)


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> dict[str, tuple[int, ...] | None]:
    """What of the plain model training may change: name -> rows, None for all."""
    return trainable.may_change(model, config.train)


def merge(model: PreTrainedModel) -> None:
    """Plain maps again where LoRA was."""
    trainable.take_off(model)


def extra_loss(
    model: PreTrainedModel, config: Config, plan: ExpertPlan | None, pairs: Pairs, folder: Path
) -> AlignmentLoss:
    """The alignment term. Call it on the base, before `apply`: the English reference is computed here, or read."""
    layers = moe_layers(model)
    return against_base(model, layers, band_of(layers, config.band).rows, pairs, config, jensen_shannon, folder)
