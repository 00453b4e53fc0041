"""One run of an experiment: its command lines in a folder of its own, and its record.

A record is that of every command (`dragoman.record.environment`) and

    {"command": "experiment", "question", "name", "kind", "list", "arm", "target", "seed", "rate",
     "status": "ended" | "failed", "error": null | text, "seconds": by line, "lines": [words],
     "records": {file below the folder: what the run keeps of a line's record, see `run_records`},
     "inputs": {"base_sha256", "corpus_sha256", "opened_sha256"}, "test_opened": bool,
     "score": of a rate run, "effects": what a script wrote as effects.json,
     "documents": [U names], "sums": {metric: {label: [U][S]}} of a final run}

The sums are those of an evaluation's segments, added up by document.
"""

# Shape letters: N segments, U documents, S sums of a metric.

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.commands.experiments import (
    PREPARING,
    Question,
    Run,
    Study,
    chosen_rates,
    command_lines,
    filled,
    final_runs,
    rate_of,
)
from dragoman.commands.run_records import FORM, OPENED, kept, rounded, write_once
from dragoman.corpora.ntext import NText, about_path
from dragoman.corpora.pack import BUILT_IN, fits, load_pack, open_corpus, spread
from dragoman.errors import ConfigError, DataError, UserError
from dragoman.record import environment, read_json, sha256, write_json

ENVIRONMENT = ("format", "created", "versions", "commit", "machine", "peak_memory_mb")
EFFECTS = "effects.json"
Command = Callable[[list[str]], Any]
SCORES = ("bits_per_byte", "chrf", "task_accuracy")
"""Metrics whose sums a record keeps."""


def execute(question: Question, run: Run, work: Path, path: Path, command: Command) -> dict[str, Any]:
    """Do a run and write its record, whether it ends or fails. A run that is killed leaves no record.

    What a run leaves that did all its lines, and whose sums were not found, stays: in NAME.unscored, after its record.
    command: what runs the words of a command line of dragoman; `dragoman.cli.run`.
    """
    study, home = question.studies[run.list], work / question.name
    out = home / f"{run.name}.running"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    record = environment() | {"command": "experiment", "question": question.name, "name": run.name, **asdict(run)}
    try:
        record |= {"status": "ended", "error": None} | _done(question, study, run, work, out, command)
    except Exception as e:  # whatever it is, it is this run's result
        record |= {"status": "failed", "error": _fault(e, out)}
    record |= {k: v for k, v in environment().items() if k in ("created", "peak_memory_mb")}
    prepared = home / run.name
    if run.kind in PREPARING and record["status"] == "ended":
        shutil.rmtree(prepared, ignore_errors=True)
        out.rename(prepared)
    if record["status"] == "failed" and "lines" in record:
        out.rename(home / f"{path.name.removesuffix(FORM)}.unscored")
    shutil.rmtree(out, ignore_errors=True)
    write_once(path, record)
    return record


def _done(
    question: Question, study: Study, run: Run, work: Path, out: Path, command: Command
) -> dict[str, Any]:
    """Do the lines of a run; what they left behind, for the record."""
    opened = question.opened if run.kind == "final" else None
    if opened:
        run = replace(run, rate=rate_of(study, opened, run))
    lines = {"common": study.prepare, "prepared": study.prepare_target, "rate": study.tried}
    folders = _folders(question, study, run, work, out, bool(opened))
    words = command_lines(study, lines.get(run.kind, study.train + study.test), run, folders)
    seconds = [_timed(line, command) for line in words]
    record: dict[str, Any] = {"rate": run.rate, "lines": [_told(line, folders) for line in words], "seconds": seconds}
    record |= {"records": kept(_records(out), run.kind), "test_opened": bool(opened)}
    record["inputs"] = _inputs(question, study, folders, opened)
    if run.kind == "rate" and study.rate:
        record["score"] = score_at(read_json(out / study.rate.file), study.rate.at.format(target=run.target))
    if (out / EFFECTS).is_file():
        record["effects"] = read_json(out / EFFECTS)
    if run.kind != "final":
        return record
    names = {**folders, "target": run.target, "seed": run.seed}
    evaluated = [line for line in record["lines"] if line.startswith("evaluate ")]
    scored = Path(filled(study.scored, names))
    try:
        return record | (_sums(scored, study.system) if evaluated or scored.is_dir() else {})
    except (KeyError, UserError) as e:
        return record | _unscored(run, _told([str(scored)], folders), _told([f"{type(e).__name__} {e}"], folders))


