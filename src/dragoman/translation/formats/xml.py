"""What the formats in XML share: safe reading, names without prefixes, inline elements as pieces."""

from __future__ import annotations

import re
from html import unescape

from lxml import etree

from dragoman.errors import DataError
from dragoman.translation.formats.base import Part, unreadable
from dragoman.translation.formats.tags import Tag, paired, tags

PROTECTED = ("x", "bx", "ex", "bpt", "ept", "ph", "it", "sub", "sc", "ec", "cp", "sm", "em", "ut")
"""Inline elements of XLIFF and TMX that are one piece, content included; of others (g, mrk, pc, hi) the tags are."""


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


def local_name(tag: Tag) -> str:
    """The name of an element without its prefix."""
    return tag.name.rpartition(":")[2]


def marked_up(text: str, opened: Tag, closed: Tag) -> list[Part]:
    """Text and pieces of a source; what stands inside a protected element belongs to its piece."""
    found: list[Part] = []
    at, depth, held = opened.end, 0, 0
    for tag in tags(text, opened.end, closed.start):
        if depth == 0:
            found.append(Part(unescape(text[at : tag.start])))
            held = tag.start
        if depth == 0 and tag.raw.startswith("<![CDATA["):
            found.append(Part(tag.raw[9:-3]))
            at = tag.end
            continue
        inner = not tag.name or tag.empty
        stays = tag.attributes.get("translate") == "no" or tag.attributes.get("mtype") == "protected"
        guarded = local_name(tag) in PROTECTED or stays or depth
        if guarded and not inner:
            depth += -1 if tag.closes else 1
        if depth == 0:
            found.append(Part(text[held : tag.end], "alone"))
            at = tag.end
    return paired([*found, Part(unescape(text[at : closed.start]))])


def space_before(text: str, at: int) -> str:
    """The white space that ends there."""
    start = at
    while start and text[start - 1].isspace():
        start -= 1
    return text[start:at]


def has_text(text: str, opened: Tag, closed: Tag) -> bool:
    """Whether there is anything but white space and markup in an element; `closed` is `opened` where it is empty."""
    if opened is closed:
        return False
    return any(part.kind == "text" and part.text.strip() for part in marked_up(text, opened, closed))
