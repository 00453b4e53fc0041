"""Two halves of the train documents: one from which the base learns a task in English, one for labels and arms.

    python -m benchmarks.experiments.task_halves next help.tsv.gz runs/halves --languages de fr

Writes items.jsonl (the English items of the first half with their right answers, as text to train on) and
half.tsv.gz: dev as it is, and as train the other half alone, which no model was trained on in the task's form.
"""

from __future__ import annotations

import json
from pathlib import Path

from cyclopts import run

from dragoman.commands import Tags
from dragoman.corpora.items import REFERENCE
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.corpora.quizzes import QUIZZES
from dragoman.record import atomic_write, sha256


def halves(corpus: NText) -> list[NText]:
    """The train rows of the documents whose checksum is even, and all other rows."""
    rows = zip(corpus.documents, corpus.splits, strict=True)
    first = [split == "train" and int(sha256(document)[:8], 16) % 2 == 0 for document, split in rows]
    return [corpus.take([i for i, f in enumerate(first) if f is which]) for which in (True, False)]


def write(task: str, corpus: Path, out: Path, *, languages: Tags) -> None:
    """Make both halves of a corpus for a task."""
    first, second = halves(open_corpus(str(corpus)))
    items = QUIZZES[task](first, (REFERENCE, *languages), "train").items[REFERENCE]
    with atomic_write(out / "items.jsonl") as partial:
        lines = (json.dumps({"text": f"{item.prompt}{item.answer}"}) for item in items)
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    second.save(out / "half.tsv.gz")
    print(f"{len(items)} items, {len(second)} rows")


if __name__ == "__main__":
    run(write)
