"""How good a built-in base is: bits per byte beside general compressors and an n-gram model, chrF beside copying.

    python benchmarks/base_quality.py run --data data/descriptions.tsv.gz data/help.tsv.gz --out FILE
    python benchmarks/base_quality.py table benchmarks/base/quality-2.json

The compressors and the n-gram model are given all the text in the same language that a base was trained on: the train
text of the tables named by --data, the help last, nearest to what is compressed. xz reads train and devtest text as one
stream, with a window for both, and is charged for what devtest adds; zstd takes the train text as its prefix; the
n-gram model is an order-5 byte model with Witten-Bell smoothing. Needs `xz` and `zstd` on the PATH.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from tqdm import tqdm

from dragoman.commands import scoring
from dragoman.corpora.ntext import NText, load
from dragoman.corpora.pack import KNOWN, load_pack
from dragoman.errors import ConfigError
from dragoman.modeling import model_checksum, open_model, open_tokenizer
from dragoman.record import environment, read_json, write_json

app = App()
Several = Annotated[tuple[Path, ...], Parameter(consume_multiple=True)]


def xz_bytes(train: bytes, test: bytes) -> int:
    """What the test text adds to the compressed train text, all of which is within the window."""

    def size(data: bytes) -> int:
        options = ["--lzma2=preset=9e,dict=256MiB", "-c"]
        return len(subprocess.run(["xz", *options], input=data, capture_output=True, check=True).stdout)

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

    Shape letters: G distinct n-grams, C distinct contexts, B bytes of the test text.
    """
    p_B = np.full(len(test), 1 / 256)
    for n in range(order):
        gram_G, count_G = np.unique(_ngrams(train, n + 1), return_counts=True)
        context_C, first_C = np.unique(gram_G >> np.uint64(8), return_index=True)
        if not len(context_C):
            break
        total_C, distinct_C = np.add.reduceat(count_G, first_C), np.diff(first_C, append=len(gram_G))
        gram_B = _ngrams(test, n + 1)  # of the bytes that have n before them
        c = np.searchsorted(context_C, gram_B >> np.uint64(8)).clip(max=len(context_C) - 1)
        g = np.searchsorted(gram_G, gram_B).clip(max=len(gram_G) - 1)
        count_B = np.where(gram_G[g] == gram_B, count_G[g], 0)
        known_B = context_C[c] == gram_B >> np.uint64(8)
        next_B = (count_B + distinct_C[c] * p_B[n:]) / (total_C[c] + distinct_C[c])
        p_B[n:] = np.where(known_B, next_B, p_B[n:])
    return float(-np.log2(p_B).sum())


def _ngrams(text: bytes, n: int) -> np.ndarray:
    """Every run of n bytes as a number, uint64 [bytes - n + 1]; n is at most 8."""
    byte_B = np.frombuffer(text, np.uint8).astype(np.uint64)
    size = max(len(byte_B) - n + 1, 0)
    return sum((byte_B[i : i + size] << np.uint64(8 * (n - 1 - i)) for i in range(n)), np.zeros(size, np.uint64))


def without(table: NText, corpus: NText) -> NText:
    """The train rows, but for those whose English is in devtest: documents of another fetch may have it in train."""
    held = set(corpus.texts("en", "devtest"))
    rows = zip(table.splits, table.columns["en"], strict=True)
    return table.take([i for i, (split, text) in enumerate(rows) if split == "train" and text not in held])


def baselines(corpus: NText, tables: list[NText], language: str) -> dict[str, float]:
    """Bits per byte of text that the three baselines spend on devtest; line ends are in their text and not counted."""
    texts = [t for table in tables if language in table.languages for t in table.texts(language)]
    train, test = "\n".join(texts).encode(), "\n".join(corpus.texts(language, "devtest")).encode()
    size = sum(len(t.encode()) for t in corpus.texts(language, "devtest"))
    return {
        "xz -9e": 8 * xz_bytes(train + b"\n", test) / size,
        "zstd --ultra -22": 8 * zstd_bytes(train, test) / size,
        "order-5 byte n-gram": ngram_bits(train, test) / size,
        "megabytes of text": len(train) / 1e6,
    }


@app.command(name="run")
def quality(out: Path, data: Several, model: str = "mini-moe", pairs: int = 300) -> None:
    """Score a base on devtest of the built-in corpus and write the record.

    data: the tables that it was trained on; their train text goes to the baselines.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    corpus, codec, opened = load_pack(), open_tokenizer(model), open_model(model)
    tables = [without(load(path), corpus) for path in data]
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
        "trained_on": {t.about["name"]: t.about["checksum"] for t in tables},
        "baselines": {g: baselines(corpus, tables, g) for g in tqdm(corpus.languages, desc="baselines")},
    }
    record |= scoring.values({"model": into}, "bits_per_byte", 0)
    write_json(out, record)


def markdown(record: dict[str, Any]) -> str:
    """The record as the table of a model card: bits per byte, and chrF with that of copying in brackets."""
    ours, chrf, back = record["bits_per_byte"]["model"], record["from_english"]["chrf"], record["into_english"]
    limits = record["bits_per_byte_interval"]["model"]
    names = [name for name in next(iter(record["baselines"].values())) if name != "megabytes of text"]
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
