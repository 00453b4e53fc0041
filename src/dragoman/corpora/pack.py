"""The built-in corpus: help segments that fit a repository, complete in every one of its languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from dragoman.corpora.ntext import NText, load
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
    with resources.as_file(resources.files("dragoman") / "assets" / "pack") as folder:
        return load(folder / "help.tsv.gz")


def open_corpus(name: str, open_test: bool = False) -> NText:
    """The built-in corpus by its name `help`, or a user's n-way text by its path (see `ntext.load`)."""
    return load_pack() if name == BUILT_IN and not Path(name).exists() else load(Path(name), open_test)


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
    n = train or _most_that_fit(full, found["train"], held, max_bytes)
    return _about(full.take(sorted(held + found["train"][:n])), help_table, known, unseen, seed)


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


def _most_that_fit(text: NText, train: Sequence[int], held: Sequence[int], max_bytes: int) -> int:
    """Largest number of training rows with which the saved table keeps within `max_bytes`, to a hundred rows."""
    low, high = MIN_TRAIN, len(train) + 1
    while high - low > 100:
        middle = (low + high) // 2
        size = len(text.take(sorted([*held, *train[:middle]])).packed())
        low, high = (middle, high) if size <= max_bytes else (low, middle)
    return low


def _about(pack: NText, table: NText, known: Sequence[str], unseen: Sequence[str], seed: int) -> NText:
    kept: dict[str, Any] = {
        name: table.about[name] for name in ("origin", "licence", "packages", "splits") if name in table.about
    }
    about: dict[str, Any] = {
        "name": "help",
        **kept,
        "notice": NOTICE,
        "from_table": table.about.get("checksum"),
        "seed": seed,
        "rules": {"min_english_words": MIN_WORDS, "max_characters": MAX_CHARACTERS, "complete": True},
        "known": list(known),
        "unseen": list(unseen),
        "rows_by_split": dict(Counter(pack.splits)),
    }
    return replace(pack, about=about)
