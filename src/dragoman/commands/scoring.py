"""Scoring: segment sums of systems on held-out text, and from them values, intervals and comparisons.

What a system scored is plain lists (a run keeps them as JSON and goes on later):

    {"bits_per_byte": {language: sums_NS}, "chrf": {label: sums_NS}, ..., "outputs": {label: [N texts]},
     "documents": {metric: {label: [N names]}}, "signatures": {metric: text}}

A label names what a value is about: a language for likelihoods, a direction such as `en-de` for translations.
"""

# Shape letters: N segments, S sums of a metric.

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dragoman.commands import another_split
from dragoman.corpora.choices import Choice
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.corpora.parting import refuse_untranslated
from dragoman.errors import DataError, UserError
from dragoman.evaluation import significance
from dragoman.evaluation.metrics import CHRF, METRICS, BitsPerByte, Metric
from dragoman.record import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

Scored = Mapping[str, Mapping[str, Any]]
"""System -> what it scored."""
Directions = Mapping[str, tuple[str, str]]
"""Label -> source and target language."""
Formula = Callable[[np.ndarray], np.ndarray]

BATCH_TOKENS = 4096
"""Tokens of a batch when scoring likelihood; logits are the largest array there is."""
OF_LIKELIHOODS = ("bits_per_byte", "option_accuracy")
"""Metrics whose hypotheses are no texts."""
NO_SPACES = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo", "dz")
ARGUMENTS: dict[str, Callable[[str], Any]] = {
    "target": lambda tag: tag,
    "tokenize": lambda tag: {"zh": "zh", "yue": "zh"}.get(_base(tag), "char" if _base(tag) in NO_SPACES else "13a"),
    "asian": lambda tag: _base(tag) in ("zh", "yue", "ja"),
}
"""What metrics may want to know about the language translated into, by the name of their argument."""


def _base(tag: str) -> str:
    return tag.split("-")[0]


# Metrics


def metrics_for(target: str, names: Iterable[str] = ()) -> tuple[dict[str, Metric], dict[str, str]]:
    """The named metrics (by default all that apply) for texts in a language, and why others are left out.

    Raises what keeps a metric that was named from being made.
    """
    made: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for name in names or [name for name in METRICS if name not in OF_LIKELIHOODS]:
        try:
            made[name] = _make(name, target)
        except UserError as e:
            if names:
                raise type(e)(f"{name}: {e}") from None
            left_out[name] = str(e)
    return made, left_out


def _make(name: str, target: str) -> Metric:
    if name in OF_LIKELIHOODS:
        raise DataError("it scores likelihoods, no texts; leave it out")
    every = inspect.signature(METRICS[name]).parameters.values()
    wanted = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if unknown := [p.name for p in wanted if p.default is p.empty and p.name not in ARGUMENTS]:
        raise DataError(f"it needs {', '.join(unknown)}, which only the Python function takes")
    metric = METRICS[name](**{p.name: ARGUMENTS[p.name](target) for p in wanted if p.name in ARGUMENTS})
    if "terms" in metric.needs:
        raise DataError("it needs a list of terms for each segment, which only the Python function takes")
    return metric


def formula(name: str) -> Formula:
    """How summed sums of a metric become a value; it does not depend on the language."""
    return _anyhow(name).from_sums


def title(name: str) -> str:
    """A metric's name for tables."""
    return _anyhow(name).name


def better(name: str) -> bool | None:
    """Whether higher is better; None where the best value lies in between."""
    return _anyhow(name).higher_is_better


@cache
def _anyhow(name: str) -> Metric:
    """The metric with any settings: for what does not depend on them."""
    if name == "bits_per_byte":
        return BitsPerByte(0)
    return METRICS[name]() if name in OF_LIKELIHOODS else _make(name, "en")


# Held-out rows


def held_out(corpus: NText, languages: Sequence[str], split: str, segments: int) -> dict[str, NText]:
    """The rows that each language is scored on: the first ones that it has. DataError where they are of no use."""
    tables = {g: corpus.select([g], split, complete=True) for g in languages}
    if empty := [g for g, t in tables.items() if len(t) < 2]:
        way_out = another_split(corpus, empty, split)
        raise DataError(f"fewer than two segments of {', '.join(empty)} in split {split}; {way_out}")
    return {g: t.take(range(min(segments, len(t)))) for g, t in tables.items()}


def cells(table: NText, tag: str) -> list[str]:
    """The texts of a column that has no gap."""
    return [t for t in table.columns[tag] if t is not None]


def parallel(corpus: NText, source: str, target: str, split: str, segments: int) -> NText:
    """The rows of a direction: those that have source and reference. DataError where they are of no use."""
    table = corpus.select([source, target], split, complete=True)
    table = table.take(range(min(segments, len(table))))
    if len(table) < 2:
        way_out = another_split(corpus, [source, target], split, complete=True)
        raise DataError(f"fewer than two pairs {source} -> {target} in split {split}; {way_out}")
    name = corpus.about.get("name", "the corpus")
    refuse_untranslated(cells(table, source), cells(table, target), f"{source} -> {target} in {name}")
    return table


