"""One training loop for everything: settings, rows, losses, loop and checkpoints meet here.

Shape letters: N blocks, S tokens per block.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils import deterministic
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging as transformers_logging

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import sharding
from dragoman.methods.balance import Balance
from dragoman.methods.checkpoints import Log, checkpoints, discard_after, log_of
from dragoman.methods.guard import Guard, Guarding
from dragoman.methods.loop import Loop, Watch
from dragoman.methods.losses import IN_CHUNKS, ExtraLoss
from dragoman.methods.rows import Rows, cut_to_need
from dragoman.methods.settings import Config
from dragoman.modeling import (
    MoELayer,
    PlainHead,
    has_cached_trunk,
    isolates,
    plain_head,
    quantisation,
    score_names,
    sorted_experts,
    tap_routers,
)

__all__ = ["Config", "ExtraLoss", "Log", "checkpoints", "log_of", "train"]

PLAIN_WIDTH = 1024
"""Tokens per row up to which plain attention was measured."""


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
    tokenizer: PreTrainedTokenizerBase | None = None,
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
    tokenizer: kept in every checkpoint of a model that trains whole, which is then a model folder.
    guard: evaluates while the model trains, and may end it early.
    The log of a resumed run holds what came before; with `extended` the checkpoint is a stable one of a run with
    another number of steps: the schedule is that of `config`, later checkpoints go.
    In a process of `sharding.joined()` with others it trains a share: rows, gradients and the optimizer's state.
    Raises ModelError for a model that cannot be trained so and when the loss diverges, ConfigError when a checkpoint
    cannot be written.
    """
    _require_possible(model, config, isolated=positions_NS is not None)
    require_shareable(config, extra_loss is not None)
    log = log_of(resume)
    if extended:
        sharding.on_first(lambda: discard_after(folder, log.steps))
    rows = Rows(tokens_NS, labels_NS, pad_id, config.steps * config.batch, positions_NS)
    model.train()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started, width = time.monotonic() - log.seconds, tokens_NS.shape[1]
    scores, head = score_names(model, layers) if config.balance else ("",) * len(layers), _head(model, config)
    recomputing = _recomputing(model) if config.gradient_checkpointing else nullcontext()
    with _deterministic(), recomputing, sorted_experts(model), _compiling(model, config, width), ExitStack() as stack:
        shards = sharding.Shards(model, config.expert_parallel) if sharding.active() else None
        running = shards.model if shards else model
        routed = stack.enter_context(tap_routers(running, _within(running, model, layers), training=True))
        given = {"args": _arguments(config, folder, model), "train_dataset": rows}
        given["data_collator"] = _collator(config, model)
        trainer = _loop(running, **given, config=config, routed=routed, log=log, shards=shards)
        trainer.extended, trainer.extra_loss, trainer.tokenizer, trainer.head = extended, extra_loss, tokenizer, head
        trainer.balance, trainer.scores = Balance(layers), scores
        trainer.add_callback(Watch(trainer, config, width, quiet or not sharding.first()))
        if guard:
            with shards.filled() if shards and guard.keeps else nullcontext():  # what it keeps are the base's weights
                trainer.guarding = Guarding(guard, model, log, trainer.log if config.report_to else None, shards)
            trainer.add_callback(trainer.guarding)
            if resume:
                trainer.guarding.load(resume)
        if resume and not extended and log.steps >= log.decay_from + config.decay:  # killed after its last step
            trainer._load_from_checkpoint(str(resume))
        else:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if shards:
            shards.fill()
        trainer.require_finite_weights()
    # Trainer leaves the model's forward wrapped in autocast: it would be evaluated in bf16 beside a base in fp32.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    model.eval()
    log.seconds = time.monotonic() - started
    return log


def require_trainable(model: PreTrainedModel) -> None:
    """ModelError for weights, of those that require gradients, in a form that cannot be trained."""
    if kind := quantisation(model):
        raise ModelError(
            f"the weights of this model are quantised ({kind}), they cannot be trained; open the original in float32 "
            "or bfloat16 (reading its routing works as it is)"
        )
    if any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad):
        raise ModelError(
            "weights in float16 cannot be trained (AdamW's second moments round to zero); open the model with --dtype "
            "bfloat16, or in float32"
        )


