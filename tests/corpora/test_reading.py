import gzip
import json

import pytest

from dragoman.corpora.ntext import load
from dragoman.errors import DataError


def written(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_the_four_formats_hold_the_same_text(tmp_path):
    english, german = ["a house", "a tree", "a dog"], ["ein Haus", "", "ein Hund"]
    tsv = "en\tde\n" + "".join(f"{e}\t{g}\n" for e, g in zip(english, german, strict=True))
    rows = [{"en": e, "de": g or None} for e, g in zip(english, german, strict=True)]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    written(tmp_path / "m.en", "\n".join(english) + "\n")
    written(tmp_path / "m.de.gz", gzip.compress(("\n".join(german) + "\n").encode()))
    paths = [
        written(tmp_path / "a.tsv", tsv),
        written(tmp_path / "b.tsv.gz", gzip.compress(tsv.encode())),
        written(tmp_path / "c.jsonl", jsonl),
        written(tmp_path / "d.jsonl.gz", gzip.compress(jsonl.encode())),
        tmp_path / "m",
    ]
    for path in paths:
        text = load(path, open_test=True)
        assert text.columns == {"en": english, "de": ["ein Haus", None, "ein Hund"]}, path
        assert text.documents == ("rows-000000",) * 3


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path):
    path = written(tmp_path / "x.tsv", b"\xef\xbb\xbfen\tde\r\na\tb c\r\n")
    assert load(path, open_test=True).columns == {"en": ["a"], "de": ["b c"]}


def test_tags_are_read_in_any_casing(tmp_path):
    assert load(written(tmp_path / "x.tsv", "EN\tpt_br\na\tb\n"), open_test=True).languages == ("en", "pt-BR")


def test_rows_of_json_may_lack_a_language(tmp_path):
    path = written(tmp_path / "x.jsonl", '{"en": "a", "key": "k1"}\n{"de": "b", "en": "c", "key": "k2"}\n')
    text = load(path, open_test=True)
    assert text.columns == {"en": ["a", "c"], "de": [None, "b"]}
    assert text.keys == ("k1", "k2")


FAULTS = {
    "empty": ("x.tsv", b"", "is empty; give a file with text"),
    "blank": ("x.tsv", b" \n\n", "is empty"),
    "no rows": ("x.tsv", b"en\tde\n", "has a header but no rows"),
    "utf-8": ("x.tsv", b"en\tde\na\tb\nc\t\xff\nd\te\nf\xfe\tg\n", "not valid UTF-8 in lines 3, 5; convert it"),
    "few columns": (
        "x.tsv",
        b"en\tde\tfr\na\tb\tc\nd\te\nf\tg\th\ti\n",
        "2 of 3 rows have not the 3 columns of the header but 2, 4: lines 3, 4; a missing translation is an empty cell",
    ),
    "many bad rows": ("x.tsv", b"en\tde\n" + b"a\n" * 9, "9 of 9 rows have not the 2 columns of the header but 1: "
                      "lines 2, 3, 4, 5, 6 and 4 more"),
    "same column": ("x.tsv", b"en\tde\ten\na\tb\tc\n", "column en appears more than once"),
    "same column otherwise written": ("x.tsv", b"en\tpt-BR\tpt_br\na\tb\tc\n", "column pt-BR appears more than once"),
    "no languages": ("x.tsv", b"key\tsplit\na\ttrain\n", "has no language columns"),
    "no tag": ("x.tsv", b"en\tgerman\na\tb\n", "'german' is not a BCP-47 language tag .* did you mean de"),
    "column in capitals": ("x.tsv", b"Document\ten\na\tb\n", "are languages, so write Document as document"),
    "column that looks like a tag": ("x.tsv", b"Key\ten\na\tb\n", "so write Key as key"),
    "document on some rows": ("x.tsv", b"document\tkey\ten\nd\tk\ta\n\tl\tb\nd\t \tc\n",
                              "no key in line 4; no document in line 3; give it on every row, or leave the column out"),
    "half a character": ("x.jsonl", b'{"en": "a"}\n{"en": "\\ud83d"}\n', r"line 2 hold no .* half characters"),
    "bad JSON": ("x.jsonl", b'{"en": "a"}\n{"en": \n["en"]\n{"en": 3}\n', "lines 2, 3, 4 hold no JSON object of texts"),
    "document on some": ("x.jsonl", b'{"en": "a", "document": "d"}\n{"en": "b"}\n',
                         "document is given on some rows but not on line 2"),
    "blank document": ("x.jsonl", b'{"en": "a", "document": "d"}\n{"en": "b", "document": " "}\n',
                       "document is given on some rows but not on line 2"),
    "unknown format": ("x.csv", b"en,de\n", "cannot tell the format of .*x.csv"),
    "cut gzip": ("x.tsv.gz", gzip.compress(b"en\tde\na\tb\n")[:-9], "cannot read .*x.tsv.gz"),
    "no gzip": ("x.tsv.gz", b"en\tde\n", "cannot read .*x.tsv.gz"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), FAULTS.values(), ids=FAULTS)
def test_every_fault_has_its_sentence(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        load(written(tmp_path / name, data))


def test_a_missing_file_says_what_a_corpus_is(tmp_path):
    for path in (tmp_path / "none.tsv", tmp_path / "no" / "where", tmp_path):
        with pytest.raises(DataError, match=r"there is no corpus at .*; give a \.tsv or \.jsonl"):
            load(path)


def test_moses_files_of_different_length_are_counted(tmp_path):
    written(tmp_path / "m.en", "a\nb\n")
    written(tmp_path / "m.de", "c\n")
    with pytest.raises(DataError, match=r"differ in length \(m.de 1, m.en 2 lines\); line n must match line n"):
        load(tmp_path / "m")


def test_files_that_are_no_languages_are_no_sisters(tmp_path):
    for name in ("m.en", "m.de", "m.log", "m.csv", "m.txt", "mx.fr", "m.notes.md"):
        written(tmp_path / name, "a\n")
    assert load(tmp_path / "m", open_test=True).languages == ("de", "en")
