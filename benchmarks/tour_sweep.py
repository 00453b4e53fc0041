"""Learning rates of the tour's arms, by bits per byte of the target language on dev.

    python benchmarks/tour_sweep.py --out benchmarks/tour/sweep.json

Every arm is trained as in the tour, from the same base on the same tokens, once per rate and seed; devtest is not
read. The best rate by mean over seeds is what `LearningRates` in `dragoman.commands.tour` holds.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from cyclopts import run
from tqdm import tqdm

from dragoman.commands import adapt, scoring, tour
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError
from dragoman.modeling import TextCodec, copy_tag, model_checksum, open_model, open_tokenizer
from dragoman.record import environment, write_json
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import random_like


def dev_bits(
    config: tour.Config, arm: str, rate: float, plan: ExpertPlan | None, parent: str, codec: TextCodec, corpus: NText
) -> float:
    """Bits per byte of the target on dev after training one arm at one rate."""
    model = open_model(config.model)
    copy_tag(model, codec, parent, config.target)
    settings = adapt.Config(config.model, target=config.target, learning_rate=rate, seed=config.seed, quiet=True)
    rows = adapt.training_rows(codec, corpus, config.target, config.text, config.seed)
    adapt.train_arm(model, tour.ARMS[arm], plan, rows, settings, codec.pad_id)
    sums = scoring.score_model(
        model, codec, corpus, (config.target,), {}, split="dev", segments=config.segments, quiet=True
    )["bits_per_byte"][config.target]
    return float(scoring.formula("bits_per_byte")(np.sum(sums, axis=0)))


def sweep(
    out: Path,
    model: str = "mini-moe",
    target: str = "ca",
    seeds: tuple[int, ...] = (0,),
    arms: tuple[str, ...] = tuple(tour.ARMS),
    expert_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2),
    full_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3),
) -> None:
    """Train every arm at every rate of its grid and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    config = tour.Config(model=model, target=target, quiet=True)
    corpus, codec = tour._corpus(config), open_tokenizer(model)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, out=Path(folder) / "tour")
        trace = tour._diagnose(config, tour.Stages(config, corpus), open_model(model), codec, corpus)
        parent = tour._plans(config, trace)["ssft"]["choice"]["chosen"]
        plans = {arm: ExpertPlan.load(config.out / f"plan-{arm}.json") for arm in ("ssft", "last_layers")}
    runs = [(a, r, s) for s in seeds for a in arms for r in (full_rates if a == "full" else expert_rates)]
    for arm, rate, seed in tqdm(runs):
        plan = random_like(trace, plans["ssft"], seed=seed) if arm == "random" else plans.get(arm)
        bits = dev_bits(replace(config, seed=seed), arm, rate, plan, parent, codec, corpus)
        found.setdefault(arm, {}).setdefault(str(rate), []).append(round(bits, 5))
        print(f"{arm} {rate} seed {seed}: {bits:.4f}", flush=True)
    # A best rate at an end of its grid means that the grid is too short.
    best = {arm: float(min(by, key=lambda rate: np.mean(by[rate]))) for arm, by in found.items()}
    write_json(
        out,
        environment()
        | {
            "command": "tour_sweep",
            "config": asdict(config) | {"out": None},
            "model_sha256": model_checksum(model),
            "corpus_sha256": corpus.checksum(),
            "seeds": seeds,
            "dev_bits_per_byte": found,
            "best": best,
            "at_the_end_of_its_grid": [
                a for a, by in found.items() if best[a] in (min(map(float, by)), max(map(float, by)))
            ],
        },
    )
    print(best)


if __name__ == "__main__":
    run(sweep)
