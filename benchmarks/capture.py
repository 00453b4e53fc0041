"""What capture costs above the plain forward pass, in time and in memory.

    python benchmarks/capture.py --quick                     # two minutes; the last line is one JSON object
    python benchmarks/capture.py --out benchmarks/capture    # six minutes; record and plot, with
                                                             # `output_router_logits=True` beside

Time: all arms of a round run one after the other in one process, in turning order; a ratio is the median over rounds of
the ratio within a round. The forward pass gets its batches ready-made, capture makes its own. Memory: every arm in a
process of its own that has run some text before; peak of the resident size above that, less that of the forward pass.
Ratios of time are measured with 9 rounds; the sweep over tokens, for the plot, two rounds and two processes a point.
No arm runs the language-model head, all are under `torch.no_grad` and see the same batches.

Shape letters: B sequences, S positions, T tokens, L MoE layers, E experts, K chosen per token.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from cyclopts import run
from matplotlib import pyplot as plt

from dragoman.errors import ConfigError
from dragoman.modeling import hidden_states, moe_layers, new_model, open_model
from dragoman.record import atomic_write, environment, machine, peak_memory_mb, write_json
from dragoman.routing.capture import capture
from dragoman.routing.segments import Batch, Segments

BATCH_TOKENS = 4096
UNIT = BATCH_TOKENS
"""Tokens of "1x"."""
START_ID = 1
MODELS = ("mini-moe", "64x8")
SHAPE_64X8 = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 1024,
    "eos_token_id": 2,
}
"""OLMoE's 64 experts of which each token gets 8, in small."""


def open_named(name: str) -> Any:
    """One of MODELS."""
    return open_model(name) if name == "mini-moe" else new_model("olmoe", SHAPE_64X8, seed=0).eval()


