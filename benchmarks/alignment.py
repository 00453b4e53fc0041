"""What alignment and steering cost, in one run: a step of RA-MoE over one of SFT, decoding steered over plain.

    python benchmarks/alignment.py --quick
    python benchmarks/alignment.py --out benchmarks/alignment/speed.json
    python benchmarks/alignment.py --shape olmoe-1b-7b --precision bf16        # on a GPU, random weights
    python benchmarks/alignment.py --shape olmoe-narrow --precision bf16       # its layers and experts, on a CPU

Every item is aligned (`items` all), the dearest case, in the middle half of the layers with an eighth of the
experts; the English reference is there beforehand. Arms take turns; figures are medians over rounds, first updates
left out. `operators` are those that an update runs in its forward, losses and backward, `waits` those of them that the
CPU waits for: what a GPU is slowed by that is busy with starting small ones.
Prints last {"ra_moe_over_sft": ..., "steer_over_plain": ...}.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from cyclopts import run
from torch.utils._python_dispatch import TorchDispatchMode
from training_speed import _arm, _Clock
from transformers import PreTrainedModel, Trainer

from dragoman.errors import ConfigError
from dragoman.methods import METHODS, training
from dragoman.methods.alignment import Pairs
from dragoman.methods.steer import steered, steering
from dragoman.modeling import default_device, moe_layers, new_model, open_model
from dragoman.record import environment, write_json
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.translation.engines import Stops, translate_greedy

SHAPES: dict[str, dict[str, Any]] = {
    "olmoe-1b-7b": {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    }
}
NARROW = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 32, "eos_token_id": 1}
SHAPES["olmoe-narrow"] = SHAPES["olmoe-1b-7b"] | NARROW
ROWS, WIDTH, SKIPPED = 12, 256, 2
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
NEW_TOKENS = 32


def opened(shape: str, precision: str) -> PreTrainedModel:
    """mini-moe, or random weights of a shape, which are kept in bfloat16 where they are computed in it."""
    if shape == "mini-moe":
        return open_model(shape)
    with torch.device(default_device()):
        model = new_model("olmoe", SHAPES[shape], seed=0).eval()
    return model.to(torch.bfloat16) if precision == "bf16" else model


def plan_of(model: PreTrainedModel) -> ExpertPlan:
    """An eighth of the experts in the middle half of the layers."""
    layers = moe_layers(model)
    middle = layers[len(layers) // 4 : 3 * len(layers) // 4]
    planned = {x.layer_id: tuple(PlannedExpert(e, "shared", 0.1) for e in range(x.num_experts // 8)) for x in middle}
    return ExpertPlan("benchmark", planned, {x.layer_id: x.num_experts for x in layers})


Arm = tuple[str, Any, ExpertPlan | None, Any]
"""Name of a method, its settings, plan and loss."""


def arms(model: PreTrainedModel, rows_NS: np.ndarray) -> tuple[Arm, Arm]:
    """SFT and RA-MoE, the English reference computed; rows_NS: random tokens in both languages, [2, N, S]."""
    target, english = ([(row, WIDTH // 2) for row in side.tolist()] for side in rows_NS)
    plan, config = plan_of(model), METHODS["ra_moe"].Config(items="all")
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(target, english, 0, WIDTH)
        loss = METHODS["ra_moe"].extra_loss(model, config, plan, pairs, Path(folder))
    return ("sft", METHODS["sft"].Config(), None, None), ("ra_moe", config, plan, loss)


def seconds_per_update(model: PreTrainedModel, arm: Arm, rows_NS: np.ndarray, precision: str) -> float:
    """Median seconds of one update on rows_NS, [N, S], whose second halves are answers; the routers train."""
    name, config, plan, loss = arm
    labels_NS = rows_NS.astype(np.int64)
    labels_NS[:, : WIDTH // 2] = -100
    METHODS[name].apply(model, config, plan)
    clock = _Clock()
    shape = {"steps": len(rows_NS) // ROWS, "warmup": 1, "decay": 1, "batch": ROWS, "micro_batch": ROWS}
    with tempfile.TemporaryDirectory() as scratch, _arm(clock, ours=True):
        training.train(
            model, rows_NS, training.Config(**shape, precision=precision, learning_rate=0.0), labels_NS=labels_NS,
            layers=loss.layers if loss else (), extra_loss=loss, folder=Path(scratch),
        )  # fmt: skip
    METHODS[name].merge(model)
    return float(np.median(np.diff(clock.times)[SKIPPED - 1 :]))


class _Operators(TorchDispatchMode):
    """Counts what runs; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found["waits" if func in WAITS else "views" if func.is_view else "operators"] += 1
        return func(*args, **(kwargs or {}))


