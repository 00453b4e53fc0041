"""Folders of runs that can go on, and what such a run compares itself with."""

from __future__ import annotations

import json
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError, UserError
from dragoman.record import claim_folder, read_json, write_json

CONFIG_FILE = "config.json"
"""What a run was started with."""
CHECKPOINTS = "checkpoints"


def claim(out: Path, stamp: dict[str, Any], default: Any, *, resume: bool) -> dict[str, Any] | None:
    """Make the output folder, or find there what a run goes on with; the record of one that is done already.

    stamp: what may not change, as JSON; default: a config with what an older version did not write. ConfigError for a
    folder that is taken, or that holds another run.
    """
    path = out / CONFIG_FILE
    if not resume or not out.exists():
        claim_folder(out)
        write_json(path, stamp)
        return None
    if changed := changes(completed(read_json(path), default), stamp, default):
        found = "; ".join(changed.values())
        raise ConfigError(f"the run in {out} was another ({found}); resume with the old settings")
    done = out / "record.json"
    return read_json(done) if done.is_file() else None


def changes(before: dict[str, Any], now: dict[str, Any], default: Any, prefix: str = "") -> dict[str, str]:
    """Of each setting that differs, `training.steps` or the like: `setting: old -> new`.

    What is no config, such as a plan, counts by all its keys.
    """
    lines: dict[str, str] = {}
    for key in now if is_dataclass(default) else before | now:
        old, new, name = before.get(key), now.get(key), prefix + key
        if isinstance(old, dict) and isinstance(new, dict):
            lines |= changes(old, new, getattr(default, key, None), f"{name}.")
        elif old != new:
            lines[name] = f"{name}: {old} -> {new}"
    return lines


def checkpoint_folder(out: Path, config: Any, resume: bool) -> AbstractContextManager[Any]:
    """Where a training writes: `checkpoints` in its output where there is or will be something, else a scratch folder.

    config: one with settings of checkpoints and trackers.
    """
    kept = bool(resume or config.checkpoint_minutes or config.checkpoint_steps or config.report_to)
    return nullcontext(out / CHECKPOINTS) if kept else tempfile.TemporaryDirectory()


def unclaim(out: Path) -> None:
    """Remove the folder of a run that was refused, or that left nothing to go on from: the next try may have it."""
    checkpoints = out / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    if [path.name for path in out.iterdir()] == [CONFIG_FILE]:
        (out / CONFIG_FILE).unlink()
        out.rmdir()


def unclaim_after(fault: BaseException, out: Path) -> None:
    """`unclaim`, by the first of several processes, but not where others may be stuck: of a UserError all know."""
    from dragoman.methods import sharding

    if isinstance(fault, UserError) or not sharding.active():
        sharding.on_first(lambda: unclaim(out))


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
