"""Records of an experiment's runs: their files, and what they keep of what the commands recorded.

A record is `NAME.json.gz` in its question's results, or `NAME.json` as the first ones were written; `read_json` opens
both, and `dragoman show` prints both.

It keeps what a claim, a table or a repetition needs, and not what follows from that or stands elsewhere in it:

    DROPPED            follows from the line and the code at `commit`, from `inputs`, from `sums` or from counts
    corpora, plans     what identifies them; a plan that a list prepares is whole in the record of its preparation
    log                losses as means of stretches of updates, the last balance, no seconds of single updates
    numbers            7 digits, with which the report of the first records stays the same to the letter; 6 are too few
    runs at a rate     what they trained and scored: their score on dev is all that counts
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError, DataError

OPENED = "opened.json"
FORM, FORMS = ".json.gz", (".json.gz", ".json")
DIGITS, POINTS = 7, 50
DROPPED = (
    *("config", "training"),  # from the line and, by default, the code at `commit`
    *("dev_sha256", "texts", "segments_scored"),  # from the checksums in `inputs` and the line
    *("comparisons", "means", "warnings", "metrics", "left_out"),  # from `sums`
    *("segments", "points", "shares_before"),  # a file that is gone; `counts`; `shares` of the stage before
)
OF_CORPUS = ("name", "checksum", "from_table", "packages", "languages", "rows", "test_opened", "devtest_is")
OF_PLAN = ("planner", "settings", "model_sha256", "layers")
OF_RATE = ("command", "parameters", "trained_share", "log", "outcome", "bits_per_byte", "chrf", "task_accuracy")


# Files


def attempts(results: Path) -> dict[str, list[Path]]:
    """Name of a run -> its records in the order in which they were written. DataError for one that is there twice."""
    by_name: dict[str, list[Path]] = {}
    for path in results.glob("*.json*"):
        if path.name.endswith(FORMS) and path.name != OPENED:
            by_name.setdefault(_stem(path), []).append(path)
    if twice := sorted(name for name, paths in by_name.items() if len(paths) > 1):
        raise DataError(
            f"{results} has {', '.join(twice)} as .json and as .json.gz; a record has one form: remove the later one"
        )
    found: dict[str, list[Path]] = {}
    for name in sorted(by_name, key=lambda name: (len(name), name)):
        found.setdefault(name.split("--again-")[0], []).extend(by_name[name])
    return found


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".json")


def text(record: Mapping[str, Any]) -> str:
    """A record as JSON, a field a line."""
    plain: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":"), "default": str}
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, **plain)}" for k, v in record.items()) + "\n}\n"


def write_once(path: Path, record: Mapping[str, Any]) -> None:
    """Write NAME.json.gz, the same bytes for the same record; ConfigError where NAME has one, in either form."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(gzip.compress(text(record).encode(), 9, mtime=0))
    try:
        if (there := path.with_suffix("")).exists():
            raise FileExistsError
        there = path
        os.link(partial, path)
    except FileExistsError:
        raise ConfigError(f"{there} exists; records are added, not changed") from None
    finally:
        partial.unlink()


# What is kept


def kept(found: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """What a run's record keeps of the records of its commands and of other JSON: folder or file -> fields."""
    less = {name: _less(name, record) for name, record in found.items()}
    if kind == "rate":
        less = {name: _only(record, OF_RATE) for name, record in less.items()}
    return {name: rounded(record) for name, record in less.items() if record}


def _less(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    if name.endswith(".about.json"):
        return _identity(record)
    if "command" not in record:  # a plan, what to steer by, a script's own file
        return dict(record)
    shorter = {"corpus": _identity, "plan": _experts, "log": _thinned, "results": _without_dropped}
    return _without_dropped(record) | {k: of(record[k]) for k, of in shorter.items() if isinstance(record.get(k), dict)}


def _without_dropped(record: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in DROPPED and not k.endswith("_interval")}


def _only(record: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k in fields}


def _identity(corpus: Mapping[str, Any]) -> dict[str, Any]:
    return _only(corpus, OF_CORPUS)


def _experts(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Which experts, without their statistics and the reasons."""
    layers = {layer: [e["id"] for e in experts] for layer, experts in plan["layers"].items()}
    return _only(plan, OF_PLAN) | {"layers": layers}


def _thinned(log: Mapping[str, Any]) -> dict[str, Any]:
    less = {k: v for k, v in log.items() if k != "step_seconds"}
    less |= {k: stretches(log[k]) for k in ("losses", "extra_losses") if k in log}
    return less | {"balance": log["balance"][-1:]} if "balance" in log else less


def stretches(values: Sequence[float]) -> list[float]:
    """Means of neighbouring values, at most 50 and each of equally many, the last one perhaps of fewer."""
    size = -(-len(values) // POINTS) or 1
    return [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]


def rounded(value: Any) -> Any:
    """Numbers with the digits that a record keeps, whole ones as integers; within lists and mappings too."""
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 2**53
        return int(value) if whole else float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, (list, tuple)) else value
