import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dragoman.corpora.clean import (
    Rules,
    canonical,
    cell_fault,
    clean,
    english_score,
    near_duplicates,
    shingles,
)
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import from_columns

ENGLISH = "Choose the menu command Insert - Frame to open the dialog."


@pytest.mark.parametrize(
    ("cell", "tag", "fault"),
    [
        ("Wählen Sie Einfügen - Rahmen, um den Dialog zu öffnen.", "de", ""),
        (ENGLISH, "de", "equals_english"),
        (ENGLISH.upper(), "de", "equals_english"),
        (ENGLISH, "en", ""),
        ("3 + 4 = 7", "de", "too_short"),
        ("x + 1", "de", "too_short"),
        ("wort " * 250, "de", "too_long"),
        ("Выберите команду меню.", "de", "other_script"),
        ("Choose this command.", "ru", "other_script"),
        ("Служба LibreOffice Writer", "ru", ""),  # 6 of its 23 letters, 26 %
        ("Choose the menu command Insert to open the old dialog.", "de", "is_english"),
        ("Choose the menu command Insert to open the old dialog.", "qqq", ""),  # nothing is known of that language
    ],
)
def test_rules_on_one_cell(cell, tag, fault):
    rules = Rules(min_script=0.25)
    assert cell_fault(cell, tag, ENGLISH, rules) == fault


def test_near_languages_are_never_taken_for_english():
    slovak = "Vyberte príkaz ponuky Vložiť - Rámec a otvorte dialógové okno."
    assert cell_fault(slovak, "cs", ENGLISH, Rules()) == "", "cs and sk are not told apart, and need not be"
    assert english_score(slovak, language("cs").langid) < 0 < english_score(ENGLISH, language("cs").langid)


def jaccard(a, b):
    return len(a & b) / len(a | b)


def cleaned(columns, splits=None, **rules):
    n = len(columns["en"])
    splits = splits or ["train"] * n
    meta = {"key": [f"d#{i}" for i in range(n)], "document": [f"d-{s}" for s in splits], "split": splits}
    return clean(from_columns(list(columns), columns, meta), Rules(**rules))


def test_rows_go_without_english_without_translation_and_when_repeated():
    text, report = cleaned(
        {
            "en": ["a red house", None, "alone here", "a green tree", "a green tree", "the same text"],
            "de": ["ein rotes Haus", "verwaist", None, "ein Baum", "ein grüner Baum", "The same text"],
            "fr": [None, "orphelin", None, None, "un arbre vert", None],
        }
    )
    assert text.keys == ("d#0", "d#4"), "of two rows with the same English the fuller one stays"
    assert report["cells_dropped"]["de"] == {"equals_english": 1}
    assert report["rows_without_english_or_translation"] == 3
    assert report["rows_with_repeated_english"] == 1
    assert report["rows_before"] == 6
    assert report["rows_after"] == {"train": 2}


def test_english_rows_without_translation_stay_in_train_where_asked_for():
    columns = {"en": ["Open a file.", "Close it now.", "Quit the program."], "de": ["Datei öffnen.", None, None]}
    about = {"key": list("abc"), "document": list("abc"), "split": ["train", "train", "dev"]}
    text = from_columns(["en", "de"], columns, about, where="made")
    assert clean(text)[0].keys == ("a",)
    kept, report = clean(text, Rules(english_alone=True))
    assert kept.keys == ("a", "b"), "dev rows are for translation and need a pair"
    assert report["rows_without_english_or_translation"] == 1


def test_held_out_rows_near_to_training_are_removed_and_training_stays():
    english = [
        "Click the OK button to close the dialog and apply all changes.",
        "Click the OK-button to close the dialog, and apply all changes!",
        "Select the second tab, then choose a different page style for it.",
        "Click the OK button to close the dialog and apply all changes now.",
        "Click the OK button to close the dialog and apply all changes again.",
    ]
    german = [f"Etwas anderes Nummer {word}" for word in ("eins", "zwei", "drei", "vier", "fünf")]
    text, report = cleaned({"en": english, "de": german}, ["train", "dev", "devtest", "test", "train"])
    assert text.keys == ("d#0", "d#2", "d#4")
    assert report["near_duplicates_of_train"] == {"dev": 1, "test": 1}


# By hand: canonical "row 0 of 0" and "row 0 of 0" agree; "abcdefgh"/"abcdefgx" share abcde, bcdef, cdefg of 5 5-grams.
def test_near_duplicates_by_hand():
    assert canonical("Row 12, of 7!") == canonical("row 3 of 1000") == "row 0 of 0"
    assert near_duplicates(["Row 12, of 7!", "row 3 of 1000"], ["train", "dev"]) == {1}
    assert near_duplicates(["Row 12, of 7!", "row 3 of 1000"], ["dev", "dev"]) == set()
    assert shingles("abcdefgh") == {"abcde", "bcdef", "cdefg", "defgh"}
    assert shingles("abc") == {"abc"}
    pair = ["abcdefgh", "abcdefgx"]
    assert jaccard(*map(shingles, pair)) == 3 / 5
    assert near_duplicates(pair, ["train", "test"], 0.6) == {1}
    assert near_duplicates(pair, ["train", "test"], 0.61) == set()


def brute(texts, splits, threshold):
    """All pairs, no index."""
    grams = [shingles(canonical(text)) for text in texts]
    train = [g for g, split in zip(grams, splits, strict=True) if split == "train"]
    return {i for i, g in enumerate(grams) if splits[i] != "train" and any(jaccard(g, t) >= threshold for t in train)}


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.3, 0.5, 0.8, 0.95]))
def test_the_index_finds_what_all_pairs_find(draw: random.Random, threshold):
    words = ["open", "the", "dialog", "page", "style", "cell", "frame", "insert", "x"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 7))) for _ in range(40)]
    splits = [draw.choice(["train", "dev", "test"]) for _ in texts]
    assert near_duplicates(texts, splits, threshold) == brute(texts, splits, threshold)
