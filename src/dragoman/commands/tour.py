"""`dragoman tour`: diagnose, plan, adapt, evaluate and report in one go.

Each stage writes its result into the output folder as it ends, so a killed tour goes on where it was. A stage is a
pure function of the config and of earlier stages: a resumed tour gives the numbers of an undisturbed one.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.commands import Switch, Tags, adapt, diagnose, require_sample, scoring
from dragoman.commands.plan import BUILT_IN
from dragoman.commands.touring import Stages
from dragoman.commands.training_text import require_positions
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import KNOWN, open_corpus
from dragoman.errors import ConfigError, DataError
from dragoman.record import environment, peak_memory_mb, read_json, write_json
from dragoman.routing.parents import choose_parent
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import PLANNERS, random_like
from dragoman.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Peak learning rate of each arm on mini-moe, from the sweeps on dev in benchmarks/tour."""

    ssft: float = 0.01
    """Planned experts."""
    random: float = 0.02
    """As many random experts."""
    last_layers: float = 0.01
    """All experts of the last two layers."""
    full: float = 0.003
    """Everything."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole way, on the built-in model and corpus or on yours."""

    model: str = "mini-moe"
    """Model folder, Hub id or built-in name."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    target: str = "ca"
    """New language, a column of the corpus."""
    known: Tags = KNOWN
    """Languages the model knows, English first: what it may forget, and where a parent is looked for."""
    segments: int = 300
    """Segments per language for diagnosis (dev) and evaluation (devtest)."""
    text: adapt.Text = field(default_factory=adapt.Text)
    """What each arm is trained on."""
    learning_rates: LearningRates = field(default_factory=LearningRates)
    """Peak learning rates."""
    out: Path = Path("tour")
    """Folder for report.html, record.json, the plans and the adapted model; a killed tour goes on there."""
    seed: int = 0
    """Of training (the order of the text), the random plan and the bootstrap."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)


ARMS = {"ssft": "expert_tuning", "random": "expert_tuning", "last_layers": "expert_tuning", "full": "full"}
"""Arm -> method. The order is that of the tables."""


