import pytest

from dragoman.errors import DataError
from dragoman.evaluation.base import sums_per_segment
from dragoman.evaluation.checks import require_segments, some
from dragoman.evaluation.metrics import METRICS

WORDS = ["alphabet", "bravado", "charlatan", "deltoid", "echoing", "foxtrot", "golfing", "hotels", "indigo", "juniper"]
LINES = [f"the {word} has text" for word in WORDS]


def test_the_place_is_in_the_message():
    with pytest.raises(
        DataError, match=r"9 hypotheses and 10 references.*part near line 5: from there on, what hypotheses has"
    ):
        sums_per_segment(METRICS["chrf"](), LINES[:4] + LINES[5:], LINES)


def test_the_message_says_no_place_where_none_is_seen():
    with pytest.raises(DataError, match="where they part is not clear"):
        require_segments({"hypotheses": ["xyz", "qqq"], "references": LINES})


def test_an_untranslated_test_set_is_refused():
    with pytest.raises(DataError, match=r"all 2 references equal their sources.*not translated"):
        sums_per_segment(METRICS["chrf"](), ["x", "y"], ["one", "two "], sources=["one", "two"])
    assert len(sums_per_segment(METRICS["chrf"](), ["x", "y"], ["one", "zwei"], sources=["one", "two"])) == 2


def test_a_file_of_empty_lines_is_refused():
    with pytest.raises(DataError, match="all 2 hypotheses are empty"):
        sums_per_segment(METRICS["chrf"](), ["", "  "], ["one", "two"])


def test_a_column_that_is_missing_is_named():
    with pytest.raises(DataError, match="copies of the source needs sources and references"):
        sums_per_segment(METRICS["copies"](), ["a"])


def test_sums_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="bits per byte: sums of segments 1 are not finite"):
        sums_per_segment(METRICS["bits_per_byte"](context=8), [1.0, float("nan")], ["one", "two"])


def test_some_names_the_first_ones():
    assert some([3, 4]) == "3, 4"
    assert some(list(range(20)), most=2) == "0, 1 and 18 more"


def test_an_empty_column_is_told_by_its_size():
    with pytest.raises(DataError, match=r"0 hypotheses and 10 references.*look for empty files"):
        require_segments({"hypotheses": [], "references": LINES})
