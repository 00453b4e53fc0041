"""Scoring the options of items: each read with its prompt, and going on from a prompt that is read once. One run.

    python benchmarks/option_speed.py --out benchmarks/evaluate/options.json

Items are those of `next` in English on dev, without examples and with three, on mini-moe in float32. Arms take turns;
the time of the second has that of trying whether it holds. The record says how far the bits are apart: rounding.
Prints last {shots: ...}: how many times as fast all items are scored.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
from cyclopts import run

from dragoman.commands import tasking
from dragoman.errors import ConfigError
from dragoman.evaluation import likelihood
from dragoman.evaluation.options import Options, option_bits
from dragoman.modeling import context_length, open_both
from dragoman.record import environment, write_json

SHOTS = (0, 3)
BATCH_TOKENS = 4096


def speed(out: Path, rounds: int = 5) -> None:
    """Measure and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    model, codec = open_both("mini-moe")
    found = {}
    for shots in SHOTS:
        items = tasking.open_task("next", (), corpus="help", split="dev", shots=shots).items["en"]
        starts = tasking.prompts_of(codec, items, False)
        rows = [Options(ids[1:], codec.encode(item.options)) for ids, item in zip(starts, items, strict=True)]
        settings = {"start_id": starts[0][0], "context": context_length(model), "batch_tokens": BATCH_TOKENS}
        seconds: dict[str, list[float]] = {"each": [], "once": []}
        bits: dict[str, np.ndarray] = {}
        for _ in range(rounds):
            for name, taken in seconds.items():
                each = mock.patch.object(likelihood, "_reads_on", return_value=False)
                started = time.monotonic()
                with each if name == "each" else nullcontext():
                    bits[name] = np.concatenate(option_bits(model, rows, **settings))
                taken.append(time.monotonic() - started)
        medians = {name: float(np.median(taken)) for name, taken in seconds.items()}
        found[shots] = {
            "items": len(items),
            "prompt_tokens": sum(len(row.prompt) for row in rows),
            "option_tokens": sum(len(option) for row in rows for option in row.options),
            "seconds": seconds,
            "times_as_fast": round(medians["each"] / medians["once"], 2),
            "bits_apart": float(np.abs(bits["each"] - bits["once"]).max()),
        }
        took = ", ".join(f"{name} {second:.2f} s" for name, second in medians.items())
        print(f"{shots} shots: {took}; bits at most {found[shots]['bits_apart']:.1g} apart")
    write_json(out, environment() | {"command": "option_speed", "model": "mini-moe", "shots": found})
    print(json.dumps({shots: arm["times_as_fast"] for shots, arm in found.items()}))


if __name__ == "__main__":
    run(speed)
