"""transformers' Trainer with our schedule, our losses and checks that stop in time."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from dragoman.errors import ConfigError, ModelError
from dragoman.methods.checkpoints import LOG_FILE, Log, checkpoints, superfluous
from dragoman.methods.losses import ExtraLoss, balance_loss, cross_entropy, z_loss
from dragoman.methods.settings import Config, WarmupStableDecay
from dragoman.modeling import Routed
from dragoman.record import write_json


class Loop(Trainer):
    """The loop; a checkpoint is whole or not there."""

    def __init__(self, *args: Any, config: Config, routed: list[Routed], log: Log, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ours, self.routed, self.log_ = config, routed, log
        self.staging: Path | None = None
        self.extended = False
        self.extra_loss: ExtraLoss | None = None
        self.cross_entropy = torch.compile(cross_entropy) if config.compile else cross_entropy
        self.model_accepts_loss_kwargs = False
        self.pending: list[float] = []

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:  # the stream is shuffled already
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.shape = WarmupStableDecay(self.ours.warmup, self.ours.decay, self.ours.steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.shape)  # type: ignore
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.extended:  # the checkpoint brought the old run's schedule
            self.shape.decay, self.shape.decay_from = self.ours.decay, self.ours.steps - self.ours.decay

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Into a folder of its own, then moved: a full disk or a kill leaves the former checkpoints as they were."""
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        self.staging = folder / ".unfinished"
        try:
            super()._save_checkpoint(model, trial)
            write_json(self.staging / name / LOG_FILE, asdict(self.log_))
            os.replace(self.staging / name, folder / name)
        except (OSError, RuntimeError, SafetensorError) as e:  # torch and safetensors say so of a full disk
            raise ConfigError(
                f"checkpoint {folder / name} could not be written ({str(e).splitlines()[0]}); is the disk full? "
                "The checkpoint before is whole: make room and go on with --resume"
            ) from None
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None
        for old in superfluous(checkpoints(folder)):
            shutil.rmtree(old)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        # Trainer loads the saved tensors by name and skips what does not fit: experts are one tensor each on disk and
        # stacked in memory, so they would silently stay as they are. from_pretrained knows how to stack them.
        model = model or self.model
        saved = type(model).from_pretrained(checkpoint, dtype="auto")
        model.load_state_dict(saved.state_dict(), strict=True)

    def compute_loss(self, model: Any, inputs: dict, *_: Any, **__: Any) -> torch.Tensor:
        labels, row_B = inputs.pop("labels"), inputs.pop("row")
        self.routed.clear()
        loss = self.cross_entropy(model, inputs, labels)
        self.pending.append(float(loss.detach()))
        if not math.isfinite(self.pending[-1]):
            first = self.state.global_step * self.ours.batch + (len(self.pending) - 1) * self.ours.micro_batch
            raise ModelError(
                f"the loss became {self.pending[-1]} at step {self.state.global_step + 1}, rows {first} to "
                f"{first + self.ours.micro_batch - 1} of the stream; the last checkpoint is good: lower the learning "
                "rate or clip, and resume from it"
            )
        loss = loss + self._router_losses(inputs, labels)
        return loss + self.extra_loss(inputs, row_B, self.routed) if self.extra_loss else loss

    def _router_losses(self, inputs: dict, labels: torch.Tensor) -> torch.Tensor | float:
        if not (self.ours.balance or self.ours.z_loss):
            return 0.0
        real_T = inputs.get("attention_mask", torch.ones_like(labels)).flatten().bool()
        terms = [
            self.ours.balance * balance_loss(r.logits_TE, r.indices_TK, real_T)
            + self.ours.z_loss * z_loss(r.logits_TE, real_T)
            for r in self.routed
        ]
        return torch.stack(terms).mean()


class Watch(TrainerCallback):
    """Keeps the log and the progress bar, brings the decay forward when time is up, asks for checkpoints."""

    def __init__(self, trainer: Loop, config: Config, width: int, quiet: bool):
        self.trainer, self.config, self.tokens_per_step = trainer, config, config.batch * width
        self.started = self.saved = time.monotonic()
        self.before = trainer.log_.seconds
        self.bar = tqdm(total=config.steps, desc="train", unit=" steps", disable=quiet, delay=2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log, pending = self.trainer.log_, self.trainer.pending
        log.losses.append(sum(pending) / len(pending))
        log.steps, log.tokens = len(log.losses), log.tokens + self.tokens_per_step
        pending.clear()
        self.bar.update()
        self.bar.set_postfix(loss=f"{log.losses[-1]:.3f}", refresh=False)
        now, shape = time.monotonic(), self.trainer.shape
        log.seconds = self.before + now - self.started
        if self.config.minutes and now - self.started > 60 * self.config.minutes:
            shape.decay_from = min(shape.decay_from, state.global_step)
        log.decay_from = shape.decay_from
        if state.global_step >= shape.decay_from + shape.decay:
            control.should_training_stop = True
        due = now - self.saved > 60 * self.config.checkpoint_minutes or state.global_step == shape.decay_from
        if self.config.checkpoint_minutes and due:
            self.saved, control.should_save = now, True
