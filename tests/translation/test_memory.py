"""Translation memory: what is found, what is kept out, what a correction changes."""

import gzip
import random
import sqlite3

import pytest
from rapidfuzz.distance import Levenshtein

from dragoman.errors import ConfigError, DataError
from dragoman.translation import memory as module
from dragoman.translation.memory import Match, Memory
from dragoman.translation.memory_files import HeldOut, read_pairs
from tests.translation.faults import damaged

chance = random.Random(0)
WORDS = ["".join(chance.choices("abcdefghijklmnoprstuvz", k=chance.randint(2, 9))) for _ in range(400)]


@pytest.fixture
def memory(tmp_path):
    store = Memory.open(tmp_path / "m.sqlite")
    yield store
    store.close()


def test_by_hand(memory):
    pairs = [("Open the file", "Obre el fitxer"), ("Open a file", "Obre un fitxer"), ("Rain falls", "Plou")]
    assert memory.add(pairs, "en", "ca") == 3
    # edit distance of "open the file" and "open a file": 3 of 13 letters
    assert memory.search("Open the file", "en", "ca") == [
        Match("Open the file", "Obre el fitxer", 1.0),
        Match("Open a file", "Obre un fitxer", pytest.approx(1 - 3 / 13)),
    ]
    assert memory.search("Open the file", "ca", "en") == memory.search("Snow", "en", "ca") == []
    assert (memory.exact("Open  the file ", "en", "ca"), memory.exact("open the file", "en", "ca")) == (
        "Obre el fitxer",
        None,
    )
    assert memory.counts() == {("en", "ca"): 3}


def test_the_index_finds_what_a_look_at_every_pair_finds(memory):
    """Queries are stored sentences with a word exchanged, one left out, or one with another ending."""
    stored = [" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(3000)]
    memory.add(((s, f"T{i}") for i, s in enumerate(stored)), "en", "de")
    for n in range(60):
        words = chance.choice(stored).split()
        words[chance.randrange(len(words))] = ("other", "", f"{words[0]}en")[n % 3]
        query = " ".join(words)
        best = max(Levenshtein.normalized_similarity(" ".join(query.split()), s) for s in stored)
        found = memory.search(query, "en", "de", limit=1, threshold=0)
        assert best < 0.5 or found[0].similarity == pytest.approx(best)


def test_only_so_many_postings_are_read(memory, monkeypatch):
    """Rare words decide: a text is found by its one rare word though the frequent ones are not read."""
    memory.add(((f"the file of {i}", "x") for i in range(500)), "en", "de")
    memory.add([("the file of Ravenna", "R")], "en", "de")
    monkeypatch.setattr(module, "BUDGET", 10)
    monkeypatch.setattr(module, "CANDIDATES", 3)
    assert memory.search("the file of Ravenna!", "en", "de", limit=1)[0].target == "R"


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("请打开文件夹", "请打开文件"),
        ("ファイルを開いてください", "ファイルを開いて"),
        ("เปิดไฟล์นี้", "เปิดไฟล์"),
        ("افتح الملف الآن", "افتح الملف"),
    ],
)
def test_other_scripts(memory, stored, asked):
    memory.add([(stored, "there"), ("Unrelated", "x")], "xx", "en")
    assert [m.target for m in memory.search(asked, "xx", "en", threshold=0.5)] == ["there"]


def test_a_correction_replaces_and_survives_closing(tmp_path):
    first = Memory.open(tmp_path / "m")
    first.add([("Save", "Desa"), ("Save", "Guarda")], "en", "ca")
    assert (len(first), first.exact("Save", "en", "ca")) == (2, "Guarda")
    assert first.add([("Save", "Deseu"), ("Save", "Desar")], "en", "ca", replace=True) == 1
    assert first.add([("Save", "Desar")], "en", "ca") == 0
    assert first.add([("Open", "A"), ("Open", "B"), ("Open", "A")], "en", "ca", replace=True) == 1
    assert first.exact("Open", "en", "ca") == "A", "the last one stays"
    assert first.add([("Open", "")], "en", "ca", replace=True) == 0
    first.close()
    again = Memory.open(tmp_path / "m")
    assert [m.target for m in again.search("save", "en", "ca")] == ["Desar"]
    assert len(again) == 2


def test_nothing_to_look_for(memory):
    memory.add([("", "x"), ("x", " "), ("a", "b")], "en", "ca")
    assert len(memory) == 1, "pairs that lack a side are left out"
    assert memory.search("", "en", "ca") == memory.search("...", "en", "ca") == []
    assert memory.search("a" * 5000, "en", "ca", threshold=0) == []


def test_drawn_pairs_are_the_same_for_the_same_seed(memory):
    memory.add([(str(i), str(-i)) for i in range(1, 30)], "en", "ca")
    assert memory.drawn("en", "ca", 5) == memory.drawn("en", "ca", 5) != memory.drawn("en", "ca", 5, seed=1)
    assert len(memory.drawn("en", "ca", 99)) == 29
    assert memory.drawn("ca", "en", 5) == []


