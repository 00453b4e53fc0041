"""`dragoman plan`: from a trace to the experts that will change, or from a dense model to how many it will get."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dragoman.commands import Dtype, Numbers, Parts, Paths, Tags
from dragoman.corpora.pack import KNOWN, open_corpus
from dragoman.errors import ConfigError, DataError
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import NUMBER_PLANNERS, PLANNERS
from dragoman.routing.trace import RoutingTrace

TEXT: dict[str, Any] = {"corpus": "help", "segments": 200}
"""What planners of a dense model read, where nothing is given."""
BUILT_IN = "mini-moe"
"""The model that knows the languages which are known by default."""


@dataclass(frozen=True)
class Config:
    """Choose experts."""

    trace: str | Path
    """Trace that `dragoman diagnose` wrote; for layer_moe the dense model: folder, Hub id or built-in name."""
    _: KW_ONLY
    planner: str = "ssft"
    """ssft, seft, esft, rise, activation, task, shared, random, layers, all, or of a dense model layer_moe;
    docs/planning.md says which for what."""
    target: str | None = None
    """New language (all but random and layer_moe; needed by ssft, seft, esft, rise, activation)."""
    known: Tags = ()
    """Languages the model knows (ssft, seft, rise: default those of the built-in model that are in the trace; needed by
    layer_moe)."""
    new: Tags = ()
    """Languages that the experts are for, compared with the known ones (layer_moe)."""
    corpus: str | None = None
    """N-way text to compare them on (layer_moe); default help, the built-in corpus."""
    segments: int | None = None
    """Train segments of each language of it (layer_moe); default 200."""
    dtype: Dtype | None = None
    """Of the dense model's weights (layer_moe); default float32; auto: as the model was saved."""
    device: str | None = None
    """cuda or cpu, for the dense model (layer_moe); default: cuda where there is one."""
    parent: str | None = None
    """Known language whose experts are taken (ssft, seft); default: the nearest by measured routing."""
    alpha: float | None = None
    """Smallest gap in share of slots (ssft, seft); default 0.64 / experts of the layer."""
    shared: int | None = None
    """Shared experts per layer (ssft); default 5/64 of the layer's experts."""
    score: str | None = None
    """token or gate (esft); default token."""
    p: float | None = None
    """Part of a layer's score that its experts reach together (esft); default 0.2."""
    experts: int | None = None
    """Number of experts over all layers (rise, activation: default one of 40; needed by layer_moe, which gives each
    layer one or more and, by rounding up, less than one a layer beyond the number)."""
    zones: Parts = ()
    """Shares of the layers: shallow, middle, deep (rise); default 0.375 0.25 0.375."""
    shares: Parts = ()
    """Shares of the experts for these zones (rise); default 0.35 0.25 0.4."""
    magnitude: float | None = None
    """How much frequent use counts beside preference (rise); default 10."""
    tasks: Path | None = None
    """Trace of tasks, tasks.npz of `dragoman diagnose --task.NAME FILE` (task)."""
    task: str | None = None
    """Which of them (task); default: the only one."""
    general: str | None = None
    """Language of the task, whose text in the trace is the general corpus (task); default en."""
    tau: float | None = None
    """Difference in share of tokens above which an expert is the task's (task); default 0.3."""
    middle: Numbers = ()
    """First and last model layer of the middle band (task); default: by rule from the curve of divergence."""
    between: Tags = ()
    """Two languages that share experts; the first one's share weighs them (shared); default en zh."""
    below: float | None = None
    """Share of an expert's use that neither of them has (shared); default 0.7."""
    keep: int | None = None
    """Most used experts of a layer that count in each of them (shared); default 20 of 128."""
    layers: Numbers = ()
    """Model layers (ssft, seft, layers: default the last two MoE layers; esft, activation: default all; shared: default
    from 10/48 to 39/48 of the depth)."""
    budget: str | None = None
    """Largest share of the model's parameters that may train, as 2% or 0.02; takes the place of alpha, p, experts, tau
    or layers."""
    train_routers: bool | None = None
    """Train the routers of the planned layers; default: as the planner's paper (ssft, seft, task, layers, all: yes)."""
    like: Path | None = None
    """Plan whose layers and numbers a random plan copies (random)."""
    seed: int | None = None
    """Of a random plan (random)."""
    disjoint: Paths = ()
    """Plans whose experts are not drawn (random)."""
    model: str | None = None
    """Model of the trace, for traces that do not know its size; only its config is read."""
    out: Path = Path("plan.json")
    """File to write."""


def run(config: Config) -> ExpertPlan | ExpertNumbers:
    """Make a plan and say why: which experts of which layers, from a trace, or how many a dense model's layers get."""
    if config.planner not in (known := (*PLANNERS, *NUMBER_PLANNERS)):
        raise ConfigError(f"there is no planner {config.planner!r}; planners are {', '.join(known)}")
    if config.out.exists():
        raise ConfigError(f"{config.out} exists; choose another file with --out, or remove it first")
    plan = _numbers(config) if config.planner in NUMBER_PLANNERS else _experts(config)
    plan.save(config.out)
    return plan


