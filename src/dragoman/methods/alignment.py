"""What the methods that align routing share: distributions over experts, divergences, and the loss term.

    q^l(x) = mean over the counted tokens t of x of p^l_t          p: scores of the router over their sum

The scores are the router's own: softmax, or for sigmoid routers the sigmoids divided by their sum over all experts,
token by token, before the correction bias that only the selection sees. Padding and the start token are not counted.

All aligned layers are computed together; E is then the experts of the widest, and narrower ones have none of the mass
there. On a GPU the number of kernels is what the loss costs, and nothing here waits for one.

Shape letters: B rows, S positions, T tokens, E experts, L layers that are aligned, N items, X any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import MoELayer, Routed, expert_shares, moe_layers
from dragoman.routing.bands import Band, given_band

Sequences = Literal["both", "prompt", "answer"]
"""Which tokens of an item count: prompt and answer, or one of them."""
Sample = tuple[list[int], int]
"""Tokens of an item, start token first, and how many of them are start token and prompt."""
Divergence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(English [B, L, E], trained [B, L, E]) -> [B, L]."""

English = Callable[[np.ndarray, Sequence[Routed]], torch.Tensor]
"""(numbers of items, what the tapped routers did so far) -> distributions of their English counterparts [B, L, E]."""

EARLIEST, LATEST = 7 / 48, 34 / 48
"""The band of SARA, layers 7 to 34 of 48, as shares of the depth."""
TINY = 1e-12


# Distributions


def counted_tokens(samples: Sequence[Sample], sequence: Sequences, width: int) -> np.ndarray:
    """Which positions of rows of `width` tokens, one sample a row, count; bool [N, S]. The start token never does.

    Raises DataError where a row has none.
    """
    counted_NS = np.zeros((len(samples), width), dtype=bool)
    for row_S, (ids, silent) in zip(counted_NS, samples, strict=True):
        begin = silent if sequence == "answer" else 1
        row_S[begin : silent if sequence == "prompt" else len(ids)] = True
    if empty := np.flatnonzero(~counted_NS.any(1)).tolist():
        raise DataError(
            f"{len(empty)} of {len(samples)} items have no token in their {sequence}, such as item {empty[0]}; align "
            "another part of the sequence"
        )
    return counted_NS


def sequence_means(routed: Sequence[Routed], scores: Sequence[str], counted_BS: torch.Tensor) -> torch.Tensor:
    """Mean distribution over experts of the counted tokens of each row in each layer; [B, L, E] float32.

    scores: of the router of each layer.
    """
    logits = [r.logits_TE for r in routed]
    if len({(x_TE.shape[-1], score) for x_TE, score in zip(logits, scores, strict=True)}) == 1:
        share_LTE = expert_shares(torch.cat(logits), scores[0]).unflatten(0, (len(logits), -1))
    else:
        widest = max(x_TE.shape[-1] for x_TE in logits)
        shares = [expert_shares(x_TE, score) for x_TE, score in zip(logits, scores, strict=True)]
        share_LTE = torch.stack([pad(share_TE, (0, widest - share_TE.shape[-1])) for share_TE in shares])
    weight_BS = counted_BS.float() / counted_BS.sum(1, keepdim=True)
    return torch.einsum("bs,lbse->ble", weight_BS, share_LTE.unflatten(1, counted_BS.shape))


# Divergences


