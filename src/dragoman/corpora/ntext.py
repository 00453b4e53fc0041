"""N-way text: one row a segment, one column a language, and where every row comes from.

Our own file is `NAME.tsv.gz` (or `NAME.tsv`) with the header `key document split en de ...`, an empty cell where a
translation is missing, and `NAME.about.json` beside it (provenance, licence, checksum). One real row of the help
corpus, cut to two languages:

    shared/guide/print_blackwhite#par_id3155420  shared/guide/print_blackwhite  train
        Choose File - Print.                     Wählen Sie Datei - Drucken.

Users' files are read too: TSV and JSON lines (`{"en": "...", "de": "..."}`), each also gzipped, and Moses files
`name.en`, `name.de` given as `name`. There `key`, `document` and `split` may be absent. Rows without a split get one
from a hash of their document (80 % train, 6 % dev, 7 % devtest, 7 % test). Where no document is known, each 20
consecutive rows (of a split, where it is given) count as one, and these are dealt out in turn, so that a table of 260
rows has all four splits. The same file thus always gets the same splits, and a row keeps its own when more are added
at the end.

The `test` split is sealed: `load` drops it unless `open_test=True`, and what was opened says so in
`about["test_opened"]`.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from dragoman.corpora.languages import language, nearest, script_shares
from dragoman.corpora.reading import META, read_columns
from dragoman.errors import DataError
from dragoman.record import atomic_write, read_json, sha256, write_json

T = TypeVar("T")
SPLITS = ("train", "dev", "devtest", "test")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
USER_SHARES = {"train": 0.80, "dev": 0.06, "devtest": 0.07, "test": 0.07}
ROWS_PER_DOCUMENT = 20
MIN_SCRIPT_SHARE = 0.5
FEWEST_NAMES, MAX_NAME_SHARE = 10, 0.9
_NAME = re.compile(r"(?=.*[\d/_])[\w./:#?&=%~+@-]+", re.ASCII)
"""What numbers rows or names files and pages: one word with a figure, a slash or an underscore."""


@dataclass(frozen=True)
class NText:
    """Aligned segments: N rows, G columns. Cells are NFC without tabs, newlines or double spaces; None is missing."""

    languages: tuple[str, ...]
    """G BCP-47 tags in column order."""
    keys: tuple[str, ...]
    """N unique names of rows."""
    documents: tuple[str, ...]
    """N names; a document lies in one split as a whole."""
    splits: tuple[str, ...]
    """N times one of train, dev, devtest, test."""
    columns: dict[str, list[str | None]]
    """language -> N cells."""
    about: dict[str, Any] = field(default_factory=dict)
    """Name, provenance, licence, checksum of the whole table, cleaning report, whether test was opened."""
    headless: frozenset[str] | None = None
    """Keys of rows under a heading that is not there, as are those that follow up to the next heading; all others stand
    under the heading before them. None where it is not known what stands under what."""

    def __len__(self) -> int:
        return len(self.keys)

    def select(
        self,
        languages: Sequence[str] | None = None,
        split: str | Sequence[str] | None = None,
        complete: bool | Sequence[str] = False,
    ) -> NText:
        """Fewer columns or rows. `complete` keeps rows with text in all selected (True) or in the named languages.

        Raises DataError for a language or split that is not there.
        """
        chosen = self.languages if languages is None else tuple(languages)
        full = () if complete is False else chosen if complete is True else tuple(complete)
        self.require([*chosen, *full])
        wanted = SPLITS if split is None else (split,) if isinstance(split, str) else tuple(split)
        check_splits(wanted, "the selection")
        cells = [self.columns[tag] for tag in full]
        rows = [i for i, s in enumerate(self.splits) if s in wanted and all(column[i] is not None for column in cells)]
        return self._part(rows, chosen)

    def take(self, rows: Sequence[int]) -> NText:
        """The rows with these numbers, in this order."""
        return self._part(rows, self.languages)

    def _part(self, rows: Sequence[int], languages: tuple[str, ...]) -> NText:
        return replace(
            self,
            languages=languages,
            keys=tuple(_at(rows, self.keys)),
            documents=tuple(_at(rows, self.documents)),
            splits=tuple(_at(rows, self.splits)),
            columns={tag: _at(rows, self.columns[tag]) for tag in languages},
        )

    def texts(self, language: str, split: str | Sequence[str] | None = None) -> list[str]:
        """The texts of one language that are there, in row order."""
        return [t for t in self.select([language], split).columns[language] if t is not None]

    def pairs(self, source: str, target: str, split: str | Sequence[str] | None = None) -> list[tuple[str, str]]:
        """(source, target) of the rows that have both, in row order."""
        both = self.select([source, target], split).columns
        return [(s, t) for s, t in zip(both[source], both[target], strict=True) if s is not None and t is not None]

    def require(self, languages: Iterable[str]) -> None:
        """DataError that names all the languages that are not columns, the nearest of each, and what there is."""
        if absent := [tag for tag in dict.fromkeys(languages) if tag not in self.columns]:
            apart = "write several with spaces between: {}"
            hints = "; ".join(
                apart.format(tag.replace(",", " ")) if "," in tag else f"{tag}: {nearest(tag, self.languages)}"
                for tag in absent
            )
            raise DataError(
                f"no column {', '.join(absent)} in corpus {self.about.get('name', '(unnamed)')} ({hints}); "
                f"it has {', '.join(self.languages)}"
            )

    def counts(self) -> dict[str, dict[str, int]]:
        """split -> language -> number of texts, for the splits that are there."""
        there = set(self.splits)
        return {s: {g: len(self.texts(g, s)) for g in self.languages} for s in SPLITS if s in there}

    def checksum(self) -> str:
        """SHA-256 of header and rows as `save` writes them."""
        return sha256("".join(self._lines()))

    def packed(self) -> bytes:
        """The gzipped table, the same bytes for the same content."""
        return gzip.compress("".join(self._lines()).encode(), 9, mtime=0)

    def _lines(self) -> Iterable[str]:
        yield "\t".join((*META, *self.languages)) + "\n"
        cells = ([cell or "" for cell in self.columns[g]] for g in self.languages)
        for row in zip(self.keys, self.documents, self.splits, *cells, strict=True):
            yield "\t".join(row) + "\n"

    def save(self, path: Path | str) -> Path:
        """Write `path` (.tsv or .tsv.gz) and its `.about.json`; the bytes depend on the content alone."""
        path = Path(path)
        if not path.name.endswith((".tsv", ".tsv.gz")):
            raise DataError(f"cannot save a corpus as {path.name}; name it .tsv or .tsv.gz")
        about = {**self.about, "checksum": self.checksum(), "languages": self.languages, "rows": len(self)}
        with atomic_write(path) as partial:
            partial.write_bytes(self.packed() if path.suffix == ".gz" else "".join(self._lines()).encode())
        headless = {} if self.headless is None else {"headless": sorted(self.headless)}
        write_json(about_path(path), about | headless)
        return path


def _at(rows: Sequence[int], values: Sequence[T]) -> list[T]:
    return [values[i] for i in rows]


def about_path(path: Path) -> Path:
    """`help.tsv.gz` -> `help.about.json`."""
    return path.with_name(path.name.removesuffix(".gz").rsplit(".", 1)[0] + ".about.json")


def is_heading(key: str) -> bool:
    """Whether a row is a heading by its key, as LibreOffice names blocks: `page#hd_id3149233`."""
    return key.rpartition("#")[2].startswith("hd_")


def normalise(text: str) -> str:
    """NFC, without soft hyphens, zero-width spaces and byte-order marks; any run of whitespace is one space."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


