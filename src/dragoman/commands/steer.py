"""`dragoman steer`: a small file that says which experts to raise while a model runs, made of a plan."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dragoman.errors import ConfigError
from dragoman.routing.controls import CONTROLS
from dragoman.routing.plan import ExpertPlan, other_weights

if TYPE_CHECKING:
    from dragoman.methods.steer import Steering


@dataclass(frozen=True)
class Config:
    """Steer the experts of a plan at inference."""

    plan: Path
    """Plan that `dragoman plan` wrote."""
    _: KW_ONLY
    rule: Literal["soft", "hard", "shared"] = "soft"
    """soft raises logits by their spread, hard forces experts on or off, shared weighs by the plan's statistics."""
    strength: float | None = None
    """soft: standard deviations of a token's logits (default 0.5); hard: 1 on (default), -1 off; shared: share of the
    logit (default 0.022). 0 does nothing."""
    control: Literal["random", "elsewhere"] | None = None
    """Instead of the plan's experts, as many by lot: others of the same layers, or, as far as there is room, experts of
    other layers."""
    seed: int | None = None
    """Of a control; default 0."""
    out: Path = Path("steer.json")
    """File to write, for `--steer` of `dragoman evaluate` and `dragoman translate`."""

    def __post_init__(self) -> None:
        if self.seed is not None and self.control is None:
            raise ConfigError("seed has no effect without a control; leave it out or give --control")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, at least 0")


def run(config: Config) -> Steering:
    """Make a steering file of a plan, or of a control of that plan."""
    from dragoman.methods.steer import STRENGTHS, steering

    if config.out.exists():
        raise ConfigError(f"{config.out} exists; choose another file with --out, or remove it first")
    plan = own = ExpertPlan.load(config.plan)
    if config.control:
        plan = CONTROLS[config.control](plan, config.seed or 0)
    how = steering(plan, config.rule, STRENGTHS[config.rule] if config.strength is None else config.strength)
    if config.rule == "shared" and "shared" not in (plan.planner, plan.settings.get("like")):
        print(
            f"dragoman: the rule shared weighs experts by their share of use, and takes the statistic of the planner "
            f"{plan.planner} for it; plans with shares are those of the planner shared",
            file=sys.stderr,
        )
    if config.control:
        _say_what_is_vain(how, max(map(len, own.layers.values())))
    how.save(config.out)
    return how


def _say_what_is_vain(how: Steering, most: int) -> None:
    """Of a control in other layers, which may be fewer. most: experts of a layer that the plan itself names."""
    whole = [i for i, ids in how.experts.items() if len(ids) == how.num_experts[i]]
    if whole and how.rule == "soft":
        print(
            f"dragoman: of layers {whole} all experts are steered alike, which changes nothing under a softmax",
            file=sys.stderr,
        )
    more = [i for i, ids in how.experts.items() if len(ids) > most]
    if more and how.rule == "hard" and how.strength > 0:
        print(
            f"dragoman: the control forces more experts in layers {more} than the plan in any, {most}: models that "
            "send tokens to fewer refuse it",
            file=sys.stderr,
        )


def opened(file: Path, model: str) -> Steering:
    """The file, for a model; where that has other weights than the plan's, a sentence says so on standard error."""
    from dragoman.methods.steer import Steering
    from dragoman.modeling import model_checksum

    how = Steering.load(file)
    for sentence in other_weights(how.model_sha256, model_checksum(model), f"plan of {file}"):
        print(f"dragoman: {sentence}", file=sys.stderr)
    return how


def show(how: Any) -> None:
    """Print what is steered."""
    count = sum(map(len, how.experts.values()))
    layers = ", ".join(map(str, how.experts))
    print(f"steers {count} experts of layers {layers} by the rule {how.rule}, strength {how.strength:g}")
