"""`dragoman diagnose`: how a model routes each language."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from dragoman.commands import Dtype, Numbers, Switch, Tags, another_split, require_sample
from dragoman.corpora.ntext import NText, normalise
from dragoman.corpora.pack import open_corpus
from dragoman.corpora.reading import read_lines
from dragoman.errors import ConfigError, DataError
from dragoman.record import atomic_write, claim_folder, environment, require_free, sha256, write_json
from dragoman.routing import stats
from dragoman.routing.bands import given_band
from dragoman.routing.contrast import FEWEST_TEXTS, contrast_with_interval
from dragoman.routing.cost import tokenizer_cost
from dragoman.routing.description import describe
from dragoman.routing.sample import MIN_DOCUMENTS, sample_of
from dragoman.routing.tables import Rows, contrast_table, tables
from dragoman.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import MoELayer, TextCodec

# Shape letters: G languages, L MoE layers, E experts, N segments.

MIN_PARALLEL = 20
"""Complete rows from which on segments are compared pairwise; below, a language may use all the text it has."""
TAU = 0.3
TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet", ".xml", ".tmx")
"""Endings of what is no plain text."""


@dataclass(frozen=True)
class Config:
    """Capture routing and describe it."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    languages: Tags = ()
    """BCP-47 tags; default: every language of the corpus."""
    split: str = "dev"
    """Which split to read."""
    segments: int = 300
    """At most so many segments per language."""
    reference: str = "en"
    """Language that divergence is measured from."""
    task: dict[str, Path] = field(default_factory=dict)
    """A text set to contrast with the reference's text, one text a line: --task.maths FILE. Use the same language."""
    tau: float | None = None
    """Difference in share of tokens from which on an expert is a task's; default 0.3."""
    middle: Numbers = ()
    """First and last model layer of the middle band; default: by rule from the curve of divergence."""
    resample: Literal["documents", "segments"] | None = None
    """What the bootstrap draws; default: documents where every language has text of ten or more."""
    pairs: Switch = False
    """Also count which experts are chosen together: 8 G L E^2 bytes."""
    parallel: Switch = False
    """Refuse text that is not parallel, instead of leaving out what needs it."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights, but for a delta, which by default has its own; auto: as the model was saved."""
    out: Path = Path("diagnosis")
    """New folder for report.html, trace.npz, record.json and figures/ with their tables."""
    seed: int = 0
    """Of the bootstrap and the placebo."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)
        faults = []
        if self.middle and len(self.middle) != 2:
            faults.append(f"middle takes two layers, the first and the last of the band, not {len(self.middle)}")
        if odd := [name for name in self.task if not re.fullmatch(r"[\w-]+", name)]:
            faults.append(f"a task's name is letters, digits, - and _, not {', '.join(odd)}")
        if self.tau is not None and not self.task:
            faults.append("tau has no effect without a task; give one (--task.NAME FILE) or leave it out")
        if self.tau is not None and not 0 < self.tau <= 1:
            faults.append(f"tau is a share of tokens, above 0 up to 1, not {self.tau}")
        if faults:
            raise ConfigError("; ".join(faults))


def run(config: Config) -> dict[str, Any]:
    """Capture the routing of every language of a corpus: a trace, its statistics and a record."""
    from dragoman.commands.systems import opened
    from dragoman.modeling import model_checksum, moe_layers
    from dragoman.reporting import write_diagnosis

    require_free(config.out)  # what needs no weights is refused before they are read
    corpus = open_corpus(config.corpus)
    languages = _languages(config, corpus)
    tasks = {name: read_task(name, path) for name, path in config.task.items()}
    text, parallel, documents = _text(config, corpus, languages)
    model, codec = opened(config.model, config)
    layers = moe_layers(model)  # a dense model is refused before anything is written
    _require_sound(config, layers, codec, text | tasks)
    out = claim_folder(config.out)
    about = {"model": config.model, "model_sha256": model_checksum(config.model), "corpus_sha256": corpus.checksum()}
    whole = about | {"parallel": parallel, "documents": documents}
    trace = trace_of(model, codec, text, about=whole, quiet=config.quiet, coactivation=config.pairs)
    trace.save(out / "trace.npz")
    of_tasks = trace_of(model, codec, tasks, about=about, quiet=config.quiet) if tasks else None
    middle = (config.middle[0], config.middle[1]) if config.middle else None
    routing = describe(trace, config.reference, config.seed, unit=config.resample, middle=middle)
    record = environment() | {
        "command": "diagnose",
        "config": asdict(config),
        "corpus": corpus.about,
        "documents": _number_of_documents(config, corpus, languages, parallel),
        "routing": routing,
        "tasks": contrasts(trace, of_tasks, config, routing["middle_band"]) if of_tasks else {},
    }
    record |= {"task_sha256": {name: sha256("\n".join(t)) for name, t in tasks.items()}}
    num_tokens = {g: [len(ids) for ids in codec.encode(t)] for g, t in text.items()}
    cost = tokenizer_cost(num_tokens, text, config.reference, parallel, config.seed)
    record["tokenizer"] = {g: asdict(c) for g, c in cost.items()}
    if of_tasks:
        of_tasks.save(out / "tasks.npz")
    write_tables(record, trace, out / "figures")
    write_diagnosis(record, trace, out)
    write_json(out / "record.json", record)
    return record


def _languages(config: Config, corpus: NText) -> tuple[str, ...]:
    if config.reference not in corpus.languages:
        raise ConfigError(
            f"there is no text in {config.reference}, which divergence is measured from; name another with "
            f"--reference: {', '.join(corpus.languages)}"
        )
    languages = tuple(dict.fromkeys([config.reference, *(config.languages or corpus.languages)]))
    corpus.require(languages)
    return languages


def show(record: dict[str, Any]) -> None:
    """Print the divergence of every language, by thirds of the depth, the middle band and what tasks use."""
    routing = record["routing"]
    print(f"divergence from {record['config']['reference']} (D_H-JS, 0 to 1), mean over early, middle, late layers")
    for language, curve in routing["divergence"].items():
        print(f"  {language:8}{_thirds(curve)}")
    print(f"  {'placebo':8}{_thirds(routing['placebo'])}")
    if sentence := _too_few_documents(record):
        print(sentence)
    if band := routing.get("middle_band"):
        shape = "" if band["valley"] else " (the curve has no valley: there is no middle to speak of)"
        print(f"middle band: layers {band['first']} to {band['last']}{shape}")
    for name, task in record.get("tasks", {}).items():
        print(f"task {name}: {len(task['experts'])} experts with Delta above {task['threshold']}")
    print(f"report, trace, record and tables are in {record['config']['out']}")


def _thirds(values_L: Any) -> str:
    parts = np.array_split(np.asarray(values_L), 3)
    return "".join(f"{float(np.mean(p)):8.3f}" if len(p) else f"{'':8}" for p in parts)


def _too_few_documents(record: Mapping[str, Any]) -> str:
    """That intervals are over segments where the split has documents enough, of which too few were read; else empty."""
    config, number = record["config"], record.get("documents")
    if not number or number["in_split"] < MIN_DOCUMENTS:
        return ""
    if config["resample"] or record["routing"]["sample"]["unit"] == "documents":
        return ""
    return (
        f"intervals are over segments, not documents: the first {config['segments']} of split {config['split']} are of "
        f"{number['read']} documents, {MIN_DOCUMENTS} are needed and the split has {number['in_split']}; "
        "raise --segments"
    )


# ---- the text ------------------------------------------------------------------------------------------------------


def aligned(
    corpus: NText, languages: Sequence[str], split: str, segments: int, must: bool = False
) -> tuple[dict[str, list[str]], bool]:
    """Texts by language, and whether they are the same rows in all: so where `MIN_PARALLEL` rows are complete.

    Otherwise each language has its own first segments, and statistics that pair segments are left out. Raises
    DataError for languages that have no text in the split, and where the text `must` be parallel and is not.
    """
    complete, needed = corpus.select(languages, split, complete=True), min(MIN_PARALLEL, segments)
    if len(complete) >= needed:
        return {g: complete.texts(g, split)[:segments] for g in languages}, True
    if must:
        raise DataError(
            f"the text is not parallel: {len(complete)} rows of split {split} are complete in {', '.join(languages)}, "
            f"{needed} are needed; name fewer languages, or drop --parallel to compare pooled text"
        )
    texts = {g: corpus.texts(g, split)[:segments] for g in languages}
    if empty := [g for g, t in texts.items() if len(t) < 2]:
        raise DataError(
            f"fewer than two segments of {', '.join(empty)} in split {split}; {another_split(corpus, empty, split)}"
        )
    return texts, False


def documents_of(
    corpus: NText, languages: Sequence[str], split: str, segments: int, parallel: bool
) -> dict[str, list[int]]:
    """The document of each segment that `aligned` takes, as a number, by language."""
    part = corpus.select(languages, split, complete=parallel)
    number_of = {name: number for number, name in enumerate(dict.fromkeys(part.documents))}
    rows = {g: [i for i, cell in enumerate(part.columns[g]) if cell is not None][:segments] for g in languages}
    return {g: [number_of[part.documents[i]] for i in rows[g]] for g in languages}


def _text(
    config: Config, corpus: NText, languages: Sequence[str]
) -> tuple[dict[str, list[str]], bool, dict[str, list[int]]]:
    """Texts by language, whether they are parallel, and the document of each; DataError where they are too few."""
    text, parallel = aligned(corpus, languages, config.split, config.segments, config.parallel)
    documents = documents_of(corpus, languages, config.split, config.segments, parallel)
    if config.resample == "documents" and (few := [g for g, d in documents.items() if len(set(d)) < 2]):
        raise DataError(
            f"the text of {', '.join(few)} is one document, so documents cannot be resampled; read more segments or "
            "take --resample segments"
        )
    if config.task and len(text[config.reference]) < FEWEST_TEXTS:
        raise DataError(
            f"a contrast needs {FEWEST_TEXTS} segments or more of {config.reference}, the general corpus, and there "
            f"are {len(text[config.reference])}; raise --segments or give more rows"
        )
    return text, parallel, documents


def _number_of_documents(config: Config, corpus: NText, languages: Sequence[str], parallel: bool) -> dict[str, int]:
    """Documents that were read, and those of the split, each of the language that has fewest."""

    def fewest(segments: int) -> int:
        names = documents_of(corpus, languages, config.split, segments, parallel).values()
        return min(len(set(of_language)) for of_language in names)

    return {"read": fewest(config.segments), "in_split": fewest(len(corpus))}


def read_task(name: str, path: Path) -> list[str]:
    """Texts of a task, one a line; blank lines are left out.

    Raises DataError where the file is a table or markup, cannot be read or has fewer texts than a contrast needs.
    """
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in TABLES:
        raise DataError(
            f"task {name}: {path} is {kind}, and a task is plain text, one text a line; write its texts into a .txt "
            "file, or take a folder of items with `dragoman categorize`"
        )
    texts = [text for line in read_lines(path) if (text := normalise(line))]
    if len(texts) < FEWEST_TEXTS:
        raise DataError(
            f"task {name}: {path} has {len(texts)} texts, one a line; a contrast needs {FEWEST_TEXTS} or more"
        )
    return texts


def _require_sound(
    config: Config, layers: Sequence[MoELayer], codec: TextCodec, texts: Mapping[str, Sequence[str]]
) -> None:
    """What would only fail after the capture, checked before it."""
    tokens = {name: sum(map(len, codec.encode(t))) for name, t in texts.items()}
    stats.require_tokens(tokens, [layer.num_experts for layer in layers], [layer.top_k for layer in layers])
    if config.middle:
        given_band(config.middle[0], config.middle[1], [layer.layer_id for layer in layers])


# ---- what is measured ----------------------------------------------------------------------------------------------


def trace_of(
    model: PreTrainedModel,
    codec: TextCodec,
    texts: dict[str, list[str]],
    *,
    about: dict[str, Any],
    quiet: bool,
    coactivation: bool = False,
) -> RoutingTrace:
    """Trace of plain text, without language tags: a tag would tell the router the language."""
    from dragoman.routing.capture import capture

    ids = {g: codec.encode(t) for g, t in texts.items()}
    total = sum(len(i) for segments in ids.values() for i in segments)
    about = about | {"overlap": overlap(ids), "overlap_weighted": overlap(ids, weighted=True)}
    with tqdm(total=total, unit=" tokens", desc="capture", disable=quiet, delay=2) as bar:
        return capture(model, ids, start_id=codec.start_id, coactivation=coactivation, about=about, progress=bar.update)


def overlap(ids: dict[str, list[list[int]]], weighted: bool = False) -> dict[str, dict[str, float]]:
    """Vocabulary overlap of every two languages, by token types or by relative frequency."""
    counts: dict[str, Counter[Hashable]] = {g: Counter(t for s in segments for t in s) for g, segments in ids.items()}
    return {
        a: {b: round(stats.vocabulary_overlap(counts[a], counts[b], weighted), 6) for b in counts if b != a}
        for a in counts
    }


def contrasts(
    trace: RoutingTrace, of_tasks: RoutingTrace, config: Config, band: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Task -> Delta of every expert against the reference's text, [L, E], with intervals, and the experts above tau.

    `placebo` is the largest size of Delta in each layer between two halves of the reference's text, mean over splits.
    """
    sample = sample_of(trace, config.reference, config.seed, config.resample)
    general_NLE, tau = trace.segment_chosen_NLE[config.reference], TAU if config.tau is None else config.tau
    found = {}
    for name in of_tasks.languages:
        made = contrast_with_interval(
            of_tasks.segment_chosen_NLE[name],
            general_NLE,
            trace.top_k,
            seed=config.seed,
            general_documents=sample.documents.get(config.reference),
        )
        delta_LE, low_LE, high_LE = (np.round(x, 6) for x in (made.delta.value, made.delta.low, made.delta.high))
        experts = [
            {
                "layer": trace.layer_ids[i],
                "expert": e,
                "delta": delta_LE[i, e],
                "interval": [low_LE[i, e], high_LE[i, e]],
                "in_middle_band": bool(band and i in band["rows"]),
            }
            for i, e in np.argwhere(made.specialised(tau)).tolist()
        ]
        found[name] = {
            "threshold": tau,
            "delta": delta_LE,
            "interval": [low_LE, high_LE],
            "placebo": np.abs(made.placebo_SLE).max(axis=-1).mean(axis=0),
            "experts": sorted(experts, key=lambda expert: -expert["delta"]),
            "texts": len(of_tasks.segment_chosen_NLE[name]),
            "signature": made.delta.signature,
        }
    return found


def write_tables(record: Mapping[str, Any], trace: RoutingTrace, folder: Path) -> None:
    """One CSV file a table."""
    overlaps: dict[str, Any] = {key: trace.about[key] for key in ("overlap", "overlap_weighted") if key in trace.about}
    found: dict[str, Rows] = tables(record["routing"], overlaps)
    for name, task in record["tasks"].items():
        found[f"contrast-{name}-intervals"] = contrast_table(task, trace.layer_ids, trace.num_experts)
    for name, (head, rows) in found.items():
        with atomic_write(folder / f"{name}.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(head)
            writer.writerows([[f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows])
