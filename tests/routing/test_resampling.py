import numpy as np
import pytest

from dragoman.errors import DataError
from dragoman.routing import resampling


def total(*sums):
    return np.stack([s[..., 0] for s in sums], axis=-1)


def test_sums_by_document_keep_the_order_of_first_appearance():
    counts_NX = np.array([[1, 0], [2, 0], [4, 1], [8, 0]])
    assert resampling.by_document(counts_NX, ["b", "a", "b", "a"]).tolist() == [[5, 1], [10, 0]]
    with pytest.raises(DataError, match="3 names of documents were given for 4 segments"):
        resampling.by_document(counts_NX, ["b", "a", "b"])


def test_documents_widen_the_interval_where_their_segments_are_alike():
    # 20 documents of 10 equal segments: the mean's error is that of 20 draws, sqrt(10) times that of 200
    counts_N1 = np.repeat(np.random.default_rng(0).integers(0, 100, 20), 10)[:, None]
    documents_N = np.repeat(np.arange(20), 10).tolist()

    def mean(sums):
        return sums[..., 0] / 200

    by_segment = resampling.bootstrap_interval(mean, counts_N1, seed=0, resamples=2000)
    grouped = resampling.by_document(counts_N1, documents_N)
    by_document = resampling.bootstrap_interval(mean, grouped, seed=0, resamples=2000, unit="documents")
    assert by_document.value == by_segment.value == pytest.approx(counts_N1.mean())
    ratio = (by_document.high - by_document.low) / (by_segment.high - by_segment.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)
    assert by_document.signature == "bootstrap:basic|level:0.95|resamples:2000|documents:20|seed:0"


def test_every_resample_of_paired_arrays_holds_the_same_segments():
    a_NX, b_NX = np.arange(30)[:, None], -np.arange(30)[:, None, None]
    for a, b in resampling.resampled(a_NX, b_NX, seed=0, resamples=20):
        assert (a[:, 0] == -b[:, 0, 0]).all()


def test_unpaired_arrays_are_drawn_apart_and_may_differ_in_length():
    a_NX, b_NX = np.arange(30)[:, None], np.arange(40)[:, None]
    ((a, b),) = resampling.resampled(a_NX, b_NX, seed=0, resamples=2000, paired=False)
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.1
    assert a.mean() == pytest.approx(a_NX.sum(), rel=0.02) and b.mean() == pytest.approx(b_NX.sum(), rel=0.02)
    interval = resampling.bootstrap_interval(total, a_NX, b_NX, seed=0, resamples=10, paired=False)
    assert interval.value.tolist() == [435, 780]
    assert "segments:30,40" in interval.signature
    with pytest.raises(DataError, match="segments given: 30, 1; resampling needs two segments or more of each"):
        resampling.bootstrap_interval(total, a_NX, b_NX[:1], seed=0, paired=False)


def test_halves_do_not_share_a_segment_and_split_all_arrays_alike():
    ids_NX = np.eye(7)
    first_SX, again_SX, second_SX, _ = resampling.half_placebo(
        lambda a, b, c, d: np.stack([a, b, c, d]), ids_NX, 2 * ids_NX, seed=0, splits=9
    )
    assert (first_SX.sum(axis=1) == 3).all() and (second_SX.sum(axis=1) == 3).all()
    assert (first_SX + second_SX <= 1).all()
    assert (again_SX == 2 * first_SX).all()
    assert len({tuple(row) for row in first_SX}) > 1, "splits differ"


def test_halves_are_no_larger_than_the_smallest_text_and_the_same_where_all_have_as_much():
    ids_NX = np.eye(7)

    def halves(most):
        return resampling.half_placebo(lambda a, b: np.stack([a, b]), ids_NX, seed=0, splits=9, most=most)

    assert (halves(2).sum(axis=-1) == 2).all() and (halves(2).sum(axis=0) <= 1).all()
    assert (halves(1).sum(axis=-1) == 1).all()
    np.testing.assert_array_equal(halves(7), halves(None))
