"""Point values of question 1 on routing that others published: Qwen3-30B-A3B, eight languages, counts alone.

    python -m benchmarks.experiments.published_routing qwen3-30b-a3b-mgsm-routing.json \\
        --out benchmarks/experiments/routing/published.json

The file has {"languages": [G], "chosen": [G][L][E]}, English first: how often each expert was chosen, counted from
github.com/conctsai/Multilingualism-in-Mixture-of-Experts-LLMs (MIT). No documents, so no intervals; no texts of tokens,
so nothing about vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cyclopts import run

from benchmarks.experiments.effects import described
from dragoman.errors import ConfigError
from dragoman.record import environment, read_json, sha256, write_json


def published(counts: Path, *, out: Path) -> None:
    """Compute them and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    given = read_json(counts)
    found = described(np.array(given["chosen"], dtype=np.int64))
    write_json(out, environment() | {"counts_sha256": sha256(counts), "languages": given["languages"], **found})
    print(f"last minus first {found['last_minus_first']:.3f}, ends over middle {found['ends_over_middle']:.3f}")


if __name__ == "__main__":
    run(published)