def kl(p_XE: torch.Tensor, q_XE: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence in nats along the last axis; [X]."""
    return (p_XE * (p_XE.clamp_min(TINY).log() - q_XE.clamp_min(TINY).log())).sum(-1)


def jensen_shannon(p_XE: torch.Tensor, q_XE: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats, 0 to ln 2; [X]."""
    middle_XE = (p_XE + q_XE) / 2
    return (kl(p_XE, middle_XE) + kl(q_XE, middle_XE)) / 2


def coarse(q_XE: torch.Tensor, task_XE: torch.Tensor) -> torch.Tensor:
    """Task experts, nothing at the other ones, and one bucket for these; [X, E + 1]. task_XE: bool, [E] or [L, E]."""
    own_XE = q_XE * task_XE
    return torch.cat([own_XE, (q_XE - own_XE).sum(-1, keepdim=True)], dim=-1)


def mass_term(p_XE: torch.Tensor, q_XE: torch.Tensor, task_XE: torch.Tensor) -> torch.Tensor:
    """KL between the total masses on the task experts, as Bernoulli variables; [X]."""
    sides = (torch.stack([(x_XE * of_XE).sum(-1) for of_XE in (task_XE, ~task_XE)], dim=-1) for x_XE in (p_XE, q_XE))
    return kl(*sides)


def allocation_term(p_XE: torch.Tensor, q_XE: torch.Tensor, task_XE: torch.Tensor) -> torch.Tensor:
    """Mass of p on the task experts times KL of its allocation there; [X]. With `mass_term` the KL of `coarse`."""
    own_XE, other_XE = p_XE * task_XE, q_XE * task_XE
    mass_X1, other_X1 = own_XE.sum(-1, keepdim=True), other_XE.sum(-1, keepdim=True)
    return mass_X1.squeeze(-1) * kl(own_XE / mass_X1.clamp_min(TINY), other_XE / other_X1.clamp_min(TINY))


# Layers


def single_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """The MoE layers. ModelError where a model layer has several routers, which a plan could not tell apart."""
    layers = moe_layers(model)
    ids = [layer.layer_id for layer in layers]
    if several := sorted({i for i in ids if ids.count(i) > 1}):
        raise ModelError(f"layers {several} have several routers each, and a plan names experts by layer alone")
    return layers


def band_of(layers: Sequence[MoELayer], band: tuple[int, int] | None) -> Band:
    """The band as set, or by default from 7/48 to 34/48 of the MoE layers. ConfigError for a band outside the model."""
    ids = [layer.layer_id for layer in layers]
    if band is not None:
        return given_band(*band, ids)
    last = max(0, len(ids) - 1)
    return given_band(ids[min(last, round(EARLIEST * len(ids)))], ids[min(last, round(LATEST * len(ids)))], ids)


# The loss


@dataclass(frozen=True)
class Pairs:
    """Training items in the target language, each with its English counterpart; a row of the text is one item."""

    target: Sequence[Sample]
    english: Sequence[Sample]
    pad_id: int
    width: int
    """Positions of the rows that are trained on."""
    labels: Sequence[str] = ()
    """cc, ci, ic or ii of each item, right or wrong in English and in the target language; empty where not known."""

    def aligned(self, items: str) -> np.ndarray:
        """Which items `ci`, `right` (in English) or `all` stands for; bool [N].

        Raises ConfigError where the labels are not known, DataError where the choice is empty.
        """
        if items == "all":
            return np.ones(len(self.target), dtype=bool)
        if not self.labels:
            raise ConfigError(
                f"items {items} needs to know what the base gets right; run `dragoman categorize` and give its "
                "categories.json, or align all items (--align all)"
            )
        aligned_N = np.array([label == "ci" or (items == "right" and label == "cc") for label in self.labels])
        if not aligned_N.any():
            wrong = " and wrong in the target language (ci)" if items == "ci" else ""
            raise DataError(
                f"none of the {len(self.target)} training items is right in English{wrong}, so there is nothing to "
                "align; take more items, or align all of them (--align all)"
            )
        return aligned_N


@dataclass(frozen=True)
class AlignmentLoss:
    """weight * mean over the rows of a pass of  1[aligned] * mean over layers of  divergence(English, trained).

    It is an extra loss of `training.train`; `layers` are what has to be tapped.
    """

    layers: Sequence[MoELayer]
    scores: Sequence[str]
    rows: Mapping[int, int]
    """Row of an aligned layer among `layers` -> its row in what `english` gives."""
    english: English
    counted_NS: np.ndarray
    aligned_N: np.ndarray
    divergence: Divergence
    weight: float

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], row_B: torch.Tensor, routed: Sequence[Routed]
    ) -> torch.Tensor:
        items_B, ids_BS = row_B.numpy(), inputs["input_ids"]
        device = ids_BS.device
        chosen_B = np.flatnonzero(self.aligned_N[items_B])
        if not len(chosen_B):
            return torch.zeros((), device=device)
        mine = sorted((r for r in routed if r.row in self.rows), key=lambda r: self.rows[r.row])
        counted_BS = torch.from_numpy(self.counted_NS[items_B, : ids_BS.shape[1]]).to(device, non_blocking=True)
        trained_BLE = sequence_means(mine, [self.scores[r.row] for r in mine], counted_BS)
        trained_BLE = trained_BLE[torch.from_numpy(chosen_B).to(device, non_blocking=True)]
        english_BLE = self.english(items_B[chosen_B], routed).to(device, non_blocking=True)
        return self.weight * self.divergence(english_BLE, trained_BLE).mean(1).sum() / len(items_B)


def kept_reference(reference_NLE: np.ndarray) -> English:
    """Distributions of the frozen base: nothing flows back into them."""
    return lambda items_B, _: torch.from_numpy(reference_NLE[items_B])


def require_weight(weight: float) -> None:
    """ConfigError for a weight that switches the loss off or turns it round."""
    if not 0 < weight < math.inf:
        raise ConfigError(f"the weight of the alignment is {weight}, not a number above 0; without it train by sft")
