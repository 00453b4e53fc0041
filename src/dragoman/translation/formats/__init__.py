"""Formats of documents by the end of their file's name; one module each, all with the same function `places`."""

from dragoman.translation.formats import (
    csv_cells,
    html,
    json_values,
    markdown,
    plain,
    po,
    subtitles,
    tmx,
    xliff,
    yaml_values,
)
from dragoman.translation.formats.base import Broken, Edit, Format, Options, Part, Place, apply, line_of, lines_of

FORMATS: dict[str, Format] = {
    ".txt": plain,
    ".md": markdown,
    ".markdown": markdown,
    ".po": po,
    ".pot": po,
    ".xlf": xliff,
    ".xliff": xliff,
    ".tmx": tmx,
    ".srt": subtitles,
    ".vtt": subtitles,
    ".json": json_values,
    ".yaml": yaml_values,
    ".yml": yaml_values,
    ".csv": csv_cells,
    ".tsv": csv_cells,
    ".html": html,
    ".htm": html,
}

SKELETONS = {".md": markdown.skeleton, ".markdown": markdown.skeleton}
"""What must be the same of a document and its translation, for formats whose text can be markup by accident."""

__all__ = [
    "FORMATS",
    "SKELETONS",
    "Broken",
    "Edit",
    "Format",
    "Options",
    "Part",
    "Place",
    "apply",
    "line_of",
    "lines_of",
]
