"""Formats of documents by the end of their file's name; one module each, all with the same function `places`."""

from dragoman.translation.formats import html, json_values, markdown, plain, po, subtitles, xliff, yaml_values
from dragoman.translation.formats.base import Broken, Edit, Format, Options, Part, Place, apply, line_of

FORMATS: dict[str, Format] = {
    ".txt": plain,
    ".md": markdown,
    ".markdown": markdown,
    ".po": po,
    ".pot": po,
    ".xlf": xliff,
    ".xliff": xliff,
    ".srt": subtitles,
    ".vtt": subtitles,
    ".json": json_values,
    ".yaml": yaml_values,
    ".yml": yaml_values,
    ".html": html,
    ".htm": html,
}

__all__ = ["FORMATS", "Broken", "Edit", "Format", "Options", "Part", "Place", "apply", "line_of"]
