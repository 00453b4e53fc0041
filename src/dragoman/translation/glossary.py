"""Glossaries: which terms of a text have a required translation, and which of them a translation lacks.

    TSV, CSV   a header with the two language tags; variants in one cell, `|` between them, the first is the one to use;
               quotation marks are those of the text in TSV
                   en      de
                   cell    Zelle
                   screen  Bildschirm|Monitor
    TBX        2 and 3: <termEntry> or <conceptEntry>, <langSet> or <langSec>, <term>; the terms of a language are
               variants, those marked deprecated or superseded are left out

What a match is says corpora/matching.py (`prefix`: endings by language, no analysis); a term in capitals only ("IT")
is matched in that case. Where terms overlap the longest wins. A term that has two translations in different entries is
a conflict; all conflicts are told at once.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lxml import etree

from dragoman.corpora.languages import normalise_tag
from dragoman.corpora.matching import ending_of, is_unspaced, match_of, normalised, term_pattern
from dragoman.corpora.ntext import normalise
from dragoman.errors import DataError
from dragoman.translation.request import Pair

LANG = "{http://www.w3.org/XML/1998/namespace}lang"
LEFT_OUT = re.compile("deprecated|superseded")


@dataclass(frozen=True)
class Term:
    """A term and its translations, of which the first is the one to use."""

    source: str
    targets: tuple[str, ...]

    @property
    def pair(self) -> Pair:
        return Pair(self.source, self.targets[0])


class Glossary:
    """Terms of one direction. Raises DataError for conflicts and for terms without a letter or digit."""

    def __init__(self, terms: Iterable[Term], source_lang: str, target_lang: str, where: str = "the glossary") -> None:
        self.terms = tuple(dict.fromkeys(terms))
        self.languages = source_lang, target_lang
        self._endings = ending_of(source_lang), ending_of(target_lang)
        _require_one_translation(self.terms, where)
        self._patterns = [(t, *_pattern(t.source, self._endings[0])) for t in self.terms]
        self._by_start: defaultdict[str, list[int]] = defaultdict(list)
        for i, term in enumerate(self.terms):
            self._by_start[_start(term.source)].append(i)

    @classmethod
    def load(cls, path: Path, source_lang: str, target_lang: str) -> Glossary:
        """Read a .tbx, .csv or .tsv. Raises DataError for a file that is none, or lacks one of the languages."""
        terms = list(_READERS.get(path.suffix.lower(), _unknown)(path, source_lang, target_lang))
        if not terms:
            raise DataError(f"{path} has no term in {source_lang} with a translation into {target_lang}")
        return cls(terms, source_lang, target_lang, str(path))

    def found(self, text: str) -> list[Term]:
        """The terms of a text in the order in which they stand, each as often as it does."""
        folded, exact = normalised(text, "prefix"), normalised(text, "exact")
        spans = []
        for i in {i for start in _starts(folded) for i in self._by_start.get(start, ())}:
            term, pattern, match = self._patterns[i]
            spans += [(m.start(), m.end(), term) for m in pattern.finditer(exact if match == "exact" else folded)]
        taken: list[tuple[int, int, Term]] = []
        for start, end, term in sorted(spans, key=lambda s: (s[0] - s[1], s[0], len(s[2].source))):
            if all(end <= a or start >= b for a, b, _ in taken):
                taken.append((start, end, term))
        return [term for _, _, term in sorted(taken, key=lambda s: s[0])]

    def missing(self, text: str, translation: str) -> list[Term]:
        """The terms of a text whose translation is not there (or not as often as the term)."""
        lacking = []
        for term, n in Counter(self.found(text)).items():
            patterns = _either(term.targets, self._endings[1])
            if sum(len(p.findall(normalised(translation, match))) for p, match in patterns) < n:
                lacking.append(term)
        return lacking


def _pattern(term: str, ending: int) -> tuple[re.Pattern[str], str]:
    match = match_of(term)
    return term_pattern(term, match, ending), match


@cache
def _either(variants: tuple[str, ...], ending: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    """One pattern for all variants of a match, so that a word that meets two of them counts once."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for variant in sorted(variants, key=match_of, reverse=True):  # prefix before exact
        pattern, match = _pattern(variant, ending)
        folded = normalised(variant, "prefix")
        if match == "prefix" or not any(re.search(some, folded) for some in found["prefix"]):
            found[match].append(pattern.pattern)
    return tuple((re.compile("|".join(some)), match) for match, some in found.items() if some)


