"""Tasks of n-way text: groups by hand, and that the options alone give nothing away."""

from collections import Counter
from dataclasses import replace

import pytest

from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import load_pack, load_pages
from dragoman.corpora.quizzes import QUIZZES, SENTENCES, heading, next_sentence
from dragoman.errors import DataError


def text(rows, languages=("en", "de")):
    """rows: (key, document, cells)."""
    columns = {g: [cells[i] for _, _, cells in rows] for i, g in enumerate(languages)}
    keys, documents = (tuple(row[i] for row in rows) for i in (0, 1))
    return NText(languages, keys, documents, ("train",) * len(rows), columns, {"name": "made"})


def paragraphs(page, numbers):
    return [(f"{page}#par_{n}", page, (f"Do {n}. Then {n}.", f"Tu {n}. Dann {n}.")) for n in numbers]


def test_sentences_are_cut_where_they_end():
    assert SENTENCES.split("Open it. See p. 3.5 now! 他走了。她来了。") == [
        "Open it.", " See p.", " 3.5 now!", " 他走了。", "她来了。",
    ]  # fmt: skip


def test_next_sentence_by_hand():
    made = next_sentence(text(paragraphs("a/x", range(4)) + paragraphs("a/y", range(4, 7))), ["en", "de"], "train")
    assert len(made) == 4, "three paragraphs are left over"
    english, german = made.items["en"], made.items["de"]
    assert [item.right for item in english] == [0, 1, 2, 3]
    assert {item.document for item in english} == {"a/x"}, "the page that has four"
    for a, b in zip(english, german, strict=True):
        n = a.key[-1]
        assert (a.prompt, a.answer, a.options[a.right]) == (f"Do {n}.", f" Then {n}.", f" Then {n}.")
        assert (b.prompt, b.answer, b.right) == (f"Tu {n}.", f" Dann {n}.", a.right)
        assert len(set(a.options)) == 4 and b.key == a.key


def test_paragraphs_whose_sentences_do_not_match_are_left_out():
    rows = [*paragraphs("a/x", range(4)), ("a/x#par_9", "a/x", ("One. Two.", "Eins und zwei."))]
    assert all(item.key != "a/x#par_9" for item in next_sentence(text(rows), ["en", "de"], "train").items["en"])


def test_headings_by_hand():
    rows = []
    for page in ("s/a", "s/b", "s/c", "s/d", "r/e"):
        rows += [(f"{page}#hd_1", page, (f"Head {page}", f"Kopf {page}")), *paragraphs(page, [page])]
    made = heading(text(rows), ["en", "de"], "train")
    assert len(made) == 4
    assert {item.document for item in made.items["en"]} == {"s/a", "s/b", "s/c", "s/d"}, "one section"
    for item in made.items["en"]:
        assert item.options[item.right] == f"Head {item.document}" == item.answer
        assert item.prompt == f"Do {item.document}. Then {item.document}.\n"


def page(name, kinds):
    """Rows in this order: h a heading, p a paragraph."""
    key = {"h": "hd_", "p": "par_"}
    return [(f"{name}#{key[k]}{9 - i}", name, (f"{k} {name} {i}", f"{k} {name} {i} de")) for i, k in enumerate(kinds)]


def rows_of(made):
    return zip(made.keys, made.documents, made.columns["en"], strict=True)


def ordered(rows, without=()):
    return replace(text(rows), headless=frozenset(without))


