"""A tiny tokenizer and n-way text, for tests."""

from __future__ import annotations

import functools

from dragoman.commands.pretrain import Vocabulary, train_tokenizer
from dragoman.corpora.ntext import NText

WORDS = {
    "en": ["open", "the", "file", "and", "save", "it", "under", "another", "name", "now"],
    "es": ["abra", "el", "archivo", "y", "guárdelo", "con", "otro", "nombre", "ahora", "bien"],
    "de": ["öffne", "die", "Datei", "und", "speichere", "sie", "unter", "anderem", "Namen", "jetzt"],
    "ca": ["obriu", "el", "fitxer", "i", "deseu-lo", "amb", "un", "altre", "nom", "ara"],
    "ru": ["откройте", "файл", "и", "сохраните", "его", "под", "другим", "именем", "сейчас", "же"],
}


@functools.cache
def corpus(rows: int = 120) -> NText:
    """Rows of five languages in 24 documents; the i-th words of the languages belong together."""
    picks = [[(7 * i + 3 * j * j + i * j) % 10 for j in range(4 + i % 4)] for i in range(rows)]
    columns: dict[str, list[str | None]] = {
        g: [" ".join(words[p] for p in pick) + f" {i}" for i, pick in enumerate(picks)] for g, words in WORDS.items()
    }
    documents = tuple(f"page{i // 5}" for i in range(rows))
    splits = tuple(("train", "train", "dev", "devtest")[i // 5 % 4] for i in range(rows))
    return NText(
        languages=tuple(WORDS),
        keys=tuple(str(i) for i in range(rows)),
        documents=documents,
        splits=splits,
        columns=columns,
        about={"name": "toy", "licence": "none"},
    )


@functools.cache
def tokenizer():
    """Byte-level BPE of 400 entries with tags for the five languages."""
    return train_tokenizer(Vocabulary(size=400, tags=tuple(WORDS)), [corpus()], tuple(WORDS))
