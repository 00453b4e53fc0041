"""`dragoman report`: every table and figure of a folder of experiments, from its records alone.

report.md has the table of claims, then for each question what was run, what is missing, the rates that dev chose and
the values of every arm; `<question>/frontier.svg` what arms gain against what they lose. The same records give the same
bytes, so that `--check` can compare with what is there. docs/experiments.md says what the folder holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.commands import Switch
from dragoman.commands.claims import MEASURES, Measure, Panel, compared, judged, labels_of, panel, read_claims
from dragoman.commands.experiments import ALL, RUNS, Question, final_runs, questions
from dragoman.commands.measures import formula
from dragoman.errors import DataError
from dragoman.record import atomic_write
from dragoman.reporting.frontier import Point, frontier

PAGE, FIGURE = "report.md", "frontier.svg"
HEAD = """# Experiments: what the records say

Made from the records by `dragoman report`; [how](../../docs/experiments.md). Every question has one base (n = 1): seeds
vary the training, never the base. Intervals: 95 %, by bootstrap over seeds and documents; p: after Holm over the
question's claims of a family. *By seed*: the same difference seed by seed, where both arms have the same seeds or one
has a single run; p is too small where these few differ more than documents do
([why](../../docs/experiments.md#the-report)). *open*: runs are missing.
"""


@dataclass(frozen=True)
class Config:
    """Rebuild the report of a folder of experiments."""

    folder: Path
    """Folder with a folder for each question, such as benchmarks/experiments."""
    _: KW_ONLY
    check: Switch = False
    """Write nothing; fail where the report that is there is not the one that the records give."""


def run(config: Config) -> dict[str, Any]:
    """Rebuild tables and figures of experiments from their records, or check those that are there."""
    found = questions(config.folder)
    claims = {q.name: judged(q) for q in found}
    figures = {f"{q.name}/{FIGURE}": svg for q in found if (svg := figure(q))}
    files = {PAGE: page(found, claims, figures)} | figures
    paths = {config.folder / name: content for name, content in files.items()}
    if config.check:
        _check(config.folder, paths)
    else:
        for path, content in paths.items():
            with atomic_write(path) as partial:
                partial.write_text(content, encoding="utf-8")
    return {"claims": claims, "files": [str(p) for p in paths], "checked": config.check}


def show(record: dict[str, Any]) -> None:
    """Print the verdicts and the files."""
    for name, claims in record["claims"].items():
        for claim in claims:
            print(f"{name} {claim['id']}: {claim['verdict']}")
    print(f"{'as the records give it' if record['checked'] else 'written'}: {', '.join(record['files'])}")


def _check(folder: Path, paths: Mapping[Path, str]) -> None:
    there = {p: p.read_text(encoding="utf-8") if p.is_file() else None for p in paths}
    stale = [str(p) for p, content in paths.items() if there[p] != content]
    if stale:
        raise DataError(f"{', '.join(stale)} is not what the records give; run `dragoman report {folder}`")


# The page


def page(
    found: Sequence[Question], claims: Mapping[str, Sequence[Mapping[str, Any]]], figures: Mapping[str, str]
) -> str:
    """The whole report; figures: file -> SVG, of the questions that have one."""
    head = ["question", "the paper's claim", "ours, small", "effect", "by seed", "p", "verdict", "records"]
    rows = [_claim_row(q, c) for q in found for c in claims[q.name]]
    parts = [HEAD, "## Claims\n", _table(head, rows)]
    for q in found:
        parts += [f"## {q.name}\n", _state(q), *_values(q), *_parts(q), *_rates(q)]
        if f"{q.name}/{FIGURE}" in figures:
            parts.append(f"![What arms gain and lose]({q.name}/{FIGURE})\n")
    return "\n".join(parts)


def _claim_row(question: Question, claim: Mapping[str, Any]) -> list[str]:
    where = f"[claim]({question.name}/claim.md)"
    if question.results.is_dir():
        where += f", [records]({question.name}/results)"
    missing = f" ({len(claim['missing'])} runs missing)" if "missing" in claim else ""
    why = f": {claim['untestable']}" if "untestable" in claim else ""
    p = f"{claim['p_holm']:.4f}" if "p_holm" in claim else "–"
    verdict = f"**{claim['verdict']}**{missing}{why}"
    paper = f"{claim['paper']} ({claim['source']})"
    return [question.name, paper, claim["ours"], effect(claim), by_seed(claim), p, verdict, where]


def effect(claim: Mapping[str, Any]) -> str:
    """Difference with its interval, and the two values that it is of; – without a result."""
    if "difference" not in claim:
        return "–"
    limits = f" [{claim['low']:+.3f}, {claim['high']:+.3f}]" if "low" in claim else ""
    of = f"; {claim['a']:.3f} and {claim['b']:.3f}" if isinstance(claim["a"], float) else ""
    margin = f" (margin {100 * claim['margin']:+g} %)" if claim.get("margin") else ""
    return f"{claim['difference']:+.3f}{limits}{of}{margin}"


def by_seed(claim: Mapping[str, Any]) -> str:
    """The difference of each pair of runs, in the order of seeds; – where runs are not paired or there is one."""
    values = claim.get("values", ((), ()))
    if max(map(len, values)) < 2 or not claim["by_seed"]:
        return "–"
    a_K, b_K = map(np.array, values)
    return ", ".join(f"{d:+.3f}" for d in a_K - (1 + claim.get("margin", 0.0)) * b_K)


def _state(question: Question) -> str:
    """How many runs of each kind have ended, failed, or are missing, and whether the test split is open."""
    said = []
    for kind in RUNS:
        runs = question.runs(kind)
        if not runs:
            continue
        ended = [r for r in runs if question.ended(r)]
        failed = [r.name for r in runs if r.name in question.records and r not in ended]
        line = f"{kind}: {len(ended)} of {len(runs)} runs"
        said.append(line + (f"; failed: {', '.join(failed)}" if failed else ""))
    opened = question.opened
    seal = f"opened {opened['created'][:10]} at commit {opened['commit']}" if opened else "sealed"
    return "\n".join(f"- {line}" for line in [*said, f"test split: {seal}"]) + "\n"


def _values(question: Question) -> list[str]:
    """Mean and standard deviation over seeds of every arm and target whose runs have all ended."""
    columns = read_claims(question)["columns"]
    rows = []
    for name, study in question.studies.items():
        for target in study.targets:
            for arm in study.arms:
                found = [panel(question, f"{name}/{arm}", m, [target]) for m in columns]
                if columns and not any(isinstance(p, list) for p in found):
                    cells = [_cell(p) for p in found if isinstance(p, Panel)]
                    share = _share(question, name, arm, target)
                    rows.append([name, "" if target == ALL else target, arm, *cells, share])
    head = ["list", "target", "arm", *(MEASURES[m].title for m in columns), "trained, %"]
    return [_table(head, rows)] if rows else []


def _cell(panel: Panel) -> str:
    return _spreads([panel(sums_US.sum(axis=0)) for sums_US in panel.sums_KUS], panel.measure)[0]


def _spreads(values_KG: Sequence[Any], measure: Measure) -> list[str]:
    """Mean and standard deviation over K runs, of each of the G columns."""
    table_KG = np.array(values_KG, dtype=np.float64).reshape(len(values_KG), -1)
    digits = measure.digits
    if len(table_KG) == 1:
        return [f"{v:.{digits}f}" for v in table_KG[0]]
    spreads_G = table_KG.std(axis=0, ddof=1)
    return [f"{v:.{digits}f} ± {s:.{digits}f}" for v, s in zip(table_KG.mean(axis=0), spreads_G, strict=True)]


def _parts(question: Question) -> list[str]:
    """What the means over languages or directions are of, arm by arm, in lists without targets."""
    tables = []
    for name, study in question.studies.items():
        if tuple(study.targets) != (ALL,):
            continue
        for m in read_claims(question)["columns"]:
            measure, rows, head = MEASURES[m], [], [f"{name}: {MEASURES[m].title}"]
            for arm in study.arms:
                found = panel(question, f"{name}/{arm}", m)
                if isinstance(found, list) or len(found.labels[0]) == 1 or measure.over_base:
                    continue
                run = next(r for r in final_runs(name, study) if r.arm == arm)
                head[1:] = labels_of(question, study, measure, run)
                sums_KGS = np.array([sums_US.sum(axis=0).reshape(len(head) - 1, -1) for sums_US in found.sums_KUS])
                rows.append([arm, *_spreads([formula(measure.metric)(sums_GS) for sums_GS in sums_KGS], measure)])
            tables += [_table(head, rows)] if rows else []
    return tables


def _share(question: Question, name: str, arm: str, target: str) -> str:
    runs = [r for r in final_runs(name, question.studies[name]) if (r.arm, r.target) == (arm, target)]
    records = [question.ended(r) for r in runs]
    shares = [s["trained_share"] for r in records if r for s in r["records"].values() if "trained_share" in s]
    return f"{100 * np.mean(shares):.2f}" if shares else "–"


def _rates(question: Question) -> list[str]:
    opened = question.opened
    if not opened or not opened["rates"]:
        return []
    rows = [
        [name, arm, ", ".join(f"{g} {rate:g}" if g != ALL else f"{rate:g}" for g, rate in by.items())]
        for name, arms in opened["rates"].items()
        for arm, by in arms.items()
    ]
    ends = ", ".join(opened["at_an_end_of_the_grid"]) or "none"
    return [_table(["list", "arm", "rate chosen on dev"], rows), f"At an end of the grid: {ends}.\n"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(' '.join(c.split()).replace('|', '/') for c in row)} |" for row in cells) + "\n"


# The figure


def figure(question: Question) -> str:
    """The frontier of a question that asks for one, with the arms that are whole; empty where there is none."""
    axes = read_claims(question).get("figure")
    if not axes:
        return ""
    study = question.studies[axes["list"]]
    panels = {g: [p for arm in study.arms if (p := _point(question, axes, arm, g))] for g in study.targets}
    panels = {g: points for g, points in panels.items() if points}
    return frontier(panels, MEASURES[axes["x"]].title, MEASURES[axes["y"]].title) if panels else ""


def _point(question: Question, axes: Mapping[str, str], arm: str, target: str) -> Point | None:
    """An arm against the base, on both axes."""
    if arm == "base":
        return None
    found = {}
    for axis in ("x", "y"):
        ours, base = (panel(question, f"{axes['list']}/{a}", axes[axis], [target]) for a in (arm, "base"))
        if isinstance(ours, list) or isinstance(base, list):
            return None
        against = compared(ours, base, 0.0)
        found[axis] = against["difference"], against["low"], against["high"]
    return Point(arm, found["x"], found["y"])