def split_of(document: str, shares: Mapping[str, float], salt: str = "") -> str:
    """The split that a hash of the document's name gives, with probability `shares[split]` (they sum to one)."""
    return _split_at(int.from_bytes(hashlib.sha256(f"{salt}/{document}".encode()).digest()[:8], "big") / 2**64, shares)


def split_of_block(i: int) -> str:
    """The split of the i-th block of rows without a document, by multiples of the golden ratio.

    They fill the unit interval evenly from the start, which a hash does not. The first one is such that devtest comes
    fifth and train before it.
    """
    return _split_at((0.39 + i * (5**0.5 - 1) / 2) % 1, USER_SHARES)


def _split_at(point: float, shares: Mapping[str, float]) -> str:
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    return list(shares)[-1]


def check_splits(splits: Iterable[str], where: str) -> None:
    """DataError that names every split that does not exist."""
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise DataError(f"{where} names the split {', '.join(map(repr, unknown))}; splits are {', '.join(SPLITS)}")


def load(path: Path | str, open_test: bool = False) -> NText:
    """Read an n-way text: our own table, a user's TSV or JSON lines (also .gz), or Moses files by common prefix.

    `about["checksum"]` is that of the whole table; rows of the sealed split are dropped unless `open_test`.
    Raises DataError for whatever keeps the file from being a corpus, all offenders in one message.
    """
    path = Path(path)
    languages, meta, columns = read_columns(path)
    text = from_columns(languages, columns, meta, where=str(path))
    check_columns(text, path)
    about, checksum = read_json(about_path(path)) if about_path(path).is_file() else {}, text.checksum()
    headless = about.pop("headless", None)  # long, and nothing that records of other commands should carry
    if headless is not None and about.get("checksum") == checksum:  # else the table has been changed since
        text = replace(text, headless=frozenset(headless))
    about = {"name": path.name.split(".")[0], "file": path.name, **about, "checksum": checksum}
    if open_test:
        return replace(text, about={**about, "test_opened": True})
    return replace(without_test(text), about=about)


