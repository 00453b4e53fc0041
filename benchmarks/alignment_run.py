"""The whole way of docs/alignment.md as one run that can be taken up again: can alignment help, does it, does steering?

    python benchmarks/alignment_run.py --work FOLDER --records benchmarks/alignment
    python benchmarks/alignment_run.py --work ANOTHER --items 64 --epochs 1 --rates 0.001     # does it run?

Every step is a command of dragoman, printed before it runs and left out where its record is there already:

1. categorize the items of split train, and profile the English ones: plan of the task's experts;
2. each method at each rate on the first `--tune` items, scored on dev beside the base; the rate with most right
   answers, ties to the smaller one. The same grid for all, so that no method has the better tuning;
3. each method at its rate on all items, scored on devtest beside the base;
4. the base steered by the plan, and by both controls, on devtest.

What `--work` holds is of one model and one set of settings (settings.json); with others it is refused. `--records`
gets the records (one JSON a step), rates.json, and the tables of steps 3 and 4 as Markdown.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, run
from going_on import require_settings

from dragoman import cli
from dragoman.errors import UserError
from dragoman.modeling import model_checksum
from dragoman.record import read_json, write_json

METHODS = ("ra_moe", "sft", "sara")
CONTROLS = ("random", "elsewhere")


def step(out: Path, *words: object) -> None:
    """Run a command of dragoman that writes `out`, unless it did before; what an interrupted one left is removed."""
    done = out if out.suffix == ".json" else out / "record.json"  # a rate in the name of a folder is no suffix
    if done.exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    line = [*map(str, words), "--out", str(out)]
    print("$ dragoman " + shlex.join(line), flush=True)
    cli.run([*line, "--quiet"] if words[0] not in ("plan", "steer") else line)


def planned(model: str, task: Sequence[object], target: str, work: Path) -> Path:
    """Categories, the general corpus, and the plan of the task's experts."""
    step(work / "categories", "categorize", model, *task, "--targets", target)
    step(work / "diagnosis", "diagnose", model)
    step(work / "plan.json", "plan", work / "diagnosis" / "trace.npz", "--planner", "task", "--tasks",
         work / "categories" / "tasks.npz", "--middle", 1, 6, "--tau", 0.03)  # fmt: skip
    return work / "plan.json"


def aligned(model: str, method: str, task: Sequence[object], target: str, rate: float, work: Path, out: Path) -> None:
    """Train everything by a method on the categorized items."""
    plan = ["--plan", work / "plan.json"] if method == "ra_moe" else []
    step(out, "align", model, *task, "--target", target, "--method", method, *plan, "--train", "full",
         "--learning-rate", rate, "--references", work / "references")  # fmt: skip


def tuned(
    model: str, task: Sequence[object], items: int, target: str, rates: Sequence[float], epochs: int, work: Path
) -> dict[str, float]:
    """The rate of each method that has most right answers in the target on dev."""
    few, on_dev = [*task, "--items", items], ["--split", "dev", *task, "--languages", "en", target]
    step(work / "tune" / "categories", "categorize", model, *few, "--targets", target)
    base = right(work / "tune" / "base-dev", model, target, *on_dev)
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        found[method] = {}
        for rate in rates:
            out = work / "tune" / f"{method}-{rate:g}"
            labels = ["--categories", work / "tune" / "categories", "--epochs", epochs]
            aligned(model, method, [*few, *labels], target, rate, work, out)
            found[method][f"{rate:g}"] = right(out.with_name(f"{out.name}-dev"), out / "model", target, *on_dev)
    best = {m: float(max(by, key=lambda r: (by[r], -float(r)))) for m, by in found.items()}
    write_json(work / "rates.json", {"base_on_dev": base, "right_on_dev": found, "chosen": best, "items": items})
    return best


def right(out: Path, model: str | Path, target: str, *words: object) -> float:
    """Right answers in the target, in percent."""
    scored(out, model, *words)
    return float(read_json(out / "record.json")["task_accuracy"][str(model)][target])


def scored(out: Path, *words: object) -> None:
    """Evaluate; the table goes beside the folder."""
    step(out, "evaluate", *words, "--table", out.with_name(f"{out.name}.md"))


def alignment_run(
    *,
    work: Path,
    records: Path | None = None,
    model: str = "mini-moe",
    task: str = "next",
    target: str = "ca",
    items: int | None = None,
    tune: int = 400,
    epochs: int = 3,
    rates: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.00003, 0.0001, 0.0003, 0.001),
) -> None:
    """Run all steps; items: at most so many to train on, default all."""
    given = {"model": model, "model_sha256": model_checksum(model), "task": task, "target": target, "items": items}
    require_settings(work, given | {"tune": tune, "epochs": epochs, "rates": rates})
    what: list[object] = ["--task", task]
    limited = [*what, *(["--items", items] if items else [])]
    plan = planned(model, limited, target, work)
    best = tuned(model, what, min(tune, items or tune), target, rates, epochs, work)
    for method, rate in best.items():
        known = [*limited, "--categories", work / "categories", "--epochs", epochs]
        aligned(model, method, known, target, rate, work, work / method)
    first, *others = [work / method / "model" for method in METHODS]
    on = ["--task", task, "--languages", "en", target]
    scored(work / "quality", first, "--against", *others, model, *on)
    step(work / "task.json", "steer", plan)
    for control in CONTROLS:
        step(work / f"{control}.json", "steer", plan, "--control", control)
    scored(work / "steering", model, "--steer", *[work / f"{name}.json" for name in ("task", *CONTROLS)], *on)
    if records:
        kept(work, records)


def kept(work: Path, records: Path) -> None:
    """Copy records and tables."""
    records.mkdir(parents=True, exist_ok=True)
    for name in ("categories", *METHODS, "quality", "steering"):
        shutil.copy(work / name / "record.json", records / f"{name}.json")
    for name in ("rates.json", "plan.json", "quality.md", "steering.md"):
        shutil.copy(work / name, records / name)


if __name__ == "__main__":
    try:
        run(alignment_run)
    except UserError as e:
        sys.exit(f"alignment_run.py: {e}")
