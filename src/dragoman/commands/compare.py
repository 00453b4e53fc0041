"""`dragoman compare`: what changed between two files of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dragoman.commands import records
from dragoman.commands.run_records import FORMS
from dragoman.errors import ConfigError, DataError
from dragoman.record import claim_folder, environment, read_json, sha256, write_json
from dragoman.routing.drift import drift
from dragoman.routing.plan import ExpertPlan, PlanDifference, differences
from dragoman.routing.trace import RoutingTrace

# Shape letters: G languages, L MoE layers.


@dataclass(frozen=True)
class Config:
    """Compare two traces, two evaluations or two plans."""

    before: Path
    """Trace (.npz) that `dragoman diagnose` wrote, folder (or record.json) of `dragoman evaluate`, or plan (.json)."""
    after: Path
    """The same of the changed model, on the same text; or another plan for the same model."""
    _: KW_ONLY
    out: Path = Path("comparison")
    """New folder for record.json and, of traces (with figures) and evaluations, a report."""
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
    between them, which numbers may be compared, and a paired test of those. Two plans give the experts that both name
    and those that one does, layer by layer, their sizes, and the settings that differ.
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
    """Print the table of the kind, and where its files are."""
    KINDS[record["kind"]].show(record)
    files = "the record is" if record["kind"] == "a plan" else "report and record are"
    print(f"{files} in {record['config']['out']}")


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
    """By what the file holds: `a trace`, `a plan`, or a record with its command."""
    if not path.is_file():
        raise DataError(
            f"{path} is not a file; give a trace of `dragoman diagnose`, a folder of `dragoman evaluate` or a plan"
        )
    if not path.name.endswith(FORMS):
        return "a trace"  # RoutingTrace.load says what is wrong with anything else
    content = read_json(path)
    if isinstance(content, dict) and str(content.get("format")).startswith("dragoman-plan"):
        return "a plan"  # ExpertPlan.load says what is wrong with it
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


# ---- two plans -----------------------------------------------------------------------------------------------------


def _plans(config: Config) -> dict[str, Any]:
    plans = {side: ExpertPlan.load(path) for side, path in _sides(config).items()}
    difference = differences(plans["before"], plans["after"])
    facts = {side: _settings(plan) for side, plan in plans.items()}
    pairs = {n: [f.get(n) for f in facts.values()] for n in dict.fromkeys([*facts["before"], *facts["after"]])}
    return {
        "plans": {side: _size(plan) for side, plan in plans.items()},
        "jaccard": difference.jaccard,
        "experts": asdict(difference),
        "differs": {name: [a, b] for name, (a, b) in pairs.items() if a != b},
    }


def _settings(plan: ExpertPlan) -> dict[str, Any]:
    plain = {name: getattr(plan, name) for name in ("planner", "target", "parent", "train_routers", "trace_sha256")}
    return plain | plan.settings


def _size(plan: ExpertPlan) -> dict[str, Any]:
    names = ("planner", "size", "share", "trained_parameters", "trained_share")
    return {name: getattr(plan, name) for name in names}


def _show_plans(record: dict[str, Any]) -> None:
    for side, plan in record["plans"].items():
        share = "" if plan["trained_share"] is None else f", {plan['trained_share']:.2%} of the parameters train"
        size = f"{plan['size']} experts ({plan['share']:.1%}){share}"
        print(f"{side:7} {record['config'][side]}: {plan['planner']}, {size}")
    parts = {part: {int(i): tuple(e) for i, e in layers.items()} for part, layers in record["experts"].items()}
    print(PlanDifference(**parts).text())
    for name, (before, after) in record["differs"].items():
        print(f"  {name}: {before} | {after}")


KINDS = {
    "a plan": Kind(_plans, lambda record, out: None, _show_plans),
    "a trace": Kind(_drift, _write_drift, _show_drift),
    "a record of evaluate": Kind(_evaluations, records.write, records.show),
}
"""What can be compared."""