def operators(model: PreTrainedModel, arm: Arm, rows_NS: np.ndarray, precision: str) -> dict[str, int]:
    """Operators and waits of an update's forward, losses and backward, the last of three."""
    step, counts = Trainer.training_step, []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        with _Operators() as mode:
            loss = step(*args, **kwargs)
        counts.append(mode.found)
        return loss

    with mock.patch.object(Trainer, "training_step", counted):
        seconds_per_update(model, arm, rows_NS[: 3 * ROWS], precision)
    return {name: counts[-1][name] for name in ("operators", "waits")}


def seconds_to_decode(model: PreTrainedModel, strength: float) -> float:
    """Seconds to decode NEW_TOKENS tokens for a batch of prompts, steered with some strength or (0) plain."""
    prompts = np.random.default_rng(1).integers(100, model.config.vocab_size, (32, 24)).tolist()
    with steered(model, steering(plan_of(model), "soft", strength)):
        started = time.perf_counter()
        translate_greedy(model, prompts, stops=Stops(frozenset()), pad_id=0, max_new=lambda n: NEW_TOKENS)
        return time.perf_counter() - started


def alignment(
    *, quick: bool = False, shape: str = "mini-moe", precision: str = "fp32", out: Path | None = None, rounds: int = 5
) -> None:
    """Measure both ratios. quick: fewer updates and rounds."""
    if out and out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    updates, rounds = (5, 3) if quick else (9, rounds)
    model = opened(shape, precision)
    times: dict[str, list[float]] = {name: [] for name in ("sft", "ra_moe", "plain", "steered")}
    shape_of = (2, ROWS * updates, WIDTH)
    rows_NS = np.random.default_rng(0).integers(100, model.config.vocab_size, shape_of).astype(np.int32)
    both = arms(model, rows_NS)
    for strength in (0.0, 0.5):  # the first ones choose kernels
        seconds_to_decode(model, strength)
    for _ in range(rounds):
        for arm in both:
            times[arm[0]].append(seconds_per_update(model, arm, rows_NS[0], precision))
        for name, strength in {"plain": 0.0, "steered": 0.5}.items():
            times[name].append(seconds_to_decode(model, strength))
    counts = {arm[0]: operators(model, arm, rows_NS[0], precision) for arm in both}
    print(f"an update runs {counts['sft']} by sft, {counts['ra_moe']} by ra_moe")
    median = {name: float(np.median(seconds)) for name, seconds in times.items()}
    for name, seconds in median.items():
        print(f"{name}: {seconds:.3f} s ({'an update' if name in ('sft', 'ra_moe') else 'to decode'})")
    ratios = {
        "ra_moe_over_sft": round(median["ra_moe"] / median["sft"], 3),
        "steer_over_plain": round(median["steered"] / median["plain"], 3),
    }
    if out:
        about = {"command": "alignment", "model": shape, "precision": precision, "device": default_device()}
        write_json(out, environment() | about | {"seconds": times, "update": counts, **ratios})
    print(json.dumps(ratios))


if __name__ == "__main__":
    run(alignment)
