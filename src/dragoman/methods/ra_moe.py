"""RA-MoE: on items that the base gets right in English alone, route them in the new language as in English.

    L    = CE(all items) + weight * 1[ci] * L_RA
    L_RA = mean over layers l of the plan in the band  KL( c(q_en) || c(q) )
    c(q) = (q_e for the task experts e of l, sum of q over all other experts)

q_en: mean distribution over experts of the parallel English item in the frozen base; q: that of the item in the model
being trained (`alignment.py`). By the chain rule the divergence is the sum of two, without a weight to set:

    KL( c(p) || c(q) ) = KL( Bernoulli m_p || Bernoulli m_q ) + m_p KL( r_p || r_q )
    m = sum of q over the task experts (total mass),  r_e = q_e / m (relative allocation)

Source: Deng et al. 2026 (RA-MoE, arXiv:2605.28306): three stages, task experts of the middle layers, alignment of total
mass and relative allocation on ci items. The paper's text was not at hand: its equation is not known to us.
Differs: the formula is our derivation. Left open by what is known, and fields here: mass or allocation alone (`match`),
all items (`items`), the band, the weight, which tokens are averaged (`sequence`), what trains (`train`).
Trains: routers; by choice LoRA on attention too, or everything. Merges: to the bit, with LoRA to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.methods import trainable
from dragoman.methods.alignment import (
    AlignmentLoss,
    Divergence,
    Pairs,
    Sequences,
    allocation_term,
    band_of,
    coarse,
    kl,
    mass_term,
    require_weight,
    single_layers,
)
from dragoman.methods.base import require_fit
from dragoman.methods.reference import against_base
from dragoman.modeling import MoELayer
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "rounding"
NEEDS_PLAN = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly, where and on what routing is aligned, and what trains."""

    weight: float = 0.5
    """Of the alignment beside the cross-entropy (lambda)."""
    match: Literal["both", "mass", "allocation"] = "both"
    """Of the divergence: total mass on the task experts, its allocation among them, or both."""
    items: Literal["ci", "all"] = "ci"
    """Items that are aligned: those right in English and wrong in the new language, or all."""
    band: tuple[int, int] | None = None
    """First and last model layer; default: every layer of the plan."""
    sequence: Sequences = "both"
    """Tokens whose routing is averaged."""
    train: Literal["routers", "lora", "full"] = "routers"
    """What trains: every router, routers and LoRA on attention, or everything."""
    rank: int | None = None
    """Of LoRA; default 8."""

    def __post_init__(self) -> None:
        require_weight(self.weight)
        trainable.require_part(self.train, self.rank)


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> None:
    """Freeze what does not train. Raises where there is no plan or it does not fit the model."""
    task_experts(single_layers(model), plan, config.band)
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
    layers = single_layers(model)
    experts = task_experts(layers, plan, config.band)
    rows = [row for row, layer in enumerate(layers) if layer.layer_id in experts]
    task_LE = torch.zeros(len(rows), max(layers[row].num_experts for row in rows), dtype=torch.bool)
    for task_E, row in zip(task_LE, rows, strict=True):
        task_E[list(experts[layers[row].layer_id])] = True
    return against_base(model, layers, rows, pairs, config, divergence(config.match, task_LE.to(model.device)), folder)


def divergence(match: str, task_LE: torch.Tensor) -> Divergence:
    """The chosen part of KL(coarse English || coarse trained). task_LE: bool, the task experts of aligned layers."""

    def of(english_BLE: torch.Tensor, trained_BLE: torch.Tensor) -> torch.Tensor:
        if match == "mass":
            return mass_term(english_BLE, trained_BLE, task_LE)
        if match == "allocation":
            return allocation_term(english_BLE, trained_BLE, task_LE)
        return kl(coarse(english_BLE, task_LE), coarse(trained_BLE, task_LE))

    return of


def task_experts(
    layers: tuple[MoELayer, ...], plan: ExpertPlan | None, band: tuple[int, int] | None
) -> dict[int, tuple[int, ...]]:
    """Model layer -> the plan's experts, in the band. Raises where plan, band and model do not fit."""
    if plan is None:
        raise ConfigError("the method ra_moe aligns the experts that a plan names; make one with `dragoman plan`")
    require_fit(layers, plan.num_experts)
    chosen = plan.experts()
    if band is not None:
        inside = {layers[row].layer_id for row in band_of(layers, band).rows}
        chosen = {layer: ids for layer, ids in chosen.items() if layer in inside}
        if not chosen:
            raise ConfigError(
                f"the plan names no expert in the band {band[0]} to {band[1]}, its layers are "
                f"{', '.join(map(str, plan.experts()))}; give another band or plan"
            )
    return chosen
