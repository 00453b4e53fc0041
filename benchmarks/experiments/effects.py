"""What training did to routing, from three models and random routers, as effects for the report of question 1.

    python -m benchmarks.experiments.effects runs/base runs/multilingual runs/control help.tsv.gz effects.json \\
        --diagnosis runs/diagnosis/record.json

Last minus first: specialisation, mean of the last two layers minus that of the first four. Every bootstrap draw takes
the same documents of all models and, for the random routers, of the mean of all their draws.

Shape letters: N segments, U documents, G languages, L layers, E experts, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from cyclopts import run

from benchmarks.random_routers import chosen, segment_states
from dragoman.commands.diagnose import aligned, documents_of
from dragoman.corpora.pack import KNOWN, open_corpus
from dragoman.modeling import moe_layers, open_both
from dragoman.record import read_json, write_json
from dragoman.routing import stats
from dragoman.routing.capture import capture

DRAWS, RESAMPLES, SEGMENTS = 20, 1000, 300


def last_minus_first(count_GLE: np.ndarray) -> float:
    """Specialisation of the last two layers minus that of the first four."""
    specialisation_L = stats.language_specialisation(count_GLE)
    return float(specialisation_L[-2:].mean() - specialisation_L[:4].mean())


def ends_over_middle(count_GLE: np.ndarray) -> float:
    """Divergence from the first language: mean of the first and the last layer minus that of the middle four."""
    share_GLE = stats.slot_share(count_GLE)
    experts_L = np.full(count_GLE.shape[1], count_GLE.shape[2])
    by = [stats.normalised_divergence(share_LE, share_GLE[0], experts_L) for share_LE in share_GLE[1:]]
    mean_L = np.mean(by, axis=0)
    middle = len(mean_L) // 2
    return float(mean_L[[0, -1]].mean() - mean_L[middle - 2 : middle + 2].mean())


def by_document(count_GNLE: np.ndarray, documents: list[str]) -> np.ndarray:
    """count_UGLE, documents in order of their names."""
    names, document_N = np.unique(documents, return_inverse=True)
    count_UGLE = np.zeros((len(names), count_GNLE.shape[0], *count_GNLE.shape[2:]))
    np.add.at(count_UGLE, document_N, np.moveaxis(count_GNLE, 1, 0))
    return count_UGLE


def effect(statistic: Callable[[np.ndarray], float], count_UMGLE: np.ndarray, better: str = "higher") -> dict:
    """A statistic of counts [M, G, L, E] with its percentile interval and p-value over documents."""
    rng = np.random.default_rng(0)
    units = len(count_UMGLE)
    value = statistic(count_UMGLE.sum(axis=0))
    drawn_R = np.array([
        statistic(np.tensordot(np.bincount(rng.integers(units, size=units), minlength=units), count_UMGLE, axes=1))
        for _ in range(RESAMPLES)
    ])  # fmt: skip
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    p_value = (1 + (np.abs(drawn_R - value) >= abs(value)).sum()) / (1 + RESAMPLES)
    found = {"difference": value, "low": low, "high": high, "p_value": p_value, "units": units, "better": better}
    return {k: v if isinstance(v, (int, str)) else float(v) for k, v in found.items()}


def effects(base: str, multilingual: str, control: str, corpus: Path, out: Path, *, diagnosis: Path) -> None:
    """Measure the effects and write them."""
    text = open_corpus(str(corpus))
    texts, _ = aligned(text, KNOWN, "devtest", SEGMENTS, True)
    documents = documents_of(text, KNOWN, "devtest", SEGMENTS, True)[KNOWN[0]]
    counts = []
    for name in (base, multilingual, control):
        model, codec = open_both(name)
        ids = {g: codec.encode(t) for g, t in texts.items()}
        trace = capture(model, ids, start_id=codec.start_id)
        counts.append(by_document(np.stack([trace.segment_chosen_NLE[g] for g in KNOWN]), documents))
        if name == multilingual:
            states = {g: segment_states(model, codec, ids[g], True) for g in KNOWN}
            layer = moe_layers(model)[0]
            random = [
                by_document(np.stack([chosen(states[g], layer.num_experts, layer.top_k, d) for g in KNOWN]), documents)
                for d in range(DRAWS)
            ]
    base_UGLE, ours_UGLE, control_UGLE = counts
    both = np.stack([ours_UGLE, control_UGLE], axis=1)
    drawn = np.stack([ours_UGLE, *random], axis=1)
    partial = read_json(diagnosis)["relations"]["partial"]
    found = {
        "growth_over_control": effect(lambda c: last_minus_first(c[0]) - last_minus_first(c[1]), both),
        "over_random": effect(
            lambda c: last_minus_first(c[0]) - float(np.mean([last_minus_first(r) for r in c[1:]])), drawn
        ),
        "u_shape": effect(lambda c: ends_over_middle(c[0]), ours_UGLE[:, None]),
        "growth_over_base": effect(
            lambda c: last_minus_first(c[0]) - last_minus_first(c[1]), np.stack([ours_UGLE, base_UGLE], axis=1)
        ),
    }
    for name in ("overlap_given_family", "family_given_overlap"):
        found[name] = {"difference": partial[name]["r"], "p_value": partial[name]["p"], "better": "higher"}
    write_json(out, found)


if __name__ == "__main__":
    run(effects)
