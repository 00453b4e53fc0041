"""Scoring: segment sums of systems on held-out text, and from them values, intervals and comparisons.

What a system scored is plain lists (a run keeps them as JSON and goes on later):

    {"bits_per_byte": {language: sums_NS}, "chrf": {label: sums_NS}, ..., "outputs": {label: [N texts]},
     "documents": {metric: {label: [N names]}}, "signatures": {metric: text}, "cut": {metric: {label: [numbers]}}}

A label names what a value is about: a language for likelihoods, a direction such as `en-de` for translations.
"""

# Shape letters: N segments, S sums of a metric.

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dragoman.commands import another_split
from dragoman.commands.measures import Formula, formula, judged
from dragoman.corpora.choices import Choice
from dragoman.corpora.items import spread
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText, normalise
from dragoman.corpora.parting import refuse_untranslated
from dragoman.errors import DataError
from dragoman.evaluation import significance
from dragoman.evaluation.metrics import CHRF, METRICS, BitsPerByte, Metric
from dragoman.record import atomic_write, sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

Scored = Mapping[str, Mapping[str, Any]]
"""System -> what it scored."""
Directions = Mapping[str, tuple[str, str]]
"""Label -> source and target language."""
RESAMPLES, PER_COMPARISON = 2000, 40
"""Resamples of a comparison: at least so many, and so many for each one that Holm takes with it. The smallest p that R
resamples can give is 1 / (R + 1)."""
BATCH_TOKENS = 4096
"""Tokens of a batch when scoring likelihood; logits are the largest array there is."""


# Held-out rows


MEASURED = ("dev", "devtest")
"""Splits that are there to be measured on; what is in train a model may know by heart."""


def first_rows(corpus: NText, language: str, split: str, segments: int) -> NText:
    """The first rows of a split that have text in a language, at most so many."""
    return _rows(corpus, [language], split, segments)


def _rows(corpus: NText, languages: Sequence[str], split: str, segments: int, evenly: bool = False) -> NText:
    table = corpus.select(languages, split, complete=True)
    return table.take(spread(range(len(table)), segments) if evenly else range(min(segments, len(table))))


def held_out(
    corpus: NText, languages: Sequence[str], split: str, segments: int, evenly: bool = False
) -> dict[str, NText]:
    """The rows that each language is scored on, the first or spread evenly. DataError where they are of no use."""
    tables = {g: _rows(corpus, [g], split, segments, evenly) for g in languages}
    if empty := [g for g, t in tables.items() if len(t) < 2]:
        way_out = another_split(corpus, empty, split, among=MEASURED)
        raise DataError(f"fewer than two segments of {', '.join(empty)} in split {split}; {way_out}")
    return tables


def cells(table: NText, tag: str) -> list[str]:
    """The texts of a column that has no gap."""
    return [t for t in table.columns[tag] if t is not None]


def parallel(corpus: NText, source: str, target: str, split: str, segments: int, evenly: bool = False) -> NText:
    """The rows of a direction, the first with source and reference or spread evenly over them.

    Raises DataError where they are of no use.
    """
    table = _rows(corpus, [source, target], split, segments, evenly)
    if len(table) < 2:
        way_out = another_split(corpus, [source, target], split, complete=True, among=MEASURED)
        raise DataError(f"fewer than two pairs {source} -> {target} in split {split}; {way_out}")
    name = corpus.about.get("name", "the corpus")
    refuse_untranslated(cells(table, source), cells(table, target), f"{source} -> {target} in {name}")
    return table


# Systems


def empty_sums() -> dict[str, Any]:
    """What a system scored before anything was."""
    return {"outputs": {}, "documents": {}, "signatures": {}}


def add_sums(sums: dict[str, Any], name: str, label: str, sums_NS: np.ndarray, documents: Sequence[str]) -> None:
    """Put one metric's sums under its label."""
    sums.setdefault(name, {})[label] = sums_NS.tolist()
    sums["documents"].setdefault(name, {})[label] = list(documents)


