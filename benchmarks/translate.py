"""How fast is translation? Segments a second against transformers' pipeline, what guards cost, a memory of a million.

    python benchmarks/translate.py --quick                                   # under four minutes
    python benchmarks/translate.py --out benchmarks/translation/speed.json   # more segments and rounds

Each round runs the engine of `dragoman translate` on a local model, the text-generation pipeline with its default
settings, and the same with its best batch size (the fastest of a few, found first), all greedy, with the same prompts,
stops and limits of length. Outputs that differ are listed with the gap of the logits of the two tokens at which they
part, beside the usual gap between the two likeliest tokens: in fp32 sums depend on the shape of a batch, so a near-tie
can fall either way. The last line is the summary as JSON:

    over_pipeline_default, over_pipeline_best   ratios of segments a second, medians over the rounds
    same_outputs                                least share of segments whose text equals a pipeline's
    guard_share                                 time of output checks, memory (the pack's training text) and glossary
                                                for each segment, over that and the engine's time
    memory_median_ms_1m                         a search in a million entries
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run

from dragoman.commands.scoring import cells, parallel
from dragoman.commands.translate import checks
from dragoman.corpora.pack import load_pack
from dragoman.errors import ConfigError
from dragoman.modeling import context_length, model_checksum, open_both
from dragoman.record import environment, peak_memory_mb, write_json
from dragoman.translation.engines import first_parting, stops_of, translate_greedy
from dragoman.translation.glossary import Glossary, Term
from dragoman.translation.local import LocalEngine
from dragoman.translation.memory import Memory
from dragoman.translation.request import Request

SOURCE, TARGET = "en", "de"
BATCH = 64
SIZES = (8, 16, 32, 64)
TERMS = 1000
"""Words of the pack, with any word as their translation: here only the time counts."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    segments: int
    rounds: int
    entries: int
    queries: int


QUICK = Plan(segments=48, rounds=2, entries=1_000_000, queries=100)
WHOLE = Plan(segments=256, rounds=5, entries=1_000_000, queries=500)


