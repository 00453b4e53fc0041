"""Experiments: what a folder of questions asks for, and which of its runs have a record.

    <question>/claim.md          claim, controls, plan: written before any run
    <question>/*.yaml            lists of arms, each a set of command lines
    <question>/claims.yaml       the comparisons that decide, for the report
    <question>/results/          NAME.json.gz, one record a run (`run_records`); opened.json: when, and after what, the
                                 sealed test split was opened

A list has command lines with `{names}` in braces; names are the list's `variables`, those of a target, of an arm, and

    base corpus known     as the list says; corpus has no row of the sealed split
    test                  the corpus whose devtest rows are those of the sealed split; in `test` alone
    target seed rate      of the run; rate: what is chosen on dev, be it a learning rate or another strength
    out common prepared   folder of the run, of the list's preparation, of its preparation for this target

A line is left out where one of its names, or of those that they stand for, is null. `prepare` runs once,
`prepare_target` for every target, `try` for every arm, target and value of `rate`, `train` and `test` for every arm,
target and seed. A list may extend another one.
"""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dragoman.commands import yamls
from dragoman.commands.run_records import OPENED, attempts
from dragoman.errors import ConfigError, DataError
from dragoman.record import read_json, sha256

RESERVED = ("claims.yaml",)
ALL = "all"
"""Target of a list that has none."""
BETTER = ("lower", "higher")
LISTS = ("known", "complete", "seeds", "prepare", "prepare_target", "tried", "train", "test")
NAMED = ("arms", "targets", "rows", "variables", "rate")
Arm = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What is chosen on dev for every arm and target."""

    values: tuple[float, ...]
    """The grid, the same for all arms."""
    file: str
    """JSON file below the run's folder that has the score."""
    at: str
    """Where in it: keys with points between, `*` for all of them, {target} for the run's."""
    better: str = "lower"
    """lower or higher."""
    seed: int = 100
    """Of the runs that are chosen by; none of the list's."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One list of a question."""

    arms: dict[str, Arm]
    """Name -> its names for the command lines; `seeds` and `rate_of` (an arm whose rates it takes) are ours."""
    corpus: str
    """N-way text with a sealed split, such as data/help.tsv.gz; or, with `test_corpus`, text without one."""
    known: tuple[str, ...]
    """Languages that may be forgotten, English first."""
    test_corpus: str = ""
    """N-way text whose sealed split is opened; default: `corpus`."""
    order: int = 1
    """Questions are run in this order, each whole before the next one."""
    base: str = "mini-moe"
    """Model that everything starts from."""
    targets: dict[str, Arm] = field(default_factory=lambda: {ALL: {}})
    """New languages, each with names of its own."""
    complete: tuple[str, ...] = ()
    """Languages in which every row of dev and test has text; default: known ones and targets. Lists that are to be
    compared name the same."""
    rows: dict[str, int | None] = field(default_factory=lambda: {"dev": 300, "test": 300})
    """Rows of dev and test, complete in all languages and spread over documents; null: every row."""
    seeds: tuple[int, ...] = (1,)
    """Of training, one run each."""
    rate: Rate | None = None
    variables: Arm = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    prepare_target: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    """`try` in the file."""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    scored: str = "{out}/evaluation"
    """Folder of the evaluation whose sums the record keeps."""
    system: str = ""
    """Which of its systems; default: the first."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Every language that the rows have."""
        return tuple(dict.fromkeys([*self.known, *(g for g in self.targets if g != ALL), *self.complete]))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a list, with one record."""

    list: str
    kind: str
    """common, prepared, rate or final."""
    arm: str = ""
    target: str = ALL
    seed: int = 0
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of the record."""
        last = {"rate": f"rate-{self.rate:g}" if self.rate else "", "final": f"seed-{self.seed}"}.get(self.kind, "")
        return "--".join(p for p in (self.list, self.arm or "prepare", self.target, last) if p)


