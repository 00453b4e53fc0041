"""Mix-MoE and its neighbours on one dense base: the same rows in the same order, scored after each of them.

    python benchmarks/mix_run.py mini-dense --work runs/mix-run --out benchmarks/mix-moe
    python benchmarks/mix_run.py mini-dense --work runs/mix-run --out benchmarks/mix-moe --seeds 0 1  # goes on

Every arm reads `text` steps of monolingual text in seven languages, then `pairs` steps of parallel text from and into
English. Mix-MoE trains its two groups so, full fine-tuning everything, LoRA as many parameters as Mix-MoE in a stage.
MoE-LPR has as many new experts as hold both of Mix-MoE's groups, and gives its last `review` steps to the second
stage; as the base knows all seven languages, all are old to it. The learning rate of each arm in each stage is that
which scores best on dev after `short` steps: bits per byte of text, of translations given their source, or the mean of
both for the review. Where the best of `--rates` is the lowest or the highest of them, rates beyond it are tried too, up
to three times, so that the best one has a worse one on either side. devtest is scored once.

A stage whose record is there is not trained again, so a run that was stopped goes on, and a seed can be added; with
other settings than those that `--work` keeps (settings.json) it is refused. What is written to `--out`: run.json
(rates, scores, intervals, router shares), run.md (the table) and shares.svg.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from base_sweep import translation_bits
from cyclopts import run
from going_on import require_settings

from dragoman import cli
from dragoman.commands import Numbers, Parts, scoring
from dragoman.commands.mix import run_stage
from dragoman.commands.mixing_text import Train, Training
from dragoman.corpora.pack import open_corpus
from dragoman.errors import UserError
from dragoman.evaluation import significance
from dragoman.evaluation.likelihood import text_bits
from dragoman.modeling import model_checksum, open_both
from dragoman.record import atomic_write, environment, read_json, write_json

LANGUAGES = ("en", "de", "fr", "es", "cs", "ru", "zh")
DIRECTIONS = ("en-all", "all-en")
DEV = 30
"""Segments per language and direction that a rate is chosen by."""
CORPUS = "help"


@dataclass(frozen=True)
class Plan:
    """Lengths of the stages in steps, and how rates are chosen."""

    text: int
    pairs: int
    review: int
    short: int
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """One training of an arm."""

    arm: str
    name: str
    """text, pairs or review: what it reads, and what its rate is chosen by."""
    steps: int
    given: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.arm}, {self.name}"


def arms(plan: Plan, parameters: int) -> dict[str, list[Stage]]:
    """The trainings of each arm, each from what the one before it left."""
    pairs = {"languages": LANGUAGES, "directions": DIRECTIONS}
    text = {"languages": LANGUAGES}

    def two(arm: str, first: dict[str, Any], second: dict[str, Any], less: int = 0) -> list[Stage]:
        return [Stage(arm, "text", plan.text, text | first), Stage(arm, "pairs", plan.pairs - less, pairs | second)]

    def both(arm: str, **given: Any) -> list[Stage]:
        return two(arm, {"method": arm, **given}, {"method": arm, **given})

    lpr = {"method": "moe_lpr", "stage": 1}
    review = Stage("moe_lpr", "review", plan.review, text | {"method": "moe_lpr", "stage": 2, "old": LANGUAGES})
    return {
        "mix_moe": two("mix_moe", {"method": "mix_moe", "stage": 1}, {"method": "mix_moe", "stage": 2}),
        "full": both("full"),
        "lora": both("lora", parameters=parameters),
        "moe_lpr": [*two("moe_lpr", lpr, lpr, plan.review), review],
    }


def settings(stage: Stage, model: Path, out: Path, seed: int, rate: float, steps: int) -> Train:
    """Of one training; what it scores is for the caller to change."""
    how = Training(
        learning_rate=rate,
        steps=steps,
        batch=12,
        micro_batch=12,
        warmup=max(1, steps // 20),
        decay=steps // 3,
        balance=0.01 if stage.arm in ("mix_moe", "moe_lpr") and stage.name != "review" else 0.0,
        seed=seed,
    )
    common: dict[str, Any] = {"corpus": CORPUS, "training": how, "seed": seed, "quiet": True, "only_after": True}
    return Train(str(model), out=out, **(common | stage.given))


STARTS = {"full, text": "base", "mix_moe, pairs": "mix_moe, start of pairs"}
"""Stages that are scored before training, too, and what that shows: translation experts enter where pairs start."""
BEYOND = 3
"""Rates that are tried beyond an end of the grid, at most."""


def best_rate(stage: Stage, model: Path, folder: Path, seed: int, plan: Plan) -> dict[str, float]:
    """Rate -> bits per byte on dev after a short training; kept in the folder, the models are not."""
    done = folder / "rates.json"
    found: dict[str, float] = read_json(done) if done.exists() else {}
    for _ in range(BEYOND + 1):
        for rate in wanted_rates(plan.rates, {float(r): bits for r, bits in found.items()}):
            out = folder / f"rate-{rate:g}"
            shutil.rmtree(out, ignore_errors=True)
            asked = settings(stage, model, out, seed, rate, min(plan.short, stage.steps))
            run_stage(replace(asked, split="dev", segments=4, score=("en-de",)))
            found[f"{rate:g}"] = dev_bits(out / "model", stage.name)
            shutil.rmtree(out)
            write_json(done, found)
            print(f"{stage.label}, rate {rate:g}: {found[f'{rate:g}']:.4f} bits per byte on dev", flush=True)
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def wanted_rates(grid: Sequence[float], found: dict[float, float]) -> list[float]:
    """Rates of the grid without a score; then, where the best is at an end, the next one beyond it by the same step."""
    if waiting := [rate for rate in grid if rate not in found]:
        return waiting
    rates = sorted(found)
    best = min(rates, key=lambda rate: found[rate])
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return []
    step = rates[0] / rates[1] if best == rates[0] else rates[-1] / rates[-2]
    return [float(f"{best * step:.1g}")]


def dev_bits(folder: Path, what: str) -> float:
    """Mean over languages, or over directions, of bits per byte on dev; of both means for the review."""
    model, codec = open_both(str(folder))
    table = open_corpus(CORPUS).select(LANGUAGES, "dev", complete=True).take(range(DEV))
    text = {g: [str(cell) for cell in table.columns[g]] for g in LANGUAGES}
    kinds = []
    if what != "pairs":
        bits = {g: text_bits(model, codec.encode(text[g]), start_id=codec.start_id, context=1024) for g in LANGUAGES}
        kinds.append(mean(float(sum(bits[g])) / sum(len(t.encode()) for t in text[g]) for g in LANGUAGES))
    if what != "text":
        pairs = [p for g in LANGUAGES[1:] for p in (("en", g), (g, "en"))]
        kinds.append(mean(float(translation_bits(model, codec, text[a], text[b], (a, b))) for a, b in pairs))
    return mean(kinds)


def run_arm(stages: Sequence[Stage], start: Path, folder: Path, seed: int, plan: Plan, segments: int) -> None:
    """Train an arm's stages one after the other, each with its best rate."""
    model = start
    for stage in stages:
        out = folder / stage.arm / stage.name
        if not (out / "record.json").exists():
            folder_of_rates = folder / stage.arm / f"{stage.name}-rates"
            folder_of_rates.mkdir(parents=True, exist_ok=True)
            rates = best_rate(stage, model, folder_of_rates, seed, plan)
            shutil.rmtree(out, ignore_errors=True)
            rate = float(min(rates, key=lambda r: rates[r]))
            asked = settings(stage, model, out, seed, rate, stage.steps)
            alone = stage.label not in STARTS
            record = run_stage(replace(asked, segments=segments, score=DIRECTIONS, only_after=alone))
            print(f"{stage.label}: {record['log']['seconds']:.0f} s, {summary(record, 'after')}", flush=True)
        model = out / "model"


