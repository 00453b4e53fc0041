"""Published layouts of test sets, on small made files; every fault with file and line."""

import gzip
import json
import shutil

import pytest

from dragoman.corpora.choices import Choice, read_choices
from dragoman.corpora.codes import SHORT, tag_of, tags_of
from dragoman.corpora.languages import TABLE
from dragoman.corpora.testsets import open_test_set
from dragoman.errors import DataError

EN = ["The cat sleeps.", "It rained on 3 May.", "Nobody came.", "We waited for 20 minutes."]
CA = ["El gat dorm.", "Va ploure el 3 de maig.", "No va venir ningú.", "Vam esperar 20 minuts."]
ZH = [f"第{n}句話。" for n in "一二三四"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(content) + "\n" if isinstance(content, list) else content
    path.write_text(text, encoding="utf-8")
    return path


def rows(text):
    return list(zip(text.documents, *(text.columns[g] for g in text.languages), strict=True))


# Codes


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("eng_Latn", "en"),
        ("cat_Latn", "ca"),
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("arb_Arab", "ar"),
        ("arb_Latn", "ar-Latn"),
        ("kas_Deva", "ks-Deva"),
        ("kor_Hang", "ko"),
        ("srp_Cyrl", "sr"),
        ("yue_Hant", "yue"),
        ("zho-CN", "zh"),
        ("zho-TW", "zh-TW"),
        ("por-BR", "pt-BR"),
        ("ltg_Latn", "ltg-Latn"),
        ("de", "de"),
    ],
)
def test_codes_by_hand(code, tag):
    assert tag_of(code) == tag


def test_a_region_goes_where_no_other_column_has_the_language():
    assert tags_of(["en", "cs_CZ"]) == ["en", "cs"]
    assert tags_of(["eng-GB", "eng-US", "por", "por-BR", "spa-MX"]) == ["en-GB", "en-US", "pt", "pt-BR", "es"]


def test_every_short_code_of_the_language_table_has_a_long_one():
    """639-1 codes are two letters long; the table's own rows are the check that the list was not mistyped."""
    absent = {tag for tag in TABLE if len(tag) == 2} - set(SHORT.values())
    assert absent == set()
    assert all(len(long) == 3 and len(short) == 2 for long, short in SHORT.items())


# Moses


def test_two_plain_files(tmp_path):
    files = [write(tmp_path / "a.txt", EN), write(tmp_path / "b.txt", CA)]
    text = open_test_set(*files, languages=("en", "ca"))
    assert rows(text) == [("text", *pair) for pair in zip(EN, CA, strict=True)]
    assert set(text.splits) == {"devtest"}
    assert text.about["checksum"] == text.checksum()


def test_files_of_different_length_are_refused_with_the_place(tmp_path):
    many = [f"{source} number {i} {i * i}" for i in range(10) for source in EN]
    files = [write(tmp_path / "a.txt", many), write(tmp_path / "b.txt", many[:17] + many[18:])]
    with pytest.raises(DataError, match=r"a.txt has 40 lines and .*b.txt 39.*part near line 18: .*b.txt has belongs"):
        open_test_set(*files, languages=("en", "ca"))


@pytest.mark.parametrize("content", ["", "\n\n\n\n"])
def test_an_empty_file_is_named(tmp_path, content):
    files = [write(tmp_path / "a.txt", EN), write(tmp_path / "b.txt", content)]
    with pytest.raises(DataError, match=r"b.txt is empty"):
        open_test_set(*files, languages=("en", "ca"))


def test_two_files_without_languages(tmp_path):
    with pytest.raises(DataError, match="one direction"):
        open_test_set(tmp_path / "a", tmp_path / "b")


# Tables


def test_a_table_without_splits_is_held_out_as_a_whole(tmp_path):
    path = write(tmp_path / "t.tsv", ["en\tca", *map("\t".join, zip(EN, CA, strict=True))])
    text = open_test_set(path)
    assert len(text) == 4
    assert set(text.splits) == {"devtest"}


def test_the_sealed_split_of_a_table_stays_sealed(tmp_path):
    lines = [
        f"{d}\t{s}\t{e}\t{c}" for d, s, e, c in zip("aabc", ["dev", "dev", "devtest", "test"], EN, CA, strict=True)
    ]
    text = open_test_set(write(tmp_path / "t.tsv", ["document\tsplit\ten\tca", *lines]))
    assert text.splits == ("dev", "dev", "devtest")
    assert EN[3] not in text.columns["en"]


