"""Does a Mix-MoE router separate translation from language modelling? Which tokens are compared with which.

A text has the same tokens alone, as a source within a translation prompt and as a translation after one, so each pair
of masses is of the same tokens and of the same segments; tags, templates and the ends of texts are not counted.

Shape letters: N segments or documents, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands import scoring
from dragoman.commands.mixing_text import Directions, Train
from dragoman.corpora.languages import language
from dragoman.corpora.ntext import NText
from dragoman.evaluation import significance

if TYPE_CHECKING:
    from dragoman.modeling import TextCodec

ALPHA = 0.05
KINDS = {"text": "text alone", "source": "source in prompts", "translation": "translations"}
FAMILIES = {
    "source": "source less the same text alone",
    "translation": "translation less the same text alone",
    "languages": "text of a language less that of {b}",
    "directions": "direction less the mean of the others",
}
"""Contrasts, Holm over each family, and how they are announced."""


@dataclass(frozen=True)
class Part:
    """Mass on translation experts of one kind of text."""

    sums_NL2: np.ndarray
    """Mass and tokens of each segment."""
    rows: tuple[str, ...]
    """Keys of the segments."""
    documents: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What is drawn and split: documents, or segments where all is one document."""
        return "document" if len(set(self.documents)) > 1 else "segment"

    @property
    def by_unit(self) -> np.ndarray:
        """Sums of each unit."""
        from dragoman.routing.resampling import by_document

        return by_document(self.sums_NL2, self.documents) if self.unit == "document" else self.sums_NL2

    def only(self, rows: Collection[str]) -> Part:
        """The segments of these rows."""
        kept = [n for n, row in enumerate(self.rows) if row in rows]
        return Part(self.sums_NL2[kept], *(tuple(names[n] for n in kept) for names in (self.rows, self.documents)))


@dataclass(frozen=True)
class Direction:
    """What is compared in one direction of translation."""

    source: Part | None
    """The source text within the prompt, of the segments where it was found; None where these are fewer than two."""
    source_alone: Part | None
    translation: Part
    """The reference after its prompt, without the end token."""
    translation_alone: Part
    found: int
    """Prompts in which the tokens of the source text were found; the others are left out of `source`."""
    segments: int


@dataclass
class Reader:
    """Reads texts with a model; what comes again, as a source does in many directions, is not run again."""

    model: Any
    codec: TextCodec
    first: int
    """Number of the first translation expert."""
    context: int
    """Longer segments are left out."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Language or direction -> segments left out."""
    masses: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    def text(self, table: NText, tag: str) -> Part | None:
        """Text alone; None where fewer than two segments fit."""
        alone = [[self.codec.start_id, *ids] for ids in self.codec.encode(scoring.cells(table, tag))]
        kept = self._fitting(tag, alone)
        return self._alone([alone[n] for n in kept], table.take(kept)) if len(kept) > 1 else None

    def direction(self, table: NText, label: str) -> Direction | None:
        """Prompts with their references, and the same texts alone; None where fewer than two pairs fit."""
        source, target = table.languages
        names = {g: language(g).name for g in table.languages}
        texts = scoring.cells(table, source)
        samples = self.codec.pairs(texts, scoring.cells(table, target), source, target, names)
        kept = self._fitting(label, [ids for ids, _ in samples])
        if len(kept) < 2:
            return None
        table, texts, samples = table.take(kept), [texts[n] for n in kept], [samples[n] for n in kept]
        whole, start = [ids for ids, _ in samples], self.codec.start_id
        empty = self.codec.prompts([""], source, target, names)[0]
        spans = source_spans(self.codec, texts, [ids[:n] for ids, n in samples], empty)
        found = {n: span for n, span in enumerate(spans) if span}
        within: Part | None = None
        alone: Part | None = None
        if len(found) > 1:
            rows = table.take(list(found))
            within = self._part([whole[n] for n in found], list(found.values()), rows)
            alone = self._alone([[start, *whole[n][slice(*span)]] for n, span in found.items()], rows)
        answers = [(n, len(ids) - 1) for ids, n in samples]
        return Direction(
            within,
            alone,
            self._part(whole, answers, table),
            self._alone([[start, *ids[slice(*span)]] for ids, span in zip(whole, answers, strict=True)], table),
            len(found),
            len(spans),
        )

    def _fitting(self, label: str, segments: Sequence[Sequence[int]]) -> list[int]:
        kept = [n for n, ids in enumerate(segments) if len(ids) <= self.context]
        if len(kept) < len(segments):
            self.left_out[label] = len(segments) - len(kept)
        return kept

    def _alone(self, segments: Sequence[list[int]], table: NText) -> Part:
        return self._part(segments, [(1, len(ids)) for ids in segments], table)

    def _part(self, segments: Sequence[list[int]], spans: Sequence[tuple[int, int]], table: NText) -> Part:
        from dragoman.routing.group_shares import summed, token_mass

        keys = [tuple(ids) for ids in segments]
        new = [key for key in dict.fromkeys(keys) if key not in self.masses]
        self.masses |= dict(zip(new, token_mass(self.model, new, self.first), strict=True))
        return Part(summed([self.masses[key] for key in keys], spans), table.keys, table.documents)


