from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from dragoman.errors import ConfigError, DataError
from dragoman.routing import resampling, stats

tables = arrays(np.int64, (3, 2, 5), elements=st.integers(0, 1000)).filter(lambda c: c.sum(axis=-1).all())
quick = settings(max_examples=50, deadline=None)


def random_share(*shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.3), size=shape[:-1])


# ---- shares


def test_shares_by_hand():
    count_GLE = np.array([[[6, 2, 0], [4, 4, 0]]])  # 4 tokens, 2 experts each
    assert stats.slot_share(count_GLE).tolist() == [[[0.75, 0.25, 0], [0.5, 0.5, 0]]]
    assert stats.token_share(count_GLE, (2, 2)).tolist() == [[[1.5, 0.5, 0], [1, 1, 0]]]


def test_top_k_may_differ_over_layers():
    count_LE = np.array([[3, 1], [2, 6]])
    assert stats.token_share(count_LE, (1, 2)).tolist() == [[0.75, 0.25], [0.5, 1.5]]


def test_every_language_and_layer_without_a_token_is_named():
    count_GLE = np.ones((3, 2, 4), dtype=int)
    count_GLE[1, 1] = 0
    count_GLE[2] = 0
    with pytest.raises(DataError, match="for es in layer 7, for sw in any layer; capture more text"):
        stats.slot_share(count_GLE, ("en", "es", "sw"), (3, 7))


def test_entropy_is_scipys_in_nats():
    share = random_share(4, 3, 7)
    assert stats.entropy(share) == pytest.approx(scipy_entropy(share, axis=-1))
    assert stats.entropy(np.array([1.0, 0, 0])) == 0
    assert stats.entropy(np.full(8, 1 / 8)) == pytest.approx(log(8))


def test_load_balance_by_hand():
    count_LE = np.array([[3, 1, 0, 0], [2, 2, 2, 2]])
    balance = stats.load_balance(count_LE, (3, 4))
    # layer 0 has three real experts: mean 4/3, deviations 5/3, -1/3, -4/3, so variance (25 + 1 + 16) / 27
    assert balance.variation_XL == pytest.approx([np.sqrt(42 / 27) / (4 / 3), 0])
    assert balance.dead_XL.tolist() == [1, 0], "a padding column is not a dead expert"


# ---- divergence


def test_divergence_is_scipys_distance_squared():
    p, q = random_share(5, 4, 9), random_share(5, 4, 9, seed=1)
    assert stats.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, axis=-1) ** 2)


def test_disjoint_and_equal_distributions_are_the_ends():
    p, q = np.array([[1.0, 0, 0, 0]]), np.array([[0, 0, 1.0, 0]])
    assert stats.jensen_shannon(p, q) == pytest.approx([log(2)])
    assert stats.normalised_divergence(p, q, (4,)) == pytest.approx([0.5])  # ln 2 of ln 4
    assert stats.normalised_divergence(p, q, (2,)) == pytest.approx([1])
    assert stats.normalised_divergence(p, p, (4,)).tolist() == [0]
    uniform = np.full((1, 4), 0.25)
    assert stats.normalised_divergence(uniform, uniform, (4,)).tolist() == [0], "no division by zero"


def test_normalised_divergence_by_hand():
    p, q = np.array([[0.5, 0.5, 0, 0]]), np.array([[0.5, 0, 0.5, 0]])
    # m = (1/2, 1/4, 1/4): H(m) = 1.5 ln 2, H(p) = H(q) = ln 2, so JSD = ln 2 / 2 of ln 4 - ln 2 that are possible
    assert stats.normalised_divergence(p, q, 4) == pytest.approx([0.5])


@quick
@given(tables)
def test_divergence_lies_in_0_1_is_symmetric_and_blind_to_the_order_of_experts(count_GLE):
    p, q, _ = stats.slot_share(count_GLE)
    d = stats.normalised_divergence(p, q, (5, 5))
    assert ((d >= 0) & (d <= 1)).all()
    assert stats.normalised_divergence(q, p, (5, 5)) == pytest.approx(d)
    order = np.random.default_rng(0).permutation(5)
    assert stats.normalised_divergence(p[:, order], q[:, order], (5, 5)) == pytest.approx(d, abs=1e-7)


@quick
@given(tables)
def test_padding_columns_change_nothing(count_GLE):
    padded_GLE = np.pad(count_GLE, [(0, 0), (0, 0), (0, 3)])
    p, q, _ = stats.slot_share(count_GLE)
    pp, pq, _ = stats.slot_share(padded_GLE)
    assert stats.normalised_divergence(pp, pq, (5, 5)) == pytest.approx(
        stats.normalised_divergence(p, q, (5, 5)), abs=1e-9
    )
    assert stats.language_specialisation(padded_GLE) == pytest.approx(
        stats.language_specialisation(count_GLE), abs=1e-9
    )
    plain, wide = stats.load_balance(count_GLE, (5, 5)), stats.load_balance(padded_GLE, (5, 5))
    assert wide.variation_XL == pytest.approx(plain.variation_XL)
    assert wide.dead_XL.tolist() == plain.dead_XL.tolist()


