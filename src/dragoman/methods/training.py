"""One training loop for everything: transformers' Trainer, with our schedule, our losses and checks that stop in time.

Shape letters: N blocks, S tokens per block, T tokens, E experts, L MoE layers.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils import deterministic
from torch.utils.data import Dataset, SequentialSampler
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import MoELayer, Routed, router_probabilities, sorted_experts, tap_routers
from dragoman.record import read_json, write_json

LOG_FILE = "log.json"
"""What a checkpoint keeps of the Log."""
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """How to train. Batches are counted in rows of the packed text."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    steps: int = 100
    """Updates of the weights, decay included."""
    batch: int = 16
    """Rows per update."""
    micro_batch: int = 16
    """Rows per forward pass; less of it needs less memory and changes nothing else."""
    warmup: int = 10
    """Updates of linear warm-up."""
    decay: int = 50
    """Updates of the final decay to zero (1 - sqrt); between warm-up and decay the rate is constant."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; norms and biases have none."""
    beta2: float = 0.95
    """AdamW's second-moment decay; the first is 0.9."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "auto"
    """bf16 (autocast), fp32, or auto: bf16 where the machine is faster in it (a GPU, or a CPU with AMX)."""
    compile: bool = False
    """Compile model and loss with torch.compile (on a CPU it needs a C++ compiler): about a third faster, after half
    a minute. Losses differ from the plain ones by rounding."""
    balance: float = 0.0
    """Weight of the load-balance loss, per MoE layer (0.01 is common in pretraining)."""
    z_loss: float = 0.0
    """Weight of the router z-loss (0.001 is common in pretraining)."""
    seed: int = 0
    """Of weights, dropout and order."""
    checkpoint_minutes: float = 0.0
    """Write a checkpoint that can be resumed every so often; 0 writes none."""
    minutes: float = 0.0
    """Start the decay after this long, wherever the step count is; 0 for no limit."""

    def __post_init__(self) -> None:
        faults = []
        if self.batch % self.micro_batch:
            faults.append(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
        if self.warmup + self.decay > self.steps:
            faults.append(f"warmup {self.warmup} and decay {self.decay} do not fit into {self.steps} steps")
        if self.precision not in ("auto", "bf16", "fp32"):
            faults.append(f"precision is auto, bf16 or fp32, not {self.precision!r}")
        if faults:
            raise ConfigError(f"training cannot run so: {'; '.join(faults)}")

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16."""
        return self.precision == "bf16" or (self.precision == "auto" and _computes_bf16())


def _computes_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    check = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # with AVX512 alone, fp32 is faster
    return bool(check())


ExtraLoss = Callable[[dict[str, torch.Tensor], torch.Tensor, list[Routed]], torch.Tensor]
"""A method's own term: (inputs of the pass, row_B: which rows of the text it holds, what the tapped routers did)."""


@dataclass
class Log:
    """What a training run reports."""

    losses: list[float] = field(default_factory=list)
    """Cross-entropy in nats per token of every update, extra losses left out."""
    tokens: int = 0
    """Tokens that entered the model, filler included."""
    seconds: float = 0.0
    steps: int = 0
    decay_from: int = 0
    """Update after which the rate decays."""

    @property
    def stable(self) -> bool:
        """Whether the rate had not begun to decay: from here training can go on for longer than was planned."""
        return self.steps <= self.decay_from


class WarmupStableDecay:
    """Factor on the learning rate: linear warm-up, constant, then 1 - sqrt over the last `decay` updates.

    Source: Hägele et al. 2024 (arXiv:2405.18392), the 1-sqrt cooldown. The decay can be brought forward while
    training runs (`decay_from`), and a checkpoint keeps that: torch stores the fields of a callable schedule.
    """

    def __init__(self, warmup: int, decay: int, steps: int):
        self.warmup, self.decay, self.decay_from = warmup, decay, steps - decay

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if step < self.decay_from or not self.decay:
            return 1.0
        return max(0.0, 1.0 - math.sqrt((step - self.decay_from) / self.decay))


class _Rows(Dataset):
    """`needed` rows in their order, from the start again where there are fewer; each says which one it is."""

    def __init__(self, tokens_NS: np.ndarray, labels_NS: np.ndarray | None, pad_id: int | None, needed: int):
        self.tokens_NS, self.labels_NS, self.pad_id, self.needed = tokens_NS, labels_NS, pad_id, needed

    def __len__(self) -> int:
        return self.needed

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        i %= len(self.tokens_NS)
        ids, row = torch.from_numpy(self.tokens_NS[i].astype(np.int64)), torch.tensor(i)
        if self.labels_NS is None:
            return {"input_ids": ids, "labels": ids, "row": row}
        # Filler stands at the end of a row, so a causal model's labels are out of its reach without a mask.
        # It is what follows the last other token: the pad token may be the end token, which also stands inside.
        other = torch.ones_like(ids) if self.pad_id is None else (ids != self.pad_id).long()
        real = (other.flip(0).cumsum(0).flip(0) > 0).long()
        labels = torch.from_numpy(self.labels_NS[i])
        return {"input_ids": ids, "labels": labels, "attention_mask": real, "row": row}


