"""Train one group of a Mix-MoE model: language-model experts on monolingual text, then translation experts on pairs.

    stage 1: W_e = tuned_e  for e < k,   translation experts masked       loss = CE + a E sum_e f_e P_e, per layer
    stage 2: W_e = tuned_e  for e >= k,  all experts eligible             loss = CE of the translation + the same
    both:    router = tuned router;  everything else = base

Source: Li et al. 2026 (Mix-MoE, arXiv:2605.24681), abstract and sec. III as far as known: which group trains in which
stage, on which text, and that language-model experts are frozen in stage 2.
Differs: the loss beside cross-entropy is not known; a load balance per layer over the eligible experts is what its
neighbours use (a = 0.01). Attention, embeddings and norms are frozen in both stages, as the claim that the language
model stays whole needs it; of the paper that is not known. So are weights of an activation (Apertus), which both groups
share. Tuned rows are parameters of their own (see `expert_tuning`), so what is frozen keeps its bits. What becomes of
the router's rows of translation experts in stage 1 is not known: masked, they have no gradient, and AdamW's weight
decay would shrink them; here stage 1 ends with their bits of the start.
Trains: one group's expert weights, and routers (in stage 1 their rows of that group). Merges: exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import expert_tuning
from dragoman.methods.base import Rows
from dragoman.modeling import moe_layers
from dragoman.modeling.mix_moe import set_settings, settings_of
from dragoman.modeling.mix_router import Settings
from dragoman.routing.plan import ExpertPlan, PlannedExpert

STARTS_AT_BASE = False  # in stage 2 translation experts enter
MERGE = "bits"
NEEDS_PLAN = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which stage."""

    stage: int = 1
    """1 trains language-model experts, 2 translation experts; 2 goes on from a model that 1 has trained."""

    def __post_init__(self) -> None:
        if self.stage not in (1, 2):
            raise ConfigError(f"Mix-MoE has the stages 1 and 2, not {self.stage}")


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Freeze the model, make the stage's group and the routers trainable, mask or admit translation experts.

    Raises ModelError for a model of another kind or one that the stage cannot go on from, ConfigError for a plan.
    """
    if plan is not None:
        raise ConfigError("the stages of Mix-MoE say themselves what trains, a plan has no effect; leave out --plan")
    settings = settings_of(model)
    if config.stage == 2 and settings.stage < 1:
        raise ModelError(
            "stage 2 goes on from a model that stage 1 has trained, and this one was only converted; run stage 1 on it "
            "first and give its output"
        )
    if config.stage == 1 and settings.stage > 1:
        raise ModelError("stage 1 was given a model that stage 2 has trained; give the converted one, or run stage 2")
    set_settings(model, masked=config.stage == 1)
    expert_tuning.apply(model, expert_tuning.Config(routers=True), group_plan(model, settings, config.stage))
    for layer in moe_layers(model) if config.stage == 1 else ():
        weight_EX: torch.Tensor = layer.router.weight  # type: ignore[assignment]
        layer.router.masked_MX = weight_EX[settings.experts :].detach().clone()  # no buffer: it is not saved


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> Rows:
    """The group's rows of every stack, and the routers."""
    group = group_plan(model, settings_of(model), config.stage)
    return expert_tuning.changes(model, expert_tuning.Config(routers=True), group)


def group_plan(model: PreTrainedModel, settings: Settings, stage: int) -> ExpertPlan:
    """The experts that a stage trains, in every block."""
    sizes = {layer.layer_id: layer.num_experts for layer in moe_layers(model)}
    groups = {i: range(settings.experts) if stage == 1 else range(settings.experts, size) for i, size in sizes.items()}
    planned = {i: tuple(PlannedExpert(e, "all") for e in group) for i, group in groups.items()}
    return ExpertPlan("mix_moe", planned, sizes)


def merge(model: PreTrainedModel) -> None:
    """Write the tuned rows into the stacks for good, put masked rows of routers back, and note the stage."""
    expert_tuning.merge(model)
    settings = settings_of(model)
    for router in (layer.router for layer in moe_layers(model)):
        if (masked_MX := vars(router).pop("masked_MX", None)) is not None:
            weight_EX: torch.Tensor = router.weight  # type: ignore[assignment]
            weight_EX.data[settings.experts :] = masked_MX
    set_settings(model, stage=1 if settings.masked else 2)
