"""What a format gives: places to translate, and the edits that put a translation there.

A document is its text; a translation is a list of edits of that text. What no edit touches stays as it is, to the
byte, so a format never writes a file: it only finds places.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dragoman.errors import DataError, UserError

Kind = Literal["text", "value", "fixed", "open", "close", "alone"]
MARKUP = ("open", "close", "alone")
"""Kinds whose text is markup as it stands in the file. The others are text, decoded: the format encodes them again."""


@dataclass(frozen=True)
class Part:
    """A stretch of a place: text to translate, or a piece that has to survive."""

    text: str
    kind: Kind = "text"
    """`value`: a placeholder, may move; `fixed`: keeps its order among its like (line ends, the frame of an ICU
    message); `open` and `close`: markup around text, nested as before; `alone`: other markup, may move."""
    at: int | None = None
    """Of markup in which there are places too, such as an image with a description: where it stands."""


@dataclass(frozen=True)
class Edit:
    """Put `text` in place of `document[start:end]`."""

    start: int
    end: int
    text: str
    order: int = 0
    """Among edits that begin at the same place."""
    rank: int = 0
    """Where segments that share an element want it otherwise, the highest is made."""
    copies: tuple[tuple[int, int, int], ...] = ()
    """(where in `text`, start, end) of what is copied from the document: edits of that are made in the copy."""


class Broken(Exception):
    """A translation that would change the document around it, and why; the job marks the place and goes on."""


@dataclass(frozen=True)
class Place:
    """One translatable segment."""

    at: int
    """Where it stands in the text, for line numbers."""
    parts: tuple[Part, ...]
    write: Callable[[Sequence[Part], bool], list[Edit]]
    """(translated parts, doubtful) -> edits; raises Broken."""
    context: str = ""
    """Where it stands: a key, a column, the number of a cue."""
    notes: tuple[str, ...] = ()
    """What the file tells translators about it."""
    sense: str = ""
    """Tells texts apart that look the same and may have to be translated differently."""
    done: bool = False
    """The file has a translation here already, and it stays."""


@dataclass(frozen=True)
class Options:
    """What a format may want to know."""

    source: str
    target: str
    """Language tags."""
    keys: tuple[str, ...] = ()
    """JSON and YAML: patterns of the keys whose values are translated; empty: all. CSV: those of its columns."""
    wrapped: bool = False
    """Plain text: lines belong together up to an empty one."""


class Format(Protocol):
    """A module of this package."""

    def places(self, text: str, options: Options) -> list[Place]:
        """Every translatable segment of a document, in order. Raises DataError where it is not of this format."""


def has_letters(parts: Iterable[Part]) -> bool:
    """Whether there is something to translate."""
    return any(c.isalpha() for part in parts if part.kind == "text" for c in part.text)


def merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring parts that are text in the file as one; empty ones gone."""
    found: list[Part] = []
    for part in parts:
        plain = part.kind not in MARKUP
        if plain and found and found[-1].kind == "text":
            found[-1] = Part(found[-1].text + part.text)
        elif part.text:
            found.append(Part(part.text) if plain else part)
    return tuple(found)


def in_place(
    start: int, end: int, parts: Sequence[Part], encode: Callable[[str], str] = str, context: str = ""
) -> Place:
    """A place whose translation stands where its source stood; one that equals its source changes nothing."""
    source = merged(parts)

    def write(translated: Sequence[Part], doubtful: bool) -> list[Edit]:
        return [] if merged(translated) == source else [replacement(start, end, translated, encode)]

    return Place(start, source, write, context)


def replacement(start: int, end: int, parts: Sequence[Part], encode: Callable[[str], str]) -> Edit:
    """The edit that puts parts there, as they stand in a file."""
    text, copies = "", []
    for part in merged(parts):
        if part.at is not None:
            copies.append((len(text), part.at, part.at + len(part.text)))
        text += encoded([part], encode)
    return Edit(start, end, text, copies=tuple(copies))


def encoded(parts: Sequence[Part], encode: Callable[[str], str]) -> str:
    """Parts as they stand in a file."""
    return "".join(part.text if part.kind in MARKUP else encode(part.text) for part in merged(parts))


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits made; one that several places ask for is made once."""
    chosen: dict[tuple[int, int, int], Edit] = {}
    for edit in edits:
        other = chosen.setdefault((edit.start, edit.order, edit.end), edit)
        assert edit == other or edit.rank != other.rank, "two edits of the same place"
        if edit.rank > other.rank:
            chosen[edit.start, edit.order, edit.end] = edit
    return _made(text, 0, len(text), [chosen[place] for place in sorted(chosen)])


def _made(text: str, start: int, end: int, edits: Sequence[Edit]) -> str:
    """`text[start:end]`, in which the edits are, with them made."""
    done, at, n = [], start, 0
    while n < len(edits):
        edit, n = edits[n], n + 1
        assert edit.start >= at, "edits of different places overlap"
        inner: list[Edit] = []
        while n + len(inner) < len(edits) and edits[n + len(inner)].start < edit.end:
            inner.append(edits[n + len(inner)])
        done += [text[at : edit.start], _with_copies(text, edit, inner)]
        at, n = edit.end, n + len(inner)
    return "".join(done) + text[at:end]


def _with_copies(text: str, edit: Edit, inner: Sequence[Edit]) -> str:
    done, at = [], 0
    for where, start, end in sorted(edit.copies):
        own = [other for other in inner if start <= other.start and other.end <= end]
        inner = [other for other in inner if other not in own]
        done += [edit.text[at:where], _made(text, start, end, own)]
        at = where + end - start
    assert not inner, "edits of different places overlap"
    return "".join(done) + edit.text[at:]


def lines_of(text: str) -> Callable[[int], int]:
    """Number of the line, from 1, of each place of a text, which is read once."""
    new_lines, returns = ([m.start() for m in re.finditer(end, text)] for end in "\n\r")
    return lambda at: (bisect_left(new_lines, at) or bisect_left(returns, at)) + 1


def line_of(text: str, at: int) -> int:
    """Number of the line, from 1, of one place; of many, `lines_of` gives it."""
    return lines_of(text[:at])(at)


def unreadable(kind: str, error: Exception) -> DataError:
    """One sentence of another library's complaint."""
    if isinstance(error, UserError):
        return DataError(str(error))
    return DataError(f"not well-formed {kind}: {' '.join(str(error).split())}; mend the file")
