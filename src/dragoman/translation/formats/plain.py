"""Plain text: a line is a segment, or (`wrapped`) a paragraph, whose line ends are then spaces.

    Sail north.            -> "Sail north."
      Then wait.           -> "Then wait.", its indent stays
"""

from __future__ import annotations

import re

from dragoman.translation.formats.base import Options, Part, Place, has_letters, in_place

LINE = re.compile(r"[^\s][^\r\n]*")
PARAGRAPH = re.compile(r"[^\s][^\r\n]*(?:(?:\r\n|\r|\n)[ \t]*[^\s][^\r\n]*)*")


def places(text: str, options: Options) -> list[Place]:
    found = []
    for match in (PARAGRAPH if options.wrapped else LINE).finditer(text):
        body = match[0].rstrip()
        parts = [Part(re.sub(r"[ \t]*(?:\r\n|\r|\n)[ \t]*", " ", body))]
        if has_letters(parts):
            found.append(in_place(match.start(), match.start() + len(body), parts))
    return found
