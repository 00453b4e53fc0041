"""Two records of `dragoman evaluate`: what differs, which numbers may be compared at all, and the test of those.

A number of a metric and a label (a language, or a direction such as `en-de`) may be compared with that of another
record where the settings in the metric's signature and the checksums of the text agree. What is compared is the first
system of each record, the later one minus the earlier one; the test takes the sums of every segment beside the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any

from dragoman.commands import scoring
from dragoman.commands.judging import verdict, warnings_of
from dragoman.errors import DataError, UserError
from dragoman.evaluation.significance import holm
from dragoman.record import atomic_write, read_json, sha256
from dragoman.reporting.tables import Table, comparisons_of, in_columns, number

Record = dict[str, Any]
Both = Mapping[str, Record]
"""`before` and `after` -> a record."""

PARTS = ("config", "systems", "signatures", "metrics")
SETTINGS = ("test_set", "choices", "split", "segments", "seed")
OF_TRANSLATIONS = ("references", "sources")
TEXTS = {
    "bits_per_byte": ("likelihoods",),
    "option_accuracy": ("choices",),
    "task_accuracy": ("task",),
    "term_recall": ("terms", *OF_TRANSLATIONS),
}
"""Metric -> the texts in a record that it was scored on; OF_TRANSLATIONS where it is not here."""


def measure(before: Path, after: Path, seed: int) -> Record:
    """What the record of the comparison says. DataError where a file is no evaluation or nothing is in both."""
    paths = {"before": before, "after": after}
    records = {side: _read(path) for side, path in paths.items()}
    numbers = _numbers(records, paths)
    segments, untested = _segments(records, paths)
    comparisons: list[Record] = []
    warnings = _controls(records, numbers)
    if len(segments) == len(records):
        scored = _scored(records, segments, numbers, untested)
        comparisons = _tests(scored, records["after"]["metrics"], untested, seed)
        warnings += warnings_of(scored, comparisons)
    return {
        "systems": {side: record["systems"][0] for side, record in records.items()},
        "metrics": {n["metric"]: records["after"]["metrics"][n["metric"]] for n in numbers},
        "differs": _differs(records),
        "numbers": numbers,
        "comparisons": comparisons,
        "untested": untested,
        "warnings": warnings,
    }


def _read(path: Path) -> Record:
    record = read_json(path)
    if absent := [part for part in PARTS if not record.get(part)]:
        raise DataError(f"{path} is an evaluation without {', '.join(absent)}; make it again with `dragoman evaluate`")
    return record


# What differs


def _differs(records: Both) -> list[dict[str, str]]:
    """Facts that are not the same in both, in words; – where one record has none."""
    shared = [n for n in records["before"]["signatures"] if n in records["after"]["signatures"]]
    before, after = (_facts(record, shared) for record in records.values())
    both = {what: (str(before.get(what) or "–"), str(after.get(what) or "–")) for what in before | after}
    return [{"what": what, "before": b, "after": a} for what, (b, a) in both.items() if b != a]


def _facts(record: Record, shared: list[str]) -> dict[str, Any]:
    first, corpus = record["systems"][0], record.get("corpus", {})
    facts = {"system": first, "checksum of the system": _identity(record, first)}
    facts |= {"corpus": corpus.get("name"), "checksum of the corpus": corpus.get("checksum")}
    facts |= {name.replace("_", " "): record["config"].get(name) for name in SETTINGS}
    facts |= {"dtype": record.get("dtypes", {}).get(first, "float32")}  # which records once did not say
    facts |= {f"{n}, labels": ", ".join(record[n].get(first, {})) for n in record["metrics"]}
    facts |= {f"{n}, setting {k}": v for n in shared for k, v in _settings(record["signatures"][n]).items()}
    facts |= {f"version of {package}": v for package, v in record.get("versions", {}).items()}
    return facts | {"commit": record.get("commit"), "processor": record.get("machine", {}).get("processor")}


def _identity(record: Record, system: str) -> str | None:
    """Checksum of a model or of a file of translations; None for copy and references."""
    checksum = (record.get("models") or record.get("files") or {}).get(system)
    return checksum and checksum[:12]


def _settings(signature: str) -> dict[str, str]:
    """`case:mixed|tok:13a` -> {"case": "mixed", "tok": "13a"}."""
    return {part.partition(":")[0]: part.partition(":")[2] for part in signature.split("|")}


# Which numbers may be compared


def _numbers(records: Both, paths: Mapping[str, Path]) -> list[Record]:
    """Every metric and label that the first systems share, with what keeps their numbers apart."""
    there = {side: _labels(record) for side, record in records.items()}
    shared = [pair for pair in there["before"] if pair in there["after"]]
    if not shared:
        told = (f"{path} has {_listed(there[side])}" for side, path in paths.items())
        raise DataError(
            f"the records have nothing in common: {' and '.join(told)}; evaluate both in one language or direction"
        )
    found = []
    for name, label in shared:
        values = {side: record[name][record["systems"][0]][label] for side, record in records.items()}
        reasons = [*_unlike_settings(records, name), *_unlike_texts(records, name, label)]
        found.append({"metric": name, "language": label, **values, "comparable": not reasons, "reasons": reasons})
    return found


def _labels(record: Record) -> list[tuple[str, str]]:
    first = record["systems"][0]
    return [(name, label) for name in record["metrics"] for label in record[name].get(first, {})]


def _listed(pairs: list[tuple[str, str]]) -> str:
    by = {name: [label for n, label in pairs if n == name] for name, _ in pairs}
    return "; ".join(f"{name} of {', '.join(labels)}" for name, labels in by.items()) or "no numbers"


def _unlike_settings(records: Both, name: str) -> list[str]:
    """Settings of the metric that differ.

    A signature joins what depends on the language (`tok:13a+zh`). Where records are of different labels, values that
    are among those of the other record agree: the label that both have got the same one.
    """
    labels = [{label for n, label in _labels(record) if n == name} for record in records.values()]
    before, after = (_settings(record["signatures"][name]) for record in records.values())

    def agree(x: set[str], y: set[str]) -> bool:
        return x == y or (labels[0] != labels[1] and (x < y or y < x))

    every = {key: (before.get(key, "–"), after.get(key, "–")) for key in before | after}
    apart = [f"{k} is {x} and {y}" for k, (x, y) in every.items() if not agree({*x.split("+")}, {*y.split("+")})]
    return [f"signatures differ: {', '.join(apart)}"] if apart else []


def _unlike_texts(records: Both, name: str, label: str) -> list[str]:
    kinds = TEXTS.get(name, OF_TRANSLATIONS)
    texts = {side: record.get("texts", {}) for side, record in records.items()}
    known = {side: {kind: by.get(kind, {}).get(label) for kind in kinds} for side, by in texts.items()}
    if unknown := [side for side, by in known.items() if not by[kinds[0]]]:
        return [f"no checksum of the text in {' and '.join(unknown)}: evaluate again"]
    apart = [k for k in kinds if len({by[k] for by in known.values()} - {None}) > 1]
    return [f"other {' and '.join(apart)}"] if apart else []


def _controls(records: Both, numbers: list[Record]) -> list[str]:
    """Systems that are the same in both records should have the same values; what to mind where they have not."""
    before, after = records.values()
    others = [s for s in before["systems"][1:] if s in after["systems"] and _identity(before, s) == _identity(after, s)]
    told = []
    for n in numbers:
        values = [(s, [r[n["metric"]].get(s, {}).get(n["language"]) for r in records.values()]) for s in others]
        for s, (x, y) in values:
            if n["comparable"] and None not in (x, y) and not isclose(x, y, rel_tol=1e-6, abs_tol=1e-9):
                told.append(
                    f"{s} is the same in both records, but its {n['metric']} of {n['language']} was {x:.6g} and is "
                    f"{y:.6g}: something else than the compared systems has changed"
                )
    return told


# The test


def _segments(records: Both, paths: Mapping[str, Path]) -> tuple[dict[str, Record], list[str]]:
    """Sums of every segment of each record that still has them, and why there is no test where not."""
    found, missing = {}, []
    for side, record in records.items():
        kept = record.get("segments") or {}
        path = paths[side].parent / kept.get("file", "segments.json")
        if not path.is_file():
            missing.append(f"{path} is not there, so only signatures and texts are compared and nothing is tested")
        elif sha256(path) != kept.get("sha256"):
            missing.append(f"{path} is not the file that its record was written with, so nothing is tested")
        else:
            found[side] = read_json(path)
    return found, missing


def _scored(
    records: Both, segments: Mapping[str, Record], numbers: list[Record], untested: list[str]
) -> dict[str, Record]:
    """Sums of what may be compared, as `scoring` has them; what lies in other documents goes to `untested`."""
    scored: dict[str, Record] = {side: scoring.empty_sums() for side in records}
    for name, label in ((n["metric"], n["language"]) for n in numbers if n["comparable"]):
        documents = {side: by["documents"][name][label] for side, by in segments.items()}
        if documents["before"] != documents["after"]:
            untested.append(f"{name} of {label}: its segments are in other documents; evaluate both with the same")
            continue
        for side, by in segments.items():
            scored[side].setdefault(name, {})[label] = by["sums"][records[side]["systems"][0]][name][label]
            scored[side]["documents"].setdefault(name, {})[label] = documents[side]
    return scored


def _tests(scored: Mapping[str, Record], metrics: Record, untested: list[str], seed: int) -> list[Record]:
    """After minus before in everything that may be compared, paired bootstrap by document, Holm over all of it."""
    found = []
    every = [(name, label) for name, by in scored["after"]["documents"].items() for label in by]
    for name, label in every:
        try:
            tested = scoring.compare(scored, "after", "before", name, label, seed, among=len(every))
            shown = scoring.detectable(scored, "after", "before", name, label, seed)
        except UserError as e:  # a metric whose extra is not installed here, too few segments
            untested.append(f"{name} of {label}: {e}")
            continue
        found.append({"metric": name, "language": label, **tested, "detectable": shown})
    adjusted = holm([c["p_value"] for c in found])
    whole = [c | {"p_holm": float(p)} for c, p in zip(found, adjusted, strict=True)]
    return [c | verdict(c, metrics[c["metric"]]["higher_is_better"]) for c in whole]


# The table


def text(record: Record) -> str:
    """What differs, which numbers may be compared, and the differences, as plain tables."""
    sides = [f"{side}: {record['systems'][side]} in {record['files'][side]['path']}" for side in record["files"]]
    differs = [[d["what"], d["before"], d["after"]] for d in record["differs"]] or [["nothing", "", ""]]
    tables = [
        Table("What differs", ["", "before", "after"], differs),
        Table("May the numbers be compared?", ["metric", "", "before", "after", ""], [*map(_row, record["numbers"])]),
    ]
    for name, about in record["metrics"].items():
        tables += comparisons_of(record, name, about)
    return "\n\n".join(["\n".join(sides), *map(in_columns, tables), *_remarks(record)]) + "\n"


def _row(n: Record) -> list[str]:
    if not n["comparable"]:
        return [n["metric"], n["language"], "–", "–", f"no: {'; '.join(n['reasons'])}"]
    return [n["metric"], n["language"], *(number(n[side], n["metric"]) for side in ("before", "after")), "yes"]


def _remarks(record: Record) -> list[str]:
    told = [f"Not tested: {reason}." for reason in record["untested"]]
    told += [f"Mind: {warning}." for warning in record["warnings"]]
    if record["comparisons"]:
        told.insert(0, "Differences: paired bootstrap with 95 % intervals; Holm over all differences shown here.")
    return ["\n".join(told)] if told else []


def write(record: Record, out: Path) -> None:
    """The tables as report.txt."""
    with atomic_write(out / "report.txt") as partial:
        partial.write_text(text(record), encoding="utf-8")


def show(record: Record) -> None:
    """Print the tables."""
    print(text(record), end="")
