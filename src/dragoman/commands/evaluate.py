"""`dragoman evaluate`: models, or files that any system wrote, on held-out text: values, intervals, paired comparisons.

The record holds, for each metric, `{metric: {system: {label: value}}}` and `{metric}_interval`; a label is a language
or a direction such as `en-de`. A rate has `{metric}_judged`, the segments that it is of, and no value where they are 0.
`signatures_of` has the signatures by system, `dtypes` the models' own, `segments_there` the rows of which
`segments_scored` were taken. `comparisons` lists paired tests, `means` what the tables show beside the labels,
`left_out` metrics that could not be had and why, `warnings` what to mind, `texts` checksums of what was scored
(`{"references" | "sources" | "likelihoods" | "choices": {label: sha256}}`), `task` the items that were answered, with
their checksum. The sums of every segment, from which `segments.json` beside the record gives all of it again, are too
many to read: `{"documents": {metric: {label: [N]}}, "keys": {metric: {label: [N]}}, "sums": {system: {metric:
{label: [N][S]}}}, "outputs": {system: {label: [N]}}}`; the answers that a model generates for a task are outputs in a
language, and `keys` names its items. Of models the file is written anew after each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands import Dtype, Switch, Tags, measures, require_sample, scoring, systems
from dragoman.commands.directions import only_direction, parse_directions
from dragoman.commands.judging import verdict, warnings_of
from dragoman.commands.tasking import add_task, open_items
from dragoman.corpora.languages import normalise_tag
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.corpora.parting import refuse_untranslated, require_same_length
from dragoman.corpora.reading import read_lines
from dragoman.corpora.testsets import open_test_set
from dragoman.errors import ConfigError
from dragoman.evaluation.metrics import METRICS, Metric
from dragoman.record import claim_folder, environment, read_json, sha256, write_json
from dragoman.reporting.tables import FORMS, render, write_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

SEGMENTS = "segments.json"


@dataclass(frozen=True)
class Config:
    """Evaluate a model beside others, or files of translations."""

    model: str = ""
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    against: Tags = ()
    """Other models, compared with the first on the same segments."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    test_set: Tags = ()
    """Instead of a corpus, a test set, all of it held out: FLORES, NTREX, WMT, TMX, a table, or two plain files."""
    languages: Tags = ()
    """Languages for bits per byte; default: those of the directions, or every language of the corpus."""
    directions: Tags = ()
    """Directions to translate, such as en-de de-en; all stands for every language: en-all, all-en, all-all."""
    choices: Path | None = None
    """Multiple choice (Belebele, MultiBLiMP), scored by likelihood: a file or a folder of them."""
    task: str = ""
    """A task to answer: next or heading, made of the corpus, or a folder of MMLU, Belebele, GSM8K or IFEval items;
    bits per byte are then left out."""
    shots: int = 0
    """Examples before every prompt of a task, answered, in its language; none of them is scored."""
    chat: Switch = False
    """Put prompts into the model's chat template."""
    normalise: str = ""
    """How likelihoods of a task's options are compared: bytes, pmi or none; default: the task's."""
    steer: Tags = ()
    """Files that `dragoman steer` wrote: the model steered by the first is compared with the model steered by each
    other one, with the model as it is and with those of --against."""
    metrics: Tags = ()
    """Metrics of translations; default: all that apply."""
    split: str = "devtest"
    """Which split to read; test stays sealed."""
    segments: int = 300
    """At most so many segments per language or direction: the first of a corpus, spread evenly over a test set."""
    hypotheses: Tags = ()
    """Without a model: files of translations, one a line; the first is compared with the others."""
    references: Path | None = None
    """Reference translations of the hypotheses, one a line."""
    source: Path | None = None
    """What was translated, one a line; some metrics need it."""
    documents: Path | None = None
    """The document of each hypothesis, one name a line; without it segments are resampled."""
    target: str = ""
    """Language of the hypotheses."""
    terms: Path | None = None
    """Terms that each hypothesis must have, one line a segment, tabs between terms; for term recall."""
    weights: dict[str, Path] = field(default_factory=dict)
    """Folders with local weights of metrics that are models: --weights.comet FOLDER, --weights.metricx FOLDER."""
    aligner_text: Tags = ()
    """Two plain files, sources and their translations, that a word aligner learns from; for unaligned words."""
    table: Tags = ()
    """Files for the tables; .md, .tex, .csv, .html or .txt says in which form."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights, but for deltas, which by default have their own; auto: as the model was saved."""
    out: Path | None = None
    """New folder for the record; default: evaluation for models, none for hypotheses."""
    seed: int = 0
    """Of the bootstrap."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)
        _require_one_kind(self)
        if self.split == "test":
            raise ConfigError("the test split is sealed: it opens for experiments only; use --split dev or devtest")
        if strange := [file for file in self.table if Path(file).suffix.removeprefix(".") not in FORMS]:
            raise ConfigError(f"no table can be written as {', '.join(strange)}; end in .{', .'.join(FORMS)}")
        if unknown := [name for name in self.metrics if name not in METRICS]:
            raise ConfigError(f"unknown metrics {', '.join(unknown)}; metrics are {', '.join(METRICS)}")


def _require_one_kind(config: Config) -> None:
    files: dict[str, Any] = {"references": config.references, "source": config.source, "documents": config.documents}
    files |= {"target": config.target, "terms": config.terms}
    if not config.model and not config.hypotheses:
        raise ConfigError("nothing to evaluate: give a model, or --hypotheses FILE --references FILE --target TAG")
    if config.model and (given := [f"--{k}" for k, v in {"hypotheses": config.hypotheses, **files}.items() if v]):
        raise ConfigError(f"{', '.join(given)} score files without a model; leave the model {config.model} out")
    if config.hypotheses:
        if missing := [f"--{k}" for k in ("references", "target") if not files[k]]:
            raise ConfigError(f"--hypotheses needs {' and '.join(missing)} too")
        unused: dict[str, Any] = {
            "against": config.against,
            "test-set": config.test_set,
            "directions": config.directions,
        }
        unused |= {"languages": config.languages, "choices": config.choices, "corpus": config.corpus != "help"}
        unused |= {"task": config.task, "steer": config.steer}
        unused |= {"device": config.device, "dtype": config.dtype != Config.dtype}
        unused |= {"split": config.split != "devtest", "segments": config.segments != Config.segments}
        if given := [f"--{k}" for k, v in unused.items() if v]:
            raise ConfigError(f"{', '.join(given)} would have no effect on hypotheses; leave them out")
    elif (config.metrics or config.weights or config.aligner_text) and not config.directions:
        raise ConfigError("--metrics, --weights and --aligner-text are of translations; give --directions too")
    elif config.shots < 0:
        raise ConfigError(f"shots is {config.shots}; at least 0")
    elif (config.normalise or config.shots or config.chat) and not config.task:
        raise ConfigError("--normalise, --shots and --chat are of a task; give --task too")
    elif config.test_set and config.corpus != "help":
        raise ConfigError("both --corpus and --test-set were given; give one")
    systems = [config.model, *config.against] if config.model else list(config.hypotheses)
    if len(set(systems)) < len(systems):
        raise ConfigError(f"a system is named twice in {', '.join(systems)}; compare different ones")


def run(config: Config) -> dict[str, Any]:
    """Score systems on the same held-out segments: tables with intervals and paired comparisons, and a record."""
    out = Path(config.out or "evaluation") if config.model or config.out else None
    if config.hypotheses:
        scored, left_out, about = _score_files(config, out)
    else:
        assert out
        scored, left_out, about = _score_models(config, out)
    record = environment() | {"command": "evaluate", "config": asdict(config)} | about
    record |= summary(scored, config.seed) | {"left_out": left_out}
    record["warnings"] += _part_of_the_set(config, about)
    if out:
        record["segments"] = scoring.write_segments(out / SEGMENTS, scored)
        write_json(out / "record.json", record)
    for file in config.table:
        write_table(record, Path(file))
    return record


def show(record: dict[str, Any]) -> None:
    """Print the tables."""
    print(render(record, "txt"), end="")


# Files of translations

Result = tuple[dict[str, Any], dict[str, str], dict[str, Any]]
"""What the systems scored, metrics left out, what the record says of the text."""


def _score_files(config: Config, out: Path | None) -> Result:
    assert config.references
    target = normalise_tag(config.target)
    lines = {file: read_lines(Path(file)) for file in config.hypotheses}
    references = read_lines(Path(config.references))
    for file, texts in lines.items():
        require_same_length(texts, references, file, str(config.references))
    given = {"source": config.source, "documents": config.documents, "terms": config.terms}
    beside = {name: Path(file) for name, file in given.items() if file}
    read = {name: read_lines(file) for name, file in beside.items()}
    for name, texts in read.items():
        require_same_length(texts, references, str(beside[name]), str(config.references))
    refuse_untranslated(read.get("source", []), references, str(config.references))
    table = _table_of(target, references, read)
    metrics, left_out = measures.metrics_for(target, config.metrics, _from_files(config))
    terms = measures.read_terms(beside["terms"]) if config.terms else None
    if out:
        claim_folder(out)  # before hours of scoring
    scored: dict[str, Any] = {}
    for file, texts in lines.items():
        scored[file] = scoring.empty_sums()
        scoring.add_texts(scored[file], target, texts, table, metrics, terms)
    absent = [n for n, m in metrics.items() if not any(n in by for by in scored.values())]
    left_out |= dict.fromkeys(absent, "it needs the sources: give --source FILE")
    left_out |= dict.fromkeys(measures.OF_LIKELIHOODS, "it needs a model")
    scored |= reference_rates({target: table}, {target: metrics})
    files = [*map(Path, config.hypotheses), Path(config.references), *beside.values()]
    about: dict[str, Any] = {"segments_scored": {target: len(references)}, "files": {str(f): sha256(f) for f in files}}
    about |= {"texts": systems.text_checksums({target: table}, {}, {})}
    if terms is not None:
        about["texts"]["terms"] = {target: sha256(json.dumps(terms))}
    return scored, left_out, about


def _table_of(target: str, references: list[str], read: Mapping[str, list[str]]) -> NText:
    """The lines as they are; the column `source` stands for whatever language it is in."""
    columns: dict[str, list[str | None]] = {"source": list(read["source"])} if "source" in read else {}
    columns[target] = list(references)
    rows = len(references)
    documents = tuple(read.get("documents", ["text"] * rows))
    return NText(tuple(columns), tuple(map(str, range(rows))), documents, ("devtest",) * rows, columns)


def reference_rates(
    tables: Mapping[str, NText], metrics: Mapping[str, Mapping[str, Metric]]
) -> dict[str, dict[str, Any]]:
    """The references as a system, in metrics that need none: what a rate is where nothing is wrong."""
    sums = scoring.empty_sums()
    for label, table in tables.items():
        free = {name: metric for name, metric in metrics[label].items() if "references" not in metric.needs}
        scoring.add_texts(sums, label, scoring.cells(table, table.languages[-1]), table, free)
    return {"references": sums} if sums["documents"] else {}


# Models


def _score_models(config: Config, out: Path) -> Result:
    corpus, directions = _text(config)
    spoken = dict.fromkeys(g for pair in directions.values() for g in pair)
    of_items = (config.choices or config.task) and not spoken
    languages = () if config.task else config.languages or (() if of_items else tuple(spoken) or corpus.languages)
    corpus.require([*languages, *spoken])
    settings: dict[str, Any] = {"split": config.split, "segments": config.segments, "evenly": bool(config.test_set)}
    pairs = {label: scoring.parallel(corpus, *pair, **settings) for label, pair in directions.items()}
    held_out = scoring.held_out(corpus, languages, **settings)
    metrics, left_out = _metrics(directions, config)
    asked = systems.Asked(pairs, systems.choices_of(config.choices, config.segments), open_items(config, corpus))
    named = systems.systems_of(config.model, config.steer, config.against)
    opened = {config.model: systems.opened(config.model, config)}
    systems.require_ready(*opened[config.model], [how for name, how in named.values() if name == config.model], asked)
    systems.require_others(config.against, asked)
    claim_folder(out)  # nothing is written where a model cannot be opened
    text: dict[str, Any] = {"corpus": corpus, "languages": languages, "directions": directions, "metrics": metrics}
    score, scored = partial(scoring.score_model, quiet=config.quiet, **text, **settings), {}
    dtypes: dict[str, str] = {}
    for label, (name, how) in named.items():
        if name not in opened:
            opened.clear()  # one model at a time is in memory
            opened[name] = systems.opened(name, config)
        dtypes[label] = str(opened[name][0].dtype).removeprefix("torch.")
        with how(opened[name][0]):
            scored[label] = _score_model(config, score, asked, *opened[name])
        scoring.write_segments(out / SEGMENTS, scored)
    opened.clear()
    if directions:
        scored["copy"] = scoring.score_copy(corpus, directions, metrics=metrics, **settings)
        scored |= reference_rates(pairs, metrics)
    needed = {"option_accuracy": ("choices", asked.choices), "task_accuracy": ("task", asked.items)}
    left_out |= {name: f"it needs items: give --{flag}" for name, (flag, given) in needed.items() if not given}
    return scored, left_out, _systems(config) | {"dtypes": dtypes} | _about(config, corpus, held_out, asked)


def _score_model(
    config: Config, score: Callable[..., dict[str, Any]], asked: systems.Asked, model: PreTrainedModel, codec: TextCodec
) -> dict[str, Any]:
    sums = score(model, codec)
    scoring.add_choices(sums, model, codec, asked.choices, config.quiet)
    add_task(sums, model, codec, asked.items, config.normalise, config.quiet)
    return sums


def _about(config: Config, corpus: NText, held_out: Mapping[str, NText], asked: systems.Asked) -> dict[str, Any]:
    """What the record says of the text."""
    tables, items = {**held_out, **asked.pairs}, asked.items
    there = {label: len(corpus.select(t.languages, config.split, complete=True)) for label, t in tables.items()}
    about: dict[str, Any] = {"corpus": corpus.about, "segments_there": there}
    about |= {"segments_scored": {label: len(table) for label, table in asked.pairs.items()}}
    about |= {"texts": systems.text_checksums(asked.pairs, held_out, asked.choices)}
    if items:
        about["task"] = {"name": items.name, "items": len(items), "sha256": items.checksum(), "about": items.about}
        about["texts"]["task"] = dict.fromkeys(items.items, items.checksum())
    return about


def _systems(config: Config) -> dict[str, Any]:
    from dragoman.modeling import model_checksum

    models = {name: model_checksum(name) for name in (config.model, *config.against)}
    return {"models": models, "steering": {file: read_json(Path(file)) for file in config.steer}}


def _text(config: Config) -> tuple[NText, dict[str, tuple[str, str]]]:
    words = [word for given in config.directions for word in given.split(",") if word]
    if len(config.test_set) == 2:
        corpus = open_test_set(*config.test_set, languages=only_direction(words))
    else:
        corpus = open_test_set(*config.test_set) if config.test_set else open_corpus(config.corpus)
    return corpus, parse_directions(words, config.languages or corpus.languages, corpus.languages)


def _metrics(
    directions: Mapping[str, tuple[str, str]], config: Config
) -> tuple[dict[str, dict[str, Metric]], dict[str, str]]:
    """Metrics by direction; a metric that one language lacks (no identifier, say) is left out there alone."""
    targets = dict.fromkeys(target for _, target in directions.values())
    if config.aligner_text and len(directions) != 1:
        raise ConfigError(f"--aligner-text is of one direction, and there are {len(directions)}; give one direction")
    given = _from_files(config)
    made = {g: measures.metrics_for(g, config.metrics, given) for g in targets}
    reasons: dict[str, dict[str, list[str]]] = {}
    for g, (_, left_out) in made.items():
        for name, reason in left_out.items():
            reasons.setdefault(name, {}).setdefault(reason, []).append(g)
    told = {
        name: "; ".join(r if len(gs) == len(targets) else f"{r} ({', '.join(gs)})" for r, gs in by.items())
        for name, by in reasons.items()
    }
    return {label: made[target][0] for label, (_, target) in directions.items()}, told


def _from_files(config: Config) -> dict[str, Metric]:
    files: dict[str, tuple[str, ...]] = {f"--weights.{name}": (name,) for name in config.weights}
    files |= {"--aligner-text": measures.OF_ALIGNERS} if config.aligner_text else {}
    files |= {"--terms": ("term_recall",)} if config.terms else {}
    if config.metrics and (unused := [flag for flag, names in files.items() if not set(names) & set(config.metrics)]):
        raise ConfigError(f"{', '.join(unused)} would have no effect on {', '.join(config.metrics)}; name its metric")
    return measures.from_files(config.weights, config.aligner_text, config.terms, config.target)


# What the record says


def _part_of_the_set(config: Config, about: Mapping[str, Any]) -> list[str]:
    """What to mind where only a part of a test set was scored."""
    there = {label: n for label, n in about.get("segments_there", {}).items() if n > config.segments}
    if not config.test_set or not there:
        return []
    told = ", ".join(f"{label} ({config.segments} of {n})" for label, n in there.items())
    way_out = f"--segments {max(there.values())} takes all"
    return [f"a part of the test set was scored, spread evenly over it: {told}; {way_out}"]


def summary(scored: scoring.Scored, seed: int) -> dict[str, Any]:
    """Values, intervals, means, comparisons of the first system with the others, and what to mind."""
    signatures = {name: s for by in list(scored.values())[::-1] for name, s in by["signatures"].items()}
    names = [name for name in METRICS if name in signatures]
    result: dict[str, Any] = {"systems": list(scored), "signatures": {n: signatures[n] for n in names}}
    result["metrics"] = {n: {"title": measures.title(n), "higher_is_better": measures.better(n)} for n in names}
    result |= {"signatures_of": {s: by["signatures"] for s, by in scored.items()}, "comparisons": [], "means": {}}
    for name in names:
        result |= scoring.values(scored, name, seed)
        result["means"][name] = _means(result[name])
        result["comparisons"] += _judged(scored, name, result[name], seed)
    return result | {"warnings": warnings_of(scored, result["comparisons"])}


def _means(by_system: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Means over the labels that every system has, where there are several; only ever shown beside the labels."""
    common = [g for g in next(iter(by_system.values()), {}) if all(g in by for by in by_system.values())]
    if len(common) < 2:
        return {}
    return {"over": common, "of": {s: float(np.mean([by[g] for g in common])) for s, by in by_system.items()}}


def _judged(
    scored: scoring.Scored, name: str, values: Mapping[str, Mapping[str, float]], seed: int
) -> list[dict[str, Any]]:
    """The first system against each other one in every label where both have a value, Holm over all of these, with a
    verdict each.
    """
    first, *others = (s for s in scored if s != "references")
    pairs = [(first, b, g) for b in others for g in values.get(first, {}) if g in values.get(b, {})]
    found = scoring.comparisons(scored, name, pairs, seed)
    shown = [{"detectable": scoring.detectable(scored, a, b, name, g, seed)} for a, b, g in pairs]
    return [c | verdict(c, measures.better(name)) | d for c, d in zip(found, shown, strict=True)]
