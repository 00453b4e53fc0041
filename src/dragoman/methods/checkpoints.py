"""Checkpoints of a training run: which there are, which may go, what each keeps of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dragoman.record import read_json

LOG_FILE = "log.json"
"""What a checkpoint keeps of the Log."""
KEPT_CHECKPOINTS = 2


@dataclass
class Log:
    """What a training run reports."""

    losses: list[float] = field(default_factory=list)
    """Cross-entropy in nats per token of every update, extra losses left out."""
    tokens: int = 0
    """Tokens that entered the model, filler included."""
    seconds: float = 0.0
    steps: int = 0
    decay_from: int = 0
    """Update after which the rate decays."""

    @property
    def stable(self) -> bool:
        """Whether the rate had not begun to decay: from here training can go on for longer than was planned."""
        return self.steps <= self.decay_from


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def superfluous(checkpoints: list[Path]) -> list[Path]:
    """All but the last ones and the last stable one."""
    stable = [path for path in checkpoints if log_of(path).stable][-1:]
    return [path for path in checkpoints[:-KEPT_CHECKPOINTS] if path not in stable]


def log_of(checkpoint: Path | None) -> Log:
    """What had been logged at a checkpoint."""
    return Log(**read_json(checkpoint / LOG_FILE)) if checkpoint else Log()
