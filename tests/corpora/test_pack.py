from importlib import resources

import pytest

from dragoman.corpora.clean import near_duplicates
from dragoman.corpora.languages import script_share
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import (
    KNOWN,
    MAX_CHARACTERS,
    MIN_WORDS,
    UNSEEN,
    build_pack,
    build_pages,
    load_pack,
    load_pages,
)
from dragoman.corpora.quizzes import under_headings
from dragoman.errors import DataError


@pytest.fixture(scope="module")
def pack():
    return load_pack()


def test_the_shipped_pack_is_small():
    folder = resources.files("dragoman") / "assets" / "pack"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) <= 8_000_000
    assert len((folder / "help.tsv.gz").read_bytes()) <= 5_000_000


def test_the_shipped_pack_is_complete(pack):
    assert pack.languages == (*KNOWN, *UNSEEN)
    counts = pack.counts()
    assert set(counts) == {"train", "dev", "devtest"}, "no sealed rows"
    for tag in pack.languages:
        assert counts["train"][tag] >= 2000
        assert counts["dev"][tag] == counts["devtest"][tag] == 300
        assert None not in pack.columns[tag]


def test_the_shipped_pack_says_where_it_is_from(pack):
    assert pack.about["licence"] == "MPL-2.0"
    assert "mozilla.org/MPL/2.0" in pack.about["notice"]
    assert len(pack.about["packages"]) == 14
    assert pack.about["checksum"] == pack.checksum()


def test_the_shipped_pack_is_in_the_scripts_of_its_tags(pack):
    for tag in pack.languages:
        assert script_share(tag, pack.texts(tag)) > 0.8, tag


def test_the_shipped_pack_keeps_its_limits(pack):
    assert all(len(text.split()) >= MIN_WORDS for text in pack.texts("en"))
    assert all(len(text) <= MAX_CHARACTERS for tag in pack.languages for text in pack.texts(tag))
    assert len(set(pack.texts("en"))) == len(pack)


def test_no_document_and_no_sentence_of_the_shipped_pack_is_on_both_sides(pack):
    assert len(set(zip(pack.documents, pack.splits, strict=True))) == len(set(pack.documents))
    assert near_duplicates(pack.texts("en"), pack.splits) == set()
    held = {d for d, split in zip(pack.documents, pack.splits, strict=True) if split == "devtest"}
    assert len(held) >= 50, "spread over documents"


def test_the_shipped_pages_are_of_the_same_splits_and_languages(pack):
    pages = load_pages()
    assert pages.languages == pack.languages and pages.about["checksum"] == pages.checksum() and len(pages) == 2515
    assert set(pages.splits) == {"train", "dev", "devtest"}, "no sealed rows"
    split_of = dict(zip(pack.documents, pack.splits, strict=True))
    assert all(split_of.get(d, s) == s for d, s in zip(pages.documents, pages.splits, strict=True))
    used = pages.take(sorted({i for pair in under_headings(pages, pages.headless) for i in pair}))
    assert len(used) > 2000
    english = [text or "" for text in used.columns["en"] + pack.columns["en"]]
    assert near_duplicates(english, used.splits + pack.splits) == set()


def page(name, blocks, split, french=True):
    """Rows in this order: h a heading, p a paragraph, l one that is too long in German."""
    rows = []
    for i, kind in enumerate(blocks):
        words = "lang " * 90 if kind == "l" else f"Satz {i}"
        key = f"{name}#{'hd' if kind == 'h' else 'par'}_{i}"
        rows.append((key, name, split, f"{kind} {name} {i}", words, f"mot {i}" if french else None))
    return rows


def table_of(*pages, headless=()):
    keys, documents, splits, *cells = zip(*(row for rows in pages for row in rows), strict=True)
    columns = {g: list(column) for g, column in zip(("en", "de", "fr"), cells, strict=True)}
    about = {"licence": "CC0-1.0", "checksum": "abc"}
    return NText(("en", "de", "fr"), keys, documents, splits, columns, about, headless=frozenset(headless))


