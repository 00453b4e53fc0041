"""What the methods that align routing share: distributions over experts, divergences, and the loss term.

    q^l(x) = mean over the counted tokens t of x of p^l_t          p: scores of the router over their sum

The scores are the router's own: softmax, or for sigmoid routers the sigmoids divided by their sum over all experts,
token by token, before the correction bias that only the selection sees. Padding and the start token are not counted.

Shape letters: B rows, S positions, T tokens, E experts, P task experts, L layers that are aligned, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import MoELayer, Routed, expert_shares, moe_layers
from dragoman.routing.bands import Band, given_band

Sequences = Literal["both", "prompt", "answer"]
"""Which tokens of an item count: prompt and answer, or one of them."""
Sample = tuple[list[int], int]
"""Tokens of an item, start token first, and how many of them are start token and prompt."""
Divergence = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(English [B, E], trained [B, E], row of the layer among all) -> [B]."""

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


def sequence_means(routed: Routed, score: str, counted_BS: torch.Tensor) -> torch.Tensor:
    """Mean distribution over experts of the counted tokens of each row; [B, E] float32."""
    share_BSE = expert_shares(routed.logits_TE, score).view(*counted_BS.shape, -1)
    weight_BS = counted_BS.float() / counted_BS.sum(1, keepdim=True)
    return torch.einsum("bs,bse->be", weight_BS, share_BSE)


# Divergences


def kl(p_BX: torch.Tensor, q_BX: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence in nats along the last axis; [B]."""
    return (p_BX * (p_BX.clamp_min(TINY).log() - q_BX.clamp_min(TINY).log())).sum(-1)


def jensen_shannon(p_BE: torch.Tensor, q_BE: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in nats, 0 to ln 2; [B]."""
    middle_BE = (p_BE + q_BE) / 2
    return (kl(p_BE, middle_BE) + kl(q_BE, middle_BE)) / 2


def coarse(q_BE: torch.Tensor, task_P: torch.Tensor) -> torch.Tensor:
    """Task experts and one bucket for the rest; [B, P + 1]."""
    task_BP = q_BE.index_select(-1, task_P)
    rest_E = torch.ones(q_BE.shape[-1], device=q_BE.device).index_fill_(0, task_P, 0.0)
    return torch.cat([task_BP, (q_BE * rest_E).sum(-1, keepdim=True)], dim=-1)


def mass_term(p_BE: torch.Tensor, q_BE: torch.Tensor, task_P: torch.Tensor) -> torch.Tensor:
    """KL between the total masses on the task experts, as Bernoulli variables; [B]."""
    p_BC, q_BC = coarse(p_BE, task_P), coarse(q_BE, task_P)
    sides = (torch.stack([c[:, :-1].sum(-1), c[:, -1]], dim=-1) for c in (p_BC, q_BC))
    return kl(*sides)


def allocation_term(p_BE: torch.Tensor, q_BE: torch.Tensor, task_P: torch.Tensor) -> torch.Tensor:
    """Mass of p on the task experts times KL of its allocation there; [B]. With `mass_term` the KL of `coarse`."""
    p_BP, q_BP = p_BE.index_select(-1, task_P), q_BE.index_select(-1, task_P)
    mass_B1, other_B1 = p_BP.sum(-1, keepdim=True), q_BP.sum(-1, keepdim=True)
    return mass_B1[:, 0] * kl(p_BP / mass_B1.clamp_min(TINY), q_BP / other_B1.clamp_min(TINY))


# Layers


def single_layers(model: PreTrainedModel) -> tuple[MoELayer, ...]:
    """The MoE layers. ModelError where a model layer has several routers, which a plan could not tell apart."""
    layers = moe_layers(model)
    ids = [layer.layer_id for layer in layers]
    if several := sorted({i for i in ids if ids.count(i) > 1}):
        raise ModelError(f"layers {several} have several routers each, and a plan names experts by layer alone")
    return layers


def band_of(layers: Sequence[MoELayer], band: tuple[int, int] | None) -> Band:
    """The band as set, or by default from 7/48 to 34/48 of the depth. ConfigError for a band outside the model."""
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
        items_B, device, mine = row_B.cpu().numpy(), row_B.device, list(routed)
        chosen_B = np.flatnonzero(self.aligned_N[items_B])
        if not len(chosen_B):
            return torch.zeros((), device=device)
        pick_B = torch.from_numpy(chosen_B).to(device)
        counted_BS = torch.from_numpy(self.counted_NS[items_B]).to(device)
        english_BLE = self.english(items_B[chosen_B], routed).to(device)
        terms = []
        for r in mine:
            if r.row in self.rows:
                trained_BE = sequence_means(r, self.scores[r.row], counted_BS)[pick_B]
                english_BE = english_BLE[:, self.rows[r.row], : trained_BE.shape[-1]]
                terms.append(self.divergence(english_BE, trained_BE, r.row))
        return self.weight * torch.stack(terms).mean(0).sum() / len(items_B)


def kept_reference(reference_NLE: np.ndarray) -> English:
    """Distributions of the frozen base: nothing flows back into them."""
    return lambda items_B, _: torch.from_numpy(reference_NLE[items_B])


def require_weight(weight: float) -> None:
    """ConfigError for a weight that switches the loss off or turns it round."""
    if not weight > 0:
        raise ConfigError(f"the weight of the alignment is {weight}, but it has to be above 0; without it train by sft")
