import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.terms import TermRecall


@pytest.mark.parametrize(
    ("term", "text", "prefix", "folded", "exact"),
    [
        ("Tabelle", "Die Tabelle ist leer.", 1, 1, 1),
        ("Tabelle", "Alle Tabellen sind leer.", 1, 0, 0),
        ("Tabelle", "die tabelle", 1, 1, 0),
        ("Tabelle", "Tabulator", 0, 0, 0),
        ("Haus", "Die Häuser", 0, 0, 0),  # an umlaut is beyond a shared beginning
        ("file", "filename", 1, 0, 0),  # and a longer word within it
        ("pivot table", "two Pivot Tables here", 1, 0, 0),
        ("pivot table", "pivot the table", 0, 0, 0),
        ("pivot-table", "a pivot table", 1, 1, 1),
        ("ячейка", "выберите ячейки", 1, 0, 0),
        ("单元格", "选择要设置格式的单元格。", 1, 1, 1),
        ("C++", "in C# and C", 0, 0, 0),  # signs of a name belong to it
        ("C++", "in C++, C", 1, 1, 1),
        ("Save As...", "Save As (F4)", 1, 1, 1),  # other punctuation does not
        ("F4", "Press F4", 1, 1, 1),
        ("F4", "Press F40", 0, 0, 0),
        ("an", "and", 0, 0, 0),
    ],
)
def test_matching_by_hand(term, text, prefix, folded, exact):
    found = {match: TermRecall(match).segment_sums(text, [term])[0] for match in ("prefix", "folded", "exact")}
    assert found == {"prefix": prefix, "folded": folded, "exact": exact}


def test_variants_and_repeated_terms():
    metric = TermRecall()
    assert metric.segment_sums("Der Rechner läuft.", [("Computer", "Rechner")]) == [1, 1]
    assert metric.segment_sums("Zelle und Zeile", ["Zelle", "Zelle", "Zeile"]) == [2, 3]
    assert metric.segment_sums("Zelle, Zelle", ["Zelle", "Zelle"]) == [2, 2]


def test_recall_over_segments():
    sums_NS = sums_per_segment(TermRecall(), ["die Zelle", "die Spalte", "nichts"], terms=[["Zelle"], ["Zeile"], []])
    assert sums_NS.tolist() == [[1, 1], [0, 1], [0, 0]]
    ours = score(TermRecall(), sums_NS)
    assert ours.value == 50
    assert ours.signature == "match:prefix|beginning:70%,3|ending:4|capitals:exact|case:folded|unicode:NFC|twice:twice"
    assert "|ending:0|capitals:exact|" in TermRecall(target="vi").signature()
    assert TermRecall("exact").signature() == "match:exact|case:kept|unicode:NFC|twice:twice"


def test_errors():
    with pytest.raises(ConfigError, match="not matched by 'stem'; choose from prefix, folded, exact"):
        TermRecall("stem")
    with pytest.raises(DataError, match=r"required term '\.\.\.' has no letter"):
        TermRecall().segment_sums("text", ["..."])
    with pytest.raises(DataError, match="term recall needs terms"):
        sums_per_segment(TermRecall(), ["text"])


def test_terms_are_matched_as_in_a_glossary():
    """One in capitals in capitals only; endings by the language of the answer."""
    for target, term, text, found in (
        ("en", "IT", "put it here", 0),
        ("en", "IT", "ask IT here", 1),
        ("vi", "cha", "chai", 0),
        ("en", "cha", "chai", 1),
        ("fi", "taulukko", "taulukoissamme", 1),
        ("en", "taulukko", "taulukoissamme", 0),
    ):
        assert TermRecall(target=target).segment_sums(text, [term])[0] == found, (target, term, text)
