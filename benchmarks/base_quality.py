"""How good a built-in base is: bits per byte beside general compressors and an n-gram model, chrF beside copying.

    python benchmarks/base_quality.py run --out benchmarks/base/quality-2.json
    python benchmarks/base_quality.py table benchmarks/base/quality-2.json

The compressors and the n-gram model are given the train text of the built-in corpus in the same language. xz reads
train and devtest text as one stream and is charged for what devtest adds; zstd takes the train text as its prefix; the
n-gram model is an order-5 byte model with Witten-Bell smoothing. Needs `xz` and `zstd` on the PATH.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import App
from tqdm import tqdm

from dragoman.commands import scoring
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import KNOWN, load_pack
from dragoman.errors import ConfigError
from dragoman.modeling import model_checksum, open_model, open_tokenizer
from dragoman.record import environment, read_json, write_json

app = App()


def xz_bytes(train: bytes, test: bytes) -> int:
    """What the test text adds to the compressed train text; the window of -9 (64 MiB) holds all of it."""

    def size(data: bytes) -> int:
        return len(subprocess.run(["xz", "-9e", "-c"], input=data, capture_output=True, check=True).stdout)

    return size(train + test) - size(train)


def zstd_bytes(train: bytes, test: bytes) -> int:
    """Size of the test text compressed with the train text as prefix."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").write_bytes(train)
        (Path(folder) / "test").write_bytes(test)
        command = ["zstd", "-q", "--ultra", "-22", "--long=27", f"--patch-from={folder}/train", f"{folder}/test", "-c"]
        return len(subprocess.run(command, capture_output=True, check=True).stdout)


def ngram_bits(train: bytes, test: bytes, order: int = 5) -> float:
    """Bits of the test text under an interpolated Witten-Bell model of byte n-grams up to `order`.

    p_n(b | c) = (count(c b) + distinct(c) p_{n-1}(b | c')) / (count(c) + distinct(c)), uniform over bytes at the end.
    Source: Witten & Bell 1991; recursion as in Chen & Goodman 1999, sec. 2.5.
    """
    after: defaultdict[bytes, Counter[int]] = defaultdict(Counter)
    for n in range(order):
        for i in range(n, len(train)):
            after[train[i - n : i]][train[i]] += 1
    totals = {context: (sum(c.values()), len(c)) for context, c in after.items()}
    bits = 0.0
    for i, byte in enumerate(test):
        p = 1 / 256
        for n in range(min(order, i + 1)):
            context = test[i - n : i]
            if context not in totals:
                break
            count, distinct = totals[context]
            p = (after[context][byte] + distinct * p) / (count + distinct)
        bits -= math.log2(p)
    return bits


def baselines(corpus: NText, language: str) -> dict[str, float]:
    """Bits per byte of text that the three baselines spend on devtest; line ends are in their text and not counted."""
    train, test = ("\n".join(corpus.texts(language, split)).encode() for split in ("train", "devtest"))
    size = sum(len(t.encode()) for t in corpus.texts(language, "devtest"))
    return {
        "xz -9e": 8 * xz_bytes(train + b"\n", test) / size,
        "zstd --ultra -22": 8 * zstd_bytes(train, test) / size,
        "order-5 byte n-gram": ngram_bits(train, test) / size,
    }


@app.command(name="run")
def quality(out: Path, model: str = "mini-moe", pairs: int = 300) -> None:
    """Score a base on devtest of the built-in corpus and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    corpus, codec, opened = load_pack(), open_tokenizer(model), open_model(model)
    into = scoring.score_model(
        opened, codec, corpus, corpus.languages, {g: ("en", g) for g in KNOWN[1:]}, segments=pairs
    )
    scored = {"model": into, "copy": scoring.score_copy(corpus, {g: ("en", g) for g in KNOWN[1:]}, segments=pairs)}
    out_of = {g: (g, "en") for g in KNOWN[1:]}
    systems = (
        ("model", scoring.score_model(opened, codec, corpus, (), out_of, segments=pairs)),
        ("copy", scoring.score_copy(corpus, out_of, segments=pairs)),
    )
    chrf = scoring.formula("chrf")
    back = {g: {name: float(chrf(np.sum(s["chrf"][g], axis=0))) for name, s in systems} for g in out_of}
    record = environment() | {
        "command": "base_quality",
        "model": model,
        "model_sha256": model_checksum(model),
        "corpus_sha256": corpus.checksum(),
        "signatures": into["signatures"],
        "from_english": scoring.values(scored, "chrf", 0),
        "into_english": back,
        "baselines": {g: baselines(corpus, g) for g in tqdm(corpus.languages, desc="baselines")},
    }
    record |= scoring.values({"model": into}, "bits_per_byte", 0)
    write_json(out, record)


def markdown(record: dict[str, Any]) -> str:
    """The record as the table of a model card: bits per byte, and chrF with that of copying in brackets."""
    ours, chrf, back = record["bits_per_byte"]["model"], record["from_english"]["chrf"], record["into_english"]
    limits = record["bits_per_byte_interval"]["model"]
    names = list(next(iter(record["baselines"].values())))
    lines = [
        f"| | bits per byte [95 %] | {' | '.join(names)} | chrF from English (copy) | chrF into English (copy) |",
        "| --- |" + " ---: |" * (len(names) + 3),
    ]
    for g, bits in ours.items():
        low, high = limits[g]
        others = " | ".join(f"{record['baselines'][g][name]:.2f}" for name in names)
        there = {"model": chrf["model"].get(g), "copy": chrf["copy"].get(g)}
        pairs = [f"{d['model']:.1f} ({d['copy']:.1f})" if d.get("model") else "" for d in (there, back.get(g, {}))]
        lines.append(f"| {g} | {bits:.2f} [{low:.2f}, {high:.2f}] | {others} | {' | '.join(pairs)} |")
    return "\n".join(lines)


@app.command
def table(record: Path, /) -> None:
    """Print a record as a Markdown table."""
    print(markdown(read_json(record)))


if __name__ == "__main__":
    app()
