"""`dragoman memory`: translation memories, filled from files, corrected by hand, searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cyclopts import App
from tqdm import tqdm

from dragoman.commands import Paths, Switch, Tags
from dragoman.commands.aiding import open_memory
from dragoman.corpora.languages import normalise_tag
from dragoman.errors import ConfigError
from dragoman.translation.memory import Memory
from dragoman.translation.memory_files import HeldOut, read_pairs

app = App(name="memory")


@app.command(name="import")
def import_files(
    memory: Path,
    /,
    *files: Path,
    source: str = "en",
    to: str,
    splits: Tags = ("train",),
    held_out: Paths = (),
    quiet: Switch = False,
) -> None:
    """Add the pairs of TMX files and tables to a memory, which is made where there is none.

    Parameters
    ----------
    memory
        SQLite file.
    files
        TMX (.tmx, .tmx.gz), or tables with a column for each language: TSV, JSON lines (also .gz), Moses files.
    source
        Language that is translated from.
    to
        Language that is translated into.
    splits
        Of tables with a column `split`: the rows to take; `test` is sealed.
    held_out
        Files with sentences that are measured on (text, TSV, JSON lines, TMX or WMT's XML): pairs that have one of
        them, or one like it, are left out.
    quiet
        No progress bar.
    """
    languages = _direction(source, to)
    if not files:
        raise ConfigError("no files to import were given; name TMX files or tables behind the memory")
    guard = HeldOut.read(held_out) if held_out else None
    for path in files:
        next(iter(read_pairs(path, *languages, splits)), None)  # what cannot be read is told before there is a memory
    store, left_out = Memory.open(memory), 0

    def kept(path: Path) -> Iterator[tuple[str, str]]:
        nonlocal left_out
        for pair in read_pairs(path, *languages, splits):
            if guard is not None and guard.leaks(*pair):
                left_out += 1
            else:
                yield pair

    with tqdm(unit=" pairs", disable=quiet, delay=2) as bar:
        for path in files:
            new = store.add(kept(path), *languages, progress=bar.update)
            print(f"{path}: {new:,} new pairs")
    print(f"{memory}: {len(store):,} pairs" + (f"; {left_out:,} kept out by the guard" if guard else ""))
    store.close()


@app.command
def add(memory: Path, text: str, translation: str, /, *, source: str = "en", to: str) -> None:
    """Add an accepted or corrected translation; other translations of the same text go.

    Parameters
    ----------
    memory
        SQLite file; made where there is none.
    text
        The text.
    translation
        Its translation.
    source
        Language of the text.
    to
        Language of the translation.
    """
    if not text.strip() or not translation.strip():
        raise ConfigError("text and translation must not be empty")
    languages = _direction(source, to)
    store = Memory.open(memory)
    store.add([(text, translation)], *languages, replace=True)
    print(f"{memory}: {len(store):,} pairs")
    store.close()


@app.command
def search(memory: Path, text: str, /, *, source: str = "en", to: str, limit: int = 5, threshold: float = 0.5) -> None:
    """Print the pairs whose sources are most like a text.

    Parameters
    ----------
    memory
        SQLite file.
    text
        What to look for.
    source
        Language of the text.
    to
        Language of the translations.
    limit
        Most pairs.
    threshold
        Least likeness, 0 to 1.
    """
    if limit < 1 or not 0 <= threshold <= 1:
        raise ConfigError(f"limit is at least 1 and threshold between 0 and 1, not {limit} and {threshold}")
    store = open_memory(memory)
    for match in store.search(text, *_direction(source, to), limit, threshold):
        print(f"{match.similarity:.2f}  {match.source}\n      {match.target}")
    store.close()


def _direction(source: str, to: str) -> tuple[str, str]:
    languages = (normalise_tag(source), normalise_tag(to))
    if languages[0] == languages[1]:
        raise ConfigError(f"source and target are both {to}; give two languages")
    return languages
