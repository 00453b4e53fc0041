"""Train every parameter: the upper baseline of gain, and of forgetting.

    W = tuned W   for all W

Source: the Full-FT baseline of Khandelwal et al. 2026 (SSFT, arXiv:2605.29714), sec. 3.
Differs: nothing.
Trains: everything. Merges: nothing to merge.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.methods.base import Rows
from dragoman.routing.plan import ExpertPlan

STARTS_AT_BASE = True
MERGE = "bits"
NEEDS_PLAN = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Full fine-tuning has no settings of its own."""


def apply(model: PreTrainedModel, config: Config, plan: ExpertPlan | None = None) -> None:
    """Make every parameter trainable. ConfigError for a plan, which would have no effect."""
    if plan is not None:
        raise ConfigError("the method full trains everything, a plan has no effect on it; leave out --plan")
    model.requires_grad_(True)


def changes(model: PreTrainedModel, config: Config, plan: ExpertPlan | None) -> Rows:
    """All rows of every weight, tied ones under each of their names."""
    return dict.fromkeys(n for n, _ in model.named_parameters(remove_duplicate=False))


def merge(model: PreTrainedModel) -> None:
    """The model is plain already."""
