"""Documents: the bytes of a file as text and back, its byte order mark, encoding and line ends as they were."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dragoman.corpora.reading import HALF
from dragoman.errors import DataError
from dragoman.record import sha256
from dragoman.translation.formats import FORMATS, SKELETONS, Edit, Options, Place, apply, line_of
from dragoman.translation.protection import bare, mask

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
XML = rb"<\?xml[^>]*encoding=[\"']([\w.-]+)"
HTML = XML + rb"|<meta[^>]*charset=[\"']?([\w.-]+)"
PO = rb"\"Content-Type:[^\"]*charset=([\w.-]+)"
DECLARED = {
    **dict.fromkeys((".xlf", ".xliff", ".tmx"), XML),
    **dict.fromkeys((".html", ".htm"), HTML),
    **dict.fromkeys((".po", ".pot"), PO),
}
"""How a file says its encoding, in formats that can."""
LARGEST = 64 * 2**20
LATIN_1 = ("iso-8859-1", "iso8859-1", "latin1", "latin-1", "l1")
"""Labels that browsers read as windows-1252."""
ENTITIES = (".html", ".htm", ".xlf", ".xliff", ".tmx")
"""Formats that can say a character that their encoding lacks."""


@dataclass(frozen=True)
class Document:
    """A file that is to be translated."""

    path: Path
    text: str
    mark: bytes
    encoding: str
    places: tuple[Place, ...]
    """All with letters outside of placeholders."""
    checksum: str

    def filled(self, edits: Iterable[Edit]) -> bytes:
        """The file with the edits made. Raises DataError for a letter that its encoding lacks and no entity says."""
        new = apply(self.text, edits)
        lacking = "xmlcharrefreplace" if self.path.suffix.lower() in ENTITIES else "strict"
        try:
            return self.mark + new.encode(self.encoding, lacking)
        except UnicodeEncodeError as e:
            raise DataError(
                f"{self.path} is in {self.encoding}, which has no {e.object[e.start]!r}; convert it to UTF-8"
            ) from None


def misfits(document: Document, edits: Sequence[Sequence[Edit]]) -> set[int]:
    """Which places' edits would change more of the document than their own words, if its format can tell."""
    skeleton = SKELETONS.get(document.path.suffix.lower())
    if skeleton is None:
        return set()
    before = skeleton(document.text)

    def found(start: int, end: int) -> set[int]:
        some = [edit for place in edits[start:end] for edit in place]
        if not some or skeleton(apply(document.text, some)) == before:
            return set()
        middle = (start + end) // 2
        return {start} if end - start == 1 else found(start, middle) | found(middle, end) or {*range(start, end)}

    return found(0, len(edits))


def read_document(path: Path, options: Options) -> Document:
    """Raises DataError for a file that is missing, too large, of no known format, or not what its name says."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"{path} is in none of the formats {', '.join(FORMATS)}; convert it, or rename it")
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} is larger than {LARGEST >> 20} MB; split it")
        data = path.read_bytes()
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from None
    text, mark, encoding = _decoded(path, data)
    try:
        places = FORMATS[path.suffix.lower()].places(text, options)
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    if broken := [line_of(text, p.at) for p in places if any(HALF.search(part.text) for part in p.parts)]:
        lines = ", ".join(map(str, broken[:8]))
        raise DataError(f"{path} has half a character (a lone \\ud800 to \\udfff) at lines {lines}; mend it")
    spoken = tuple(place for place in places if any(map(str.isalpha, bare(mask(place.parts).text))))
    return Document(path, text, mark, encoding, spoken, sha256(data))


def _is_windows(data: bytes) -> bool:
    """Whether it has what only windows-1252 has, which by the HTML standard the labels of Latin 1 stand for."""
    return {*data} & {*range(0x80, 0xA0)} > set() and not {*data} & {0x81, 0x8D, 0x8F, 0x90, 0x9D}


def _decoded(path: Path, data: bytes) -> tuple[str, bytes, str]:
    mark, encoding = next(((m, e) for m, e in MARKS if data.startswith(m)), (b"", ""))
    says = DECLARED.get(path.suffix.lower())
    declared = re.search(says, data[:4096], re.IGNORECASE) if says else None
    if not encoding and declared:
        encoding = next(group for group in declared.groups() if group).decode()
    encoding = "utf-8" if encoding in ("", "CHARSET") else encoding
    if path.suffix.lower() in (".html", ".htm") and encoding.lower() in LATIN_1 and _is_windows(data):
        encoding = "cp1252"
    try:
        text = data[len(mark) :].decode(encoding)
    except (UnicodeDecodeError, LookupError) as e:
        where = f" at byte {e.start}" if isinstance(e, UnicodeDecodeError) else ""
        raise DataError(
            f"{path} is not in the encoding {encoding}{where}, which it declares or which is the default; convert it"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} has NUL characters: it is no text, or in another encoding; convert it to UTF-8")
    return text, mark, encoding