def _unscored(run: Run, scored: str, why: str) -> dict[str, str]:
    """That a run failed which evaluated something and left no sums where its list says that they are."""
    return {
        "status": "failed",
        "error": f"{scored}, the `scored` of the list {run.list}, has not the sums that it should ({why}). What the "
        "run left stays, in *.unscored; lists stand once the test split is open, so ask in a question of its own",
    }


def _folders(
    question: Question, study: Study, run: Run, work: Path, out: Path, opened: bool
) -> dict[str, Path | str]:
    home = work / question.name
    common = home / Run(list=run.list, kind="common").name
    prepared = home / Run(list=run.list, kind="prepared", target=run.target).name
    folders: dict[str, Path | str] = {"out": out, "common": common, "prepared": prepared}
    folders |= {"corpus": table(study, home / run.list, sealed=True)}
    if run.kind == "final":
        assert opened
        folders["test"] = table(study, home / f"{run.list}-opened", sealed=False)
    return folders


def _fault(error: Exception, out: Path) -> str:
    """The error and where it came up, without the folders of this machine."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return _anywhere(f"{type(error).__name__}: {error} ({where})".replace(str(out), "{out}"))


def _anywhere(text: str) -> str:
    return text.replace(f"{Path.cwd()}/", "").replace(str(Path.home()), "~")


def _timed(words: list[str], command: Command) -> float:
    """Seconds of a line: a command of dragoman, or a Python script."""
    started = time.monotonic()
    if words[0].endswith(".py"):
        module = words[0].removesuffix(".py").replace("/", ".")
        subprocess.run([sys.executable, "-m", module, *words[1:]], check=True)
    else:
        command(words)
    return round(time.monotonic() - started, 1)


def _told(words: list[str], folders: Mapping[str, Path | str]) -> str:
    """A line as it is kept: with names for the folders of this machine."""
    line = " ".join(words)
    for name, folder in sorted(folders.items(), key=lambda item: -len(str(item[1]))):
        line = line.replace(str(folder), f"{{{name}}}")
    return line


def _records(out: Path) -> dict[str, Any]:
    """Records that the lines wrote, by folder, and other JSON at the top, such as plans, by name."""
    found = {str(p.relative_to(out).parent): read_json(p) for p in sorted(out.rglob("record.json"))}
    found |= {p.name: read_json(p) for p in sorted(out.glob("*.json")) if p.name != EFFECTS}
    return {name: {k: v for k, v in r.items() if k not in ENVIRONMENT[1:]} for name, r in found.items()}


def _inputs(
    question: Question, study: Study, folders: Mapping[str, Path | str], opened: Mapping[str, Any] | None
) -> dict[str, Any]:
    from dragoman.modeling import model_checksum

    found = {"base_sha256": model_checksum(study.base), "corpus_sha256": _checksum(folders["corpus"])}
    if opened:
        found |= {"test_sha256": _checksum(folders["test"]), "opened_sha256": sha256(question.results / OPENED)}
    return found


def _checksum(path: Path | str) -> str:
    """That of a table that `save` wrote, as opening it would give."""
    return sha256(gzip.decompress(Path(path).read_bytes()))


def score_at(value: Any, keys: str) -> float:
    """The number at `a.b.c`; `*` stands for every key, and the numbers there are averaged."""
    if not keys:
        return float(value)
    key, _, rest = keys.partition(".")
    return float(np.mean([score_at(v, rest) for v in (value.values() if key == "*" else [value[key]])]))


def _sums(folder: Path, system: str) -> dict[str, Any]:
    """Sums by document of one system of an evaluation."""
    segments, systems = read_json(folder / "segments.json"), read_json(folder / "record.json")["systems"]
    by = segments["sums"][system or systems[0]]
    documents: dict[str, dict[str, list[str]]] = {}
    sums: dict[str, dict[str, Any]] = {}
    for metric in (m for m in SCORES if m in by):
        for label, sums_NS in by[metric].items():
            names, sums_US = by_document(segments["documents"][metric][label], np.array(sums_NS))
            documents.setdefault(metric, {})[label] = names
            sums.setdefault(metric, {})[label] = rounded(sums_US.tolist())
    shared = {tuple(names) for labels in documents.values() for names in labels.values()}
    return {"documents": list(shared.pop()) if len(shared) == 1 else documents, "sums": sums}


def by_document(documents: list[str], sums_NS: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Sums of the segments of each document, documents in order of their names: [U], [U, S]."""
    names, document_N = np.unique(documents, return_inverse=True)
    sums_US = np.zeros((len(names), sums_NS.shape[1]))
    np.add.at(sums_US, document_N, sums_NS)
    return names.tolist(), sums_US


