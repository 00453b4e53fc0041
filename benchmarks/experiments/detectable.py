"""The smallest differences that the planned runs are likely to show, from comparisons that records hold already.

    python benchmarks/experiments/detectable.py benchmarks/tour/record.json

A comparison's interval gives the standard error over documents; it is scaled to the planned number of documents and
joined with an assumed deviation over seeds, of which no record says anything yet:

    effect = (z_{1 - alpha/2} + z_power) * sqrt(se_documents^2 * U / planned + 2 * deviation^2 / seeds)
"""

from __future__ import annotations

import json
from pathlib import Path

from cyclopts import run
from scipy.stats import norm


def effect(error: float, deviation: float, seeds: int, tests: int) -> float:
    """Found with a power of 0.8 by a two-sided test at 5 % over the number of tests (the strictest step of Holm)."""
    return float((norm.ppf(1 - 0.025 / tests) + norm.ppf(0.8)) * (error**2 + 2 * deviation**2 / seeds) ** 0.5)


def detectable(
    record: Path, planned: int = 87, seeds: int = 5, tests: int = 3, deviations: tuple[float, ...] = (0.0, 0.01, 0.03)
) -> None:
    """Print the detectable effect of every comparison; deviations over seeds are in the metric's unit."""
    for c in json.loads(record.read_text())["comparisons"]:
        error = (c["high"] - c["low"]) / 2 / norm.ppf(0.975) * (c["units"] / planned) ** 0.5
        scale = 1 if c["metric"] == "bits_per_byte" else 30
        found = ", ".join(f"{effect(error, scale * d, seeds, tests):.3f} (seeds {scale * d:g})" for d in deviations)
        print(f"{c['metric']} {c['language']}: {c['a']} - {c['b']}, error {error:.4f}: {found}")


if __name__ == "__main__":
    run(detectable)
