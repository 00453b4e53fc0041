import numpy as np
import pytest

from dragoman.errors import DataError
from dragoman.routing import coactivation


def by_lot(weights, k, tokens, seed=0):
    """k different experts a token, drawn one after the other by weight."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.exponential(size=(tokens, len(weights))) / weights, axis=1)[:, :k]


def test_one_token_of_three_experts_has_all_three_pairs():
    pairs = coactivation.pair_counts(np.array([[4, 0, 2]]), 5)
    assert np.argwhere(np.triu(pairs, 1)).tolist() == [[0, 2], [0, 4], [2, 4]], "not neighbours in rank alone"
    assert np.diag(pairs).tolist() == [1, 0, 1, 0, 1]


def test_pair_counts_are_those_of_a_loop():
    chosen_TK = by_lot(np.arange(1, 8), 3, 50)
    expected = np.zeros((7, 7))
    for token in chosen_TK:
        for a in token:
            for b in token:
                expected[a, b] += 1
    assert (coactivation.pair_counts(chosen_TK, 7) == expected).all()


def test_expected_pairs_keep_every_experts_number_of_pairs():
    pairs = coactivation.pair_counts(by_lot(np.arange(1, 9), 3, 500), 8)
    expected = coactivation.expected_pairs(pairs)
    assert expected.sum(axis=0) == pytest.approx(2 * np.diag(pairs)), "each token of an expert has K - 1 others"
    assert not np.diag(expected).any() and (expected == expected.T).all()
    x = np.sqrt(expected[0, 1] * expected[0, 2] / expected[1, 2])
    assert expected[0, 5] / x == pytest.approx(expected[1, 5] / (expected[0, 1] / x)), "a product of one factor each"


def test_even_use_gives_even_pairs_by_hand():
    pairs = np.full((4, 4), 10) + np.diag([20] * 4)  # 4 experts, 60 tokens of two
    assert coactivation.lift(pairs)[~np.eye(4, dtype=bool)] == pytest.approx(1)
    assert coactivation.pairing(pairs) == pytest.approx(0)
    # only 0-1 and 2-3 occur: 30 of 60 pairs each where 10 are expected, so two thirds would have to change
    couples = np.kron(np.eye(2), np.full((2, 2), 30))
    assert coactivation.lift(couples)[0].tolist()[1:] == pytest.approx([3, 0, 0])
    assert coactivation.pairing(np.stack([pairs, couples])) == pytest.approx([0, 2 / 3])


def test_experts_by_lot_have_no_lift_but_unused_ones_have_none_at_all():
    weights = np.array([1, 2, 3, 4, 5, 6, 7, 1e-9])
    pairs = coactivation.pair_counts(by_lot(weights, 2, 200_000), 8)
    found = coactivation.lift(pairs)
    assert np.isnan(found[7]).all()
    assert found[:7, :7][~np.eye(7, dtype=bool)] == pytest.approx(1, abs=0.2)
    assert coactivation.pairing(pairs) < 0.02
    naive = pairs * 200_000 / np.outer(np.diag(pairs), np.diag(pairs)).clip(1)
    assert (naive[:7, :7][~np.eye(7, dtype=bool)] < 0.85).all(), "independence would call all pairs rare"


def test_the_placebo_of_pairs_is_what_lot_gives():
    by_chance = np.stack([coactivation.pair_counts(by_lot(np.ones(8), 2, 300, seed), 8) for seed in range(5)])
    placebo = coactivation.pairing_placebo(by_chance, seed=0)
    assert placebo.shape == (5,) and (placebo > 0).all()
    assert placebo.mean() == pytest.approx(coactivation.pairing(by_chance).mean(), rel=0.3)


def test_an_expert_that_every_token_takes_is_no_trouble():
    chosen = np.column_stack([np.zeros(90, dtype=int), np.arange(90) % 3 + 1])
    pairs = coactivation.pair_counts(chosen, 4)
    assert coactivation.expected_pairs(pairs)[0, 1:] == pytest.approx(30, rel=0.01)
    assert coactivation.pairing(pairs) == pytest.approx(0, abs=0.01)


def test_top_1_has_no_pairs():
    with pytest.raises(DataError, match="choose two experts or more"):
        coactivation.lift(np.diag([3, 4]))


# ---- token consistency


def test_token_consistency_by_hand():
    # {0,1} {0,1}: 1; {0,1} {1,2}: 1/3, twice
    assert coactivation.token_consistency(np.array([[0, 1], [1, 0], [1, 2]])) == pytest.approx((1 + 2 / 3) / 3)
    with pytest.raises(DataError, match="1 given"):
        coactivation.token_consistency(np.array([[0, 1]]))


def test_token_consistency_is_that_of_python_sets():
    chosen = by_lot(np.arange(1, 9), 3, 12)
    sets = [set(row) for row in chosen.tolist()]
    pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
    assert coactivation.token_consistency(chosen) == pytest.approx(np.mean([len(a & b) / len(a | b) for a, b in pairs]))
    counts = np.bincount(chosen.ravel(), minlength=8)[None, None]
    shared, united = (sum(len(op(a, b)) for a, b in pairs) for op in (set.intersection, set.union))
    sums = coactivation.consistency_sums(counts, np.array([3]))
    assert sums.tolist() == [[[shared], [united]]], "exact from counts"
    assert coactivation.consistency(sums[0]) == pytest.approx([shared / united])


def test_top_1_consistency_from_counts_is_the_mean_itself():
    chosen = by_lot(np.arange(1, 5), 1, 30)
    pairs = [(a, b) for i, a in enumerate(chosen[:, 0]) for b in chosen[:i, 0]]
    sums = coactivation.consistency_sums(np.bincount(chosen[:, 0], minlength=4)[None, None], np.array([1]))
    # |A | B| is 1 or 2: a pair that shares counts 1 of 1, one that does not 0 of 2
    assert sums[0].tolist() == [[sum(a == b for a, b in pairs)], [sum(2 - (a == b) for a, b in pairs)]]


def test_segments_of_one_token_add_nothing_and_alone_have_no_consistency():
    single, double = np.array([[[1, 1, 0]]]), np.array([[[2, 2, 0]]])
    sums = coactivation.consistency_sums(np.concatenate([single, double]), np.array([2]))
    assert sums.tolist() == [[[0], [0]], [[2], [2]]]
    assert coactivation.consistency(sums.sum(axis=0)).tolist() == [1]
    assert np.isnan(coactivation.consistency(sums[0])).tolist() == [True]
