"""One training loop for everything: settings, rows, losses, loop and checkpoints meet here.

Shape letters: N blocks, S tokens per block.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils import deterministic
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from dragoman.methods.checkpoints import Log, checkpoints, log_of
from dragoman.methods.loop import Loop, Watch
from dragoman.methods.losses import ExtraLoss
from dragoman.methods.rows import Rows
from dragoman.methods.settings import Config
from dragoman.modeling import MoELayer, sorted_experts, tap_routers

__all__ = ["Config", "ExtraLoss", "Log", "checkpoints", "log_of", "train"]


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
    rows = Rows(tokens_NS, labels_NS, pad_id, config.steps * config.batch)
    model.train()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started = time.monotonic()
    tapped = layers if config.balance or config.z_loss or extra_loss else ()
    with _deterministic(), sorted_experts(model), tap_routers(model, tapped) as routed:
        trainer = Loop(
            model=model, args=_arguments(config, folder), train_dataset=rows, config=config, routed=routed, log=log
        )
        for theirs in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(theirs)
        trainer.extended, trainer.extra_loss = extended, extra_loss
        trainer.add_callback(Watch(trainer, config, tokens_NS.shape[1], quiet))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    # Trainer leaves the model's forward wrapped in autocast: it would be evaluated in bf16 beside a base in fp32.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    log.seconds = before + time.monotonic() - started
    return log


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
