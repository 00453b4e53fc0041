"""Router alignment: train on text in the new language and pull its routing towards that of its translation.

    L = CE(text) + 200 weight * mean over layers l of the band  KL( q_source || q )

q_source and q: mean distributions over experts of a segment in English and of its translation, both in the model being
trained, so that gradients flow into both sides (`alignment.py`).

Source: Bandarkar et al. 2026 (Cross-Lingual Alignment for Decoder-Only Models using MoE Routers, arXiv:2610.01921) and
its code: the factor 200, weights of 0.1 to 0.2, the source not detached, everything up to the router of the band's last
layer trains.
Differs: scores of sigmoid routers are normalised token by token before the mean, as everywhere here. The band scales as
SARA's; theirs are 7 to 19 and 4 to 17 of 24. A step reads every segment twice; `source` base takes the English side
from the frozen base instead, once.
Trains: everything before the last aligned router; by choice routers or everything. Merges: to the bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.methods import trainable
from dragoman.methods.alignment import (
    AlignmentLoss,
    English,
    Pairs,
    Sequences,
    band_of,
    counted_tokens,
    kept_reference,
    kl,
    require_weight,
    sequence_means,
)
from dragoman.methods.reference import base_routing, padded
from dragoman.modeling import Routed, moe_layers, score_names
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "bits"
NEEDS_PLAN = False

SCALE = 200.0
"""Of the loss in the released code."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How strongly and where routing is aligned, and what trains."""

    weight: float = 0.1
    """Of the alignment beside the cross-entropy (alpha); the loss has a factor of 200 beside it."""
    items: Literal["ci", "right", "all"] = "all"
    """Items that are aligned: all, those right in English (right), of these the ones wrong in the new language (ci)."""
    band: tuple[int, int] | None = None
    """First and last model layer; default: from 7/48 to 34/48 of the depth."""
    sequence: Sequences = "both"
    """Tokens whose routing is averaged."""
    source: Literal["trained", "base"] = "trained"
    """The English side: in the model being trained, or in the frozen base."""
    train: Literal["upstream", "routers", "full"] = "upstream"
    """What trains: everything up to the router of the band's last layer, every router, or everything."""

    def __post_init__(self) -> None:
        require_weight(self.weight)


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze what does not train. ConfigError for a plan, which would have no effect, or a band outside the model."""
    if plan is not None:
        raise ConfigError("router_alignment aligns all experts, a plan has no effect on it; leave out --plan")
    trainable.let_train(model, config.train, last_layer=band_of(moe_layers(model), config.band).last)


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> dict[str, tuple[int, ...] | None]:
    """What of the plain model training may change: name -> rows, None for all."""
    return trainable.may_change(model, config.train, band_of(moe_layers(model), config.band).last)


def merge(model: PreTrainedModel) -> None:
    """The model is plain already."""


def extra_loss(
    model: PreTrainedModel, config: Config, plan: ExpertPlan | None, pairs: Pairs, folder: Path
) -> AlignmentLoss:
    """The alignment term. Call it on the base, before `apply`."""
    layers = moe_layers(model)
    scores, rows = score_names(model, layers), band_of(layers, config.band).rows
    aligned_N = pairs.aligned(config.items)
    english = _trained_source(model, pairs, config.sequence, scores, rows)
    if config.source == "base":
        aligned = [layers[row] for row in rows]
        english = kept_reference(
            base_routing(model, aligned, pairs.english, config.sequence, pad_id=pairs.pad_id, folder=folder)
        )
    return AlignmentLoss(
        layers=layers,
        scores=scores,
        rows={row: i for i, row in enumerate(rows)},
        english=english,
        counted_NS=counted_tokens(pairs.target, config.sequence, pairs.width),
        aligned_N=aligned_N,
        divergence=kl,
        weight=SCALE * config.weight,
    )


def _trained_source(
    model: PreTrainedModel, pairs: Pairs, sequence: Sequences, scores: Sequence[str], rows: Sequence[int]
) -> English:
    """A second pass, over the English counterparts; the routers are tapped already, and what they did comes behind."""

    def read(items_B: np.ndarray, routed: Sequence[Routed]) -> torch.Tensor:
        before, chosen = len(routed), [pairs.english[n] for n in items_B]
        ids_BS, mask_BS = padded([ids for ids, _ in chosen], pairs.pad_id)
        counted_BS = torch.from_numpy(counted_tokens(chosen, sequence, ids_BS.shape[1])).to(model.device)
        _pass(model, ids_BS.to(model.device), mask_BS.to(model.device))
        seen = sorted((r for r in routed[before:] if r.row in rows), key=lambda r: rows.index(r.row))
        return sequence_means(seen, [scores[r.row] for r in seen], counted_BS)

    return read


def _pass(model: PreTrainedModel, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> None:
    """Through the model's own forward, which training wraps in autocast: both sides are in one precision."""
    least = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False, **least)
