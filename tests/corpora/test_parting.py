"""Where two texts part: lines cut from the built-in corpus at known places."""

import random

import pytest

from dragoman.corpora.pack import load_pack
from dragoman.corpora.parting import first_parting, refuse_untranslated, require_same_length
from dragoman.errors import DataError


@pytest.fixture(scope="module")
def columns():
    return load_pack().select(["en", "de", "zh"], "devtest", complete=True).columns


@pytest.mark.parametrize("language", ["de", "zh"])
@pytest.mark.parametrize("lost", [1, 3])
def test_a_cut_is_found_across_languages(columns, language, lost):
    """Within a few lines: neighbours of the same length and without names look alike."""
    for seed in range(3):
        at = random.Random(seed).randrange(20, 280)
        cut = columns[language][:at] + columns[language][at + lost :]
        assert abs(first_parting(columns["en"], cut) - (at + 1)) <= 6
        assert first_parting(cut, columns["en"]) == first_parting(columns["en"], cut)


def test_the_first_of_two_cuts_is_told(columns):
    text = columns["de"]
    assert first_parting(text, text[:50] + text[51:150] + text[151:]) == 51


def test_by_hand():
    text = [f"line {i} about {i * i}" for i in range(40)]
    assert first_parting(text, text[1:]) == 1
    assert first_parting(text, text[:13] + text[14:]) == 14
    assert first_parting(text, text[:30]) == 31
    assert first_parting(["same"] * 40, ["same"] * 39) is None


WORDS = ["alphabet", "bravado", "charlatan", "deltoid", "echoing", "foxtrot", "golfing", "hotels", "indigo", "juniper"]
LINES = [f"the {word} has text" for word in WORDS]


@pytest.mark.parametrize("lost", [0, 1, 4, 8])
def test_a_line_lost_from_a_short_text_is_found(lost):
    shorter = LINES[:lost] + LINES[lost + 1 :]
    assert first_parting(shorter, LINES) == first_parting(LINES, shorter) == lost + 1


def test_two_lines_put_into_a_short_text_are_found():
    assert first_parting([*LINES[:5], "something", "else", *LINES[5:]], LINES) == 6


def test_messages():
    text = [f"line {i} about {i * i}" for i in range(40)]
    with pytest.raises(DataError, match=r"a has 40 lines and b 30.*match up to line 30, where b ends"):
        require_same_length(text, text[:30], "a", "b")
    with pytest.raises(DataError, match="where they part is not clear"):
        require_same_length(["same"] * 5, ["same"] * 4, "a", "b")
    with pytest.raises(DataError, match="b has no text"):
        require_same_length(["x"], [" "], "a", "b")
    require_same_length(text, text, "a", "b")


def test_an_untranslated_test_set_is_refused():
    with pytest.raises(DataError, match="all 2 references of x are equal to their sources"):
        refuse_untranslated(["a", "b "], ["a", "b"], "x")
    refuse_untranslated(["a", "b"], ["a", "c"], "x")
