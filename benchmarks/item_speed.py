"""Updates on items of unlike length whose answers alone have labels: whole rows, rows cut to need. Times in one run.

    python benchmarks/item_speed.py --out benchmarks/training/items.json

Items are those of `next` in Catalan, with the end of an item's row filled up to the longest. Arms take turns, in both
precisions, from the same weights; the record says how far their losses are apart, which is rounding.
Prints last {"fp32": ..., "bf16": ...}: how many times as fast an update is.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from cyclopts import run

from dragoman.commands import tasking
from dragoman.errors import ConfigError
from dragoman.methods import training
from dragoman.modeling import open_both
from dragoman.record import environment, write_json

BATCH, UPDATES, SKIPPED = 16, 12, 2


def items_as_rows() -> tuple[np.ndarray, np.ndarray, int | None]:
    """Tokens and labels, [N, S] each, and the token that fills rows up."""
    _, codec = open_both("mini-moe")
    text = {"corpus": "help", "split": "train", "number": None}
    items = tasking.open_task("next", ("ca",), **text, into=None, shots=0, chat=False)
    samples = tasking.samples_of(codec, items, "ca")
    chosen = [samples[n] for n in np.random.default_rng(0).permutation(len(samples))[: BATCH * UPDATES]]
    width = max(len(ids) for ids, _ in samples)
    tokens = [ids + [codec.pad_id] * (width - len(ids)) for ids, _ in chosen]
    labels = [[-100] * n + ids[n:] + [-100] * (width - len(ids)) for ids, n in chosen]
    return np.array(tokens, dtype=np.int32), np.array(labels), codec.pad_id


def updates(rows: tuple[np.ndarray, np.ndarray, int | None], precision: str, whole: bool) -> tuple[float, list[float]]:
    """Median seconds of an update, and the losses; everything trains."""
    model, _ = open_both("mini-moe")
    shape = {"steps": UPDATES, "batch": BATCH, "micro_batch": BATCH, "warmup": 1, "decay": 0}
    config = training.Config(**shape, precision=precision, learning_rate=3e-4)
    tokens_NS, labels_NS, pad_id = rows
    collator = training._collator
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(training, "_collator", lambda *given: None if whole else collator(*given)),
    ):
        log = training.train(model, tokens_NS, config, labels_NS=labels_NS, pad_id=pad_id, folder=Path(folder))
    return float(np.median(log.step_seconds[SKIPPED:])), log.losses


def speed(out: Path, rounds: int = 3) -> None:
    """Measure and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    rows, found = items_as_rows(), {}
    for precision in ("fp32", "bf16"):
        seconds: dict[str, list[float]] = {"whole": [], "cut": []}
        losses: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, taken in seconds.items():
                second, losses[name] = updates(rows, precision, whole=name == "whole")
                taken.append(second)
        medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
        apart = float(np.abs(np.subtract(losses["whole"], losses["cut"])).max())
        found[precision] = {
            "seconds": seconds,
            "times_as_fast": round(medians["whole"] / medians["cut"], 2),
            "losses_apart": apart,
        }
        took = ", ".join(f"{name} {second:.3f} s" for name, second in medians.items())
        print(f"{precision}: {took}; losses at most {apart:.1g} apart")
    items = {"rows": list(rows[0].shape), "tokens": int((rows[0] != rows[2]).sum())}
    items["labels"] = int((rows[1] >= 0).sum())
    write_json(out, environment() | {"command": "item_speed", "model": "mini-moe", "items": items, "arms": found})
    print(json.dumps({precision: arm["times_as_fast"] for precision, arm in found.items()}))


if __name__ == "__main__":
    run(speed)
