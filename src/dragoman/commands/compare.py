"""`dragoman compare`: what changed between two files of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dragoman.commands import records
from dragoman.errors import ConfigError, DataError
from dragoman.record import claim_folder, environment, read_json, sha256, write_json
from dragoman.routing.drift import drift
from dragoman.routing.trace import RoutingTrace

# Shape letters: G languages, L MoE layers.


@dataclass(frozen=True)
class Config:
    """Compare two traces or two evaluations."""

    before: Path
    """Trace (.npz) that `dragoman diagnose` wrote, or folder (or record.json) of `dragoman evaluate`."""
    after: Path
    """The same of the changed model, on the same text."""
    _: KW_ONLY
    out: Path = Path("comparison")
    """New folder for record.json and a report (of traces with figures)."""
    seed: int = 0
    """Of the bootstrap and the placebo."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is at least 0, not {self.seed}")


class Kind(NamedTuple):
    """What two files of one kind have to say to each other."""

    measure: Callable[[Config], dict[str, Any]]
    """The part of the record; reads the files."""
    write: Callable[[dict[str, Any], Path], None]
    """Pages and figures of a record into a folder."""
    show: Callable[[dict[str, Any]], None]


def run(config: Config) -> dict[str, Any]:
    """Compare two files of one kind.

    Two traces give the drift of routing per language and layer, with a placebo. Two evaluations give what differs
    between them, which numbers may be compared, and a paired test of those.
    """
    kind = _same_kind(config)
    found = KINDS[kind].measure(config)
    out = claim_folder(Path(config.out))
    files = {side: {"path": path, "sha256": sha256(path)} for side, path in _sides(config).items()}
    record = environment() | {"command": "compare", "kind": kind, "config": asdict(config), "files": files} | found
    KINDS[kind].write(record, out)
    write_json(out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print the table of the kind."""
    KINDS[record["kind"]].show(record)
    print(f"report and record are in {record['config']['out']}")


def _sides(config: Config) -> dict[str, Path]:
    given = {"before": Path(config.before), "after": Path(config.after)}
    return {side: path / "record.json" if path.is_dir() else path for side, path in given.items()}


def _same_kind(config: Config) -> str:
    kinds = {path: _kind(path) for path in _sides(config).values()}
    if unfit := [f"{path} is {kind}" for path, kind in kinds.items() if kind not in KINDS]:
        raise DataError(f"{'; '.join(unfit)}; compare takes two files of one kind: {', '.join(KINDS)}")
    if len(set(kinds.values())) > 1:
        raise DataError(f"two of a kind are compared, but {' and '.join(f'{p} is {k}' for p, k in kinds.items())}")
    return next(iter(kinds.values()))


def _kind(path: Path) -> str:
    """By what the file holds: `a trace`, or a record with its command."""
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a trace of `dragoman diagnose` or a folder of `dragoman evaluate`")
    if path.suffix != ".json":
        return "a trace"  # RoutingTrace.load says what is wrong with anything else
    content = read_json(path)
    command = content.get("command") if isinstance(content, dict) else None
    return f"a record of {command}" if command else "no record"


# ---- two traces ----------------------------------------------------------------------------------------------------


def _drift(config: Config) -> dict[str, Any]:
    before, after = (RoutingTrace.load(path) for path in _sides(config).values())
    abouts = {"before": before.about, "after": after.about}
    models = {side: {k: about.get(k) for k in ("model", "model_sha256")} for side, about in abouts.items()}
    return {"models": models, "drift": asdict(drift(before, after, config.seed))}


def _write_drift(record: dict[str, Any], out: Path) -> None:
    from dragoman.reporting import write_drift  # matplotlib takes a second to load

    write_drift(record, out)


def _show_drift(record: dict[str, Any]) -> None:
    from dragoman.reporting.findings import text_differs

    part = record["drift"]
    print(
        "drift of routing (JSD in nats, 0 to 0.693), mean over early, middle, late layers; placebo: halves of the text"
    )
    for g, moved_L in part["divergence"].items():
        noise = f"   placebo {_thirds(part['placebo'][g])}" if g in part["placebo"] else ""
        print(f"  {g:8}{_thirds(moved_L)}{noise}")
    if warning := text_differs(record):
        print(warning)


def _thirds(values_L: Any) -> str:
    parts = np.array_split(np.asarray(values_L), 3)
    return "".join(f"{float(np.mean(p)):9.4f}" if len(p) else f"{'':9}" for p in parts)


# ---- two evaluations -----------------------------------------------------------------------------------------------


def _evaluations(config: Config) -> dict[str, Any]:
    before, after = _sides(config).values()
    return records.measure(before, after, config.seed)


KINDS = {
    "a trace": Kind(_drift, _write_drift, _show_drift),
    "a record of evaluate": Kind(_evaluations, records.write, records.show),
}
"""What can be compared."""