def _require_possible(model: PreTrainedModel, config: Config, isolated: bool) -> None:
    require_trainable(model)
    if isolated and not isolates(model):
        raise ModelError(
            f"{type(model).__name__} lets tokens attend to other documents of their row, whatever their positions; "
            "pack them without isolation"
        )
    if config.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} has no gradient checkpointing; leave it out, or take smaller passes")
    if model.device.index and not sharding.active():
        raise ConfigError(
            f"training runs on the first GPU that is visible, not on {model.device}; give the device as cuda and name "
            f"the GPU outside: CUDA_VISIBLE_DEVICES={model.device.index}"
        )
    if config.compile and model.device.type == "cuda":
        raise ConfigError(
            "compiled training is for a CPU: on a GPU it ran and did not learn (docs/LOG.md, 2026-11-27); leave out "
            "compile"
        )
    if config.compile and has_cached_trunk(model):
        raise ConfigError("torch.compile and a trunk cache do not go together; leave out one of them")
    there = get_available_reporting_integrations()
    if absent := [name for name in config.report_to if name not in there]:
        raise ConfigError(
            f"report_to names {', '.join(absent)}, installed are {', '.join(there) or 'none'}; install the package of "
            "that name, or leave it out"
        )


def require_shareable(config: Config, extra_loss: bool = False) -> None:
    """ConfigError for what does not run on the processes that torchrun started. extra_loss: whether there is one."""
    if sharding.started() > 1 and not sharding.active():
        raise ConfigError(
            "this training runs in one process; start it without torchrun (adapt, pretrain and mix train share it out)"
        )
    sharding.require_several(config.expert_parallel)
    odd = {"loss over parallel or old text": extra_loss, "torch.compile": config.compile}
    if sharding.active() and (found := [name for name, there in odd.items() if there]):
        raise ConfigError(f"training that is shared out takes no {' and no '.join(found)}; start it without torchrun")
    sharding.rows_each(config.batch, config.micro_batch)


def _loop(model: PreTrainedModel, **given: Any) -> Loop:
    """The loop. Trainer turns the cache off in the model's config, which is saved; here each pass says so instead."""
    config = vars(model.config)
    before = {name: config[name] for name in ("use_cache",) if name in config}
    trainer = Loop(model=model, **given)
    config.pop("use_cache", None)
    config.update(before)
    return trainer


def _head(model: PreTrainedModel, config: Config) -> PlainHead | None:
    """What the loss is computed from in chunks: in float32 on a CPU, where that was measured, and in one process."""
    if not IN_CHUNKS or config.bf16 or sharding.active() or has_cached_trunk(model) or model.config.sub_configs:
        return None
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return None
    return plain_head(model)


def _collator(config: Config, model: PreTrainedModel) -> Callable | None:
    """Rows are cut to what is needed, but not for compiled code, made for one width, nor for a trunk cache."""
    return None if config.compile or has_cached_trunk(model) else cut_to_need


def _within(running: PreTrainedModel, model: PreTrainedModel, layers: Sequence[MoELayer]) -> list[MoELayer]:
    """The same layers, of the model that runs: a copy has modules of its own, in which experts may be few."""
    at = {module: name for name, module in model.named_modules()}
    of = running.get_submodule
    return [replace(x, router=of(at[x.router]), experts=of(at[x.experts])) for x in layers]


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def _compiling(model: PreTrainedModel, config: Config, width: int) -> Iterator[None]:
    """What compiled code needs: in bfloat16 plain attention, which is faster on a CPU than torch's kernel, as that is
    slow in its backward pass (docs/LOG.md, 2026-11-29). It keeps width * width numbers a head, so no longer rows.
    """
    theirs = model.config._attn_implementation == "sdpa" and not model.config.sub_configs
    plain = config.compile and config.bf16 and width <= PLAIN_WIDTH and theirs
    try:
        if plain:
            model.set_attn_implementation("eager")
        with warnings.catch_warnings():  # of how transformers asks for versions, which says nothing to users
            warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
            yield
    finally:
        if plain:
            model.set_attn_implementation("sdpa")


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same sums in the same order: on several CPU threads gradients of gathered rows are else added by chance."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what it takes on a GPU
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
    rows = sharding.rows_each(config.batch, config.micro_batch)
    processes = distributed.get_world_size() if sharding.active() else 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=config.batch // (rows * processes),
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