def test_divergence_from_english_leaves_english_out(make_trace):
    trace = make_trace({"de": [[2, 2, 0, 0]], "en": [[5, 0, 5, 0]], "es": [[5, 0, 5, 0]]})
    divergence = stats.divergence_from(trace)
    assert set(divergence) == {"de", "es"}
    assert divergence["de"] == pytest.approx([0.5])
    assert divergence["es"].tolist() == [0]
    with pytest.raises(DataError, match="no language 'fr'"):
        stats.divergence_from(trace, "fr")


def test_merged_traces_give_the_divergence_of_all_text(make_trace):
    rng = np.random.default_rng(0)
    first, second = ({g: rng.integers(1, 50, (2, 6)) for g in ("en", "sw")} for _ in range(2))
    merged = stats.divergence_from(make_trace(first) + make_trace(second))
    at_once = stats.divergence_from(make_trace({g: first[g] + second[g] for g in first}))
    assert merged["sw"].tolist() == at_once["sw"].tolist()


def test_sequence_divergence_is_the_divergence_of_each_pair():
    rng = np.random.default_rng(0)
    a_NLE, b_NLE = rng.integers(1, 9, (4, 3, 6)), rng.integers(1, 9, (4, 3, 6))
    divergence_NL = stats.sequence_divergence(a_NLE, b_NLE, (6, 6, 5))
    assert divergence_NL.shape == (4, 3)
    p, q = a_NLE[2, 1] / a_NLE[2, 1].sum(), b_NLE[2, 1] / b_NLE[2, 1].sum()
    possible = log(6) - (scipy_entropy(p) + scipy_entropy(q)) / 2
    assert divergence_NL[2, 1] == pytest.approx(jensenshannon(p, q) ** 2 / possible)


def test_segments_that_are_not_parallel_are_refused():
    with pytest.raises(DataError, match="3 segments were given against 2"):
        stats.sequence_divergence(np.ones((3, 1, 4)), np.ones((2, 1, 4)), 4)
    empty = np.ones((3, 1, 4))
    empty[1] = 0
    with pytest.raises(DataError, match="for segment 1 in any layer"):
        stats.sequence_divergence(empty, np.ones((3, 1, 4)), 4)


def test_specialisation_by_hand_and_by_the_joint_table():
    assert stats.language_specialisation(np.array([[[7, 0]], [[0, 3]]])) == pytest.approx([1]), "the expert tells all"
    assert stats.language_specialisation(np.array([[[7, 7]], [[2, 2]]])) == pytest.approx([0]), (
        "the expert tells nothing"
    )
    count_GLE = np.random.default_rng(0).integers(1, 30, (4, 1, 6))
    joint_GE = count_GLE[:, 0] / count_GLE[:, 0].sum(axis=1, keepdims=True) / 4
    independent_GE = np.outer(joint_GE.sum(axis=1), joint_GE.sum(axis=0))
    information = (joint_GE * np.log(joint_GE / independent_GE)).sum()
    assert stats.language_specialisation(count_GLE) == pytest.approx([information / log(4)])


def test_specialisation_does_not_see_how_much_text_a_language_has():
    count_GLE = np.random.default_rng(0).integers(1, 30, (3, 2, 6))
    more_GLE = count_GLE * np.array([1, 10, 100])[:, None, None]
    assert stats.language_specialisation(more_GLE) == pytest.approx(stats.language_specialisation(count_GLE))
    with pytest.raises(DataError, match="two languages or more, 1 given"):
        stats.language_specialisation(count_GLE[:1])


def test_routing_similarity_is_one_for_equal_zero_for_disjoint(make_trace):
    trace = make_trace({"en": [[4, 0], [1, 1]], "es": [[9, 0], [0, 2]], "sw": [[0, 5], [1, 1]]}, layer_ids=(4, 9))
    assert stats.routing_similarity(trace, [4]) == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]))
    p, q = np.array([0.5, 0.5]), np.array([0, 1.0])
    second = 1 - jensenshannon(p, q) ** 2 / log(2)
    assert stats.routing_similarity(trace)[0, 1] == pytest.approx((1 + second) / 2), "mean over all layers"


def test_layers_that_do_not_exist_are_named_with_those_that_do(make_trace):
    trace = make_trace({"en": [[4, 0], [1, 1]]}, layer_ids=(4, 9))
    assert stats.layer_rows(trace, [9, 4]) == [1, 0]
    with pytest.raises(ConfigError, match="no MoE layer 0, 5; choose from 4, 9"):
        stats.layer_rows(trace, [5, 9, 0])