def test_moses_by_prefix(tmp_path):
    write(tmp_path / "news.en", EN)
    write(tmp_path / "news.ca", CA)
    assert open_test_set(tmp_path / "news").languages == ("ca", "en")


# TMX

TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en-US"/>
<body>
<tu><prop type="x-document">guide.odt</prop>
<tuv xml:lang="en-US"><seg>Press <ph>{0}</ph>the <bpt>&lt;b&gt;</bpt><hi>red</hi><ept>&lt;/b&gt;</ept> key.</seg></tuv>
<tuv xml:lang="ca"><seg>Premeu la tecla vermella.</seg></tuv></tu>
<tu><tuv lang="en-US"><seg>Yes &amp; no</seg></tuv><tuv xml:lang="de-DE"><seg>Ja &amp; nein</seg></tuv></tu>
</body></tmx>
"""


@pytest.mark.parametrize("packed", [False, True])
def test_tmx_by_hand(tmp_path, packed):
    path = write(tmp_path / "m.tmx", TMX)
    if packed:
        path = tmp_path / "m.tmx.gz"
        path.write_bytes(gzip.compress(TMX.encode()))
    text = open_test_set(path)
    assert text.languages == ("en", "ca", "de")
    assert rows(text) == [
        ("guide.odt", "Press the red key.", "Premeu la tecla vermella.", None),
        ("text", "Yes & no", None, "Ja & nein"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("</tu>\n<tu>", "<tu>"), r"m.tmx: not well-formed XML at line \d+"),
        (('<tuv lang="en-US">', "<tuv>"), r"m.tmx: <tuv> without xml:lang or <seg> on 1 lines, such as 8"),
        (("<tmx ", "<xliff "), "no TMX: its outer element is <xliff>"),
        ((TMX, ""), "m.tmx is empty"),
        (('xml:lang="ca"', 'xml:lang="???"'), r"\?\?\?"),
    ],
)
def test_faults_of_a_tmx(tmp_path, change, message):
    path = write(
        tmp_path / "m.tmx", TMX.replace(*change).replace("</tmx>", "</xliff>" if "xliff" in change[1] else "</tmx>")
    )
    with pytest.raises(DataError, match=message):
        open_test_set(path)


# WMT

WMT = """<?xml version='1.0' encoding='utf-8'?>
<dataset id="wmttest"><collection id="general">
<doc id="news.1" origlang="en">
<src lang="en"><p><seg id="1">The cat sleeps.</seg><seg id="2">Nobody came.</seg></p></src>
<ref lang="de" translator="B"><p><seg id="1">Die Katze schläft.</seg><seg id="2">Niemand kam.</seg></p></ref>
<ref lang="de" translator="A"><p><seg id="1">x</seg><seg id="2">y</seg></p></ref>
<hyp lang="de" system="S"><p><seg id="1">z</seg><seg id="2">z</seg></p></hyp></doc>
<doc id="news.2" origlang="en"><src lang="en"><p><seg id="1">Rain.</seg></p></src>
<ref lang="de" translator="B"><p><seg id="1">Regen.</seg></p></ref></doc>
<doc id="suite" testsuite="t" origlang="en"><src lang="en"><p><seg id="1">no</seg></p></src></doc>
</collection></dataset>
"""


def test_wmt_xml_by_hand(tmp_path):
    text = open_test_set(write(tmp_path / "wmt.xml", WMT))
    assert rows(text) == [
        ("news.1", "The cat sleeps.", "Die Katze schläft."),
        ("news.1", "Nobody came.", "Niemand kam."),
        ("news.2", "Rain.", "Regen."),
    ]
    assert text.about["references"] == ["B", "A"]


def test_wmt_xml_agrees_with_sacrebleu(tmp_path):
    from sacrebleu.dataset.wmt_xml import WMTXMLDataset

    path = write(tmp_path / "wmt.xml", WMT)
    theirs = WMTXMLDataset._unwrap_wmt21_or_later(str(path))
    ours = open_test_set(path)
    assert (ours.columns["en"], ours.columns["de"]) == (theirs["src"], theirs["ref:B"])
    assert list(ours.documents) == theirs["docid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("</collection>", ""), r"not well-formed XML at line 11"),
        ((' testsuite="t"', ""), r"no reference in 1 documents, such as suite \(line 10\)"),
        (('<src lang="en"><p><seg id="1">Rain', '<src lang="fr"><p><seg id="1">Rain'), r"<src>.*\['en', 'fr'\]"),
    ],
)
def test_faults_of_wmt_xml(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        open_test_set(write(tmp_path / "wmt.xml", WMT.replace(*change)))


def wmt_lines(**changes):
    common = {"lp": "en-cs_CZ", "domain": "news", "is_bad_source": False}
    return [
        json.dumps(common | {"document_id": d, "segment_id": i, "source": s, "target": t} | (changes if i == 1 else {}))
        for i, (d, s, t) in enumerate([("d1", "Rain.", "Déšť."), ("d1", "No.", "Ne."), ("d2", "Sun.", "Slunce.")])
    ]


def test_wmt_jsonl_by_hand(tmp_path):
    text = open_test_set(write(tmp_path / "en-cs_CZ.jsonl", wmt_lines(is_bad_source=True)))
    assert text.languages == ("en", "cs")
    assert rows(text) == [("d1", "Rain.", "Déšť."), ("d2", "Sun.", "Slunce.")]
    assert text.about["bad_sources_left_out"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lp": "en-de_DE"}, r"several directions \(en-cs_CZ from line 1, en-de_DE from line 2\)"),
        ({"source": None}, "line 2 is no row of a WMT test set"),
        ({"lp": None}, "line 2 is no row"),
    ],
)
def test_faults_of_wmt_jsonl(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        open_test_set(write(tmp_path / "w.jsonl", wmt_lines(**changes)))


# FLORES


def flores_200(folder):
    for split, part in (("dev", slice(0, 2)), ("devtest", slice(1, 4))):
        write(folder / split / f"eng_Latn.{split}", EN[part])
        write(folder / split / f"cat_Latn.{split}", CA[part])
    write(folder / "metadata_devtest.tsv", ["URL\tdomain", "u/1\tnews", "u/1\tnews", "u/2\tnews"])
    return folder


def test_flores_200_by_hand(tmp_path):
    text = open_test_set(flores_200(tmp_path))
    assert text.languages == ("ca", "en")
    assert rows(text.select(["en", "ca"], "devtest")) == [
        ("devtest/u/1", EN[1], CA[1]),
        ("devtest/u/1", EN[2], CA[2]),
        ("devtest/u/2", EN[3], CA[3]),
    ]
    assert text.select(["en"], "dev").documents == ("dev", "dev")


def test_flores_plus_by_hand(tmp_path):
    for split in ("dev", "devtest"):
        for code, texts in (("eng_Latn", EN), ("zho_Hant", ZH)):
            lines = [json.dumps({"id": i, "text": t, "url": f"w/{i // 2}"}) for i, t in enumerate(texts)]
            write(tmp_path / split / f"{code}.jsonl", lines)
    text = open_test_set(tmp_path).select(["en", "zh-Hant"], "devtest")
    assert rows(text)[2] == ("devtest/w/1", EN[2], ZH[2])


def test_faults_of_flores(tmp_path):
    folder = flores_200(tmp_path / "f")
    write(folder / "devtest" / "cat_Latn.devtest", CA)
    with pytest.raises(DataError, match=r"cat_Latn.devtest has 4 lines and .*eng_Latn.devtest 3"):
        open_test_set(folder)
    shutil.rmtree(folder)
    write(flores_200(folder) / "metadata_devtest.tsv", ["URL", "u"])
    with pytest.raises(DataError, match=r"metadata_devtest.tsv has not one line .* for each of the 3 segments"):
        open_test_set(folder)
    with pytest.raises(DataError, match="holds no test set: neither dev and devtest"):
        open_test_set(tmp_path)
    write(tmp_path / "g" / "devtest" / "eng_Latn.jsonl", ['{"text": "a"}', '{"sentence": "b"}'])
    with pytest.raises(DataError, match=r"eng_Latn.jsonl: line 2 is no row of FLORES\+"):
        open_test_set(tmp_path / "g")
    write(flores_200(tmp_path / "h") / "dev" / "eng_Latn.jsonl", [json.dumps({"text": t}) for t in EN[:2]])
    with pytest.raises(DataError, match=r"one language \(en: \S+/eng_Latn.dev, \S+/eng_Latn.jsonl\); keep one of each"):
        open_test_set(tmp_path / "h")


# NTREX


def test_ntrex_by_hand(tmp_path):
    folder = tmp_path / "NTREX-128"
    write(folder / "newstest2019-src.eng.txt", EN)
    write(folder / "newstest2019-ref.cat.txt", CA)
    write(folder / "newstest2019-ref.zho-TW.txt", ZH)
    write(folder / "newstest2019-ref-2.cat.txt", EN)
    write(tmp_path / "DOCUMENT_IDS.tsv", ["bbc.1", "bbc.1", "rt.2", "rt.2"])
    text = open_test_set(tmp_path)
    assert set(text.languages) == {"en", "ca", "zh-TW"}
    assert text.columns["ca"] == CA
    assert text.documents == ("bbc.1", "bbc.1", "rt.2", "rt.2")
    assert len(open_test_set(folder)) == 4
    write(tmp_path / "DOCUMENT_IDS.tsv", ["bbc.1"])
    with pytest.raises(DataError, match=r"DOCUMENT_IDS.tsv names 1 documents.*there are 4 segments"):
        open_test_set(tmp_path)


def test_an_unknown_layout_is_told_what_there_is(tmp_path):
    with pytest.raises(DataError, match=r"cannot tell the layout of .*x.docx; a test set is a folder of FLORES"):
        open_test_set(write(tmp_path / "x.docx", "x"))


# Multiple choice

ITEM = {
    "link": "w/1",
    "question_number": 1,
    "flores_passage": "The cat sleeps.",
    "question": "Who sleeps?",
    "mc_answer1": "dog",
    "mc_answer2": "cat",
    "mc_answer3": "cow",
    "mc_answer4": "hen",
    "correct_answer_num": "2",
}


def test_belebele_by_hand(tmp_path):
    write(tmp_path / "eng_Latn.jsonl", [json.dumps(ITEM)])
    write(tmp_path / "cat_Latn.jsonl", [json.dumps(ITEM | {"correct_answer_num": 4})])
    found = read_choices(tmp_path)
    assert found["en"] == [
        Choice("w/1#1#1", "w/1", "The cat sleeps.\nWho sleeps?\n", ("dog", "cat", "cow", "hen"), answer=1)
    ]
    assert found["ca"][0].answer == 3


def test_multiblimp_by_hand(tmp_path):
    lines = ["sen\twrong_sen\tphenomenon", "Ella canta.\tElla canten.\tSV-#", "Jo vinc.\tJo vens.\tSV-P"]
    write(tmp_path / "cat" / "data.tsv", lines)
    found = read_choices(tmp_path)
    assert list(found) == ["ca"]
    assert [(c.context, c.options, c.answer, c.document) for c in found["ca"]] == [
        ("", ("Ella canta.", "Ella canten."), 0, "data#2"),
        ("", ("Jo vinc.", "Jo vens."), 0, "data#3"),
    ]
    assert read_choices(tmp_path / "cat" / "data.tsv") == found


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("en.jsonl", [json.dumps(ITEM), "{}"], "en.jsonl: line 2 has no flores_passage, question"),
        ("en.jsonl", [json.dumps(ITEM | {"correct_answer_num": 5})], "line 1 has the answer '5'"),
        ("en.tsv", ["sen\tgood", "a\tb"], "en.tsv: line 2 has no wrong_sen"),
        ("en.tsv", ["sen\twrong_sen", "a\tb", "c\tc"], "line 3 has the same sentence"),
        ("en.tsv", ["sen\twrong_sen", "a\tb", '"c d\t"e f', "g\th"], "not well-formed behind line 2"),
        ("en.tsv", ["sen\twrong_sen\tkind", 'a\tb\t', '"c\td"\te'], "line 3 has not the columns of the header"),
        ("en.docx", ["x"], "cannot tell the layout of"),
    ],
)
def test_faults_of_multiple_choice(tmp_path, name, lines, message):
    with pytest.raises(DataError, match=message):
        read_choices(write(tmp_path / name, lines))


def test_two_files_of_one_language_are_refused(tmp_path):
    for name in ("en", "eng_Latn"):
        write(tmp_path / f"{name}.jsonl", [json.dumps(ITEM)])
    with pytest.raises(DataError, match=r"of one language \(en: \S+/en.jsonl, \S+/eng_Latn.jsonl\); keep one of each"):
        read_choices(tmp_path)


def test_no_items_at_all(tmp_path):
    with pytest.raises(DataError, match="no multiple-choice items"):
        read_choices(tmp_path)


def test_a_column_of_names_is_no_language_of_a_test_set(tmp_path):
    (tmp_path / "x.tsv").write_text("id\ten\n" + "".join(f"seg-{i}\ta house\n" for i in range(12)))
    with pytest.raises(DataError, match="column id holds names such as 'seg-0'"):
        open_test_set(tmp_path / "x.tsv")