def test_pages_by_hand():
    """Of a page its first row, and headings with up to two paragraphs; the page's own heading is none of them."""
    held = [page("a/dev", "hhphphphp", "dev"), page("a/held", "phphphphp", "devtest")]
    short = page("a/three", "hhphphp", "train")
    most = page("a/long", "hhppphlphphphh", "train")  # the third paragraph of a heading; a last one without any
    lost = page("a/lost", "hhphphphp", "train")
    table = table_of(*held, short, most, lost, page("a/seal", "hhphphphp", "test"), headless=["a/lost#par_4"])
    made = build_pages(table, ("en", "de"), ("fr",))
    kept = {d: "".join(key[0] for key, at in zip(made.columns["en"], made.documents, strict=True) if at == d)
            for d in dict.fromkeys(made.documents)}  # fmt: skip
    assert kept == {"a/dev": "hhphphphp", "a/held": "phphphphp", "a/long": "hhpphlphphp"}
    assert "a/lost#par_4" not in made.keys and made.headless == frozenset()
    assert made.about["from_table"] == "abc" and made.about["rows_by_split"] == {"dev": 9, "devtest": 9, "train": 11}
    assert set(made.keys) - set(build_pages(table, ("en", "de"), ()).keys) == {"a/long#par_6"}, "too long"


def test_pages_take_what_more_than_half_of_the_languages_have():
    held = [page("a/dev", "hhphphphp", "dev"), page("a/held", "hhphphphp", "devtest")]
    without = page("a/some", "hhphphphp", "train", french=False)
    table = table_of(*held, without, page("a/all", "hhphphphp", "train"))
    assert "a/some" in build_pages(table, ("en", "de"), ("fr",)).documents, "two of three"
    assert "a/some" not in build_pages(table, ("en",), ("fr",)).documents, "one of two"


def test_pages_keep_within_their_bytes_and_say_what_is_missing():
    pages = [page(f"a/{i}", "hhphphphp", "train") for i in range(40)]
    held = [page("a/dev", "hhphphphp", "dev"), page("a/held", "hhphphphp", "devtest")]
    table = table_of(*held, *pages)
    size = len(build_pages(table, ("en", "de"), ("fr",)).packed())
    less = build_pages(table, ("en", "de"), ("fr",), max_bytes=size - 200)
    assert len(less.packed()) <= size - 200 and {"dev", "devtest"} <= set(less.splits)
    assert 0.7 < len(less) / len(table) < 1
    with pytest.raises(DataError, match="no page of dev, devtest has 4 headings with a paragraph each"):
        build_pages(table_of(*pages), ("en", "de"), ("fr",))
    with pytest.raises(DataError, match="does not say what stands under what"):
        build_pages(made({"train": 50}), ("en", "de"), ("ca",))


def made(rows_by_split, missing=()):
    splits = [split for split, n in rows_by_split.items() for _ in range(n)]
    rows = range(len(splits))
    english = [f"This is segment number {i}" for i in rows]
    return NText(
        ("en", "de", "ca"),
        tuple(f"d{i % 10}-{splits[i]}#{i}" for i in rows),
        tuple(f"d{i % 10}-{splits[i]}" for i in rows),
        tuple(splits),
        {
            "en": english,
            "de": [f"Satz {i}" for i in rows],
            "ca": [None if i in missing else f"frase {i}" for i in rows],
        },
        {"licence": "CC0-1.0", "checksum": "abc"},
    )


def test_packs_are_built_of_complete_rows_only():
    table = made({"train": 50, "dev": 20, "devtest": 20, "test": 20}, missing={0, 1, 51})
    pack = build_pack(table, ("en", "de"), ("ca",), train=40, dev=10, devtest=10)
    assert pack.about["rows_by_split"] == {"train": 40, "dev": 10, "devtest": 10}
    assert pack.about["from_table"] == "abc"
    assert None not in pack.columns["ca"]
    assert len({d for d, s in zip(pack.documents, pack.splits, strict=True) if s == "dev"}) >= 9, (
        "a row a document first"
    )
    assert build_pack(table, ("en", "de"), ("ca",), train=40, dev=10, devtest=10).keys == pack.keys
    assert build_pack(table, ("en", "de"), ("ca",), train=40, dev=10, devtest=10, seed=1).keys != pack.keys


def test_packs_take_as_many_rows_as_fit():
    table = made({"train": 6000, "dev": 10, "devtest": 10})
    size = len(build_pack(table, ("en", "de"), ("ca",), train=4000, dev=10, devtest=10).packed())
    pack = build_pack(table, ("en", "de"), ("ca",), dev=10, devtest=10, max_bytes=size)
    assert 3800 <= pack.about["rows_by_split"]["train"] <= 4100
    assert len(pack.packed()) <= size


def test_a_table_with_too_few_rows_is_refused():
    with pytest.raises(
        DataError, match="too few rows are complete in en, de, ca: 50 of 2000 in train; 20 of 300 in dev; "
    ):
        build_pack(made({"train": 50, "dev": 20, "devtest": 300}), ("en", "de"), ("ca",))