def test_files_that_are_no_memory(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be looked at\n" * 50)
    sqlite3.connect(tmp_path / "other").execute("create table x (y)")
    (tmp_path / "folder").mkdir()
    Memory.open(tmp_path / "later").close()
    with sqlite3.connect(tmp_path / "later") as base:
        base.execute("update about set value = '\"dragoman-memory/2\"'")
    for name in ("text", "other", "folder", "nowhere/m", "later"):
        with pytest.raises(DataError, match=f"{name} cannot be used as a translation memory"):
            Memory.open(tmp_path / name)


def test_a_damaged_memory_is_told(tmp_path):
    store = Memory.open(tmp_path / "m")
    store.add(((f"{w} {v}", w) for w in WORDS[:40] for v in WORDS[:40]), "en", "ca")
    store.close()
    damaged(tmp_path / "m")
    with pytest.raises(DataError, match=r"m cannot be (used|read).*malformed"):
        store = Memory.open(tmp_path / "m")
        store.search(f"{WORDS[0]} {WORDS[1]}", "en", "ca")


TMX = """<?xml version="1.0" encoding="UTF-8"?>{doctype}
<tmx version="1.4"><header/><body>
<tu><tuv xml:lang="en-US"><seg>Open <bpt i="1">&lt;b></bpt>it<ept i="1">&lt;/b></ept></seg></tuv>
    <tuv xml:lang="ca"><seg>Obre-ho</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Only English</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Close {entity}</seg></tuv><tuv xml:lang="CA"><seg>Tanca</seg></tuv></tu>
</body></tmx>"""


def test_tmx(tmp_path):
    path = tmp_path / "a.tmx"
    path.write_text(TMX.format(doctype="", entity="&amp; go"))
    assert list(read_pairs(path, "en", "ca")) == [("Open it", "Obre-ho"), ("Close & go", "Tanca")]
    with pytest.raises(DataError, match=r"no unit .* in both en and en-US"):  # no variant translates itself
        list(read_pairs(path, "en", "en-US"))
    bomb = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
    for doctype, entity in ((bomb, "&b;"), ('<!DOCTYPE tmx SYSTEM "http://example.org/tmx14.dtd">', "")):
        path.write_text(TMX.format(doctype=doctype, entity=entity))
        with pytest.raises(DataError, match=r"a\.tmx has a DTD"):
            list(read_pairs(path, "en", "ca"))
    path.write_text(TMX.format(doctype="", entity=""))
    with pytest.raises(DataError, match=r"no unit of .*a\.tmx is in both en and fr; its variants are in ca .*en"):
        list(read_pairs(path, "en", "fr"))
    (tmp_path / "b.tmx.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    with pytest.raises(DataError, match=r"b\.tmx\.gz is damaged or was cut"):
        list(read_pairs(tmp_path / "b.tmx.gz", "en", "ca"))
    path.write_text(TMX.format(doctype="", entity="<b>"))
    with pytest.raises(DataError, match="not well-formed XML at line 6"):
        list(read_pairs(path, "en", "ca"))


def test_tables_give_the_splits_that_are_asked_for(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("key\tsplit\tdocument\ten\tca\n1\ttrain\ta\tOne\tU\n2\tdev\tb\tTwo\tDos\n3\ttest\tc\tThree\tTres\n")
    assert list(read_pairs(path, "en", "ca")) == [("One", "U")]
    assert list(read_pairs(path, "ca", "en", ("train", "dev"))) == [("U", "One"), ("Dos", "Two")]
    with pytest.raises(ConfigError, match="the split test is sealed"):
        list(read_pairs(path, "en", "ca", ("test",)))
    with pytest.raises(DataError, match=r"has no column de; it has en, ca"):
        list(read_pairs(path, "en", "de"))
    (tmp_path / "b.tsv").write_text("en\tca\nOne\tU\n\tDos\n")
    assert list(read_pairs(tmp_path / "b.tsv", "en", "ca")) == [("One", "U")]


def test_held_out_sentences_and_those_near_them(tmp_path):
    (tmp_path / "test.txt").write_text("Click the button to insert a table.\n\nSave\n")
    guard = HeldOut.read([tmp_path / "test.txt"])
    near = "Click the button to insert a tabel."  # two letters of 35
    assert guard.leaks("click the  button to insert a table.") and guard.leaks(near)
    assert guard.leaks("other", "Save")
    assert not guard.leaks("Click the button to delete a row.", "Saved again")


def test_a_test_set_in_tmx_is_held_out_by_its_texts(tmp_path):
    unit = '<tu><tuv xml:lang="{}"><seg>{}</seg></tuv><tuv xml:lang="{}"><seg>{}</seg></tuv></tu>'
    body = unit.format("en", "Click the button to insert a table.", "de", "Fügen Sie eine Tabelle ein.")
    (tmp_path / "test.tmx").write_text(f'<tmx version="1.4"><header/><body>{body}</body></tmx>')
    (tmp_path / "test.tmx").rename(tmp_path / "TEST.TMX")
    guard = HeldOut.read([tmp_path / "TEST.TMX"])
    assert guard.leaks("click the button to insert a table.") and guard.leaks("Fügen Sie eine Tabelle ein.")
    assert not guard.leaks("Click the button to delete a row.")
    for name in ("test.xlf", "test.PO", "test.csv"):
        with pytest.raises(DataError, match=f"{name} holds more than sentences, so none of them can be held"):
            HeldOut.read([tmp_path / name])