def without_test(text: NText) -> NText:
    """Without the rows of the sealed split."""
    return text.take([i for i, split in enumerate(text.splits) if split != "test"])


def from_columns(
    languages: Sequence[str],
    columns: Mapping[str, Sequence[str | None]],
    meta: Mapping[str, Sequence[str]] | None = None,
    where: str = "the text",
    about: dict[str, Any] | None = None,
) -> NText:
    """NText from columns in memory; absent documents, keys and splits are made as the module says."""
    meta = meta or {}
    rows_N = range(len(columns[languages[0]]))
    documents, splits = meta.get("document"), meta.get("split")
    if not splits and documents:
        splits = [split_of(document, USER_SHARES) for document in documents]
    documents = documents or ([*_blocks(splits)] if splits else [f"rows-{i // ROWS_PER_DOCUMENT:06d}" for i in rows_N])
    splits = splits or [split_of_block(i // ROWS_PER_DOCUMENT) for i in rows_N]
    check_splits(splits, where)
    _require_whole_documents(documents, splits, where)
    keys = meta.get("key") or [f"{document}#{i}" for i, document in enumerate(documents)]
    if repeated := [key for key, n in Counter(keys).items() if n > 1]:
        raise DataError(
            f"{where} has {len(repeated)} keys on more than one row, such as {', '.join(repeated[:3])}; "
            "a key names one segment: make them unique or leave the column out"
        )
    cells: dict[str, list[str | None]] = {g: [(c and normalise(c)) or None for c in columns[g]] for g in languages}
    return NText(tuple(languages), tuple(keys), tuple(documents), tuple(splits), cells, about or {})


def _blocks(splits: Iterable[str]) -> Iterator[str]:
    """Documents for rows that have none, within each split."""
    seen: Counter[str] = Counter()
    for split in splits:
        yield f"{split}/rows-{seen[split] // ROWS_PER_DOCUMENT:06d}"
        seen[split] += 1


def _require_whole_documents(documents: Sequence[str], splits: Sequence[str], where: str) -> None:
    found: dict[str, set[str]] = {}
    for document, split in zip(documents, splits, strict=True):
        found.setdefault(document, set()).add(split)
    if cut := [f"{d} in {', '.join(sorted(s))}" for d, s in found.items() if len(s) > 1]:
        raise DataError(
            f"{where} has {len(cut)} documents that lie in more than one split, such as {'; '.join(cut[:3])}; "
            "neighbours of training text are not held out: give each document one split"
        )


def check_columns(text: NText, path: Path) -> None:
    """DataError where a column is not in its language's script, or holds names of rows (`id`, `doc`, `url`)."""
    wrong = []
    for tag in text.languages:
        cells = text.texts(tag)
        named = sum(bool(_NAME.fullmatch(cell)) for cell in cells)
        if named >= FEWEST_NAMES and named > MAX_NAME_SHARE * len(cells):
            wrong.append(
                f"column {tag} holds names such as {cells[0]!r} and no text in {language(tag).name or tag}: call it "
                "key where it names rows or document where it names documents, or leave it out"
            )
            continue
        expected = language(tag).scripts
        shares = script_shares(cells) if expected else {}
        share = sum(shares.get(script, 0.0) for script in expected)
        if shares and share < MIN_SCRIPT_SHARE:
            most = next(iter(shares))
            wrong.append(
                f"column {tag} should be in {'/'.join(expected)} script, but only {share:.0%} of its letters are; "
                f"most are {most} ({shares[most]:.0%})"
            )
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}; correct the tag or the text, or name the script, as in sr-Latn")