class Question:
    """A folder with a claim, lists and records."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.studies = {p.stem: read_study(p) for p in sorted(folder.glob("*.yaml")) if p.name not in RESERVED}
        self.order = min((s.order for s in self.studies.values()), default=float("inf"))

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Name of a run -> its record; of several attempts the first that ended, else the last."""
        found: dict[str, dict[str, Any]] = {}
        for name, paths in self.attempts().items():
            for path in paths:
                if found.get(name, {}).get("status") != "ended":
                    found[name] = read_json(path)
        return found

    def attempts(self) -> dict[str, list[Path]]:
        """Name of a run -> its records in the order in which they were written, read anew."""
        return attempts(self.results)

    @property
    def opened(self) -> dict[str, Any] | None:
        """What was known when the sealed split was opened. ConfigError where claim or lists have changed since."""
        path = self.results / OPENED
        if not path.is_file():
            return None
        opened = read_json(path)
        now = self.checksums()
        if changed := [name for name in now | opened["files"] if now.get(name) != opened["files"].get(name)]:
            raise ConfigError(
                f"{', '.join(changed)} of {self.folder} changed after the test split was opened for it; restore what "
                "was there, and put what is new into a new question's folder"
            )
        return opened

    def checksums(self) -> dict[str, str]:
        """Of claim and lists, which do not change once the test split is open."""
        return {p.name: sha256(p) for p in [self.folder / "claim.md", *sorted(self.folder.glob("*.yaml"))]}

    def runs(self, kind: str) -> list[Run]:
        """Every run of a kind, in order."""
        return [run for name, study in self.studies.items() for run in RUNS[kind](name, study)]

    def status(self, run: Run) -> str:
        """What the last record of a run says, read anew."""
        tries = self.attempts().get(run.name)
        return str(read_json(tries[-1])["status"]) if tries else "no record"

    def ended(self, run: Run) -> dict[str, Any] | None:
        """The record of a run that ended well."""
        record = self.records.get(run.name)
        return record if record and record["status"] == "ended" else None


def questions(folder: Path) -> list[Question]:
    """The questions of a folder in the order in which they are run. DataError where there is none."""
    found = [Question(p.parent) for p in sorted(folder.glob("*/claim.md"))]
    if not found:
        raise DataError(f"{folder} has no question: a folder with claim.md and lists (*.yaml) is one")
    return sorted(found, key=lambda q: (q.order, q.name))


def read_study(path: Path) -> Study:
    """A list. ConfigError for keys that it does not know or lacks, values of another shape, arms that refer to none."""
    given = read_yaml(path, "list of runs")
    if parent := given.pop("extends", None):
        given = read_yaml(path.parent / parent, "list of runs") | given
    if "try" in given:
        given["tried"] = given.pop("try")
    if given.get("rate", 0) is None:  # as if it were not there: a list has no rate though the one that it extends has
        del given["rate"]
    if faults := [*_key_faults(given, Study), *_shape_faults(given), *_rate_faults(given)] or _scored_faults(given):
        raise ConfigError(f"{path}: {'; '.join(faults)}; docs/experiments.md says what a list holds")
    given |= {name: tuple(given[name]) for name in LISTS if name in given}
    given |= {by: {name: own or {} for name, own in _within(given, by)} for by in ("arms", "targets") if given.get(by)}
    if rate := given.get("rate"):
        given["rate"] = Rate(**rate | {"values": tuple(rate["values"])})
    return Study(**given)


def _scored_faults(given: Mapping[str, Any]) -> list[str]:
    """That sums would be looked for where no evaluation puts them, as far as that can be told without the arms."""
    scored = given.get("scored", Study.scored).rstrip("/")
    words = [line.split() for line in (*given.get("train", ()), *given.get("test", ())) if line.strip()]
    folders = [w[w.index("--out") + 1].rstrip("/") for w in words if w[0] == "evaluate" and "--out" in w[:-1]]
    scripts = any(w[0].endswith(".py") for w in words)  # which may write it
    if not folders or scripts or scored in folders or any("{" in f.replace("{out}", "") for f in (scored, *folders)):
        return []
    return [f"`scored` is {scored}, but its lines evaluate into {', '.join(folders)}"]


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """What a file says. ConfigError where it cannot be read or has no keys, and so is no `what`."""
    try:
        return dict(yamls.read(path))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as e:
        raise ConfigError(f"{path} is no {what}: {' '.join(str(e).split())}") from None