def test_vocabulary_overlap_by_hand():
    a, b = {1: 6, 2: 3, 3: 1, 9: 0}, {2: 1, 3: 1, 4: 2}
    assert stats.vocabulary_overlap(a, b) == 2 / 4
    assert stats.vocabulary_overlap(a, b, weighted=True) == pytest.approx(0.25 + 0.1)  # min(.3, .25) + min(.1, .25)
    assert stats.vocabulary_overlap(a, a) == stats.vocabulary_overlap(a, a, weighted=True) == 1
    with pytest.raises(DataError, match="10 and 0 given"):
        stats.vocabulary_overlap(a, {})


# ---- how sure


def pooled_divergence(a_RLE, b_RLE):
    experts = a_RLE.shape[-1]
    return stats.normalised_divergence(stats.slot_share(a_RLE), stats.slot_share(b_RLE), experts)


def drawn_segments(seed, share_LE, segments=60, tokens=20):
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(tokens, p_E, size=segments) for p_E in share_LE], axis=1)


def test_bootstrap_of_a_mean_agrees_with_the_normal_approximation():
    counts_NLE = np.random.default_rng(0).integers(0, 20, (200, 1, 1))
    interval = stats.bootstrap_interval(lambda c_RLE: c_RLE[..., 0] / 200, counts_NLE, seed=1, resamples=4000)
    error = 1.96 * counts_NLE.std() / np.sqrt(200)
    assert interval.value == pytest.approx(counts_NLE.mean())
    assert interval.high - interval.value == pytest.approx(error, rel=0.1)
    assert interval.value - interval.low == pytest.approx(error, rel=0.1)


def test_bootstrap_keeps_parallel_segments_together():
    a_NLE = np.random.default_rng(0).integers(1, 20, (50, 2, 3))
    interval = stats.bootstrap_interval(lambda a, b: a - b, a_NLE, a_NLE, seed=0, resamples=50)
    assert not interval.low.any() and not interval.high.any(), "unpaired draws would differ"


def test_bootstrap_repeats_by_seed_and_does_not_depend_on_the_block(monkeypatch):
    a, b = drawn_segments(0, random_share(2, 6)), drawn_segments(1, random_share(2, 6))
    whole = stats.bootstrap_interval(pooled_divergence, a, b, seed=3, resamples=101)
    monkeypatch.setattr(resampling, "BLOCK_ELEMENTS", 300)
    parts = stats.bootstrap_interval(pooled_divergence, a, b, seed=3, resamples=101)
    assert parts.low == pytest.approx(whole.low) and parts.high == pytest.approx(whole.high)
    other = stats.bootstrap_interval(pooled_divergence, a, b, seed=4, resamples=101)
    assert (other.low != whole.low).all()
    assert whole.signature == "bootstrap:basic|level:0.95|resamples:101|segments:60|seed:3"


def test_the_basic_interval_covers_a_small_divergence_and_the_percentile_interval_does_not():
    share_LE = random_share(1, 16)
    other_LE = 0.97 * share_LE + 0.03 * random_share(1, 16, seed=1)
    truth = stats.normalised_divergence(share_LE, other_LE, 16)
    covered = {"basic": 0, "percentile": 0}
    for seed in range(20):
        counts = drawn_segments(seed, share_LE), drawn_segments(1000 + seed, other_LE)
        for kind in covered:
            interval = stats.bootstrap_interval(pooled_divergence, *counts, seed=0, resamples=200, kind=kind)
            covered[kind] += int((interval.low <= truth).all() and (truth <= interval.high).all())
    assert covered["basic"] >= 17 and covered["percentile"] <= 5


def test_bootstrap_needs_the_same_segments():
    with pytest.raises(DataError, match="segments given: 3, 2"):
        stats.bootstrap_interval(pooled_divergence, np.ones((3, 1, 2)), np.ones((2, 1, 2)), seed=0)
    with pytest.raises(DataError, match="segments given: 1;"):
        stats.bootstrap_interval(lambda a: a, np.ones((1, 1, 2)), seed=0)


def test_the_placebo_shrinks_with_more_segments():
    counts_NLE = drawn_segments(0, random_share(3, 16), segments=1600)
    few, many = (stats.split_half_placebo(counts_NLE[:n], 0, 16).mean(axis=0) for n in (100, 1600))
    assert (few > 0).all(), "sampling noise is not zero"
    assert (many < few / 8).all(), "about 1/16 is expected"


def test_the_placebo_compares_two_halves_by_seed():
    counts_NLE = np.array([[[4, 0]], [[0, 4]]])  # two halves of one segment each, disjoint
    assert stats.split_half_placebo(counts_NLE, 0, 2, splits=3).tolist() == [[1.0]] * 3
    counts_NLE = drawn_segments(0, random_share(2, 6))
    assert stats.split_half_placebo(counts_NLE, 0, 6).shape == (20, 2)
    assert (stats.split_half_placebo(counts_NLE, 0, 6) == stats.split_half_placebo(counts_NLE, 0, 6)).all()
    assert (stats.split_half_placebo(counts_NLE, 0, 6) != stats.split_half_placebo(counts_NLE, 1, 6)).any()
    with pytest.raises(DataError, match="at least 2 segments, 1 given"):
        stats.split_half_placebo(counts_NLE[:1], 0, 6)
