"""Several runs of a system, and the size of a test set: beside tests/evaluation/test_significance.py."""

import numpy as np
import pytest
import sacrebleu.metrics
from sacrebleu.significance import PairedTest
from scipy.stats import norm

from dragoman.errors import DataError
from dragoman.evaluation.metrics import METRICS, sums_per_segment
from dragoman.evaluation.significance import (
    approximate_randomisation,
    hierarchical_bootstrap,
    minimum_detectable_effect,
    paired_bootstrap,
    units_needed,
)
from tests.evaluation.test_significance import monte_carlo, ratio


def runs_of(rng, runs, *, gain=0.0, seed_spread=0.1, documents=40, text_spread=0.3, noise=0.05):
    """K arrays [U, 2] whose ratio is 2 - gain + a seed's effect; documents are as difficult for all runs."""
    difficulty_U = rng.normal(0, text_spread, documents)
    return [
        np.stack([2 - gain + difficulty_U + rng.normal(0, seed_spread) + rng.normal(0, noise, documents),
                  np.ones(documents)], axis=1)
        for _ in range(runs)
    ]  # fmt: skip


def two_systems(seed, runs_a, runs_b, **settings):
    both = runs_of(np.random.default_rng(seed), runs_a + runs_b, **settings)
    return both[:runs_a], both[runs_a:]


@pytest.mark.parametrize("name", ["bleu", "ter", "chrf++"])
def test_randomisation_agrees_with_sacrebleu_for_the_other_metrics(name, sentences, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    theirs = {
        "bleu": sacrebleu.metrics.BLEU(),
        "ter": sacrebleu.metrics.TER(),
        "chrf++": sacrebleu.metrics.CHRF(word_order=2),
    }
    systems = [("careful", sentences.careful), ("careless", sentences.careless)]
    _, results = PairedTest(systems, {name: theirs[name]}, [sentences.references], "ar", n_samples=2000)()
    (expected,) = (row[1].p_value for key, row in results.items() if key != "System")
    metric = METRICS[name]()
    a, b = (sums_per_segment(metric, s, sentences.references) for s in (sentences.careful, sentences.careless))
    swap_RN1 = np.random.default_rng(3).integers(2, size=(2000, len(a), 1))
    swapped_R = metric.from_sums((a + swap_RN1 * (b - a)).sum(1)) - metric.from_sums((b + swap_RN1 * (a - b)).sum(1))
    observed = abs(float(metric.from_sums(a.sum(0)) - metric.from_sums(b.sum(0))))
    beyond, as_far = ((1 + (np.abs(swapped_R) > observed + s).sum()) / 2001 for s in (1e-9, -1e-9))
    assert abs(beyond - expected) < monte_carlo(expected, 2000), "sacrebleu does not count ties, of which TER has many"
    ours = approximate_randomisation(a, b, metric.from_sums, trials=2000, seed=9)
    assert abs(ours - as_far) < monte_carlo(as_far, 2000)
    assert expected > 0.001, "a p-value at the edge would show nothing"


def test_runs_that_are_equal_add_nothing():
    (a,), (b,) = two_systems(0, 1, 1, gain=0.0)
    flat = paired_bootstrap(a, b, ratio, seed=4)
    found = hierarchical_bootstrap([a] * 3, [b] * 3, ratio, seed=4)
    assert (found.difference, found.low, found.high) == pytest.approx((flat.difference, flat.low, flat.high))
    assert found.p_value == flat.p_value and found.runs == (3, 3)
    assert found.values == ((float(ratio(a.sum(0))),) * 3, (float(ratio(b.sum(0))),) * 3)


def test_the_spread_is_that_of_seeds_and_text():
    # difference of means: seeds 2 * 0.2^2 / 6, text cancels, noise 2 * 0.05^2 / (6 * 60)
    widths = []
    for seed in range(30):
        a, b = two_systems(seed, 6, 6, seed_spread=0.2, documents=60)
        found = hierarchical_bootstrap(a, b, ratio, resamples=500, seed=seed)
        widths.append(((found.high - found.low) / (2 * 1.96)) ** 2)
    assert np.mean(widths) == pytest.approx(2 * 0.2**2 / 6 + 2 * 0.05**2 / 360, rel=0.25)


def test_segments_alone_would_be_too_sure_of_seeds():
    a, b = two_systems(1, 5, 5, seed_spread=0.3)
    one_run = paired_bootstrap(a[0], b[0], ratio)
    over_runs = hierarchical_bootstrap(a, b, ratio)
    assert over_runs.high - over_runs.low > 3 * (one_run.high - one_run.low)


def test_equal_systems_are_called_different_about_as_often_as_alpha_says():
    p = [hierarchical_bootstrap(*two_systems(s, 10, 10), ratio, resamples=200, seed=s).p_value for s in range(120)]
    assert 0.03 < np.mean(np.array(p) <= 0.1) < 0.2
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)


