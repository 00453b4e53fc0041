"""What Mix-MoE costs beside the dense model it was made of: forward, stage 2 and its memory, features of the router.

    python benchmarks/mix_moe.py --quick                        # minutes; the last line is one JSON object
    python benchmarks/mix_moe.py --out benchmarks/mix-moe.json  # more rounds, and a record

The model is of the shape of mini-dense with random weights (speed does not depend on them, routing is that of a router
drawn at random). All arms of a round run one after the other in one process, in turning order; a ratio is the median
over rounds of the ratio within a round. All layers are converted, two slots of half the width a token, so multiply-adds
are those of the dense feed-forward plus the router. Memory is of a process of its own for each arm: its peak above what
it had before training.

What the multiply-adds of a step allow, per token, with N for all maps of the model (attention, feed-forward, head):
full fine-tuning has 3 N: forward, gradients of activations, gradients of weights. Stage 2 has 2 N, the router's share
of both, and gradients of weights for translation experts (by the share of slots that they got) and routers.

Shape letters: B sequences, S positions, D model width, F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cyclopts import run
from torch import nn

from dragoman.errors import ConfigError
from dragoman.methods import full, mix_moe
from dragoman.modeling import (
    hidden_states,
    keep_freed_memory,
    logit_difference,
    moe_layers,
    new_model,
    tap_routers,
)
from dragoman.modeling.experts import sorted_experts
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import set_settings
from dragoman.record import environment, write_json

SHAPE: dict[str, Any] = {
    "vocab_size": 12288,
    "hidden_size": 160,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
BATCH, POSITIONS = 16, 256
"""4,096 tokens."""
TRAIN_BATCH = 4
FEATURES = (
    ("fft", "mag"),
    ("fft", "mag+phase"),
    ("fft", "real+imag"),
    ("dct", "mag"),
    ("random", "mag"),
    ("none", "mag"),
)


def dense() -> Any:
    """The model before conversion; its weights are large enough that its feed-forwards show in the logits."""
    model = new_model("llama", SHAPE, seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    for layer in model.model.layers:
        for p in layer.mlp.parameters():
            p.data.normal_(std=0.1, generator=generator)
    return model


def mixed(transform: str = "fft", parts: str = "mag") -> Any:
    """Converted, all experts admitted, routers at random, as after stage 1."""
    made = to_mix_moe(dense(), Conversion(transform=transform, parts=parts))
    generator = torch.Generator().manual_seed(1)
    for layer in moe_layers(made):
        layer.router.weight.data.normal_(std=0.2, generator=generator)
    set_settings(made, masked=False, stage=1)
    return made


def ids(batch: int) -> torch.Tensor:
    """Random tokens, [B, S]."""
    return torch.randint(3, SHAPE["vocab_size"], (batch, POSITIONS), generator=torch.Generator().manual_seed(0))


def turns(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round, after one round that does not count."""
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds + 1):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            started = time.perf_counter()
            arms[name]()
            if r:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], a: str, b: str) -> float:
    """Median over rounds of a over b."""
    return median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))


def forward(rounds: int) -> dict[str, float]:
    """Forward over dense: whole model, without its head, and by feature of the router."""
    models = {"dense": dense()} | {f"{t} {p}": mixed(t, p) for t, p in FEATURES}
    tokens = ids(BATCH)
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        bodies = turns({n: lambda m=m: hidden_states(m, tokens, mask) for n, m in models.items()}, rounds)
        pair = {n: models[n] for n in ("dense", "fft mag")}
        whole = turns({n: lambda m=m: m(tokens, use_cache=False) for n, m in pair.items()}, rounds)
    found = {f"body, {name}": ratio(bodies, name, "dense") for name in models if name != "dense"}
    return {"whole model, fft mag": ratio(whole, "fft mag", "dense")} | found


def stepper(arm: str) -> tuple[Any, Callable[[], None]]:
    """A model prepared for an arm, and one update of it."""
    model = dense() if arm == "full" else mixed()
    full.apply(model, full.Config()) if arm == "full" else mix_moe.apply(model, mix_moe.Config(stage=2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    tokens = ids(TRAIN_BATCH)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with sorted_experts(model):
            logits_BSV = model(tokens, use_cache=False).logits
        nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return model, step


def allowed(model: Any) -> float:
    """Multiply-adds of a full step over those of stage 2, with the slots that translation experts get now."""
    width, inner, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    attention, ffn = 4 * width**2 + 2 * POSITIONS * width, 3 * width * inner
    head = width * SHAPE["vocab_size"]
    router = moe_layers(model)[0].router.weight.numel()
    with torch.no_grad(), tap_routers(model, moe_layers(model)) as seen:
        model(ids(TRAIN_BATCH))
    slots = sum(float((r.indices_TK >= 2).float().mean()) for r in seen) / len(seen)
    whole = layers * (attention + ffn) + head
    return 3 * whole / (2 * (whole + layers * router) + layers * (slots * ffn + router))


def peak(arm: str) -> float:
    """Megabytes that training an arm adds at its peak, in a process of its own."""
    _, step = stepper(arm)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading; Linux
    before = resident("VmRSS")
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Megabytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def training(rounds: int) -> dict[str, float]:
    """Speed and memory of a step of stage 2 against full fine-tuning, and what arithmetic allows."""
    model, stage2 = stepper("stage 2")
    bound = allowed(model)
    seconds = turns({"full": stepper("full")[1], "stage 2": stage2}, rounds)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = {arm: pool.submit(peak, arm).result() for arm in ("full", "stage 2")}
    return {
        "stage2_speedup": ratio(seconds, "full", "stage 2"),
        "stage2_allowed": bound,
        "memory_full_mb": memory["full"],
        "memory_stage2_mb": memory["stage 2"],
    }


def bench(*, quick: bool = False, out: Path | None = None) -> None:
    """Measure, print, and with `out` write a record."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    keep_freed_memory()  # as every command does when it opens a model
    rounds = 5 if quick else 20
    original = dense()
    difference, largest = logit_difference(original, to_mix_moe(original, Conversion()))
    forwards, steps = forward(rounds), training(rounds)
    for name, value in forwards.items():
        print(f"forward over dense, {name}: {value:.3f}")
    print(f"peak of training: full {steps['memory_full_mb']:.0f} MB, stage 2 {steps['memory_stage2_mb']:.0f} MB")
    print(f"logits of up to {largest:.2f} differ by {difference:.1e} at conversion")
    if out is not None:
        measured = {"forward_over_dense": forwards, "training": steps, "logit_difference": difference}
        about = {"command": "mix_moe", "shape": SHAPE, "rounds": rounds, "largest_logit": largest}
        write_json(out, environment() | about | measured)
    last = {"forward_over_dense": forwards["whole model, fft mag"]}
    last |= {name: steps[name] for name in ("stage2_speedup", "stage2_allowed")}
    print(json.dumps({k: round(v, 3) for k, v in last.items()} | {"max_logit_difference_at_conversion": difference}))


if __name__ == "__main__":
    run(bench)