# Records


def attempt_path(question: Question, run: Run) -> Path:
    """Where the next record of a run goes: no name is used twice."""
    tries = len(question.attempts().get(run.name, ()))
    return question.results / (run.name + (f"--again-{tries}" if tries else "") + FORM)


def write_failure(question: Question, run: Run, why: str, work: Path) -> None:
    """The record of a run whose process died, with the end of what it printed."""
    log = work / f"{question.name}--{run.name}.log"
    said = log.read_text(errors="replace")[-2000:] if log.is_file() else ""
    record = environment() | {"command": "experiment", "question": question.name, "name": run.name, **asdict(run)}
    write_once(attempt_path(question, run), record | {"status": "failed", "error": _anywhere(f"{why}\n{said}")})


# What may be compared


def base_run(question: Question, listed: str, target: str) -> Run:
    """The run of the arm `base` on a target: of the list itself, or else of one with the same base and corpus.

    Raises ConfigError where there is none.
    """
    ours = question.studies[listed]
    like = [name for name, s in question.studies.items() if (s.base, s.corpus) == (ours.base, ours.corpus)]
    every = (r for name in (listed, *like) for r in final_runs(name, question.studies[name]))
    found = next((r for r in every if (r.arm, r.target) == ("base", target)), None)
    if found is None:
        raise ConfigError(
            f"no list of {question.folder} on {ours.base} and {ours.corpus} has an arm base for {target}, which gains "
            f"and losses of {listed} are measured from; give {listed} one, or take another measure"
        )
    return found


def read_by(question: Question, run: Run) -> dict[str, str]:
    """What an ended run read that runs which are compared have to share: what -> which; not what no record has.

    A base or corpus of another name is a difference that lists declare. Columns in another order are another checksum
    of the same test text; there the rows that were asked for, and of which table, have to be the same.
    """
    study, record = question.studies[run.list], question.ended(run) or {}
    inputs = record.get("inputs", {})
    test, columns = inputs.get("test_sha256"), " ".join(study.languages)
    corpora = [r["corpus"] for r in record.get("records", {}).values() if isinstance(r.get("corpus"), dict)]
    tables = [c.get("from_table") for c in corpora if test and c.get("checksum") == test]
    found = {
        f"base {study.base}": inputs.get("base_sha256"),
        f"text of {study.corpus} in {columns}": inputs.get("corpus_sha256"),
        f"test text in {columns}": test,
        "table of the test text": next(iter(tables), None),
        "rows of the test text": test and f"{study.rows.get('test') or 'all'} in {' '.join(sorted(study.languages))}",
    }
    return {what: which for what, which in found.items() if which}


def require_same_read(who: str, read: Mapping[str, Mapping[str, str]]) -> None:
    """DataError where runs that are compared did not read the same; who compares; read: run -> what it read."""
    faults = []
    for what in dict.fromkeys(what for of_run in read.values() for what in of_run):
        by = {of_run[what]: name for name, of_run in read.items() if what in of_run}
        if len(by) > 1:
            told = {which if " " in which else which[:12]: name for which, name in by.items()}  # a checksum is long
            faults.append(f"{what}: {', '.join(f'{which} in {name}' for which, name in told.items())}")
    if faults:
        raise DataError(
            f"{who} compares runs that did not read the same ({'; '.join(faults)}); compare those that did, or "
            "run them anew in a question of their own"
        )


