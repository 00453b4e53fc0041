"""Is a translation the same in a batch and alone? Segments, differences with the gap of the two tokens, and times.

    python benchmarks/decoding.py --out benchmarks/evaluate/decoding.json

In fp32 the sums of a matrix product are added in an order that depends on the shape of the batch; where two tokens are
all but equally likely, the other one can win. Each difference is therefore listed with the distance of the two tokens'
logits, read alone, beside the median distance between the two likeliest tokens (how near a tie it is).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run
from tqdm import tqdm

from dragoman.commands.evaluate import parse_directions
from dragoman.commands.scoring import cells, parallel
from dragoman.corpora.languages import language
from dragoman.corpora.pack import load_pack
from dragoman.errors import ConfigError
from dragoman.modeling import context_length, model_checksum, open_both
from dragoman.record import environment, write_json
from dragoman.translation.engines import first_parting, stops_of, translate_greedy


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the seconds that it took."""
    started = time.monotonic()
    return make(), round(time.monotonic() - started, 2)


@torch.inference_mode()
def usual_gap(model: Any, prompts: list[list[int]], outputs: list[list[int]]) -> float:
    """Median distance of the logits of the two likeliest tokens, over all positions of the translations."""
    gaps = []
    for prompt, new in zip(prompts, outputs, strict=True):
        logits_TV = model(input_ids=torch.tensor([[*prompt, *new]])).logits[0, len(prompt) - 1 :]
        gaps.append((logits_TV.topk(2).values @ torch.tensor([1.0, -1.0])).numpy())
    return float(np.median(np.concatenate(gaps)))


def direction(model: Any, codec: Any, source: str, target: str, segments: int, batch: int) -> dict[str, Any]:
    """One direction: batched twice, alone once."""
    table = parallel(load_pack(), source, target, "devtest", segments)
    names = {g: language(g).name for g in (source, target)}
    prompts = codec.prompts(cells(table, source), source, target, names)
    stops = stops_of(model, codec)

    def decode(size: int) -> list[list[int]]:
        settings: dict[str, Any] = {"stops": stops, "pad_id": codec.pad_id, "context": context_length(model)}
        return translate_greedy(model, prompts, batch=size, **settings)

    together, batched_seconds = timed(lambda: decode(batch))
    alone, single_seconds = timed(lambda: decode(1))
    partings = [first_parting(model, p, a, b, stops) for p, a, b in zip(prompts, together, alone, strict=True)]
    return {
        "segments": len(prompts),
        "equal": sum(p is None for p in partings),
        "differences": [{"segment": i, **asdict(p)} for i, p in enumerate(partings) if p],
        "usual_gap": usual_gap(model, prompts[:20], alone[:20]),
        "same_again": decode(batch) == together,
        "batched_seconds": batched_seconds,
        "single_seconds": single_seconds,
    }


def decoding(
    out: Path,
    model: str = "mini-moe",
    directions: tuple[str, ...] = ("en-de", "de-en", "en-ru", "zh-fr"),
    segments: int = 100,
    batch: int = 64,
) -> None:
    """Compare batched with one-by-one decoding and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    opened, codec = open_both(model)
    languages = load_pack().languages
    pairs = parse_directions(list(directions), languages, languages)
    found = {
        label: direction(opened, codec, *pair, segments, batch)
        for label, pair in tqdm(pairs.items(), unit=" directions")
    }
    write_json(
        out,
        environment()
        | {
            "command": "decoding",
            "model": model,
            "model_sha256": model_checksum(model),
            "batch": batch,
            "threads": torch.get_num_threads(),
            "equal_share": sum(f["equal"] for f in found.values()) / sum(f["segments"] for f in found.values()),
            "largest_gap": max((d["gap"] for f in found.values() for d in f["differences"]), default=0.0),
            "directions": found,
        },
    )


if __name__ == "__main__":
    run(decoding)
