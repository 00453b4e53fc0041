"""The guard: evaluation while a model trains, and what it stops.

At intervals a callable measures the model on dev text: bits per byte of the target and of every known language, and how
far their routing moved from the base. Training stops where a known language lost more than the limit, or where the
target has not gained for a while; the weights are then those of now, of the last evaluation within the limit, or of the
best one. Every evaluation is an entry of the log:

    {"step": 20, "bits": {"ca": 2.31, "en": 1.12}, "drift": {"ca": 0.021, "en": 0.004}, "worst": "en", "loss": 0.0042}

Source: ours.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from dragoman.errors import ConfigError
from dragoman.methods.checkpoints import Log
from dragoman.methods.sharding import Shards, on_first

KEPT_FILE = "kept.safetensors"
"""What a checkpoint keeps of the weights that training may go back to."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation found."""

    bits: dict[str, float]
    """Language -> bits per byte."""
    drift: dict[str, float] = field(default_factory=dict)
    """Language -> Jensen-Shannon divergence in nats of its use of experts from the base, mean over layers."""


Measure = Callable[[], Measured]
Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """When to evaluate, what to compare with, when to stop and with which weights."""

    measure: Measure
    """Measures the model that trains; it is in evaluation mode."""
    base: Measured
    """What it measured before anything changed."""
    target: str
    """The language that is learnt; all others measured are known ones."""
    limit: float | None = None
    """Largest loss of a known language, relative in bits per byte (0.01: one percent more bits); None: no limit."""
    action: str = "stop"
    """stop: with the weights as they are, or with a patience those of the best evaluation within the limit; rollback:
    with those of the last one within it."""
    every: int = 0
    """Updates between evaluations; 0: only at the end."""
    patience: int = 0
    """Stop after so many evaluations without a better target, with the weights of the best one; 0: never."""

    def __post_init__(self) -> None:
        faults = []
        if self.limit is not None and self.limit < 0:
            faults.append(f"the limit is a share from 0 on, not {self.limit}")
        if self.action not in ("stop", "rollback"):
            faults.append(f"the action is stop or rollback, not {self.action!r}")
        if self.patience and not self.every:
            faults.append(f"a patience of {self.patience} has no effect without evaluations in between")
        if self.limit is not None and not self.known:
            faults.append("no known language is measured, so nothing can be lost")
        if faults:
            raise ConfigError(f"the guard cannot work so: {'; '.join(faults)}")

    @property
    def known(self) -> tuple[str, ...]:
        """The languages that may be lost."""
        return tuple(g for g in self.base.bits if g != self.target)

    @property
    def keeps(self) -> bool:
        """Whether training may go back to earlier weights."""
        return bool(self.patience) or (self.limit is not None and self.action == "rollback")

    def entry(self, step: int, now: Measured) -> dict[str, Any]:
        """An evaluation as the log holds it."""
        losses = {g: now.bits[g] / self.base.bits[g] - 1 for g in self.known}
        worst = max(losses, key=losses.__getitem__, default=None)
        loss = None if worst is None else losses[worst]
        return {"step": step, "bits": now.bits, "drift": now.drift, "worst": worst, "loss": loss}

    def within(self, entry: dict[str, Any]) -> bool:
        """Whether no known language lost more than the limit."""
        return self.limit is None or entry["loss"] <= self.limit

    def verdict(self, evaluations: list[dict[str, Any]]) -> str | None:
        """Why to stop now, in words; None to go on. The last evaluation is the present one, the first is the base."""
        now = evaluations[-1]
        if not self.within(now):
            return f"{now['worst']} lost {now['loss']:.2%} in bits per byte, more than {self.limit:.2%}"
        target = [e["bits"][self.target] for e in evaluations]
        best = target.index(min(target))
        if self.patience and len(target) - 1 - best >= self.patience:
            return f"{self.target} has not improved since step {evaluations[best]['step']}"
        return None


class Guarding(TrainerCallback):
    """Evaluates at intervals and at the end, stops, and puts back the weights that were kept."""

    def __init__(
        self, guard: Guard, model: nn.Module, log: Log, report: Report | None = None, shards: Shards | None = None
    ):
        self.guard, self.log, self.report, self.shards = guard, log, report, shards
        self.model = model
        self.own = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.kept: dict[str, torch.Tensor] = {}
        if not log.evaluations:
            log.evaluations.append(guard.entry(0, guard.base))
            self._keep()

    def _keep(self) -> None:
        self.log.kept_step = self.log.evaluations[-1]["step"]
        if self.guard.keeps:
            self.kept = {n: p.detach().cpu().clone() for n, p in self.own.items()}

    def save(self, folder: Path) -> None:
        """Put what was kept into a checkpoint."""
        if self.kept:
            save_file({n: t.contiguous() for n, t in self.kept.items()}, folder / KEPT_FILE)

    def load(self, folder: Path) -> None:
        """Read it back."""
        if self.guard.keeps:
            self.kept = load_file(folder / KEPT_FILE)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where it is due."""
        every = self.guard.every
        last = control.should_training_stop or state.global_step == state.max_steps
        if last or (every and state.global_step % every == 0):
            logs_loss = control.should_log
            with self.shards.filled() if self.shards else nullcontext():
                self._evaluate(state.global_step, last)
            control.should_log = logs_loss  # a report of ours counts as this step's
            if self.log.stopped:
                control.should_training_stop, control.should_save = True, False

    def _evaluate(self, step: int, last: bool) -> None:
        guard, found = self.guard, self.log.evaluations
        self.model.eval()
        found.append(guard.entry(step, on_first(guard.measure)))
        self.model.train()
        if self.report:
            kinds = {"bits_per_byte": found[-1]["bits"], "drift": found[-1]["drift"]}
            self.report({f"eval/{kind}/{g}": value for kind, by in kinds.items() for g, value in by.items()})
        why = guard.verdict(found)
        best = min(e["bits"][guard.target] for e in found)
        if guard.within(found[-1]) and (not guard.patience or found[-1]["bits"][guard.target] == best):
            self._keep()
        if why:
            self.log.stopped = {"step": step, "why": why}
        if guard.keeps and (why or last) and self.log.kept_step != step:
            self._put_back(step)

    def _put_back(self, step: int) -> None:
        with torch.no_grad():
            for name, parameter in self.own.items():
                parameter.copy_(self.kept[name])
        if self.shards:
            self.shards.load(self.kept)
        self.log.stopped = (self.log.stopped or {"step": step, "why": "the end"}) | {"weights_of": self.log.kept_step}
