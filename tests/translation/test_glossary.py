"""Glossaries: files, matching, overlap, conflicts."""

import pytest

from dragoman.errors import DataError
from dragoman.translation.glossary import Glossary, Term


def glossary(pairs, source="en", target="de"):
    return Glossary([Term(s, tuple(t.split("|"))) for s, t in pairs.items()], source, target)


@pytest.mark.parametrize(
    ("source", "terms", "text", "found"),
    [
        ("en", ["table", "pivot table"], "Two Pivot Tables and a table", ["pivot table", "table"]),
        ("en", ["pivot table", "table row"], "pivot table row", ["pivot table"]),  # as long: the first in the text
        ("en", ["file"], "filenames, profile", []),
        ("en", ["IT", "it"], "IT loves it", ["IT", "it"]),
        ("en", ["US"], "let us go", []),
        ("de", ["Zelle"], "in den Zellen; Zellbereich", ["Zelle"]),  # -bereich is longer than an ending
        ("fi", ["talo"], "taloissamme", ["talo"]),
        ("en", ["talo"], "taloissamme", []),
        ("cs", ["soubor"], "bez souborů", ["soubor"]),
        ("ru", ["ячейка"], "в ячейках", ["ячейка"]),
        ("tr", ["dosya"], "dosyalarınız", ["dosya"]),
        ("vi", ["tệp"], "tệps", []),
        ("zh", ["单元", "单元格"], "选择单元格", ["单元格"]),
        ("ja", ["ファイル"], "このファイルを開く", ["ファイル"]),
        ("th", ["ไฟล์"], "เปิดไฟล์นี้", ["ไฟล์"]),
        ("zh", ["单元格", "文件"], "打开单元格A1，2文件b", ["单元格", "文件"]),
        ("ja", ["Web ページ"], "この Web ページ を開く", ["Web ページ"]),
        ("ja", ["Web ページ"], "新Web ページ", ["Web ページ"]),
        ("en", ["cafe\u0301"], "the café", ["cafe\u0301"]),
        ("en", ["C++"], "in C++.", ["C++"]),
        ("en", ["C", "C++", "C#", ".NET"], "C# or C++ on .NET", ["C#", "C++", ".NET"]),
        ("en", ["C", "Ctrl"], "press Ctrl+C, not C", ["Ctrl", "C", "C"]),
        ("en", ["Visual C++®", "(C#)"], "visual C++ and C#", ["Visual C++®", "(C#)"]),
        ("en", ["Save As..."], "in Save As you", ["Save As..."]),
        ("en", ["a"], "b", []),
    ],
)
def test_matching_by_hand(source, terms, text, found):
    assert [t.source for t in glossary(dict.fromkeys(terms, "x"), source).found(text)] == found


def test_missing_terms():
    terms = glossary({"cell": "Zelle", "screen": "Bildschirm|Monitor", "cell range": "Zellbereich"})
    assert terms.missing("The cells on a screen", "Die Zellen auf einem Monitor") == []
    assert [t.source for t in terms.missing("The cells on a screen", "Die Felder")] == ["cell", "screen"]
    assert [t.source for t in terms.missing("A cell beside a cell", "Eine Zelle")] == ["cell"], "once for twice"
    assert terms.missing("A cell range", "Ein Zellbereich") == []
    assert terms.terms[1].pair.target == "Bildschirm"
    variants = glossary({"cell": "Zelle|Zellen|ZELLE"})
    assert [t.source for t in variants.missing("cell and cell", "nur Zellen")] == ["cell"], "one word is one"
    assert [t.source for t in variants.missing("cell and cell", "ZELLE")] == ["cell"], "in capitals too"
    assert variants.missing("cell and cell", "Zelle, Zellen") == []
    assert glossary({"computing": "IT|Informatik"}).missing("computing, computing", "IT, Informatik") == []


def test_the_index_finds_what_every_pattern_finds():
    """Against a search of each term on its own."""
    names = [f"{a}{b}" for a in ("tab", "tabu", "s", "se", "set", "x-", "ab ", "r2") for b in ("le", "lar", "t", "s")]
    text = "Tables, tabular sets; x-les r2t ab les seles ses tabut xs abs".lower()
    alone = {n for n in names if glossary({n: "y"}).found(text)}
    every = {t.source for n in names for t in glossary(dict.fromkeys([n, "zzz", "table of"], "y")).found(text)}
    assert every == alone and 5 < len(alone) < len(names)


TBX = """<?xml version="1.0"?><martif type="TBX" xml:lang="en"><text><body>
<termEntry id="1">
 <langSet xml:lang="en"><tig><term>cell</term></tig></langSet>
 <langSet xml:lang="de-DE"><tig><term>Feld</term>
 <termNote type="administrativeStatus">deprecatedTerm-admn-sts</termNote></tig>
 <tig><term>Zelle</term></tig></langSet></termEntry>
<termEntry id="2"><langSet xml:lang="en"><ntig><termGrp><term>row</term></termGrp></ntig></langSet></termEntry>
</body></text></martif>"""
TBX3 = """<tbx xmlns="urn:iso:std:iso:30042:ed-2" type="TBX-Core" xml:lang="en"><text><body>
<conceptEntry id="1"><langSec xml:lang="en"><termSec><term>screen</term></termSec></langSec>
<langSec xml:lang="de"><termSec><term>Bildschirm</term></termSec><termSec><term>Monitor</term></termSec></langSec>
</conceptEntry></body></text></tbx>"""


def test_files(tmp_path):
    def load(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return Glossary.load(tmp_path / name, "en", "de").terms

    assert load("a.tsv", "en\tde\tnote\ncell\tZelle\tn\nscreen\tBildschirm | Monitor\t\n") == (
        Term("cell", ("Zelle",)),
        Term("screen", ("Bildschirm", "Monitor")),
    )
    assert load("b.csv", '\ufeffde,en\n"Zeile, neue","row, new"\n') == (Term("row, new", ("Zeile, neue",)),)
    assert load("e.tsv", 'en\tde\n15" screen\tBildschirm\n"cell\tZelle\n') == (
        Term('15" screen', ("Bildschirm",)),
        Term('"cell', ("Zelle",)),
    )
    assert load("c.tbx", TBX) == (Term("cell", ("Zelle",)),)
    assert load("d.tbx", TBX3) == (Term("screen", ("Bildschirm", "Monitor")),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "en\tfr\na\tb\n", "has no column de; its first line has en, fr"),
        ("a.tsv", "en\tde\na\tb\nc\n", "lacks cells on lines 3"),
        ("a.tsv", "en\tde\n\t\n", "has no term in en with a translation into de"),
        ("a.tsv", "en\tde\n...\tx\n", r"term '\.\.\.' has no letter"),
        ("a.tsv", "en\tde\nA\tx\na\ty\n", "1 terms with more than one translation: A: x or y"),
        ("a.csv", 'en,de\n"a' + "b" * 140_000, "cannot be read as a table: field larger than"),
        ("a.txt", "x", "is no glossary"),
        ("a.tbx", "<tbx><", "not well-formed XML"),
        ("a.tbx", "<html/>", "the outer element is <html>"),
        ("a.tbx", '<!DOCTYPE tbx [<!ENTITY a "b">]><tbx>&a;</tbx>', "has a DTD"),
        (
            "a.tsv",
            "en\tde\nCell\tZelle\ncell\tFeld\nrow\tReihe\nrow\tZeile\nrow\tZeile\nIT\tIT\nit\tes\n",
            "2 terms with more than one translation: Cell: Zelle or Feld; row: Reihe or Zeile; keep one",
        ),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        Glossary.load(tmp_path / name, "en", "de")
