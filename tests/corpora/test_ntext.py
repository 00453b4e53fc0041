import gzip
import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.corpora.mix import check_no_leak
from dragoman.corpora.ntext import (
    SPLITS,
    USER_SHARES,
    NText,
    about_path,
    from_columns,
    load,
    normalise,
    split_of,
    split_of_block,
)
from dragoman.errors import ConfigError, DataError

CELL = st.none() | st.text(st.characters(codec="utf-8"), max_size=12)


def small():
    return NText(
        ("en", "de", "ru"),
        ("a#1", "a#2", "b#1", "c#1"),
        ("a", "a", "b", "c"),
        ("train", "train", "devtest", "test"),
        {
            "en": ["one house", "two houses", "three", "four"],
            "de": ["ein Haus", None, "drei", "vier"],
            "ru": ["дом", "два дома", None, "четыре"],
        },
        {"name": "small", "licence": "CC0-1.0"},
    )


def test_select_keeps_rows_and_columns_asked_for():
    text = small()
    assert text.select(["de", "en"]).languages == ("de", "en")
    assert text.select(split="train").keys == ("a#1", "a#2")
    assert text.select(split=("train", "devtest"), complete=("de",)).keys == ("a#1", "b#1")
    assert text.select(complete=True).keys == ("a#1", "c#1")
    assert text.select(["en", "ru"], complete=True).keys == ("a#1", "a#2", "c#1")
    assert text.select(["en"], complete=["ru"]).columns == {"en": ["one house", "two houses", "four"]}


def test_texts_and_pairs_leave_out_what_is_missing():
    text = small()
    assert text.texts("de") == ["ein Haus", "drei", "vier"]
    assert text.texts("de", "train") == ["ein Haus"]
    assert text.pairs("en", "ru", "train") == [("one house", "дом"), ("two houses", "два дома")]
    assert text.counts()["train"] == {"en": 2, "de": 1, "ru": 2}


def test_a_language_that_is_not_there_names_the_nearest_and_all_there_are():
    with pytest.raises(DataError, match=r"no column dee, fr in corpus small .*did you mean de.*it has en, de, ru"):
        small().select(["dee", "fr"])
    with pytest.raises(DataError, match="'valid'; splits are train, dev, devtest, test"):
        small().select(split="valid")