def add_likelihoods(
    sums: dict[str, Any], model: PreTrainedModel, codec: TextCodec, rows: Mapping[str, NText], quiet: bool
) -> None:
    """Bits per byte of each language on its rows."""
    from dragoman.evaluation.likelihood import text_bits
    from dragoman.modeling import context_length

    context = context_length(model)
    metric = BitsPerByte(context)
    sums["bits_per_byte"] = {}
    for g in tqdm(rows, desc="bits per byte", unit=" languages", disable=quiet, delay=2):
        sums["signatures"]["bits_per_byte"] = metric.signature()
        texts = cells(rows[g], g)
        ids = codec.encode(texts)
        bits_N = text_bits(model, ids, start_id=codec.start_id, context=context, batch_tokens=BATCH_TOKENS)
        if share := unknown_share(ids, codec.tokenizer.unk_token_id):
            sums.setdefault("unknown", {})[g] = share
        add_sums(sums, "bits_per_byte", g, np.array([*map(metric.segment_sums, bits_N, texts)]), rows[g].documents)


def unknown_share(ids: Sequence[Sequence[int]], unk_id: int | None) -> float:
    """Share of tokens that stand for anything the vocabulary lacks, whatever bytes that has."""
    return sum(i == unk_id for row in ids for i in row) / max(1, sum(map(len, ids)))


def add_texts(
    sums: dict[str, Any],
    label: str,
    outputs: Sequence[str],
    table: NText,
    metrics: Mapping[str, Metric],
    terms: Sequence[Sequence[str]] | None = None,
) -> None:
    """Sums of a system's answers. table: columns source and target, or the target alone where no source is known."""
    texts: list[Sequence[Any]] = [cells(table, g) for g in reversed(table.languages)]
    columns = dict(zip(("references", "sources"), texts, strict=False)) | ({} if terms is None else {"terms": terms})
    sums["outputs"][label] = list(outputs)
    for name, metric in metrics.items():
        taken = (*metric.needs, *metric.chosen_by)
        if set(taken) <= set(columns):
            against = [columns[need] for need in taken]
            add_sums(sums, name, label, metric.all_sums(list(outputs), *against), table.documents)
            if cut := metric.cut(list(outputs), *against):
                sums.setdefault("cut", {}).setdefault(name, {})[label] = cut
            sums["signatures"][name] = _joined(sums["signatures"].get(name), metric.signature())


def _joined(before: str | None, signature: str) -> str:
    """One signature for all labels: where settings depend on the language, all their values, as in `tok:13a+zh`."""
    if before is None:
        return signature
    pairs = zip(before.split("|"), signature.split("|"), strict=True)
    return "|".join(a if _value(b) in _value(a).split("+") else f"{a}+{_value(b)}" for a, b in pairs)


def _value(setting: str) -> str:
    return setting.partition(":")[2]


def prompts_of(codec: TextCodec, table: NText) -> list[list[int]]:
    """What a model is shown to translate the table's first column into its second."""
    source, target = table.languages
    return codec.prompts(cells(table, source), source, target, {g: language(g).name for g in table.languages})


def translations(
    model: PreTrainedModel, codec: TextCodec, table: NText, label: str, quiet: bool, stops: Any = None
) -> list[str]:
    """Greedy translations of the table's first column into its second, one line each.

    Most tokens: twice those of the prompt or of the reference, and 20 more. A tokenizer may need several times as many
    for the target as for the source, and a translation that is cut would be scored as a bad one.
    """
    from dragoman.modeling import context_length
    from dragoman.translation.engines import stops_of, translate_greedy

    prompts = prompts_of(codec, table)
    references = codec.encode(cells(table, table.languages[1]))
    with tqdm(total=len(prompts), desc=label, unit=" segments", disable=quiet, delay=2) as bar:
        new = translate_greedy(
            model,
            prompts,
            stops=stops or stops_of(model, codec),
            pad_id=codec.pad_id,
            max_new=[2 * max(len(p), len(r)) + 20 for p, r in zip(prompts, references, strict=True)],
            context=context_length(model),
            progress=bar.update,
        )
    return [normalise(codec.decode(ids).split("\n")[0]) for ids in new]  # as references are


