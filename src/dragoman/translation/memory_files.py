"""Files that a translation memory is filled from: TMX as a stream, and tables with a column for each language.

    TMX     .tmx or .tmx.gz: <tu><tuv xml:lang="en"><seg>Open the file</seg></tuv><tuv xml:lang="ca">...
    tables  what `corpora.ntext` describes: TSV and JSON lines with language tags as header or keys, Moses files

A table with a column `split` is n-way text that somebody measures on: only the rows of the splits that are asked for
are read, and those of `test` never. The leakage guard (`HeldOut`) keeps sentences out that are measured on elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dragoman.corpora.markup import tmx_pairs
from dragoman.corpora.ntext import check_splits
from dragoman.corpora.reading import read_columns, read_lines
from dragoman.corpora.testsets import open_test_set
from dragoman.errors import ConfigError, DataError
from dragoman.translation.memory import Memory

NEAR = 0.85
"""Likeness from which on a sentence counts as a held-out one."""


def read_pairs(path: Path, source: str, target: str, splits: Sequence[str] = ("train",)) -> Iterator[tuple[str, str]]:
    """(source, target) of a file. Raises DataError for a file that cannot be read or lacks a language."""
    if path.name.lower().endswith((".tmx", ".tmx.gz")):
        yield from tmx_pairs(path, source, target)
        return
    check_splits(splits, "the import")
    if "test" in splits:
        raise ConfigError("the split test is sealed and goes into no memory; take other splits")
    languages, meta, columns = read_columns(path)
    if absent := [tag for tag in (source, target) if tag not in columns]:
        raise DataError(f"{path} has no column {', '.join(absent)}; it has {', '.join(languages)}")
    kept = meta.get("split") or [splits[0]] * len(columns[source])
    for split, s, t in zip(kept, columns[source], columns[target], strict=True):
        if split in splits and s and t:
            yield s, t


OTHER_FORMATS = (".xlf", ".xliff", ".po", ".csv")
HELD_OUT = "plain text, a .tsv or .jsonl, a .tmx, WMT's .xml, or a folder of FLORES or NTREX"


class HeldOut:
    """The leakage guard: sentences that may be in no prompt, because translations of them are measured.

    A text is held out where it equals one of them (case folded) or is like one to at least NEAR (the likeness of
    `memory`; found through the same index).

    Source: the guard goes by text, not by pair: in the released code of Moslem et al. 2023 (arXiv:2301.13294) examples
    are mined within the test set, where the same source with another translation could bring the reference.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._near = Memory.open(":memory:")
        self._near.add(((text, text) for text in texts), "", "")

    @classmethod
    def read(cls, paths: Iterable[Path]) -> HeldOut:
        """Of files: plain text, one sentence a line, or what has columns, of which every cell counts: tables (.tsv,
        .jsonl), TMX, WMT's XML, folders of FLORES or NTREX."""
        return cls(text for path in paths for text in _texts(path))

    def leaks(self, *texts: str) -> bool:
        """Whether one of the texts is held out."""
        return any(self._near.search(text, "", "", limit=1, threshold=NEAR) for text in texts)


def _texts(path: Path) -> Iterator[str]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(OTHER_FORMATS):
        raise DataError(f"{path} holds more than sentences, so none of them can be held out; give {HELD_OUT}")
    if path.is_dir() or name.endswith((".tmx", ".xml")):
        columns = open_test_set(path).columns
    elif name.endswith((".tsv", ".jsonl")):
        _, _, columns = read_columns(path)
    else:
        yield from read_lines(path)
        return
    yield from (cell for column in columns.values() for cell in column if cell)
