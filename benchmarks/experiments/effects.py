"""What training did to routing, from four models and random routers, as effects for the report of question 1.

    python -m benchmarks.experiments.effects runs/english runs/multilingual runs/control mini-moe help.tsv.gz \\
        effects.json --diagnosis runs/diagnosis/record.json

Every bootstrap draw takes the same documents of all models and, for the random routers, of the mean of all their draws.

Shape letters: N segments, U documents, G languages, L layers, E experts, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from cyclopts import run
from transformers import PreTrainedModel

from benchmarks.random_routers import chosen, segment_states
from dragoman.commands.diagnose import aligned, documents_of
from dragoman.corpora.pack import KNOWN, open_corpus
from dragoman.modeling import TextCodec, model_checksum, moe_layers, open_both
from dragoman.record import read_json, write_json
from dragoman.routing import stats
from dragoman.routing.capture import capture

DRAWS, RESAMPLES, SEGMENTS = 20, 1000, 300


def last_minus_first(count_GLE: np.ndarray) -> float:
    """Specialisation of the last quarter of the layers minus that of the first half."""
    specialisation_L = stats.language_specialisation(count_GLE)
    layers = len(specialisation_L)
    return float(specialisation_L[-(layers // 4) :].mean() - specialisation_L[: layers // 2].mean())


def ends_over_middle(count_GLE: np.ndarray) -> float:
    """Divergence from the first language: mean of the first and last eighth of the layers minus their middle half's."""
    share_GLE = stats.slot_share(count_GLE)
    experts_L = np.full(count_GLE.shape[1], count_GLE.shape[2])
    by = [stats.normalised_divergence(share_LE, share_GLE[0], experts_L) for share_LE in share_GLE[1:]]
    mean_L = np.mean(by, axis=0)
    eighth = len(mean_L) // 8
    ends = np.concatenate([mean_L[:eighth], mean_L[-eighth:]])
    return float(ends.mean() - mean_L[2 * eighth : -2 * eighth].mean())


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


def effects(
    english: str, multilingual: str, control: str, base: str, corpus: Path, out: Path, *, diagnosis: Path
) -> None:
    """Measure the effects and write them.

    english, multilingual, control: folders of the first model and of its two continuations. base: the model that ships,
    of which the diagnosis is.
    """
    text = open_corpus(str(corpus))
    texts, _ = aligned(text, KNOWN, "devtest", SEGMENTS, True)
    documents = documents_of(text, KNOWN, "devtest", SEGMENTS, True)[KNOWN[0]]
    models = {"english": english, "multilingual": multilingual, "control": control, "base": base}
    count = {name: by_document(counted(*open_both(model), texts), documents) for name, model in models.items()}
    drawn = [by_document(count_GNLE, documents) for count_GNLE in random_counts(*open_both(base), texts)]

    def over(*counts_UGLE: np.ndarray) -> dict:
        return effect(_over_the_rest, np.stack(counts_UGLE, axis=1))

    partial = read_json(diagnosis)["routing"]["relations"]["partial"]
    found = {
        "growth_over_control": over(count["multilingual"], count["control"]),
        "growth_over_english": over(count["multilingual"], count["english"]),
        "control_over_english": over(count["control"], count["english"]),
        "over_random": over(count["base"], *drawn),
        "u_shape": effect(lambda c: ends_over_middle(c[0]), count["base"][:, None]),
        "u_shape_of_multilingual": effect(lambda c: ends_over_middle(c[0]), count["multilingual"][:, None]),
        "u_shape_of_english": effect(lambda c: ends_over_middle(c[0]), count["english"][:, None]),
    }
    for name in ("overlap_given_family", "family_given_overlap"):
        found[name] = {"difference": partial[name]["r"], "p_value": partial[name]["p"], "better": "higher"}
    for name, count_UGLE in count.items():
        found[name] = described(count_UGLE.sum(axis=0)) | {"model_sha256": model_checksum(models[name])}
    write_json(out, found)


def _over_the_rest(count_MGLE: np.ndarray) -> float:
    return last_minus_first(count_MGLE[0]) - float(np.mean([last_minus_first(c) for c in count_MGLE[1:]]))


def counted(model: PreTrainedModel, codec: TextCodec, texts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """count_GNLE of a model's own routers."""
    trace = capture(model, {g: codec.encode(t) for g, t in texts.items()}, start_id=codec.start_id)
    return np.stack([trace.segment_chosen_NLE[g] for g in texts])


def random_counts(model: PreTrainedModel, codec: TextCodec, texts: Mapping[str, Sequence[str]]) -> Iterator[np.ndarray]:
    """count_GNLE of each draw of random routers on the hidden states of a model."""
    states = {g: segment_states(model, codec, codec.encode(t), True) for g, t in texts.items()}
    layer = moe_layers(model)[0]
    for draw in range(DRAWS):
        yield np.stack([chosen(s, layer.num_experts, layer.top_k, draw) for s in states.values()])


def described(count_GLE: np.ndarray) -> dict:
    """Specialisation by layer and the two statistics: point values of one model."""
    return {
        "specialisation": [float(s) for s in stats.language_specialisation(count_GLE)],
        "last_minus_first": last_minus_first(count_GLE),
        "ends_over_middle": ends_over_middle(count_GLE),
    }


if __name__ == "__main__":
    run(effects)