def add_choices(
    sums: dict[str, Any], model: PreTrainedModel, codec: TextCodec, choices: Mapping[str, Sequence[Choice]], quiet: bool
) -> None:
    """How often the right option of each language's items is the likeliest."""
    from dragoman.evaluation.options import Options, option_bits
    from dragoman.modeling import context_length

    metric = METRICS["option_accuracy"]()
    for g, items in tqdm(choices.items(), desc="multiple choice", unit=" languages", disable=quiet, delay=2):
        sums["signatures"]["option_accuracy"] = metric.signature()
        prompts = codec.encode([item.context for item in items])
        tokens = [Options(p, codec.encode(item.options)) for p, item in zip(prompts, items, strict=True)]
        bits = option_bits(
            model, tokens, start_id=codec.start_id, context=context_length(model), batch_tokens=BATCH_TOKENS
        )
        costs = [
            [(b, len(option.encode())) for b, option in zip(bits_O, item.options, strict=True)]
            for bits_O, item in zip(bits, items, strict=True)
        ]
        sums_NS = metric.all_sums(costs, [item.answer for item in items])
        add_sums(sums, "option_accuracy", g, sums_NS, [item.document for item in items])


def score_model(
    model: PreTrainedModel,
    codec: TextCodec,
    corpus: NText,
    languages: Sequence[str],
    directions: Directions,
    *,
    split: str = "devtest",
    segments: int = 300,
    evenly: bool = False,
    metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Segment sums of a model: bits per byte of languages, and its translations in directions.

    metrics: label -> metrics of that direction; chrF where it is None.
    """
    from dragoman.translation.engines import stops_of

    rows = held_out(corpus, languages, split, segments, evenly)
    sums = empty_sums() | {"chrf": {}}
    add_likelihoods(sums, model, codec, rows, quiet)
    stops = stops_of(model, codec) if directions else None
    for label, (source, target) in directions.items():
        table = parallel(corpus, source, target, split, segments, evenly)
        outputs = translations(model, codec, table, label, quiet, stops)
        add_texts(sums, label, outputs, table, metrics[label] if metrics else {"chrf": CHRF()})
    return sums


def score_copy(
    corpus: NText,
    directions: Directions,
    *,
    split: str = "devtest",
    segments: int = 300,
    evenly: bool = False,
    metrics: Mapping[str, Mapping[str, Metric]] | None = None,
) -> dict[str, Any]:
    """The system that returns its source: what a translation must beat. Metrics against the source leave it out."""
    sums = empty_sums() | {"bits_per_byte": {}, "chrf": {}}
    for label, (source, target) in directions.items():
        table = parallel(corpus, source, target, split, segments, evenly)
        chosen = metrics[label] if metrics else {"chrf": CHRF()}
        only = {name: metric for name, metric in chosen.items() if metric.needs == ("references",)}
        add_texts(sums, label, cells(table, source), table, only)
    return sums


# Values and comparisons


def tables(scored: Scored, seed: int, names: Sequence[str] = ("bits_per_byte", "chrf")) -> dict[str, Any]:
    """Values, intervals and comparisons of every two systems, Holm over the pairs of one label."""
    first = next(iter(scored.values()))
    result: dict[str, Any] = {"signatures": first["signatures"], "comparisons": []}
    for name in names:
        result |= values(scored, name, seed)
        for label in _labels(scored, name):
            there = [s for s, by in scored.items() if label in by.get(name, {})]
            result["comparisons"] += comparisons(scored, name, [(a, b, label) for a, b in combinations(there, 2)], seed)
    return result


def _labels(scored: Scored, name: str) -> list[str]:
    return list(dict.fromkeys(label for by in scored.values() for label in by.get(name, {})))


def values(scored: Scored, name: str, seed: int) -> dict[str, Any]:
    """Values and intervals of one metric: {name: {system: {label: value}}, name_interval: ...}.

    Of a rate also name_judged, the segments that it is of; where they are 0 there is no value.
    """
    from_sums, there = formula(name), {s: by[name] for s, by in scored.items() if by.get(name)}
    of = {s: {g: judged(name, np.sum(sums, axis=0)) for g, sums in by.items()} for s, by in there.items()}
    found = {
        s: {g: _interval(scored[s], name, g, from_sums, seed) for g, n in by.items() if n != 0} for s, by in of.items()
    }
    counted = any(n is not None for by in of.values() for n in by.values())
    return ({f"{name}_judged": of} if counted else {}) | {
        name: {s: {g: i.value for g, i in by.items()} for s, by in found.items()},
        f"{name}_interval": {s: {g: [i.low, i.high] for g, i in by.items()} for s, by in found.items()},
    }


def comparisons(scored: Scored, name: str, pairs: Sequence[tuple[str, str, str]], seed: int) -> list[dict[str, Any]]:
    """Paired bootstrap of each (a, b, label), Holm over all of them."""
    of = {"metric": name}
    found = [of | {"language": g, **compare(scored, a, b, name, g, seed, among=len(pairs))} for a, b, g in pairs]
    adjusted = significance.holm([pair["p_value"] for pair in found])
    return [pair | {"p_holm": float(p)} for pair, p in zip(found, adjusted, strict=True)]


def compare(scored: Scored, a: str, b: str, name: str, label: str, seed: int, among: int = 1) -> dict[str, Any]:
    """System a minus system b in one metric under one label, paired bootstrap by document.

    among: comparisons that Holm will adjust together; of many, p is found more finely, or none could be small.
    """
    sums, units = _paired(scored, a, b, name, label)
    drawn: dict[str, Any] = {"documents": units, "seed": seed, "resamples": max(RESAMPLES, PER_COMPARISON * among)}
    return {"a": a, "b": b, **asdict(significance.paired_bootstrap(*sums, formula(name), **drawn))}


def detectable(scored: Scored, a: str, b: str, name: str, label: str, seed: int) -> float:
    """The difference between the two systems that this text is likely to show (4 of 5 cases, 5 % two-sided)."""
    sums, units = _paired(scored, a, b, name, label)
    return significance.minimum_detectable_effect(*sums, formula(name), documents=units, seed=seed).effect


def _paired(
    scored: Scored, a: str, b: str, name: str, label: str
) -> tuple[tuple[np.ndarray, np.ndarray], list[str] | None]:
    documents = scored[a]["documents"][name][label]
    return (np.array(scored[a][name][label]), np.array(scored[b][name][label])), _units(documents)


def _interval(by: Mapping[str, Any], name: str, label: str, from_sums: Formula, seed: int) -> significance.Interval:
    units = _units(by["documents"][name][label])
    return significance.interval(np.array(by[name][label]), from_sums, documents=units, seed=seed)


def _units(documents: list[str]) -> list[str] | None:
    """Documents to resample by; None (segments are resampled) where all is one document."""
    return documents if len(set(documents)) > 1 else None


def mean_of_labels(by: Mapping[str, Any], name: str, labels: Sequence[str]) -> tuple[np.ndarray, list[str], Formula]:
    """Of one system and metric: sums by document with the labels side by side, the documents, and the mean's formula.

    What is drawn is a document in all its languages, so that the labels are not taken for independent.
    """
    documents = sorted({d for g in labels for d in by["documents"][name][g]})
    place, width = {d: u for u, d in enumerate(documents)}, len(by[name][labels[0]][0])
    sums_ULS = np.zeros((len(documents), len(labels), width))
    for at, g in enumerate(labels):
        np.add.at(sums_ULS[:, at], [place[d] for d in by["documents"][name][g]], np.array(by[name][g]))
    from_sums = formula(name)

    def mean(sums: np.ndarray) -> np.ndarray:
        return from_sums(sums.reshape(-1, width)).reshape(*sums.shape[:-1], len(labels)).mean(axis=-1)

    return sums_ULS.reshape(len(documents), -1), documents, mean


# Segments


def write_segments(path: Path, scored: Scored) -> dict[str, str]:
    """Outputs and sums of every segment, from which values can be had again; name and checksum of the file."""
    kept = ("outputs", "documents", "signatures", "unknown", "cut", "keys")
    content = {
        "documents": {name: by for s in scored.values() for name, by in s["documents"].items()},
        "keys": {name: by for s in scored.values() for name, by in s.get("keys", {}).items()},
        "sums": {s: {name: v for name, v in by.items() if name not in kept} for s, by in scored.items()},
        "outputs": {s: by["outputs"] for s, by in scored.items()},
    }
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {"file": path.name, "sha256": sha256(path)}
