"""Description: every statistic of a trace as it stands in a record, with intervals and placebos.

Shape letters: G languages, L MoE layers, E experts, N segments, D units (documents or segments), R resamples.

A placebo is the same statistic between two halves of the reference language, none larger than the text of the language
that has least, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dragoman.routing import bands, coactivation, relating, sharing, stats
from dragoman.routing.resampling import Interval, bootstrap_interval, half_placebo, resampled
from dragoman.routing.sample import RESAMPLES, Sample, Unit, sample_of
from dragoman.routing.trace import RoutingTrace

RULE_RESAMPLES = 50
"""Resamples in which the rules for exclusive experts select again."""


def describe(
    trace: RoutingTrace,
    reference: str,
    seed: int,
    *,
    unit: Unit | None = None,
    middle: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Statistics of a trace as they stand in a record; intervals are [low, high] with the statistic's shape.

    middle: first and last model layer of the middle band; found by rule where it is not given.
    A language with fewer tokens than `sample.tokens_needed` is described too: its placebo says how much is noise.
    Raises DataError for a language without a token or a unit that cannot be resampled, ConfigError for a band that does
    not fit.
    """
    tokens = dict(zip(trace.languages, trace.tokens_G.tolist(), strict=True))
    sample = sample_of(trace, reference, seed, unit)
    found: dict[str, Any] = {
        "reference": reference,
        "layer_ids": trace.layer_ids,
        "tokens": tokens,
        "sample": _about(sample),
    }
    distances = _divergence(sample)
    band = _middle(sample, middle, distances["placebo"])
    found |= distances | _usage(sample) | _of_segments(sample)
    relations = relating.relations(sample, band["rows"] if band else ())
    return found | {
        "middle_band": band,
        "sharing": {name: _sharing(sample, name) for name in sharing.RULES if _enough(sample, name)},
        "relations": relations,
        "overlap_correlation": relating.headline(relations),
        "pairing": _pairing(trace, seed),
    }


def _about(sample: Sample) -> dict[str, Any]:
    number = {g: len(u) for g, u in zip(sample.trace.languages, sample.units, strict=False)}
    needed = stats.tokens_needed(sample.trace.num_experts, sample.trace.top_k)
    about = {"unit": sample.unit, "number": number, "parallel": sample.paired, "tokens_needed": needed}
    return about | {"resamples": RESAMPLES, "kind": "basic", "level": 0.95}


def _limits(interval: Interval | None) -> list[np.ndarray] | None:
    return [interval.low, interval.high] if interval else None


def _by_language(names: Sequence[str], interval: Interval | None, rows: Sequence[int]) -> dict[str, list[np.ndarray]]:
    return {g: [interval.low[i], interval.high[i]] for g, i in zip(names, rows, strict=True)} if interval else {}


def _divergence(sample: Sample) -> dict[str, Any]:
    trace, row = sample.trace, sample.trace.index(sample.reference)
    others = [trace.index(g) for g in sample.others]

    def divergence(count_RGLE: np.ndarray) -> np.ndarray:
        share_RGLE = stats.slot_share(count_RGLE)
        return stats.normalised_divergence(share_RGLE, share_RGLE[:, row : row + 1], trace.num_experts)

    units = sample.units
    placebo_SL = (
        stats.split_half_placebo(units[row], sample.seed, trace.num_experts, most=sample.fewest) if units else None
    )
    return {
        "divergence": {g: d for g, d in stats.divergence_from(trace, sample.reference).items() if g in sample.others},
        "divergence_interval": _by_language(sample.others, sample.of_counts(divergence), others),
        "placebo": None if placebo_SL is None else placebo_SL.mean(axis=0),
        "placebo_interval": None if placebo_SL is None else list(np.quantile(placebo_SL, [0.025, 0.975], axis=0)),
    }


