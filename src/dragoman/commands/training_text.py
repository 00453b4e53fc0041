"""What an adaptation is trained on: segments of a corpus, alone and as translations; files of texts or conversations.

Files are plain text with one text a line, or JSON lines, one of these a line:

    {"text": "Desa el fitxer amb un altre nom."}
    {"messages": [{"role": "user", "content": "Save the file."}, {"role": "assistant", "content": "Desa el fitxer."}]}
"""

# Shape letters: N rows, S tokens per row.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.corpora.languages import language
from dragoman.corpora.mix import mixed, pad, positions
from dragoman.corpora.ntext import NText
from dragoman.corpora.reading import read_lines
from dragoman.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

Labelled = tuple[list[int], int | list[bool]]
"""Tokens of a sample, and how many of the first are no label, or token by token whether it is one."""
CORPUS = "corpus"
"""Name of the corpus among the sources."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is trained on: each segment of the corpus once alone and once as a translation, and texts from files."""

    source: str = "en"
    """Language translated from."""
    segments: int = 1200
    """Train segments of the target language; 0: none, the sources alone."""
    parallel: bool = True
    """Also train the translation of each segment from `source`."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Further text, --text.sources.NAME FILE: a text a line, or .jsonl with `text` or `messages` (in the chat form)."""
    temperature: float = 1.0
    """Shares of the sources: 1 by their tokens, more evens them out."""
    completions: bool = True
    """The loss of translations and conversations is on translation and answers alone; without, on prompts too."""
    isolate: bool = False
    """No token attends to another sample of its row."""
    epochs: int = 1
    """Times each segment is seen."""
    block: int = 512
    """Tokens per row; samples that are longer are left out, and the record says how many."""
    batch: int = 4
    """Rows per update."""

    def __post_init__(self) -> None:
        low = {"segments": 0 if self.sources else 1, "epochs": 1, "block": 8, "batch": 1, "temperature": 1e-3}
        given = {name: getattr(self, name) for name in low}
        faults = [f"{name} is {given[name]}, at least {n}" for name, n in low.items() if given[name] < n]
        if self.temperature != 1 and len(self.sources) + bool(self.segments) < 2:
            faults.append(f"a temperature of {self.temperature} has no effect on a single source")
        if CORPUS in self.sources:
            faults.append(f"{CORPUS!r} is the corpus itself, call the source otherwise")
        if faults:
            raise ConfigError(f"the text to train on cannot be so: {'; '.join(faults)}")


@dataclass(frozen=True)
class Rows:
    """Packed training text."""

    tokens_NS: np.ndarray
    labels_NS: np.ndarray
    samples: int
    too_long: int
    """Samples left out because they do not fit into a row."""
    positions_NS: np.ndarray | None = None
    """Place of each token in its sample, where no token may attend to another."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Source -> tokens taken from it."""


def require_positions(block: int, model: PreTrainedModel) -> None:
    """ConfigError where rows have more tokens than a model has positions."""
    from dragoman.modeling import most_positions

    most = most_positions(model)
    if most is not None and block > most:
        raise ConfigError(f"rows of {block} tokens do not fit the {most} positions of the model; give a smaller block")


