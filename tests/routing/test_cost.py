"""Cost of the tokenizer, by hand."""

import pytest

from dragoman.errors import DataError
from dragoman.routing.cost import tokenizer_cost

TEXTS = {"en": ["abcd", "ef"], "el": ["αβ", "γ"]}


def test_by_hand():
    found = tokenizer_cost({"en": [2, 1], "el": [4, 2]}, TEXTS, "en")
    assert (found["el"].tokens, found["el"].bytes) == (6, 6), "Greek letters are two bytes"
    assert found["el"].per_byte == 1 and found["en"].per_byte == 0.5
    assert found["el"].relative == 2 and found["en"].relative == 1
    assert found["el"].interval == pytest.approx((2, 2)), "every segment costs twice as much"


def test_interval_covers_the_value_and_keeps_pairs():
    tokens = {"en": [10, 20, 30, 40] * 10, "ca": [13, 21, 39, 45] * 10}
    found = tokenizer_cost(tokens, {g: ["x" * 50] * 40 for g in tokens}, "en")["ca"]
    assert found.interval[0] < found.relative < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.15, "unpaired, the lengths alone would make it wider"


def test_text_that_is_not_parallel_has_no_relative_cost():
    found = tokenizer_cost({"en": [2, 1], "el": [4]}, {"en": ["abcd", "ef"], "el": ["αβ"]}, "en", parallel=False)
    assert found["el"].relative is None and found["el"].interval is None
    assert found["el"].per_byte == 1


def test_bad_input_is_a_sentence_that_names_all():
    with pytest.raises(DataError, match="none of el, ca was given"):
        tokenizer_cost({"en": [2], "el": [0], "ca": [0]}, {"en": ["a"], "el": [""], "ca": [""]}, "en")
    with pytest.raises(DataError, match="en 1 and 2"):
        tokenizer_cost({"en": [2]}, {"en": ["a", "b"]}, "en")