def test_a_gain_is_found_and_identical_systems_do_not_differ():
    a, b = two_systems(2, 5, 5)
    better = [sums - np.array([0.5, 0]) for sums in a]
    assert hierarchical_bootstrap(better, b, ratio, resamples=999).p_value < 0.01
    same = hierarchical_bootstrap(a, a, ratio, same_seeds=True)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_pairs_of_seeds_cancel_what_they_share():
    a, _ = two_systems(3, 6, 6, seed_spread=0.5)
    b = [sums + np.array([0.1, 0]) for sums in a]
    paired, free = (hierarchical_bootstrap(a, b, ratio, same_seeds=s) for s in (True, False))
    assert paired.high - paired.low < 1e-9 < free.high - free.low
    assert paired.difference == pytest.approx(-0.1) == free.difference


def test_one_run_of_a_base_and_documents():
    a, (base,) = two_systems(5, 4, 1)
    names = [str(n // 2) for n in range(40)]
    found = hierarchical_bootstrap(a, [base], ratio, documents=names, resamples=200)
    assert (found.runs, found.unit, found.units) == ((4, 1), "document", 20)
    joined = [sums.reshape(20, 2, 2).sum(axis=1) for sums in [*a, base]]
    again = hierarchical_bootstrap(joined[:4], joined[4:], ratio, resamples=200)
    assert (found.low, found.high) == pytest.approx((again.low, again.high))


def test_the_detectable_effect_by_hand():
    # differences of unit segments with standard deviation s: se = s / sqrt(U), effect = (1.96 + 0.84) * se
    rng = np.random.default_rng(0)
    a = np.stack([rng.normal(0, 1, 400), np.ones(400)], axis=1)
    b = np.stack([np.zeros(400), np.ones(400)], axis=1)
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) * a[:, 0].std() / 20
    found = minimum_detectable_effect(a, b, ratio, resamples=4000)
    assert found.effect == pytest.approx(expected, rel=0.04)
    assert (found.planned, found.pilot, found.unit) == (400, 400, "segment")
    planned = minimum_detectable_effect(a, b, ratio, resamples=4000, planned=1600)
    assert planned.effect == pytest.approx(found.effect / 2)
    assert units_needed(found, found.effect / 2) == units_needed(planned, planned.effect) == 1600
    assert units_needed(found, -found.effect) == 400


def test_an_effect_of_that_size_is_found_as_often_as_promised():
    pilot_a, pilot_b = (runs[0] for runs in two_systems(0, 1, 1, documents=200, noise=0.4, seed_spread=0))
    planned = minimum_detectable_effect(pilot_a, pilot_b, ratio, planned=100, power=0.7)
    found = []
    for seed in range(1, 151):
        (a,), (b,) = two_systems(seed, 1, 1, documents=100, noise=0.4, seed_spread=0)
        found.append(paired_bootstrap(a - np.array([planned.effect, 0]), b, ratio, resamples=300).p_value <= 0.05)
    assert np.mean(found) == pytest.approx(0.7, abs=0.12)  # error of 150 trials, and of the pilot's standard error


def test_errors():
    a, b = two_systems(0, 2, 3)
    with pytest.raises(DataError, match=r"1 and 1 runs show nothing of seeds; train more, or use paired_bootstrap"):
        hierarchical_bootstrap(a[:1], b[:1], ratio)
    with pytest.raises(DataError, match="2 runs cannot be paired with 3 by seed"):
        hierarchical_bootstrap(a, b, ratio, same_seeds=True)
    with pytest.raises(DataError, match=r"lengths are \[40, 39, 40\]"):
        hierarchical_bootstrap([a[0], a[1][:39]], b[:1], ratio)
    with pytest.raises(DataError, match="a test set of 1 documents shows nothing"):
        minimum_detectable_effect(a[0], a[1], ratio, planned=1, documents=[str(n) for n in range(40)])
    with pytest.raises(DataError, match="a difference of 0"):
        units_needed(minimum_detectable_effect(a[0], a[1], ratio), 0)


def test_a_margin_is_the_other_system_scaled():
    a, b = two_systems(5, 4, 4, gain=0.2)
    scaled = [runs_US * [1.1, 1] for runs_US in b]
    with_margin = hierarchical_bootstrap(a, b, ratio, same_seeds=True, margin=0.1)
    by_hand = hierarchical_bootstrap(a, scaled, ratio, same_seeds=True)
    for name in ("difference", "low", "high", "p_value"):
        assert getattr(with_margin, name) == pytest.approx(getattr(by_hand, name))
    assert with_margin.difference < hierarchical_bootstrap(a, b, ratio).difference
    assert with_margin.values[1] == hierarchical_bootstrap(a, b, ratio).values[1], "values are the systems' own"
