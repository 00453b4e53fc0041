"""Gettext PO: messages without a translation, and fuzzy ones, which their programs do not show either.

    #. Button that starts the game      -> a note for the translator, as are comments of other translators
    msgctxt "menu"                      -> its context; texts with another one are translated apart
    msgid "Sail to %s"
    msgstr ""                           -> filled

Plurals: form 0 gets the translation of msgid (of msgid_plural where there is no other form), the others that of
msgid_plural; no rule of a language is known here, so a plural's forms are always marked fuzzy. So is a doubtful
translation; a fuzzy message that gets a good one loses the mark. Header and obsolete messages stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters, line_of

KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr)(?:\[(\d+)\])?[ \t]*(?=")')
STRING = re.compile(r'"((?:[^"\\\r\n]|\\[^\r\n])*)"[ \t]*$')
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "\\": "\\", '"': '"'}
UNESCAPES = {value: f"\\{sign}" for sign, value in ESCAPES.items()}


@dataclass
class _Entry:
    keyword_at: int | None = None
    """Where its first keyword stands."""
    comments: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """By keyword, `msgstr` and `msgstr[1]` included."""
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """From the first quotation mark to the last."""
    flags: list[tuple[int, int, str]] = field(default_factory=list)
    """Place and words of the lines `#, ...`."""

    @property
    def fuzzy(self) -> bool:
        return any("fuzzy" in _words(line) for _, _, line in self.flags)


def places(text: str, options: Options) -> list[Place]:
    found: list[Place] = []
    line_end = "\r\n" if "\r\n" in text else "\n"
    for entry in _entries(text):
        if "msgid" not in entry.texts or not entry.texts["msgid"]:
            continue
        forms = [name for name in entry.texts if name.startswith("msgstr")]
        plural = "msgid_plural" in entry.texts
        for n, form in enumerate(forms):
            source = entry.texts["msgid_plural" if plural and (n or len(forms) == 1) else "msgid"]
            if not has_letters([Part(source)]):
                continue
            write = partial(_write, line_end, entry, form, plural)
            done = bool(entry.texts[form]) and not entry.fuzzy
            sense, notes = entry.texts.get("msgctxt", ""), tuple(filter(None, entry.comments))
            found.append(Place(entry.spans[form][0], (Part(source),), write, sense, notes, sense, done))
    return found


def _entries(text: str) -> list[_Entry]:
    """Raises DataError that names all lines that are not of a PO file."""
    entries, wrong = [_Entry()], []
    last, at = "", 0
    for raw in re.split(r"(?<=\n)|(?<=\r)(?!\n)", text):
        line = raw.rstrip("\r\n")
        body = line.strip()
        keyword = KEYWORD.match(body)
        starts = body.startswith("#") or (keyword is not None and keyword[1] in ("msgctxt", "msgid"))
        if starts and any(name.startswith("msgstr") for name in entries[-1].texts):
            entries.append(_Entry())
            last = ""
        if body.startswith("#"):
            _comment(entries[-1], body, at + line.index("#"))
        elif keyword or (body.startswith('"') and last):
            last = _name(keyword) if keyword else last
            quoted = STRING.match(body, keyword.end() if keyword else 0)
            if quoted is None:
                wrong.append(line_of(text, at))
            else:
                offset = at + line.index(body)
                if entries[-1].keyword_at is None:
                    entries[-1].keyword_at = offset
                _add(entries[-1], last, quoted, offset)
        elif body:
            wrong.append(line_of(text, at))
        at += len(raw)
    if wrong:
        raise DataError(f"not a PO file at lines {', '.join(map(str, wrong[:8]))}: no keyword, string or comment")
    return entries


def _name(keyword: re.Match[str]) -> str:
    return keyword[1] if keyword[2] is None else f"{keyword[1]}[{keyword[2]}]"


def _comment(entry: _Entry, body: str, at: int) -> None:
    if body.startswith("#,"):
        entry.flags.append((at, at + len(body), body))
    elif body.startswith(("#.", "# ")):
        entry.comments.append(body[2:].strip())


def _add(entry: _Entry, name: str, quoted: re.Match[str], offset: int) -> None:
    start, end = offset + quoted.start(), offset + quoted.end(1) + 1
    entry.texts[name] = entry.texts.get(name, "") + unescaped(quoted[1])
    entry.spans[name] = (entry.spans.get(name, (start, end))[0], end)


def unescaped(text: str) -> str:
    """What a string of a PO file stands for; an unknown escape is itself."""

    def one(match: re.Match[str]) -> str:
        octal, hexadecimal, sign = match.groups()
        if sign:
            return ESCAPES.get(sign, match[0])
        return chr(int(octal, 8) if octal else int(hexadecimal, 16))

    return re.sub(r"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{2})|(.))", one, text)


def quoted(text: str, line_end: str) -> str:
    """A string of a PO file; with line ends inside, one string a line below an empty one, as gettext writes it."""
    lines = [re.sub(r'[\\"\x00-\x1f\x7f]', _escape, line) for line in re.split(r"(?<=\n)(?=.)", text)]
    return f'"{lines[0]}"' if len(lines) == 1 else line_end.join(f'"{line}"' for line in ["", *lines])


def _escape(match: re.Match[str]) -> str:
    return UNESCAPES.get(match[0]) or f"\\{ord(match[0]):03o}"


def _write(line_end: str, entry: _Entry, form: str, plural: bool, parts: Sequence[Part], doubtful: bool) -> list[Edit]:
    start, end = entry.spans[form]
    return [Edit(start, end, quoted(encoded(parts, str), line_end)), *_flags(entry, doubtful or plural, line_end)]


def _flags(entry: _Entry, fuzzy: bool, line_end: str) -> list[Edit]:
    if fuzzy == entry.fuzzy:
        return []
    if fuzzy and not entry.flags:
        assert entry.keyword_at is not None
        return [Edit(entry.keyword_at, entry.keyword_at, f"#, fuzzy{line_end}")]
    if fuzzy:
        start, end, line = entry.flags[0]
        return [Edit(start, end, "#, " + ", ".join(["fuzzy", *_words(line)]))]
    marked = [(start, end, _words(line)) for start, end, line in entry.flags if "fuzzy" in _words(line)]
    kept = [(start, end, ", ".join(word for word in words if word != "fuzzy")) for start, end, words in marked]
    return [Edit(start, end, f"#, {words}" if words else "#") for start, end, words in kept]


def _words(line: str) -> list[str]:
    return [word.strip() for word in line.removeprefix("#,").split(",") if word.strip()]
