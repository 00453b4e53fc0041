"""Markdown (CommonMark, tables, strikethrough): blocks are segments, inline markup is pieces, code and maths stay.

    > Press **F1**, or see
    > [help](h.md "All topics").      -> "Press {1}F1{2}, or see {3}help{4}."

The line ends of a paragraph are spaces to the engine; a translated paragraph is one line. HTML blocks are read as HTML.
Titles of links and definitions are segments of their own. Front matter, fenced and indented code and link targets stay,
and so do lines that other dialects read as markup (footnotes, containers, admonitions, attributes). A translation that
would be more markup than its source (a list, another emphasis) is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.common.utils import normalizeReference
from markdown_it.token import Token

from dragoman.translation.formats.base import (
    MARKUP,
    Broken,
    Edit,
    Options,
    Part,
    Place,
    encoded,
    has_letters,
    in_place,
    merged,
    replacement,
)
from dragoman.translation.formats.html import ENDED_BY, OPAQUE, found_in, stays
from dragoman.translation.formats.tags import Tag, next_tag, tags

FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:.*?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
WITHIN = r"(?:(?!\\[()\[\]]).)"
FORMULA = rf"(?:[A-Za-z]|(?={WITHIN}*?(?:[\^_=+{{]|\\[A-Za-z])){WITHIN}+)"
"""What stands between backslash and bracket where these enclose maths: in other texts they are escapes."""
DISPLAYED = r"(?:(?![ \t>]*(?:```|~~~|$))[^\n]*\n)*?[^\n]*"
DISPLAY = re.compile(
    rf"^[ \t>]*(?:\$\$(?![^\n]*\$\$)[^\n]*\n{DISPLAYED}\$\$|\\\[[ \t]*\n{DISPLAYED}\\\])[ \t]*$", re.MULTILINE
)
"""Maths in lines of its own; CommonMark would read lists and headings in it."""
DESTINATION = r"\((?:[^()\\\n\"]|\\.|\((?:[^()\\]|\\.)*\)|\"[^\"]*\"|\")*+\)"
INLINE = re.compile(
    rf"\\\({FORMULA}\\\)|\\\[{FORMULA}\\\]|\\\\\(.+?\\\\\)|\\\\\[.+?\\\\\]"  # maths
    r"|\\[!-/:-@\[-`{-~]"  # escapes
    r"|(?P<tick>`+)(?!`).*?(?<!`)(?P=tick)(?!`)"  # code
    r"|\$\$.+?\$\$|\$(?=[^\s$\d])[^$]*?(?<=[^\s$])\$(?!\d)"  # maths
    r"|<(?:[A-Za-z][A-Za-z0-9+.-]*:[^\s<>]*|[\w.+-]+@[\w.-]+)>"  # addresses
    r"|<!--.*?-->|</?[A-Za-z][^<>]*>"  # HTML
    r"|\{[:#.][^{}\n]*\}|\{%.*?%\}"  # attributes, templates
    r"|\[\^[^\]\s]+\]:?"  # footnotes
    r"|(?P<open>!?\[)|(?P<close>\]"
    rf"(?:{DESTINATION}|\[[^\]]*\])?)"
    r"|(?P<run>\*+|_+|~~)"
    r"|&(?:[A-Za-z]\w*|#\d+|#[xX][0-9A-Fa-f]+);",
    re.DOTALL,
)
BLOCK = re.compile(r"(?:#{1,6}(?:\s|$)|>|[-+*](?:\s|$)|\d{1,9}[.)](?:\s|$)|(?:[-=]\s*)+$|~~~|\|)")
"""Starts of a line that are markup."""
LABEL = re.compile(r"(?:\[[ xX]\]|\[\^[^\]\s]+\]:|:)[ \t]+(?=\S)")
"""Box of a task, name of a footnote, sign of a definition."""
FENCE = re.compile(
    r"\[![A-Z]+\]|\{[:#.][^{}]*\}"  # a quotation's kind, attributes
    r'|(?:!!!|\?\?\?\+?)[ \t]+[\w -]*(?:"(?P<quoted>.*)")?'  # an admonition and its title
    r"|:::+[ \t]*[\w-]*[ \t]*(?:\[(?P<boxed>.*)\]|\{.*\}|(?P<title>.*))"  # a container's start or end
)
"""Lines that other dialects read as markup and CommonMark as part of a paragraph: they stay lines of their own."""
NOTE = re.compile(r"^([ \t>]*\[\^[^\]\s]+\]):", re.MULTILINE)
"""The name of a footnote, which with one word behind it is the definition of a link to CommonMark."""
QUOTED = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
"""Marks of a block quotation."""
ATTRIBUTES = re.compile(r"[ \t]+\{[:#.][^{}]*\}\Z")
TITLE = re.compile(r"""(?<=\s)(?P<quote>["'])(?P<title>(?:\\.|(?!(?P=quote))[^\\])*)(?P=quote)\s*\)?\Z""")
"""Of a link, an image or a definition, at its end."""

WORDS = ("text", "text_special", "softbreak")
"""Tokens within a block that are no markup."""


@dataclass(frozen=True)
class _Line:
    start: int
    end: int


@cache
def _reader() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def places(text: str, options: Options) -> list[Place]:
    bare = text.replace("\r\n", "\n").replace("\r", "\n")
    if front := FRONT.match(bare):
        bare = "\n" * bare.count("\n", 0, front.end()) + bare[front.end() :]
    bare = DISPLAY.sub(lambda found: "\n" * found[0].count("\n"), bare)
    starts = [0, *(m.end() for m in re.finditer(r"\r\n|\r|\n", text)), len(text)]
    environment: dict = {}
    found: list[Place] = []
    colon = _absent(text)
    tokens = _reader().parse(NOTE.sub(rf"\1{colon}", bare), environment)
    kept, unquoted = _kept(text, tokens, starts), QUOTED.sub(lambda mark: " " * len(mark[0]), text)
    cell_at: int | None = None  # within a row of a table, where the next cell may begin
    for n, token in enumerate(tokens):
        if token.type == "tr_open" and token.map:
            cell_at = starts[token.map[0]]
        elif token.type == "tr_close":
            cell_at = None
        if token.type == "html_block" and token.map:
            start, end = _stretch(token, starts)
            within = unquoted if ">" in text[start:end].partition("<")[0] else text
            found += [place for a, b in _outside(kept, n, start, end) for place in found_in(within, a, b)]
        content = token.content.replace(colon, ":")
        if token.type != "inline" or any(x.first < n <= x.last for x in kept) or not has_letters([Part(content)]):
            continue
        lines = _lines(text, content, starts[token.map[0]] if token.map else 0, cell_at)
        for group in [lines] if cell_at is not None else _groups(text, lines):
            found += _places(text, group, set(environment.get("references", {})), cell_at is not None)
        cell_at = cell_at if cell_at is None else lines[-1].end
    for reference in environment.get("references", {}).values():
        first, last = (min(line, len(starts) - 1) for line in reference["map"])
        found += _title(text, starts[first], starts[first] + len(text[starts[first] : starts[last]].rstrip()))
    return found


def _absent(text: str) -> str:
    """A sign that the text lacks: the colon of a footnote to the reader, which would else read a link's definition."""
    return next(sign for sign in map(chr, range(0xE000, 0xF900)) if sign not in text)


class _Kept(NamedTuple):
    """An element that stays as it is: numbers of the blocks of its tags, and where it begins and ends in the text."""

    first: int
    start: int
    last: int
    end: int


def _kept(text: str, tokens: Sequence[Token], starts: Sequence[int]) -> list[_Kept]:
    """Elements with `translate="no"` and the like around whole blocks. Without an end tag an element holds nothing."""
    every = [(n, tag) for n, token in enumerate(tokens) for tag in _tags(text, token, starts) if tag.name]
    found: list[_Kept] = []
    at = 0
    while at < len(every):
        first, opener = every[at]
        name, at = opener.name.lower(), at + 1
        if tokens[first].type != "html_block" or opener.closes or opener.empty or not stays(opener) or name in ENDED_BY:
            continue
        depth = 1
        for n, (last, tag) in enumerate(every[at:], at):
            if tag.name.lower() == name and not tag.empty:
                depth += -1 if tag.closes else 1
            if not depth:
                if last > first:
                    found.append(_Kept(first, opener.start, last, tag.end))
                    at = n + 1
                break
    return found


def _tags(text: str, token: Token, starts: Sequence[int]) -> list[Tag]:
    """Tags of a block of HTML, at their places, or those within a block of text, which have none."""
    if token.type == "html_block":
        return tags(text, *_stretch(token, starts))
    return [tag for child in token.children or () if child.type == "html_inline" for tag in tags(child.content)]


def _stretch(token: Token, starts: Sequence[int]) -> tuple[int, int]:
    first, last = token.map or (0, 0)
    return starts[first], starts[min(last, len(starts) - 1)]


def _outside(kept: Sequence[_Kept], n: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of block n, `text[start:end]`, is in no element that stays."""
    for element in kept:
        if element.first < n < element.last:
            return
        if element.last == n:
            start = element.end
        if element.first == n:
            yield start, element.start
            return
    yield start, end


def skeleton(text: str) -> list[tuple]:
    """What markdown-it makes of a document apart from its words: blocks in order, code, the markup in each block."""
    colon = _absent(text)
    return [
        (token.type, token.tag, token.level, token.info, token.content if token.type in ("fence", "code_block") else "")
        if token.type != "inline"
        else ("inline", *sorted(child.type for child in token.children or () if child.type not in WORDS))
        for token in _reader().parse(NOTE.sub(rf"\1{colon}", text))
    ]


def _lines(text: str, content: str, start: int, cell_at: int | None) -> list[_Line]:
    """Where the lines of a block's content stand; containers' marks and indents are between them."""
    at = start if cell_at is None else max(start, cell_at)
    lines: list[_Line] = []
    for line in content.split("\n"):
        wanted = re.escape(line.strip())
        if cell_at is not None:
            wanted = wanted.replace(r"\|", r"\\?\|")
        match = re.compile(wanted).search(text, at)
        assert match, f"Markdown content {line!r} is not in its file"
        lines.append(_Line(match.start(), match.end()))
        at = match.end()
    return lines


def _groups(text: str, lines: list[_Line]) -> Iterator[list[_Line]]:
    """Lines of a block that are one text: those of other dialects' markup part it."""
    group: list[_Line] = []
    for line in lines:
        raw = text[line.start : line.end]
        fence, label = FENCE.fullmatch(raw), LABEL.match(raw)
        if (fence or label) and group:
            yield group
            group = []
        if fence:
            title = next((name for name in ("quoted", "boxed", "title") if fence[name]), None)
            if title:
                yield [_Line(line.start + fence.start(title), line.start + fence.end(title))]
        else:
            group.append(_Line(line.start + (label.end() if label else 0), line.end))
    if group:
        tail = ATTRIBUTES.search(text, group[-1].start, group[-1].end)
        yield [*group[:-1], _Line(group[-1].start, tail.start() if tail else group[-1].end)]


def _places(text: str, lines: list[_Line], references: set[str], in_table: bool) -> Iterator[Place]:
    """The place of some lines, and those of titles and attributes in its markup."""
    pieces: list[Part] = []
    end = lines[0].start
    for line in lines:
        if gap := text[end : line.start]:
            pieces.append(Part(gap, "alone") if gap.startswith(("  ", "\\")) else Part(" "))
        end = line.end - (line != lines[-1] and text[line.end - 1] == "\\")
        pieces.append(Part(text[line.start : end], at=line.start))
    as_read = _inline(pieces, references)  # what spans lines, or gets a name written out, stands nowhere
    source = tuple(p if p.at is None or text.startswith(p.text, p.at) else replace(p, at=None) for p in as_read)
    write = partial(_write, lines[0].start, lines[-1].end, source, references, in_table)
    if has_letters(source):
        yield Place(lines[0].start, source, write)
    for part in source:
        if part.at is not None:
            yield from _inner(text, part.at, part.at + len(part.text))


def _inner(text: str, start: int, end: int) -> Iterator[Place]:
    """What readers see of a piece of markup: the title of a link, attributes of a tag."""
    if text[start] == "<":
        yield from found_in(text, start, end)
    else:
        yield from _title(text, start, end)


def _title(text: str, start: int, end: int) -> Iterator[Place]:
    match = TITLE.search(text, start, end)
    if match and has_letters([Part(match["title"])]):
        escaped = partial(re.sub, rf"(?<!\\){match['quote']}", rf"\\{match['quote']}")
        yield in_place(*match.span("title"), [Part(match["title"])], escaped)


def _inline(pieces: Sequence[Part], references: set[str]) -> tuple[Part, ...]:
    """Markup inside of a block as pieces; joined over line ends first, so that code and links may span them."""
    holes = [part for part in pieces if part.kind != "text"]
    joined = "".join(part.text if part.kind == "text" else "\0" for part in pieces)
    stands = [start + n if start is not None else None for start, size in map(_origin, pieces) for n in range(size)]
    found: list[Part] = []
    at = 0
    for match in INLINE.finditer(joined):
        if match["run"] and not _delimits(joined, match):
            continue
        shown = match["close"] or match[0].startswith("<")
        found.append(Part(joined[at : match.start()]))
        found.append(Part(match[0], "alone", stands[match.start()] if shown else None))
        at = match.end()
    paired = _paired([*found, Part(joined[at:])], references)
    return merged(_filled(_closed_off(paired), iter(holes)))


def _closed_off(parts: Sequence[Part]) -> Iterator[Part]:
    """Elements that are copied whole, as `<code>`, are one piece each."""
    at = 0
    while at < len(parts):
        end = at + 1
        tag = next_tag(parts[at].text, 0, len(parts[at].text)) if parts[at].kind == "open" else None
        if tag and (tag.name.lower() in OPAQUE or stays(tag)):
            depth = 1
            while depth:
                depth += {"open": 1, "close": -1}.get(parts[end].kind, 0)
                end += 1
        whole = "".join(part.text for part in parts[at:end])
        yield parts[at] if end == at + 1 else Part(whole, "alone", parts[at].at)
        at = end


def _origin(piece: Part) -> tuple[int | None, int]:
    """Where a piece stands in the document, if that is known, and its length among the others."""
    return piece.at, len(piece.text) if piece.kind == "text" else 1


def _filled(parts: Iterable[Part], holes: Iterator[Part]) -> Iterator[Part]:
    for part in parts:
        first, *rest = part.text.split("\0")
        if part.kind != "text":
            yield replace(part, text="".join([first, *(next(holes).text + r for r in rest)]))
            continue
        yield Part(first)
        for text in rest:
            yield from (next(holes), Part(text))


def _delimits(text: str, match: re.Match[str]) -> bool:
    """Whether a run of * or _ can open or close emphasis, by CommonMark's rule of flanking."""
    before, after = text[match.start() - 1 : match.start()] or " ", text[match.end() : match.end() + 1] or " "
    left = not after.isspace() and (after.isalnum() or before.isspace() or not before.isalnum())
    right = not before.isspace() and (before.isalnum() or after.isspace() or not after.isalnum())
    if match[0][0] == "_" and left and right:
        return not (before.isalnum() and after.isalnum())
    return left or right


def _paired(parts: list[Part], references: set[str]) -> list[Part]:
    """Brackets of links and images, emphasis and tags that belong together; brackets that are none become text."""
    found = list(parts)
    waiting: list[tuple[str, int]] = []
    for n, part in enumerate(parts):
        if part.kind != "alone":
            continue
        sign, kind = _sign(part.text)
        opener = next((i for i in reversed(range(len(waiting))) if waiting[i][0] == sign), None)
        if kind == "open" or (kind == "both" and opener is None):
            waiting.append((sign, n))
        elif kind != "" and opener is not None:
            start = waiting[opener][1]
            closing = _closing(part.text, found[start + 1 : n], references)
            if closing:
                found[start], found[n] = replace(found[start], kind="open"), replace(part, text=closing, kind="close")
            else:
                found[start], found[n] = Part(found[start].text), Part(part.text)
            del waiting[opener:]
    return [Part(p.text) if p.kind == "alone" and p.text in ("[", "![", "]") else p for p in found]


def _sign(text: str) -> tuple[str, str]:
    """What a piece pairs with, and whether it opens, closes, or does either."""
    if text in ("[", "!["):
        return "[", "open"
    if text[0] == "]":
        return "[", "close"
    if text[0] in "*_~":
        return text, "both"
    tag = re.fullmatch(r"<(/?)([A-Za-z][\w-]*)(?=[\s/>])[^>]*?(/?)>", text)
    if tag and not tag[3]:
        return f"<{tag[2]}", "close" if tag[1] else "open"
    return "", ""


def _closing(text: str, inner: Sequence[Part], references: set[str]) -> str:
    """The end of a link; one that is named by its own text gets that name written out. Empty where it is no link."""
    if text not in ("]", "][]"):
        return text
    label = "".join(part.text for part in inner)
    return f"][{label}]" if normalizeReference(label) in references else ""


def _write(
    start: int, end: int, source: tuple[Part, ...], references: set[str], in_table: bool,
    translated: Sequence[Part], doubtful: bool,
) -> list[Edit]:  # fmt: skip
    if merged(translated) == source:
        return []
    edit = replacement(start, end, translated, lambda t: re.sub(r"(?<!\\)\|", r"\|", t) if in_table else t)
    new = edit.text
    if BLOCK.match(new) and not BLOCK.match(encoded(source, str)):
        raise Broken(f"it would begin a block of markup: {new[:20]!r}")
    before, after = _markup(source), _markup(_inline([Part(new)], references))
    if before != after:
        odd = [*((before - after) | (after - before))]
        raise Broken(f"other markup than the source's: {' '.join(map(repr, odd))}")
    return [edit]


def _markup(parts: Sequence[Part]) -> Counter[str]:
    """Pieces and how often they come; hard line ends are no markup within a line."""
    return Counter(part.text for part in parts if part.kind in MARKUP and "\n" not in part.text)
