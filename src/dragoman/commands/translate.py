"""`dragoman translate`: documents, every segment accounted for.

The record holds `counts` (segments by state, and their total), `files` (name, checksum, segments by state, output or
null where it could not be written), `segments` (file, line, state, reasons and source of every one that is doubtful or
failed).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dragoman.commands import Dtype, Paths, Switch, Tags, aiding
from dragoman.commands.aiding import APERTIUM
from dragoman.corpora.languages import TABLE, language, normalise_tag
from dragoman.errors import ConfigError, DataError, UserError
from dragoman.evaluation.kept import Kept
from dragoman.evaluation.rates import OVER_GENERATION, Copies, OffTarget, OverGeneration
from dragoman.record import atomic_write, claim_folder, environment, sha256, write_json
from dragoman.translation import job
from dragoman.translation.documents import Document, read_document
from dragoman.translation.formats import Options
from dragoman.translation.formats.json_values import chosen
from dragoman.translation.inputs import RESERVED, inputs
from dragoman.translation.journal import Journal

STATES = ("translated", "reused", "kept", "doubtful", "failed")
JOURNAL = RESERVED[0]
NESTED, TABLES, PLAIN = (".json", ".yaml", ".yml"), (".csv", ".tsv"), (".txt",)
READING = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
"""Files of a model's folder that its answers depend on, beside config and weights."""
UNWRITTEN = "the file's encoding lacks letters of the translation"
SHORT = 20
"""Letters under which a copy of the source is no reason for doubt: names and commands stay as they are."""


@dataclass(frozen=True)
class Config:
    """Translate documents: text, Markdown, HTML, PO, XLIFF, TMX, SRT, VTT, JSON, YAML and CSV."""

    files: Tags
    """Documents, and folders: every document in them, to the same place in the output folder."""
    _: KW_ONLY
    to: str
    """Language to translate into."""
    source: str = "en"
    """Language of the documents."""
    model: str = "mini-moe"
    """Model folder, Hub id, built-in name, or apertium (rules; installed apart); with --server, the server's name."""
    server: str = ""
    """Address of a server that speaks the OpenAI API, such as http://localhost:8000/v1; its key: DRAGOMAN_API_KEY."""
    keys: Tags = ()
    """JSON and YAML: patterns of the keys whose values are translated, such as title menu.*; default: all. CSV and TSV:
    the columns that are translated, by the names in the first row."""
    wrapped: Switch = False
    """Plain text: lines belong together up to an empty one."""
    steps: Tags = ()
    """What is tried, in this order, until a translation passes: strategies, by_sentence, by_piece; default: those of
    --strategy, then with --server instruct and zero_shot, else zero_shot, then by_sentence and by_piece."""
    strategy: Tags = ()
    """Strategies that are tried first: zero_shot, instruct, few_shot, adaptive, adaptive_draft, scale, scale_pivot,
    scale_several, pmp, post_edit_terms, or YAML files."""
    memory: Path | None = None
    """Translation memory (see `dragoman memory`): what it has is reused, what is similar stands in prompts."""
    glossary: Path | None = None
    """Terms and their translations: TBX, CSV or TSV. A term that is missing is a doubt."""
    held_out: Paths = ()
    """Files with sentences that may be in no prompt, such as a test set: text, TSV, JSON lines, TMX or WMT's XML."""
    via: str = ""
    """Language of pmp's auxiliary version and of scale_pivot's drafts."""
    draft_model: str = ""
    """Local model that writes the drafts; default: the one that translates."""
    accept_if_better: Switch = False
    """Keep a draft unless its improvement has the higher quality estimate. Needs the extra `embedding`."""
    steer: Path | None = None
    """File of `dragoman steer`: experts to raise while a local model translates."""
    estimate: Switch = False
    """Count segments, characters and, of a local model, tokens; translate nothing."""
    batch: int = 64
    """Segments at once on a local model, the one that drafts included, or by apertium."""
    device: str | None = None
    """Of local models: cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights of local models, but for deltas, which by default have their own; auto: as a model was saved."""
    concurrency: int = 8
    """Requests at once to a server."""
    per_minute: int = 0
    """Most requests a minute to a server; 0: no limit."""
    completions: Switch = False
    """The server's model is a base model, without a chat template: it completes prompts."""
    out: Path = Path("translation")
    """Folder for translations, journal and record; the same command goes on where it was stopped."""
    quiet: Switch = False
    """No progress bar."""

    def __post_init__(self) -> None:
        aiding.require_sense(self, steps(self))
        if not self.files or self.batch < 1 or self.concurrency < 1 or self.per_minute < 0:
            raise ConfigError("files are one or more, batch and concurrency at least 1, per-minute not below 0")
        remote = ["concurrency", "per_minute", "completions"]
        idle = remote if not self.server else [] if self.draft_model else ["batch"]
        idle = idle if _local(self) else [*idle, "device", "dtype"]
        if given := [f"--{n.replace('_', '-')}" for n in idle if getattr(self, n) != getattr(Config, n)]:
            raise ConfigError(f"{', '.join(given)} would have no effect on this engine; leave it out")
        if not any(map(os.path.isdir, self.files)):
            _require_formats(self, map(Path, self.files))
        if normalise_tag(self.source) == normalise_tag(self.to):
            raise ConfigError(f"source and target are both {self.to}; give two languages")


