"""`dragoman diagnose`: how a model routes each language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dragoman.commands import Switch, Tags, require_sample
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.errors import DataError
from dragoman.record import claim_folder, environment, write_json
from dragoman.routing import stats
from dragoman.routing.trace import RoutingTrace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

# Shape letters: G languages, L MoE layers, E experts, N segments.

MIN_PARALLEL = 20
"""Complete rows from which on segments are compared pairwise; below, a language may use all the text it has."""


@dataclass(frozen=True)
class Config:
    """Capture routing and describe it."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    languages: Tags = ()
    """BCP-47 tags; default: every language of the corpus."""
    split: str = "dev"
    """Which split to read."""
    segments: int = 300
    """At most so many segments per language."""
    reference: str = "en"
    """Language that divergence is measured from."""
    out: Path = Path("diagnosis")
    """New folder for trace.npz and record.json."""
    seed: int = 0
    """Of the bootstrap and the placebo."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)


def run(config: Config) -> dict[str, Any]:
    """Capture the routing of every language of a corpus: a trace, its statistics and a record."""
    from dragoman.modeling import model_checksum, moe_layers, open_both

    corpus = open_corpus(config.corpus)
    languages = config.languages or corpus.languages
    corpus.require([*languages, config.reference])
    model, codec = open_both(config.model)
    moe_layers(model)  # a dense model is refused before anything is written
    out = claim_folder(config.out)
    languages = tuple(dict.fromkeys([config.reference, *languages]))
    about = {"model": config.model, "model_sha256": model_checksum(config.model), "corpus_sha256": corpus.checksum()}
    text, parallel = aligned(corpus, languages, config.split, config.segments)
    trace = trace_of(model, codec, text, about=about | {"parallel": parallel}, quiet=config.quiet)
    trace.save(out / "trace.npz")
    record = environment() | {
        "command": "diagnose",
        "config": asdict(config),
        "corpus": corpus.about,
        "routing": describe(trace, config.reference, config.seed),
    }
    write_json(out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print the divergence of every language, by thirds of the depth."""
    routing = record["routing"]
    print(f"divergence from {record['config']['reference']} (D_H-JS, 0 to 1), mean over early, middle, late layers")
    for language, curve in routing["divergence"].items():
        thirds = [float(np.mean(part)) for part in np.array_split(curve, 3)]
        print(f"  {language:8}" + "".join(f"{x:8.3f}" for x in thirds))
    print(f"  {'placebo':8}" + "".join(f"{float(np.mean(p)):8.3f}" for p in np.array_split(routing["placebo"], 3)))
    print(f"trace and record are in {record['config']['out']}")


def aligned(corpus: NText, languages: Sequence[str], split: str, segments: int) -> tuple[dict[str, list[str]], bool]:
    """Texts by language, and whether they are the same rows in all: so where `MIN_PARALLEL` rows are complete.

    Otherwise each language has its own first segments, and statistics that pair segments are left out. Raises
    DataError for languages that have no text in the split.
    """
    complete = corpus.select(languages, split, complete=True)
    if len(complete) >= min(MIN_PARALLEL, segments):
        return {g: complete.texts(g, split)[:segments] for g in languages}, True
    texts = {g: corpus.texts(g, split)[:segments] for g in languages}
    if empty := [g for g, t in texts.items() if len(t) < 2]:
        raise DataError(
            f"fewer than two segments of {', '.join(empty)} in split {split}; give more rows, or a column `split`"
        )
    return texts, False


def trace_of(
    model: PreTrainedModel,
    codec: TextCodec,
    texts: dict[str, list[str]],
    *,
    about: dict[str, Any],
    quiet: bool,
) -> RoutingTrace:
    """Trace of plain text, without language tags: a tag would tell the router the language."""
    from dragoman.routing.capture import capture

    ids = {g: codec.encode(t) for g, t in texts.items()}
    total = sum(len(i) for segments in ids.values() for i in segments)
    about = about | {"overlap": overlap(ids)}
    with tqdm(total=total, unit=" tokens", desc="capture", disable=quiet, delay=2) as bar:
        return capture(model, ids, start_id=codec.start_id, about=about, progress=bar.update)


def overlap(ids: dict[str, list[list[int]]]) -> dict[str, dict[str, float]]:
    """Vocabulary overlap of every two languages, by token types."""
    counts: dict[str, Counter[Hashable]] = {g: Counter(t for s in segments for t in s) for g, segments in ids.items()}
    return {a: {b: round(stats.vocabulary_overlap(counts[a], counts[b]), 6) for b in counts if b != a} for a in counts}


def describe(trace: RoutingTrace, reference: str, seed: int) -> dict[str, Any]:
    """Statistics of a trace as they stand in a record: divergence, entropy, specialisation, noise floor, intervals."""
    num_experts_L = np.array(trace.num_experts)
    shares_GLE = stats.slot_share(trace.chosen_GLE, trace.languages, trace.layer_ids)
    divergence = stats.divergence_from(trace, reference)
    segments = trace.segment_chosen_NLE
    english_NLE = segments[reference]
    paired = {g: n for g, n in segments.items() if g != reference} if trace.about.get("parallel") else {}
    intervals = {g: _divergence_interval(n, english_NLE, num_experts_L, seed) for g, n in paired.items()}
    specialisation = (
        stats.bootstrap_interval(
            lambda *count_RLE: _specialisation(np.stack(count_RLE, axis=-3)),
            *segments.values(),
            seed=seed,
            resamples=200,
        )
        if paired
        else None
    )
    balance = stats.load_balance(trace.chosen_GLE.sum(axis=0), num_experts_L)
    return {
        "reference": reference,
        "layer_ids": trace.layer_ids,
        "divergence": {g: d for g, d in divergence.items() if g != reference},
        "divergence_interval": intervals,
        "placebo": stats.split_half_placebo(english_NLE, seed, num_experts_L).mean(axis=0),
        "entropy": dict(zip(trace.languages, stats.entropy(shares_GLE), strict=True)),
        "specialisation": stats.language_specialisation(trace.chosen_GLE, trace.languages, trace.layer_ids),
        "specialisation_interval": [specialisation.low, specialisation.high] if specialisation else None,
        "load_variation": balance.variation_XL,
        "dead_experts": balance.dead_XL,
        "tokens": dict(zip(trace.languages, trace.tokens_G.tolist(), strict=True)),
    }


def _divergence_interval(
    count_NLE: np.ndarray, english_NLE: np.ndarray, num_experts_L: np.ndarray, seed: int
) -> list[np.ndarray]:
    found = stats.bootstrap_interval(
        lambda a_RLE, b_RLE: stats.normalised_divergence(
            stats.slot_share(a_RLE), stats.slot_share(b_RLE), num_experts_L
        ),
        count_NLE,
        english_NLE,
        seed=seed,
        resamples=200,
    )
    return [found.low, found.high]


def _specialisation(count_RGLE: np.ndarray) -> np.ndarray:
    flat = count_RGLE.reshape(-1, *count_RGLE.shape[-3:])
    return np.array([stats.language_specialisation(c_GLE) for c_GLE in flat]).reshape(*count_RGLE.shape[:-3], -1)