def training_rows(
    codec: TextCodec, corpus: NText, target: str, text: Text, seed: int, *, same: bool = False
) -> Rows:
    """The target's train segments, alone and as translations, and the further sources, in a seeded order.

    With `same` every epoch has the rows of the first one, in an order of its own; else each epoch packs anew.
    """
    if same and text.epochs > 1:
        return _repeated(training_rows(codec, corpus, target, replace(text, epochs=1), seed), text.epochs, seed)
    rng = np.random.default_rng(seed)
    found: dict[str, list[Labelled]] = {}
    if text.segments:
        found[CORPUS] = _corpus_samples(codec, corpus, target, text, rng)
    found |= {name: _file_samples(codec, path) for name, path in text.sources.items()}
    fitting = {name: [s for s in samples if len(s[0]) <= text.block] for name, samples in found.items()}
    if empty := [name for name, samples in fitting.items() if not samples]:
        raise DataError(f"no sample of {', '.join(empty)} fits into {text.block} tokens; give a larger text.block")
    sizes = {name: [len(ids) for ids, _ in samples] for name, samples in fitting.items()}
    order = mixed(sizes, text.temperature, text.epochs, rng)
    ordered = [fitting[name][k] for name, k in order]
    if not text.completions:
        ordered = [(ids, 0) for ids, _ in ordered]
    tokens_NS, labels_NS = pad(ordered, text.block, codec.pad_id)
    lengths = [len(ids) for ids, _ in ordered]
    left_out = sum(map(len, found.values())) - sum(map(len, fitting.values()))
    return Rows(
        tokens_NS,
        labels_NS,
        samples=sum(map(len, fitting.values())),
        too_long=left_out,
        positions_NS=positions(lengths, text.block) if text.isolate else None,
        tokens={name: sum(sizes[n][k] for n, k in order if n == name) for name in sizes},
    )


def _repeated(rows: Rows, epochs: int, seed: int) -> Rows:
    rng, number = np.random.default_rng(seed), len(rows.tokens_NS)
    order_N = np.concatenate([np.arange(number), *(rng.permutation(number) for _ in range(epochs - 1))])
    return replace(
        rows,
        tokens_NS=rows.tokens_NS[order_N],
        labels_NS=rows.labels_NS[order_N],
        positions_NS=None if rows.positions_NS is None else rows.positions_NS[order_N],
        tokens={name: epochs * n for name, n in rows.tokens.items()},
    )


def _corpus_samples(
    codec: TextCodec, corpus: NText, target: str, text: Text, rng: np.random.Generator
) -> list[Labelled]:
    corpus.require([target, *([text.source] if text.parallel else [])])
    if text.parallel and text.source == target:
        raise ConfigError(
            f"source and target are both {target}; give another text.source, or set text.parallel to false"
        )
    table = corpus.select(split="train", complete=(text.source, target) if text.parallel else (target,))
    if not len(table):
        raise DataError(f"the corpus has no train segment in {target}; give another corpus or target")
    chosen = table.take(sorted(rng.permutation(len(table))[: text.segments].tolist()))
    samples: list[Labelled] = [
        ([codec.start_id, *ids, codec.end_id], 0) for ids in codec.encode(_cells(chosen, target))
    ]
    if text.parallel:
        names = {g: language(g).name for g in (text.source, target)}
        samples += codec.pairs(_cells(chosen, text.source), _cells(chosen, target), text.source, target, names)
    return samples


def _cells(table: NText, tag: str) -> Sequence[str]:
    return [cell for cell in table.columns[tag] if cell is not None]


def _file_samples(codec: TextCodec, path: Path) -> list[Labelled]:
    lines = [(n, line) for n, line in enumerate(read_lines(path), start=1) if line.strip()]
    if ".jsonl" not in path.suffixes:
        return [([codec.start_id, *ids, codec.end_id], 0) for ids in codec.encode([line for _, line in lines])]
    rows = [_row(line, f"{path}:{n}") for n, line in lines]
    texts = codec.encode([row["text"] for row in rows if "text" in row])
    samples: list[Labelled] = [([codec.start_id, *ids, codec.end_id], 0) for ids in texts]
    return samples + [codec.conversation(row["messages"]) for row in rows if "text" not in row]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where} is not JSON ({e}); give one object a line") from None
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row
    messages = row.get("messages") if isinstance(row, dict) else None
    wanted = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not wanted or not any(m["role"] == "assistant" for m in messages or ()):
        raise DataError(
            f'{where} has neither "text" nor "messages" with an answer; give {{"text": "..."}} or '
            '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
        )
    return row
