"""Test sets in the layouts that they are published in, as n-way text; every row of them is held out.

    FLORES-200   folder dev/eng_Latn.dev, devtest/eng_Latn.devtest, metadata_dev.tsv with the pages (column URL)
    FLORES+      folder dev/eng_Latn.jsonl, devtest/eng_Latn.jsonl, rows {"id": 1, "text": "...", "url": "..."}
    NTREX-128    folder newstest2019-src.eng.txt, newstest2019-ref.cat.txt, DOCUMENT_IDS.tsv there or one level up
    WMT JSONL    {"lp": "en-cs_CZ", "document_id": "...", "source": "...", "target": "...", "is_bad_source": false}
    WMT XML      <doc id=...><src lang="en">...<seg id="1">  and  <ref lang="de" translator="A">, see `markup`
    TMX          <tu><tuv xml:lang="en"><seg>...</seg></tuv>..., see `markup`
    two files    plain text in two languages, line n beside line n (`moses_pair`)
    others       what `ntext.load` reads: TSV, JSON lines, Moses files by prefix

Rows are `devtest`, apart from FLORES' own dev and from tables that bring a column `split`, of which `test` stays
sealed. Where a format does not name documents, all is one document, so that segments are resampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dragoman.corpora.codes import by_tag, tags_of
from dragoman.corpora.markup import read_tmx, read_wmt_xml
from dragoman.corpora.ntext import NText, check_columns, from_columns, load
from dragoman.corpora.parting import require_same_length
from dragoman.corpora.reading import read_columns, read_lines
from dragoman.errors import DataError

LAYOUTS = (
    "a folder of FLORES-200, FLORES+ or NTREX, a .tmx, a WMT .xml or .jsonl, a .tsv or .jsonl with a column for each "
    "language, Moses files name.en, name.de given as name, or two plain files"
)

Table = dict[str, list[str | None]]


def open_test_set(*paths: Path | str, languages: Sequence[str] = (), open_test: bool = False) -> NText:
    """The test set at one path, in whatever layout it has; or two plain files, in the two `languages`.

    open_test: with the rows of a table that are of the sealed split.
    Raises DataError that names file and line for whatever keeps it from being one.
    """
    where = [Path(path) for path in paths]
    if len(where) == 2:
        if len(languages) != 2:
            raise DataError("two plain files need one direction, which names their languages, such as en-de")
        text = moses_pair(where[0], where[1], languages[0], languages[1])
        check_columns(text, where[0])
        return text
    if len(where) != 1:
        raise DataError(f"{len(where)} paths were given for a test set; give {LAYOUTS}")
    (path,) = where
    text = _from_folder(path) if path.is_dir() else _from_file(path, open_test)
    check_columns(text, path)
    about = {"name": path.name.split(".")[0], "file": path.name, **text.about, "checksum": text.checksum()}
    return NText(text.languages, text.keys, text.documents, text.splits, text.columns, about)


def moses_pair(source_file: Path, target_file: Path, source: str, target: str) -> NText:
    """Two plain files, line n of one beside line n of the other."""
    columns: Table = {g: list(read_lines(f)) for g, f in ((source, source_file), (target, target_file))}
    _require_aligned(columns, {source: source_file, target: target_file})
    about = {"name": source_file.name.split(".")[0], "files": [source_file.name, target_file.name]}
    text = _held_out(columns, None, str(source_file), about=about)
    return NText(**{**vars(text), "about": {**about, "checksum": text.checksum()}})


def _held_out(
    columns: Table, documents: Sequence[str] | None, where: str, split: str = "devtest", about: Any = None
) -> NText:
    rows = len(next(iter(columns.values())))
    names = list(documents) if documents is not None else ["text"] * rows
    return from_columns(list(columns), columns, {"document": names, "split": [split] * rows}, where, about)


def _require_aligned(columns: Table, files: dict[str, Path]) -> None:
    first, *others = columns
    for other in others:
        a, b = ([cell or "" for cell in columns[g]] for g in (first, other))
        require_same_length(a, b, str(files[first]), str(files[other]))


def _from_file(path: Path, open_test: bool) -> NText:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".tmx"):
        columns, documents, about = read_tmx(path)
        return _held_out(columns, documents, str(path), about=about)
    if name.endswith(".xml"):
        columns, documents, about = read_wmt_xml(path)
        return _held_out(columns, documents, str(path), about=about)
    if path.is_file() and name.endswith(".jsonl") and _is_wmt(path):
        return _from_wmt_jsonl(path)
    if path.is_file() and not name.endswith((".jsonl", ".tsv")):
        raise DataError(f"cannot tell the layout of {path}; a test set is {LAYOUTS}")
    languages, meta, columns = read_columns(path)
    if "split" in meta:
        return load(path, open_test)
    return _held_out({g: columns[g] for g in languages}, meta.get("document"), str(path))


# WMT JSON lines

_SOURCE, _TARGET = ("source", "src_text", "src"), ("target", "ref_text", "reference", "ref")
_DOCUMENT = ("document_id", "doc_id", "document")


def _is_wmt(path: Path) -> bool:
    row = _row(read_lines(path)[0])
    return row is not None and _named(row, _SOURCE) is not None and _named(row, _TARGET) is not None


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _named(row: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)


def _pair(row: dict[str, Any]) -> tuple[str, ...] | None:
    """The codes of a row: from `lp`, en-cs_CZ, else from two fields."""
    if isinstance(row.get("lp"), str):
        pair = tuple(row["lp"].split("-", 1))
    else:
        found = [_named(row, names) for names in (("src_lang", "source_lang"), ("tgt_lang", "target_lang"))]
        pair = tuple(code for code in found if code)
    return pair if len(pair) == 2 else None


def _from_wmt_jsonl(path: Path) -> NText:
    rows = [(n, _row(line)) for n, line in enumerate(read_lines(path), 1)]
    good = [(n, row) for n, row in rows if row is not None and _pair(row) and _named(row, _SOURCE) is not None]
    if len(good) < len(rows):
        known = {n for n, _ in good}
        n = next(n for n, _ in rows if n not in known)
        raise DataError(
            f'{path}: line {n} is no row of a WMT test set; each line is {{"lp": "en-cs_CZ", "source": "...", '
            '"target": "...", "document_id": "..."}'
        )
    pairs = {_pair(row) or (): n for n, row in reversed(good)}
    if len(pairs) > 1:
        found = ", ".join(f"{'-'.join(pair)} from line {n}" for pair, n in sorted(pairs.items(), key=lambda p: p[1]))
        raise DataError(f"{path} holds several directions ({found}); give one file for each")
    kept = [row for _, row in good if not row.get("is_bad_source")]
    if not kept:
        raise DataError(f"{path}: every row is marked as a bad source, so nothing is left to translate")
    source, target = tags_of(next(iter(pairs)))
    columns: Table = {source: [_named(r, _SOURCE) for r in kept], target: [_named(r, _TARGET) for r in kept]}
    documents = [_named(row, _DOCUMENT) for row in kept]
    about = {"bad_sources_left_out": len(good) - len(kept)}
    return _held_out(columns, [d or "text" for d in documents] if any(documents) else None, str(path), about=about)


# Folders: FLORES-200, FLORES+, NTREX


def _from_folder(path: Path) -> NText:
    flores = [s for s in ("dev", "devtest") if (path / s).is_dir()]
    if flores:
        return _from_flores(path, flores)
    folder = path / "NTREX-128" if (path / "NTREX-128").is_dir() else path
    if files := sorted(folder.glob("newstest*-*.*.txt")):
        return _from_ntrex(folder, files)
    raise DataError(
        f"the folder {path} holds no test set: neither dev and devtest (FLORES) nor newstest2019-ref.*.txt (NTREX); "
        f"give {LAYOUTS}"
    )


def _from_flores(path: Path, splits: Sequence[str]) -> NText:
    parts = [_flores_split(path, split) for split in splits]
    languages = [g for g in parts[0].languages if all(g in part.languages for part in parts)]
    if not languages:
        raise DataError(f"{path}: {' and '.join(splits)} have no language in common; get the data again")
    columns: Table = {g: [cell for part in parts for cell in part.columns[g]] for g in languages}
    meta = {
        name: [value for part in parts for value in getattr(part, attribute)]
        for name, attribute in (("document", "documents"), ("split", "splits"), ("key", "keys"))
    }
    return from_columns(languages, columns, meta, str(path), {"layout": "FLORES"})


def _flores_split(path: Path, split: str) -> NText:
    suffixes = (f".{split}", ".jsonl")
    files = [(f.name.split(".")[0], f) for f in sorted((path / split).iterdir()) if f.suffix in suffixes]
    if not files:
        raise DataError(f"{path / split} has no files such as eng_Latn.{split} or eng_Latn.jsonl; get the data again")
    file_of = by_tag(files)
    read = {g: _flores_file(f) for g, f in file_of.items()}
    columns = {g: texts for g, (texts, _) in read.items()}
    _require_aligned(columns, file_of)
    rows = len(next(iter(columns.values())))
    pages = next((urls for _, urls in read.values() if urls), None) or _metadata(path, split, rows)
    documents = None if pages is None else [f"{split}/{page}" for page in pages]
    return _held_out(columns, documents or [split] * rows, str(path / split), split)


def _flores_file(path: Path) -> tuple[list[str | None], list[str] | None]:
    """Texts and pages; the latter only in FLORES+."""
    lines = read_lines(path)
    if path.suffix != ".jsonl":
        return list(lines), None
    rows = [_row(line) or {} for line in lines]
    if bad := [n for n, row in enumerate(rows, 1) if not isinstance(row.get("text"), str)]:
        raise DataError(
            f'{path}: line {bad[0]} is no row of FLORES+, which is {{"id": 1, "text": "...", "url": "..."}}'
        )
    urls = [row.get("url") for row in rows]
    return [row["text"] for row in rows], [str(u) for u in urls] if all(urls) else None


def _metadata(path: Path, split: str, rows: int) -> list[str] | None:
    file = path / f"metadata_{split}.tsv"
    if not file.is_file():
        return None
    header, *lines = (line.split("\t") for line in read_lines(file))
    if "URL" not in header or len(lines) != rows or any(len(line) != len(header) for line in lines):
        raise DataError(f"{file} has not one line with a URL for each of the {rows} segments of {split}")
    return [line[header.index("URL")] for line in lines]


def _from_ntrex(folder: Path, files: Sequence[Path]) -> NText:
    codes: dict[str, Path] = {}
    for file in files:
        kind, code = file.name.removesuffix(".txt").split(".", 1)
        if kind.endswith(("-src", "-ref")):  # others, such as ref-2, are second references
            codes.setdefault("eng" if kind.endswith("-src") else code, file)
    file_of = by_tag(list(codes.items()))
    columns: Table = {g: list(read_lines(f)) for g, f in file_of.items()}
    _require_aligned(columns, file_of)
    rows = len(next(iter(columns.values())))
    return _held_out(columns, _document_ids(folder, rows), str(folder), about={"layout": "NTREX"})


def _document_ids(folder: Path, rows: int) -> list[str] | None:
    file = next((f for f in (folder / "DOCUMENT_IDS.tsv", folder.parent / "DOCUMENT_IDS.tsv") if f.is_file()), None)
    if file is None:
        return None
    names = [line.split("\t")[0] for line in read_lines(file)]
    if len(names) != rows:
        raise DataError(f"{file} names {len(names)} documents, one for each segment, but there are {rows} segments")
    return names
