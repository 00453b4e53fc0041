import numpy as np
import pytest
from sacrebleu.metrics import CHRF as SacreCHRF
from sacrebleu.significance import PairedTest

from dragoman.errors import DataError
from dragoman.evaluation import significance
from dragoman.evaluation.metrics import METRICS, sums_per_segment
from dragoman.evaluation.significance import approximate_randomisation, holm, interval, paired_bootstrap

CHRF = METRICS["chrf"]()


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def noisy(segments: int, gain: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """[bits, bytes] of two systems; b spends `gain` more bits per byte than a, give or take."""
    rng = np.random.default_rng(seed)
    size_N = rng.integers(20, 200, segments).astype(float)
    rate_N, gain_N = rng.normal(2.0, 0.5, segments), rng.normal(gain, 0.2, segments)
    return np.stack([rate_N * size_N, size_N], 1), np.stack([(rate_N + gain_N) * size_N, size_N], 1)


@pytest.fixture(scope="module")
def chrf_sums(sentences):
    return [sums_per_segment(CHRF, system, sentences.references) for system in (sentences.careful, sentences.careless)]


def sacrebleu_p(sentences, test_type: str, samples: int, monkeypatch) -> float:
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    systems = [("careful", sentences.careful), ("careless", sentences.careless)]
    test = PairedTest(systems, {"chrF": SacreCHRF()}, [sentences.references], test_type, n_samples=samples)
    _, results = test()
    return results["chrF2"][1].p_value


def monte_carlo(p: float, samples: int) -> float:
    """Four standard errors of the difference of two estimates of p."""
    return 4 * np.sqrt(2 * max(p * (1 - p), 1 / samples) / samples)


def test_randomisation_agrees_with_sacrebleu(sentences, chrf_sums, monkeypatch):
    expected = sacrebleu_p(sentences, "ar", 4000, monkeypatch)
    ours = approximate_randomisation(*chrf_sums, CHRF.from_sums, trials=4000, seed=7)
    assert 0.001 < expected < 0.5, "a p-value at the edge would show nothing"
    assert abs(ours - expected) < monte_carlo(expected, 4000)


def test_bootstrap_agrees_with_sacrebleu_in_its_own_variant(sentences, chrf_sums, monkeypatch):
    # sacrebleu: |d_r| minus its mean, upper tail; computed here from our resamples
    expected = sacrebleu_p(sentences, "bs", 2000, monkeypatch)
    a_R, b_R = (CHRF.from_sums(significance._resample(sums_NS, 2000, seed=7)) for sums_NS in chrf_sums)
    found = paired_bootstrap(*chrf_sums, CHRF.from_sums, resamples=2000, seed=7)
    theirs_R = np.abs(a_R - b_R) - np.abs(a_R - b_R).mean()
    theirs = (1 + (theirs_R > abs(found.difference)).sum()) / 2001
    assert abs(theirs - expected) < monte_carlo(expected, 2000)
    # both tails of a distribution that is nearly symmetric
    assert found.p_value == pytest.approx(2 * expected, abs=2 * monte_carlo(expected, 2000) + 0.02)


def test_bootstrap_equals_a_naive_loop(chrf_sums):
    a_NS, b_NS = chrf_sums
    drawn_RN = np.random.default_rng(3).integers(len(a_NS), size=(50, len(a_NS)))
    loop_R = np.array([CHRF.from_sums(a_NS[d].sum(0)) - CHRF.from_sums(b_NS[d].sum(0)) for d in drawn_RN])
    observed = float(CHRF.from_sums(a_NS.sum(0)) - CHRF.from_sums(b_NS.sum(0)))
    found = paired_bootstrap(a_NS, b_NS, CHRF.from_sums, resamples=50, seed=3)
    assert found.difference == observed
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(loop_R, [0.025, 0.975])))
    assert found.p_value == (1 + sum(abs(d - observed) >= abs(observed) for d in loop_R)) / 51
    assert (found.resamples, found.unit, found.units) == (50, "segment", 40)


def test_documents_are_drawn_whole(sentences, chrf_sums):
    a_NS, b_NS = chrf_sums
    joined_a, joined_b = (sums_NS.reshape(10, 4, -1).sum(axis=1) for sums_NS in chrf_sums)
    by_document = paired_bootstrap(a_NS, b_NS, CHRF.from_sums, documents=sentences.documents, seed=5)
    joined = paired_bootstrap(joined_a, joined_b, CHRF.from_sums, seed=5)
    assert (by_document.unit, by_document.units) == ("document", 10)
    assert (by_document.low, by_document.high, by_document.p_value) == (joined.low, joined.high, joined.p_value)
    ar = [approximate_randomisation(a_NS, b_NS, CHRF.from_sums, documents=sentences.documents, trials=500, seed=5)]
    assert ar == [approximate_randomisation(joined_a, joined_b, CHRF.from_sums, trials=500, seed=5)]


def test_documents_may_be_scattered():
    a_NS, b_NS = noisy(60, 0.02, seed=4)
    documents = [str(n % 12) for n in range(60)]
    order = np.argsort(np.arange(60) % 12, kind="stable")
    scattered = paired_bootstrap(a_NS, b_NS, ratio, documents=documents, resamples=200)
    grouped = paired_bootstrap(a_NS[order], b_NS[order], ratio, documents=np.array(documents)[order], resamples=200)
    assert scattered.low == pytest.approx(grouped.low, rel=1e-12) and scattered.p_value == grouped.p_value


def test_copies_inside_a_document_do_not_shrink_the_interval():
    sums_NS, _ = noisy(30, 0.0, seed=1)
    documents = [str(n) for n in range(30)]
    once = interval(sums_NS, ratio, documents=documents)
    copied = interval(np.repeat(sums_NS, 5, axis=0), ratio, documents=np.repeat(documents, 5).tolist())
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    by_segment = interval(np.repeat(sums_NS, 5, axis=0), ratio)
    assert by_segment.high - by_segment.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize("by_document", [False, True])
