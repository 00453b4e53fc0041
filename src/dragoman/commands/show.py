"""`dragoman show`: a plan, a trace or a record, as text."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from dragoman.commands import run_records
from dragoman.errors import DataError
from dragoman.record import read_json
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True)
class Config:
    """Look at a file."""

    file: Path
    """A plan (.json), a trace (.npz) or a record (.json, .json.gz)."""


def run(config: Config) -> Path:
    """Print what a file holds."""
    if not config.file.is_file():
        raise DataError(f"{config.file} is not a file; give a plan, a trace or a record that dragoman wrote")
    return config.file


def show(file: Path) -> None:
    """Print it."""
    if file.suffix == ".npz":
        print(_trace_text(RoutingTrace.load(file)))
        return
    content = read_json(file)
    kind = str(content.get("format", "")) if isinstance(content, dict) else ""
    if kind.startswith("dragoman-plan"):
        print(ExpertPlan.load(file).text())
    elif kind.startswith("dragoman-numbers"):
        print(ExpertNumbers.load(file).text())
    elif kind.startswith("dragoman-record") and content["command"] in (
        "tour",
        "diagnose",
        "compare",
        "adapt",
        "categorize",
        "align",
        "export",
        "evaluate",
        "translate",
    ):
        importlib.import_module(f"dragoman.commands.{content['command']}").show(content)
    elif kind.startswith("dragoman-record") and content["command"] == "mix train":
        importlib.import_module("dragoman.commands.mix").show(content)
    elif kind.startswith("dragoman-record"):
        print(run_records.text(content), end="")
    else:
        raise DataError(f"{file} is neither a plan nor a record that dragoman wrote; its format is {kind or 'missing'}")


def _trace_text(trace: RoutingTrace) -> str:
    lines = [
        f"trace of {trace.about.get('model', 'a model')}: {len(trace.layer_ids)} MoE layers {list(trace.layer_ids)}, "
        f"experts {list(trace.num_experts)}, chosen per token {list(trace.top_k)}"
    ]
    lines += [f"  {g:8} {n:>10,} tokens" for g, n in zip(trace.languages, trace.tokens_G.tolist(), strict=True)]
    return "\n".join(lines)