@pytest.mark.parametrize("name", ["small.tsv", "small.tsv.gz"])
def test_what_is_saved_is_loaded(tmp_path, name):
    text = small()
    path = text.save(tmp_path / name)
    again = load(path, open_test=True)
    for part in ("languages", "keys", "documents", "splits", "columns"):
        assert getattr(again, part) == getattr(text, part)
    assert again.about["licence"] == "CC0-1.0"
    assert again.about["checksum"] == text.checksum()
    assert json.loads(about_path(path).read_text())["rows"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.about.json", name]


def test_the_same_text_makes_the_same_bytes(tmp_path):
    a, b = small().save(tmp_path / "a.tsv.gz"), small().save(tmp_path / "b.tsv.gz")
    assert a.read_bytes() == b.read_bytes()


def test_the_test_split_is_sealed(tmp_path):
    path = small().save(tmp_path / "small.tsv.gz")
    sealed, opened = load(path), load(path, open_test=True)
    assert "test" not in sealed.splits
    assert len(sealed) == 3
    assert "vier" not in sealed.texts("de")
    assert "test_opened" not in sealed.about
    assert len(opened) == 4
    assert opened.about["test_opened"] is True
    assert sealed.about["checksum"] == opened.about["checksum"], "of the whole table, whoever looks"


def test_saving_elsewhere_says_why_not(tmp_path):
    with pytest.raises(DataError, match=r"name it \.tsv or \.tsv\.gz"):
        small().save(tmp_path / "small.csv")
    (tmp_path / "small.tsv").mkdir()
    with pytest.raises(ConfigError, match="choose another place"):
        small().save(tmp_path / "small.tsv")
    assert [p.name for p in tmp_path.iterdir()] == ["small.tsv"], "no half-written file stays"


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_any_cells_survive_a_round_trip(rows):
    import tempfile
    from pathlib import Path

    columns = {"qqa": [a for a, _ in rows], "qqb": [b for _, b in rows]}
    text = from_columns(["qqa", "qqb"], columns)
    with tempfile.TemporaryDirectory() as folder:
        again = load(text.save(Path(folder) / "x.tsv"), open_test=True)
    assert again.columns == text.columns
    assert again.splits == text.splits


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once
    assert not set(once) & set("\t\n\r\u00ad\u200b")
    assert "  " not in once


def test_normalise_by_hand():
    assert normalise(" e\u0301t\u00e9\t\u00a0 \u00adsoft\n") == "\u00e9t\u00e9 soft"


# sha256sum of "/guide/a" starts with 3bef71743e70fdab, a fraction of 0.234; of "salt/guide/a" with bb79..., 0.732.
def test_splits_follow_the_hash_and_nothing_else():
    assert split_of("guide/a", {"train": 0.23, "dev": 0.77}) == "dev"
    assert split_of("guide/a", {"train": 0.24, "dev": 0.76}) == "train"
    assert split_of("guide/a", {"train": 0.24, "dev": 0.49, "test": 0.27}, salt="salt") == "test"
    assert split_of("guide/a", {"train": 0.24, "dev": 0.50, "test": 0.26}, salt="salt") == "dev"
    drawn = [split_of(f"d{i}", USER_SHARES) for i in range(4000)]
    for split in SPLITS:
        assert drawn.count(split) / 4000 == pytest.approx(USER_SHARES[split], abs=0.02)
    assert drawn == [split_of(f"d{i}", USER_SHARES) for i in range(4000)]
    assert drawn != [split_of(f"d{i}", USER_SHARES, salt="other") for i in range(4000)]


def test_rows_with_splits_and_no_documents_are_in_runs_of_one_split(tmp_path):
    rows = [("train", i) for i in range(45)] + [("devtest", i) for i in range(45, 50)] + [("train", 50)]
    path = tmp_path / "talk.tsv"
    path.write_text("split\ten\n" + "".join(f"{split}\tword {i}\n" for split, i in rows))
    text = load(path)
    assert text.documents[19:21] == ("train/rows-000000", "train/rows-000001")
    assert text.documents[44:] == ("train/rows-000002", *["devtest/rows-000000"] * 5, "train/rows-000002")
    (tmp_path / "a.tsv").write_text("split\ten\ntrain\tsome words\n")
    (tmp_path / "b.tsv").write_text("split\ten\ndev\tother words\n")
    tables = [load(tmp_path / name) for name in ("a.tsv", "b.tsv")]
    check_no_leak(tables, ["en"], [], tables[1])  # made-up names of documents are no document in common


def test_user_rows_without_split_or_document_are_split_in_runs_of_twenty(tmp_path):
    path = tmp_path / "talk.tsv"
    path.write_text("en\tde\n" + "".join(f"word {i}\tWort {i}\n" for i in range(400)))
    text = load(path, open_test=True)
    assert text.documents[:21] == ("rows-000000",) * 20 + ("rows-000001",)
    assert len(set(zip(text.documents, text.splits, strict=True))) == 20, "a document lies in one split"
    # 0.39 + n * 0.618 without its whole part: .390 .008 .626 .244 .862 .480 .098 .716 .334 .952 .570 .188 .806
    by_hand = ["train"] * 4 + ["devtest"] + ["train"] * 4 + ["test", "train", "train", "dev"]
    assert list(text.splits[:260:20]) == by_hand
    path.write_text("en\tde\n" + "".join(f"word {i}\tWort {i}\n" for i in range(270)))
    assert load(path, open_test=True).splits == text.splits[:270], "a row keeps its split when more follow"


def test_blocks_of_rows_are_dealt_out_evenly():
    dealt = [split_of_block(i) for i in range(1000)]
    for split in SPLITS:
        assert dealt.count(split) / 1000 == pytest.approx(USER_SHARES[split], abs=0.003)
        places = [i for i, s in enumerate(dealt) if s == split]
        assert max(b - a for a, b in itertools.pairwise(places)) <= 34, "a Fibonacci number, by the three gaps"


def test_a_document_in_two_splits_is_refused(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("document\tsplit\ten\np1\ttrain\tone word\np1\tdev\tanother word\np2\tdev\tthird word\n")
    with pytest.raises(DataError, match="1 documents that lie in more than one split, such as p1 in dev, train"):
        load(path)


def test_given_documents_decide_the_split(tmp_path):
    path = tmp_path / "talk.tsv"
    path.write_text("document\ten\n" + "".join(f"d{i % 7}\tword {i}\n" for i in range(70)))
    text = load(path, open_test=True)
    assert [split_of(d, USER_SHARES) for d in text.documents] == list(text.splits)


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_a_column_in_another_script_is_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    data = "en\tru\tel\nthe house\tdom otca\tспити\n".encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    with pytest.raises(DataError) as error:
        load(path)
    assert "column ru should be in Cyrillic script, but only 0% of its letters are; most are Latin (100%)" in str(
        error.value
    )
    assert "column el should be in Greek script" in str(error.value)
    assert "sr-Latn" in str(error.value)


def test_columns_of_names_are_no_languages(tmp_path):
    path = tmp_path / "x.tsv"
    rows = "".join(f"seg-{i}\tnews/{i // 4}\t{i}\ta house\tein Haus\n" for i in range(12))
    path.write_text(f"id\tdoc\tsq\ten\tde\n{rows}")
    with pytest.raises(DataError, match="column id holds names such as 'seg-0' and no text in Indonesian") as error:
        load(path)
    assert "column doc holds names such as 'news/0' and no text in doc" in str(error.value)
    assert "column sq holds names such as '0'" in str(error.value)
    assert "column en" not in str(error.value)
    path.write_text("id\tja\n" + "rumah\t家\nRp100\t2番\n")
    assert load(path, open_test=True).languages == ("id", "ja")


def test_unknown_splits_and_repeated_keys_are_named(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("split\ten\nvalid\ta\n")
    with pytest.raises(DataError, match=re.escape("'valid'; splits are train, dev, devtest, test")):
        load(path)
    path.write_text("key\ten\nk1\ta\nk1\tb\n")
    with pytest.raises(DataError, match="1 keys on more than one row, such as k1"):
        load(path)
