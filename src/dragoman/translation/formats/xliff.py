"""XLIFF 1.2 and 2: units without a translation. Inline elements are pieces, ids and all.

    <trans-unit id="1"><source>Open <g id="1">it</g></source></trans-unit>
    <unit id="1"><segment><source>Open <pc id="1">it</pc></source></segment></unit>

get a <target> behind <source>, state `translated`, and where the translation is doubtful `needs-review-translation`
(1.2) or subState `dragoman:doubtful` (2). A target with text stays, unless its state says that there is work to do.
`translate="no"` is heeded at every level. Where a unit of 1.2 has <seg-source>, its segments are translated each on its
own, and those that the target has stay. Files with a DTD are refused, so there are no entities to expand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import unescape
from xml.sax.saxutils import escape

from dragoman.corpora.languages import is_near, normalise_tag
from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters
from dragoman.translation.formats.tags import Tag, tags
from dragoman.translation.formats.xml import has_text, local_name, marked_up, require_safe, space_before

UNITS = ("trans-unit", "segment")
OPEN_STATES = ("new", "needs-translation", "needs-l10n", "needs-adaptation", "initial")
LANGUAGES = {"source-language": "source", "srcLang": "source", "target-language": "target", "trgLang": "target"}


@dataclass(frozen=True)
class _Unit:
    parts: dict[str, tuple[Tag, Tag]]
    """Opening and closing tag of source, target and seg-source; both the same where it is empty."""
    notes: tuple[str, ...]
    segment: Tag
    name: str

    @property
    def source(self) -> tuple[Tag, Tag]:
        return self.parts["source"]

    @property
    def target(self) -> tuple[Tag, Tag] | None:
        return self.parts.get("target")


def places(text: str, options: Options) -> list[Place]:
    root = require_safe(text)
    if root.rpartition("}")[2] != "xliff":
        raise DataError(f"the outer element is <{root}>, not <xliff>; give an XLIFF file")
    every = tags(text)
    declared = _languages(every, options)
    return [place for unit in _units(text, every) for place in _places(text, unit, declared)]


def _places(text: str, unit: _Unit, declared: list[Edit]) -> Iterator[Place]:
    """The place of a unit, or of each of its segments where it is segmented."""
    state = (unit.target[0].attributes if unit.target else {}).get("state") or unit.segment.attributes.get("state")
    sources = _segments(text, unit.parts.get("seg-source"))
    targets = _segments(text, unit.target)
    is_filled = unit.target is not None and has_text(text, *unit.target)
    if not sources or (is_filled and not targets):
        sources, targets = {"": unit.source}, {"": unit.target} if unit.target else {}
        write = partial(_write, text, unit)
    else:
        write = partial(_write_segment, text, unit, sources, targets)
    for key, span in sources.items():
        parts = tuple(marked_up(text, *span))
        done = key in targets and has_text(text, *targets[key]) and state not in OPEN_STATES
        if has_letters(parts):
            own = partial(write, declared) if key == "" else partial(write, key, declared)
            yield Place(span[0].start, parts, own, unit.name, unit.notes, done=done)


def _segments(text: str, element: tuple[Tag, Tag] | None) -> dict[str, tuple[Tag, Tag]]:
    """The segments `<mrk mtype="seg" mid="1">` of an element of XLIFF 1.2, by their ids."""
    found: dict[str, tuple[Tag, Tag]] = {}
    stack: list[Tag] = []
    for tag in tags(text, element[0].end, element[1].start) if element and element[0] is not element[1] else ():
        if not tag.name or local_name(tag) != "mrk":
            continue
        opened = stack.pop() if tag.closes else tag
        if not tag.closes and not tag.empty:
            stack.append(tag)
        elif opened.attributes.get("mtype") == "seg":
            found[opened.attributes.get("mid", "")] = (opened, tag)
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
            if not is_near(normalise_tag(given), wanted):
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
            if tag.empty and local_name(tag) == "target" and stack and local_name(stack[-1]) in UNITS:
                parts["target"] = (tag, tag)
            elif not tag.empty:
                stack.append(tag)
            continue
        opened = stack.pop()
        name, above = local_name(tag), local_name(stack[-1]) if stack else ""
        if name in ("source", "target", "seg-source") and above in UNITS:
            parts[name] = (opened, tag)
        elif name == "note":
            notes.append(" ".join(unescape(text[opened.end : tag.start]).split()))
        elif name in UNITS and "source" in parts and _wanted([*stack, opened]):
            named = [opened.attributes.get("resname"), *([stack[-1].attributes.get("name")] if stack else [])]
            yield _Unit(parts, tuple(filter(None, notes)), opened, next(filter(None, named), ""))


def _wanted(stack: list[Tag]) -> bool:
    """Whether the nearest element that says so wants a translation."""
    said = [tag.attributes["translate"] for tag in stack if "translate" in tag.attributes]
    return not said or said[-1] != "no"


def _write(text: str, unit: _Unit, declared: list[Edit], parts: Sequence[Part], doubtful: bool) -> list[Edit]:
    new = encoded(parts, escape)
    is_new = local_name(unit.segment) == "segment"
    edits = [*declared, *(_state(unit.segment, doubtful) if is_new else [])]
    if unit.target is None:
        at = unit.source[1].end
        return [*edits, Edit(at, at, f"{_head(text, unit, doubtful)}{new}</{_prefix(unit)}target>")]
    opened, closed = unit.target
    return [*edits, Edit(opened.start, closed.end, f"{_head(text, unit, doubtful)}{new}</{opened.name}>")]


def _write_segment(
    text: str,
    unit: _Unit,
    sources: dict[str, tuple[Tag, Tag]],
    targets: dict[str, tuple[Tag, Tag]],
    key: str,
    declared: list[Edit],
    parts: Sequence[Part],
    doubtful: bool,
) -> list[Edit]:
    """Edits of one segment of a segmented unit; those that its target gets from any segment are the same for all."""
    new, head = encoded(parts, escape), _head(text, unit, doubtful)
    within = unit.parts["seg-source"]
    if unit.target and targets:
        state = Edit(unit.target[0].start, unit.target[0].end, head, rank=doubtful)
        opened, closed = targets.get(key, sources[key])
        filled = f"{opened.raw.removesuffix('>').removesuffix('/').rstrip()}>{new}</{opened.name}>"
        if key not in targets:
            at, order = unit.target[1].start, [*sources].index(key)
            return [*declared, state, Edit(at, at, filled, order)]
        return [*declared, state, Edit(opened.start, closed.end, filled)]
    start, end = (unit.target[0].start, unit.target[1].end) if unit.target else (within[1].end,) * 2
    edits, at = [Edit(start, end, head, -1, doubtful)], within[0].end
    for n, (mid, (opened, closed)) in enumerate(sources.items()):
        edits.append(Edit(end, end, text[at : opened.end], 2 * n))
        edits += [Edit(end, end, new, 2 * n + 1)] if mid == key else []
        at = closed.start
    tail = f"{text[at : within[1].start]}</{_prefix(unit)}target>"
    return [*declared, *edits, Edit(end, end, tail, 2 * len(sources))]


def _prefix(unit: _Unit) -> str:
    return unit.source[0].name.removesuffix("source")


def _head(text: str, unit: _Unit, doubtful: bool) -> str:
    """The opening tag of a target with its state, in front of it the white space that a new one gets."""
    is_new = local_name(unit.segment) == "segment"
    state = "" if is_new else f' state="{"needs-review-translation" if doubtful else "translated"}"'
    if unit.target is None:
        return f"{space_before(text, unit.source[0].start)}<{_prefix(unit)}target{state}>"
    head = unit.target[0].raw.rstrip(">").rstrip("/").rstrip()
    head = head if is_new else re.sub(r"\s+state(?:-qualifier)?\s*=\s*(\"[^\"]*\"|'[^']*')", "", head)
    return f"{head}{state}>"


def _state(segment: Tag, doubtful: bool) -> list[Edit]:
    """State of a segment of XLIFF 2."""
    said = {"state": "translated"} | ({"subState": "dragoman:doubtful"} if doubtful else {})
    spans = segment.spans
    edits = [Edit(spans[name][1], spans[name][2], value) for name, value in said.items() if name in spans]
    rest = "".join(f' {name}="{value}"' for name, value in said.items() if name not in spans)
    return edits + ([Edit(segment.end - 1, segment.end - 1, rest)] if rest else [])
