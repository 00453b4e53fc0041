"""May a run go on in a folder? Only with the settings that what lies there was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError
from dragoman.record import read_json, write_json

SETTINGS = "settings.json"


def require_settings(work: Path, settings: Mapping[str, Any]) -> None:
    """Keep the settings of a run beside its results; ConfigError where there are results of others."""
    path, asked = work / SETTINGS, json.loads(json.dumps(settings))
    if path.is_file():
        there = read_json(path)
        other = [f"{k} {there.get(k)}, not {asked.get(k)}" for k in there | asked if there.get(k) != asked.get(k)]
        if other:
            raise ConfigError(f"{work} has results of {'; '.join(other)}; go on with those, or give another --work")
    elif any(work.rglob("record.json")):
        raise ConfigError(f"{work} has results, and no {SETTINGS} says of what; remove them, or give another --work")
    write_json(path, asked)
