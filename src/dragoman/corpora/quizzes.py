"""Tasks made from n-way text: which sentence follows, and which heading belongs to a paragraph.

Items come in groups of four that share their options, in one order, and every option is right exactly once. So whoever
looks at the options alone is right for one item in four, whatever the rule, and every position is right equally often.

    next       the first sentence of a paragraph, and the second sentences of four paragraphs
    heading    a paragraph, and four headings within its page, one of which it stands under

The other three paragraphs of `next` are of the same page where it has four, else of the same section (the folder of
the page), else of any. `heading` needs to know what stands under what (`NText.headless`), as a table of `dragoman data
fetch help` and the pages of the built-in corpus do (`pack.load_pages`); the heading that opens a page is no option, as
all of the page stands under it. Of another table the right heading is any of the paragraph's page, and the other three
are of other pages, of the same section where it has four.

As the four prompts of a group share their options, an option that is likely anyway wins all four, and is right once: so
options are compared by what the prompt adds (`pmi`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from dragoman.corpora.items import REFERENCE, Item, TaskItems, task_items
from dragoman.corpora.ntext import NText, is_heading
from dragoman.errors import DataError
from dragoman.record import sha256

GROUP = 4
MOST_OF_A_PAGE = 8
"""Items of `heading` that one page gives at most where it is not known what stands under what."""
MOST_OF_A_HEADING = 2
"""Those that one heading gives where it is."""
SENTENCES = re.compile(r"(?<=[.!?])(?=\s)|(?<=[。！？])(?=[^」』”）])")
"""Where one sentence ends; what follows keeps its leading space."""


@dataclass(frozen=True)
class _Pair:
    """A prompt and what belongs to it, by language."""

    key: str
    document: str
    prompt: dict[str, str]
    answer: dict[str, str]


def next_sentence(corpus: NText, languages: Sequence[str], split: str) -> TaskItems:
    """Which sentence follows? Of paragraphs with the same number of sentences, two or more, in every language.

    Raises DataError where there are fewer than four.
    """
    table = corpus.select(languages, split, complete=True)
    pairs = []
    for i, key in enumerate(table.keys):
        parts = {g: SENTENCES.split(table.columns[g][i] or "") for g in languages}
        if len({len(p) for p in parts.values()}) == 1 and len(parts[languages[0]]) > 1:
            first, second = ({g: p[n] for g, p in parts.items()} for n in (0, 1))
            pairs.append(_Pair(key, table.documents[i], first, second))
    return _made("next", corpus, split, languages, _groups(pairs, own_page=True))


def heading(corpus: NText, languages: Sequence[str], split: str) -> TaskItems:
    """Which heading belongs to this paragraph? A key's part behind # tells which is which (`hd_`, `par_`).

    Raises DataError where no page has four headings with a paragraph each, or fewer than four pages have both.
    """
    known = corpus.headless is not None
    table = corpus.select(languages, split, complete=not known)
    found = under_headings(table, corpus.headless) if corpus.headless is not None else _beside(table)
    pairs = []
    for row, head in found:
        paragraph, title = ({g: table.columns[g][i] or "" for g in languages} for i in (row, head))
        if all([*paragraph.values(), *title.values()]):
            prompt = {g: f"{t}\n" for g, t in paragraph.items()}
            pairs.append(_Pair(table.keys[row], table.documents[row], prompt, title))
    return _made("heading", corpus, split, languages, _groups(pairs, own_page=known, alone=known))


def under_headings(table: NText, headless: Container[str]) -> Iterable[tuple[int, int]]:
    """(paragraph, heading that it stands under), the first ones of each heading but that of the page."""
    heading, number, page = None, 0, ""
    for i, key in enumerate(table.keys):
        if is_heading(key):
            heading, number = i if table.documents[i] == page else None, 0
        elif table.documents[i] != page or key in headless:
            heading = None
        elif heading is not None and number < MOST_OF_A_HEADING:
            number += 1
            yield i, heading
        page = table.documents[i]


def _beside(table: NText) -> Iterable[tuple[int, int]]:
    """(paragraph, heading) of one page, by turns, as which stands under which is not known."""
    pages: dict[str, tuple[list[int], list[int]]] = {}
    for i, key in enumerate(table.keys):
        if is_heading(key) or key.rpartition("#")[2].startswith("par"):
            pages.setdefault(table.documents[i], ([], []))[is_heading(key)].append(i)
    for paragraphs, heads in pages.values():
        for n, i in enumerate(paragraphs[: MOST_OF_A_PAGE if heads else 0]):
            yield i, heads[n % len(heads)]


QUIZZES: dict[str, Callable[[NText, Sequence[str], str], TaskItems]] = {"next": next_sentence, "heading": heading}
"""Task -> how its items are made of a corpus, languages and a split."""


def _section(document: str) -> str:
    return document.rpartition("/")[0]


def _groups(pairs: Sequence[_Pair], own_page: bool, alone: bool = False) -> list[list[_Pair]]:
    """Fours with different answers in every language, as near to each other as can be; what is left over is dropped.

    own_page: from one page first, and with `alone` from nowhere else; without it from four pages. By lot in the end, so
    that the first are a sample of all: those of one page are harder.
    """
    left = sorted(pairs, key=lambda pair: sha256(pair.key))
    places: list[Callable[[_Pair], str]] = [lambda p: p.document] if own_page else []
    wider: list[Callable[[_Pair], str]] = [lambda p: _section(p.document), lambda p: ""]
    groups: list[list[_Pair]] = []
    for place in places if alone else [*places, *wider]:
        by_place: dict[str, list[_Pair]] = {}
        for pair in left:
            by_place.setdefault(place(pair), []).append(pair)
        made = [group for found in by_place.values() for group in _fours(found, own_page)]
        used = {pair.key for group in made for pair in group}
        left = [pair for pair in left if pair.key not in used]
        groups += made
    return sorted(groups, key=lambda group: sha256(group[0].key))


def _fours(pairs: Sequence[_Pair], own_page: bool) -> Iterable[list[_Pair]]:
    """Each pair goes into the first open group that it fits."""
    open_groups: list[list[_Pair]] = []
    for pair in pairs:
        group = next((g for g in open_groups if all(_fits(pair, other, own_page) for other in g)), None)
        if group is None:
            group = []
            open_groups.append(group)
        group.append(pair)
        if len(group) == GROUP:
            open_groups.remove(group)
            yield group


def _fits(a: _Pair, b: _Pair, own_page: bool) -> bool:
    same = any(a.answer[g].strip() == b.answer[g].strip() or a.prompt[g] == b.prompt[g] for g in a.answer)
    return not same and (own_page or a.document != b.document)


def _made(name: str, corpus: NText, split: str, languages: Sequence[str], groups: list[list[_Pair]]) -> TaskItems:
    if not groups:
        raise DataError(
            f"the task {name} cannot be made of split {split} in {', '.join(languages)}: it takes groups of four, and "
            f"there is none; give more text or fewer languages"
            + (", with headings in rows whose key has hd_ behind #" if name == "heading" else "")
        )
    items = {g: [item for group in groups for item in _items(group, g)] for g in languages}
    near = sum(len({pair.document for pair in group}) == 1 for group in groups)
    about = {"corpus": corpus.about.get("name"), "corpus_sha256": corpus.checksum(), "split": split}
    about |= {"groups": len(groups), "groups_of_one_page": near}
    return task_items(name, "options", {REFERENCE: items[REFERENCE], **items}, normalise="pmi", about=about)


def _items(group: Sequence[_Pair], tag: str) -> list[Item]:
    options = tuple(pair.answer[tag] for pair in group)
    return [Item(p.key, p.document, p.prompt[tag], options[n], options, n) for n, p in enumerate(group)]
