"""What records of a question about Mix-MoE hold beside what the report has: text read, dev by rate, where tokens go.

    python benchmarks/experiments/mixing.py benchmarks/experiments/mix-moe

Text: tokens that all trainings of an arm read, filler left out, over its seeds. Records that do not state the share of
filler have the choices of the last logged updates, from which it is estimated; dense models have none ("–").
Dev: mean chrF over the directions at each rate. Shares: mass on translation experts in translations less that in the
same text alone, and in source texts within prompts less that alone, means over the directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from cyclopts import run

from dragoman.commands.experiments import Question, final_runs, rate_runs

EVERY, TOP_K = 20, 2
"""Updates between two entries of the log's balance, and choices per token: of all arms of both questions."""


def text_read(record: Mapping[str, Any]) -> float | None:
    """Tokens of all trainings of a run without filler; None where one says nothing of it."""
    lines = [line for line in record["lines"] if line.startswith("mix train")]
    found = [_of_stage(line, record["records"]) for line in lines]
    return None if None in found else sum(x for x in found if x is not None)


def _of_stage(line: str, records: Mapping[str, Any]) -> float | None:
    stage = records[re.findall(r"--out \{out\}/(\S+)", line)[0]]
    log = stage["log"]
    if "filler_share" in stage:
        return log["tokens"] * (1 - stage["filler_share"])
    if not log["balance"]:
        return None
    last, rows = log["balance"][-1], log["tokens"] / log["steps"]
    updates = (last["step"] - 1) % EVERY + 1
    return log["tokens"] * last["slots"][0] / (updates * rows * TOP_K)


def shares(record: Mapping[str, Any]) -> dict[str, float]:
    """Mean difference over the directions, of translations and of source texts."""
    found = [stage["shares"] for stage in record["records"].values() if "contrasts" in stage.get("shares", {})]
    contrasts = found[-1]["contrasts"] if found else {}
    return {kind: mean(c["difference"] for c in contrasts[kind]) for kind in ("translation", "source") if contrasts}


def dev_scores(question: Question, name: str, arm: str) -> dict[float, float]:
    """Rate -> mean chrF over the directions on dev; the copy of the source, the same for all rates, left out."""
    found: dict[float, float] = {}
    for of in rate_runs(name, question.studies[name]):
        if of.arm == arm and of.rate is not None and (record := question.ended(of)):
            systems = record["records"]["evaluation"]["chrf"]
            found[of.rate] = mean(v for system, by in systems.items() if system != "copy" for v in by.values())
    return found


def show(folder: Path) -> None:
    """Print all of it, arm by arm."""
    question = Question(folder)
    for name, study in question.studies.items():
        for arm in study.arms:
            ended = [r for of in final_runs(name, study) if of.arm == arm and (r := question.ended(of))]
            texts = [text_read(r) for r in ended if any(line.startswith("mix train") for line in r["lines"])]
            said = ", ".join("–" if t is None else f"{t:,.0f}" for t in texts)
            dev = ", ".join(f"{rate:g}: {score:.1f}" for rate, score in dev_scores(question, name, arm).items())
            print(f"{name} {arm}: text {said or '–'}; dev {dev or '–'}")
            for kind in ("translation", "source"):
                values = [found[kind] for r in ended if (found := shares(r))]
                if values:
                    print(f"  {kind} less the same text alone: {', '.join(f'{v:+.3f}' for v in values)}")


if __name__ == "__main__":
    run(show)
