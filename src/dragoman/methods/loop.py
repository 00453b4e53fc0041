"""transformers' Trainer with our schedule, our losses and checks that stop in time."""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import sharding
from dragoman.methods.balance import Balance
from dragoman.methods.checkpoints import LOG_FILE, Log, checkpoints, discard, last_good, seal, superfluous
from dragoman.methods.guard import Guarding
from dragoman.methods.losses import ExtraLoss, balance_loss, cross_entropy, z_loss
from dragoman.methods.rows import without_needless_mask
from dragoman.methods.settings import Config, WarmupStableDecay
from dragoman.modeling import PlainHead, Routed, are_probabilities
from dragoman.record import write_json

TRAINED_FILE = "trained.safetensors"
"""What a checkpoint keeps of a model that trains in part."""
WINDOW = 10
"""Updates whose mean loss tells divergence from noise."""


class Loop(Trainer):
    """The loop; a checkpoint is whole or not there."""

    def __init__(
        self,
        *args: Any,
        config: Config,
        routed: list[Routed],
        log: Log,
        shards: sharding.Shards | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        for theirs in (PrinterCallback, ProgressCallback):
            self.remove_callback(theirs)
        self.ours, self.routed, self.log_, self.shards = config, routed, log, shards
        if shards:  # else the model would also be wrapped in DistributedDataParallel
            self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.staging: Path | None = None
        self.extended = False
        self.extra_loss: ExtraLoss | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.cross_entropy = torch.compile(cross_entropy) if config.compile else cross_entropy
        self.head: PlainHead | None = None
        self.model_accepts_loss_kwargs = False
        self.pending: list[float] = []
        self.pending_extra: list[float] = []
        self.mean, self.labels = torch.zeros(()), torch.zeros(())
        self.extra: torch.Tensor | None = None
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
        if self.shards and checkpoint:
            optimizer, schedule = self._updating()
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(sharding.shared_state(state, optimizer))
            schedule.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if self.extended:  # the checkpoint brought the old run's schedule
            self.shape.decay, self.shape.decay_from = self.ours.decay, self.ours.steps - self.ours.decay

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Into a folder of its own, then moved: a full disk or a kill leaves the former checkpoints as they were."""
        folder, name = Path(str(self.args.output_dir)), f"checkpoint-{self.state.global_step}"
        self.staging = folder / ".unfinished"
        if sharding.first():
            shutil.rmtree(self.staging, ignore_errors=True)
        sharding.wait()
        try:
            with self.shards.filled() if self.shards else nullcontext():
                super()._save_checkpoint(model, trial)
            sharding.wait()
            if sharding.first():
                self._seal(self.staging / name, folder / name)
            sharding.wait()
        except (OSError, RuntimeError, SafetensorError) as e:  # torch and safetensors say so of a full disk
            raise ConfigError(
                f"checkpoint {folder / name} could not be written ({str(e).splitlines()[0]}); is the disk full? "
                "The checkpoint before is whole: make room and go on with --resume"
            ) from None
        finally:
            if sharding.first():
                shutil.rmtree(self.staging, ignore_errors=True)
            self.staging = None

    def _seal(self, staged: Path, folder: Path) -> None:
        write_json(staged / LOG_FILE, asdict(self.log_))
        if self.guarding:
            self.guarding.save(staged)
        seal(staged)
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed, and not whole
        os.replace(staged, folder)
        for old in superfluous(checkpoints(folder.parent), self.log_.losses, self._highest(0.5)):
            discard(old)

    def _updating(self) -> tuple[Any, Any]:
        return self.optimizer, self.lr_scheduler

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.shards:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer, schedule = self._updating()
        state = sharding.whole_state(optimizer.state_dict())
        if sharding.first():
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A plain model folder where everything trains, else what trains alone: the base gives the rest."""
        if not sharding.first():
            return
        if all(p.requires_grad for p in self._plain().parameters()):
            self._plain().save_pretrained(output_dir)
            if self.tokenizer:
                self.tokenizer.save_pretrained(str(output_dir))
            return
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in self._own().items()}, folder / TRAINED_FILE)

    def _plain(self) -> Any:
        """The model as the user has it; where it is shared out, it is filled now and then."""
        return self.shards.plain if self.shards else self.model

    def _own(self) -> dict[str, Any]:
        return {n: p for n, p in self._plain().named_parameters() if p.requires_grad}

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if (trained := Path(checkpoint) / TRAINED_FILE).is_file():
            saved, own = load_file(trained), self._own()
            if saved.keys() != own.keys():
                raise ModelError(f"{checkpoint} holds other parameters than train now; resume with the old method")
            if self.shards:
                self.shards.load(saved)
                return
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(saved[name])
            return
        # Trainer loads the saved tensors by name and skips what does not fit: experts are one tensor each on disk and
        # stacked in memory, so they would silently stay as they are. from_pretrained knows how to stack them.
        saved = type(self._plain()).from_pretrained(checkpoint, dtype="auto")
        if self.shards:
            self.shards.load(saved.state_dict())
            return
        self._plain().load_state_dict(saved.state_dict(), strict=True)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The passes of one update; their labels are counted over all processes."""
        passes, theirs = super().get_batch_samples(*args, **kwargs)
        none = torch.zeros((), device=self.args.device)
        self.labels = sharding.summed(sum(((given["labels"][:, 1:] != -100).sum() for given in passes), start=none))
        for given in passes:  # an array stays on the CPU, where a loss looks up its items without waiting for the pass
            given["row"] = given["row"].numpy(force=True)
        return passes, theirs

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A pass, forward and backward. Only then are its losses read: until then a GPU need not wait for the CPU."""
        loss = super().training_step(*args, **kwargs)
        self.pending.append(float(self.mean))
        if self.extra is not None:
            self.pending_extra.append(float(self.extra))
        # of processes that share a training all stop or none does
        whole = self.pending[-1] if self.shards else float(loss)
        if not (math.isfinite(self.pending[-1]) and math.isfinite(whole)):
            size = self.ours.batch // self.args.gradient_accumulation_steps  # of all processes
            first = self.state.global_step * self.ours.batch + (len(self.pending) - 1) * size
            rows = f"rows {first} to {first + size - 1} of the stream"
            what = f"the loss became {self.pending[-1]}"
            if math.isfinite(self.pending[-1]):
                what = f"a loss of routers or of a method became {whole}"
            self._diverged(f"{what} at step {self.state.global_step + 1}, {rows}")
        return loss

    def compute_loss(self, model: Any, inputs: dict, *_: Any, **__: Any) -> torch.Tensor:
        labels, row_B = inputs.pop("labels"), torch.from_numpy(inputs.pop("row"))
        labelled = inputs.pop("labelled", None)
        real_BS = inputs.get("attention_mask", torch.ones_like(labels))
        self.routed.clear()
        loss, self.mean = self._loss(model, without_needless_mask(inputs), labels, None if self.shards else labelled)
        self._require_all_ran()
        real_T = real_BS.flatten().bool()
        self.balance.add(self.routed, real_T)
        loss = loss + self._router_losses(real_T)
        if self.extra_loss is None:
            return loss
        extra = self.extra_loss(inputs, row_B, self.routed)
        self.extra = extra.detach()
        return loss + extra

    def _require_all_ran(self) -> None:
        """ModelError where a layer that is measured, or that a loss needs, was left out of the pass."""
        if len(self.routed) < len(self.balance.layers):
            ran = {r.row for r in self.routed}
            idle = [layer.layer_id for row, layer in enumerate(self.balance.layers) if row not in ran]
            raise ModelError(
                f"layers {idle} are to be measured or aligned, and did not run: a trunk cache has what leaves them; "
                "take those above its cut alone, or train without a cache"
            )

    def _loss(
        self, model: Any, inputs: dict, labels_BS: torch.Tensor, labelled_T: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What to differentiate, and what to report, whose mean over an update's passes is the mean over its labels.

        Gradients of passes and of processes are averaged, but rows have unlike numbers of labels: each pass counts by
        its own.
        """
        passes = self.args.gradient_accumulation_steps
        if passes == 1 and not self.shards:
            loss = self.cross_entropy(model, inputs, labels_BS, labelled_T=labelled_T, head=self.head)
            return loss, loss.detach()
        loss = self.cross_entropy(model, inputs, labels_BS, "sum", labelled_T, self.head) * (passes / self.labels)
        return loss * self.args.world_size, sharding.summed(loss.detach().clone())

    def _diverged(self, what: str) -> NoReturn:
        losses, folder = self.log_.losses, Path(str(self.args.output_dir))
        good = sharding.on_first(lambda: last_good(folder, losses, self._highest(1.0)))
        kept = f"the last good state is {good}" if good else "there is no checkpoint from before, the base is as it was"
        anew = "train anew in another folder" + (f", with start: {good}" if good and self.tokenizer else "")
        raise ModelError(f"{what}; {kept}: lower the learning rate or clip, and {anew}")

    def require_finite_weights(self) -> None:
        """ModelError where the last update, after which no loss is computed, left weights that are not finite."""
        if odd := [name for name, p in self._own().items() if not torch.isfinite(p).all()]:
            self._diverged(f"weights are not finite after step {self.log_.steps}, such as {odd[0]}")

    def _highest(self, part: float) -> float:
        """The largest loss of a good state; part: of the margin that divergence is told by."""
        return min([self.lowest, *self.log_.losses[:1]]) + (part * self.ours.diverged or math.inf)

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
        terms = []
        for r, score in zip(self.routed, self.scores, strict=True):
            if self.ours.z_loss and not self.log_.losses and are_probabilities(r.logits_TE):
                raise ModelError(
                    "this version of transformers records probabilities of routers, which say nothing of the logits "
                    "that z_loss is of; leave training.z_loss out, or take a newer version"
                )
            z = self.ours.z_loss * z_loss(r.logits_TE, real_T)
            terms.append(
                z + self.ours.balance * balance_loss(r.logits_TE, r.indices_TK, real_T, score)
                if self.ours.balance
                else z
            )
        return torch.stack(terms).mean()


class Watch(TrainerCallback):
    """Keeps the log and the progress bar, brings the decay forward when time is up, asks for checkpoints."""

    def __init__(self, trainer: Loop, config: Config, width: int, quiet: bool):
        self.trainer, self.config, self.tokens_per_step = trainer, config, config.batch * width
        self.started = self.saved = self.step_began = sharding.clock()
        self.before = trainer.log_.seconds
        self.bar = tqdm(total=config.steps, desc="train", unit=" steps", disable=quiet, delay=2)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_began = sharding.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log, pending = self.trainer.log_, self.trainer.pending
        log.losses.append(sum(pending) / len(pending))
        log.steps, log.tokens = len(log.losses), log.tokens + self.tokens_per_step
        pending.clear()
        if extra := self.trainer.pending_extra:
            log.extra_losses.append(sum(extra) / len(extra))
            extra.clear()
        self.bar.update()
        self.bar.set_postfix(loss=f"{log.losses[-1]:.3f}", refresh=False)
        self.trainer.refuse_divergence()
        now, shape = sharding.clock(), self.trainer.shape
        log.step_seconds.append(round(now - self.step_began, 4))
        log.seconds = self.before + now - self.started
        if self.config.minutes and log.seconds > 60 * self.config.minutes:
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