def text_checksums(
    pairs: Mapping[str, NText], rows: Mapping[str, NText], choices: Mapping[str, Sequence[Choice]]
) -> dict[str, dict[str, str]]:
    """What was scored, as checksums of texts in order, so that two records can tell whether theirs is the same.

    pairs: label -> columns source and target, or the target alone; rows: language -> rows of likelihoods.
    """
    columns: dict[str, dict[str, Sequence[Any]]] = {
        "references": {label: cells(table, table.languages[-1]) for label, table in pairs.items()},
        "sources": {label: cells(t, t.languages[0]) for label, t in pairs.items() if len(t.languages) > 1},
        "likelihoods": {g: cells(table, g) for g, table in rows.items()},
        "choices": {g: [asdict(item) for item in items] for g, items in choices.items()},
    }
    return {kind: {label: sha256(json.dumps(column)) for label, column in by.items()} for kind, by in columns.items()}


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
        add_sums(sums, "bits_per_byte", g, np.array([*map(metric.segment_sums, bits_N, texts)]), rows[g].documents)


def add_texts(
    sums: dict[str, Any], label: str, outputs: Sequence[str], table: NText, metrics: Mapping[str, Metric]
) -> None:
    """Sums of a system's answers. table: columns source and target, or the target alone where no source is known."""
    columns = dict(zip(("references", "sources"), (cells(table, g) for g in reversed(table.languages)), strict=False))
    sums["outputs"][label] = list(outputs)
    for name, metric in metrics.items():
        if set(metric.needs) <= set(columns):
            against = (columns[need] for need in metric.needs)
            add_sums(sums, name, label, metric.all_sums(list(outputs), *against), table.documents)
            sums["signatures"][name] = _joined(sums["signatures"].get(name), metric.signature())


def _joined(before: str | None, signature: str) -> str:
    """One signature for all labels: where settings depend on the language, all their values, as in `tok:13a+zh`."""
    if before is None:
        return signature
    pairs = zip(before.split("|"), signature.split("|"), strict=True)
    return "|".join(a if _value(b) in _value(a).split("+") else f"{a}+{_value(b)}" for a, b in pairs)


def _value(setting: str) -> str:
    return setting.partition(":")[2]


def translations(
    model: PreTrainedModel, codec: TextCodec, table: NText, label: str, quiet: bool, stops: Any = None
) -> list[str]:
    """Greedy translations of the table's first column into its second, one line each."""
    from dragoman.modeling import context_length
    from dragoman.translation.engines import stops_of, translate_greedy

    source, target = table.languages
    names = {g: language(g).name for g in table.languages}
    prompts = codec.prompts(cells(table, source), source, target, names)
    with tqdm(total=len(prompts), desc=label, unit=" segments", disable=quiet, delay=2) as bar:
        new = translate_greedy(
            model,
            prompts,
            stops=stops or stops_of(model, codec),
            pad_id=codec.pad_id,
            context=context_length(model),
            progress=bar.update,
        )
    return [" ".join(codec.decode(ids).split("\n")[0].split()) for ids in new]


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
    metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Segment sums of a model: bits per byte of languages, and its translations in directions.

    metrics: label -> metrics of that direction; chrF where it is None.
    """
    from dragoman.translation.engines import stops_of

    rows = held_out(corpus, languages, split, segments)
    sums = empty_sums() | {"chrf": {}}
    add_likelihoods(sums, model, codec, rows, quiet)
    stops = stops_of(model, codec) if directions else None
    for label, (source, target) in directions.items():
        table = parallel(corpus, source, target, split, segments)
        outputs = translations(model, codec, table, label, quiet, stops)
        add_texts(sums, label, outputs, table, metrics[label] if metrics else {"chrf": CHRF()})
    return sums


def score_copy(
    corpus: NText,
    directions: Directions,
    *,
    split: str = "devtest",
    segments: int = 300,
    metrics: Mapping[str, Mapping[str, Metric]] | None = None,
) -> dict[str, Any]:
    """The system that returns its source: what a translation must beat. Metrics against the source leave it out."""
    sums = empty_sums() | {"bits_per_byte": {}, "chrf": {}}
    for label, (source, target) in directions.items():
        table = parallel(corpus, source, target, split, segments)
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
    """Values and intervals of one metric: {name: {system: {label: value}}, name_interval: ...}."""
    from_sums = formula(name)
    found = {s: {g: _interval(by, name, g, from_sums, seed) for g in by.get(name, {})} for s, by in scored.items()}
    found = {s: by for s, by in found.items() if by}
    return {
        name: {s: {g: i.value for g, i in by.items()} for s, by in found.items()},
        f"{name}_interval": {s: {g: [i.low, i.high] for g, i in by.items()} for s, by in found.items()},
    }


def comparisons(scored: Scored, name: str, pairs: Sequence[tuple[str, str, str]], seed: int) -> list[dict[str, Any]]:
    """Paired bootstrap of each (a, b, label), Holm over all of them."""
    found = [{"metric": name, "language": label, **compare(scored, a, b, name, label, seed)} for a, b, label in pairs]
    adjusted = significance.holm([pair["p_value"] for pair in found])
    return [pair | {"p_holm": float(p)} for pair, p in zip(found, adjusted, strict=True)]


def compare(scored: Scored, a: str, b: str, name: str, label: str, seed: int) -> dict[str, Any]:
    """System a minus system b in one metric under one label, paired bootstrap by document."""
    sums, units = _paired(scored, a, b, name, label)
    return {"a": a, "b": b, **asdict(significance.paired_bootstrap(*sums, formula(name), documents=units, seed=seed))}


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
