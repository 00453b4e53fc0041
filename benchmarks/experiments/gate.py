"""May a question go on? Ends with an error where a model that was taught a task in English does not do it there.

    python -m benchmarks.experiments.gate runs/categories/record.json

Asked is English 10 points above chance and, in one target or more, measurably better than the target (exact test).
"""

from __future__ import annotations

from pathlib import Path

from cyclopts import run

from dragoman.record import read_json

ABOVE_CHANCE, LEVEL = 0.10, 0.05


def gate(categories: Path) -> None:
    """Read what `dragoman categorize` wrote and end with an error where the question cannot be asked."""
    record = read_json(categories)
    english, chance = record["accuracy"]["en"]["share"], record["chance"]
    better = [g for g, p in record["p_value"].items() if p < LEVEL]
    print(f"English {english:.3f}, chance {chance:.3f}, measurably better than: {', '.join(better) or 'none'}")
    if english < chance + ABOVE_CHANCE or not better:
        raise SystemExit("the base does not do the task in English, or no worse in the targets: cannot be tested here")


if __name__ == "__main__":
    run(gate)
