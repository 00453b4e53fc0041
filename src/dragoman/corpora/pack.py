"""The built-in corpus: help segments that fit a repository, complete in every one of its languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from dragoman.corpora.ntext import NText, load
from dragoman.corpora.quizzes import GROUP, under_headings
from dragoman.errors import DataError
from dragoman.record import sha256

BUILT_IN = "help"
"""Name of the built-in corpus where a command takes one."""
KNOWN = ("en", "de", "fr", "es", "cs", "ru", "zh")
"""Languages that the built-in base model is trained on."""
UNSEEN = ("ca", "pt", "nl", "sl", "el", "ja", "tr")
"""Languages that it never sees: four near to some known one, three far."""
MIN_WORDS = 4
MAX_CHARACTERS = 400
MIN_TRAIN = 2000
NOTICE = (
    "Text of the LibreOffice help, (c) its contributors, under the Mozilla Public License 2.0 "
    "(https://mozilla.org/MPL/2.0/), taken from the Debian packages named here; segments were selected and aligned, "
    "their wording is unchanged."
)


def load_pack() -> NText:
    """The built-in corpus: 14 languages, train, dev and devtest, complete in all of them."""
    return _shipped("help.tsv.gz")


def load_pages() -> NText:
    """Headings and paragraphs in the order of their pages, for the task `heading`; many lack some of the languages."""
    return _shipped("help-pages.tsv.gz")


def _shipped(name: str) -> NText:
    with resources.as_file(resources.files("dragoman") / "assets" / "pack") as folder:
        return load(folder / name)


def open_corpus(name: str, open_test: bool = False) -> NText:
    """The built-in corpus by its name `help`, or a user's n-way text by its path (see `ntext.load`)."""
    return load_pack() if is_built_in(name) else load(Path(name), open_test)


def is_built_in(name: str) -> bool:
    return name == BUILT_IN and not Path(name).exists()


def build_pack(
    help_table: NText,
    known: Sequence[str] = KNOWN,
    unseen: Sequence[str] = UNSEEN,
    train: int | None = None,
    dev: int = 300,
    devtest: int = 300,
    seed: int = 0,
    max_bytes: int = 5_000_000,
) -> NText:
    """Rows with 4 English words or more and at most 400 characters in every language, none of them missing.

    train: number of training rows, by default as many as the saved file takes within `max_bytes`. dev and devtest rows
    are spread over as many documents as there are. No test row is ever in it.

    Raises DataError where the table has too few such rows.
    """
    full = help_table.select((*known, *unseen), ("train", "dev", "devtest"), complete=True)
    full = full.take([i for i in range(len(full)) if fits(full, i)])
    found = {s: spread(full, s, seed) for s in ("train", "dev", "devtest")}
    least = {"train": train or MIN_TRAIN, "dev": dev, "devtest": devtest}
    if short := [f"{len(found[s])} of {n} in {s}" for s, n in least.items() if len(found[s]) < n]:
        raise DataError(
            f"too few rows are complete in {', '.join(full.languages)}: {'; '.join(short)}; name fewer languages"
        )
    held = found["dev"][:dev] + found["devtest"][:devtest]

    def made(n: int) -> NText:
        return full.take(sorted(held + found["train"][:n]))

    n = train or _most_that_fit(made, MIN_TRAIN, len(found["train"]) + 1, max_bytes, step=100)
    rules = {"min_english_words": MIN_WORDS, "max_characters": MAX_CHARACTERS, "complete": True}
    return _about(BUILT_IN, made(n), help_table, known, unseen, seed, rules)


