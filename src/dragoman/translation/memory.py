"""Translation memory: pairs of segments in one SQLite file, found by likeness, a million in milliseconds.

Search goes in two steps. An index of beginnings of words (of pairs of letters, in scripts without spaces) gives the
CANDIDATES entries that share most with the text, then the edit distance of whole segments decides:

    share(q, e) = 2 * sum of idf(t) for t in q and e / (sum of idf(t) for t in q + mean idf of q * |e|)
    similarity  = 1 - edit distance / length of the longer one, case folded          (rapidfuzz, Levenshtein)

The index is rows of entry ids, appended to with every addition, rarest words read first until BUDGET ids are read; so
the time of a search is bounded, and its memory is 5 bytes an entry beside SQLite's cache. The price: an entry
that shares no beginning of a word with the text is missed ("Context", "Content"), and of a text whose every word is
frequent a similar one can be. An entry that equals the text, case and all, is always found.

Shape letters: P postings read, M the largest id.
"""

from __future__ import annotations

import json
import math
import random
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extract

from dragoman.corpora.matching import is_unspaced
from dragoman.corpora.ntext import normalise
from dragoman.errors import ConfigError, DataError
from dragoman.translation.database import told

FORMAT = "dragoman-memory/1"
SCHEMA = """
create table if not exists about (name text primary key, value text not null);
create table if not exists entries (
  id integer primary key autoincrement, languages text not null, checksum integer not null,
  source text not null, target text not null
);
create index if not exists by_checksum on entries (checksum);
create table if not exists postings (word text not null, count integer not null, ids blob not null);
create index if not exists by_word on postings (word, count);
"""
POSTING = np.dtype([("id", "<u4"), ("size", "u1")])
"""An entry, and how many words it has (255 at most)."""
BEGINNING = 5
"""Letters of a word that the index keeps: endings differ and are found all the same."""
BUDGET = 300_000
CANDIDATES = 200
BATCH = 25_000
CACHE_MB = 32


@dataclass(frozen=True)
class Match:
    """A pair of the memory, and how like its source is to the text."""

    source: str
    target: str
    similarity: float