def random_text(tokens: int) -> list[list[int]]:
    """Segments of 8 to 120 ids; more tokens are more of the same segments."""
    random = np.random.default_rng(0)
    once: list[list[int]] = []
    while sum(map(len, once)) < UNIT:
        once.append(random.integers(3, 1000, random.integers(8, 121)).tolist())
    return [list(s) for _ in range(tokens // UNIT) for s in once]


# Arms


def forward(model: Any, batches: Iterable[Batch]) -> None:
    """The plain forward pass."""
    with torch.no_grad():
        for batch in batches:
            hidden_states(model, batch.ids_BS, batch.mask_BS)


def router_logits(model: Any, batches: Iterable[Batch], keep: bool) -> np.ndarray:
    """Counts [L, E] the way scripts make them: recorded logits, top-k again in NumPy, batch by batch or at the end."""
    layer = moe_layers(model)[0]
    kept: list[list[np.ndarray]] = []
    count_LE = np.zeros((model.config.num_hidden_layers, layer.num_experts), np.int64)
    with torch.no_grad():
        for batch in batches:
            found = model.base_model(
                input_ids=batch.ids_BS, attention_mask=batch.mask_BS, use_cache=False, output_router_logits=True
            ).router_logits
            kept.append([x_TE[batch.places_C].float().numpy() for x_TE in found])
            if not keep:
                count_LE += recounted(kept, layer.top_k)
                kept.clear()
    return recounted(kept, layer.top_k) if keep else count_LE


def recounted(kept: list[list[np.ndarray]], top_k: int) -> np.ndarray:
    """Top-k of logits, counted, [L, E]."""
    whole = [np.concatenate(parts) for parts in zip(*kept, strict=True)]
    chosen = [np.argsort(-x_TE, axis=-1)[:, :top_k] for x_TE in whole]
    return np.stack([np.bincount(c.ravel(), minlength=x.shape[-1]) for c, x in zip(chosen, whole, strict=True)])


def captured(model: Any, text: list[list[int]], per_segment: bool | Path) -> None:
    capture(model, {"en": text}, start_id=START_ID, batch_tokens=BATCH_TOKENS, per_segment=per_segment)


def arms(model: Any, text: list[list[int]], batches: Iterable[Batch] | None, folder: Path) -> dict[str, Callable]:
    """Name -> what to run. Without batches, they are made while it runs."""

    def made() -> Iterable[Batch]:
        return Segments(text, (START_ID,)).batches(model.config.max_position_embeddings, BATCH_TOKENS)

    return {
        "forward": lambda: forward(model, batches or made()),
        "capture": lambda: captured(model, text, False),
        "capture, segments on disk": lambda: captured(model, text, Path(tempfile.mkdtemp(dir=folder))),
        "router_logits, counted by batch": lambda: router_logits(model, batches or made(), keep=False),
        "router_logits, counted at the end": lambda: router_logits(model, batches or made(), keep=True),
    }


# Measuring


def timed(name: str, tokens: int, names: list[str], rounds: int) -> dict[str, Any]:
    """Seconds of every arm by round, after each has run some text, and ratios to the forward pass."""
    model, text = open_named(name), random_text(tokens)
    batches = list(Segments(text, (START_ID,)).batches(model.config.max_position_embeddings, BATCH_TOKENS))
    seconds: dict[str, list[float]] = {n: [] for n in names}
    cpu: dict[str, list[float]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as folder:
        before = arms(model, random_text(UNIT)[:40], None, Path(folder))
        for n in names:
            before[n]()
        ways = arms(model, text, batches, Path(folder))
        for i in range(rounds):
            for n in names[i % len(names) :] + names[: i % len(names)]:
                start, start_cpu = time.perf_counter(), time.process_time()
                ways[n]()
                seconds[n].append(time.perf_counter() - start)
                cpu[n].append(time.process_time() - start_cpu)
    return {
        "tokens": sum(map(len, text)),
        "rounds": rounds,
        "seconds": {n: median(s) for n, s in seconds.items()},
        "over_forward": {n: ratio(s, seconds["forward"]) for n, s in seconds.items() if n != "forward"},
        "cpu_over_forward": {n: ratio(s, cpu["forward"]) for n, s in cpu.items() if n != "forward"},
    }


def ratio(ours: list[float], plain: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratio within rounds."""
    low, middle, high = quantiles([a / b for a, b in zip(ours, plain, strict=True)], n=4, method="inclusive")
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def peak_of(name: str, arm: str, tokens: int) -> float:
    """Runs in a process of its own: peak resident MB while the arm runs, above what a batch had left."""
    model, text = open_named(name), random_text(tokens)
    give_freed_memory_back()
    with tempfile.TemporaryDirectory() as folder:
        for arm_before in ("forward", arm):  # what stays for good, as caches and imports, is no peak
            arms(model, random_text(UNIT)[:40], None, Path(folder))[arm_before]()
        gc.collect()
        before = start_peak()
        arms(model, text, None, Path(folder))[arm]()
        return peak_memory("VmHWM") - before


def give_freed_memory_back() -> None:
    """Let glibc map every larger block on its own, so that resident memory is what is in use, not what once was."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for setting, value in ((-3, 1 << 16), (-4, 1 << 20), (-1, 1 << 17)):  # M_MMAP_THRESHOLD, _MAX, M_TRIM
                mallopt(setting, value)


def start_peak() -> float:
    """Forget the peak so far, where the system can (Linux); resident MB now, or else the peak so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_memory_mb()
    return peak_memory("VmRSS")


def peak_memory(field: str) -> float:
    """MB of a field of /proc/self/status; the peak since the start where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return peak_memory_mb()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith(f"{field}:"))


def extra_memory(name: str, names: list[str], sizes: list[int], repeats: int) -> dict[str, dict[int, float]]:
    """Peak MB above that of the forward pass over as many tokens, by arm and tokens; medians over processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "dragoman.routing.capture"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        tasks = [(n, t) for _ in range(repeats) for t in sizes for n in ("forward", *names)]
        peaks = list(pool.map(peak_of, [name] * len(tasks), *zip(*tasks, strict=True)))
    by_task = {task: median(p for t, p in zip(tasks, peaks, strict=True) if t == task) for task in tasks}
    return {n: {t: round(by_task[n, t] - by_task["forward", t], 2) for t in sizes} for n in names}


# Reporting


def plot(path: Path, sweep: list[dict[str, Any]], memory: dict[str, dict[int, float]]) -> None:
    """Seconds and extra memory against tokens."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for n in sweep[0]["seconds"]:
        left.plot([s["tokens"] for s in sweep], [s["seconds"][n] for s in sweep], marker="o", label=n)
        color = left.lines[-1].get_color()
        if n in memory:
            right.plot(list(memory[n]), list(memory[n].values()), marker="o", color=color)
    left.set(xlabel="tokens", ylabel="seconds", ylim=(0, None))
    right.set(xlabel="tokens", ylabel="peak MB above the forward pass")
    left.legend(frameon=False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def record(times: dict[str, Any], memory: dict[str, dict[int, float]], out: Path, rounds: int) -> None:
    """The sweep over tokens with every arm; written with the rest as record.json, and as overhead.png."""
    names, sizes = list(arms(None, [], None, Path())), [UNIT * n for n in (1, 2, 4, 8)]
    sweep = [timed("64x8", t, names, rounds) for t in sizes]
    against = extra_memory("64x8", names[1:], sizes, rounds)
    found = {"time": times, "memory": memory, "sweep_64x8": sweep, "memory_64x8": against, "shape_64x8": SHAPE_64X8}
    settings = {"threads": torch.get_num_threads(), "batch_tokens": BATCH_TOKENS, "rounds_of_the_sweep": rounds}
    write_json(out / "record.json", environment() | {"command": "benchmarks/capture.py"} | settings | found)
    plot(out / "overhead.png", sweep, against)
    print(f"{out}: extra memory by arm and tokens {json.dumps(against)}", flush=True)


def main(*, quick: bool = False, out: Path | None = None, rounds: int = 9, sweep_rounds: int = 2) -> None:
    """Measure; with `--out` the full record and a plot go to that folder, under a name that is still free.

    quick: five rounds, no `output_router_logits`, nothing written.
    rounds: of the ratios of time; sweep_rounds: of every point of the sweep over tokens, two or more.
    """
    started = time.perf_counter()
    if out and (quick or any((out / name).exists() for name in ("record.json", "overhead.png"))):
        raise ConfigError(f"records are added, not changed, and --quick writes none: choose another --out than {out}")
    print(f"{machine()}, {torch.get_num_threads()} threads", flush=True)
    times = {m: timed(m, 4 * UNIT, ["forward", "capture"], 5 if quick else rounds) for m in MODELS}
    print(json.dumps(times, indent=1), flush=True)
    memory = extra_memory(MODELS[0], ["capture"], [UNIT, 8 * UNIT], 3)["capture"]
    print(f"peak MB of {MODELS[0]} above the forward pass, by tokens: {memory}", flush=True)
    if out:
        record(times, {MODELS[0]: memory}, out, sweep_rounds)
    print(f"{time.perf_counter() - started:.0f} s in all", flush=True)
    (one, eight) = memory.values()
    ratios = {m: t["over_forward"]["capture"]["median"] for m, t in times.items()}
    summary = {"capture_over_forward": ratios["mini-moe"], "capture_over_forward_64x8": ratios["64x8"]}
    print(json.dumps(summary | {"extra_memory_mb_1x": one, "extra_memory_mb_8x": eight}))


if __name__ == "__main__":
    run(main)
