"""Loss curves of the built-in bases' trainings, from their records.

    cd benchmarks/base; python ../base_curves.py mini-moe-en.json mini-moe.json mini-moe-more.json mini-dense.json \\
        whole-mini-moe-en-more.json.gz mini-moe-en-most.json.gz --out curves.svg

One line a record, smoothed over 50 updates and drawn at every tenth, against millions of tokens; records whose text
differs in its shares of languages cannot be compared in nats per token, only each with itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cyclopts import run
from matplotlib.figure import Figure

from dragoman.record import atomic_write, read_json

WINDOW, STEP = 50, 10


def curves(*records: Path, out: Path) -> None:
    """Draw the curves into one SVG file."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for path in records:
        log = read_json(path)["training"]
        losses = np.convolve(log["losses"], np.full(WINDOW, 1 / WINDOW), mode="valid")
        per_step = log["tokens"] / log["steps"] / 1e6
        speed = log["tokens"] / log["seconds"]
        label = f"{path.name.split(chr(46))[0]}: {log['tokens'] / 1e6:.1f} M tokens, {speed:,.0f} a second"
        updates = np.arange(WINDOW, WINDOW + len(losses))
        axes.plot(per_step * updates[::STEP], losses[::STEP], label=label, lw=1)
    axes.set(xlabel="million tokens of the run", ylabel="nats per token", ylim=(None, 6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_write(out) as partial:
        figure.savefig(partial, format="svg")


if __name__ == "__main__":
    run(curves)
