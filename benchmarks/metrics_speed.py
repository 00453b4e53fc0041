"""How long the metrics without a model take: sums of 10,000 segments, and a paired bootstrap over them.

    python benchmarks/metrics_speed.py --out benchmarks/metrics/speed.json

Answers are the German train references of the built-in corpus less some letters. Coverage is timed where its extra is
installed. Timings mean something on an idle machine only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import run
from tqdm import tqdm

from dragoman.corpora.pack import load_pack
from dragoman.errors import ConfigError
from dragoman.evaluation.base import Metric, sums_per_segment
from dragoman.evaluation.coverage import Unaligned, WordAligner, words
from dragoman.evaluation.metrics import METRICS
from dragoman.evaluation.significance import paired_bootstrap
from dragoman.record import environment, write_json

ARGUMENTS: dict[str, dict[str, Any]] = {"off_target": {"target": "de"}, "bits_per_byte": {"context": 512}}
ELSEWHERE = ("unaligned_source", "unaligned_hypothesis", "embedding", "comet", "metricx", "option_accuracy",
             "task_accuracy")  # fmt: skip
"""Not timed here: they need a model, an aligner of their own, or items that are not texts."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    result = work()
    return round(time.perf_counter() - start, 3), result


def damaged(text: str, share: float, rng: random.Random) -> str:
    """The text less a share of its characters."""
    return "".join(c for c in text if rng.random() >= share)


def columns(segments: int, seed: int) -> dict[str, list[Any]]:
    """Sources, references, two systems' answers and a term of every segment."""
    table = load_pack().select(["en", "de"], "train", complete=True)
    sources, references = (list(islice(cycle(table.texts(g)), segments)) for g in ("en", "de"))
    rng = random.Random(seed)
    return {
        "sources": sources,
        "references": references,
        "a": [damaged(text, 0.05, rng) for text in references],
        "b": [damaged(text, 0.06, rng) for text in references],
        "terms": [[max(words(text), key=len)] if words(text) else [] for text in references],
    }


def measured(metric: Metric, given: dict[str, list[Any]]) -> dict[str, Any]:
    """Seconds for the sums of one system and for a paired bootstrap of two, and the scores."""
    against = {name: given[name] for name in ("sources", "references", "terms")}
    answers = [given["a"], given["b"]]
    if metric.name == "bits per byte":
        answers = [[2.0 * len(text.encode()) for text in column] for column in answers]
    references = against.pop("references")
    seconds, a_NS = timed(lambda: sums_per_segment(metric, answers[0], references, **against))
    b_NS = sums_per_segment(metric, answers[1], references, **against)
    bootstrap, found = timed(lambda: paired_bootstrap(a_NS, b_NS, metric.from_sums))
    values = [float(metric.from_sums(np.sum(sums_NS, axis=0))) for sums_NS in (a_NS, b_NS)]
    return {"signature": metric.signature(), "sums_s": seconds, "bootstrap_s": bootstrap, "values": values,
            "p_value": found.p_value}  # fmt: skip


def speed(out: Path, segments: int = 10_000, train_pairs: int = 10_000, seed: int = 0) -> None:
    """Time every metric and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    given = columns(segments, seed)
    letters = sum(map(len, given["references"])) / segments
    metrics = {name: make(**ARGUMENTS.get(name, {})) for name, make in METRICS.items() if name not in ELSEWHERE}
    record: dict[str, Any] = environment() | {"command": "metrics_speed", "segments": segments, "seed": seed}
    record |= {"characters_per_reference": round(letters, 1), "resamples": 2000, "metrics": {}}
    for name, metric in tqdm(metrics.items(), desc="metrics"):
        metric.segment_sums(
            *(given[c][0] for c in ("a", *metric.needs))
        ) if name != "bits_per_byte" else None  # warm up
        record["metrics"][name] = measured(metric, given)
    if find_spec("thot"):
        train = [given[name][:train_pairs] for name in ("sources", "references")]
        record["aligner_training_s"], aligner = timed(lambda: WordAligner(*train))
        record["metrics"]["unaligned_source"] = measured(Unaligned("source", aligner), given)
    record["sums_s"] = round(sum(row["sums_s"] for row in record["metrics"].values()), 2)
    write_json(out, record)


if __name__ == "__main__":
    run(speed)
