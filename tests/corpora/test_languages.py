import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.corpora.languages import (
    TABLE,
    TAG,
    is_tag,
    language,
    listed,
    nearest,
    normalise_tag,
    normalise_tags,
    script_of,
    script_share,
    script_shares,
)
from dragoman.errors import DataError


def test_table_rows_are_sound():
    assert len(TABLE) >= 100
    for tag, (name, scripts, family, _) in TABLE.items():
        assert is_tag(tag), tag
        assert all((name, scripts, family)), tag
    assert len({name for name, *_ in TABLE.values()}) == len(TABLE)


def test_every_label_is_one_that_py3langid_gives():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    labels = set(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
    assert {label for *_, label in TABLE.values() if label} <= labels


@pytest.mark.parametrize(
    ("given", "usual"),
    [("EN", "en"), ("pt_br", "pt-BR"), ("zh-hant-tw", "zh-Hant-TW"), ("sr-LATN", "sr-Latn"), ("ca-valencia",) * 2,
     ("de-1996", "de-1996"), ("es-419", "es-419"), ("en-x-ab-cdef", "en-x-ab-cdef"), ("xyz", "xyz")],
)  # fmt: skip
def test_tags_get_their_usual_casing(given, usual):
    assert normalise_tag(given) == usual
    assert is_tag(usual)


@pytest.mark.parametrize(
    ("given", "hint"),
    [("german", "de (German)"), ("English", "en (English)"), ("catalan_text", "ca (Catalan)"), ("1", "known are")],
)
def test_a_malformed_tag_names_the_nearest(given, hint):
    with pytest.raises(DataError, match=re.escape(hint)):
        normalise_tag(given)


def test_all_malformed_tags_come_in_one_message():
    with pytest.raises(DataError, match=r"'comment'.*'german'"):
        normalise_tags(["de", "comment", "en", "german"])


@given(st.from_regex(TAG, fullmatch=True))
def test_normalising_a_tag_twice_changes_nothing(tag):
    assert normalise_tag(normalise_tag(tag)) == normalise_tag(tag)


def test_a_subtag_overrides_the_script_and_unknown_languages_have_none():
    assert language("sr").scripts == ("Cyrillic",)
    assert language("sr-Latn").scripts == ("Latin",)
    assert language("qqq").scripts == ()
    assert language("qqq").name == "qqq"
    assert script_share("qqq", ["any text"]) is None


@pytest.mark.parametrize(
    ("tag", "name"),
    [("zh-Hant", "Chinese (Traditional)"), ("zh-Hans-SG", "Chinese (Simplified, Singapore)"),
     ("pt-AO", "Portuguese (Angola)"), ("sr-Latn", "Serbian (Latin)"), ("pt-PT", "Portuguese (Portugal)"),
     ("es-419", "Spanish (Latin America)"),
     ("en-FJ", "English (FJ)"), ("pa-Guru", "Punjabi (Guru)"), ("ca-valencia", "Catalan"), ("qqq-Latn", "qqq-Latn"),
     ("zh-TW", "Chinese (Taiwan)"), ("pt-BR", "Brazilian Portuguese"), ("zh", "Chinese")],
)  # fmt: skip
def test_a_name_says_script_and_region(tag, name):
    assert language(tag).name == name


def test_nearest_prefers_the_same_language_and_never_lists_hundreds():
    assert nearest("pt", ["de", "pt-BR"]) == "did you mean pt-BR (Brazilian Portuguese)?"
    assert nearest("Chinese", ["de", "zh-Hant"]) == "did you mean zh-Hant (Chinese (Traditional))?"
    assert nearest("uk", ["de", "fr"]) == "known are de, fr"
    assert listed([str(i) for i in range(50)]).endswith("39 and 10 more")


# By hand: "привет world" has 6 Cyrillic and 5 Latin letters; digits, marks and spaces are none.
def test_shares_are_counted_over_letters():
    assert script_shares(["привет", " world 12!"]) == {"Cyrillic": 6 / 11, "Latin": 5 / 11}
    assert script_share("ru", ["привет world"]) == 6 / 11
    assert script_share("ru", ["12 - 7"]) is None
    assert script_share("ja", ["カナとひらがなと漢字 ABC"]) == pytest.approx(10 / 13)


@pytest.mark.parametrize(
    ("letter", "script"),
    [("A", "Latin"), ("Ａ", "Latin"), ("ж", "Cyrillic"), ("漢", "Han"), ("ｶ", "Katakana"), ("한", "Hangul"),
     ("ª", "Latin"), ("µ", "Common"), ("क", "Devanagari"), ("א", "Hebrew"), ("ー", "Katakana")],
)  # fmt: skip
def test_script_of_a_letter(letter, script):
    assert script_of(letter) == script
