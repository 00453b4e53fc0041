"""What recipe, shape and shares a built-in base should have, by short trainings compared on dev text.

    python benchmarks/base_sweep.py --config benchmarks/base/mini-moe-en.yaml \\
        --arms benchmarks/base/sweep-recipe.yaml --out benchmarks/base/sweep-recipe.json  # from random weights
    python benchmarks/base_sweep.py --config benchmarks/base/mini-moe.yaml \\
        --arms benchmarks/base/sweep-shares.yaml --out benchmarks/base/sweep-shares.json  # from mini-moe-en

Every arm is the training of `--config` with the flags that the arms' file names for it, on the same tables, one after
the other; a second file can hold arms for another question. Scored on dev rows of the first table: bits per byte of
each language, and of translations from and into English given their source. devtest and test are not read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cyclopts import run

from dragoman import cli
from dragoman.corpora.languages import TABLE
from dragoman.corpora.ntext import NText, load
from dragoman.errors import ConfigError
from dragoman.evaluation.likelihood import text_bits
from dragoman.modeling import TextCodec, open_both
from dragoman.record import environment, read_json, write_json

SEGMENTS = 60


def translation_bits(
    model: torch.nn.Module, codec: TextCodec, sources: Sequence[str], targets: Sequence[str], pair: tuple[str, str]
) -> float:
    """Bits per byte of the targets, their end included, given their sources."""
    names = {tag: row[0] for tag, row in TABLE.items()}
    bits = 0.0
    with torch.no_grad():
        for ids, silent in codec.pairs(sources, targets, *pair, names):
            ids_S = torch.tensor(ids, device=next(model.parameters()).device)
            logits_SV = model(ids_S[None]).logits[0, silent - 1 : -1].float()
            bits += torch.nn.functional.cross_entropy(logits_SV, ids_S[silent:], reduction="sum").item()
    return bits / np.log(2) / sum(len(t.encode()) for t in targets)


def changed(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The recipe with some keys changed; a key is a path such as training.steps."""
    for path, value in given.items():
        *parents, last = path.split(".")
        place = recipe
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return recipe


def pretrain(recipe: Path, out: Path) -> dict[str, Any]:
    """Run the command and return the record that it writes."""
    cli.run(["pretrain", "--config", str(recipe), "--out", str(out), "--quiet"])
    return read_json(out / "record.json")


def dev_scores(folder: Path, table: NText, languages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Bits per byte on dev, by language and by direction."""
    model, codec = open_both(str(folder))
    rows = [i for i, split in enumerate(table.splits) if split == "dev"]
    rows = [i for i in rows if all(table.columns[g][i] for g in languages)][:SEGMENTS]
    text = {g: [str(table.columns[g][i]) for i in rows] for g in languages}
    bits = {}
    for g in languages:
        per_text = text_bits(model, codec.encode(text[g]), start_id=codec.start_id, context=1024)
        bits[g] = float(np.sum(per_text) / sum(len(t.encode()) for t in text[g]))
    pairs = [p for g in languages if g != "en" for p in (("en", g), (g, "en"))]
    translations = {f"{a}-{b}": translation_bits(model, codec, text[a], text[b], (a, b)) for a, b in pairs}
    return {"text": bits, "translation": translations}


def sweep(config: Path, arms: Path, out: Path) -> None:
    """Train and score every arm; the record is written after each, so that a sweep that is stopped leaves a part."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    asked = yaml.safe_load(arms.read_text())
    found: dict[str, dict] = {}
    for name, flags in asked["arms"].items():
        with tempfile.TemporaryDirectory() as folder:
            given = asked["common"] | (flags or {})
            recipe = Path(folder) / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(changed(yaml.safe_load(config.read_text()), given)))
            record = pretrain(recipe, Path(folder) / "run")
            table = load(Path(record["config"]["data"][0]))
            scores = dev_scores(Path(folder) / "run" / "model", table, list(record["config"]["mix"]["languages"]))
        log = record["training"]
        found[name] = {"flags": given, "parameters": record["parameters"], **scores}
        found[name] |= {k: log[k] for k in ("tokens", "seconds", "losses")}
        means = {k: float(np.mean(list(v.values()))) for k, v in scores.items()}
        print(f"{name}: {means} {log['tokens']:,} tokens {log['seconds']:.0f} s", flush=True)
        about = {"command": "base_sweep", "base": str(config), "recipe": yaml.safe_load(config.read_text())}
        write_json(out, environment() | about | {"dev": SEGMENTS, "arms": found})


if __name__ == "__main__":
    run(sweep)
