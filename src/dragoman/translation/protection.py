"""Protection: pieces become marks `{1}` `{2}` before an engine sees a text, and are proved to be there afterwards.

    Save **all** to {path}   ->   "Save {1}all{2} to {3}"   ->   "Desa-ho {1}tot{2} a {3}"  ->  Desa-ho **tot** a {path}

A translation passes where each mark comes exactly once, what opens and closes is nested as before, fixed pieces are in
order, and no placeholder or brace appears that the source lacks. Marks at both ends that belong together, and white
space there, are kept from the engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dragoman.corpora.placeholders import PLACEHOLDER
from dragoman.translation.formats.base import Kind, Part, has_letters, merged

SIGN = r"[^\s<>\"'()\[\]{}]"
REST = rf"(?:{SIGN}|\({SIGN}*\))*(?:[^\s<>\"'()\[\]{{}}.,;:!?]|\({SIGN}*\))"
"""Of an address: brackets within it come in pairs, and no punctuation is its end."""
VALUE = re.compile(
    rf"\b(?:https?|ftp|file|mailto):(?://)?{REST}|\bwww\.{REST}"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"
    r"|\$\d+|\$[A-Z_][A-Z0-9_]+\b|\{\s*\d+\s*\}|[%#]\{\w[\w.]*\}|\$t\([^()]*\)|\{%.*?%\}"
    r"|\{\s*\w+\s*,\s*(?:number|date|time|spellout|ordinal|duration)\b[^{}]*\}"  # ICU, without text inside
    rf"|{PLACEHOLDER.pattern}"
)
ICU = re.compile(r"\{\s*\w+\s*,\s*(?:plural|selectordinal|select)\s*,")
MARK = re.compile(r"\{\s*(\d+)\s*\}")
ORDERED = re.compile(r"(?<![\d%])%L?([1-9]\d?)(?![\d%$])")
"""%1 of Qt and KDE; in some languages a per cent sign stands before its number, so they count where they begin at 1."""
ODD = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd-\uffff]")
"""Signs that no text has and some formats cannot hold."""
TAG = re.compile(r"<(/?)([A-Za-z][\w:.-]*)[^<>]*?(/?)>")
CODE = re.compile(r"<(?:\w+:)?(?P<kind>bpt|ept|bx|ex|sc|ec)\b(?P<rest>[^<>]*)")
CODES = {"bpt": ("i", "rid", "id"), "bx": ("rid", "id"), "sc": ("id",), "ec": ("startRef",)}
CODES |= {"ept": CODES["bpt"], "ex": CODES["bx"]}
"""Codes of XLIFF and TMX that open (the first of each pair) and close, and the attribute that says which belong
together."""


@dataclass(frozen=True)
class Masked:
    """A place as an engine sees it."""

    text: str
    """The source with marks."""
    pieces: tuple[Part, ...]
    """What the marks stand for; `{1}` is the first."""
    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    """What is kept from the engine at both ends."""


def mask(parts: Sequence[Part]) -> Masked:
    """The text for an engine."""
    before, inner, after = _peeled(list(_split(parts)))
    pieces = tuple(part for part in inner if part.kind != "text")
    numbers = iter(range(1, len(pieces) + 1))
    text = "".join(part.text if part.kind == "text" else f"{{{next(numbers)}}}" for part in inner)
    return Masked(text, pieces, tuple(before), tuple(after))


def unmask(masked: Masked, answer: str) -> tuple[tuple[Part, ...], list[str]]:
    """The parts of a translation, and what is wrong with it in words; without faults every piece is there once."""
    words = MARK.split(answer.strip())
    order = [int(n) - 1 for n in words[1::2]]
    texts = [Part(text) for text in words[::2]]
    faults = [*_counted(masked, order), *_invented(masked, texts)]
    if odd := {*ODD.findall(answer)} - {*ODD.findall(masked.text)}:
        faults.append(f"signs that are no text: {' '.join(map(ascii, sorted(odd)))}")
    if not has_letters(texts):
        faults.append("no text")
    if faults:
        return (), faults
    inner = [part for pair in zip(texts, [*(masked.pieces[i] for i in order), Part("")], strict=True) for part in pair]
    return merged([*masked.before, *inner, *masked.after]), _disordered(masked.pieces, order)


def unmarked(masked: Masked, text: str) -> str:
    """The text, or a translation that has passed, as it stands: for what knows no marks."""
    return MARK.sub(lambda mark: masked.pieces[int(mark[1]) - 1].text, text)


def marked(masked: Masked, translation: str) -> str | None:
    """A translation in which the pieces stand as they are, with marks; None where one is not there exactly once."""
    numbers = {piece.text: n for n, piece in enumerate(masked.pieces, 1)}
    pattern = "|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
    found = re.findall(pattern, translation) if numbers else []
    if sorted(found) != sorted(numbers) or len(numbers) < len(masked.pieces):
        return None
    return re.sub(pattern, lambda piece: f"{{{numbers[piece[0]]}}}", translation) if numbers else translation


def bare(text: str) -> str:
    """A masked text without its marks, for checks of the language and the like."""
    return " ".join(MARK.sub(" ", text).split())


def stretches(text: str) -> list[str]:
    """The text before, between and behind the marks, and the marks: every second one is a mark."""
    return re.split(r"(\{\s*\d+\s*\})", text)


def _split(parts: Sequence[Part]) -> Iterator[Part]:
    """Placeholders, frames of ICU messages and line ends inside of text become pieces."""
    for part in parts:
        yield from _icu(part.text) if part.kind == "text" else [part]


def _icu(text: str) -> Iterator[Part]:
    at = 0
    while found := ICU.search(text, at):
        end = _closing(text, found.start())
        if end is None:
            break
        yield from _values(text[at : found.start()])
        yield from _messages(text[found.start() : end])
        at = end
    yield from _values(text[at:])


def _closing(text: str, start: int) -> int | None:
    """Where the brace that opens at `start` is closed; None where it is not."""
    depth = 0
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.end()
    return None


def _messages(message: str) -> Iterator[Part]:
    """`{n, plural, one {# file} other {# files}}`: the frame is fixed, `#` a value, the rest text (or ICU again)."""
    opened = ICU.match(message)
    assert opened
    at, frame = opened.end(), 0
    while (start := message.find("{", at)) >= 0:
        end = _closing(message, start)
        assert end is not None
        yield Part(message[frame : start + 1], "fixed")
        for part in _icu(message[start + 1 : end - 1]):
            yield from _numbered(part) if part.kind == "text" else [part]
        at = frame = end - 1
        at = end
    yield Part(message[frame:], "fixed")


def _numbered(part: Part) -> Iterator[Part]:
    for text in re.split("(#)", part.text):
        yield Part(text, "value" if text == "#" else "text")


def _values(text: str) -> Iterator[Part]:
    at, numbers = 0, {int(number) for number in ORDERED.findall(text)}
    ordered = rf"|{ORDERED.pattern}" if numbers == {*range(1, len(numbers) + 1)} else ""
    for match in re.finditer(rf"\s*\n\s*|{VALUE.pattern}{ordered}", text):
        kind: Kind = "fixed" if "\n" in match[0] else "value"
        yield from (Part(text[at : match.start()]), Part(match[0], kind))
        at = match.end()
    yield Part(text[at:])


def _peeled(parts: list[Part]) -> tuple[list[Part], list[Part], list[Part]]:
    """White space, line ends and pairs around everything go to both sides."""
    before: list[Part] = []
    after: list[Part] = []
    parts = [part for part in parts if part.text]
    while parts:
        first, last = parts[0], parts[-1]
        if first.kind == "text" and first.text != first.text.lstrip():
            cut = len(first.text) - len(first.text.lstrip())
            before.append(Part(first.text[:cut]))
            parts[:1] = [Part(first.text[cut:])] if first.text[cut:] else []
        elif last.kind == "text" and last.text != last.text.rstrip():
            cut = len(last.text.rstrip())
            after.insert(0, Part(last.text[cut:]))
            parts[-1:] = [Part(last.text[:cut])]
        elif first.kind == "fixed" and not first.text.strip():
            before.append(parts.pop(0))
        elif last.kind == "fixed" and not last.text.strip():
            after.insert(0, parts.pop())
        elif first.kind == "open" and _partner(parts, 0) == len(parts) - 1:
            before.append(parts.pop(0))
            after.insert(0, parts.pop())
        else:
            break
    return before, parts, after


def _partner(pieces: Sequence[Part], opener: int) -> int:
    depth = 0
    for i in range(opener, len(pieces)):
        depth += {"open": 1, "close": -1}.get(pieces[i].kind, 0)
        if depth == 0:
            return i
    raise AssertionError("formats give pairs")


def _counted(masked: Masked, order: Sequence[int]) -> list[str]:
    found = Counter(order)
    wanted = range(len(masked.pieces))
    lost = [masked.pieces[i].text for i in wanted if not found[i]]
    twice = [masked.pieces[i].text for i in wanted if found[i] > 1]
    unknown = [f"{{{i + 1}}}" for i in found if i not in wanted]
    named = (("lost", lost), ("more than once", twice), ("invented", unknown))
    return [f"{what}: {' '.join(map(repr, pieces))}" for what, pieces in named if pieces]


def _invented(masked: Masked, texts: Sequence[Part]) -> list[str]:
    new = [match[0] for part in texts for match in VALUE.finditer(part.text)]
    if any("{" in part.text or "}" in part.text for part in texts):
        given, found = MARK.sub("", masked.text), "".join(VALUE.sub("", part.text) for part in texts)
        new += [brace for brace in "{}" if found.count(brace) > given.count(brace)]
    lines = any("\n" in part.text for part in texts)
    faults = [f"invented: {' '.join(map(repr, new))}"] if new else []
    return faults + (["more than one line"] if lines else [])


def _disordered(pieces: Sequence[Part], order: Sequence[int]) -> list[str]:
    """Whether pairs cross or close before they open, or fixed pieces changed places."""
    markup = {i: _partner(pieces, i) for i, piece in enumerate(pieces) if piece.kind == "open"}
    alike = {i: pieces[i].text for i in range(len(pieces))}  # tags with one text are one as good as the other
    kinds = [(markup, {i: str(i) for i in alike}), (_pairs(pieces, _tag), alike), (_pairs(pieces, _code), alike)]
    for partners, names in kinds:
        waiting: list[str] = []
        for i in order:
            if i in partners:
                waiting.append(names[partners[i]])
            elif i in partners.values() and (not waiting or waiting.pop() != names[i]):
                return [f"out of place: {pieces[i].text!r}"]
    fixed = [i for i in order if pieces[i].kind == "fixed"]
    return [] if fixed == sorted(fixed) else ["line ends or parts of a message changed places"]


def _pairs(pieces: Sequence[Part], sign: Callable[[Part], tuple[str, bool] | None]) -> dict[int, int]:
    """Opener -> closer among pieces of one kind, nested as in the source. sign: what pairs, and whether it closes."""
    found: dict[int, int] = {}
    waiting: list[tuple[str, int]] = []
    for i, piece in enumerate(pieces):
        if (said := sign(piece)) is None:
            continue
        name, closes = said
        if not closes:
            waiting.append((name, i))
        elif (n := next((n for n in reversed(range(len(waiting))) if waiting[n][0] == name), None)) is not None:
            found[waiting[n][1]] = i
            del waiting[n:]
    return found


def _tag(piece: Part) -> tuple[str, bool] | None:
    """A tag that is a value: text of a PO or JSON file."""
    tag = TAG.fullmatch(piece.text) if piece.kind == "value" else None
    return None if tag is None or tag[3] else (tag[2].lower(), tag[1] == "/")


def _code(piece: Part) -> tuple[str, bool] | None:
    """A code of XLIFF or TMX that begins or ends a stretch."""
    code = CODE.match(piece.text) if piece.kind == "alone" else None
    if code is None:
        return None
    said = dict(re.findall(r"([\w:]+)\s*=\s*[\"']([^\"']*)[\"']", code["rest"]))
    name = next((said[key] for key in CODES[code["kind"]] if key in said), None)
    return None if name is None else (name, code["kind"].startswith("e"))