def run(config: Config) -> dict[str, Any]:
    """Read the documents, translate what no journal holds yet, write them, and account for every segment."""
    languages = (normalise_tag(config.source), normalise_tag(config.to))
    options = Options(*languages, tuple(config.keys), config.wrapped)
    files = inputs(config.files, config.out)
    _require_formats(config, [file.path for file in files])
    documents = [read_document(file.path, options) for file in files]
    _require_keys(documents, options)
    names = [file.name for file in files]
    units = job.units_of(documents)
    about = {"command": "translate", "config": asdict(config), "units": len(units)}
    steering = aiding.steering(config)  # told before there is a journal
    if config.estimate:
        return environment() | about | _estimate(config, documents, units)
    helps = aiding.aids(config, languages, steps(config))
    journal = _journal(config, languages)
    try:
        doubts = checks(languages[1]) | aiding.checks(helps)
        known = aiding.remembered(units, helps, languages, doubts)
        engine = aiding.strategist(config, helps, steps(config), _engine)
        asked = {key: unit for key, unit in units.items() if key not in known}
        before = sum(not a.faults for (unit, _), a in journal.attempts().items() if unit in asked)
        bar = tqdm(total=len(asked), initial=before, unit=" segments", disable=config.quiet, delay=2)
        with aiding.steered(steering, engine), bar:
            best = known | job.run(asked, engine, journal, languages, steps(config), doubts, bar.update)
            bar.update(len(asked) - bar.n)
    finally:
        journal.close()
    told, refused = _written(documents, names, config.out, best, {*known})
    record = environment() | about | aiding.account(engine, known) | told
    write_json(config.out / "record.json", record)
    if refused:
        raise DataError(f"{'; '.join(refused)}; all else is written, and the same command then asks for no text again")
    return record


def _require_formats(config: Config, paths: Iterable[Path]) -> None:
    """ConfigError for settings of formats of which there is no file."""
    kinds = {path.suffix.lower() for path in paths}
    keyed = bool(kinds & {*NESTED, *TABLES})
    unused = {"keys": config.keys and not keyed, "wrapped": config.wrapped and not kinds & {*PLAIN}}
    if given := [f"--{name}" for name, is_unused in unused.items() if is_unused]:
        raise ConfigError(f"{', '.join(given)} would have no effect on these files; leave it out")


def _require_keys(documents: Sequence[Document], options: Options) -> None:
    """ConfigError for patterns of keys that fit no text of the JSON and YAML files; of tables, reading them tells."""
    kinds = {document.path.suffix.lower() for document in documents}
    if not options.keys or not kinds & {*NESTED} or kinds & {*TABLES}:
        return
    nested = [document for document in documents if document.path.suffix.lower() in NESTED]
    found = {place.context for document in nested for place in document.places}
    if unused := [key for key in options.keys if not any(chosen(name, (key,)) for name in found)]:
        every = [read_document(document.path, replace(options, keys=())) for document in nested]
        there = list(dict.fromkeys(place.context for document in every for place in document.places))
        told = ", ".join(there[:8]) + (" ..." if len(there) > 8 else "") or "none"
        raise ConfigError(f"no text has a key that fits {', '.join(unused)}; keys of texts are: {told}")


def checks(target: str) -> dict[str, Callable[[str, str], bool]]:
    """Reasons for doubt: the output checks of the evaluation that need no reference."""
    numbers, copies = Kept("numbers"), Copies()
    found = {kind.replace("_", " "): _fault(kind) for kind in OVER_GENERATION if kind != "any"}
    found["numbers"] = lambda s, t: bool(numbers.segment_sums(t, s)[0])
    found["copy"] = lambda s, t: sum(map(str.isalpha, s)) >= SHORT and bool(copies.segment_sums(t, s, "")[0])
    try:
        off = OffTarget(target)
    except UserError:
        return found  # no identifier knows the language: that check is left out
    return found | {"off target": lambda s, t: bool(off.segment_sums(t)[0])}


def _fault(kind: str) -> Callable[[str, str], bool]:
    """A check of over-generation, the source in place of the reference, so with wide limits of length."""
    metric = OverGeneration(kind, least=0.2, most=4.0)
    return lambda source, answer: bool(metric.segment_sums(answer, source, source)[metric.counted])


def steps(config: Config) -> tuple[str, ...]:
    """The steps that were asked for, or those that suit the engine."""
    whole = ("instruct", "zero_shot") if config.server and not config.completions else ("zero_shot",)
    return config.steps or (*dict.fromkeys((*config.strategy, *whole)), *job.PARTS)


