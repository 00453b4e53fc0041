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

from dragoman.corpora.languages import normalise_tag
from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters
from dragoman.translation.formats.tags import Tag, tags
from dragoman.translation.formats.xml import local_name, marked_up, require_safe

UNITS = ("trans-unit", "segment")
OPEN_STATES = ("new", "needs-translation", "needs-l10n", "needs-adaptation", "initial")
LANGUAGES = {"source-language": "source", "srcLang": "source", "target-language": "target", "trgLang": "target"}


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
        parts = marked_up(text, *unit.source)
        if not has_letters(parts):
            continue
        has_text = unit.target is not None and bool(text[unit.target[0].end : unit.target[1].start].strip())
        state = (unit.target[0].attributes if unit.target else {}).get("state") or unit.segment.attributes.get("state")
        write = partial(_write, text, unit, declared)
        done = has_text and state not in OPEN_STATES
        found.append(Place(unit.source[0].start, tuple(parts), write, " | ".join(unit.notes), done))
    return found


def _languages(every: list[Tag], options: Options) -> list[Edit]:
    """Checks the languages that the file names, and gives the edits that name a target language where it has none."""
    missing = []
    for tag in every:
        if local_name(tag) not in ("xliff", "file") or tag.closes:
            continue
        named = {LANGUAGES[k]: v for k, v in tag.attributes.items() if k in LANGUAGES}
        for side, given in named.items():
            wanted = getattr(options, side)
            if normalise_tag(given).split("-")[0] != wanted.split("-")[0]:
                raise DataError(f"its {side} language is {given}, not {wanted}; give the languages of the file")
        if "source" in named and "target" not in named:
            name = "trgLang" if local_name(tag) == "xliff" else "target-language"
            missing.append(Edit(tag.end - 1, tag.end - 1, f' {name}="{options.target}"'))
    return missing


def _units(text: str, every: list[Tag]) -> Iterator[_Unit]:
    stack: list[Tag] = []
    parts: dict[str, tuple[Tag, Tag]] = {}
    notes: list[str] = []
    for tag in every:
        if not tag.name:
            continue
        if not tag.closes:
            if local_name(tag) in UNITS:
                parts, notes = {}, notes if local_name(tag) == "segment" else []
            if local_name(tag) == "unit":
                notes = []
            if tag.empty and local_name(tag) == "target":
                parts["target"] = (tag, tag)
            elif not tag.empty:
                stack.append(tag)
            continue
        opened = stack.pop()
        name, above = local_name(tag), local_name(stack[-1]) if stack else ""
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


def _write(text: str, unit: _Unit, declared: list[Edit], parts: Sequence[Part], doubtful: bool) -> list[Edit]:
    prefix = unit.source[0].name.removesuffix("source")
    new = encoded(parts, escape)
    is_new = local_name(unit.segment) == "segment"
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
