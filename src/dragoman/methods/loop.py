"""transformers' Trainer with our schedule, our losses and checks that stop in time."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from dragoman.errors import ConfigError, ModelError
from dragoman.methods.balance import Balance
from dragoman.methods.checkpoints import LOG_FILE, Log, checkpoints, discard, seal, superfluous
from dragoman.methods.guard import Guarding
from dragoman.methods.losses import ExtraLoss, balance_loss, cross_entropy, z_loss
from dragoman.methods.settings import Config, WarmupStableDecay
from dragoman.modeling import Routed
from dragoman.record import write_json

TRAINED_FILE = "trained.safetensors"
"""What a checkpoint keeps of a model that trains in part."""
WINDOW = 10
"""Updates whose mean loss tells divergence from noise."""


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
        self.balance = Balance(())
        self.scores: Sequence[str] = ()
        self.guarding: Guarding | None = None
        means = [sum(log.losses[i : i + WINDOW]) / WINDOW for i in range(len(log.losses) - WINDOW + 1)]
        self.lowest = min(means, default=math.inf)

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
        shutil.rmtree(self.staging, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            write_json(self.staging / name / LOG_FILE, asdict(self.log_))
            if self.guarding:
                self.guarding.save(self.staging / name)
            seal(self.staging / name)
            shutil.rmtree(folder / name, ignore_errors=True)  # of a run that was killed, and not whole
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
            discard(old)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A plain model folder where everything trains, else what trains alone: the base gives the rest."""
        if all(p.requires_grad for p in self.model.parameters()):  # type: ignore[union-attr]
            super()._save(output_dir, state_dict)
            return
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in self._own().items()}, folder / TRAINED_FILE)

    def _own(self) -> dict[str, Any]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}  # type: ignore[union-attr]

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if (trained := Path(checkpoint) / TRAINED_FILE).is_file():
            saved, own = load_file(trained), self._own()
            if saved.keys() != own.keys():
                raise ModelError(f"{checkpoint} holds other parameters than train now; resume with the old method")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(saved[name])
            return
        # Trainer loads the saved tensors by name and skips what does not fit: experts are one tensor each on disk and
        # stacked in memory, so they would silently stay as they are. from_pretrained knows how to stack them.
        model = model or self.model
        saved = type(model).from_pretrained(checkpoint, dtype="auto")
        model.load_state_dict(saved.state_dict(), strict=True)

    def compute_loss(self, model: Any, inputs: dict, *_: Any, **__: Any) -> torch.Tensor:
        labels, row_B = inputs.pop("labels"), inputs.pop("row")
        real_BS = inputs.get("attention_mask", torch.ones_like(labels))
        read = {k: v for k, v in inputs.items() if k != "attention_mask" or "position_ids" not in inputs}
        self.routed.clear()
        loss = self.cross_entropy(model, read, labels)
        self.pending.append(float(loss.detach()))
        if not math.isfinite(self.pending[-1]):
            first = self.state.global_step * self.ours.batch + (len(self.pending) - 1) * self.ours.micro_batch
            rows = f"rows {first} to {first + self.ours.micro_batch - 1} of the stream"
            self._diverged(f"the loss became {self.pending[-1]} at step {self.state.global_step + 1}, {rows}")
        real_T = real_BS.flatten().bool()
        self.balance.add(self.routed, real_T)
        loss = loss + self._router_losses(real_T)
        return loss + self.extra_loss(inputs, row_B, self.routed) if self.extra_loss else loss

    def _diverged(self, what: str) -> NoReturn:
        whole = checkpoints(Path(str(self.args.output_dir)))
        good = f"the last good state is {whole[-1]}" if whole else "no checkpoint was written, the base is as it was"
        raise ModelError(f"{what}; {good}: lower the learning rate or clip, and train again or resume from there")

    def refuse_divergence(self) -> None:
        """ModelError where the losses of the last updates are far above the lowest before."""
        losses, margin = self.log_.losses, self.ours.diverged
        if len(losses) < WINDOW:
            return
        mean = sum(losses[-WINDOW:]) / WINDOW
        self.lowest = min(self.lowest, mean)
        if margin and mean > self.lowest + margin:
            self._diverged(
                f"training diverged: at step {len(losses)} the mean loss of {WINDOW} updates is {mean:.2f} nats, "
                f"it was {self.lowest:.2f}"
            )

    def _router_losses(self, real_T: torch.Tensor) -> torch.Tensor | float:
        if not (self.ours.balance or self.ours.z_loss):
            return 0.0
        terms = [
            self.ours.balance * balance_loss(r.logits_TE, r.indices_TK, real_T, score)
            + self.ours.z_loss * z_loss(r.logits_TE, real_T)
            for r, score in zip(self.routed, self.scores, strict=True)
        ]
        return torch.stack(terms).mean()


class Watch(TrainerCallback):
    """Keeps the log and the progress bar, brings the decay forward when time is up, asks for checkpoints."""

    def __init__(self, trainer: Loop, config: Config, width: int, quiet: bool):
        self.trainer, self.config, self.tokens_per_step = trainer, config, config.batch * width
        self.started = self.saved = self.step_began = time.monotonic()
        self.before = trainer.log_.seconds
        self.bar = tqdm(total=config.steps, desc="train", unit=" steps", disable=quiet, delay=2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log, pending = self.trainer.log_, self.trainer.pending
        log.losses.append(sum(pending) / len(pending))
        log.steps, log.tokens = len(log.losses), log.tokens + self.tokens_per_step
        pending.clear()
        self.bar.update()
        self.bar.set_postfix(loss=f"{log.losses[-1]:.3f}", refresh=False)
        self.trainer.refuse_divergence()
        now, shape = time.monotonic(), self.trainer.shape
        log.step_seconds.append(round(now - self.step_began, 4))
        log.seconds = self.before + now - self.started
        if self.config.minutes and now - self.started > 60 * self.config.minutes:
            shape.decay_from = min(shape.decay_from, state.global_step)
        log.decay_from = shape.decay_from
        if state.global_step >= shape.decay_from + shape.decay:
            control.should_training_stop = True
        if self.trainer.balance.layers and (state.global_step % self.config.balance_every == 0 or self._last(state)):
            log.balance.append(self.trainer.balance.report(state.global_step))
        if self._checkpoint_due(now, state.global_step):
            self.saved, control.should_save = now, True

    def _last(self, state: Any) -> bool:
        shape = self.trainer.shape
        return state.global_step in (self.config.steps, shape.decay_from + shape.decay)

    def _checkpoint_due(self, now: float, step: int) -> bool:
        minutes, steps = self.config.checkpoint_minutes, self.config.checkpoint_steps
        late = bool(minutes) and now - self.saved > 60 * minutes
        at_decay = bool(minutes or steps) and step == self.trainer.shape.decay_from
        return late or at_decay or bool(steps and step % steps == 0)