def balance_loss(logits_TE: torch.Tensor, indices_TK: torch.Tensor, real_T: torch.Tensor) -> torch.Tensor:
    """E * sum_e f_e P_e of one layer: f the share of slots that went to e, P the mean router probability.

    1 where routing is uniform. Source: Fedus et al. 2022 (arXiv:2101.03961), eq. 4-6, with slots for top-k.
    Differs: per layer and without filler; transformers pools all layers, which can hide a collapsed one.
    """
    num_experts = logits_TE.shape[-1]
    probability_E = router_probabilities(logits_TE)[real_T].mean(0)
    slots_E = torch.bincount(indices_TK[real_T].flatten(), minlength=num_experts).float()
    return num_experts * (slots_E / slots_E.sum() * probability_E).sum()


def z_loss(logits_TE: torch.Tensor, real_T: torch.Tensor) -> torch.Tensor:
    """Mean squared log-partition of the router. Source: Zoph et al. 2022 (arXiv:2202.08906), eq. 5."""
    return logits_TE[real_T].float().logsumexp(-1).square().mean()


def _cross_entropy(model: Any, inputs: dict, labels_BS: torch.Tensor) -> torch.Tensor:
    logits_BSV = model(**inputs, use_cache=False).logits
    shifted_BS = torch.nn.functional.pad(labels_BS[:, 1:], (0, 1), value=-100)
    return torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1).float(), shifted_BS.flatten())


class _Trainer(Trainer):
    def __init__(self, *args: Any, config: Config, routed: list[Routed], log: Log, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ours, self.routed, self.log_ = config, routed, log
        self.staging: Path | None = None
        self.extended = False
        self.extra_loss: ExtraLoss | None = None
        self.cross_entropy = torch.compile(_cross_entropy) if config.compile else _cross_entropy
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


class _Watch(TrainerCallback):
    """Keeps the log and the progress bar, brings the decay forward when time is up, asks for checkpoints."""

    def __init__(self, trainer: _Trainer, config: Config, width: int, quiet: bool):
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


def train(
    model: PreTrainedModel,
    tokens_NS: np.ndarray,
    config: Config,
    *,
    layers: Sequence[MoELayer] = (),
    extra_loss: ExtraLoss | None = None,
    labels_NS: np.ndarray | None = None,
    pad_id: int | None = None,
    folder: Path,
    resume: Path | None = None,
    extended: bool = False,
    quiet: bool = True,
) -> Log:
    """Train the parameters of `model` that require gradients on rows of tokens, in their order, in place.

    tokens_NS: int32 rows; without labels_NS every token is a label. Rows are repeated from the start if `steps` need
        more than there are. Router losses apply to `layers`; leave it empty for none. `extra_loss` is added to the
        loss (not in the log) and sees what the routers of `layers` did.
    The log of a resumed run holds what came before; with `extended` the checkpoint is a stable one of a run with
    another number of steps: the schedule is that of `config`, later checkpoints go.
    Raises ModelError when the loss is not finite, ConfigError when a checkpoint cannot be written.
    """
    log = log_of(resume)
    before = log.seconds
    for later in [path for path in checkpoints(folder) if extended and log_of(path).steps > log.steps]:
        shutil.rmtree(later)
    rows = _Rows(tokens_NS, labels_NS, pad_id, config.steps * config.batch)
    model.train()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started = time.monotonic()
    tapped = layers if config.balance or config.z_loss or extra_loss else ()
    with _deterministic(), sorted_experts(model), tap_routers(model, tapped) as routed:
        trainer = _Trainer(
            model=model, args=_arguments(config, folder), train_dataset=rows, config=config, routed=routed, log=log
        )
        for theirs in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(theirs)
        trainer.extended, trainer.extra_loss = extended, extra_loss
        trainer.add_callback(_Watch(trainer, config, tokens_NS.shape[1], quiet))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    # Trainer leaves the model's forward wrapped in autocast: it would be evaluated in bf16 beside a base in fp32.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    log.seconds = before + time.monotonic() - started
    return log


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def superfluous(checkpoints: list[Path]) -> list[Path]:
    """All but the last ones and the last stable one."""
    stable = [path for path in checkpoints if log_of(path).stable][-1:]
    return [path for path in checkpoints[:-KEPT_CHECKPOINTS] if path not in stable]


def log_of(checkpoint: Path | None) -> Log:
    """What had been logged at a checkpoint."""
    return Log(**read_json(checkpoint / LOG_FILE)) if checkpoint else Log()


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same sums in the same order: on several CPU threads gradients of gathered rows are else added by chance."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    # else every new tensor is written twice
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _arguments(config: Config, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // config.micro_batch,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        optim="adamw_torch_fused",
    )
