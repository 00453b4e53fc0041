"""What a run that goes on compares itself with."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError


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