def summary(record: dict[str, Any], when: str) -> str:
    """Means over languages and directions."""
    bits, chrf = (mean(record["results"][name][when].values()) for name in ("bits_per_byte", "chrf"))
    return f"{bits:.3f} bits per byte, chrF {chrf:.1f}"


def prepare(base: str, folder: Path, seed: int) -> dict[str, Path]:
    """What each arm starts from."""
    mix, upcycled = folder / "mix", folder / "upcycled"
    if not (mix / "record.json").exists():
        shutil.rmtree(mix, ignore_errors=True)
        cli.run(["mix", "convert", base, "--out", str(mix), "--slices", "balanced", "--seed", str(seed)])
    if not (upcycled / "record.json").exists():
        shutil.rmtree(upcycled, ignore_errors=True)
        cli.run(["models", "upcycle", base, "--experts", "3", "--out", str(upcycled), "--seed", str(seed)])
    return {"mix_moe": mix, "moe_lpr": upcycled, "full": Path(base), "lora": Path(base)}


def run_all(
    base: str,
    /,
    *,
    work: Path,
    out: Path,
    seeds: Numbers = (0,),
    text: int = 200,
    pairs: int = 300,
    review: int = 30,
    short: int = 40,
    rates: Parts = (3e-4, 1e-3, 3e-3),
    segments: int = 100,
) -> None:
    """Train every arm for every seed, and write what is there after each arm."""
    plan = Plan(text, pairs, review, short, rates)
    given = {"base": base, "base_sha256": model_checksum(base), **asdict(plan), "segments": segments}
    require_settings(work, given)
    done: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        folder = work / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        starts = prepare(base, folder, seed)
        parameters = trained_by_a_stage(starts["mix_moe"])
        for arm, stages in arms(plan, parameters).items():
            run_arm(stages, starts[arm], folder, seed, plan, segments)
            done[seed] = collect(folder, arms(plan, parameters))
            report(base, done, plan, out, folder)


