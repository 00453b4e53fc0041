"""HTML: the text between block elements, with inline elements as pieces, and attributes that readers see.

    <p>Press <kbd>F1</kbd> for <a href="h.html" title="All topics">help</a>.</p>

is "Press {1} for {2}help{3}." and, on its own, "All topics". Scripts, styles, code, comments and what has
`translate="no"` or the class `notranslate` stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape, unescape

from dragoman.translation.formats.base import Options, Part, Place, has_letters, in_place
from dragoman.translation.formats.tags import Tag, next_tag, paired

INLINE = frozenset(
    {
        "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "br", "cite", "code", "data", "del", "dfn", "em",
        "font", "i", "img", "ins", "kbd", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span",
        "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
    }
)  # fmt: skip
OPAQUE = frozenset(
    {
        "script", "style", "code", "kbd", "samp", "var", "tt", "pre", "math", "svg", "textarea",
    }
)  # fmt: skip
"""Elements that are copied whole."""
VOID = frozenset(
    {
        "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
    }
)  # fmt: skip
CELLS = {"td", "th", "tr", "tbody", "tfoot"}
ENDED_BY: dict[str, set[str]] = {
    "li": {"li"}, "dt": {"dt", "dd"}, "dd": {"dt", "dd"}, "td": CELLS, "th": CELLS, "tr": CELLS - {"td", "th"},
    "option": {"option", "optgroup"}, "optgroup": {"optgroup"}, "rt": {"rt", "rp"}, "rp": {"rt", "rp"},
    "p": {
        "address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset", "figcaption", "figure",
        "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "main", "menu", "nav", "ol",
        "p", "pre", "search", "section", "table", "ul",
    },
}  # fmt: skip
"""Elements that may lack their end tag, and whose start ends them. Source: HTML standard, "Optional tags"."""
SCOPES = {"ul", "ol", "dl", "table", "select", "ruby", "button", "object"}
"""What is open within these does not end what is around them."""
SHOWN = ("alt", "title", "placeholder", "aria-label", "label", "summary")
META = {
    *("description", "keywords", "og:title", "og:description", "og:image:alt"),
    *("twitter:title", "twitter:description", "twitter:image:alt"),
}
"""Names of <meta> whose content is for readers."""


def places(text: str, options: Options) -> list[Place]:
    return list(found_in(text, 0, len(text)))


def found_in(text: str, start: int, end: int) -> Iterator[Place]:
    """Places of a stretch of a document."""
    run: list[tuple[int, int, Tag | None]] = []
    for a, b, tag, kind in _pieces(text, start, end):
        if kind == "block":
            yield from _place(text, run)
            run = []
            yield from _attributes(tag) if tag and not tag.closes else ()
        else:
            run.append((a, b, None if kind == "text" else tag))
    yield from _place(text, run)


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int, Tag | None, str]]:
    """Stretches of text, inline pieces and blocks, in order; an opaque element is one piece."""
    at = start
    while at < end:
        held: list[Tag] = []  # an opaque element, and what is open in it
        for tag in _known(text, at, end):
            name, opens = tag.name.lower(), bool(tag.name) and not (tag.closes or tag.empty)
            if held and not _ends(held, tag):
                held += [tag] if opens and name not in VOID else []
                continue
            if held:
                stop = tag.end if tag.closes and name == held[0].name.lower() else tag.start
                yield at, stop, held[0], _kind(held[0])
                at, held = stop, []
                if stop == tag.end:
                    continue
            if tag.start > at:
                yield at, tag.start, None, "text"
            at = tag.start
            if opens and name not in VOID and (name in OPAQUE or stays(tag)):
                held = [tag]
                continue
            yield at, tag.end, tag, _kind(tag)
            at = tag.end
        if held and held[0].name.lower() not in ENDED_BY:  # never closed: what is behind it is text as any other
            yield at, held[0].end, held[0], _kind(held[0])
            at = held[0].end
            continue
        if at < end:
            yield at, end, held[0] if held else None, "block" if held else "text"
        return


def _kind(tag: Tag) -> str:
    return "inline" if tag.name.lower() in INLINE or tag.raw.startswith("<!--") else "block"


def _ends(held: list[Tag], tag: Tag) -> bool:
    """Whether a tag ends an element, by its own end tag or, as HTML allows, without; closes what is open in it."""
    first, name = held[0].name.lower(), tag.name.lower()
    inner = [other.name.lower() for other in held[1:]]
    if not tag.closes:
        return name in ENDED_BY.get(first, ()) and not SCOPES & {*inner}
    if name in inner:
        del held[len(inner) - inner[::-1].index(name) :]
        return False
    return name == first or first in ENDED_BY


def _known(text: str, start: int, end: int) -> Iterator[Tag]:
    """Tags, but none of those that scripts and styles hold as text."""
    at = start
    while tag := next_tag(text, at, end):
        yield tag
        at = tag.end
        name = tag.name.lower()
        if name in ("script", "style", "textarea") and not tag.closes:
            closer = re.compile(f"</{name}", re.IGNORECASE).search(text, at, end)
            at = closer.start() if closer else end


def _place(text: str, run: list[tuple[int, int, Tag | None]]) -> Iterator[Place]:
    """The place of a run of text and inline pieces, without white space at its ends."""
    while run and run[0][2] is None and not text[run[0][0] : run[0][1]].strip():
        run = run[1:]
    while run and run[-1][2] is None and not text[run[-1][0] : run[-1][1]].strip():
        run = run[:-1]
    if all(tag for _, _, tag in run):
        for _, _, tag in run:
            yield from _attributes(tag) if tag and not tag.closes else ()
        return
    (start, _, first), (_, end, last) = run[0], run[-1]
    start += 0 if first else len(text[start:end]) - len(text[start:end].lstrip())
    end -= 0 if last else len(text[start:end]) - len(text[start:end].rstrip())
    parts: list[Part] = []
    for a, b, tag in run:
        raw = text[max(a, start) : min(b, end)]
        if tag:
            parts.append(Part(raw, "alone", a if _shown(tag) else None))
        else:
            parts.append(Part(re.sub(r"[ \t\r\n\f]+", " ", unescape(raw))))
    place = in_place(start, end, paired(parts), _encoded)
    if has_letters(place.parts):
        yield place
    for _, _, tag in run:
        yield from _attributes(tag) if tag and not tag.closes else ()


def _attributes(tag: Tag) -> Iterator[Place]:
    """What readers see of a tag's attributes, each a place of its own."""
    for value, start, end in _shown(tag):
        mark = tag.raw[start - tag.start - 1]
        yield in_place(start, end, [Part(unescape(value))], _encoded if mark == '"' else _in_apostrophes, tag.name)