def test_headings_of_a_page_whose_order_is_known():
    """At most two paragraphs under each heading; four headings of one page, and pages with fewer give nothing."""
    rows = [*page("s/a", "hphppphphphp"), *page("s/b", "hphphphp"), *page("s/c", "phhphphphph")]
    rows[2] = (*rows[2][:2], ("h s/a 2", None))  # not in German: its paragraphs have no heading, nor that of before
    rows += page("s/d", "hphphphphp")
    made = heading(ordered(rows, without=["s/d#par_6"]), ["en", "de"], "train")
    found = {item.prompt.strip(): item.options[item.right] for item in made.items["en"]}
    under = (3, 2), (5, 4), (7, 6), (9, 8)
    assert found == {f"p s/c {p}": f"h s/c {h}" for p, h in under}, "of a, b and d three are left, but for the first"
    for item in made.items["de"]:
        assert {option.split()[1] for option in item.options} == {item.document}, "distractors of the same page"
    assert made.about["groups"] == made.about["groups_of_one_page"] == 1
    twice = heading(ordered(page("s/a", "hphppphpphpphpp")), ["en", "de"], "train").items["en"]
    places = sorted((int(x.prompt.split()[2]), int(x.answer.split()[2])) for x in twice)
    assert places == [(3, 2), (4, 2), (7, 6), (8, 6), (10, 9), (11, 9), (13, 12), (14, 12)]
    with pytest.raises(DataError, match="the task heading cannot be made of split train"):
        heading(ordered(page("s/b", "hphphphp")), ["en", "de"], "train")


def test_the_options_of_a_page_alone_give_nothing_away():
    """As below, for headings of one page; longer ones stand lower on it."""
    pages = [ordered(page(f"s/{n}", "hp" * (5 + n % 7))) for n in range(30)]
    whole = text([(k, d, (t.replace(" ", " x" * i, 1), t)) for p in pages for i, (k, d, t) in enumerate(rows_of(p))])
    items = heading(replace(whole, headless=frozenset()), ["en", "de"], "train").items["en"]
    for rule in (max, min):
        found = [item.options.index(rule(item.options, key=lambda o: (len(o), o))) == item.right for item in items]
        assert sum(found) == len(items) / 4 >= 30
    assert Counter(item.right for item in items) == dict.fromkeys(range(4), len(items) // 4)


@pytest.fixture(scope="module", params=["next", "heading", "heading of rows without order"])
def shipped(request):
    """A task and the built-in text that it is made of; headings also of the text that does not know its pages."""
    return request.param.split()[0], load_pages() if request.param == "heading" else load_pack()


def test_the_options_alone_give_nothing_away(shipped):
    """Whatever rule reads the options alone picks the same one for a whole group, and is right once in four."""
    languages = ("en", "de", "ca", "zh")
    made = QUIZZES[shipped[0]](shipped[1], languages, "devtest" if shipped[1].headless is None else "dev")
    rules = {
        "the longest": lambda options: max(range(4), key=lambda i: (len(options[i]), options[i])),
        "the shortest": lambda options: min(range(4), key=lambda i: (len(options[i]), options[i])),
        "the first": lambda options: 0,
        "the first of the alphabet": lambda options: min(range(4), key=lambda i: options[i]),
        "most like the others": lambda options: max(
            range(4), key=lambda i: (sum(len(set(options[i].split()) & set(o.split())) for o in options), options[i])
        ),
    }
    assert len(made) >= 40
    for g in languages:
        items = made.items[g]
        assert set(Counter(item.right for item in items).values()) == {len(items) // 4}
        for name, rule in rules.items():
            right = sum(rule(item.options) == item.right for item in items)
            assert right == len(items) / 4, f"{name} in {g}"


def test_items_are_parallel_and_come_from_near(shipped):
    task, text = shipped
    made = QUIZZES[task](text, ("en", "de"), "train")
    page_of = dict(zip(text.keys, text.documents, strict=True))
    groups = [made.items["en"][i : i + 4] for i in range(0, len(made), 4)]
    for group in groups:
        assert len({item.options for item in group}) == 1
        assert [page_of[item.key] for item in group] == [item.document for item in group]
    pages = [len({item.document for item in group}) for group in groups]
    sections = [len({item.document.rpartition("/")[0] for item in group}) for group in groups]
    assert sum(n == 1 for n in sections) > 0.9 * len(groups)
    if task == "next":
        assert sum(n == 1 for n in pages) > len(groups) / 4
    else:
        assert set(pages) == ({4} if text.headless is None else {1})


def test_too_little_text_is_told():
    with pytest.raises(DataError, match="task next cannot be made of split train in en, de: it takes groups of four"):
        next_sentence(text(paragraphs("a", range(3))), ["en", "de"], "train")
    with pytest.raises(DataError, match="with headings in rows whose key has hd_ behind #"):
        heading(text(paragraphs("a", range(9))), ["en", "de"], "train")
