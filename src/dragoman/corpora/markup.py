"""XML test sets: TMX and WMT.

TMX: each <tu> is a row, each <tuv xml:lang="..."> a cell; of inline markup only <hi> counts as text, since the others
hold codes of some program. A <prop type="..."> with `document` or `file` in its type names the document.

WMT (2021 and later): each <doc id> has one <src lang>, then <ref lang translator> and <hyp lang system>, with
<seg id>. Rows are the source's segments; with several references the first one counts, as in sacrebleu. Documents of
test suites (attribute `testsuite`) are left out.

Nothing is fetched and no entity is resolved while reading.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lxml import etree

from dragoman.corpora.codes import tags_of
from dragoman.errors import DataError

Columns = dict[str, list[str | None]]
Read = tuple[Columns, list[str] | None, dict[str, Any]]
"""Cells by language, documents where they are named, what else is known."""

_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES = ("bpt", "ept", "it", "ph", "ut")


def read_tmx(path: Path) -> Read:
    """A translation memory as columns; a unit that lacks a language leaves a gap."""
    units: list[dict[str, str]] = []
    documents: list[str | None] = []
    faults: list[int] = []
    repeated = 0
    for unit in _elements(path, "tu", root="tmx"):
        row: dict[str, str] = {}
        for variant in unit.iterfind("tuv"):
            code = variant.get(_LANG) or variant.get("lang")
            segment = variant.find("seg")
            if not code or segment is None:
                faults.append(variant.sourceline)
            elif code in row:
                repeated += 1
            else:
                row[code] = _text(segment)
        units.append(row)
        documents.append(_document(unit))
    if faults:
        lines = ", ".join(map(str, faults[:5]))
        raise DataError(
            f"{path}: <tuv> without xml:lang or <seg> on {len(faults)} lines, such as {lines}; mend or drop"
        )
    codes = list(dict.fromkeys(code for row in units for code in row))
    if len(codes) < 2:
        raise DataError(f"{path} has {len(units)} units in {len(codes)} languages; a translation memory needs two")
    by_tag: dict[str, list[str]] = {}
    for code, tag in zip(codes, tags_of(codes), strict=True):
        by_tag.setdefault(tag, []).append(code)
    columns: Columns = {g: [next((row[c] for c in by_tag[g] if c in row), None) for row in units] for g in by_tag}
    named = [d or "text" for d in documents] if any(documents) else None
    return columns, named, {"layout": "TMX", "second_variants_left_out": repeated}


def tmx_pairs(path: Path, source: str, target: str) -> Iterator[tuple[str, str]]:
    """(source, target) of each unit that has both, one unit in memory at a time.

    `en` is met by `en` or, where that is missing, by a regional form such as `en-US`. Raises DataError for a DTD, and
    in the end where units are there and none has both languages.
    """
    there: Counter[str] = Counter()
    paired = False
    for unit in _elements(path, "tu", root="tmx"):
        if unit.getroottree().docinfo.doctype:
            raise DataError(f"{path} has a DTD, which can hold entity bombs and fetch files; remove the <!DOCTYPE>")
        texts = {(v.get(_LANG) or v.get("lang") or "").lower(): v.find("seg") for v in unit.iterfind("tuv")}
        found = [_in_language(texts, tag.lower()) for tag in (source, target)]
        there.update(list(texts))
        if all(segment is not None for segment in found) and found[0] is not found[1]:  # pt and pt-BR in one variant
            paired = True
            yield _text(found[0]), _text(found[1])
    if there and not paired:
        held = ", ".join(f"{code or 'no language'} ({n:,})" for code, n in there.most_common(8))
        raise DataError(f"no unit of {path} is in both {source} and {target}; its variants are in {held}")


def _in_language(texts: dict[str, Any], tag: str) -> Any:
    regional = (segment for code, segment in texts.items() if code.startswith(f"{tag}-"))
    return texts.get(tag, next(regional, None))


def _document(unit: Any) -> str | None:
    props = {(p.get("type") or "").lower(): (p.text or "").strip() for p in unit.iterfind("prop")}
    return next((value for kind, value in props.items() if value and ("document" in kind or "file" in kind)), None)


def _text(segment: Any) -> str:
    """Text of a segment; what codes and comments hold is left out, what stands behind them stays."""
    return (segment.text or "") + "".join(_inner(child) + (child.tail or "") for child in segment)


def _inner(child: Any) -> str:
    if isinstance(child.tag, str):
        return "" if child.tag in _CODES else _text(child)
    return child.text if child.tag is etree.Entity else ""  # entities are not resolved, so that none reads a file


def read_wmt_xml(path: Path) -> Read:
    """A WMT test set as two columns, documents and the names of translators and systems."""
    rows: list[tuple[str, str | None, str]] = []
    languages: dict[str, set[str]] = {"src": set(), "ref": set()}
    translators: list[str] = []
    missing: list[str] = []
    for doc in _elements(path, "doc", root=None):
        name = doc.get("id") or f"line {doc.sourceline}"
        source, references = doc.find("src"), doc.findall("ref")
        if "testsuite" in doc.attrib:
            continue
        if source is None or not references:
            missing.append(f"{name} (line {doc.sourceline})")
            continue
        languages["src"].add(source.get("lang") or "")
        languages["ref"].add(references[0].get("lang") or "")
        translators += [t for r in references if (t := r.get("translator")) and t not in translators]
        refs = _segments(references[0])
        rows += [(text, refs.get(key), name) for key, text in _segments(source).items()]
    _require_pair(path, rows, languages, missing)
    codes = [next(iter(languages[kind])) for kind in ("src", "ref")]
    source_tag, target_tag = tags_of(codes)
    columns: Columns = {source_tag: [r[0] for r in rows], target_tag: [r[1] for r in rows]}
    return columns, [r[2] for r in rows], {"layout": "WMT XML", "reference": translators[:1], "references": translators}


def _segments(part: Any) -> dict[str, str]:
    return {seg.get("id") or str(n): " ".join(seg.itertext()) for n, seg in enumerate(part.iter("seg"), 1)}


def _require_pair(path: Path, rows: list[Any], languages: dict[str, set[str]], missing: list[str]) -> None:
    if missing:
        raise DataError(f"{path}: no source or no reference in {len(missing)} documents, such as {missing[0]}")
    if not rows:
        raise DataError(f"{path} has no documents with segments; a WMT test set has <doc><src><p><seg>")
    for kind, found in languages.items():
        if len(found) > 1 or "" in found:
            raise DataError(f"{path}: <{kind}> should have one attribute lang throughout, but has {sorted(found)}")


def _elements(path: Path, tag: str, root: str | None) -> Iterator[Any]:
    """Each element of that name, freed after use; DataError names the line of a fault."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            if not file.read(1):
                raise DataError(f"{path} is empty")
            file.seek(0)
            events = etree.iterparse(file, events=("start", "end"), resolve_entities=False, no_network=True)
            for n, (event, element) in enumerate(events):
                if n == 0 and root and element.tag != root:
                    raise DataError(f"{path} is no {root.upper()}: its outer element is <{element.tag}>, not <{root}>")
                if event == "end" and element.tag == tag:
                    yield element
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
    except etree.XMLSyntaxError as e:
        raise DataError(f"{path}: not well-formed XML at line {e.lineno}: {e.msg}; mend that line") from None
    except (EOFError, zlib.error) as e:
        raise DataError(f"{path} is damaged or was cut ({e}); fetch it again") from None
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}") from None
