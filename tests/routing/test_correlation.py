"""Mantel's test against a naive one, with SciPy's correlations and every labelling by name."""

import itertools

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from dragoman.errors import DataError
from dragoman.routing import correlation, stats

ORACLES = {"pearson": pearsonr, "spearman": spearmanr}


def distances(seed, languages=5):
    rng = np.random.default_rng(seed)
    half = np.triu(rng.random((languages, languages)), 1)
    return half + half.T


def upper(matrix):
    return [matrix[i][j] for i in range(len(matrix)) for j in range(i + 1, len(matrix))]


def relabelled(matrix, order):
    return [[matrix[i][j] for j in order] for i in order]


def naive_r(a, b, control, method):
    r = ORACLES[method]
    ab = r(upper(a), upper(b)).statistic
    if control is None:
        return ab
    ac, bc = r(upper(a), upper(control)).statistic, r(upper(b), upper(control)).statistic
    return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))


def naive_mantel(a, b, control, method):
    seen = naive_r(a, b, control, method)
    null = [naive_r(relabelled(a, order), b, control, method) for order in itertools.permutations(range(len(a)))]
    return seen, np.mean([abs(r) >= abs(seen) - 1e-9 for r in null]), np.quantile(null, [0.025, 0.975])


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("control", [None, distances(2)], ids=["plain", "partial"])
def test_mantel_is_that_of_a_naive_program(method, control):
    a, b = distances(0), distances(1)
    r, p, limits = naive_mantel(a, b, control, method)
    found = correlation.mantel(a, b, control, method=method)
    assert found.r == pytest.approx(r) and found.p == pytest.approx(p)
    assert [found.null_low, found.null_high] == pytest.approx(list(limits), abs=1e-6)
    assert (found.permutations, found.exact) == (120, True)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("control", [None, distances(2)], ids=["plain", "partial"])
def test_labellings_in_blocks_give_what_all_at_once_do(monkeypatch, method, control):
    layers = np.stack([distances(0), distances(3)])
    whole = [correlation.mantel(a, distances(1), control, method=method) for a in (layers, layers[0])]
    held = []
    original = correlation._standard
    monkeypatch.setattr(correlation, "_standard", lambda v, method: held.append(v.shape) or original(v, method))
    monkeypatch.setattr(correlation, "BLOCK_ELEMENTS", 7 * 10)  # seven labellings of ten pairs
    parts = [correlation.mantel(a, distances(1), control, method=method) for a in (layers, layers[0])]
    assert max(shape[0] for shape in held if len(shape) == 2) == 7 and (1, 10) in held, "120 are 17 blocks and one left"
    for one, other in zip(whole, parts, strict=True):
        for name in ("r", "p", "null_low", "null_high"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=0, atol=1e-12)


def test_partial_correlation_is_that_of_residuals():
    a, b, control = (distances(seed, 6) for seed in range(3))
    x, y, z = (np.array(upper(m)) for m in (a, b, control))
    residuals = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    found = correlation.mantel(a, b, control)
    assert found.r == pytest.approx(pearsonr(*residuals).statistic)


def test_drawn_labellings_come_near_to_all_of_them(monkeypatch):
    a, b = distances(0, 7), distances(0, 7) + distances(5, 7)
    exact = correlation.mantel(a, b)
    monkeypatch.setattr(correlation, "MOST_EXACT", 1)
    drawn = correlation.mantel(a, b, permutations=4000, seed=1)
    assert exact.exact and not drawn.exact and drawn.permutations == 4001
    assert drawn.r == pytest.approx(float(exact.r))
    assert drawn.p == pytest.approx(float(exact.p), abs=4 * np.sqrt(exact.p * (1 - exact.p) / 4000) + 1 / 4001)
    assert correlation.mantel(a, b, permutations=100, seed=2).p >= 1 / 101, "the one observed counts"


