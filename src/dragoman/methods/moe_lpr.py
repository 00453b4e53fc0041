"""MoE-LPR: train copies of the dense experts on new text, then routers alone, so that old languages go back.

    stage 1: W_e = tuned_e  for e > 0, router tuned;   expert 0 is the dense feed-forward and frozen, as all the rest;
             loss = CE + a balance
    stage 2: router tuned alone;   loss = CE + g LPR
    LPR = mean over tokens of old languages of -log softmax(router logits)_0, per layer

Starts from a model that `dragoman models upcycle` made, and stays of that class (Mixtral, Qwen-MoE), which vLLM loads.

Source: Zhou et al. 2024 (MoE-LPR, arXiv:2408.11396), sec. 3.
Differs: the released code applies a softmax to probabilities once more, so its loss ends at 0.744 with 4 experts in
place of 0 and its gradients shrink; `mode: released` does that, for replication. Routers start normal with deviation
0.02, the paper's by Xavier. Stage 1 may read parallel text, the paper's is monolingual. Tuned rows are parameters of
their own (see `expert_tuning`).
Trains: stage 1, all experts but the first, and routers; stage 2, routers. Merges: exactly.

Shape letters: N rows of text, B sequences, S positions, T tokens, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import expert_tuning
from dragoman.methods.base import Rows
from dragoman.methods.training import ExtraLoss
from dragoman.modeling import Routed, are_probabilities, moe_layers, router_probabilities
from dragoman.modeling.upcycling import UPCYCLED
from dragoman.routing.plan import ExpertPlan, PlannedExpert

STARTS_AT_BASE = True
MERGE = "bits"
NEEDS_PLAN = False
TRAINED = "moe_lpr_stage"
"""What the config has more: the last stage that was trained."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which stage, and its loss."""

    stage: int = 1
    """1 trains new experts and routers, 2 routers alone."""
    lpr: float = 0.1
    """Weight of the loss that sends tokens of old languages to expert 0; the paper's value. Stage 2 only."""
    mode: str = "logits"
    """logits, or released: the cross-entropy of probabilities, as the released code has it."""

    def __post_init__(self) -> None:
        if self.stage not in (1, 2) or self.mode not in ("logits", "released"):
            raise ConfigError(
                f"MoE-LPR has the stages 1 and 2 and the modes logits and released, not stage {self.stage} and mode "
                f"{self.mode!r}"
            )
        if not (self.lpr > 0 and math.isfinite(self.lpr)):
            raise ConfigError(f"the weight of MoE-LPR's loss is {self.lpr}, but it has to be above 0")


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze the model and make new experts and routers trainable, or routers alone.

    Raises ConfigError for a plan, ModelError for a model that was not upcycled or that the stage cannot go on from.
    """
    if plan is not None:
        raise ConfigError("MoE-LPR says itself what trains, a plan has no effect; leave out --plan")
    _require_stage(model, config.stage)
    setattr(model.config, TRAINED, config.stage)
    layers = moe_layers(model)
    if config.stage == 1:
        expert_tuning.apply(model, expert_tuning.Config(routers=True), new_experts(model))
        return
    model.requires_grad_(False)
    for layer in layers:
        layer.router.requires_grad_(True)


def _require_stage(model: PreTrainedModel, stage: int) -> None:
    name, trained = type(model).__name__, getattr(model.config, TRAINED, 0)
    if not hasattr(model.config, UPCYCLED):
        raise ModelError(
            f"MoE-LPR needs a model whose expert 0 is the feed-forward of a dense one, and this {name} was not made by "
            "`dragoman models upcycle`; upcycle a dense model and give the result"
        )
    if stage == 2 and not trained:
        raise ModelError(
            f"stage 2 of MoE-LPR goes on from a model that stage 1 has trained, and this {name} was only upcycled; run "
            "stage 1 on it first and give its output"
        )
    if stage == 1 and trained == 2:
        raise ModelError("stage 1 of MoE-LPR was given a model that stage 2 has trained; give the upcycled one")


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> Rows:
    """The new experts' rows of every stack and the routers, or routers alone."""
    rows = expert_tuning.changes(model, expert_tuning.Config(routers=True), new_experts(model))
    return {n: r for n, r in rows.items() if config.stage == 1 or r is None}


def new_experts(model: PreTrainedModel) -> ExpertPlan:
    """All experts with weights but the first, in every layer."""
    layers = moe_layers(model)
    planned = {
        x.layer_id: tuple(PlannedExpert(e, "all") for e in range(1, x.num_experts - x.num_skips)) for x in layers
    }
    return ExpertPlan("moe_lpr", planned, {x.layer_id: x.num_experts for x in layers})


def lpr_loss(logits_TE: torch.Tensor, old_T: torch.Tensor, mode: str = "logits") -> torch.Tensor:
    """Cross-entropy to expert 0 over the tokens flagged old; 0 where there is none."""
    rows_TE = logits_TE[old_T].float()
    if mode == "released":
        rows_TE = router_probabilities(rows_TE)
    else:  # logarithms of probabilities are logits, too
        least = torch.finfo(rows_TE.dtype).tiny
        rows_TE = torch.where(are_probabilities(logits_TE), rows_TE.clamp_min(least).log(), rows_TE)
    first_T = torch.zeros(len(rows_TE), dtype=torch.long, device=rows_TE.device)
    return nn.functional.cross_entropy(rows_TE, first_T, reduction="sum") / max(1, len(rows_TE))


def extra_loss(config: Config, old_N: Sequence[bool]) -> ExtraLoss:
    """The loss of stage 2 for `training.train`. old_N: whether a row of the text is of an old language.

    The sum over old tokens, over as many as are to be expected in a pass of this size: its mean over the passes of an
    update is the same however many these are.
    """
    flags_N = torch.tensor(list(old_N))
    share = float(flags_N.float().mean())

    def loss(inputs: dict[str, torch.Tensor], row_B: torch.Tensor, routed: list[Routed]) -> torch.Tensor:
        ids_BS = inputs["input_ids"]
        old_BS = flags_N[row_B].to(ids_BS.device, non_blocking=True)[:, None].expand_as(ids_BS)
        real_BS = inputs.get("attention_mask", torch.ones_like(old_BS)).bool()
        old_T = (old_BS & real_BS).flatten()
        found = old_T.sum() / (share * real_BS.sum()) if share else 0.0
        return config.lpr * found * torch.stack([lpr_loss(r.logits_TE, old_T, config.mode) for r in routed]).mean()

    return loss


def merge(model: PreTrainedModel) -> None:
    """Write the tuned rows into the stacks for good; after stage 2 there are none."""
    expert_tuning.merge(model)
