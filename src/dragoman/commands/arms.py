"""One arm of a comparison: a method applied, trained, evaluated and merged, as a config of `adapt` says."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.commands import forgetting
from dragoman.commands.forgetting import Evaluator, share_of
from dragoman.commands.resuming import checkpoint_folder
from dragoman.commands.training_text import Rows
from dragoman.routing.plan import ExpertPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.commands.adapt import Config
    from dragoman.methods import training
    from dragoman.methods.guard import Guard, Measured
    from dragoman.modeling import MoELayer, TextCodec


def train_arm(
    model: PreTrainedModel,
    method_name: str,
    plan: ExpertPlan | None,
    rows: Rows,
    config: Config,
    pad_id: int,
    *,
    codec: TextCodec | None = None,
    base_codec: TextCodec | None = None,
    texts: dict[str, list[str]] | None = None,
    chosen: Any = None,
    keep: Callable[[PreTrainedModel], None] | None = None,
) -> dict[str, Any]:
    """Apply the method, train, merge: the model is plain again and adapted. Returns what was trained and the log.

    With a codec and dev texts (language -> texts) it is evaluated too; where the base has another codec, the model gets
    the vocabulary of the new one. chosen: the method's Config. keep: what to do with the trained model before it is
    merged. Checkpoints, where the config asks for them, are in its `out`.
    """
    from dragoman.methods import METHODS, base, sharding
    from dragoman.modeling import device_memory_mb, grow

    method, settings = METHODS[method_name], training_settings(config, rows)
    evaluator = Evaluator(texts, settings.bf16) if codec and texts else None
    measured = sharding.on_first(lambda: evaluator(model, base_codec or codec)) if evaluator and codec else None
    measure = functools.partial(evaluator, model, codec) if evaluator and codec else None
    total = sum(p.numel() for p in model.parameters())
    if codec and base_codec:
        grow(model, base_codec, codec)
    method.apply(model, chosen or method.Config(), plan)
    trained = base.trained(model, total)
    guard = _guard(config, settings, measure, measured) if measure and measured else None
    log, difference = _trained_log(model, rows, settings, config, guard, pad_id)
    if keep:
        keep(model)
    method.merge(model)
    model.requires_grad_(True)
    return {
        "parameters": trained.parameters,
        "trained_share": trained.share,
        "samples": rows.samples,
        "samples_too_long": rows.too_long,
        "tokens_by_source": rows.tokens,
        "log": asdict(log),
        "outcome": forgetting.outcome(asdict(log), config.target, trained.share),
        "dev_sha256": evaluator.checksums if evaluator else {},
        "training": asdict(settings),
        "device_memory_mb": device_memory_mb(model),
        "trunk_difference": difference,
    }


def _trained_log(
    model: PreTrainedModel, rows: Rows, settings: training.Config, config: Config, guard: Guard | None, pad_id: int
) -> tuple[training.Log, float | None]:
    """The log, and how far logits from the trunk cache were from full ones, where there is one."""
    from dragoman.methods import training

    kept = checkpoint_folder(config.out, config, config.resume)
    with trunk_around(model, rows, config, settings, pad_id) as difference, kept as folder:
        log = training.train(
            model,
            rows.tokens_NS,
            settings,
            layers=running_routers(model, config),
            labels_NS=rows.labels_NS,
            positions_NS=rows.positions_NS,
            guard=guard,
            pad_id=pad_id,
            folder=Path(folder),
            resume=next(iter(training.checkpoints(Path(folder))[::-1]), None),
            quiet=config.quiet,
        )
    return log, difference


def running_routers(model: PreTrainedModel, config: Config) -> tuple[MoELayer, ...]:
    """The MoE layers to measure: those of a cached trunk do not run."""
    from dragoman.modeling import find_routers, lowest_trained, moe_layers

    layers = moe_layers(model) if find_routers(model) else ()
    lowest = lowest_trained(model) if config.trunk_cache else 0
    return tuple(layer for layer in layers if layer.layer_id >= lowest)


def trunk_around(model: PreTrainedModel, rows: Rows, config: Config, settings: training.Config, pad_id: int) -> Any:
    """The trunk cache around a training, or nothing; gives the difference of cached from full logits, or None."""
    from dragoman.methods import rows as read
    from dragoman.methods import trunk

    if not config.trunk_cache:
        return nullcontext()
    text = read.Rows(rows.tokens_NS, rows.labels_NS, pad_id, len(rows.tokens_NS), rows.positions_NS)
    cache = trunk.Config(folder=config.trunk_cache, dtype=config.trunk_dtype)
    announce = functools.partial(print, file=sys.stderr)
    return trunk.cached_trunk(model, text, cache, batch=settings.micro_batch, bf16=settings.bf16, announce=announce)


def training_settings(config: Config, rows: Rows) -> training.Config:
    """The loop's settings for these rows: one pass, a tenth of it warm-up and half of it decay."""
    from dragoman.methods import training

    steps = math.ceil(len(rows.tokens_NS) / config.text.batch)
    return training.Config(
        learning_rate=config.learning_rate,
        steps=steps,
        batch=config.text.batch,
        micro_batch=config.micro_batch or config.text.batch,
        warmup=max(1, steps // 10),
        decay=steps // 2,
        weight_decay=0.0,
        precision=config.precision,
        balance=config.balance,
        gradient_checkpointing=config.gradient_checkpointing,
        expert_parallel=config.expert_parallel,
        seed=config.seed,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
        report_to=tuple(config.report_to),
    )


def evaluation_interval(config: Config, steps: int) -> int:
    """Updates between evaluations; 0 where only the end is evaluated."""
    asked = config.guard or config.evaluation.patience
    return config.evaluation.every or (max(1, steps // 10) if asked else 0)


def _guard(config: Config, settings: training.Config, measure: Any, measured: Measured) -> Guard:
    from dragoman.methods.guard import Guard

    return Guard(
        measure=measure,
        base=measured,
        target=config.target,
        limit=share_of(config.guard) if config.guard else None,
        action=config.guard_action,
        every=evaluation_interval(config, settings.steps),
        patience=config.evaluation.patience,
    )
