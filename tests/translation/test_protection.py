"""Protection: what is masked, and each way in which an answer can lose it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.translation.formats.base import Part, merged
from dragoman.translation.protection import marked, mask, unmarked, unmask

BOLD = [Part("Save "), Part("**", "open"), Part("all"), Part("**", "close"), Part(" to {path}")]


def test_by_hand():
    masked = mask(BOLD)
    assert masked.text == "Save {1}all{2} to {3}"
    parts, faults = unmask(masked, " A { 3 } desa {1}tot{2} ")
    assert not faults
    assert [p.text for p in parts] == ["A {path} desa ", "**", "tot", "**"]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("Desa {1}tot{2}", "lost: '{path}'"),
        ("Desa {1}tot{2} a {3} {3}", "more than once: '{path}'"),
        ("Desa {1}tot{2} a {3} {4}", "invented: '{4}'"),
        ("Desa {1}tot{2} a {3} %s", "invented: '%s'"),
        ("Desa {1}tot{2} a {3} o }", "invented: '}'"),
        ("Desa {2}tot{1} a {3}", "out of place: '**'"),
        ("Desa {1}tot{2}\na {3}", "more than one line"),
        ("{1}{2}{3}", "no text"),
    ],
)
def test_what_is_wrong_is_said(answer, fault):
    assert any(fault in f for f in unmask(mask(BOLD), answer)[1])


@pytest.mark.parametrize(
    ("text", "masked", "pieces"),
    [
        ("Go to https://a.b/c?d=e. Now", "Go to {1}. Now", ["https://a.b/c?d=e"]),
        ("Mail a.b@c.de or $1, ${x}, %(n)s", "Mail {1} or {2}, {3}, {4}", ["a.b@c.de", "$1", "${x}", "%(n)s"]),
        ("On {d, date, short}", "On {1}", ["{d, date, short}"]),
        (
            "See {n, plural, one {# file} other {{x} files}} now",
            "See {1}{2} file{3}{4} files{5} now",
            ["{n, plural, one {", "#", "} other {", "{x}", "}}"],
        ),
        ("%{n} of #{all}, $t(a.b) {% t %}", "{1} of {2}, {3} {4}", ["%{n}", "#{all}", "$t(a.b)", "{% t %}"]),
        ("One\n  two", "One{1}two", ["\n  "]),
        ("See https://a.b/c_(d). And (www.a.b/c)", "See {1}. And ({2})", ["https://a.b/c_(d)", "www.a.b/c"]),
        ("  in { 7 } rows ", "in {1} rows", ["{ 7 }"]),
        ("50 % of {", "50 % of {", []),
        ("Copied %L1 of %2, %1", "Copied {1} of {2}, {3}", ["%L1", "%2", "%1"]),
        ("Fiyatlar %20 arttı, 5 %1", "Fiyatlar %20 arttı, 5 %1", []),
        ("\\frac{ a }{ b }, p { color:red }", "\\frac{ a }{ b }, p { color:red }", []),
    ],
)
def test_placeholders_by_hand(text, masked, pieces):
    found = mask([Part(text)])
    assert (found.text, [p.text for p in found.pieces]) == (masked, pieces)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("<b>", "</b>", "value"),
        ('<a href="x">', "</a>", "value"),
        ('<bpt i="1">{</bpt>', '<ept i="1">}</ept>', "alone"),
        ('<bx id="1"/>', '<ex id="1"/>', "alone"),
        ('<sc id="a"/>', '<ec startRef="a"/>', "alone"),
    ],
)
def test_what_opens_stands_before_what_closes(first, second, kind):
    """Whatever the format: tags in PO and JSON, codes in XLIFF and TMX."""
    masked = mask([Part("Press "), Part(first, kind), Part("Save"), Part(second, kind), Part(" now <br> or <b>")])
    assert unmask(masked, "Ara {1}desa{2} o {4} {3}")[1] == [], "what has no partner may move"
    assert unmask(masked, "Ara {2}desa{1} o {3} {4}")[1] == [f"out of place: {second!r}"]


def test_pairs_stay_nested_where_they_are_values():
    masked = mask([Part("A <b>b <i>c</i></b> d")])
    assert masked.text == "A {1}b {2}c{3}{4} d"
    assert unmask(masked, "{1}b {2}c{3}{4} d")[1] == []
    assert unmask(masked, "{1}b {2}c{4}{3} d")[1] == ["out of place: '</b>'"]


def test_tags_with_one_text_are_one_as_good_as_the_other():
    masked = mask([Part("<b>x</b> and <b>y</b>, then z")])
    assert unmask(masked, "{1}x{4} i {3}y{2}, z")[1] == []
    assert unmask(masked, "{2}x{4} i {3}y{1}, z")[1] == ["out of place: '</b>'"]


def test_a_percentage_may_have_its_sign_in_front():
    assert unmask(mask([Part("Save 50% on all orders")]), "Tüm siparişlerde %50 indirim")[1] == []


@pytest.mark.parametrize("sign", ["\ufffd", "\x07", "\uffff"])
def test_signs_that_no_file_can_hold_are_a_fault(sign):
    assert unmask(mask([Part("Hello")]), f"Ho{sign}la")[1] == [f"signs that are no text: {sign!a}"]
    assert unmask(mask([Part(f"Hel{sign}lo")]), f"Ho{sign}la")[1] == []


@pytest.mark.parametrize(
    ("source", "translation", "expected"),
    [
        ("Save %s in {name}", "In {name} %s sichern", "In {2} {1} sichern"),
        ("From {1} to {0}", "Von {1} bis {0}", "Von {1} bis {2}"),
        ("Save %s and %s2", "%s2 und %s", None),  # the second piece is %s too
        ("Save %s", "Sichern", None),
        ("Save %s", "%s und %s", None),
        ("Save", "Sichern", "Sichern"),
    ],
)
def test_a_translation_from_elsewhere_gets_its_marks(source, translation, expected):
    masked = mask([Part(source)])
    assert unmarked(masked, masked.text) == source
    assert marked(masked, translation) == expected
    assert expected is None or unmarked(masked, expected) == translation


def test_the_frame_of_a_message_keeps_its_order():
    masked = mask([Part("{n, plural, one {a file} other {files}}")])
    assert unmask(masked, "{1}un fitxer{2}fitxers{3}")[1] == []
    assert "changed places" in unmask(masked, "{2}fitxers{1}un fitxer{3}")[1][0]


@given(st.text(), st.text())
def test_the_source_is_a_translation_of_itself(before, inside):
    parts = [Part(before), Part("<b>", "open"), Part(f"a{inside}"), Part("</b>", "close"), Part(" %s")]
    masked = mask(parts)
    found, faults = unmask(masked, masked.text)
    assert faults == []
    assert found == merged(parts)
