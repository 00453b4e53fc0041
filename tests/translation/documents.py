"""Hand-marked documents: what stands in « » is translatable, everything else is not. And a way to translate them.

`↵` is a line end that is a space to the engine (with the mark of a quotation behind it).
"""

import re
from pathlib import Path

from dragoman.translation.formats import FORMATS, Options, apply
from dragoman.translation.protection import mask, unmask

MARKED = sorted((Path(__file__).parent / "marked").iterdir())
OPTIONS = Options("en", "ca")
CELLS = Options("en", "ca", keys=("text*",))


def options_of(suffix):
    return CELLS if suffix in (".csv", ".tsv") else OPTIONS


def source_of(marked):
    return re.sub("[«»]", "", marked.replace("↵", "\n")).replace("[charts][charts]", "[charts]")


def expected_of(marked):
    return re.sub("↵(?:> | +)?", " ", marked)


def bracket(text):
    return f"«{text}»"


def translated(text, suffix, engine, options=None, doubtful=False):
    """The text with every place that has no translation yet through an engine, without a job."""
    edits = []
    for place in FORMATS[suffix].places(text, options or options_of(suffix)):
        if not place.done:
            masked = mask(place.parts)
            parts, faults = unmask(masked, engine(masked.text))
            assert not faults, (masked, faults)
            edits += place.write(parts, doubtful)
    return apply(text, edits)
