"""What is translated and where to: files and folders on one side, an output folder that mirrors them on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path

from dragoman.errors import ConfigError
from dragoman.translation.formats import FORMATS

RESERVED = ("journal.sqlite", "record.json")


@dataclass(frozen=True)
class Input:
    """A file, and its place in the output folder."""

    path: Path
    name: Path
    """Relative: the file's name, or where it stands in the folder that was given."""


def inputs(given: Sequence[str], out: Path) -> list[Input]:
    """Files as given, and every file of a known format in folders, hidden ones and the output folder left out.

    Raises ConfigError for folders without such a file, and for outputs that share a name, leave the output folder, or
    would be the source or the record: all in one message.
    """
    found = [file for name in given for file in _files(Path(name), out)]
    if empty := [name for name in given if isdir(name) and not _files(Path(name), out)]:
        raise ConfigError(f"no file in {', '.join(empty)} is of a format that is known: {', '.join(FORMATS)}")
    _require_outputs(found, out)
    return found


def _files(given: Path, out: Path) -> list[Input]:
    if not isdir(given):
        return [Input(given, Path(given.name))]
    every = [p for p in sorted(given.rglob("*")) if p.is_file() and p.suffix.lower() in FORMATS]
    own = out.resolve() if given.resolve() in out.resolve().parents else None
    names = [(p, p.relative_to(given)) for p in every if own is None or not p.resolve().is_relative_to(own)]
    return [Input(p, name) for p, name in names if not any(part.startswith(".") for part in name.parts)]


def _require_outputs(found: Sequence[Input], out: Path) -> None:
    paths = [out / file.name for file in found]
    sources = {file.path.resolve() for file in found}
    own = [p for p, file in zip(paths, found, strict=True) if p.resolve() == file.path.resolve()]
    counted = Counter(paths)
    wrong = {
        "two sources have this name": [p for p in paths if counted[p] > 1],
        "the job's own file": [out / name for name in RESERVED if out / name in counted],
        "a link, or outside of the output folder": [p for p in paths if _leaves(p, out)],
        "its source": own,
        "another's source": [p for p in paths if p not in own and p.resolve() in sources],
    }
    told = [f"{path} ({why})" for why, some in wrong.items() for path in dict.fromkeys(some)]
    if told:
        raise ConfigError(f"cannot write {', '.join(told)}; translate such files apart, or choose another --out")


def _leaves(path: Path, out: Path) -> bool:
    return path.is_symlink() or not path.resolve().is_relative_to(out.resolve())