def trained_by_a_stage(folder: Path) -> int:
    """Parameters of one group of experts and of the routers."""
    from dragoman.methods import mix_moe

    model, _ = open_both(str(folder))
    mix_moe.apply(model, mix_moe.Config(stage=1))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# What is written


MEANS = {
    "bits per byte": ("bits_per_byte", lambda label: True),
    "chrF from English": ("chrf", lambda label: label.startswith("en-")),
    "chrF into English": ("chrf", lambda label: label.endswith("-en")),
}
"""Name of a mean -> its metric, and the languages or directions that it is over."""


def collect(folder: Path, stages_of: dict[str, list[Stage]]) -> dict[str, Any]:
    """Label -> what a stage's record says, for those that are done; means with intervals, and against the base."""
    found: dict[str, Any] = {}
    sums: dict[str, Any] = {}
    for stage in [stage for stages in stages_of.values() for stage in stages]:
        place = folder / stage.arm / stage.name
        if not (place / "record.json").exists():
            continue
        record, segments = read_json(place / "record.json"), read_json(place / "segments.json")
        start = {STARTS[stage.label]: "before"} if stage.label in STARTS else {}
        for label, when in (start | {stage.label: "after"}).items():
            found[label] = _scores(record, when)
            sums[label] = segments["sums"][when] | {"documents": segments["documents"]}
        found[stage.label] |= _kept(record, folder / stage.arm / f"{stage.name}-rates" / "rates.json")
    for label, by in sums.items():
        found[label]["means"] = {name: mean_of(by, sums.get("base"), *what) for name, what in MEANS.items()}
    return dict(sorted(found.items(), key=lambda item: item[0] != "base"))


def mean_of(by: dict[str, Any], base: dict[str, Any] | None, metric: str, chosen: Any) -> dict[str, Any]:
    """A mean over languages or directions with its 95 % interval by document, and its difference from the base's."""
    labels = [label for label in by[metric] if chosen(label)]
    sums_US, _, formula = scoring.mean_of_labels(by, metric, labels)
    found = {"value": significance.interval(sums_US, formula)}
    if base is not None and base is not by:
        found["over base"] = significance.paired_bootstrap(
            sums_US, scoring.mean_of_labels(base, metric, labels)[0], formula
        )
    return {name: asdict(x) | {"unit": "document"} for name, x in found.items()}


