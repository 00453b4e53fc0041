"""Is a difference more than noise? Intervals and paired tests over segments or, better, over documents.

Everything works on the sums that metrics give per segment: a resample is a vector of weights, its score the metric's
formula over `weights @ sums`. Segments of one document resemble each other; where documents are known, whole documents
are drawn, because segments drawn one by one would promise more certainty than the text gives.

Few units give narrow intervals and small p-values that should not be believed (below about 30 documents); results
therefore say how many units they rest on.
"""

# Shape letters: N segments, U units (documents or segments), S sums of a metric, R resamples, K runs of a system.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from dragoman.errors import DataError

FromSums = Callable[[np.ndarray], np.ndarray]
"""[R, S] summed sums -> [R] scores; `from_sums` of a metric."""

LEVEL = 0.05
"""Of a test, where nothing else is said."""
CELLS = 1 << 22
"""Size of the largest block of weights [R, U] made at once."""


@dataclass(frozen=True)
class Interval:
    """A corpus score with its percentile interval."""

    value: float
    low: float
    high: float
    resamples: int
    unit: str
    """What was resampled: `segment` or `document`."""
    units: int


@dataclass(frozen=True)
class Comparison:
    """Score of a minus score of b, with its percentile interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    resamples: int
    unit: str
    """What was resampled: `segment` or `document`."""
    units: int


@dataclass(frozen=True)
class SeedComparison(Comparison):
    """A comparison of systems that were each trained several times."""

    runs: tuple[int, int]
    """Runs of a and of b."""
    values: tuple[tuple[float, ...], tuple[float, ...]]
    """The score of every run of a and of b."""


@dataclass(frozen=True)
class Detectable:
    """What a test set of a planned size can show."""

    effect: float
    """Smallest true difference, in units of the score, that a two-sided test at `alpha` finds with this `power`."""
    standard_error: float
    """Of the difference, at the planned size."""
    planned: int
    """Units of the planned test set."""
    unit: str
    """What the size counts: `segment` or `document`."""
    pilot: int
    """Units that the standard error was estimated from."""
    alpha: float
    power: float


def interval(
    sums_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a corpus score.

    documents: the document of each segment; without it, segments are resampled.
    Raises DataError for sums that are not finite and for fewer than two units.

    Source: Efron & Tibshirani 1993, sec. 13.3; for documents, resampling of clusters with replacement.
    """
    (sums_US,) = _by_unit([sums_NS], documents)
    scores_R = from_sums(_resample(sums_US, resamples, seed))
    low, high = _limits(scores_R, level)
    return Interval(_score(sums_US, from_sums), low, high, resamples, _unit(documents), len(sums_US))