def source_spans(
    codec: TextCodec, texts: Sequence[str], prompts: Sequence[list[int]], empty: list[int]
) -> list[tuple[int, int] | None]:
    """Where each text's tokens stand in its prompt; None where they do not, as where a template merges with them.

    empty: the prompt of no text, whose first tokens are those of the template. A text behind a space counts too; so
    does one without its last token, where that holds the end of the line too (a full stop in Llama 3 and Qwen).
    """
    forms = [codec.encode([f"{before}{text}{end}" for text in texts]) for end in ("", "\n") for before in ("", " ")]
    found = []
    for *both, ended, spaced, prompt in zip(*forms, prompts, strict=True):
        head = _head(empty, prompt)
        found.append(span_of(both, prompt, head) or span_of([ended[:-1], spaced[:-1]], prompt, head))
    return found


def _head(empty: list[int], prompt: list[int]) -> int:
    """Tokens that both begin with."""
    return sum(1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(empty, prompt, strict=False)))


def span_of(forms: Sequence[list[int]], prompt: list[int], head: int) -> tuple[int, int] | None:
    """The earliest run of one of the forms at or after `head`: names of languages may come again behind the text."""
    starts = range(head, len(prompt))
    runs = [(at, at + len(ids)) for ids in forms if ids for at in starts if prompt[at : at + len(ids)] == ids]
    return min(runs, default=None)


def shares_of(
    config: Train, model: Any, codec: TextCodec, corpus: NText, spoken: Sequence[str], directions: Directions
) -> tuple[dict[str, Any], str | None]:
    """Mass on translation experts by kind of text, contrasts and placebo as docs/mix-moe.md lists; and the figure."""
    from dragoman.modeling import context_length, moe_layers
    from dragoman.modeling.mix_moe import settings_of
    from dragoman.routing import group_shares

    reader = Reader(model, codec, settings_of(model).experts, context_length(model))
    rows, tables = rows_of(config, corpus, spoken, directions)
    texts = {g: part for g, table in rows.items() if (part := reader.text(table, g))}
    pairs = {d: found for d, table in tables.items() if (found := reader.direction(table, d))}
    seed, sources = config.seed, [p.source for p in pairs.values() if p.source]
    translations = [p.translation for p in pairs.values()]
    record = {
        "layers": [layer.layer_id for layer in moe_layers(model)],
        "kinds": _kinds(texts, pairs, seed),
        "placebo": {  # draws of its own for each language: parallel rows would be split alike
            g: group_shares.placebo(part.by_unit, [seed, i]) | {"unit": part.unit}
            for i, (g, part) in enumerate(texts.items())
        },
        "contrasts": contrasts(texts, pairs, directions, seed),
        "same_rows": len({part.rows for part in (*texts.values(), *sources, *translations)}) == 1,
        "left_out": reader.left_out,
    }
    return record, _figure(record, directions) if config.stage == 2 and sources and texts else None


def rows_of(
    config: Train, corpus: NText, spoken: Sequence[str], directions: Directions
) -> tuple[dict[str, NText], dict[str, NText]]:
    """Of each language and direction the rows: those that all languages have, so that content differs nowhere; where
    these are fewer than half of what was asked for, those that are scored."""
    common = corpus.select(spoken, config.split, complete=True)
    if 2 * len(common) < config.segments:
        pairs = {d: scoring.parallel(corpus, *pair, config.split, config.segments) for d, pair in directions.items()}
        return scoring.held_out(corpus, spoken, config.split, config.segments), pairs
    common = common.take(range(min(config.segments, len(common))))
    return {g: common.select([g]) for g in spoken}, {d: common.select(pair) for d, pair in directions.items()}


def _kinds(texts: Mapping[str, Part], pairs: Mapping[str, Direction], seed: int) -> dict[str, dict[str, Any]]:
    from dragoman.routing.group_shares import described

    spans = {d: {"found": p.found, "segments": p.segments} for d, p in pairs.items()}
    return {
        "text": {g: described(part.by_unit, seed) for g, part in texts.items()},
        "source": {d: described(p.source.by_unit, seed) | spans[d] for d, p in pairs.items() if p.source},
        "translation": {d: described(p.translation.by_unit, seed) for d, p in pairs.items()},
    }


# Contrasts