def run(config: Config) -> dict[str, Any]:
    """Show what the toolkit does on one model: a report and a record, in minutes, with every number measured."""
    from dragoman.modeling import copy_tag, moe_layers, open_both
    from dragoman.reporting import write_report

    started = time.monotonic()
    corpus = _corpus(config)
    model, codec = open_both(config.model)
    moe_layers(model)  # what cannot work is refused before anything is written
    codec.end_id  # noqa: B018
    _require_trainable(config, model, codec, corpus)
    stages = Stages(config, corpus)
    if stages.finished:
        print(f"this tour was finished before; its report is {config.out / 'report.html'}")
        return read_json(config.out / "record.json")
    trace = _diagnose(config, stages, model, codec, corpus)
    routing = stages("routing", lambda: diagnose.describe(trace, config.known[0], config.seed))
    plans = stages("plans", lambda: _plans(config, trace))
    plan_by_arm = {arm: ExpertPlan.load(config.out / f"plan-{arm}.json") for arm in plans}
    parent = plan_by_arm["ssft"].parent or config.known[0]
    copy_tag(model, codec, parent, config.target)
    scored = {"base": stages("base", lambda: _score(config, model, codec, corpus, corpus.languages))}
    arms = {}
    for arm in ARMS:
        done = stages(arm, partial(_arm, config, arm, plan_by_arm.get(arm), parent, codec, corpus))
        arms[arm], scored[arm] = done["training"], done["scored"]
    scored["copy"] = scoring.score_copy(corpus, _direction(config), segments=config.segments)
    record = _record(config, stages, model, trace, corpus)
    record |= {"routing": routing, "parent": plans["ssft"]["choice"], "plans": plans} | _results(config, scored, arms)
    seconds = stages.total + time.monotonic() - started - stages.made
    record |= {"seconds": round(seconds, 1), "peak_memory_mb": round(max(stages.peak, peak_memory_mb()), 1)}
    write_report(record, trace, config.out / "report.html")
    write_json(config.out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print the summary and where the report is."""
    from dragoman.reporting import summary_text

    print(summary_text(record))
    print(f"report: {Path(record['config']['out']) / 'report.html'}")


def _corpus(config: Config) -> NText:
    corpus = open_corpus(config.corpus)
    corpus.require([config.target, *config.known, config.text.source])
    faults = []
    if config.target in config.known:
        faults.append(f"the target {config.target} is among the known languages")
    if config.text.source == config.target:
        faults.append(f"source and target are both {config.target}")
    if len(set(config.known)) < max(2, len(config.known)):
        faults.append(f"known must name two languages or more, each once, not {list(config.known)}")
    if faults:
        raise ConfigError(f"the tour cannot run so: {'; '.join(faults)}")
    _require_rows(config, corpus)
    return corpus


def _require_rows(config: Config, corpus: NText) -> None:
    sizes = {f"of {g} in {s}": len(corpus.texts(g, s)) for s in ("dev", "devtest") for g in corpus.languages}
    short = [f"{n} {what}" for what, n in sizes.items() if n < 2]
    pairs = {s: len(corpus.pairs(config.text.source, config.target, s)) for s in ("train", "devtest")}
    short += [f"{n} pairs {config.text.source}-{config.target} in {s}" for s, n in pairs.items() if n < 2]
    if short:
        raise DataError(
            "the tour needs two segments or more of every language in dev and devtest, and two pairs in train and "
            f"devtest, but the corpus has {'; '.join(short)}; give more rows, or a column `split`"
        )


def _require_trainable(config: Config, model: PreTrainedModel, codec: TextCodec, corpus: NText) -> None:
    """What an arm would tell only when its turn comes: its settings, rows that are too long, text that is not there."""
    from dragoman.methods import training

    for arm in ARMS:
        _settings(config, arm)
    training.require_trainable(model)
    require_positions(config.text.block, model)
    adapt.training_rows(codec, corpus, config.target, config.text, config.seed)


def _direction(config: Config) -> scoring.Directions:
    return {config.target: (config.text.source, config.target)}


def _diagnose(config: Config, stages: Stages, model: PreTrainedModel, codec: TextCodec, corpus: NText) -> RoutingTrace:
    from dragoman.modeling import model_checksum

    path = config.out / "trace.npz"

    def make() -> str:
        languages = tuple(dict.fromkeys([*config.known, *corpus.languages]))
        texts, parallel = diagnose.aligned(corpus, languages, "dev", config.segments)
        documents = diagnose.documents_of(corpus, languages, "dev", config.segments, parallel)
        about: dict[str, Any] = {"model": config.model, "model_sha256": model_checksum(config.model)}
        about |= {"corpus_sha256": corpus.checksum(), "parallel": parallel, "documents": documents}
        diagnose.trace_of(model, codec, texts, about=about, quiet=config.quiet).save(path)
        return path.name

    stages("diagnose", make)
    trace = RoutingTrace.load(path)
    if not trace.about.get("parallel", True):
        print(
            f"dragoman: too few rows of dev are complete in {', '.join(trace.languages)}, so routing is measured on "
            "other text in each: differences of topic look like differences of language; fill the gaps, or leave out "
            "columns that have many",
            file=sys.stderr,
        )
    return trace


def _plans(config: Config, trace: RoutingTrace) -> dict[str, Any]:
    overlap = trace.about.get("overlap", {}).get(config.target, {})
    overlap = {g: v for g, v in overlap.items() if g in config.known}
    ssft, layers = PLANNERS["ssft"], PLANNERS["layers"]
    chosen = ssft.make(trace, ssft.config(target=config.target, known=config.known, overlap=overlap))
    plans = {
        "ssft": chosen,
        "random": random_like(trace, chosen, seed=config.seed),
        "last_layers": layers.make(trace, layers.config(target=config.target)),
    }
    for arm, plan in plans.items():
        plan.save(config.out / f"plan-{arm}.json")
    choice = choose_parent(trace, config.target, config.known, sorted(chosen.layers), overlap)
    summary: dict[str, Any] = {arm: _plan_summary(plan) for arm, plan in plans.items()}
    summary["ssft"]["choice"] = {
        "chosen": choice.parent,
        "by": "routing",
        "by_routing": dict(choice.routing),
        "by_overlap": dict(choice.overlap),
        "agree": choice.agree,
    }
    return summary


def _plan_summary(plan: ExpertPlan) -> dict[str, Any]:
    return {"planner": plan.planner, "experts": plan.size, "layers": plan.experts(), "why": plan.why}


def _score(
    config: Config, model: PreTrainedModel, codec: TextCodec, corpus: NText, others: Sequence[str] = ()
) -> dict[str, Any]:
    languages = tuple(dict.fromkeys([*config.known, config.target, *others]))
    return scoring.score_model(
        model, codec, corpus, languages, _direction(config), segments=config.segments, quiet=config.quiet
    )


def _settings(config: Config, arm: str) -> adapt.Config:
    return adapt.Config(
        config.model,
        target=config.target,
        method=ARMS[arm],
        learning_rate=getattr(config.learning_rates, arm),
        text=config.text,
        seed=config.seed,
        quiet=config.quiet,
    )


def _arm(
    config: Config, arm: str, plan: ExpertPlan | None, parent: str, codec: TextCodec, corpus: NText
) -> dict[str, Any]:
    """Train one arm from the base and score it; every arm sees the same rows in the same order."""
    from dragoman.modeling import copy_tag, open_model, save_model

    model = open_model(config.model)
    copy_tag(model, codec, parent, config.target)
    rows = adapt.training_rows(codec, corpus, config.target, config.text, config.seed)
    training = adapt.train_arm(model, ARMS[arm], plan, rows, _settings(config, arm), codec.pad_id)
    if arm == "ssft":
        save_model(model, codec, config.out / "model-ssft")
    return {"training": training, "scored": _score(config, model, codec, corpus)}


def _record(
    config: Config, stages: Stages, model: PreTrainedModel, trace: RoutingTrace, corpus: NText
) -> dict[str, Any]:
    from dragoman.modeling import model_checksum, parameter_counts

    counts = corpus.counts()
    return environment() | {
        "command": "tour",
        "config": asdict(config),
        "repeat": _repeat(config),
        "seed": config.seed,
        "model": {
            "name": config.model,
            "class": type(model).__name__,
            "sha256": model_checksum(config.model),
            "parameters": parameter_counts(model),
            "total": sum(p.numel() for p in model.parameters()),
            "moe_layers": len(trace.layer_ids),
            "num_experts": trace.num_experts,
            "top_k": trace.top_k,
        },
        "corpus": {
            "name": corpus.about.get("name", config.corpus),
            "licence": corpus.about.get("licence"),
            "checksum": corpus.checksum(),
            "languages": {
                g: {
                    "name": language(g).name or g,
                    "known": g in config.known,
                    "segments": {split: by[g] for split, by in counts.items()},
                }
                for g in trace.languages
            },
        },
        "known": config.known,
        "trained_on_known": config.model == BUILT_IN and set(config.known) == set(KNOWN),
        "target": config.target,
        "step_seconds": stages.seconds,
    }


def _repeat(config: Config) -> str:
    """The command line that gives this tour again."""
    return shlex.join(["dragoman", "tour", *_flags(config, Config(), ""), "--out", str(config.out)])


def _flags(given: Any, default: Any, prefix: str) -> list[str]:
    words: list[str] = []
    for f in fields(given):
        value, usual = getattr(given, f.name), getattr(default, f.name)
        name = prefix + f.name.replace("_", "-")
        if f.name in ("out", "quiet") or value == usual:
            continue
        if is_dataclass(value):
            words += _flags(value, usual, f"{name}.")
        elif isinstance(value, dict):
            words += [word for key, one in value.items() for word in (f"--{name}.{key}", str(one))]
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--{prefix}no-{f.name.replace('_', '-')}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


def _results(config: Config, scored: dict[str, Any], arms: dict[str, Any]) -> dict[str, Any]:
    result = scoring.tables({s: _only(by, (config.target,)) for s, by in scored.items()}, config.seed)
    everything = scoring.values(scored, "bits_per_byte", config.seed)
    outputs = {s: by["outputs"][config.target] for s, by in scored.items()}
    table = scoring.parallel(_corpus(config), config.text.source, config.target, "devtest", config.segments)
    sources, references = (scoring.cells(table, g) for g in (config.text.source, config.target))
    return (
        result
        | everything
        | {
            "forgetting": {arm: _forgetting(config, scored, arm) for arm in arms},
            "trained_share": {"base": 0.0} | {arm: t["trained_share"] for arm, t in arms.items()},
            "training": {
                arm: {
                    "learning_rate": t["training"]["learning_rate"],
                    "parameters": t["parameters"],
                    "samples": t["samples"],
                    "samples_too_long": t["samples_too_long"],
                    "steps": t["log"]["steps"],
                    "tokens": t["log"]["tokens"],
                    "seconds": round(t["log"]["seconds"], 1),
                    "losses": [round(x, 4) for x in t["log"]["losses"]],
                }
                for arm, t in arms.items()
            },
            "examples": [
                {"source": sources[i], "reference": references[i], "outputs": {s: o[i] for s, o in outputs.items()}}
                for i in range(0, len(sources), max(1, len(sources) // 5))
            ][:5],
        }
    )


def _only(by: dict[str, Any], languages: tuple[str, ...]) -> dict[str, Any]:
    return by | {m: {g: v for g, v in by[m].items() if g in languages} for m in ("bits_per_byte", "chrf")}


def _forgetting(config: Config, scored: dict[str, Any], arm: str) -> dict[str, Any]:
    """Change in bits per byte on every known language, after minus before."""
    found = {}
    for g in config.known:
        c = scoring.compare(scored, arm, "base", "bits_per_byte", g, config.seed)
        found[g] = {key: c[key] for key in ("difference", "low", "high", "p_value", "units")}
    return found