def show(plan: ExpertPlan | ExpertNumbers) -> None:
    """Print the plan."""
    print(plan.text())


def _experts(config: Config) -> ExpertPlan:
    trace = RoutingTrace.load(config.trace)
    planner = PLANNERS[config.planner]
    settings = planner.config(**_settings(config, trace, planner.config))
    if config.model is not None:
        trace = with_sizes(trace, config.model)
    plan = planner.make(trace, settings)
    return replace(plan, why=(*_of_known(config, trace, settings), *plan.why))


def _numbers(config: Config) -> ExpertNumbers:
    from dragoman.commands.mixing_text import sample_of
    from dragoman.modeling import context_length, model_checksum, open_both

    planner, model, languages = NUMBER_PLANNERS[config.planner], str(config.trace), (*config.new, *config.known)
    own = [f.name for f in fields(planner.config)]
    given = TEXT | _given(config, (*own, *TEXT, "dtype", "device"))
    if missing := [f"--{name}" for name in own if name not in given]:
        raise ConfigError(f"the planner {config.planner} needs {', '.join(missing)}, which it has no defaults for")
    settings = planner.config(**{name: given[name] for name in own})
    corpus = open_corpus(given["corpus"])
    corpus.require(languages)
    opened, codec = open_both(model, dtype=given.get("dtype", "float32"), device=given.get("device"))
    samples = {g: sample_of(codec, corpus, g, given["segments"], context_length(opened)) for g in languages}
    made = planner.make(opened, samples, settings)
    about = {"model": model, **{name: given[name] for name in (*TEXT, "dtype") if name in given}}
    about |= {"corpus_sha256": corpus.checksum()}
    return replace(made, model_sha256=model_checksum(model), settings=made.settings | about)


def with_sizes(trace: RoutingTrace, model: str) -> RoutingTrace:
    """The trace with the sizes of its model, of which only the config is read.

    Raises ConfigError where the trace has them, DataError where the model has other layers or experts.
    """
    from dragoman.modeling import layer_sizes, moe_layers, outline

    if "skips" in trace.about.get("sizes", {}):  # those of older traces do not know them
        raise ConfigError("the trace knows the size of its model, so model would have no effect; leave it out")
    made = outline(model)
    theirs = [(x.layer_id, x.num_experts, x.top_k) for x in moe_layers(made)]
    mine = list(zip(trace.layer_ids, trace.num_experts, trace.top_k, strict=True))
    if theirs != mine:
        raise DataError(
            f"{model} is not the model of the trace: (layer, experts, chosen) are {theirs} and in the trace {mine}"
        )
    return replace(trace, about=trace.about | {"sizes": layer_sizes(made)})


def share_of(budget: str) -> float:
    """0.02 of 2% or 0.02."""
    number = budget.strip().removesuffix("%")
    try:
        return float(number) / (100 if number != budget.strip() else 1)
    except ValueError:
        raise ConfigError(f"the budget is {budget!r}, but it is a share of the parameters, as 2% or 0.02") from None


def _settings(config: Config, trace: RoutingTrace, wanted: type) -> dict[str, Any]:
    """The settings this planner has; ConfigError for given ones that it would ignore, or a missing target."""
    known = {f.name: f for f in fields(wanted)}
    given = _given(config, (*known, "model"))
    given.pop("model", None)
    if "target" not in given and "target" in known and known["target"].default is MISSING:
        there = ", ".join(trace.languages)
        raise ConfigError(f"the planner {config.planner} needs the new language: --target, one of {there}")
    if "budget" in given:
        given["budget"] = share_of(str(given["budget"]))
    if "known" in known and "known" not in given:
        given["known"] = tuple(g for g in KNOWN if g in trace.languages and g != given["target"])
        if not given["known"] or (len(given["known"]) < 2 and len(trace.languages) > 2):
            raise ConfigError(
                f"the planner {config.planner} compares languages that the model knows, and the trace has "
                f"{', '.join(trace.languages)}; say which of them the model knows (--known)"
            )
    if "overlap" in known:
        overlap = trace.about.get("overlap", {}).get(given["target"], {})
        given["overlap"] = {g: v for g, v in overlap.items() if g in given["known"]}
    return given


def _of_known(config: Config, trace: RoutingTrace, settings: Any) -> list[str]:
    """Where the known languages were not given and some of another model's trace are none of them: which were taken."""
    known = getattr(settings, "known", ())
    others = [g for g in trace.languages if g not in (*known, settings.target)] if known else []
    if config.known or not others or trace.about.get("model") == BUILT_IN:
        return []
    return [
        f"known languages by default: those that {BUILT_IN} knows ({', '.join(known)}); the trace also has "
        f"{', '.join(others)}: name yours with --known"
    ]


def _given(config: Config, known: Iterable[str]) -> dict[str, Any]:
    """The settings that were given; ConfigError for those that are not among the known ones of the planner."""
    own = ("trace", "_", "planner", "out")
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}
    given = {name: value for name, value in values.items() if value not in (None, ())}
    if idle := sorted(set(given) - set(known)):
        raise ConfigError(f"{', '.join(idle)} would have no effect on the planner {config.planner}; leave them out")
    return given