def contrasts(
    texts: Mapping[str, Part], pairs: Mapping[str, Direction], directions: Directions, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The families of FAMILIES; p-values as they are, and by Holm over each family."""
    base = "en" if "en" in texts else next(iter(texts), "")
    same = {d: tuple(f"{g}, the same text" for g in directions[d]) for d in pairs}
    found = {
        "source": [
            _contrast(d, same[d][0], p.source, p.source_alone, seed=seed)
            for d, p in pairs.items()
            if p.source and p.source_alone
        ],
        "translation": [
            _contrast(d, same[d][1], p.translation, p.translation_alone, seed=seed) for d, p in pairs.items()
        ],
        "languages": [_contrast(g, base, part, texts[base], seed=seed) for g, part in texts.items() if g != base],
        "directions": [
            *_against_the_rest({d: p.source for d, p in pairs.items() if p.source}, "source", seed),
            *_against_the_rest({d: p.translation for d, p in pairs.items()}, "translation", seed),
        ],
    }
    return {family: _with_holm(rows) for family, rows in found.items()}


def _against_the_rest(parts: Mapping[str, Part], tokens: str, seed: int) -> list[dict[str, Any]]:
    """Each direction against the mean of the others; nothing where there is one alone."""
    if len(parts) < 2:
        return []
    others = {d: [part for other, part in parts.items() if other != d] for d in parts}
    return [
        {"tokens": tokens} | _contrast(d, "mean of the others", part, *others[d], seed=seed)
        for d, part in parts.items()
    ]


def _contrast(a: str, b: str, *parts: Part, seed: int) -> dict[str, Any]:
    """The first part against the others; on the rows that all have, paired, where these are at least half of them."""
    from dragoman.routing.group_shares import contrast

    common = set(parts[0].rows).intersection(*(part.rows for part in parts))
    paired = len(common) > 1 and 2 * len(common) >= max(len(part.rows) for part in parts)
    if paired:
        parts = tuple(part.only(common) for part in parts)
    found = contrast(*(part.by_unit for part in parts), paired=paired, seed=seed)
    return {"a": a, "b": b, **found, "unit": parts[0].unit}


def _with_holm(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    adjusted = significance.holm([row["p_value"] for row in found])
    return [row | {"p_holm": float(p)} for row, p in zip(found, adjusted, strict=True)]


# What is shown


def _figure(record: Mapping[str, Any], directions: Directions) -> str:
    """Three lines of means over directions. Text alone counts each language as often as it is a side of one: else a
    language that most directions have would part the lines."""
    from dragoman.routing.group_shares import group_share_figure

    by_layer = {kind: {k: x["by_layer"] for k, x in found.items()} for kind, found in record["kinds"].items()}
    text = [by_layer["text"][g] for d in by_layer["translation"] for g in directions[d] if g in by_layer["text"]]
    curves = {
        KINDS["text"]: text,
        KINDS["source"]: list(by_layer["source"].values()),
        KINDS["translation"]: list(by_layer["translation"].values()),
    }
    reach_L = np.max([found["p95_by_layer"] for found in record["placebo"].values()], axis=0)
    return group_share_figure(curves, reach_L.tolist(), record["layers"])


def told(record: Mapping[str, Any]) -> list[str]:
    """The shares in a few lines: of each kind, each family of contrasts and the placebo mean and range."""
    lines = ["mass on translation experts: mean (lowest to highest)"]
    for kind, found in record["kinds"].items():
        lines += [_range(KINDS[kind], {k: x["value"] for k, x in found.items()}, "")] if found else []
    for family, rows in record["contrasts"].items():
        lines += _differences(family, rows) if rows else []
    placebo = {g: x["p95"] for g, x in record["placebo"].items()}
    lines += [_range("halves of one text (placebo), 95th percentile", placebo, "")] if placebo else []
    source, translation = (record["kinds"][kind] for kind in ("source", "translation"))
    counts = {d: (x["segments"] - x["found"], x["segments"]) for d, x in source.items()}
    missed = [f"{d} {n} of {of}" for d, (n, of) in counts.items() if n]
    missed += [f"{d} (all, or all but one)" for d in translation if d not in source]
    if missed:
        lines.append(f"source texts whose tokens are not in their prompts: {', '.join(missed)}")
    if record["left_out"]:
        lines.append(f"left out as too long: {', '.join(f'{k} {n}' for k, n in record['left_out'].items())}")
    return lines


def _differences(family: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each kind of tokens in the family."""
    lines = []
    for tokens in dict.fromkeys(row.get("tokens") for row in rows):
        of = [row for row in rows if row.get("tokens") == tokens]
        name = FAMILIES[family].format(b=of[0]["b"]) + (f", {KINDS[tokens]}" if tokens else "")
        sure = sum(row["p_holm"] < ALPHA for row in of)
        values = {row["a"]: row["difference"] for row in of}
        lines.append(f"{_range(name, values, '+')}; {sure} of {len(of)} with Holm p < {ALPHA}")
    return lines


def _range(name: str, values: Mapping[str, float], sign: str) -> str:
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    mean = sum(values.values()) / len(values)
    limits = low if len(values) == 1 else f"{low} {values[low]:{sign}.3f} to {high} {values[high]:{sign}.3f}"
    return f"  {name}: {mean:{sign}.3f} ({limits})"
