"""SubRip and WebVTT: a cue is a segment, in as many lines as before; a line of dialogue (`- Yes.`) is one of its own.

    12
    00:00:07,000 --> 00:00:09,500
    <i>We sail
    at dawn.</i>           -> "We sail at dawn.", in italics

Numbers, times, settings, and VTT's NOTE, STYLE and REGION blocks stay.
"""

from __future__ import annotations

import re
from functools import partial

from dragoman.errors import DataError
from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters, merged
from dragoman.translation.formats.tags import paired

TIMES = re.compile(r"^[ \t]*(?:\d+:)?\d+:\d+[.,]\d+[ \t]*-->[^\r\n]*(?:\r\n|\r|\n|$)", re.MULTILINE)
CUE_END = re.compile(r"(?:\r\n|\r(?!\n)|\n)[ \t]*(?=\r\n|\r|\n)|\s*\Z")
NUMBER = re.compile(r"(?:\A|(?<=[\r\n]))[ \t]*\d*[ \t]*(?:\r\n|\r|\n)?\s*\Z")
"""Of the next cue."""
LINE_END = re.compile(r"\r\n|\r|\n")
CODE = re.compile(r"</?[^<>\r\n]*>|\{\\[^{}]*\}")
"""Tags, and the overrides such as {\\an8} that players know from another format."""
SPEECH = re.compile(r"\s*[-–—]\s*(?=\S)")


def places(text: str, options: Options) -> list[Place]:
    """Raises DataError where no line has times."""
    cues = list(TIMES.finditer(text))
    if not cues and text.strip():
        raise DataError("no line such as 00:00:07,000 --> 00:00:09,500: these are no subtitles; mend the file")
    found = []
    for n, cue in enumerate(cues, 1):
        following = cues[n].start() if n < len(cues) else len(text)
        for start, end in _paragraphs(text, cue, following):
            for a, b in _stretches(text, start, end):
                place = _place(text, a, b, f"cue {n}")
                found += [place] if has_letters(place.parts) else []
    return found


def _paragraphs(text: str, cue: re.Match[str], following: int) -> list[tuple[int, int]]:
    """A cue's text; an empty line ends it in VTT, while SubRip has files with such lines in the midst of a cue."""
    at = cue.end() - 1 if cue[0].endswith(("\r", "\n")) else cue.end()
    if following < len(text):
        following = cue.end() + len(NUMBER.sub("", text[cue.end() : following]))
    found = []
    while at < following:
        end = CUE_END.search(text, at)
        assert end
        found.append((max(at, cue.end()), max(min(end.start(), following), cue.end())))
        at = max(end.end(), at + 1)
    return found[:1] if text.startswith("WEBVTT") else found


def _stretches(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """The cue's text, or each line of a dialogue."""
    lines = [m.span() for m in re.finditer(r"[^\r\n]+", text[start:end])]
    spans = [(start + a, start + b) for a, b in lines]
    speech = [SPEECH.match(text, a, b) for a, b in spans]
    if len(spans) > 1 and all(speech):
        return [(m.end(), b) for m, (_, b) in zip(speech, spans, strict=True) if m]
    return [(spans[0][0], spans[-1][1])] if spans else []


def _place(text: str, start: int, end: int, context: str) -> Place:
    raw = text[start:end]
    breaks = LINE_END.findall(raw)
    parts: list[Part] = []
    at = 0
    for code in CODE.finditer(raw):
        parts += [Part(_joined(raw[at : code.start()])), Part(code[0], "alone")]
        at = code.end()
    source = merged(paired([*parts, Part(_joined(raw[at:]))]))
    return Place(start, source, partial(_write, start, end, breaks, source), context)


def _joined(text: str) -> str:
    return re.sub(r"[ \t]*(?:\r\n|\r|\n)[ \t]*", " ", text)


def _write(start: int, end: int, breaks: list[str], source: tuple[Part, ...], translated, doubtful) -> list[Edit]:
    if merged(translated) == source:
        return []
    return [Edit(start, end, _rebroken(encoded(translated, _one_line), breaks))]


def _one_line(text: str) -> str:
    """An arrow or an empty line within a cue would end it."""
    return " ".join(text.split(" ")).replace("-->", "→")


def _rebroken(text: str, breaks: list[str]) -> str:
    """The text with as many line ends, each at the space nearest to an even share; fewer where spaces are lacking."""
    spaces = [m.start() for m in re.finditer(r"(?<=\S) (?=\S)(?![^<]*>)", text)]
    chosen: list[tuple[int, str]] = []
    for n, mark in enumerate(breaks, 1):
        free = [s for s in spaces if not chosen or s > chosen[-1][0]]
        if free:
            chosen.append((min(free, key=lambda s: abs(s - n * len(text) / (len(breaks) + 1))), mark))
    for at, mark in reversed(chosen):
        text = text[:at] + mark + text[at + 1 :]
    return text
