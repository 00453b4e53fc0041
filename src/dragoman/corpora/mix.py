"""Training streams: monolingual and parallel samples in stated shares, packed into blocks of equal length.

A stream is a pure function of its recipe, its tables and its seed, so a training that is killed and resumed sees the
same tokens, and two arms of a comparison see the same text. Only the split `train` is read, and a leak check refuses
held-out languages and documents before the first token.

Shape letters: N blocks, S tokens per block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError

RUN = 65_536
"""Most tokens of one monolingual sample: a book as one document would fill a run with its language."""

Sample = list[int]
EncodeText = Callable[[Sequence[str]], list[Sample]]
EncodePairs = Callable[[Sequence[str], Sequence[str], str, str], list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of a training stream, by tokens."""

    languages: dict[str, float] = field(default_factory=lambda: {"en": 1.0})
    """Monolingual share of each language, relative to one another."""
    parallel: float = 0.0
    """Share of parallel samples among all tokens."""
    pivot: float = 0.5
    """Share of the parallel samples that have English on one side; the rest are between any two languages."""
    tables: dict[str, float] = field(default_factory=dict)
    """Weight of each table, by its name, in text of one language and in pairs; 1 where not named. Of a weight's
    fraction, part of the documents and rows is drawn once: 0.5 never reads the other half."""

    def __post_init__(self) -> None:
        bad = [f"{g}={w}" for g, w in self.languages.items() if w < 0]
        if bad or not sum(self.languages.values()) > 0:
            raise ConfigError(f"shares of languages must be positive, not {bad or self.languages}")
        if not 0 <= self.parallel <= 1 or not 0 <= self.pivot <= 1:
            raise ConfigError(f"parallel={self.parallel} and pivot={self.pivot} are shares between 0 and 1")
        if odd := [f"{name}={w}" for name, w in self.tables.items() if not 0 <= w < math.inf]:
            raise ConfigError(f"weights of tables are numbers from 0, not {', '.join(odd)}")


def check_no_leak(
    tables: Sequence[NText], languages: Iterable[str], held_out_languages: Iterable[str], held_out: NText | None
) -> None:
    """Refuse to train on a held-out language, or on text of which a held-out split repeats a document or a segment.

    languages: all that text is taken of. `held_out` is any table whose dev, devtest and test rows must not be seen, by
    document name and by English text; rows without English by the first language of theirs that it has.
    Raises DataError that names languages, documents and counts.
    """
    leaks = []
    if wrong := sorted(set(languages) & set(held_out_languages)):
        leaks.append(f"held-out languages in the mix: {', '.join(wrong)}")
    if held_out is not None:
        rows = [i for i, split in enumerate(held_out.splits) if split != "train"]
        documents = {held_out.documents[i] for i in rows}
        texts = {g: {t for i in rows if (t := column[i])} for g, column in held_out.columns.items()}
        for table in tables:
            leaks += _leaks_of(table, documents, texts)
    if leaks:
        raise DataError(f"the training text leaks: {'; '.join(leaks)}; remove them, or mend the tables' splits")


def _leaks_of(table: NText, documents: set[str], texts: dict[str, set[str]]) -> list[str]:
    train = [i for i, split in enumerate(table.splits) if split == "train"]
    name = table.about.get("name", "a table")
    shared = sorted({table.documents[i] for i in train} & documents)
    common = sorted((g for g in table.languages if g in texts), key=lambda g: g != "en")
    first = [next(((g, t) for g in common if (t := table.columns[g][i])), None) for i in train]
    repeated = sorted({pair[1] for pair in first if pair and pair[1] in texts[pair[0]]})
    leaks = [f"{len(shared)} held-out documents in {name}: {', '.join(shared[:3])}"] if shared else []
    return leaks + ([f"{len(repeated)} held-out segments in {name}: {repeated[0]!r} ..."] if repeated else [])