class Contest:
    """The same segments for the engine and for the pipeline."""

    def __init__(self, model: str, sources: Sequence[str]) -> None:
        from transformers import pipeline

        self.model, self.codec = open_both(model)
        self.requests = [Request(source, SOURCE, TARGET) for source in sources]
        self.engine = LocalEngine(self.model, self.codec, batch=BATCH)
        self.prompts = [self.engine.prompt(request, "zero_shot") for request in self.requests]
        self.texts = [self.codec.tokenizer.decode(prompt) for prompt in self.prompts]
        self.stops = stops_of(self.model, self.codec)
        room = context_length(self.model)
        self.limits = [min(2 * len(prompt) + 20, room - len(prompt)) for prompt in self.prompts]
        self.codec.tokenizer.padding_side = "left"
        self.pipe = pipeline("text-generation", model=self.model, tokenizer=self.codec.tokenizer)
        read = [self.codec.tokenizer(text)["input_ids"] for text in self.texts]
        assert read == self.prompts, "the pipeline reads the same prompts"

    def ours(self) -> list[str]:
        found = dict(self.engine.answers(self.requests, "zero_shot"))
        return [found[i].text or "" for i in range(len(self.requests))]

    def default(self) -> list[list[int]]:
        """One prompt after the other, each with its own limit."""
        answers = [
            self.pipe(text, **self._settings(limit)) for text, limit in zip(self.texts, self.limits, strict=True)
        ]
        return [self._new(i, answer) for i, answer in enumerate(answers)]

    def batched(self, size: int) -> list[list[int]]:
        answers = self.pipe(self.texts, batch_size=size, **self._settings(max(self.limits)))
        return [self._new(i, answer) for i, answer in enumerate(answers)]

    def _settings(self, limit: int) -> dict[str, Any]:
        ends = sorted(self.stops.ends | self.stops.lines)
        return {"do_sample": False, "max_new_tokens": limit, "eos_token_id": ends, "return_tensors": True}

    def _new(self, i: int, answer: list[dict[str, Any]]) -> list[int]:
        """Tokens behind the prompt, up to the first stop and the segment's own limit."""
        ids = [int(token) for token in answer[0]["generated_token_ids"]]
        start = next(n for n, token in enumerate(ids) if token != self.codec.pad_id) + len(self.prompts[i])
        new = ids[start : start + self.limits[i]]
        end = next((n for n, token in enumerate(new) if token in self.stops.ends), len(new))
        line = next((n + 1 for n, token in enumerate(new) if token in self.stops.lines), len(new))
        return new[: min(end, line)]

    def text(self, ids: Sequence[int]) -> str:
        """As the engine gives it."""
        return " ".join(self.codec.decode(ids).strip().split("\n")[0].split())

    def differences(self, ours: Sequence[str], theirs: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Segments whose texts differ, with the gap where they part."""
        odd = [i for i, ids in enumerate(theirs) if self.text(ids) != ours[i]]
        settings: dict[str, Any] = {"stops": self.stops, "pad_id": self.codec.pad_id}
        own = translate_greedy(self.model, self.prompts, context=context_length(self.model), **settings) if odd else []
        partings = {i: first_parting(self.model, self.prompts[i], own[i], theirs[i], self.stops) for i in odd}
        return [{"segment": i, **(asdict(parting) if parting else {})} for i, parting in partings.items()]


@torch.inference_mode()
def usual_gap(model: Any, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> float:
    """Median distance of the logits of the two likeliest tokens, over all positions of the translations."""
    gaps = []
    for prompt, new in zip(prompts, outputs, strict=True):
        logits_TV = model(input_ids=torch.tensor([[*prompt, *new]])).logits[0, len(prompt) - 1 :].float()
        gaps.append((logits_TV.topk(2).values @ torch.tensor([1.0, -1.0])).numpy())
    return float(np.median(np.concatenate(gaps)))


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the seconds that it took."""
    started = time.perf_counter()
    return make(), time.perf_counter() - started


def speeds(contest: Contest, rounds: int) -> tuple[dict[str, Any], list[str]]:
    """Interleaved rounds; and the engine's translations."""
    contest.ours(), contest.pipe(contest.texts[0], **contest._settings(4))
    sizes = {size: timed(lambda size=size: contest.batched(size))[1] for size in SIZES}
    best = min(sizes, key=lambda size: sizes[size])
    runs = {"ours": contest.ours, "default": contest.default, "best": lambda: contest.batched(best)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, Any] = {}
    for n in range(rounds):
        for name in sorted(runs, reverse=n % 2 == 1):
            outputs[name], spent = timed(runs[name])
            seconds[name].append(round(spent, 3))
    odd = {name: contest.differences(outputs["ours"], outputs[name]) for name in ("default", "best")}
    middle = {name: statistics.median(spent) for name, spent in seconds.items()}
    count = len(contest.requests)
    return {
        "batch_sizes": {str(size): round(spent, 3) for size, spent in sizes.items()},
        "best_batch": best,
        "seconds": seconds,
        "segments_a_second": {name: round(count / spent, 2) for name, spent in middle.items()},
        "over_pipeline_default": round(middle["default"] / middle["ours"], 2),
        "over_pipeline_best": round(middle["best"] / middle["ours"], 2),
        "same_outputs": min(1 - len(found) / count for found in odd.values()),
        "differences": odd,
        "usual_gap": round(usual_gap(contest.model, contest.prompts[:20], outputs["default"][:20]), 3),
    }, outputs["ours"]


def guards(sources: Sequence[str], answers: Sequence[str], engine_seconds: float, folder: Path) -> dict[str, Any]:
    """Seconds of everything that is not the engine."""
    train = load_pack().select([SOURCE, TARGET], "train", complete=True).columns
    pairs = list(zip(train[SOURCE], train[TARGET], strict=True))
    memory = Memory.open(folder / "pack.sqlite")
    memory.add(pairs, SOURCE, TARGET)
    words = {w.casefold(): t.split()[0] for s, t in pairs for w in s.split() if w.isalpha() and len(w) > 4}
    glossary = Glossary([Term(s, (t,)) for s, t in sorted(words.items())[:TERMS]], SOURCE, TARGET)
    doubts = checks(TARGET)

    def searched() -> None:
        for source in sources:
            memory.exact(source, SOURCE, TARGET)
            memory.search(source, SOURCE, TARGET)

    def checked() -> None:
        for source, answer in zip(sources, answers, strict=True):
            assert all(doubt(source, answer) in (True, False) for doubt in doubts.values())

    def matched() -> None:
        for source, answer in zip(sources, answers, strict=True):
            glossary.found(source), glossary.missing(source, answer)

    parts = {"memory": searched, "checks": checked, "glossary": matched}
    for part in parts.values():
        part()  # once to warm up
    seconds = {name: timed(part)[1] for name, part in parts.items()}
    spent = sum(seconds.values())
    return {
        "entries": len(memory),
        "terms": TERMS,
        "seconds": {name: round(s, 4) for name, s in seconds.items()},
        "guard_share": round(spent / (spent + engine_seconds), 4),
    }


def many_pairs(count: int) -> Iterator[tuple[str, str]]:
    """Pairs made of the pack's: the start of one source and the end of another."""
    train = load_pack().select([SOURCE, TARGET], "train", complete=True).columns
    words, targets = [source.split() for source in train[SOURCE]], train[TARGET]
    chance = random.Random(0)
    for i in range(count):
        one, other = words[i % len(words)], words[chance.randrange(len(words))]
        head, tail = one[: chance.randint(1, len(one))], other[chance.randrange(len(other)) :]
        yield " ".join([*head, *tail]), targets[i % len(words)]


def large_memory(plan: Plan, folder: Path) -> dict[str, Any]:
    """Searches for sentences that the memory was not made of."""
    memory = Memory.open(folder / "large.sqlite")
    before = peak_memory_mb()
    _, filled = timed(lambda: memory.add(many_pairs(plan.entries), SOURCE, TARGET))
    queries = cells(parallel(load_pack(), SOURCE, TARGET, "dev", plan.queries), SOURCE)
    milliseconds = sorted(1000 * timed(lambda q=q: memory.search(q, SOURCE, TARGET))[1] for q in queries)
    return {
        "entries": len(memory),
        "queries": len(queries),
        "fill_seconds": round(filled, 1),
        "median_ms": round(statistics.median(milliseconds), 2),
        "p95_ms": round(milliseconds[int(0.95 * len(milliseconds))], 2),
        "peak_memory_mb": {"before": round(before, 1), "after": round(peak_memory_mb(), 1)},
    }


def measured(model: str, plan: Plan) -> dict[str, Any]:
    """The record's own part."""
    sources = cells(parallel(load_pack(), SOURCE, TARGET, "devtest", plan.segments), SOURCE)
    with tempfile.TemporaryDirectory() as folder:
        engine, answers = speeds(Contest(model, sources), plan.rounds)
        guarded = guards(sources, answers, statistics.median(engine["seconds"]["ours"]), Path(folder))
        memory = large_memory(plan, Path(folder))
    summary = {name: engine[name] for name in ("over_pipeline_default", "over_pipeline_best", "same_outputs")}
    summary |= {"guard_share": guarded["guard_share"], "memory_median_ms_1m": memory["median_ms"]}
    about = {"command": "benchmark translate", "model": model, "model_sha256": model_checksum(model)}
    about |= {"plan": asdict(plan), "threads": torch.get_num_threads(), "summary": summary}
    return about | {"engine": engine, "guards": guarded, "memory": memory}


def translate(*, model: str = "mini-moe", quick: bool = False, out: Path | None = None) -> None:
    """Measure, write the record if `out` is given, and print the summary.

    Parameters
    ----------
    model
        Local model.
    quick
        Under four minutes.
    out
        File for the record.
    """
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    record = measured(model, QUICK if quick else WHOLE)
    if out is not None:
        write_json(out, environment() | record)
    for part in ("engine", "guards", "memory"):
        print(part, json.dumps({k: v for k, v in record[part].items() if k != "differences"}))
    print(json.dumps(record["summary"]))


if __name__ == "__main__":
    run(translate)
