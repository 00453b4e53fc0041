"""Matches of terms; evaluation/test_terms.py and translation/test_glossary.py test what is built on them."""

import pytest

from dragoman.corpora.matching import ENDING, ending_of, is_unspaced, term_pattern


@pytest.mark.parametrize(("tag", "letters"), [("fi", 8), ("en-GB", 3), ("vi", 0), ("de", ENDING), ("", ENDING)])
def test_endings_by_language(tag, letters):
    assert ending_of(tag) == letters


def test_the_ending_is_counted_beyond_the_term():
    pattern = term_pattern("talo", "prefix", 8)
    assert pattern.fullmatch("talo" + "x" * 8) and not pattern.fullmatch("talo" + "x" * 9)
    assert term_pattern("talo", "prefix", 0).fullmatch("tali"), "the last 30 % of a term may change"


def test_scripts_without_spaces():
    assert [is_unspaced(text) for text in ("单元", "かな", "ไฟล์", "한국어", "word", "12")] == [True] * 3 + [False] * 3
