"""What a format gives: places to translate, and the edits that put a translation there.

A document is its text; a translation is a list of edits of that text. What no edit touches stays as it is, to the
byte, so a format never writes a file: it only finds places.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Edit:
    """Put `text` in place of `document[start:end]`."""

    start: int
    end: int
    text: str


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
    """What a translator would want to know: a key, a comment, a speaker."""
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
        return [] if merged(translated) == source else [Edit(start, end, encoded(translated, encode))]

    return Place(start, source, write, context)


def encoded(parts: Sequence[Part], encode: Callable[[str], str]) -> str:
    """Parts as they stand in a file."""
    return "".join(part.text if part.kind in MARKUP else encode(part.text) for part in merged(parts))


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits made; one that several places ask for is made once."""
    done, at = [], 0
    for edit in sorted(set(edits), key=lambda e: (e.start, e.end)):
        assert edit.start >= at, "edits of different places overlap"
        done += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join(done) + text[at:]


def line_of(text: str, at: int) -> int:
    """Number of the line, from 1."""
    return text.count("\n", 0, at) + 1


def unreadable(kind: str, error: Exception) -> DataError:
    """One sentence of another library's complaint."""
    if isinstance(error, UserError):
        return DataError(str(error))
    return DataError(f"not well-formed {kind}: {' '.join(str(error).split())}; mend the file")
