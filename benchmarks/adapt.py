"""Speed and memory of adapting: planned experts of the last two layers, the trunk cache, PEFT's LoRA, full fine-tuning.

    python benchmarks/adapt.py --quick
    python benchmarks/adapt.py --out benchmarks/adapt/speed.json
    python benchmarks/adapt.py gpu --out benchmarks/adapt/speed-gpu.json     # OLMoE-1B-7B's shape, bf16, on a GPU

The model is OLMoE's shape (16 layers, 64 experts, top-8) at a part of its width, with random weights; the full mode
adds the built-in mini-moe. Arms take turns within a round, and times are medians over rounds of one forward and
backward pass of the same rows. The update is left out, because the allowed speed-up counts multiply-adds of passes
alone (with it, full fine-tuning would be slower still):

    allowed = (forward + backward of full fine-tuning) / (forward + backward of the arm)

where attention and head count, and of weight gradients those of planned rows alone. Tokens are drawn at random. Memory
is the peak resident size of a process of its own after two updates of AdamW, above what it had after its imports;
weights are in it. On a GPU one model is in memory at a time, arms take turns all the same, and the memory is what
tensors took at most, weights and the update included.
"""

# Shape letters: B rows, S tokens per row, L layers, E experts, K chosen per token, P planned, D width, F expert width.

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from dragoman.errors import ConfigError
from dragoman.methods import expert_tuning, full, trunk
from dragoman.modeling import decoder_layers, expert_weights, moe_layers, new_model, open_model, sorted_experts
from dragoman.record import environment, peak_memory_mb, write_json
from dragoman.routing.plan import ExpertPlan, PlannedExpert

app = App(help=__doc__)
ARMS = ("full", "ssft", "cache", "peft")
TRAINED_LAYERS, PLANNED_SHARE = 2, 8
"""Layers that train; one of so many experts in them does."""


def olmoe(part: int) -> Any:
    """OLMoE's shape at 1/part of its width and vocabulary."""
    shape = {"num_hidden_layers": 16, "num_experts": 64, "num_experts_per_tok": 8, "eos_token_id": 2}
    sizes = {"hidden_size": 2048, "intermediate_size": 1024, "vocab_size": 50304}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    return new_model("olmoe", shape | {n: size // part for n, size in (sizes | heads).items()}, seed=0)


MODELS: dict[str, Callable[[], Any]] = {
    "olmoe/8": lambda: olmoe(8),
    "olmoe/4": lambda: olmoe(4),
    "mini-moe": lambda: open_model("mini-moe"),
}


def plan_of(model: Any) -> ExpertPlan:
    """Every eighth expert of the last two layers, no routers: the same for every arm."""
    last = moe_layers(model)[-TRAINED_LAYERS:]
    experts = {
        x.layer_id: tuple(PlannedExpert(e, "language") for e in range(0, x.num_experts, PLANNED_SHARE)) for x in last
    }
    return ExpertPlan("benchmark", layers=experts, num_experts={x.layer_id: x.num_experts for x in moe_layers(model)})


def trained_size(model: Any) -> int:
    """Parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def prepare(arm: str, model: Any) -> Any:
    """The model as the arm trains it."""
    if arm == "full":
        full.apply(model, full.Config(), None)
    elif arm == "peft":
        return lora(model)
    else:
        expert_tuning.apply(model, expert_tuning.Config(routers=False), plan_of(model))
    return model


def lora(model: Any) -> Any:
    """PEFT's LoRA on the expert weights of the same layers, of the rank that trains as much as the plan does."""
    from peft import LoraConfig, get_peft_model

    names = {id(m): n for n, m in model.named_modules()}
    targets, wanted, per_rank = [], 0, 0
    for layer in moe_layers(model)[-TRAINED_LAYERS:]:
        for weight in expert_weights(layer.experts):
            num_experts, *sides = getattr(layer.experts, weight).shape
            wanted += num_experts // PLANNED_SHARE * sides[0] * sides[1]
            per_rank += num_experts * sum(sides)
            targets.append(f"{names[id(layer.experts)]}.{weight}")
    config = LoraConfig(r=max(1, round(wanted / per_rank)), target_modules=[], target_parameters=targets)
    return get_peft_model(model, config)


def allowed(model: Any, tokens: int, width: int) -> dict[str, float]:
    """Speed-up over full fine-tuning that a count of multiply-adds allows each arm of ours, with attention and head."""
    config = model.config
    layers, found = len(decoder_layers(model)), moe_layers(model)[-1]
    projections = sum(p.numel() for n, p in decoder_layers(model)[-1].self_attn.named_parameters() if p.ndim == 2)
    slots = found.top_k * sum(getattr(found.experts, n)[0].numel() for n in expert_weights(found.experts))
    router, scores = found.num_experts * config.hidden_size, width * config.hidden_size  # causal: half of S, twice
    layer = projections + slots + router + scores
    head = config.vocab_size * config.hidden_size
    planned = slots / PLANNED_SHARE  # where routing is even
    whole = 3 * (layers * layer + head)
    # Lowest trained layer: in planned experts, gradients of their weights and of what stands between the two of them.
    # The layer above: of planned weights, and of all inputs; attention's product of two inputs counts twice there.
    backward = head + TRAINED_LAYERS * planned + planned / 3 + (TRAINED_LAYERS - 1) * (layer + scores)
    return {
        "ssft": whole / (layers * layer + head + backward),
        "cache": whole / (TRAINED_LAYERS * layer + head + backward),
    }


def one_pass(model: Any, ids_BS: torch.Tensor) -> None:
    """Forward and backward, as the training loop does it."""
    logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), ids_BS[:, 1:].flatten()).backward()