def test_layers_are_tested_one_by_one():
    layers = np.stack([distances(seed) for seed in range(3)])
    found = correlation.mantel(layers, distances(9))
    for layer, matrix in enumerate(layers):
        alone = correlation.mantel(matrix, distances(9))
        assert found.r[layer] == pytest.approx(float(alone.r)) and found.p[layer] == pytest.approx(float(alone.p))


def test_p_is_uniform_where_nothing_is_to_be_found():
    p = np.array([correlation.mantel(distances(2 * i, 6), distances(2 * i + 1, 6)).p for i in range(60)])
    assert 0.35 < p.mean() < 0.65
    assert (p < 0.05).mean() <= 0.15


def test_a_distance_correlates_fully_with_itself_in_few_labellings():
    found = correlation.mantel(distances(0, 6), 3 * distances(0, 6) + 1)
    assert found.r == pytest.approx(1) and found.p == pytest.approx(1 / 720)
    assert correlation.correlation(distances(0), -distances(0), "spearman") == pytest.approx(-1)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_correlation_is_scipys(method):
    assert correlation.correlation(distances(0), distances(1), method) == pytest.approx(
        ORACLES[method](upper(distances(0)), upper(distances(1))).statistic
    )


def test_too_few_languages_and_constant_distances_are_refused():
    with pytest.raises(DataError, match="needs 4 languages or more, 3 given"):
        correlation.mantel(distances(0, 3), distances(1, 3))
    with pytest.raises(DataError, match="all pairs of languages are equally far apart"):
        correlation.mantel(distances(0), np.ones((5, 5)))


def test_a_layer_that_routes_all_alike_has_no_correlation_and_others_keep_theirs():
    stacked = np.stack([distances(0), np.zeros((5, 5))])
    assert correlation.correlation(stacked, distances(1))[0] == correlation.correlation(distances(0), distances(1))
    found, alone = correlation.mantel(stacked, distances(1)), correlation.mantel(distances(0), distances(1))
    for name in ("r", "p", "null_low", "null_high"):
        assert getattr(found, name)[0] == pytest.approx(getattr(alone, name))
        assert np.isnan(getattr(found, name)[1])


# ---- the distances


def test_routing_distance_is_the_divergence_of_each_pair(make_trace):
    rng = np.random.default_rng(0)
    count_GLE = rng.integers(1, 50, (4, 2, 6))
    found = correlation.routing_distance(count_GLE)
    assert found.shape == (2, 4, 4)
    p, q = stats.slot_share(count_GLE[1]), stats.slot_share(count_GLE[3])
    assert found[:, 1, 3] == pytest.approx(stats.jensen_shannon(p, q))
    assert found == pytest.approx(found.swapaxes(1, 2)) and not np.diagonal(found, axis1=1, axis2=2).any()
    trace = make_trace(dict(zip("abcd", count_GLE, strict=True)))
    assert 1 - found.mean(axis=0) / np.log(2) == pytest.approx(stats.routing_similarity(trace))
    assert correlation.routing_distance(np.stack([count_GLE] * 3)).shape == (3, 2, 4, 4)


def test_overlap_and_family_distances_by_hand():
    overlap = {"de": {"en": 0.25, "es": 0.1}, "en": {"de": 0.25, "es": 0.5}, "es": {"en": 0.5, "de": 0.1}}
    assert correlation.overlap_distance(overlap, ("en", "de", "es")).tolist() == [
        [0, 0.75, 0.5],
        [0.75, 0, 0.9],
        [0.5, 0.9, 0],
    ]
    with pytest.raises(DataError, match="no vocabulary overlap is given for en-fr, de-fr; measure"):
        correlation.overlap_distance(overlap, ("en", "de", "fr"))
    assert correlation.family_distance(("en", "de", "ru", "pt-BR", "es")).tolist() == [
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]
    with pytest.raises(DataError, match="family of qqq, xx is not known"):
        correlation.family_distance(("en", "qqq", "xx"))


def test_pairs_stand_row_by_row():
    assert correlation.pairs_of(np.arange(9).reshape(3, 3)).tolist() == [1, 2, 5]
