"""Drift between two traces, by hand and against SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from dragoman.errors import DataError
from dragoman.routing.drift import _in_short, drift, half_distance, noise_distance
from dragoman.routing.stats import routing_similarity

A, B = [[6, 2, 2], [1, 1, 8]], [[2, 6, 2], [1, 1, 8]]


def test_drift_by_hand_and_by_scipy(make_trace):
    found = drift(make_trace({"en": A, "ca": A}), make_trace({"ca": B, "en": A}))
    assert found.divergence["en"].tolist() == [0, 0], "an unchanged language has exactly none"
    expected = jensenshannon([0.6, 0.2, 0.2], [0.2, 0.6, 0.2]) ** 2
    assert found.divergence["ca"] == pytest.approx([expected, 0])
    assert found.placebo == {} and found.interval == {}, "neither trace kept its segments"
    assert found.other_text == () and found.left_out == ()


def test_nothing_in_common_is_ln_2(make_trace):
    found = drift(make_trace({"en": [[5, 0]]}), make_trace({"en": [[0, 5]]}))
    assert found.divergence["en"] == pytest.approx([np.log(2)])


def segments(seed, share, number=40, tokens=50):
    return np.random.default_rng(seed).multinomial(tokens, share, size=number)[:, None].astype(np.int32)


def of_segments(make_trace, **by):
    return make_trace({g: n.sum(axis=0).tolist() for g, n in by.items()}, segments=by)


def test_interval_and_placebo_tell_a_change_from_none(make_trace):
    before = of_segments(make_trace, en=segments(0, [0.5, 0.3, 0.2]), ca=segments(1, [0.5, 0.3, 0.2]))
    after = of_segments(make_trace, en=segments(2, [0.5, 0.3, 0.2]), ca=segments(3, [0.2, 0.3, 0.5]))
    found = drift(before, after, seed=1)
    low_L, high_L = found.interval["ca"]
    assert low_L[0] < found.divergence["ca"][0] < high_L[0]
    assert low_L[0] > 5 * found.placebo["ca"][0], "moved"
    assert found.divergence["en"][0] < 3 * found.placebo["en"][0], "drawn anew from the same shares"


def test_other_text_and_missing_languages_are_told(make_trace):
    before = of_segments(make_trace, en=segments(0, [0.5, 0.5]), ca=segments(1, [0.5, 0.5]), de=segments(1, [0.5, 0.5]))
    after = of_segments(
        make_trace, en=segments(0, [0.5, 0.5]), ca=segments(1, [0.5, 0.5], number=41), fr=segments(2, [1, 0])
    )
    found = drift(before, after)
    assert found.other_text == ("ca",)
    assert found.left_out == ("de", "fr")
    assert set(found.interval) == {"en"}, "segments of different text cannot be paired"
    assert set(found.placebo) == {"en", "ca"}


def test_traces_that_do_not_fit_are_refused_in_a_sentence(make_trace):
    with pytest.raises(DataError, match=r"MoE layers \[0, 1\] and \[0\].*experts \[3, 3\] and \[2\]"):
        drift(make_trace({"en": A}), make_trace({"en": [[1, 1]]}))
    with pytest.raises(DataError, match="no language in common: en and ca"):
        drift(make_trace({"en": A}), make_trace({"ca": A}))


def test_halves_of_equal_segments_do_not_differ_and_noise_shrinks_with_text():
    assert half_distance(np.tile([[[3, 1]]], (10, 1, 1)), seed=0).max() == 0
    few, many = (half_distance(segments(0, [0.5, 0.3, 0.2], number=n), seed=0).mean() for n in (10, 1000))
    assert 0 < many < few / 20
    with pytest.raises(DataError, match="at least 2 segments, 1 given"):
        half_distance(segments(0, [0.5, 0.5], number=1), seed=0)


def test_noise_distance_is_in_the_unit_of_similarity(make_trace):
    opposite = np.array([[[4, 0]], [[0, 4]]], dtype=np.int32)  # every split puts one into each half: JSD is ln 2
    trace = of_segments(make_trace, en=opposite)
    assert noise_distance(trace, seed=0) == pytest.approx(1)
    two = make_trace({"en": [[4, 0]], "ca": [[0, 4]]})
    assert 1 - routing_similarity(two)[0, 1] == pytest.approx(1)
    assert noise_distance(two, seed=0) is None


def test_deep_layouts_are_told_in_short():
    deep, flat = list(range(24)), [1, 2, 3, 5, 6]
    assert [_in_short(n) for n in (deep, [64] * 24, flat, [7, 7])] == ["0 to 23", "24 x 64", str(flat), "[7, 7]"]


def test_documents_are_what_is_drawn_where_they_are_known(make_trace):
    """Segments of a document are alike, so an interval and a placebo over segments would be too narrow."""
    rng = np.random.default_rng(0)
    topics = rng.dirichlet([2, 2, 2], size=12)
    counts = np.concatenate([rng.multinomial(50, topic, size=10) for topic in topics])[:, None]
    moved = np.roll(counts, 1, axis=-1)

    def trace(by, documents):
        about = {"documents": {"en": documents}} if documents else {}
        return make_trace({"en": by.sum(axis=0).tolist()}, segments={"en": by}, about=about)

    names = [n // 10 for n in range(120)]
    bare, named = (drift(trace(counts, d), trace(moved, d), seed=1) for d in ((), names))
    assert (bare.unit, named.unit) == ("segments", "documents")
    width = {found.unit: (found.interval["en"][1] - found.interval["en"][0])[0] for found in (bare, named)}
    assert width["documents"] > 1.5 * width["segments"]
    assert named.placebo["en"][0] > 2 * bare.placebo["en"][0]
    assert noise_distance(trace(counts, names), 0) > 2 * noise_distance(trace(counts, ()), 0)