def _shown(tag: Tag) -> list[tuple[str, int, int]]:
    """Values in quotation marks with letters, and where they stand."""
    if stays(tag):
        return []
    said = {name.lower(): value for name, value in tag.attributes.items()}
    names = {*SHOWN}
    if tag.name.lower() == "meta" and (said.get("name") or said.get("property", "")).lower() in META:
        names = {"content"}
    elif tag.name.lower() == "input" and said.get("type", "").lower() in ("submit", "button", "reset"):
        names |= {"value"}
    spans = sorted((s for name, s in tag.spans.items() if name.lower() in names), key=lambda s: s[1])
    return [s for s in spans if has_letters([Part(unescape(s[0]))]) and tag.raw[s[2] - tag.start] in "\"'"]


def stays(tag: Tag) -> bool:
    """Whether an element says that it is not to be translated."""
    classes = tag.attributes.get("class", "").split()
    return tag.attributes.get("translate", "").lower() == "no" or "notranslate" in classes


def _encoded(text: str) -> str:
    """Safe between tags, and in an attribute in quotation marks."""
    return escape(text, quote=False).replace('"', "&quot;")


def _in_apostrophes(text: str) -> str:
    """Safe in an attribute in apostrophes."""
    return _encoded(text).replace("'", "&#39;")
