"""JSON: values that are strings, all or those whose key fits a pattern.

    {"menu": {"open": "Open {name}", "items": ["Cut", "Copy"]}}

has menu.open, menu.items.0 and menu.items.1; `--keys menu.items.*` takes the last two. Keys are never translated.
"""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from functools import partial

from dragoman.translation.formats.base import Options, Part, Place, has_letters, in_place, unreadable

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]')


def places(text: str, options: Options) -> list[Place]:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as e:
        raise unreadable("JSON", e) from None
    found = []
    for path, start, end in _strings(text):
        raw = text[start:end]
        parts = [Part(json.loads(raw))]
        if chosen(path, options.keys) and has_letters(parts):
            ascii_only = raw.isascii() and "\\u" in raw
            found.append(in_place(start, end, parts, partial(json.dumps, ensure_ascii=ascii_only), path))
    return found


def chosen(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path of keys fits: `title`, `menu.*`, `*.label`, or one with brackets as it stands."""
    return not patterns or any(path == p or fnmatchcase(path, p) for p in patterns)


def _strings(text: str) -> list[tuple[str, int, int]]:
    """Path, start and end of every string that is a value; the text is known to be JSON."""
    found: list[tuple[str, int, int]] = []
    path: list[str | int] = []
    key = False
    for token in TOKEN.finditer(text):
        sign = token[0]
        if sign in "{[":
            path.append("" if sign == "{" else 0)
            key = sign == "{"
        elif sign in "}]":
            path.pop()
            key = False
        elif sign == "," and isinstance(path[-1], int):
            path[-1] += 1
        elif sign in ",:":
            key = sign == ","
        elif key:
            path[-1] = json.loads(sign)
        else:
            found.append((".".join(map(str, path)), token.start(), token.end()))
    return found