def _scores(record: dict[str, Any], when: str) -> dict[str, Any]:
    names = ("bits_per_byte", "bits_per_byte_interval", "chrf", "chrf_interval")
    return {name: record["results"][name][when] for name in names} | {"signatures": record["results"]["signatures"]}


def _kept(record: dict[str, Any], rates: Path) -> dict[str, Any]:
    about = {"rates_on_dev": read_json(rates), "learning_rate": record["training"]["learning_rate"]}
    about |= {"steps": record["log"]["steps"], "tokens": record["log"]["tokens"], "parameters": record["parameters"]}
    shares = {name: record.get(name) for name in ("shares_before", "shares")}
    return about | {"seconds": record["log"]["seconds"], "method": record["method"]} | shares


def report(base: str, done: dict[int, dict[str, Any]], plan: Plan, out: Path, folder: Path) -> None:
    """run.json, run.md and the figure of router shares."""
    out.mkdir(parents=True, exist_ok=True)
    about = {"command": "mix_run", "base": base, "languages": LANGUAGES, "plan": vars(plan)}
    write_json(out / "run.json", environment() | about | {"seeds": {str(s): found for s, found in done.items()}})
    with atomic_write(out / "run.md") as partial:
        partial.write_text(table(done), encoding="utf-8")
    figure = folder / "mix_moe" / "pairs" / "shares.svg"
    if figure.exists():
        shutil.copy(figure, out / "shares.svg")


def table(done: dict[int, dict[str, Any]]) -> str:
    """Means of each seed, what they differ by from the base, then languages and directions of the first seed."""
    first = next(iter(done.values()))
    head = [f"| arm, after | seed | rate | trained | {' | '.join(MEANS)} |", f"|:--|--:|--:|--:|{'--:|' * len(MEANS)}"]
    lines = ["Means over languages and directions, with 95 % intervals by document:", "", *head]
    lines += [_mean_row(x, s, by[x], "value") for x in first for s, by in done.items() if x in by]
    lines += ["", "The same less the base's, on the same documents:", "", *head]
    beside = [(x, s, by[x]) for x in first for s, by in done.items() if x in by and x != "base" and "base" in by]
    lines += [_mean_row(x, s, found, "over base") for x, s, found in beside]
    for name, title in (("bits_per_byte", "Bits per byte"), ("chrf", "chrF")):
        columns = list(next(iter(first.values()))[name])
        lines += ["", f"{title}, seed {next(iter(done))}, with 95 % intervals:", ""]
        lines += [f"| arm, after | {' | '.join(columns)} |", f"|:--|{'--:|' * len(columns)}"]
        digits = 3 if name == "bits_per_byte" else 1
        lines += [f"| {label} | {' | '.join(_cells(found, name, columns, digits))} |" for label, found in first.items()]
    return "\n".join(lines) + "\n"


def _mean_row(label: str, seed: int, found: dict[str, Any], kind: str) -> str:
    rate, trained = found.get("learning_rate", ""), f"{found['parameters']:,}" if "parameters" in found else ""
    cells = []
    for name, means in found["means"].items():
        x, digits = means[kind], 3 if name == "bits per byte" else 1
        sign, value = ("+", x["difference"]) if kind == "over base" else ("", x["value"])
        cells.append(f"{value:{sign}.{digits}f} [{x['low']:{sign}.{digits}f}, {x['high']:{sign}.{digits}f}]")
    return f"| {label} | {seed} | {rate} | {trained} | {' | '.join(cells)} |"


def _cells(found: dict[str, Any], name: str, columns: Sequence[str], digits: int) -> list[str]:
    spans = found[f"{name}_interval"]
    return [f"{found[name][c]:.{digits}f} [{spans[c][0]:.{digits}f}, {spans[c][1]:.{digits}f}]" for c in columns]


if __name__ == "__main__":
    try:
        run(run_all)
    except UserError as e:
        sys.exit(f"mix_run.py: {e}")