def require_named(tables: Sequence[NText], mix: Mix) -> None:
    """ConfigError for weights of tables that are not there."""
    names = [table.about.get("name", "") for table in tables]
    if absent := sorted(set(mix.tables) - set(names)):
        raise ConfigError(f"mix.tables names {', '.join(absent)}; the tables are {', '.join(sorted(names))}")


def stream(tables: Sequence[NText], mix: Mix, encode: EncodeText, pair: EncodePairs, *, seed: int) -> Iterator[Sample]:
    """Samples without end. Every source is read whole, in an order of its own each time round, before it repeats.

    Monolingual samples are runs of segments of one document, so that a block holds neighbours; shares are kept by
    counting tokens: the next sample comes from the source that is furthest behind its share.
    """
    rng = np.random.default_rng(seed)
    sources: list[tuple[float, Iterator[Sample]]] = []
    mono = 1.0 - mix.parallel
    total = sum(mix.languages.values())
    for language, share in mix.languages.items():
        if share and mono:
            sources.append((mono * share / total, _monolingual(tables, mix, language, encode, rng.spawn(1)[0])))
    if mix.parallel:
        sources.append((mix.parallel, _parallel(tables, mix, pair, rng.spawn(1)[0])))
    given = [0.0] * len(sources)
    while True:
        k = min(range(len(sources)), key=lambda i: given[i] / sources[i][0])
        sample = next(sources[k][1])
        given[k] += len(sample)
        yield sample


def _monolingual(
    tables: Sequence[NText], mix: Mix, language: str, encode: EncodeText, rng: np.random.Generator
) -> Iterator[Sample]:
    documents = [d for t in tables if language in t.languages for d in _weighted(_documents(t, language), t, mix, rng)]
    if not documents:
        raise DataError(f"no table has train text in {language!r}, which the mix names; fetch it or drop the language")
    while True:
        for i in rng.permutation(len(documents)):
            tokens = [token for segment in encode(documents[i]) for token in segment]
            yield from (tokens[k : k + RUN] for k in range(0, len(tokens), RUN))


def _weighted(parts: list, table: NText, mix: Mix, rng: np.random.Generator) -> list:
    weight = mix.tables.get(table.about.get("name", ""), 1.0)
    whole, rest = divmod(weight, 1)
    chosen = rng.permutation(len(parts))[: round(rest * len(parts))]
    return parts * int(whole) + [parts[i] for i in sorted(chosen)]


def _documents(table: NText, language: str) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for document, split, text in zip(table.documents, table.splits, table.columns[language], strict=True):
        if split == "train" and text:
            found.setdefault(document, []).append(text)
    return list(found.values())


def _parallel(tables: Sequence[NText], mix: Mix, pair: EncodePairs, rng: np.random.Generator) -> Iterator[Sample]:
    languages = [g for g, share in mix.languages.items() if share]
    rows = [(table, i) for table in tables for i in _weighted(_in_two(table, languages), table, mix, rng)]
    if not rows:
        raise DataError(f"no table has train rows in two of {', '.join(languages)}; fetch some or set parallel to 0")
    while True:
        for i in rng.permutation(len(rows)):
            table, row = rows[i]
            there = [g for g in languages if table.columns.get(g) and table.columns[g][row]]
            a, b = _direction(there, mix.pivot, rng)
            yield from pair([table.columns[a][row]], [table.columns[b][row]], a, b)


def _in_two(table: NText, languages: Sequence[str]) -> list[int]:
    """Train rows with text in two languages or more."""
    columns = [table.columns[g] for g in languages if g in table.languages]
    train = (i for i, split in enumerate(table.splits) if split == "train")
    return [i for i in train if sum(bool(column[i]) for column in columns) > 1]