def paired_bootstrap(
    sums_a_NS: np.ndarray,
    sums_b_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Difference of two systems on the same segments; every resample takes the same units of both.

        p = (1 + #{|d_r - d| >= |d|}) / (1 + R)      d observed difference, d_r difference in resample r

    The distribution of d_r around d stands for that of differences around zero, were the systems equal.

    documents: the document of each segment; without it, segments are resampled.
    Raises DataError for unequal numbers of segments, sums that are not finite and fewer than two units.

    Source: Koehn 2004 (W04-3250), paired bootstrap resampling; Riezler & Maxwell 2005 (W05-0908), fig. 2, for testing
        with a distribution shifted to the null hypothesis (Efron & Tibshirani 1993, ch. 16).
    Differs: Koehn gives the share of resamples that one system wins, which is one-sided; sacrebleu shifts |d_r| by
        its own mean and counts the upper tail only, about half of this p, and calls identical systems different
        (p = 1 / (R + 1)) because ties do not count there. Here both tails and ties count: identical systems have p = 1.
    """
    sums_a_US, sums_b_US = _by_unit([sums_a_NS, sums_b_NS], documents)
    difference = _score(sums_a_US, from_sums) - _score(sums_b_US, from_sums)
    difference_R = from_sums(_resample(sums_a_US, resamples, seed)) - from_sums(_resample(sums_b_US, resamples, seed))
    low, high = _limits(difference_R, level)
    p_value = _p_value(difference_R - difference, difference)
    return Comparison(difference, low, high, p_value, resamples, _unit(documents), len(sums_a_US))


def approximate_randomisation(
    sums_a_NS: np.ndarray,
    sums_b_NS: np.ndarray,
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    trials: int = 10000,
    seed: int = 0,
) -> float:
    """Two-sided p-value: how often is a difference as large when each unit's two outputs are swapped by a coin?

        p = (1 + #{|d_r| >= |d|}) / (1 + R)

    documents: the document of each segment; whole documents are swapped.
    Raises DataError as `paired_bootstrap` does.

    Source: Noreen 1989; Riezler & Maxwell 2005 (W05-0908), fig. 1.
    Differs: from sacrebleu in that ties count, so that identical systems have p = 1.
    """
    sums_a_US, sums_b_US = _by_unit([sums_a_NS, sums_b_NS], documents)
    difference = _score(sums_a_US, from_sums) - _score(sums_b_US, from_sums)
    total_a_S, total_b_S, gain_US = sums_a_US.sum(axis=0), sums_b_US.sum(axis=0), sums_a_US - sums_b_US
    rng = np.random.default_rng(seed)
    differences = []
    for block in _blocks(trials, len(gain_US)):
        swapped_RS = rng.integers(2, size=(block, len(gain_US))).astype(np.float64) @ gain_US
        differences.append(from_sums(total_a_S - swapped_RS) - from_sums(total_b_S + swapped_RS))
    return _p_value(np.concatenate(differences), difference)


def hierarchical_bootstrap(
    sums_a_KNS: Sequence[np.ndarray],
    sums_b_KNS: Sequence[np.ndarray],
    from_sums: FromSums,
    *,
    documents: Sequence[str] | None = None,
    same_seeds: bool = False,
    margin: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> SeedComparison:
    """Difference of two ways of training, each run several times, over what another seed and other text would give.

        s_r = mean_k s_rk + sqrt(K / (K - 1)) * (mean over runs drawn with replacement - mean_k s_rk)

    s_rk is the score of run k on resample r of the documents, which is the same for all runs; p as in
    `paired_bootstrap`. Few runs give too small p-values all the same where they vary more than documents: were there
    no variation over documents, 24 % of equal systems would differ at the level of 5 % with three runs, 12 % with
    five; with as much over documents as over runs, 7 and 6 %. So look at the differences run by run, too.

    sums_a_KNS, sums_b_KNS: sums of every run on the same segments. One of the two may be a single run (a base that
        nobody trains again): it then has no part in the variation over seeds.
    same_seeds: run k of a and run k of b belong together (same seed, same data order) and are drawn together.
    margin: what is compared with a is (1 + margin) times b: is a within 5 % of b?
    documents: the document of each segment; without it, segments are resampled.

    Raises DataError as `paired_bootstrap` does, where no system has two runs, where same_seeds pairs unequal numbers.

    Source: Davison & Hinkley 1997, sec. 3.8, for resampling at two levels; Owen 2007 (arXiv:0705.1111), for factors
        that are crossed (every run meets every document) as here.
    Differs: the factor in front makes the variance over runs unbiased; plain resampling of K runs is short by 1 / K.
    """
    runs = len(sums_a_KNS), len(sums_b_KNS)
    if max(runs) < 2 or not min(runs):
        raise DataError(f"{runs[0]} and {runs[1]} runs show nothing of seeds; train more, or use paired_bootstrap")
    if same_seeds and runs[0] != runs[1]:
        raise DataError(f"{runs[0]} runs cannot be paired with {runs[1]} by seed; give as many of each")
    units = _by_unit([*sums_a_KNS, *sums_b_KNS], documents)
    scale_K = np.repeat([1.0, 1.0 + margin], runs)
    scores_RK = np.stack([from_sums(_resample(sums_US, resamples, seed)) for sums_US in units], axis=1) * scale_K
    rng = np.random.default_rng([seed, 1])
    drawn = [rng.integers(k, size=(resamples, k)) for k in runs]
    if same_seeds:
        drawn[1] = drawn[0]
    a_R, b_R = (_over_runs(scores, d) for scores, d in zip(np.split(scores_RK, [runs[0]], axis=1), drawn, strict=True))
    each = [_score(sums_US, from_sums) for sums_US in units]
    values = tuple(each[: runs[0]]), tuple(each[runs[0] :])
    difference = float(np.mean(values[0]) - (1 + margin) * np.mean(values[1]))
    low, high = _limits(a_R - b_R, level)
    p_value = _p_value(a_R - b_R - difference, difference)
    return SeedComparison(
        difference, low, high, p_value, resamples, _unit(documents), len(units[0]), runs=runs, values=values
    )


def _over_runs(scores_RK: np.ndarray, drawn_RK: np.ndarray) -> np.ndarray:
    """Means [R] over the runs drawn for each resample, their spread about the mean of all runs made unbiased."""
    runs = scores_RK.shape[1]
    mean_R = scores_RK.mean(axis=1)
    if runs == 1:
        return mean_R
    drawn_mean_R = np.take_along_axis(scores_RK, drawn_RK, axis=1).mean(axis=1)
    return mean_R + np.sqrt(runs / (runs - 1)) * (drawn_mean_R - mean_R)


def minimum_detectable_effect(
    sums_a_NS: np.ndarray,
    sums_b_NS: np.ndarray,
    from_sums: FromSums,
    *,
    planned: int | None = None,
    documents: Sequence[str] | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    resamples: int = 2000,
    seed: int = 0,
) -> Detectable:
    """The smallest difference that a test set of `planned` units (default: as many as given) is likely to show.

        effect = (z_{1 - alpha/2} + z_power) * se * sqrt(U / planned)

    se is the standard error of the difference between two systems on a pilot of U units, by paired bootstrap; systems
    that resemble the planned ones give the right one. Planned units must resemble the pilot's (as long, as varied).

    Raises DataError as `paired_bootstrap` does, and for a planned size below two.

    Source: the usual formula for two-sided tests of a normal statistic (Cohen 1988, ch. 2); Card et al. 2020
        (2020.emnlp-main.745) for power of comparisons in NLP.
    """
    sums_a_US, sums_b_US = _by_unit([sums_a_NS, sums_b_NS], documents)
    pilot = len(sums_a_US)
    size = pilot if planned is None else planned
    if size < 2:
        raise DataError(f"a test set of {size} {_unit(documents)}s shows nothing; plan two or more")
    difference_R = from_sums(_resample(sums_a_US, resamples, seed)) - from_sums(_resample(sums_b_US, resamples, seed))
    error = float(np.std(difference_R, ddof=1) * np.sqrt(pilot / size))
    effect = float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * error)
    return Detectable(effect, error, size, _unit(documents), pilot, alpha, power)


def units_needed(detectable: Detectable, effect: float) -> int:
    """Units that a test set needs to show a difference of `effect`, all else as in `detectable`.

    The standard error falls with the root of the size. Raises DataError for an effect of zero.
    """
    if effect == 0:
        raise DataError("no test set is large enough to show a difference of 0; give the one that would matter")
    return int(np.ceil(detectable.planned * (detectable.effect / abs(effect)) ** 2))


def too_few_to_judge(units: int) -> bool:
    """Whether (under six) even an exact test, which swaps the systems in every way, could not say that they differ.

    Its smallest p is 2 / 2^units, where the bootstrap promises much less.
    """
    return 2.0 ** (1 - units) >= LEVEL


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for testing all of them, in the order given; reject where adjusted <= alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _unit(documents: Sequence[str] | None) -> str:
    return "segment" if documents is None else "document"


def _score(sums_US: np.ndarray, from_sums: FromSums) -> float:
    return float(from_sums(sums_US.sum(axis=0)))


def _by_unit(systems: list[np.ndarray], documents: Sequence[str] | None) -> list[np.ndarray]:
    """Sums of each system per unit, float64 [U, S]; units in order of first appearance."""
    sizes = [len(sums_NS) for sums_NS in systems] + ([] if documents is None else [len(documents)])
    if len(set(sizes)) > 1:
        raise DataError(f"systems and documents must list the same segments, but their lengths are {sizes}")
    arrays = [np.asarray(sums_NS, dtype=np.float64) for sums_NS in systems]
    if bad := sorted({n for sums_NS in arrays for n in np.argwhere(~np.isfinite(sums_NS))[:, 0].tolist()}):
        raise DataError(f"sums of {len(bad)} segments are not finite, first segment {bad[0]}; score them again")
    if documents is not None:
        arrays = [_sum_documents(sums_NS, documents) for sums_NS in arrays]
    if len(arrays[0]) < 2:
        raise DataError(
            f"resampling needs two units or more, but there is {len(arrays[0])} {_unit(documents)}; "
            "take more text, or compare by segment where all of it is one document"
        )
    return arrays


def _sum_documents(sums_NS: np.ndarray, documents: Sequence[str]) -> np.ndarray:
    row = {document: u for u, document in enumerate(dict.fromkeys(documents))}
    sums_US = np.zeros((len(row), sums_NS.shape[1]))
    np.add.at(sums_US, [row[document] for document in documents], sums_NS)
    return sums_US


def _blocks(resamples: int, units: int) -> Iterator[int]:
    """Sizes of blocks that make up `resamples` without holding more than CELLS weights."""
    size = max(1, CELLS // units)
    for first in range(0, resamples, size):
        yield min(size, resamples - first)


def _resample(sums_US: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Summed sums [R, S] of units drawn with replacement; the same seed draws the same units."""
    rng = np.random.default_rng(seed)
    units = len(sums_US)
    totals = []
    for block in _blocks(resamples, units):
        drawn_RU = rng.integers(units, size=(block, units)) + np.arange(block)[:, None] * units
        weights_RU = np.bincount(drawn_RU.ravel(), minlength=block * units).reshape(block, units)
        totals.append(weights_RU.astype(np.float64) @ sums_US)
    return np.concatenate(totals)


def _limits(values_R: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _p_value(null_R: np.ndarray, observed: float) -> float:
    """Share of the null distribution as far from zero as the observed value; the observed one is in it.

    Ties count, also those that rounding has split.
    """
    as_far = np.abs(null_R) >= abs(observed) * (1 - 1e-9)
    return float((1 + as_far.sum()) / (1 + len(null_R)))
