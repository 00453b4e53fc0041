"""TMX: each unit that has the source language gets a variant in the target language, behind its last one.

    <tu><tuv xml:lang="en"><seg>Open <hi>it</hi></seg></tuv></tu>

gets `<tuv xml:lang="ca"><seg>...</seg></tuv>`; a variant in the target language that has text stays, an empty one is
filled. TMX has no states, so a doubtful variant bears `<prop type="x-dragoman">doubtful</prop>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from xml.sax.saxutils import escape

from dragoman.corpora.languages import is_near, normalise_tag
from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters
from dragoman.translation.formats.tags import Tag, tags
from dragoman.translation.formats.xml import has_text, local_name, marked_up, require_safe, space_before

PROP = '<prop type="x-dragoman">doubtful</prop>'


@dataclass
class _Variant:
    language: str
    opened: Tag
    closed: Tag
    seg: tuple[Tag, Tag]
    """Both the same where the segment is an empty element."""


@dataclass
class _Unit:
    notes: list[str] = field(default_factory=list)
    variants: list[_Variant] = field(default_factory=list)

    def pair(self, source: str, target: str) -> tuple[_Variant | None, _Variant | None]:
        """The variant that is translated and the one that is filled; never the same one."""
        found = _nearest(source, [v for v in self.variants if v.language != target])
        return found, _nearest(target, [v for v in self.variants if v is not found])


def _nearest(language: str, variants: Sequence[_Variant]) -> _Variant | None:
    """The one in a language, else one whose tag says more or less of the same: ca and ca-ES, not pt-PT and pt-BR."""
    near = [v for v in variants if is_near(v.language, language)]
    return next((v for v in near if v.language == language), near[0] if near else None)


def places(text: str, options: Options) -> list[Place]:
    root = require_safe(text)
    if root.rpartition("}")[2] != "tmx":
        raise DataError(f"the outer element is <{root}>, not <tmx>; give a TMX file")
    units = list(_units(text))
    there = {variant.language for unit in units for variant in unit.variants}
    pairs = [unit.pair(options.source, options.target) for unit in units]
    if units and not any(source for source, _ in pairs):
        raise DataError(f"no unit is in {options.source}, only in {', '.join(sorted(there))}; give one with --source")
    found: list[Place] = []
    for unit, (source, target) in zip(units, pairs, strict=True):
        parts = marked_up(text, *source.seg) if source and source.seg[0] is not source.seg[1] else []
        if source is None or not has_letters(parts):
            continue
        done = target is not None and has_text(text, *target.seg)
        write = partial(_write, text, unit.variants[-1], target, options.target)
        found.append(Place(source.seg[0].start, tuple(parts), write, notes=tuple(unit.notes), done=done))
    return found


def _units(text: str) -> Iterator[_Unit]:
    unit, seg, stack = _Unit(), None, list[Tag]()
    for tag in tags(text):
        name = local_name(tag)
        if name == "seg" and tag.empty:
            seg = (tag, tag)
        if not tag.name or tag.empty:
            continue
        if not tag.closes:
            stack.append(tag)
            unit = _Unit() if name == "tu" else unit
            continue
        opened = stack.pop()
        if name == "seg":
            seg = (opened, tag)
        elif name == "note":
            unit.notes.append(unescape(text[opened.end : tag.start]).strip())
        elif name == "tuv" and seg:
            unit.variants.append(_Variant(_language(opened), opened, tag, seg))
            seg = None
        elif name == "tu":
            yield unit


def _language(tag: Tag) -> str:
    """`xml:lang`, or `lang` as TMX 1.1 has it."""
    return normalise_tag(tag.attributes.get("xml:lang") or tag.attributes.get("lang") or "und")


def _write(
    text: str, last: _Variant, target: _Variant | None, language: str, parts: Sequence[Part], doubtful: bool
) -> list[Edit]:
    seg = f"<seg>{encoded(parts, escape)}</seg>"
    if target is not None:
        return [Edit(target.seg[0].start, target.seg[1].end, (PROP if doubtful else "") + seg)]
    name = "xml:lang" if "xml:lang" in last.opened.attributes else "lang"
    variant = f'<tuv {name}="{language}">{PROP if doubtful else ""}{seg}</tuv>'
    return [Edit(last.closed.end, last.closed.end, f"{space_before(text, last.opened.start)}{variant}")]
