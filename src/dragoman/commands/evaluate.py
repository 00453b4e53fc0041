"""`dragoman evaluate`: bits per byte and translation quality of models, with intervals and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dragoman.commands import Switch, Tags, require_sample
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation import significance
from dragoman.evaluation.metrics import CHRF, BitsPerByte, Metric, sums_per_segment
from dragoman.record import claim_folder, environment, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

METRICS: dict[str, Metric] = {"bits_per_byte": BitsPerByte(context=0), "chrf": CHRF()}
"""How segment sums become values; the context that the bits were measured with stands in the signatures."""
BATCH_TOKENS = 4096
"""Tokens of a batch when scoring likelihood; logits are the largest array there is."""


@dataclass(frozen=True)
class Config:
    """Evaluate a model, beside others."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    against: Tags = ()
    """Other models, compared on the same segments."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    languages: Tags = ()
    """Languages for bits per byte; default: every language of the corpus."""
    translate: Tags = ()
    """Languages to translate into, scored by chrF beside copying the source."""
    source: str = "en"
    """Language translated from."""
    split: str = "devtest"
    """Which split to read; test stays sealed."""
    segments: int = 300
    """At most so many segments per language."""
    out: Path = Path("evaluation")
    """New folder for record.json."""
    seed: int = 0
    """Of the bootstrap."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        require_sample(self.segments, self.seed)