def _start(term: str) -> str:
    """What of a term's first word cannot differ in a text that has it."""
    word = re.findall(r"\w+", normalised(term, "prefix"))[0]
    return word[:1] if is_unspaced(term) else word[:3]


def _starts(folded: str) -> set[str]:
    words = re.findall(r"\w+", folded)
    return {word[:3] for word in words} | (set(folded) if is_unspaced(folded) else set())


def _require_one_translation(terms: Sequence[Term], where: str) -> None:
    found: defaultdict[tuple[str, str], list[Term]] = defaultdict(list)
    for term in terms:
        match = match_of(term.source)
        found[normalised(term.source, match), match].append(term)
    if conflicts := [entries for entries in found.values() if len(entries) > 1]:
        told = "; ".join(f"{e[0].source}: {' or '.join('|'.join(t.targets) for t in e)}" for e in conflicts)
        raise DataError(
            f"{where} has {len(conflicts)} terms with more than one translation: {told}; keep one entry of each, or "
            "put all translations into one entry, the one to use first"
        )


def _from_table(path: Path, source: str, target: str) -> Iterator[Term]:
    text, tabs = io.StringIO(_decoded(path)), path.suffix.lower() == ".tsv"
    try:
        rows = list(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(text))
    except csv.Error as e:
        raise DataError(f"{path} cannot be read as a table: {e}; look for quotation marks that do not close") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    if absent := [tag for tag in (source, target) if tag not in header]:
        there = ", ".join(header) or "nothing"
        raise DataError(f"{path} has no column {', '.join(absent)}; its first line has {there}")
    columns = header.index(source), header.index(target)
    if short := [str(n) for n, row in enumerate(rows[1:], 2) if row and len(row) <= max(columns)]:
        raise DataError(f"{path} lacks cells on lines {', '.join(short[:8])}; fill them or drop the lines")
    for row in filter(None, rows[1:]):
        sources, targets = (_variants(row[c].split("|")) for c in columns)
        yield from (Term(s, targets) for s in sources if targets)


def _from_tbx(path: Path, source: str, target: str) -> Iterator[Term]:
    tree = _parsed(path)
    for entry in tree.iter("{*}termEntry", "{*}conceptEntry"):
        by_tag: defaultdict[str, list[str]] = defaultdict(list)
        for section in entry.iter("{*}langSet", "{*}langSec"):
            by_tag[normalise_tag(section.get(LANG) or "und")] += _terms_of(section)
        sources, targets = (_variants(_in_language(by_tag, tag)) for tag in (source, target))
        yield from (Term(s, targets) for s in sources if targets)


def _parsed(path: Path) -> Any:
    """The outer element. No entity is resolved and nothing fetched on the way to it."""
    try:
        tree = etree.parse(path, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror or e}") from None
    except etree.XMLSyntaxError as e:
        raise DataError(f"{path}: not well-formed XML at line {e.lineno}: {e.msg}; mend that line") from None
    if tree.docinfo.doctype:
        raise DataError(f"{path} has a DTD, which can hold entity bombs and fetch files; remove the <!DOCTYPE>")
    root = tree.getroot().tag.rpartition("}")[2]
    if root not in ("martif", "tbx"):
        raise DataError(f"{path}: the outer element is <{root}>, not <martif> or <tbx>; give a TBX file")
    return tree


def _terms_of(section: Any) -> Iterator[str]:
    for group in section.iter("{*}tig", "{*}ntig", "{*}termSec"):
        notes = " ".join(note.text or "" for note in group.iter("{*}termNote"))
        if not LEFT_OUT.search(notes):
            yield from ("".join(term.itertext()) for term in group.iter("{*}term"))


def _in_language(by_tag: dict[str, list[str]], tag: str) -> list[str]:
    regional = [term for t, terms in by_tag.items() if t.startswith(f"{tag}-") for term in terms]
    return by_tag.get(tag) or regional


def _variants(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(normalise, cells))))


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 at byte {e.start}; convert it") from None


def _unknown(path: Path, source: str, target: str) -> Iterator[Term]:
    raise DataError(f"{path} is no glossary: give a .tbx, .csv or .tsv")


_READERS = {".tbx": _from_tbx, ".csv": _from_table, ".tsv": _from_table}