def _journal(config: Config, languages: tuple[str, str]) -> Journal:
    """The folder's journal. Answers do not depend on the files, so these may change between two runs."""
    ours = {JOURNAL, f"{JOURNAL}-journal"}
    there = {path.name for path in config.out.iterdir()} if config.out.is_dir() else set()
    if not there & ours:  # another process may be as far as this one
        claim_folder(config.out)
    about: dict[str, Any] = {"languages": languages, "server": config.server}
    about["model"] = config.model if config.server else _identity(config.model)
    about |= {"draft_model": _identity(config.draft_model)} if config.draft_model else {}
    about |= _reading(_local(config)) | ({"dtype": config.dtype} if config.dtype != Config.dtype else {})
    # names with a script or region, which prompts lacked once; those of other tags have never been other ones
    if named := [name for tag in languages if tag not in TABLE and "(" in (name := language(tag).name)]:
        about["names"] = named
    about |= {"steps": steps(config), "completions": config.completions}
    about |= aiding.identity(config, steps(config))
    return Journal(config.out / JOURNAL, about | {"version": metadata.version("dragoman")})


def _local(config: Config) -> list[str]:
    """The models that are opened here."""
    return [m for m in ("" if config.server else config.model, config.draft_model) if m not in ("", APERTIUM)]


def _identity(model: str) -> str:
    """A model by its content where it is on this disk, else by its name."""
    if model == APERTIUM:
        return model
    from dragoman.modeling import model_checksum

    return model_checksum(model) or model


def _reading(models: Sequence[str]) -> dict[str, str]:
    """How models that are on this disk read and end texts, by the content of the files that say so."""
    from dragoman.methods.delta import base_of
    from dragoman.modeling import model_checksum, model_path

    here = [model for model in models if model_checksum(model)]
    folders = dict.fromkeys(Path(model_path(name)) for model in here for name in (model, base_of(model)))
    files = [path for folder in folders for name in READING for path in [folder / name] if path.is_file()]
    return {"reading": sha256(*files)} if files else {}


def _engine(config: Config) -> job.Engine:
    if config.server:
        from dragoman.translation.remote import RemoteEngine

        settings = {name: getattr(config, name) for name in ("concurrency", "per_minute", "completions")}
        return RemoteEngine(config.server, config.model, **settings)
    if config.model == APERTIUM:
        from dragoman.translation.apertium import ApertiumEngine

        return ApertiumEngine(normalise_tag(config.source), normalise_tag(config.to), batch=config.batch)
    from dragoman.commands.systems import opened
    from dragoman.translation.local import LocalEngine

    return LocalEngine(*opened(config.model, config), batch=config.batch)


def _estimate(config: Config, documents: Sequence[Document], units: dict[str, job.Unit]) -> dict[str, Any]:
    every = [place for document in documents for place in document.places]
    texts = [unit.masked.text for unit in units.values()]
    found = {"segments": len(every), "kept": sum(place.done for place in every), "to_translate": len(units)}
    found["characters"] = sum(map(len, texts))
    if not config.server and config.model != APERTIUM:
        from dragoman.methods.delta import base_of
        from dragoman.modeling import open_tokenizer

        found["tokens"] = sum(map(len, open_tokenizer(base_of(config.model)).encode(texts)))
    return {"estimate": found}


def _written(
    documents: Sequence[Document], names: Sequence[Path], out: Path, best: dict[str, job.Attempt], seen: set[str]
) -> tuple[dict[str, Any], list[str]]:
    """The account, and why files are not written: all segments of one are failed then, whatever became of them."""
    counts: Counter[str] = Counter()
    files, told, refused = [], [], []
    for document, name in zip(documents, names, strict=True):
        edits, lines = job.fill(document, str(name), best, seen)
        assert len(lines) == len(document.places)
        output: str | None = str(out / name)
        try:
            filled = document.filled(edits)
        except DataError as e:
            output, lines = None, [replace(line, state="failed", reasons=(UNWRITTEN,)) for line in lines]
            refused.append(str(e))
        else:
            with atomic_write(out / name) as partial:
                partial.write_bytes(filled)
        own = Counter(line.state for line in lines)
        counts += own
        files.append({"file": str(document.path), "sha256": document.checksum, "output": output, **own})
        told += [asdict(line) for line in lines if line.reasons]
    total = {"segments": sum(counts.values())} | {state: counts[state] for state in STATES}
    return {"counts": total, "files": files, "segments": told}, refused


def show(record: dict[str, Any]) -> None:
    """Print the account."""
    if "estimate" in record:
        print("  ".join(f"{name} {n:,}" for name, n in record["estimate"].items()))
        return
    print("  ".join(f"{name} {n:,}" for name, n in record["counts"].items()))
    for name, tally in record["strategies"].items():
        print(f"{name} against its draft: " + "  ".join(f"{what} {n:,}" for what, n in tally.items()))
    if any(tally["unjudged"] for tally in record["strategies"].values()):
        print("unjudged: there is no quality estimate without the extra embedding (pip install 'dragoman[embedding]')")
    for line in record["segments"]:
        print(f"{line['file']}:{line['line']}: {line['state']} ({', '.join(line['reasons'])}): {line['source'][:60]!r}")
    for file in record["files"]:
        print(f"{file['file']} -> {file['output']}")