def test_identical_systems_do_not_differ(sentences, chrf_sums, by_document):
    same, _ = chrf_sums
    documents = sentences.documents if by_document else None
    found = paired_bootstrap(same, same.copy(), CHRF.from_sums, documents=documents)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert approximate_randomisation(same, same.copy(), CHRF.from_sums, documents=documents, trials=100) == 1


def test_better_in_every_segment_is_significant():
    worse, _ = noisy(50, 0.0, seed=2)
    better = worse - np.array([3.0, 0.0])
    found = paired_bootstrap(better, worse, ratio, resamples=999)
    assert found.p_value == 1 / 1000 and found.high < 0
    assert approximate_randomisation(better, worse, ratio, trials=999) == 1 / 1000


def test_randomisation_by_hand():
    # three segments, each better by one: of the 8 ways to swap, none and all give |d| = 3: p -> 1/4
    a_NS, b_NS = np.array([[2.0], [3], [4]]), np.array([[1.0], [2], [3]])
    p = approximate_randomisation(a_NS, b_NS, lambda sums: sums[..., 0], trials=20000, seed=1)
    assert p == pytest.approx(0.25, abs=0.013)


def test_swapping_the_systems_turns_the_sign_only(chrf_sums):
    a_NS, b_NS = chrf_sums
    one, other = paired_bootstrap(a_NS, b_NS, CHRF.from_sums), paired_bootstrap(b_NS, a_NS, CHRF.from_sums)
    assert (one.difference, one.p_value) == (-other.difference, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


@pytest.mark.parametrize("test", [lambda a, b, s: paired_bootstrap(a, b, ratio, resamples=300, seed=s).p_value,
                                  lambda a, b, s: approximate_randomisation(a, b, ratio, trials=300, seed=s)],
                         ids=["bootstrap", "randomisation"])  # fmt: skip
def test_equal_systems_are_called_different_as_often_as_alpha_says(test):
    p_values = [test(*noisy(100, 0.0, seed), seed) for seed in range(300)]
    assert 0.05 < np.mean(np.array(p_values) <= 0.1) < 0.16  # 0.1 and three standard errors
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_interval_by_normal_theory():
    sums_NS = np.stack([np.random.default_rng(0).normal(5, 2, 400), np.ones(400)], axis=1)
    found = interval(sums_NS, ratio, resamples=4000)
    half = 1.96 * sums_NS[:, 0].std() / 20
    assert found.value == pytest.approx(sums_NS[:, 0].mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)
    narrow = interval(sums_NS, ratio, resamples=4000, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_the_same_seed_gives_the_same_numbers_whatever_the_block(chrf_sums, monkeypatch):
    def both():
        bootstrap = paired_bootstrap(*chrf_sums, CHRF.from_sums, resamples=300, seed=2)
        return bootstrap, approximate_randomisation(*chrf_sums, CHRF.from_sums, trials=300, seed=2)

    whole = both()
    monkeypatch.setattr(significance, "CELLS", 1000)
    assert both() == whole
    assert paired_bootstrap(*chrf_sums, CHRF.from_sums, resamples=300, seed=3) != whole[0]


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, made monotone
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]).tolist() == [1, 1]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_bad_input_is_refused():
    sums_NS = np.ones((4, 2))
    with pytest.raises(DataError, match=r"lengths are \[4, 3\]"):
        paired_bootstrap(sums_NS, sums_NS[:3], ratio)
    with pytest.raises(DataError, match=r"lengths are \[4, 4, 2\]"):
        approximate_randomisation(sums_NS, sums_NS, ratio, documents=["a", "b"])
    with pytest.raises(DataError, match="1 document; take more text, or compare by segment"):
        interval(sums_NS, ratio, documents=["a"] * 4)
    broken = sums_NS.copy()
    broken[2, 0] = np.nan
    with pytest.raises(DataError, match="1 segments are not finite, first segment 2"):
        paired_bootstrap(sums_NS, broken, ratio)


@pytest.mark.parametrize(
    ("runs", "over_documents", "expected"), [(3, 0, 0.24), (5, 0, 0.12), (3, 1, 0.07), (5, 1, 0.06)]
)
def test_few_runs_give_small_p_values(runs, over_documents, expected):
    """The rate of p < 0.05 between equal systems, as the docstring has it: means of runs, with documents or without.

    over_documents: standard error over documents, in those over runs.
    """
    rng, documents, wrong, trials = np.random.default_rng(0), 25, 0, 600
    for trial in range(trials):
        runs_K = rng.normal(0, 1, runs)
        text_N = rng.normal(0, over_documents * np.sqrt(documents / runs), documents)
        a = [np.column_stack([x + text_N, np.ones(documents)]) for x in runs_K]
        b = [np.column_stack([np.zeros(documents), np.ones(documents)])] * runs
        found = significance.hierarchical_bootstrap(
            a, b, lambda sums: sums[..., 0] / sums[..., 1], same_seeds=True, resamples=400, seed=trial
        )
        wrong += found.p_value < 0.05
    assert wrong / trials == pytest.approx(expected, abs=0.04)


def test_units_are_too_few_where_swapping_all_of_them_shows_nothing():
    """By every way of swapping: of U units that all agree, two of 2^U ways give a difference as large."""
    for units in range(2, 9):
        ways = np.array(np.meshgrid(*[[1, -1]] * units)).reshape(units, -1)
        p_value = (abs(ways.sum(axis=0)) >= units).mean()
        assert significance.too_few_to_judge(units) == (p_value >= 0.05)