@contextlib.contextmanager
def running(arm: str, model: Any, ids_BS: torch.Tensor, folder: Path) -> Iterator[None]:
    """What surrounds the arm's passes in training."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sorted_experts(model.get_base_model() if arm == "peft" else model))
        if arm == "cache":
            rows = [{"input_ids": row} for row in ids_BS]
            config = trunk.Config(folder=folder)
            stack.enter_context(trunk.cached_trunk(model, rows, config, batch=len(ids_BS), announce=lambda _: None))
        yield


def tokens_of(model: Any, rows: int, width: int) -> torch.Tensor:
    """Random tokens [B, S]."""
    return torch.randint(3, model.config.vocab_size, (rows, width), generator=torch.Generator().manual_seed(0))


def seconds(name: str, rows: int, width: int, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every arm's passes, round by round, and what is allowed. One model is in memory an arm."""
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    models, count = {}, {}
    with contextlib.ExitStack() as stack:
        for arm in ARMS:
            plain = MODELS[name]()
            count = allowed(plain, rows, width)
            ids_BS = tokens_of(plain, rows, width)
            models[arm] = prepare(arm, plain).train()
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(running(arm, models[arm], ids_BS, folder))
        for turn in range(rounds + 1):
            for arm, model in models.items():
                started = time.perf_counter()
                one_pass(model, ids_BS)
                if turn:  # the first one fills caches
                    times[arm].append(time.perf_counter() - started)
                model.zero_grad(set_to_none=arm != "full")
    return times, count


@app.command
def memory(arm: str, name: str, rows: int, width: int) -> None:
    """Print the peak of one arm in MB: what the benchmark runs in a process of its own."""
    if arm == "peft":
        import peft  # noqa: F401, an import is no memory of training
    before = peak_memory_mb()
    model = MODELS[name]()
    ids_BS = tokens_of(model, rows, width)
    model = prepare(arm, model).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    with tempfile.TemporaryDirectory() as folder, running(arm, model, ids_BS, Path(folder)):
        for _ in range(2):
            one_pass(model, ids_BS)
            optimizer.step()
            optimizer.zero_grad()
    print(json.dumps({"mb": peak_memory_mb() - before, "trained": trained_size(model)}))