def _key_faults(given: Mapping[str, Any], kind: type, at: str = "") -> list[str]:
    """Keys that a Study or Rate does not have, and those that it cannot do without."""
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    faults = [f"{at}{name} is no key of a list" for name in given if name not in {f.name for f in fields(kind)}]
    return faults + [f"{at}{name} is missing" for name in needed if name not in given]


def _shape_faults(given: Mapping[str, Any]) -> list[str]:
    """What should be a list, or names with values, and is not."""
    faults = [f"{name} is no list" for name in LISTS if not isinstance(given.get(name, []), list)]
    faults += [f"{name} is empty" for name in ("known", "seeds") if given.get(name) == []]
    faults += [f"{name} has no names" for name in NAMED if not isinstance(given.get(name, {}), dict)]
    every = {f"{by}.{name}": own or {} for by in ("arms", "targets") for name, own in _within(given, by)}
    faults += [f"{name} has no names" for name, own in every.items() if not isinstance(own, dict)]
    seeds = {name: own["seeds"] for name, own in every.items() if isinstance(own, dict) and "seeds" in own}
    return faults + [f"{name}.seeds is no list of one or more" for name, by in seeds.items() if not _some(by)]


def _rate_faults(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the rate, and arms that take the rates of no arm."""
    lenders = {a: _rate_of(a, arm) for a, arm in _within(given, "arms") if isinstance(arm or {}, dict)}
    faults = [f"{arm} takes the rates of {a}, which is no arm" for arm, a in lenders.items() if a not in lenders]
    if not isinstance(rate := given.get("rate"), dict):
        return faults
    faults += _key_faults(rate, Rate, "rate.")
    faults += ["rate.values is no list of one or more"] if not _some(rate.get("values", [1])) else []
    return faults + (["rate.better is neither lower nor higher"] if rate.get("better", "lower") not in BETTER else [])


def _within(given: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    return list(given[name].items()) if isinstance(given.get(name), dict) else []


def _some(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _rate_of(name: str, arm: Arm | None) -> str:
    return (arm or {}).get("rate_of", name)


# Runs


def common_runs(name: str, study: Study) -> list[Run]:
    """What is done once for a list."""
    return [Run(list=name, kind="common")] if study.prepare else []


def prepared_runs(name: str, study: Study) -> list[Run]:
    """What is done once for each of its targets."""
    return [Run(list=name, kind="prepared", target=g) for g in study.targets] if study.prepare_target else []


def rate_runs(name: str, study: Study) -> list[Run]:
    """Every arm that has a rate of its own, on every target, at every value."""
    if study.rate is None:
        return []
    arms = [a for a, arm in study.arms.items() if uses_rate(study, a) and _rate_of(a, arm) == a]
    return [
        Run(list=name, kind="rate", arm=a, target=g, seed=study.rate.seed, rate=float(value))
        for a in arms
        for g in study.targets
        for value in study.rate.values
    ]


def final_runs(name: str, study: Study) -> list[Run]:
    """Every arm on every target with every seed, a seed of all arms before the next one."""
    seeds = {a: tuple(arm.get("seeds", study.seeds)) for a, arm in study.arms.items()}
    every = sorted({s for by in seeds.values() for s in by})
    return [
        Run(list=name, kind="final", arm=a, target=g, seed=s)
        for s in every
        for g in study.targets
        for a in study.arms
        if s in seeds[a]
    ]


RUNS = {"common": common_runs, "prepared": prepared_runs, "rate": rate_runs, "final": final_runs}
"""Kinds of runs in the order in which they are done; all of one kind before the next."""
PREPARING = ("common", "prepared")


def uses_rate(study: Study, arm: str) -> bool:
    """Does a line of this arm name the rate, on any target?"""
    every = [study.variables | of_target | study.arms[arm] for of_target in study.targets.values()]
    met = [(names, expanded(line, names)[1]) for names in every for line in study.train + study.test]
    return any("rate" in found and not _null(found, names) for names, found in met)


def command_lines(study: Study, lines: Sequence[str], run: Run, folders: Mapping[str, Path | str]) -> list[list[str]]:
    """The words of each command line of a run; ConfigError for names that nothing defines."""
    arm = study.arms.get(run.arm, {})
    names: dict[str, Any] = {"base": study.base, "known": " ".join(study.known), "target": run.target}
    names |= {"seed": run.seed, "rate": None if run.rate is None else f"{run.rate:g}", **folders}
    names |= study.variables | study.targets.get(run.target, {}) | arm
    found = [expanded(line, names) for line in lines]
    if unknown := {n for _, met in found for n in met} - set(names):
        raise ConfigError(f"{run.name}: nothing says what {', '.join(sorted(unknown))} is; give it to the arm or list")
    return [shlex.split(line) for line, met in found if not _null(met, names)]


def filled(line: str, names: Mapping[str, Any]) -> str:
    """A line with its names replaced; ConfigError for those that nothing defines."""
    text, met = expanded(line, names)
    if unknown := met - set(names):
        raise ConfigError(f"nothing says what {', '.join(sorted(unknown))} is in: {line}")
    return text


def expanded(line: str, names: Mapping[str, Any], within: tuple[str, ...] = ()) -> tuple[str, set[str]]:
    """A line with its names replaced, and those in what replaced them; and all names that were met on the way.

    Nothing stands in place of a name that is null or that nothing defines. within: names that the line is part of;
    ConfigError where one of them is in it again.
    """
    own = {name for _, name, _, _ in string.Formatter().parse(line) if name}
    if again := sorted(own & set(within)):
        raise ConfigError(f"what {again[0]} stands for has {{{again[0]}}} in it; write it out")
    values, met = {}, set(own)
    for name in own:
        value = names.get(name)
        values[name] = "" if value is None else value
        if isinstance(value, str):
            values[name], inner = expanded(value, names, (*within, name))
            met |= inner
    return line.format_map(values), met


def _null(met: set[str], names: Mapping[str, Any]) -> bool:
    return any(name in names and names[name] is None for name in met)


# Choosing on dev


def chosen_rates(question: Question) -> dict[str, Any]:
    """List -> arm -> target -> the value with the best score on dev, and which of them stand at an end of the grid."""
    rates: dict[str, Any] = {}
    at_an_end, without = [], []
    for name, study in question.studies.items():
        for run in dict.fromkeys(replace(r, rate=None) for r in rate_runs(name, study)):
            tried = {v: question.ended(replace(run, rate=float(v))) for v in study.rate.values} if study.rate else {}
            scores = {v: record["score"] for v, record in tried.items() if record}
            if not scores or study.rate is None:
                without.append(f"{name}/{run.arm}/{run.target}")
                continue
            best = (min if study.rate.better == "lower" else max)(scores, key=lambda v: scores[v])
            rates.setdefault(name, {}).setdefault(run.arm, {})[run.target] = best
            if best in (min(tried), max(tried)):
                at_an_end.append(f"{name}/{run.arm}/{run.target}")
    return {"rates": rates, "at_an_end_of_the_grid": at_an_end, "without_a_rate": without}


def rate_of(study: Study, opened: Mapping[str, Any], run: Run) -> float | None:
    """The rate that was chosen for a final run. ConfigError where no run of its grid ended."""
    if study.rate is None or not uses_rate(study, run.arm):
        return None
    arm = _rate_of(run.arm, study.arms[run.arm])
    found = opened["rates"].get(run.list, {}).get(arm, {}).get(run.target)
    if found is None:
        raise ConfigError(f"no run at any rate of {arm} on {run.target} ended, so {run.name} has no rate")
    return float(found)
