"""Tags of XML and HTML with their places in the text, and the pairing of pieces that open and close."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import unescape

from dragoman.translation.formats.base import Part

TAG = re.compile(
    r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>|<![^>]*>"
    r"|<(?P<slash>/?)(?P<name>[A-Za-z_][^\s/>]*)(?P<attributes>(?:[^<>\"']|\"[^\"]*\"|'[^']*')*?)(?P<empty>/?)>",
    re.DOTALL,
)
ATTRIBUTE = re.compile(r"([^\s=/>\"']+)(?:\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?")


@dataclass(frozen=True)
class Tag:
    """A tag, comment, section or declaration; `name` is "" where it is no tag."""

    name: str
    start: int
    end: int
    closes: bool
    empty: bool
    raw: str
    attributes_at: int

    @cached_property
    def attributes(self) -> dict[str, str]:
        """Values without quotes and entities, by name as written."""
        return {name: unescape(value) for name, (value, _, _) in self.spans.items()}

    @cached_property
    def spans(self) -> dict[str, tuple[str, int, int]]:
        """Raw value of each attribute and where it stands in the text, quotes left out."""
        found: dict[str, tuple[str, int, int]] = {}
        for match in ATTRIBUTE.finditer(self.raw.rstrip(">").removesuffix("/"), self.attributes_at - self.start):
            value = match[2] or ""
            quoted = value[:1] in ("'", '"')
            at = self.start + match.start(2) + quoted if match[2] else self.end
            body = value[1:-1] if quoted else value
            found.setdefault(match[1], (body, at, at + len(body)))
        return found


def next_tag(text: str, at: int, end: int) -> Tag | None:
    """The first tag in `text[at:end]`."""
    match = TAG.search(text, at, end)
    if match is None:
        return None
    name = match["name"] or ""
    inside = match.start("attributes") if name else match.end()
    return Tag(name, match.start(), match.end(), match["slash"] == "/", match["empty"] == "/", match[0], inside)


def tags(text: str, start: int = 0, end: int | None = None) -> list[Tag]:
    """Every tag between the two places, in order."""
    found, end = [], len(text) if end is None else end
    while tag := next_tag(text, start, end):
        found.append(tag)
        start = tag.end
    return found


def paired(parts: Sequence[Part]) -> list[Part]:
    """Lone pieces `<x ...>` and `</x>` that belong together become `open` and `close`; the others stay alone."""
    found = list(parts)
    waiting: list[tuple[str, int]] = []
    for n, part in enumerate(parts):
        match = TAG.fullmatch(part.text) if part.kind == "alone" else None
        if not match or not match["name"] or match["empty"]:
            continue
        name = re.split(r"[.\s]", match["name"])[0]
        if not match["slash"]:
            waiting.append((name, n))
            continue
        opener = next((i for i in reversed(range(len(waiting))) if waiting[i][0] == name), None)
        if opener is not None:
            found[waiting[opener][1]] = replace(found[waiting[opener][1]], kind="open")
            found[n] = replace(part, kind="close")
            del waiting[opener:]
    return found
