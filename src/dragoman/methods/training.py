"""One training loop for everything: settings, rows, losses, loop and checkpoints meet here.

Shape letters: N blocks, S tokens per block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.utils import deterministic
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from dragoman.errors import ModelError
from dragoman.methods.balance import Balance
from dragoman.methods.checkpoints import Log, checkpoints, discard, log_of
from dragoman.methods.guard import Guard, Guarding
from dragoman.methods.loop import Loop, Watch
from dragoman.methods.losses import ExtraLoss
from dragoman.methods.rows import Rows
from dragoman.methods.settings import Config
from dragoman.modeling import MoELayer, isolates, quantisation, router_scores, sorted_experts, tap_routers

__all__ = ["Config", "ExtraLoss", "Log", "checkpoints", "log_of", "train"]


def train(
    model: PreTrainedModel,
    tokens_NS: np.ndarray,
    config: Config,
    *,
    layers: Sequence[MoELayer] = (),
    extra_loss: ExtraLoss | None = None,
    labels_NS: np.ndarray | None = None,
    positions_NS: np.ndarray | None = None,
    guard: Guard | None = None,
    pad_id: int | None = None,
    folder: Path,
    resume: Path | None = None,
    extended: bool = False,
    quiet: bool = True,
) -> Log:
    """Train the parameters of `model` that require gradients on rows of tokens, in their order, in place.

    tokens_NS: int32 rows; without labels_NS every token is a label. Rows are repeated from the start if `steps` need
        more than there are. `layers` are measured for balance, and router losses apply to them. `extra_loss` is
        added to the loss (not in the log) and sees what the routers of `layers` did.
    positions_NS: place of each token in its document, -1 on filler: no token then attends to another document.
    guard: evaluates while the model trains, and may end it early.
    The log of a resumed run holds what came before; with `extended` the checkpoint is a stable one of a run with
    another number of steps: the schedule is that of `config`, later checkpoints go.
    Raises ModelError for a model that cannot be trained so and when the loss diverges, ConfigError when a checkpoint
    cannot be written.
    """
    _refuse_quantised(model)
    if positions_NS is not None and not isolates(model):
        raise ModelError(
            f"{type(model).__name__} lets tokens attend to other documents of their row, whatever their positions; "
            "pack them without isolation"
        )
    log = log_of(resume)
    before = log.seconds
    for later in [path for path in checkpoints(folder) if extended and log_of(path).steps > log.steps]:
        discard(later)
    rows = Rows(tokens_NS, labels_NS, pad_id, config.steps * config.batch, positions_NS)
    model.train()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started = time.monotonic()
    scores = router_scores(model, layers) if config.balance else ("",) * len(layers)
    recomputing = _recomputing(model) if config.gradient_checkpointing else nullcontext()
    with _deterministic(), recomputing, sorted_experts(model), tap_routers(model, layers, training=True) as routed:
        arguments = _arguments(config, folder, model)
        trainer = Loop(model=model, args=arguments, train_dataset=rows, config=config, routed=routed, log=log)
        for theirs in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(theirs)
        trainer.extended, trainer.extra_loss = extended, extra_loss
        trainer.balance, trainer.scores = Balance(layers), scores
        trainer.add_callback(Watch(trainer, config, tokens_NS.shape[1], quiet))
        if guard:
            trainer.guarding = Guarding(guard, model, log)
            trainer.add_callback(trainer.guarding)
            if resume:
                trainer.guarding.load(resume)
        if resume and log.steps >= log.decay_from + config.decay:  # killed after its last step
            trainer._load_from_checkpoint(str(resume))
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    # Trainer leaves the model's forward wrapped in autocast: it would be evaluated in bf16 beside a base in fp32.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    log.seconds = before + time.monotonic() - started
    return log


def _refuse_quantised(model: PreTrainedModel) -> None:
    if kind := quantisation(model):
        raise ModelError(
            f"the weights of this model are quantised ({kind}), they cannot be trained; open the original in float32 "
            "or bfloat16 (reading its routing works as it is)"
        )


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


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


def _arguments(config: Config, folder: Path, model: PreTrainedModel) -> TrainingArguments:
    arguments = TrainingArguments(
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
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="steps" if config.report_to else "no",
        logging_steps=1,
        disable_tqdm=True,
        report_to=list(config.report_to),
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        optim="adamw_torch_fused",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else Trainer wraps the model in DataParallel where there are several
    return arguments
