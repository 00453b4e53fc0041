from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ConfigError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.kept import Kept, numbers, placeholders


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%s of %d files, %1$s, %-5.2f%%", ["%s", "%d", "%1$s", "%-5.2f", "%%"]),
        ("%(name)s {0} {name} {} {{user}} ${HOME}", ["%(name)s", "{0}", "{name}", "{}", "{{user}}", "${HOME}"]),
        ("Use %PRODUCTNAME and %PRODUCTNAME%.", ["%PRODUCTNAME", "%PRODUCTNAME%"]),
        ('<b>Save</b> <a href="x y">it</a><br/>', ["<b>", "</b>", '<a href="x y">', "</a>", "<br/>"]),
        ("A &amp; B &#160; C\\n", ["&amp;", "&#160;", "\\n"]),
        ("50% of all, a < b > c, 100 %, {not a name}", []),
        ("%sabc and 5%discount", ["%s"]),
        ("5%discount, eine 100 %ige Sache, 50 %de", []),
        ("%<name>s { name } {items[0]} {0!r:>5} { }", ["%<name>s", "{ name }", "{items[0]}", "{0!r:>5}"]),
        ("Fiyatlar %20 arttı, %5; {{ a } and p { color:red }", []),
        ("after %ds, %dx%d, %luMB, %*d, %.*f", ["%d", "%d", "%d", "%lu", "%*d", "%.*f"]),
    ],
)
def test_placeholders_by_hand(text, found):
    assert placeholders(text) == Counter(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,000.5 and 1 000,5 and 1.000,5 and 1000.5", ["1000.5"] * 4),
        ("1,234,567 and 1.234.567 and 1’234’567", ["1234567"] * 3),
        ("1.5 and 1,5 and 15 and 0.05", ["1.5", "1.5", "15", "0.05"]),
        ("1.500 or 1500", ["1500", "1500"]),
        ("on 2002-05-05 at 7:30", ["2002", "5", "5", "7", "30"]),
        ("am 15.1.1990, 15/01/1990", ["15", "1", "1990"] * 2),
        ("version 2.10.3 of 3", ["2", "10", "3", "3"]),
        ("1.2.2024 and 12.11.2024.", ["1", "2", "2024", "12", "11", "2024"]),
        ("see 1, 2, 3.", ["1", "2", "3"]),
        ("in 2020 300 people", ["2020", "300"]),
        ("F4, x64, ١٢٣ and १२", ["4", "64", "123", "12"]),
        ("%1$s {0} <h1>", []),
        ("3\u202f000\u00a0€", ["3000"]),
    ],
)
def test_numbers_by_hand(text, found):
    assert numbers(text) == Counter(found)


def test_sums_by_hand():
    sources = ["Save %s as %s", "Save %s", "no holes", "page 3", "{0}{1}"]
    hypotheses = ["%s: %s speichern", "%d speichern", "keine Löcher", "Seite drei", "{1} {0} {1}"]
    sums_NS = sums_per_segment(Kept("placeholders"), hypotheses, sources=sources)
    assert sums_NS.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 1]]
    assert score(Kept("placeholders"), sums_NS).value == pytest.approx(200 / 3)
    assert score(Kept("placeholders", "lost"), sums_NS).value == pytest.approx(100 / 3)
    assert sums_per_segment(Kept("numbers"), ["Seite drei"], sources=["page 3"]).tolist() == [[1, 1, 0, 1]]


@given(st.text(alphabet="%sd{}0<b>/ 1,.a&;$", max_size=30))
def test_a_text_keeps_what_it_has(text):
    for what in ("placeholders", "numbers"):
        assert Kept(what).segment_sums(text, text)[:3] == [0, 0, 0]


def test_names_and_errors():
    assert Kept("numbers", "invented").name == "numbers invented"
    assert "fault:lost" in Kept("numbers", "lost").signature()
    with pytest.raises(
        ConfigError, match="no check of 'names' for 'any'; choose one of placeholders, numbers and one of"
    ):
        Kept("names")
