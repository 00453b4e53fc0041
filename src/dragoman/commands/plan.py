"""`dragoman plan`: from a trace to the experts that will change."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from dragoman.commands import Numbers, Tags
from dragoman.corpora.pack import KNOWN
from dragoman.errors import ConfigError
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import PLANNERS
from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True)
class Config:
    """Choose experts."""

    trace: Path
    """Trace that `dragoman diagnose` wrote."""
    _: KW_ONLY
    planner: str = "ssft"
    """ssft, random, layers or all."""
    target: str | None = None
    """New language (ssft)."""
    known: Tags = ()
    """Languages the model knows (ssft); default: those of the built-in model that are in the trace."""
    parent: str | None = None
    """Known language whose experts are taken (ssft); default: the nearest by measured routing."""
    variant: str | None = None
    """ssft, or seft without the shared experts (ssft)."""
    alpha: float | None = None
    """Smallest gap in share of slots (ssft); default 0.64 / experts of the layer."""
    shared: int | None = None
    """Shared experts per layer (ssft); default 5/64 of the layer's experts."""
    layers: Numbers = ()
    """Model layers (ssft, layers); default: the last two MoE layers."""
    like: Path | None = None
    """Plan whose layers and numbers a random plan copies (random)."""
    seed: int | None = None
    """Of a random plan (random)."""
    disjoint: bool | None = None
    """Draw only experts that `like` does not name (random)."""
    out: Path = Path("plan.json")
    """File to write."""


def run(config: Config) -> ExpertPlan:
    """Make a plan from a trace: which experts of which layers, by which statistic, and why."""
    if config.planner not in PLANNERS:
        raise ConfigError(f"there is no planner {config.planner!r}; planners are {', '.join(PLANNERS)}")
    if config.out.exists():
        raise ConfigError(f"{config.out} exists; choose another file with --out, or remove it first")
    trace = RoutingTrace.load(config.trace)
    planner = PLANNERS[config.planner]
    plan = planner.make(trace, planner.config(**_settings(config, trace, planner.config)))
    plan.save(config.out)
    return plan


def show(plan: ExpertPlan) -> None:
    """Print the plan."""
    print(plan.text())


def _settings(config: Config, trace: RoutingTrace, wanted: type) -> dict[str, Any]:
    """The settings this planner has; ConfigError for given ones that it would ignore, or a missing target."""
    fields = ("target", "known", "parent", "variant", "alpha", "shared", "layers", "like", "seed", "disjoint")
    given = {name: value for name in fields if (value := getattr(config, name)) not in (None, ())}
    known = set(wanted.__dataclass_fields__)  # type: ignore[attr-defined]
    if idle := sorted(set(given) - known):
        raise ConfigError(f"{', '.join(idle)} would have no effect on the planner {config.planner}; leave them out")
    if "known" in known:
        if "target" not in given:
            there = ", ".join(trace.languages)
            raise ConfigError(f"the planner {config.planner} needs the new language: --target, one of {there}")
        given.setdefault("known", tuple(g for g in KNOWN if g in trace.languages and g != given["target"]))
        overlap = trace.about.get("overlap", {}).get(given["target"], {})
        given["overlap"] = {g: v for g, v in overlap.items() if g in given["known"]}
    return given
