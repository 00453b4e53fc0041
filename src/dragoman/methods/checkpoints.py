"""Checkpoints of a training run: which there are and are whole, which may go, what each keeps of the log."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dragoman.record import read_json, write_json

LOG_FILE = "log.json"
"""What a checkpoint keeps of the Log."""
FILES_FILE = "files.json"
"""Names and sizes of all other files of a checkpoint, written last: without it, or where a size differs, it is not
whole."""
KEPT_CHECKPOINTS = 2


@dataclass
class Log:
    """What a training run reports."""

    losses: list[float] = field(default_factory=list)
    """Cross-entropy in nats per token of every update, extra losses left out."""
    extra_losses: list[float] = field(default_factory=list)
    """The method's own term of every update, its weight included; empty without one."""
    tokens: int = 0
    """Tokens that entered the model, filler included."""
    seconds: float = 0.0
    steps: int = 0
    decay_from: int = 0
    """Update after which the rate decays."""
    step_seconds: list[float] = field(default_factory=list)
    """Of every update, evaluations and checkpoints left out."""
    balance: list[dict[str, Any]] = field(default_factory=list)
    """How evenly the experts worked (`balance.Balance`), at intervals."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """The base, then each evaluation (`guard.Guard.entry`)."""
    kept_step: int = 0
    """Last evaluation within the guard's limit, or the best one where training has a patience."""
    stopped: dict[str, Any] | None = None
    """Where and why training ended before its last step, and of which step the weights are."""

    @property
    def stable(self) -> bool:
        """Whether the rate had not begun to decay: from here training can go on for longer than was planned."""
        return self.steps <= self.decay_from


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint consists of; from then on it is whole."""
    write_json(checkpoint / FILES_FILE, _sizes(checkpoint))


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != FILES_FILE)
    return {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}


def _whole(checkpoint: Path) -> bool:
    return (checkpoint / FILES_FILE).is_file() and read_json(checkpoint / FILES_FILE) == _sizes(checkpoint)


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; what a kill or a copy left unfinished is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if _whole(path)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def incomplete(folder: Path) -> list[Path]:
    """The others: what lacks files, or the list of them, which older versions did not write."""
    return sorted(path for path in folder.glob("checkpoint-*") if not _whole(path))


def good(checkpoints: list[Path], losses: list[float], highest: float) -> list[Path]:
    """Those whose weights are known to give a loss of at most `highest`: that of the update after.

    losses: of every update so far that had a finite one.
    """
    after = dict(enumerate(losses))
    return [path for path in checkpoints if after.get(_step(path), math.nan) <= highest]


def superfluous(checkpoints: list[Path], losses: list[float], highest: float) -> list[Path]:
    """All but the last ones, the last stable one, and the last good one, which divergence leaves behind."""
    stable = [path for path in checkpoints if log_of(path).stable][-1:]
    sound = good(checkpoints, losses, highest)[-1:]
    return [path for path in checkpoints[:-KEPT_CHECKPOINTS] if path not in stable + sound]


def last_good(folder: Path, losses: list[float], highest: float) -> Path | None:
    """The last good checkpoint; what was written after it goes, so that nothing resumes from there."""
    found = good(checkpoints(folder), losses, highest)
    discard_after(folder, _step(found[-1]) if found else 0)
    return found[-1] if found else None


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; killed half-way, what is left counts as none."""
    (checkpoint / FILES_FILE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for checkpoint in checkpoints(folder):
        if log_of(checkpoint).steps > step:
            discard(checkpoint)


def log_of(checkpoint: Path | None) -> Log:
    """What had been logged at a checkpoint."""
    return Log(**read_json(checkpoint / LOG_FILE)) if checkpoint else Log()
