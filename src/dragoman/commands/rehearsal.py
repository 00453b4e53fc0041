"""The dry run of `dragoman adapt`: what would train, tensor by tensor, and what time and memory that would take.

A few updates are made with a learning rate of zero, in the way that the real run would make them, and their time is
extrapolated: no formula knows a machine. Nothing is written.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands.forgetting import Evaluator
from dragoman.commands.training_text import Rows
from dragoman.record import environment
from dragoman.routing.plan import ExpertPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.commands.adapt import Config
    from dragoman.methods import training
    from dragoman.modeling import TextCodec

UPDATES = 6
"""Updates that are timed; the first one, which allocates, counts once."""


def rehearse(
    model: PreTrainedModel,
    base_codec: TextCodec,
    codec: TextCodec,
    plan: ExpertPlan | None,
    rows: Rows,
    config: Config,
    texts: dict[str, list[str]],
    chosen: Any,
) -> dict[str, Any]:
    """What `run` would do with the same arguments, and what it would take."""
    from dragoman.commands.arms import evaluation_interval, training_settings
    from dragoman.methods import METHODS, base
    from dragoman.modeling import device_memory_mb, grow

    settings = training_settings(config, rows)
    method, total = METHODS[config.method], sum(p.numel() for p in model.parameters())
    evaluating = 0.0
    if texts:
        began = time.monotonic()
        Evaluator(texts, settings.bf16)(model, base_codec)
        evaluating = time.monotonic() - began
    grow(model, base_codec, codec)
    method.apply(model, chosen, plan)
    trained = base.trained(model, total)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    log, cache = _few_updates(model, rows, settings, config, codec.pad_id)
    every = evaluation_interval(config, settings.steps)
    evaluations = (math.ceil(settings.steps / every) if every else 1) if texts else 0
    first, *others = log.step_seconds
    step = statistics.median(others or [first])
    start = log.seconds - sum(log.step_seconds) + (cache["seconds"] if cache else 0)
    return environment() | {
        "command": "adapt",
        "dry_run": True,
        "config": asdict(config),
        "tensors": [{"name": n, "shape": list(p.shape), "dtype": str(p.dtype).split(".")[1]} for n, p in own.items()],
        "parameters": trained.parameters,
        "trained_share": trained.share,
        "steps": settings.steps,
        "tokens": int(rows.tokens_NS.size),
        "samples": rows.samples,
        "samples_too_long": rows.too_long,
        "tokens_by_source": rows.tokens,
        "step_seconds": step,
        "trunk_cache": cache,
        "evaluations": evaluations,
        "evaluation_seconds": evaluating,
        "seconds": start + first + step * (settings.steps - 1) + evaluating * evaluations,
        "device_memory_mb": device_memory_mb(model),
    }


def _few_updates(
    model: PreTrainedModel, rows: Rows, settings: training.Config, config: Config, pad_id: int
) -> tuple[training.Log, dict[str, float] | None]:
    """The log, and what a trunk cache of all rows takes, where there is to be one: {"seconds", "mib"} of writing it.

    The rehearsal's cache holds the rows that it reads, in a folder that goes.
    """
    from dragoman.commands.arms import running_routers, trunk_around
    from dragoman.methods import training

    different = len(np.unique(rows.tokens_NS, axis=0))
    rows = _first(rows, UPDATES * settings.batch)
    few = replace(
        settings,
        steps=min(UPDATES, settings.steps),
        warmup=0,
        decay=0,
        learning_rate=0.0,
        checkpoint_minutes=0.0,
        checkpoint_steps=0,
        report_to=(),
    )
    with tempfile.TemporaryDirectory() as scratch:
        trunk = Path(scratch) / "trunk"
        began = time.monotonic()
        with trunk_around(model, rows, replace(config, trunk_cache=config.trunk_cache and trunk), settings, pad_id):
            part = different / len(np.unique(rows.tokens_NS, axis=0))
            writing = {"seconds": part * (time.monotonic() - began), "mib": part * _size(trunk) / 2**20}
            log = training.train(
                model,
                rows.tokens_NS,
                few,
                layers=running_routers(model, config),
                labels_NS=rows.labels_NS,
                positions_NS=rows.positions_NS,
                pad_id=pad_id,
                folder=Path(scratch) / "run",
            )
    return log, writing if config.trunk_cache else None


def _first(rows: Rows, number: int) -> Rows:
    places_NS = None if rows.positions_NS is None else rows.positions_NS[:number]
    return replace(
        rows, tokens_NS=rows.tokens_NS[:number], labels_NS=rows.labels_NS[:number], positions_NS=places_NS
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


def text(record: dict[str, Any]) -> str:
    """The rehearsal for people."""
    lines = [
        f"would train {record['parameters']:,} parameters ({100 * record['trained_share']:.2f} %) in "
        f"{len(record['tensors'])} tensors:"
    ]
    width = max(len(t["name"]) for t in record["tensors"])
    lines += [f"  {t['name']:{width}}  {' x '.join(map(str, t['shape']))}  {t['dtype']}" for t in record["tensors"]]
    taken = ", ".join(f"{name}: {n:,}" for name, n in record["tokens_by_source"].items())
    lines.append(
        f"on {record['tokens']:,} tokens ({taken}; {record['samples_too_long']} samples are too long), "
        f"{record['steps']} steps of {record['step_seconds']:.2f} s"
    )
    if cache := record["trunk_cache"]:
        lines.append(f"trunk cache: {cache['mib']:,.1f} MiB on disk, {cache['seconds']:.0f} s to write")
    lines.append(
        f"expected: {record['seconds']:.0f} s of training with {record['evaluations']} evaluations of "
        f"{record['evaluation_seconds']:.1f} s, and {_memory(record)}"
    )
    return "\n".join(lines)


def _memory(record: dict[str, Any]) -> str:
    if record["device_memory_mb"]:
        return f"{record['device_memory_mb']:,.0f} MB of the GPU, {record['peak_memory_mb']:,.0f} MB beside it"
    return f"{record['peak_memory_mb']:,.0f} MB"