def same_documents(question: Question, runs: Sequence[Run], metric: str) -> tuple[str, ...]:
    """The documents of ended runs on one target; items of a task differ in theirs from target to target.

    Raises DataError where they are others, or a record has none.
    """
    found: dict[tuple[str, ...], str] = {}
    for run in runs:
        documents = (question.ended(run) or {}).get("documents", {})
        by = [documents] if isinstance(documents, list) else list(documents.get(metric, {}).values())
        if not by:
            raise DataError(
                f"the record of {run.name} of {question.name} has no {metric}, as what its list named as `scored` had "
                "none; leave out the claims and columns that ask for it, or run it anew in a question of its own"
            )
        found |= {tuple(names): run.name for names in by}
    if len(found) > 1:
        raise DataError(f"{' and '.join(found.values())} of {question.name} were scored on other documents")
    return next(iter(found))


# The sealed split


def open_question(question: Question, work: Path) -> None:
    """Open the sealed split of a question, once: from here on claim, lists, rates and test text stand.

    Raises ConfigError where runs are left and the text that is here now is another.
    """
    before = question.opened
    if before and all(run.name in question.records for run in question.runs("final")):
        return
    tables = {
        name: _checksum(table(study, work / question.name / f"{name}-opened", sealed=False))
        for name, study in question.studies.items()
    }
    if before:
        _require_same_text(question, tables, before["test_sha256"])
        return
    opened = {k: v for k, v in environment().items() if k in ("format", "created", "commit", "versions")}
    opened |= {"command": "open", "question": question.name, "files": question.checksums(), "test_sha256": tables}
    write_json(question.results / OPENED, opened | chosen_rates(question))


def _require_same_text(question: Question, tables: Mapping[str, str], opened: Mapping[str, str]) -> None:
    if odd := [name for name, checksum in tables.items() if opened.get(name) != checksum]:
        sources = dict.fromkeys(question.studies[name].test_corpus or question.studies[name].corpus for name in odd)
        raise ConfigError(
            f"the sealed rows of {', '.join(sources)} are other ones than when {question.name} was opened (lists "
            f"{', '.join(odd)}): its runs would not be of one text; fetch the packages of then, which its records name"
        )


def table(study: Study, stem: Path, sealed: bool) -> Path:
    """Train and dev of a list's corpus or, where it is opened, the sealed rows under the name of devtest, in a file.

    Rows of dev and test are complete in the list's languages, not too long or short, and spread over documents.
    The file's name is the stem and a checksum of what is asked: other text, languages or rows are another file.
    """
    corpus, split = (study.corpus, "dev") if sealed else (study.test_corpus or study.corpus, "test")
    source = Path(corpus)
    if corpus != BUILT_IN and not source.is_file():
        raise ConfigError(f"{source} is not there; make it: dragoman data fetch {source.name.split('.')[0]} --out data")
    what = source if source.is_file() else load_pack().checksum()
    asked = sha256(what, json.dumps([study.languages, split, study.rows.get(split)]))
    path = stem.with_name(f"{stem.name}-{asked[:12]}.tsv.gz")
    if path.is_file():
        return path
    text = open_corpus(corpus, open_test=not sealed).select(study.languages)
    rows = _held(text, split, study.rows.get(split))
    rows += [i for i, s in enumerate(text.splits) if s == "train"] if sealed else []
    chosen = text.take(sorted(rows))
    about = chosen.about | {"from_table": chosen.about["checksum"]}
    about |= {} if sealed else {"devtest_is": "the sealed split"}
    named = tuple("devtest" if s == "test" else s for s in chosen.splits)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # other workers may make the same, or read it
        # headings may be left out here: what stands under what is not known any more
        made = replace(chosen, splits=named, about=about, headless=None).save(Path(folder) / path.name)
        os.replace(about_path(made), about_path(path))
        os.replace(made, path)
    return path


def _held(text: NText, split: str, number: int | None) -> list[int]:
    """Rows of a split that are complete and fit, a document's first before any document's second."""
    rows = [i for i, s in enumerate(text.splits) if s == split]
    rows = [i for i in rows if all(text.columns[g][i] for g in text.languages) and fits(text, i)]
    if len(rows) < 2:
        spoken = ", ".join(text.languages)
        raise DataError(f"{len(rows)} rows of {split} are complete in {spoken}; name fewer languages")
    return [rows[k] for k in spread(text.take(rows), split, 0)][:number]
