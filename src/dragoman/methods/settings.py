"""How to train: settings, and the schedule of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dragoman.errors import ConfigError
from dragoman.record import machine

NOT_BELOW_0 = (
    *("learning_rate", "weight_decay", "clip", "balance", "z_loss", "diverged", "minutes"),
    *("checkpoint_minutes", "checkpoint_steps"),
)
"""Settings that are finite and not negative."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How to train. Batches are counted in rows of the packed text."""

    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    steps: int = 100
    """Updates of the weights, decay included."""
    batch: int = 16
    """Rows per update."""
    micro_batch: int = 16
    """Rows per forward pass; less of it needs less memory, losses stay: every label of a batch counts alike."""
    warmup: int = 10
    """Updates of linear warm-up."""
    decay: int = 50
    """Updates of the final decay to zero (1 - sqrt); between warm-up and decay the rate is constant."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; norms and biases have none."""
    beta2: float = 0.95
    """AdamW's second-moment decay; the first is 0.9."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: str = "auto"
    """bf16 (autocast), fp32, or auto: bf16 where the machine is faster in it (a GPU, AMX, AMD with AVX512_BF16)."""
    compile: bool = False
    """Compile model and loss with torch.compile, on a CPU (it needs a C++ compiler): faster, in bf16 the most, after a
    minute at most. Losses differ from the plain ones by rounding. Refused on a GPU, where it did not learn."""
    balance: float = 0.0
    """Weight of the load-balance loss, per MoE layer (0.01 is common in pretraining)."""
    z_loss: float = 0.0
    """Weight of the router z-loss (0.001 is common in pretraining)."""
    balance_every: int = 20
    """Updates between two entries of the log that say how evenly the experts of each layer work."""
    diverged: float = 2.0
    """Stop where the mean loss of ten updates is so many nats above the lowest such mean before; 0: never."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    expert_parallel: bool = False
    """Under torchrun: keep each expert in one process and send tokens there, in place of gathering every layer's
    experts in all; for classes that transformers has a plan for."""
    seed: int = 0
    """Of weights, dropout and order."""
    checkpoint_minutes: float = 0.0
    """Write a checkpoint that can be resumed every so often; 0 writes none."""
    checkpoint_steps: int = 0
    """Write one after every so many updates too; 0: not by count."""
    minutes: float = 0.0
    """Start the decay after this long, parts before a resume included, wherever the step count is; 0 for no limit."""
    report_to: tuple[str, ...] = ()
    """Trackers that also get the curves: tensorboard, wandb."""

    def __post_init__(self) -> None:
        faults = []
        low = {"steps": 1, "batch": 1, "micro_batch": 1, "warmup": 0, "decay": 0, "seed": 0, "balance_every": 1}
        given = {name: getattr(self, name) for name in low}
        faults += [f"{name} is {given[name]}, at least {least}" for name, least in low.items() if given[name] < least]
        if self.seed >= 2**32:
            faults.append(f"seed is {self.seed}, less than 2 ** 32")
        if self.micro_batch > 0 and self.batch % self.micro_batch:
            faults.append(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
        if self.warmup + self.decay > self.steps:
            faults.append(f"warmup {self.warmup} and decay {self.decay} do not fit into {self.steps} steps")
        if self.precision not in ("auto", "bf16", "fp32"):
            faults.append(f"precision is auto, bf16 or fp32, not {self.precision!r}")
        given = {name: getattr(self, name) for name in NOT_BELOW_0}
        faults += [f"{name} is 0 or more, not {value}" for name, value in given.items() if not 0 <= value < math.inf]
        if faults:
            raise ConfigError(f"training cannot run so: {'; '.join(faults)}")

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16."""
        return self.precision == "bf16" or (self.precision == "auto" and _computes_bf16())


def _computes_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    names = ("amx_tile", "avx512_bf16")
    amx, avx512 = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in names)
    # with AVX512_BF16 alone Intel is slower than in fp32 (docs/LOG.md, 2026-11-22) and AMD faster (2026-11-29)
    return bool(amx or (avx512 and "AMD" in machine()["processor"]))


class WarmupStableDecay:
    """Factor on the learning rate: linear warm-up, constant, then 1 - sqrt over the last `decay` updates.

    Source: Hägele et al. 2024 (arXiv:2405.18392), the 1-sqrt cooldown. The decay can be brought forward while
    training runs (`decay_from`), and a checkpoint keeps that: torch stores the fields of a callable schedule.
    """

    def __init__(self, warmup: int, decay: int, steps: int):
        self.warmup, self.decay, self.decay_from = warmup, decay, steps - decay

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        if step < self.decay_from or not self.decay:
            return 1.0
        return max(0.0, 1.0 - math.sqrt((step - self.decay_from) / self.decay))