def memory_of(arm: str, name: str, rows: int, width: int) -> dict[str, float]:
    """The same from outside; a process that fails ends the benchmark with its message."""
    command = [sys.executable, __file__, "memory", arm, name, str(rows), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, rows: int, width: int, rounds: int) -> dict[str, Any]:
    """Everything about one model; prints a line an arm."""
    peaks = {arm: memory_of(arm, name, rows, width) for arm in ARMS}
    times, count = seconds(name, rows, width, rounds)
    medians = {arm: float(torch.tensor(t, dtype=torch.float64).median()) for arm, t in times.items()}
    for arm in ARMS:
        faster, most = medians["full"] / medians[arm], count.get(arm)
        print(
            f"{name} {arm}: {rows * width / medians[arm]:,.0f} tokens/s, {faster:.2f} times full"
            + (f" (allowed {most:.2f}, {100 * faster / most:.0f} % of it)" if most else "")
            + f", {peaks[arm]['mb']:,.0f} MB, {peaks[arm]['trained']:,.0f} parameters train",
            flush=True,
        )
    return {"rows": rows, "width": width, "seconds": times, "median": medians, "allowed": count, "peak": peaks}


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The line of ratios."""
    median, mb = found["median"], {arm: peak["mb"] for arm, peak in found["peak"].items()}
    ratios = {
        "ssft_speedup": median["full"] / median["ssft"],
        "ssft_allowed": found["allowed"]["ssft"],
        "cache_speedup": median["full"] / median["cache"],
        "cache_allowed": found["allowed"]["cache"],
        "ssft_memory_ratio": mb["ssft"] / mb["full"],
        "peft_over_ours_time": median["peft"] / median["ssft"],
        "peft_over_ours_memory": mb["peft"] / mb["ssft"],
    }
    return {name: round(value, 3) for name, value in ratios.items()}


def gpu_arm(arm: str, rows: int, width: int, passes: int) -> dict[str, Any]:
    """Seconds of passes, and of passes with the update, and the peak in MB, of one arm alone on the GPU."""
    with torch.device("cuda"):
        plain = olmoe(1).to(torch.bfloat16)
    count, size = allowed(plain, rows, width), sum(p.numel() for p in plain.parameters())
    ids_BS = tokens_of(plain, rows, width).to("cuda")
    model = prepare(arm, plain).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    found: dict[str, Any] = {"passes": [], "updates": [], "trained": trained_size(model), "parameters": size}
    with tempfile.TemporaryDirectory() as folder, running(arm, model, ids_BS, Path(folder)):
        torch.cuda.reset_peak_memory_stats()
        for turn in range(passes + 2):
            torch.cuda.synchronize()
            started = time.perf_counter()
            one_pass(model, ids_BS)
            torch.cuda.synchronize()
            passed = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            torch.cuda.synchronize()
            if turn > 1:  # the first ones choose kernels and make the optimizer's state
                found["passes"].append(passed - started)
                found["updates"].append(time.perf_counter() - started)
    return found | {"mb": torch.cuda.max_memory_allocated() / 2**20, "allowed": count.get(arm)}


@app.command
def gpu(out: Path | None = None, rows: int = 8, width: int = 512, rounds: int = 3, passes: int = 5) -> None:
    """OLMoE-1B-7B's shape in bf16 on a GPU; prints a line an arm, and last the ratios."""
    if not torch.cuda.is_available():
        raise ConfigError("there is no GPU here; without one: python benchmarks/adapt.py")
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    arms: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for arm in ARMS:
            new = gpu_arm(arm, rows, width, passes)
            torch.cuda.empty_cache()
            old = arms.setdefault(arm, new | {"passes": [], "updates": [], "mb": 0.0})
            old["passes"], old["updates"] = old["passes"] + new["passes"], old["updates"] + new["updates"]
            old["mb"] = max(old["mb"], new["mb"])
    medians = {arm: statistics.median(found["passes"]) for arm, found in arms.items()}
    for arm, found in arms.items():
        update = statistics.median(found["updates"])
        most = f" (allowed {found['allowed']:.2f})" if found["allowed"] else ""
        print(
            f"{arm}: {rows * width / update:,.0f} tokens/s with updates, passes {medians['full'] / medians[arm]:.2f} "
            f"times full{most}, {found['mb']:,.0f} MB, {found['trained']:,.0f} parameters train"
        )
    measured = {"rows": rows, "width": width, "median": medians, "peak": arms}
    measured["allowed"] = {arm: found["allowed"] for arm, found in arms.items() if found["allowed"]}
    if out is not None:
        about = {"command": "benchmarks/adapt.py gpu", "gpu": torch.cuda.get_device_name(), "dtype": "bfloat16"}
        write_json(out, environment() | about | {"models": {"olmoe-1b-7b": measured}})
    print(json.dumps(figures(measured)))


@app.default
def main(quick: bool = False, out: Path | None = None, rows: int = 4, width: int = 256, rounds: int = 5) -> None:
    """Measure; the last line is one JSON object of ratios."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    if quick:
        found = {"olmoe/8": measure("olmoe/8", rows, width, min(rounds, 3))}
    else:
        found = {name: measure(name, rows, width, rounds) for name in ("mini-moe", "olmoe/4")}
    if out is not None:
        write_json(out, environment() | {"command": "benchmarks/adapt.py", "models": found})
    print(json.dumps(figures(list(found.values())[-1])))


if __name__ == "__main__":
    app()