def _direction(there: list[str], pivot: float, rng: np.random.Generator) -> tuple[str, str]:
    if "en" in there and rng.random() < pivot:
        other = [g for g in there if g != "en"][rng.integers(len(there) - 1)]
        return ("en", other) if rng.random() < 0.5 else (other, "en")
    a, b = rng.permutation(len(there))[:2]
    return there[a], there[b]


def pack(samples: Iterator[Sample], num_blocks: int, block: int) -> np.ndarray:
    """The first `num_blocks` blocks of the samples laid end to end, int32 [N, S]."""
    flat = np.empty(num_blocks * block, dtype=np.int32)
    filled = 0
    while filled < len(flat):
        sample = next(samples)[: len(flat) - filled]
        flat[filled : filled + len(sample)] = sample
        filled += len(sample)
    return flat.reshape(num_blocks, block)


def pad(
    samples: Sequence[tuple[Sample, int | Sequence[bool]]], block: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples packed whole into rows, in the given order: tokens int32 [N, S] and labels int64 [N, S].

    A sample comes with the number of its first tokens that are no label (a prompt), or with one flag a token: is it a
    label. Labels are -100 elsewhere and on filler. Samples longer than a row are cut.
    """
    rows = _fitted([len(ids) for ids, _ in samples], block)
    tokens_NS = np.full((len(rows), block), pad_id, dtype=np.int32)
    labels_NS = np.full((len(rows), block), -100, dtype=np.int64)
    for n, row in enumerate(rows):
        for k, begin, size in row:
            ids, labelled = samples[k][0][:size], samples[k][1]
            tokens_NS[n, begin : begin + size] = ids
            said = np.arange(size) >= labelled if isinstance(labelled, int) else np.array(labelled[:size], dtype=bool)
            labels_NS[n, begin : begin + size] = np.where(said, ids, -100)
    return tokens_NS, labels_NS


def positions(lengths: Sequence[int], block: int) -> np.ndarray:
    """Place of each token in its own sample, where `pad` puts samples of these lengths; -1 on filler. int32 [N, S]."""
    rows = _fitted(lengths, block)
    places_NS = np.full((len(rows), block), -1, dtype=np.int32)
    for n, row in enumerate(rows):
        for _, begin, size in row:
            places_NS[n, begin : begin + size] = np.arange(size)
    return places_NS


def _fitted(lengths: Sequence[int], block: int) -> list[list[tuple[int, int, int]]]:
    """Rows of (sample, where it begins, tokens of it)."""
    rows: list[list[tuple[int, int, int]]] = []
    filled = block
    for k, length in enumerate(lengths):
        size = min(length, block)
        if filled + size > block:
            rows.append([])
            filled = 0
        rows[-1].append((k, filled, size))
        filled += size
    return rows


def mixed(
    sizes: Mapping[str, Sequence[int]], temperature: float, epochs: int, rng: np.random.Generator
) -> list[tuple[str, int]]:
    """An order of (source, number of its sample) in which each source has its share of tokens.

    sizes: source -> tokens of each of its samples. A source with n tokens gets a share proportional to
        n ** (1 / temperature) of `epochs` times all tokens: 1 reads everything `epochs` times, more repeats small
        sources and shortens large ones. A source is read whole, in an order of its own each time, before it repeats.
    Source: the exponent of Arivazhagan et al. 2019 (arXiv:1907.05019), sec. 3.2. Differs: counted in tokens.
    """
    total = {name: sum(tokens) for name, tokens in sizes.items()}
    weight = {name: n ** (1 / temperature) for name, n in total.items()}
    order: list[tuple[str, int]] = []
    for name, tokens in sizes.items():
        budget = epochs * sum(total.values()) * weight[name] / sum(weight.values())
        while budget > 0.5:  # tokens; shares are fractions, so a rest of rounding stays
            for k in rng.permutation(len(tokens)):
                if budget <= 0.5:
                    break
                order.append((name, int(k)))
                budget -= tokens[k]
    return order if len(sizes) == 1 else [order[i] for i in rng.permutation(len(order))]
