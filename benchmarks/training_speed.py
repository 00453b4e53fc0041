"""Training steps of mini-moe by precision, by how experts are gathered, by whether the loss is computed in chunks
(in float32 alone), and compiled: tokens a second, in one run.

    python benchmarks/training_speed.py --out benchmarks/training/speed-text.json

Arms take turns; the figure is the median over rounds of a few updates each (forward, router losses, backward, AdamW),
first updates, and with them compiling, left out. Text of the built-in corpus in seven languages: random tokens, as in
benchmarks/training/speed.json, nearly all go to the same few experts, whose products are large and fast.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from cyclopts import run
from transformers import TrainerCallback

from dragoman.corpora.pack import KNOWN, load_pack
from dragoman.errors import ConfigError
from dragoman.methods import training
from dragoman.methods.loop import Loop
from dragoman.modeling import moe_layers, open_model, open_tokenizer
from dragoman.record import environment, write_json

ARMS = {
    "bf16, grouped_mm of transformers": {"precision": "bf16", "sorted": False, "chunks": False},
    "fp32, grouped_mm of transformers": {"precision": "fp32", "sorted": False, "chunks": False},
    "fp32, sorted experts": {"precision": "fp32", "sorted": True, "chunks": False},
    "fp32, sorted experts, loss in chunks": {"precision": "fp32", "sorted": True, "chunks": True},
    "fp32, sorted experts, compiled": {"precision": "fp32", "sorted": True, "chunks": False, "compile": True},
    "fp32, sorted experts, loss in chunks, compiled": {
        "precision": "fp32",
        "sorted": True,
        "chunks": True,
        "compile": True,
    },
    "bf16, sorted experts": {"precision": "bf16", "sorted": True, "chunks": False},
    "bf16, sorted experts, compiled": {"precision": "bf16", "sorted": True, "chunks": False, "compile": True},
}
UPDATES, SKIPPED = 7, 2


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.times.append(time.perf_counter())


@contextlib.contextmanager
def _arm(clock: _Clock, ours: bool, chunks: bool) -> Iterator[None]:
    """The trainer with a clock, and without our experts and the loss in chunks where the arm has none."""
    made = Loop.__init__

    def with_clock(self: Loop, *args: object, **kwargs: object) -> None:
        made(self, *args, **kwargs)
        self.add_callback(clock)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Loop, "__init__", with_clock))
        if not chunks:
            stack.enter_context(mock.patch.object(training, "IN_CHUNKS", False))
        if not ours:
            stack.enter_context(mock.patch.object(training, "sorted_experts", return_value=contextlib.nullcontext()))
        yield


def text_rows(rows: int, width: int = 256) -> np.ndarray:
    """Translations one after the other, a language a segment in turn."""
    codec, texts = open_tokenizer("mini-moe"), [load_pack().texts(g, "train") for g in KNOWN]
    ids = [i for row in zip(*texts, strict=True) for segment in codec.encode(row) for i in segment]
    return np.resize(np.array(ids, np.int32), (rows, width))


def seconds_per_update(settings: dict, rows_NS: np.ndarray) -> float:
    """Median seconds of one update."""
    model, clock = open_model("mini-moe"), _Clock()
    chosen = {k: v for k, v in settings.items() if k not in ("sorted", "chunks")}
    config = training.Config(
        steps=UPDATES, warmup=1, decay=1, batch=12, micro_batch=12, balance=0.01, z_loss=0.001, **chosen
    )
    with tempfile.TemporaryDirectory() as folder, _arm(clock, settings["sorted"], settings["chunks"]):
        training.train(model, rows_NS, config, layers=moe_layers(model), folder=Path(folder))
    return float(np.median(np.diff(clock.times)[SKIPPED - 1 :]))


def speed(out: Path, rounds: int = 3) -> None:
    """Measure every arm in turn and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    rows_NS = text_rows(12 * UPDATES)
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, settings in ARMS.items():
            seconds[name].append(seconds_per_update(settings, rows_NS))
    medians = {name: float(np.median(s)) for name, s in seconds.items()}
    first = next(iter(medians.values()))
    found = {
        name: {
            "tokens_per_second": round(12 * 256 / s),
            "times_the_first": round(first / s, 2),
            "rounds": seconds[name],
        }
        for name, s in medians.items()
    }
    for name, row in found.items():
        print(f"{name}: {row['tokens_per_second']:,} tokens/s, {row['times_the_first']} times the first")
    write_json(out, environment() | {"command": "training_speed", "model": "mini-moe", "arms": found})


if __name__ == "__main__":
    run(speed)