def build_pages(
    help_table: NText,
    known: Sequence[str] = KNOWN,
    unseen: Sequence[str] = UNSEEN,
    max_bytes: int = 1_000_000,
    seed: int = 0,
) -> NText:
    """Pages with four headings or more that have a paragraph, and of them these headings, paragraphs and the first row.

    A heading and its paragraph count where more than half of the languages have both, English among them, the paragraph
    in at most 400 characters. All such pages of dev and devtest, and as many of train, by lot, as `max_bytes` hold.

    Raises DataError where the table does not know what stands under what, or has no such page in one of the splits.
    """
    if help_table.headless is None:
        raise DataError("the table does not say what stands under what; take one of `dragoman data fetch help`")
    full = help_table.select((*known, *unseen), ("train", "dev", "devtest"))
    rows = _rows_of_pages(full, help_table.headless)
    split_of = dict(zip(full.documents, full.splits, strict=True))
    by_split = {s: [page for page in rows if split_of[page] == s] for s in ("train", "dev", "devtest")}
    if short := [s for s, pages in by_split.items() if not pages]:
        raise DataError(f"no page of {', '.join(short)} has {GROUP} headings with a paragraph each")
    held = by_split["dev"] + by_split["devtest"]
    train = sorted(by_split["train"], key=lambda page: sha256(f"{seed}/{page}"))

    def made(n: int) -> NText:
        return full.take(sorted(i for page in held + train[:n] for i in rows[page]))

    chosen = made(_most_that_fit(made, 1, len(train) + 1, max_bytes))
    rules = {"headings": GROUP, "max_characters": MAX_CHARACTERS, "languages": "English and more than half"}
    pages = _about(f"{BUILT_IN}-pages", chosen, help_table, known, unseen, seed, rules)
    return replace(pages, headless=help_table.headless.intersection(chosen.keys))


def _rows_of_pages(text: NText, headless: Container[str]) -> dict[str, list[int]]:
    """Page -> its first row, its headings that count and their paragraphs, of pages with enough headings."""
    first = {page: i for i, page in reversed(list(enumerate(text.documents)))}
    found: dict[str, list[tuple[int, int]]] = {}
    for paragraph, heading in under_headings(text, headless):
        cells = {g: (text.columns[g][paragraph], text.columns[g][heading]) for g in text.languages}
        both = [g for g, (below, above) in cells.items() if below and above and len(below) <= MAX_CHARACTERS]
        if "en" in both and 2 * len(both) > len(text.languages):
            found.setdefault(text.documents[paragraph], []).append((paragraph, heading))
    return {
        page: sorted({first[page], *(i for pair in pairs for i in pair)})
        for page, pairs in found.items()
        if len({heading for _, heading in pairs}) >= GROUP
    }


def fits(text: NText, row: int) -> bool:
    """Is a row that is complete neither too short in English nor too long in any language?"""
    cells = [text.columns[tag][row] or "" for tag in text.languages]
    return len((text.columns["en"][row] or "").split()) >= MIN_WORDS and max(map(len, cells)) <= MAX_CHARACTERS


def spread(text: NText, split: str, seed: int) -> list[int]:
    """Rows of a split in an order that a hash gives; every document's first before any document's second."""
    rows = [i for i, s in enumerate(text.splits) if s == split]
    rows.sort(key=lambda i: sha256(f"{seed}/{text.keys[i]}"))
    taken: Counter[str] = Counter()
    rank = {}
    for i in rows:
        rank[i] = taken[text.documents[i]]
        taken[text.documents[i]] += 1
    return rows if split == "train" else sorted(rows, key=lambda i: rank[i])


def _most_that_fit(made: Callable[[int], NText], low: int, high: int, max_bytes: int, step: int = 1) -> int:
    """Largest n from `low` to below `high`, to within `step`, with which the saved table keeps within `max_bytes`."""
    while high - low > step:
        middle = (low + high) // 2
        low, high = (middle, high) if len(made(middle).packed()) <= max_bytes else (low, middle)
    return low


def _about(
    name: str,
    pack: NText,
    table: NText,
    known: Sequence[str],
    unseen: Sequence[str],
    seed: int,
    rules: dict[str, Any],
) -> NText:
    kept: dict[str, Any] = {
        name: table.about[name] for name in ("origin", "licence", "packages", "splits") if name in table.about
    }
    about: dict[str, Any] = {
        "name": name,
        **kept,
        "notice": NOTICE,
        "from_table": table.about.get("checksum"),
        "seed": seed,
        "rules": rules,
        "known": list(known),
        "unseen": list(unseen),
        "rows_by_split": dict(Counter(pack.splits)),
    }
    return replace(pack, about=about)