def _usage(sample: Sample) -> dict[str, Any]:
    trace = sample.trace
    share_GLE = stats.slot_share(trace.chosen_GLE, trace.languages, trace.layer_ids)
    balance = stats.load_balance(trace.chosen_GLE.sum(axis=0), trace.num_experts)
    several = len(trace.languages) > 1

    def entropies(count_RGLE: np.ndarray) -> np.ndarray:
        return stats.entropy(stats.slot_share(count_RGLE))

    def variation(count_RGLE: np.ndarray) -> np.ndarray:
        return stats.load_balance(count_RGLE.sum(axis=1), trace.num_experts).variation_XL

    def halves(statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
        found = sample.placebo(lambda a, b: abs(statistic(a[:, None]) - statistic(b[:, None])))
        return None if found is None else found.mean(axis=0)

    two = sample.placebo(lambda a, b: stats.language_specialisation(np.stack([a, b], axis=1)))
    entropy_placebo = halves(entropies)
    return {
        "entropy": dict(zip(trace.languages, stats.entropy(share_GLE), strict=True)),
        "entropy_interval": _by_language(trace.languages, sample.of_counts(entropies), range(len(trace.languages))),
        "entropy_placebo": None if entropy_placebo is None else entropy_placebo[0],
        "specialisation": stats.language_specialisation(trace.chosen_GLE) if several else None,
        "specialisation_interval": _limits(sample.of_counts(stats.language_specialisation)) if several else None,
        "specialisation_placebo": None if two is None else two.mean(axis=0),
        "load_variation": balance.variation_XL,
        "load_variation_interval": _limits(sample.of_counts(variation)),
        "load_variation_placebo": halves(variation),
        "dead_experts": balance.dead_XL,
    }


def _of_segments(sample: Sample) -> dict[str, Any]:
    """Statistics of single segments: token consistency, and where the text is parallel the paper's mean divergence."""
    trace = sample.trace
    if not sample.units:
        return {"consistency": None, "sequence_divergence": None}
    top_k_L = np.array(trace.top_k)
    sums = {
        g: sample.grouped(g, coactivation.consistency_sums(trace.segment_chosen_NLE[g], top_k_L))
        for g in trace.languages
    }
    sequences = _sequences(sample) if sample.paired else None
    if not all(s[:, 1].any() for s in sums.values()):  # a language whose segments have one token each
        return {"consistency": None, "sequence_divergence": sequences}
    halves = half_placebo(
        lambda a, b: abs(coactivation.consistency(a) - coactivation.consistency(b)),
        sums[sample.reference],
        seed=sample.seed,
        most=sample.fewest,
    )
    consistency = {g: _interval(sample, coactivation.consistency, s) for g, s in sums.items()}
    return {
        "consistency": {g: i.value for g, i in consistency.items()},
        "consistency_interval": {g: _limits(i) for g, i in consistency.items()},
        "consistency_placebo": None if np.isnan(halves).all() else np.nanmean(halves, axis=0),
        "sequence_divergence": sequences,
    }


def _interval(sample: Sample, statistic: Callable[..., np.ndarray], rows_DX: np.ndarray) -> Interval:
    return bootstrap_interval(statistic, rows_DX, seed=sample.seed, resamples=RESAMPLES, unit=sample.unit)


def _sequences(sample: Sample) -> dict[str, Any]:
    """D_H-JS of each segment, mean over segments; its placebo compares each with another segment of the reference."""
    trace = sample.trace
    reference_NLE = trace.segment_chosen_NLE[sample.reference]

    def mean(sums_RX: np.ndarray) -> np.ndarray:
        return sums_RX[..., :-1] / sums_RX[..., -1:]

    found = {}
    for g, each_NL in stats.sequence_divergence_from(trace, sample.reference).items():
        with_number = np.concatenate([each_NL, np.ones((len(each_NL), 1))], axis=1)
        found[g] = _interval(sample, mean, sample.grouped(g, with_number))
    other_NLE = np.roll(reference_NLE, len(reference_NLE) // 2, axis=0)
    return {
        "mean": {g: i.value for g, i in found.items()},
        "interval": {g: _limits(i) for g, i in found.items()},
        "placebo": stats.sequence_divergence(other_NLE, reference_NLE, trace.num_experts).mean(axis=0),
    }


def _middle(sample: Sample, given: tuple[int, int] | None, placebo_L: np.ndarray | None) -> dict[str, Any] | None:
    """The middle band; None where it is neither set nor can be found (two layers, or one language)."""
    trace = sample.trace
    if given:
        return asdict(bands.given_band(*given, trace.layer_ids))
    if len(trace.layer_ids) < 3 or not sample.others:
        return None
    row, others = trace.index(sample.reference), [trace.index(g) for g in sample.others]

    def ends(count_RGLE: np.ndarray) -> np.ndarray:
        share_RGLE = stats.slot_share(count_RGLE)
        curves = stats.normalised_divergence(share_RGLE[:, others], share_RGLE[:, row : row + 1], trace.num_experts)
        found = [bands.middle_band(d_GL, trace.layer_ids) for d_GL in curves]
        return np.array([[b.first, b.last] for b in found], dtype=float)

    curve_GL = np.array([stats.divergence_from(trace, sample.reference)[g] for g in sample.others])
    interval = sample.of_counts(ends, kind="percentile")
    noise = None if placebo_L is None else bands.middle_band(placebo_L[None], trace.layer_ids)
    return asdict(bands.middle_band(curve_GL, trace.layer_ids)) | {
        "interval": [interval.low, interval.high] if interval else None,
        "placebo": [noise.first, noise.last] if noise else None,
    }


def _enough(sample: Sample, rule: str) -> bool:
    return len(sample.trace.languages) >= sharing.RULES[rule].least


def _sharing(sample: Sample, rule: str) -> dict[str, Any]:
    """What a rule selects, how many of it again in resamples, and how many it finds in one half of a language only."""
    trace = sample.trace
    row = trace.index(sample.reference)

    def counted(count_GLE: np.ndarray) -> sharing.Counted:
        return sharing.Counted(count_GLE, np.array(trace.num_experts), np.array(trace.top_k), row)

    first = sharing.find(rule, counted(trace.chosen_GLE))
    chosen = {**dict(zip(trace.languages, first.exclusive_GLE, strict=True)), "shared": first.shared_LE}
    record: dict[str, Any] = {
        "source": sharing.RULES[rule].source,
        "experts": {name: _ids(chosen_LE, trace.layer_ids) for name, chosen_LE in chosen.items()},
        "number": {name: int(chosen_LE.sum()) for name, chosen_LE in chosen.items()},
    }
    if not sample.units:
        return record
    draws = resampled(*sample.units, seed=sample.seed, resamples=RULE_RESAMPLES, paired=sample.paired)
    tables = (table_GLE for block in draws for table_GLE in np.stack(block, axis=1))
    found = [sharing.find(rule, counted(table_GLE)) for table_GLE in tables]
    again = np.array([np.concatenate([f.exclusive_GLE, f.shared_LE[None]]) for f in found])
    for i, (name, chosen_LE) in enumerate(chosen.items()):
        numbers_R = again[:, i].sum(axis=(1, 2))
        record.setdefault("interval", {})[name] = np.quantile(numbers_R, [0.025, 0.975])
        kept = again[:, i][:, chosen_LE].mean() if chosen_LE.any() else None
        record.setdefault("again", {})[name] = None if kept is None else round(float(kept), 4)
    halves = (
        sharing.found_in_halves(rule, counted(trace.chosen_GLE), g, units, sample.seed)
        for g, units in enumerate(sample.units)
    )
    return record | {"placebo": {g: float(n.mean()) for g, n in zip(trace.languages, halves, strict=True)}}


def _ids(chosen_LE: np.ndarray, layer_ids: Sequence[int]) -> list[list[int]]:
    """[model layer, expert] of what was chosen."""
    return [[layer_ids[layer], expert] for layer, expert in np.argwhere(chosen_LE).tolist()]


def _pairing(trace: RoutingTrace, seed: int) -> dict[str, Any] | None:
    """Co-activation, where it was captured: how far pairs of experts are from joining by use alone."""
    pairs_GLEE = getattr(trace, "pairs_GLEE", None)
    if pairs_GLEE is None or min(trace.top_k) < 2:
        return None
    return {
        "share": dict(zip(trace.languages, coactivation.pairing(pairs_GLEE), strict=True)),
        "placebo": dict(zip(trace.languages, coactivation.pairing_placebo(pairs_GLEE, seed), strict=True)),
    }
