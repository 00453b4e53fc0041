"""XLIFF 1.2 and 2: units without a translation. Inline elements are pieces, ids and all.

    <trans-unit id="1"><source>Open <g id="1">it</g></source></trans-unit>
    <unit id="1"><segment><source>Open <pc id="1">it</pc></source></segment></unit>

get a <target> behind <source>, state `translated`, and where the translation is doubtful `needs-review-translation`
(1.2) or subState `dragoman:doubtful` (2). A target with text stays, unless its state says that there is work to do.
`translate="no"` is heeded at every level. Files with a DTD are refused, so there are no entities to expand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from xml.sax.saxutils import escape

from lxml import etree

from dragoman.corpora.languages import normalise_tag
from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters, unreadable
from dragoman.translation.formats.tags import Tag, paired, tags

UNITS = ("trans-unit", "segment")
OPEN_STATES = ("new", "needs-translation", "needs-l10n", "needs-adaptation", "initial")
LANGUAGES = {"source-language": "source", "srcLang": "source", "target-language": "target", "trgLang": "target"}
PROTECTED = ("x", "bx", "ex", "bpt", "ept", "ph", "it", "sub", "sc", "ec", "cp", "sm", "em")
"""Inline elements that are one piece, content included; of others (g, mrk, pc) the tags are pieces."""


@dataclass(frozen=True)
class _Unit:
    source: tuple[Tag, Tag]
    target: tuple[Tag, Tag] | None
    notes: tuple[str, ...]
    segment: Tag


def places(text: str, options: Options) -> list[Place]:
    root = require_safe(text)
    if root.rpartition("}")[2] != "xliff":
        raise DataError(f"the outer element is <{root}>, not <xliff>; give an XLIFF file")
    every = tags(text)
    declared = _languages(every, options)
    found: list[Place] = []
    for unit in _units(text, every):
        parts = _parts(text, *unit.source)
        if not has_letters(parts):
            continue
        has_text = unit.target is not None and bool(text[unit.target[0].end : unit.target[1].start].strip())
        state = (unit.target[0].attributes if unit.target else {}).get("state") or unit.segment.attributes.get("state")
        write = partial(_write, text, unit, declared)
        done = has_text and state not in OPEN_STATES
        found.append(Place(unit.source[0].start, tuple(parts), write, " | ".join(unit.notes), done))
    return found


def require_safe(text: str) -> str:
    """Name of the outer element; DataError for a DTD or entities, and for text that is not well-formed."""
    if re.search(r"<!(?:DOCTYPE|ENTITY)", text):
        raise DataError("it has a DTD, which can hold entity bombs and fetch files; remove the <!DOCTYPE>")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    body = re.sub(r"\A\s*<\?xml[^>]*\?>", lambda m: " " * len(m[0]), text)
    try:
        return str(etree.fromstring(body.strip().encode("utf-8"), parser).tag)
    except etree.XMLSyntaxError as e:
        raise unreadable("XML", e) from None


def _languages(every: list[Tag], options: Options) -> list[Edit]:
    """Checks the languages that the file names, and gives the edits that name a target language where it has none."""
    missing = []
    for tag in every:
        if _local(tag) not in ("xliff", "file") or tag.closes:
            continue
        named = {LANGUAGES[k]: v for k, v in tag.attributes.items() if k in LANGUAGES}
        for side, given in named.items():
            wanted = getattr(options, side)
            if normalise_tag(given).split("-")[0] != wanted.split("-")[0]:
                raise DataError(f"its {side} language is {given}, not {wanted}; give the languages of the file")
        if "source" in named and "target" not in named:
            name = "trgLang" if _local(tag) == "xliff" else "target-language"
            missing.append(Edit(tag.end - 1, tag.end - 1, f' {name}="{options.target}"'))
    return missing


def _local(tag: Tag) -> str:
    return tag.name.rpartition(":")[2]


def _units(text: str, every: list[Tag]) -> Iterator[_Unit]:
    stack: list[Tag] = []
    parts: dict[str, tuple[Tag, Tag]] = {}
    notes: list[str] = []
    for tag in every:
        if not tag.name:
            continue
        if not tag.closes:
            if _local(tag) in UNITS:
                parts, notes = {}, notes if _local(tag) == "segment" else []
            if _local(tag) == "unit":
                notes = []
            if tag.empty and _local(tag) == "target":
                parts["target"] = (tag, tag)
            elif not tag.empty:
                stack.append(tag)
            continue
        opened = stack.pop()
        name, above = _local(tag), _local(stack[-1]) if stack else ""
        if name in ("source", "target") and above in UNITS:
            parts[name] = (opened, tag)
        elif name == "note":
            notes.append(unescape(text[opened.end : tag.start]).strip())
        elif name in UNITS and "source" in parts and _wanted([*stack, opened]):
            yield _Unit(parts["source"], parts.get("target"), tuple(notes), opened)


def _wanted(stack: list[Tag]) -> bool:
    """Whether the nearest element that says so wants a translation."""
    said = [tag.attributes["translate"] for tag in stack if "translate" in tag.attributes]
    return not said or said[-1] != "no"


def _parts(text: str, opened: Tag, closed: Tag) -> list[Part]:
    """Text and pieces of a source; what stands inside a protected element belongs to its piece."""
    found: list[Part] = []
    at, depth, held = opened.end, 0, 0
    for tag in tags(text, opened.end, closed.start):
        if depth == 0:
            found.append(Part(unescape(text[at : tag.start])))
            held = tag.start
        inner = not tag.name or tag.empty
        guarded = _local(tag) in PROTECTED or tag.attributes.get("translate") == "no" or depth
        if guarded and not inner:
            depth += -1 if tag.closes else 1
        if depth == 0:
            found.append(Part(text[held : tag.end], "alone"))
            at = tag.end
    return paired([*found, Part(unescape(text[at : closed.start]))])


def _write(text: str, unit: _Unit, declared: list[Edit], parts: Sequence[Part], doubtful: bool) -> list[Edit]:
    prefix = unit.source[0].name.removesuffix("source")
    new = encoded(parts, escape)
    is_new = _local(unit.segment) == "segment"
    edits = [*declared, *(_state(unit.segment, doubtful) if is_new else [])]
    state = "" if is_new else f' state="{"needs-review-translation" if doubtful else "translated"}"'
    if unit.target is None:
        before = re.search(r"\s*\Z", text[: unit.source[0].start])
        at = unit.source[1].end
        return [*edits, Edit(at, at, f"{before[0] if before else ''}<{prefix}target{state}>{new}</{prefix}target>")]
    opened, closed = unit.target
    head = opened.raw.rstrip(">").rstrip("/").rstrip()
    head = head if is_new else re.sub(r"\s+state(?:-qualifier)?\s*=\s*(\"[^\"]*\"|'[^']*')", "", head)
    return [*edits, Edit(opened.start, closed.end, f"{head}{state}>{new}</{opened.name}>")]


def _state(segment: Tag, doubtful: bool) -> list[Edit]:
    """State of a segment of XLIFF 2."""
    said = {"state": "translated"} | ({"subState": "dragoman:doubtful"} if doubtful else {})
    spans = segment.spans
    edits = [Edit(spans[name][1], spans[name][2], value) for name, value in said.items() if name in spans]
    rest = "".join(f' {name}="{value}"' for name, value in said.items() if name not in spans)
    return edits + ([Edit(segment.end - 1, segment.end - 1, rest)] if rest else [])
