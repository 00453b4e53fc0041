"""What a run that goes on compares itself with, and where its checkpoints are."""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError
from dragoman.record import claim_folder, read_json, write_json

CONFIG_FILE = "config.json"
"""What a run was started with."""
CHANGEABLE = (
    "resume",
    "dry_run",
    "quiet",
    "out",
    "checkpoint_minutes",
    "checkpoint_steps",
    "report_to",
    "expert_parallel",
)
"""What may change when a run goes on: no loss depends on it."""


def stamp(config: Any) -> dict[str, Any]:
    """A config as JSON has it, without what may change, in its parts too."""
    return _fixed(json.loads(json.dumps(asdict(config), default=str)))


def _fixed(given: dict[str, Any]) -> dict[str, Any]:
    return {k: _fixed(v) if isinstance(v, dict) else v for k, v in given.items() if k not in CHANGEABLE}


def claim(out: Path, resume: bool, stamp: dict[str, Any], default: Any) -> dict[str, Any] | None:
    """Make the output folder, or find there what --resume goes on with; the record of a run that is done already.

    stamp: what the run depends on; default: a config with the values of settings that an older version did not know.
    """
    path = out / CONFIG_FILE
    if not resume or not out.exists():
        claim_folder(out)
        write_json(path, stamp)
        return None
    before = _fixed(completed(read_json(path), default))
    if changed := _changes({k: before.get(k) for k in stamp}, stamp):
        raise ConfigError(f"the run in {out} was another ({'; '.join(changed)}); resume with the old settings")
    done = out / "record.json"
    return read_json(done) if done.is_file() else None


def _changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """`setting: old -> new` of each that differs, those of parts by their full names."""
    lines = []
    for key in before | now:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def unclaim(out: Path) -> None:
    """Remove the folder of a run that was refused, or that left nothing to go on from: the next try may have it."""
    if [path.name for path in out.iterdir()] == [CONFIG_FILE]:
        (out / CONFIG_FILE).unlink()
        out.rmdir()


def checkpoint_folder(out: Path, config: Any) -> AbstractContextManager[Any]:
    """Where a training writes: `checkpoints` in its output where there is something to keep, else a scratch folder.

    config: one with settings of checkpoints and trackers.
    """
    kept = bool(config.checkpoint_minutes or config.checkpoint_steps or config.report_to)
    return nullcontext(out / "checkpoints") if kept else tempfile.TemporaryDirectory()


def completed(old: dict[str, Any], default: Any) -> dict[str, Any]:
    """A config as a run wrote it, with the fields that its version did not know yet at their defaults.

    default: a config whose fields have the values to take; keys of `old` that are no field of it stay.
    """
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    parts = {n: completed(old.get(n) or {}, v) for n, v in known.items() if is_dataclass(v)}
    plain = json.loads(json.dumps({n: v for n, v in known.items() if n not in parts}, default=str))
    return plain | old | parts


def no_checkpoint(folder: Path, incomplete: list[Path]) -> ConfigError:
    """The error for a run that was to go on and has no whole checkpoint."""
    if not incomplete:
        return ConfigError(f"there is no checkpoint in {folder}; start without --resume")
    names = ", ".join(path.name for path in incomplete)
    return ConfigError(
        f"there is no whole checkpoint in {folder}: {names} lack files, or the list of their files that this version "
        "writes (files.json; older versions wrote none); resume with the version that wrote them, or start anew "
        "in another folder"
    )