class Memory:
    """Pairs by direction: what was added as en-ca is not searched for ca-en.

    `Memory.open(path)` makes the file where there is none; ":memory:" keeps everything in memory. Texts are kept NFC
    with single spaces. Raises DataError for a file that is no memory.
    """

    way_out = "restore a copy of the memory, or import its files into a new one"

    def __init__(self, base: sqlite3.Connection, path: Path | str) -> None:
        self._base, self.path = base, path

    @classmethod
    def open(cls, path: Path | str) -> Memory:
        try:
            with ExitStack() as opened:
                base = opened.enter_context(closing(sqlite3.connect(path, timeout=10, isolation_level=None)))
                _prepare(base)
                opened.pop_all()
        except sqlite3.Error as e:
            raise DataError(f"{path} cannot be used as a translation memory: {e}; name another file") from None
        return cls(base, path)

    def close(self) -> None:
        self._base.close()

    @told
    def __len__(self) -> int:
        return self._base.execute("select count(*) from entries").fetchone()[0]

    @told
    def counts(self) -> dict[tuple[str, str], int]:
        """Pairs by (source language, target language)."""
        rows = self._base.execute("select languages, count(*) from entries group by languages order by languages")
        return {(pair.split(">")[0], pair.split(">")[1]): n for pair, n in rows}

    @told
    def add(
        self,
        pairs: Iterable[tuple[str, str]],
        source_lang: str,
        target_lang: str,
        *,
        replace: bool = False,
        progress: Callable[[int], Any] = lambda done: None,
    ) -> int:
        """Add (source, target) pairs; those that are there already are not added again. Returns how many are new.

        replace: the new pairs are corrections: every other translation of their sources goes, and the last one of
            each stays.
        """
        new, rest = 0, iter(pairs)
        while some := list(islice(rest, BATCH)):
            clean = [pair for pair in ((normalise(s), normalise(t)) for s, t in some) if all(pair)]
            with self._transaction():
                new += self._add(f"{source_lang}>{target_lang}", clean, replace)
            progress(len(some))
        return new

    def _add(self, languages: str, pairs: Sequence[tuple[str, str]], replace: bool) -> int:
        kept, rows = [], []
        for source, target in dict(pairs).items() if replace else dict.fromkeys(pairs):
            old = self._same(languages, source)
            if replace:
                self._base.executemany("delete from entries where id = ?", [(i,) for i, _ in old])
            if replace or target not in [t for _, t in old]:
                kept.append((source, target))
        first = self._last_id() + 1
        words: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for i, (source, target) in enumerate(kept, first):
            rows.append((i, languages, _checksum(source), source, target))
            for word in (found := _words(source)):
                words[word].append((i, min(len(found), 255)))
        self._base.executemany("insert into entries values (?, ?, ?, ?, ?)", rows)
        postings = ((f"{languages} {w}", len(p), np.array(p, POSTING).tobytes()) for w, p in sorted(words.items()))
        self._base.executemany("insert into postings values (?, ?, ?)", postings)
        return len(kept)

    def _last_id(self) -> int:
        """The largest id that was ever given: ids of deleted pairs stay in the index and are not given again."""
        return self._base.execute("select coalesce(max(seq), 0) from sqlite_sequence").fetchone()[0]

    def _same(self, languages: str, source: str) -> list[tuple[int, str]]:
        """Entries with exactly this source, the newest first."""
        query = "select id, target from entries where checksum = ? and languages = ? and source = ? order by id desc"
        return self._base.execute(query, (_checksum(source), languages, source)).fetchall()

    @told
    def exact(self, text: str, source_lang: str, target_lang: str) -> str | None:
        """The newest translation of exactly this text."""
        found = self._same(f"{source_lang}>{target_lang}", normalise(text))
        return found[0][1] if found else None

    @told
    def search(
        self, text: str, source_lang: str, target_lang: str, limit: int = 5, threshold: float = 0.5
    ) -> list[Match]:
        """The pairs whose sources are most like the text, the most similar first, the newest first among equals.

        threshold: least similarity, 0..1. Each source comes once, with its newest translation.
        """
        languages, text = f"{source_lang}>{target_lang}", normalise(text)
        ids = [*(i for i, _ in self._same(languages, text)), *self._candidates(languages, text)]
        marks = ",".join("?" * len(ids))
        rows = self._base.execute(f"select source, target from entries where id in ({marks}) order by id desc", ids)
        newest: dict[str, str] = {}
        for source, target in rows:
            newest.setdefault(source, target)
        sources = list(newest)
        scored = extract(
            text.casefold(),
            [s.casefold() for s in sources],
            scorer=Levenshtein.normalized_similarity,
            processor=None,
            score_cutoff=threshold,
            limit=None,
        )
        best = sorted(scored, key=lambda found: (-found[1], sources[found[2]] != text, found[2]))[:limit]
        return [Match(sources[i], newest[sources[i]], float(score)) for _, score, i in best]

    @told
    def drawn(self, source_lang: str, target_lang: str, limit: int, seed: int = 0) -> list[Match]:
        """Pairs by lot, the same for the same seed and memory."""
        languages = f"{source_lang}>{target_lang}"
        ids = [i for (i,) in self._base.execute("select id from entries where languages = ? order by id", (languages,))]
        chosen = random.Random(seed).sample(ids, min(limit, len(ids)))
        rows = [self._base.execute("select source, target from entries where id = ?", (i,)).fetchone() for i in chosen]
        return [Match(source, target, 0.0) for source, target in rows]

    def _candidates(self, languages: str, text: str) -> list[int]:
        """Ids of the entries that share most with the text."""
        words = [f"{languages} {word}" for word in _words(text)]
        marks = ",".join("?" * len(words))
        query = f"select word, sum(count), json_group_array(rowid) from postings where word in ({marks}) group by word"
        found = sorted(self._base.execute(query, words).fetchall(), key=lambda row: row[1])
        if not found:
            return []
        most = self._last_id()
        score_M = np.zeros(most + 1, np.float32)
        size_M = np.zeros(most + 1, np.uint8)
        weights, read = [], 0
        for n, (_, count, rows) in enumerate(found):
            weights.append(math.log(1 + most / count))
            if n and read + count > BUDGET:
                continue
            read += count
            postings_P = self._postings(json.loads(rows))
            score_M[postings_P["id"]] += weights[-1]
            size_M[postings_P["id"]] = postings_P["size"]
        unknown = len(words) - len(found)
        total, mean = sum(weights) + unknown * math.log(1 + most), sum(weights) / len(weights)
        hit_P = np.flatnonzero(score_M)
        share_P = 2 * score_M[hit_P] / (total + mean * size_M[hit_P])
        top = np.argpartition(-share_P, min(CANDIDATES, len(hit_P)) - 1)[:CANDIDATES]
        return hit_P[top].tolist()

    def _postings(self, rows: Sequence[int]) -> np.ndarray:
        marks = ",".join("?" * len(rows))
        blobs = [blob for (blob,) in self._base.execute(f"select ids from postings where rowid in ({marks})", rows)]
        return np.frombuffer(b"".join(blobs), POSTING)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._base:
            try:
                self._base.execute("begin immediate")
            except sqlite3.OperationalError as e:
                raise ConfigError(
                    f"the translation memory is in use or cannot be written ({e}); try again later"
                ) from None
            yield


def _prepare(base: sqlite3.Connection) -> None:
    base.execute(f"pragma cache_size = -{CACHE_MB * 1024}")
    known = {name for (name,) in base.execute("select name from sqlite_master where type = 'table'")}
    if known and "postings" not in known:
        raise sqlite3.DatabaseError("it is another program's database")
    base.execute("pragma journal_mode = wal")
    base.executescript(SCHEMA)
    base.execute("insert or ignore into about values ('format', ?)", (json.dumps(FORMAT),))
    (there,) = base.execute("select value from about where name = 'format'").fetchone()
    if there != json.dumps(FORMAT):
        raise sqlite3.DatabaseError(f"it has the format {there}, not {json.dumps(FORMAT)}")


def _checksum(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _words(text: str) -> set[str]:
    """What the index knows of a text: beginnings of words, and pairs of letters where no spaces are written."""
    found: set[str] = set()
    for word in re.findall(r"\w+", text.casefold()):
        if is_unspaced(word):
            found.update(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        else:
            found.add(word[:BEGINNING])
    return found