def run(config: Config) -> dict[str, Any]:
    """Score models on the same held-out segments: a table with intervals and paired comparisons, and a record."""
    from dragoman.modeling import open_both

    names = (config.model, *config.against)
    if len(set(names)) < len(names):
        raise ConfigError(f"a model is named twice in {', '.join(names)}; compare different ones")
    if config.source in config.translate:
        raise ConfigError(f"{config.source} is both source and target; give another --source or --translate")
    corpus = open_corpus(config.corpus)
    languages = config.languages or corpus.languages
    corpus.require([*languages, config.source, *config.translate])
    for target in config.translate:
        parallel(corpus, target, config)  # too few pairs are told before an hour of work
    opened = open_both(config.model)
    out = claim_folder(config.out)
    scored = {}
    for name in names:
        model, codec = opened if name == config.model else open_both(name)
        scored[name] = score_model(model, codec, corpus, languages, config.translate, config)
    if config.translate:
        scored["copy"] = score_copy(corpus, config.translate, config)
    record = environment() | {"command": "evaluate", "config": asdict(config), "corpus": corpus.about}
    record |= tables(scored, config.seed)
    write_json(out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print the tables."""
    for metric in ("bits_per_byte", "chrf"):
        for system, row in record[metric].items():
            cells = " ".join(f"{g} {v:.3f}" if metric == "bits_per_byte" else f"{g} {v:.1f}" for g, v in row.items())
            if cells:
                print(f"{metric:14} {system:20} {cells}")
    for c in record["comparisons"]:
        print(
            f"{c['metric']} {c['language']}: {c['a']} - {c['b']} = {c['difference']:+.3f} "
            f"[{c['low']:+.3f}, {c['high']:+.3f}] p {c['p_value']:.4f} (Holm {c['p_holm']:.4f})"
        )


def held_out(corpus: NText, split: str, segments: int) -> dict[str, NText]:
    """The rows that each language is scored on: the first ones that it has."""
    tables = {g: corpus.select([g], split, complete=True) for g in corpus.languages}
    return {g: t.take(range(min(segments, len(t)))) for g, t in tables.items()}


def score_model(
    model: PreTrainedModel,
    codec: TextCodec,
    corpus: NText,
    languages: Sequence[str],
    translate: Sequence[str],
    config: Any,
) -> dict[str, Any]:
    """Segment sums of a model: bits and bytes by language, chrF counts and outputs by language translated into.

    config: has source, split, segments and quiet. Plain lists, so that a run can keep them as JSON and go on later.
    """
    from dragoman.evaluation.likelihood import text_bits
    from dragoman.modeling import context_length

    rows = held_out(corpus, config.split, config.segments)
    if empty := [g for g in languages if len(rows[g]) < 2]:
        raise DataError(f"fewer than two segments of {', '.join(empty)} in split {config.split}; use another split")
    metric = BitsPerByte(context_length(model))
    sums = _empty_sums()
    sums["signatures"] = {"bits_per_byte": metric.signature(), "chrf": CHRF().signature()}
    for g in tqdm(languages, desc="bits per byte", unit=" languages", disable=config.quiet, delay=2):
        texts = [t for t in rows[g].columns[g] if t is not None]
        bits = text_bits(
            model,
            codec.encode(texts),
            start_id=codec.start_id,
            context=context_length(model),
            batch_tokens=BATCH_TOKENS,
        )
        sums["bits_per_byte"][g] = sums_per_segment(metric, bits.tolist(), texts).tolist()
        sums["documents"]["bits_per_byte"][g] = list(rows[g].documents)
    for g in translate:
        outputs = translations(model, codec, parallel(corpus, g, config), g, config)
        _add_chrf(sums, g, outputs, parallel(corpus, g, config))
    return sums


def _empty_sums() -> dict[str, Any]:
    return {"bits_per_byte": {}, "chrf": {}, "outputs": {}, "documents": {"bits_per_byte": {}, "chrf": {}}}


def _add_chrf(sums: dict[str, Any], target: str, outputs: list[str], table: NText) -> None:
    sums["outputs"][target] = outputs
    sums["chrf"][target] = sums_per_segment(CHRF(), outputs, cells(table, target)).tolist()
    sums["documents"]["chrf"][target] = list(table.documents)


def cells(table: NText, tag: str) -> list[str]:
    """The texts of a column that has no gap."""
    return [t for t in table.columns[tag] if t is not None]


def parallel(corpus: NText, target: str, config: Any) -> NText:
    """The rows of a direction: those that have source and reference."""
    table = corpus.select([config.source, target], config.split, complete=True)
    table = table.take(range(min(config.segments, len(table))))
    if len(table) < 2:
        raise DataError(f"fewer than two pairs {config.source} -> {target} in split {config.split}; use another split")
    return table


def translations(model: PreTrainedModel, codec: TextCodec, table: NText, target: str, config: Any) -> list[str]:
    """Greedy translations of the held-out sources, one line each."""
    from dragoman.translation.engines import translate_greedy

    names = {g: language(g).name for g in (config.source, target)}
    prompts = codec.prompts(cells(table, config.source), config.source, target, names)
    with tqdm(total=len(prompts), desc=f"into {target}", unit=" segments", disable=config.quiet, delay=2) as bar:
        new = translate_greedy(model, prompts, end_id=codec.end_id, pad_id=codec.pad_id, progress=bar.update)
    return [" ".join(codec.decode(ids).split("\n")[0].split()) for ids in new]


def score_copy(corpus: NText, translate: Sequence[str], config: Any) -> dict[str, Any]:
    """The system that returns its source: what a translation must beat."""
    sums = _empty_sums()
    for g in translate:
        table = parallel(corpus, g, config)
        _add_chrf(sums, g, cells(table, config.source), table)
    return sums


def tables(scored: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Values, intervals and comparisons of every two systems from segment sums, resampled by document."""
    first = next(iter(scored.values()))
    result: dict[str, Any] = {"signatures": first["signatures"], "comparisons": []}
    for name, metric in METRICS.items():
        result |= values(scored, name, seed)
        result["comparisons"] += comparisons(scored, name, metric, seed)
    return result


def values(scored: Mapping[str, Mapping[str, Any]], name: str, seed: int) -> dict[str, Any]:
    """Values and intervals of one metric: {name: {system: {language: value}}, name_interval: ...}."""
    metric = METRICS[name]
    found = {s: {g: _interval(by, name, g, metric, seed) for g in by[name]} for s, by in scored.items()}
    found = {s: by for s, by in found.items() if by}
    return {
        name: {s: {g: i.value for g, i in by.items()} for s, by in found.items()},
        f"{name}_interval": {s: {g: [i.low, i.high] for g, i in by.items()} for s, by in found.items()},
    }


def comparisons(scored: Mapping[str, Mapping[str, Any]], name: str, metric: Metric, seed: int) -> list[dict[str, Any]]:
    """Paired bootstrap of every two systems in every language both have; Holm over the pairs of one language."""
    languages = dict.fromkeys(g for by in scored.values() for g in by[name])
    result = []
    for g in languages:
        there = [s for s, by in scored.items() if g in by[name]]
        pairs = [
            {"metric": name, "language": g, **compare(scored, a, b, name, g, metric, seed)}
            for a, b in combinations(there, 2)
        ]
        adjusted = significance.holm([pair["p_value"] for pair in pairs])
        result += [pair | {"p_holm": float(p)} for pair, p in zip(pairs, adjusted, strict=True)]
    return result


def compare(
    scored: Mapping[str, Mapping[str, Any]], a: str, b: str, name: str, language: str, metric: Metric, seed: int
) -> dict[str, Any]:
    """System a minus system b in one metric and language, paired bootstrap by document."""
    sums_a_NS, sums_b_NS = (np.array(scored[s][name][language]) for s in (a, b))
    units = _units(scored[a]["documents"][name][language])
    found = significance.paired_bootstrap(sums_a_NS, sums_b_NS, metric.from_sums, documents=units, seed=seed)
    return {"a": a, "b": b, **asdict(found)}


def _interval(by: Mapping[str, Any], name: str, language: str, metric: Metric, seed: int) -> significance.Interval:
    units = _units(by["documents"][name][language])
    return significance.interval(np.array(by[name][language]), metric.from_sums, documents=units, seed=seed)


def _units(documents: list[str]) -> list[str] | None:
    """Documents to resample by; None (segments are resampled) where all is one document."""
    return documents if len(set(documents)) > 1 else None
