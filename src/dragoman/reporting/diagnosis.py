"""The pages of `dragoman diagnose` and `dragoman compare`, and the files beside them."""

# Shape letters: G languages, L MoE layers, E experts.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dragoman.corpora.languages import language
from dragoman.record import atomic_write
from dragoman.reporting import charts, findings
from dragoman.reporting.blocks import Block, Cell, Chart, Section, render, table_rows
from dragoman.reporting.making import making
from dragoman.reporting.sentences import Record, name, number
from dragoman.routing.drawing import Cast, standalone
from dragoman.routing.drift import noise_distance
from dragoman.routing.stats import routing_similarity
from dragoman.routing.trace import RoutingTrace

BUILT_IN = "mini-moe"
"""The model whose corpus says which languages it was trained on."""


def write_diagnosis(record: Record, trace: RoutingTrace, folder: Path) -> None:
    """Write report.html, and each figure with its numbers as figures/NAME.svg and .csv.

    record: as `dragoman diagnose` writes it; what is missing is left out of the page.
    """
    write_pages(folder, *_page(*_view(record, trace)))


def diagnosis_html(record: Record, trace: RoutingTrace) -> str:
    """The page alone: no network, figures inline; the same bytes for the same record and trace."""
    return render(*_page(*_view(record, trace)))


def write_drift(record: Record, folder: Path) -> None:
    """Write report.html and figures of `dragoman compare` of two traces."""
    tags = list(record["drift"]["divergence"])
    view = {**record, "corpus": {"languages": {g: {"name": language(g).name or g} for g in tags}}}
    mean = {g: float(np.mean(d_L)) for g, d_L in record["drift"]["divergence"].items()}
    cast = _cast(view, tags, mean, ())
    before, after = (record["config"][side] for side in ("before", "after"))
    models = [f"{side}: {m['model']}" for side, m in record.get("models", {}).items() if m.get("model")]
    sections = [
        Section("Drift", [Block("text", findings.text_differs(view)), Block("charts", charts.drift(view, cast))]),
        Section("Drift by language", [_drift_table(view)]),
        making({**view, "model": {}, "corpus": {}}),
    ]
    title = f"How routing moved from {before} to {after}"
    write_pages(folder, title, " · ".join(models), findings.drift(view), sections)


def write_pages(folder: Path, title: str, about: str, headline: str, sections: Sequence[Section]) -> None:
    """report.html, and beside it each figure that has a name."""
    for chart in [c for s in sections for b in s.blocks if b.kind.endswith("charts") for c in b.content]:
        if chart.table:
            _write(folder / "figures" / f"{chart.name}.svg", standalone(str(chart.svg)))
            _write(folder / "figures" / f"{chart.name}.csv", chart.table.csv)
    _write(folder / "report.html", render(title, about, headline, sections))


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


# ---- the diagnosis -------------------------------------------------------------------------------------------------


def _view(record: Record, trace: RoutingTrace) -> tuple[Record, RoutingTrace]:
    """The record with what pages read: names of languages, the model's shape, who was trained on."""
    corpus, config = record.get("corpus", {}), record.get("config", {})
    known = record.get("known") or (corpus.get("known", ()) if config.get("model") == BUILT_IN else ())
    known = [g for g in known if g in trace.languages]
    segments = {g: {config.get("split", "segments"): len(n)} for g, n in trace.segment_chosen_NLE.items()}
    about = {
        g: {"name": language(g).name or g, "known": g in known if known else None, "segments": segments.get(g, {})}
        for g in trace.languages
    }
    model = {
        "name": config.get("model") or trace.about.get("model", ""),
        "sha256": trace.about.get("model_sha256", ""),
        "moe_layers": len(trace.layer_ids),
        "num_experts": trace.num_experts,
        "top_k": trace.top_k,
    }
    parts = {"corpus": {**corpus, "languages": about}, "known": known, "model": model}
    routing = {key: value for key, value in record.get("routing", {}).items() if value is not None}
    return {**record, **parts, "routing": routing}, trace


def _cast(view: Record, tags: Sequence[str], mean: Mapping[str, float], known: Sequence[str]) -> Cast:
    """The nearest language is green and the farthest orange in every figure."""
    far = max(mean, key=lambda g: mean[g]) if mean else None
    near = min(mean, key=lambda g: mean[g]) if len(mean) > 1 else None
    return Cast(known, far, near, {g: name(view, g) for g in tags})


def _page(view: Record, trace: RoutingTrace) -> tuple[str, str, str, list[Section]]:
    routing = view.get("routing", {})
    mean = {g: float(np.mean(d_L)) for g, d_L in routing.get("divergence", {}).items()}
    cast = _cast(view, trace.languages, mean, view["known"])
    sections = [
        Section(
            "What these numbers do not show", [Block("list", findings.caveats(view, bool(trace.about.get("parallel"))))]
        ),
        _depth(view, trace, cast),
        _languages(view, trace, cast),
        _experts(view, trace, cast),
        _tasks(view, trace),
        _by_language(view, trace),
        making(view),
    ]
    title = f"How {Path(view['model']['name'] or 'a mixture of experts').name} routes languages"
    about = [f"{len(trace.languages)} languages", f"{int(trace.tokens_G.sum()):,} tokens"]
    about += [f"corpus {view['corpus']['name']}"] if view["corpus"].get("name") else []
    about += [f"made {view['created'][:10]}"] if view.get("created") else []
    return title, " · ".join(about), findings.headline(view), sections


def _key(view: Record, cast: Cast) -> str:
    words = f"Orange: {cast.name(cast.target)}, the farthest" if cast.target else ""
    words += f"; green, dash-dotted: {cast.name(cast.parent)}, the nearest" if cast.parent else ""
    dashed = "" if all(map(cast.seen, cast.names)) else "; dashed: not trained on"
    return f"{words}{dashed}." if words else ""


def _depth(view: Record, trace: RoutingTrace, cast: Cast) -> Section:
    key = _key(view, cast)
    found = charts.divergence(view, cast, key) + charts.specialisation(view) + charts.entropy(view, cast, key)
    return Section("By depth", [Block("charts", found)])


def _languages(view: Record, trace: RoutingTrace, cast: Cast) -> Section:
    distance_GG = 1 - routing_similarity(trace)
    found = charts.tree(distance_GG, trace.languages, cast, _noise(view, trace))
    overlap, tested = trace.about.get("overlap", {}), findings.mantel(view)
    found += charts.overlap(distance_GG, trace.languages, overlap, cast, tested)
    cost = view.get("tokenizer") or trace.about.get("tokenizer") or {}
    found += charts.tokenizer(cost, view.get("routing", {}).get("reference", "en"), cast)
    return Section("Languages beside each other", [Block("charts", found)])


def _noise(view: Record, trace: RoutingTrace) -> float | None:
    """Distance between halves of one language, JSD / ln 2, mean over layers: the record's, else measured here."""
    placebo_L = (view.get("routing", {}).get("relations") or {}).get("placebo")
    if placebo_L is not None:
        return float(np.mean(placebo_L) / np.log(2))
    return noise_distance(trace, view.get("config", {}).get("seed", 0))


def _experts(view: Record, trace: RoutingTrace, cast: Cast) -> Section:
    """First, calmest and last layer are shown, the others folded."""
    maps = [charts.experts(trace, row, cast) for row in range(len(trace.layer_ids))]
    curves = list(view.get("routing", {}).get("divergence", {}).values())
    calm = int(np.mean(curves, axis=0).argmin()) if curves else len(maps) // 2
    open_rows = sorted({0, calm, len(maps) - 1})
    rest = [chart for row, chart in enumerate(maps) if row not in open_rows]
    shown: list[Chart] = [maps[row] for row in open_rows]
    blocks = [Block("charts", charts.balance(view) + shown)]
    blocks.append(Block("folded charts", rest, head=(f"The other {len(rest)} layers",)))
    return Section("Experts", [*blocks, _sharing(view)])


def _sharing(view: Record) -> Block:
    """Exclusive and shared experts: a row a language, a column a rule, beside each number that of the placebo."""
    rules: Mapping[str, Any] = view.get("routing", {}).get("sharing") or {}
    rows = []
    for g in dict.fromkeys(g for rule in rules.values() for g in rule["number"]):
        cells = []
        for rule in rules.values():
            placebo = rule.get("placebo", {}).get(g)
            cells.append(
                Cell(str(rule["number"].get(g, "")), "" if placebo is None else f"placebo {number(placebo, 1)}")
            )
        rows.append([Cell(name(view, g), g) if g != "shared" else Cell("shared by all"), *cells])
    note = "Experts of all layers that each published rule calls exclusive to a language. The rules do not agree, and "
    note += (
        "some find a number that is set. Placebo: experts that a rule gives to one half of the language's text only."
    )
    head = ("language", *rules)
    return Block("table", table_rows(rows), "Exclusive and shared experts, by rule", head, note)


def _tasks(view: Record, trace: RoutingTrace) -> Section:
    tasks: Mapping[str, Any] = view.get("tasks") or {}
    found = [c for task, part in tasks.items() for c in charts.contrast(task, part, trace.layer_ids, trace.num_experts)]
    return Section("Experts of tasks", [Block("charts", found)])


def _by_language(view: Record, trace: RoutingTrace) -> Section:
    """One row a language: tokens, distance by thirds of the depth."""
    routing = view.get("routing", {})
    rows = []
    for tag, d_L in routing.get("divergence", {}).items():
        thirds = [number(float(np.mean(part))) if len(part) else "" for part in np.array_split(np.asarray(d_L), 3)]
        rows.append([Cell(name(view, tag), tag), f"{trace.tokens_G[trace.index(tag)]:,}", *thirds])
    if rows and routing.get("placebo") is not None:
        noise = [number(float(np.mean(p))) if len(p) else "" for p in np.array_split(np.asarray(routing["placebo"]), 3)]
        rows.append([Cell("noise", "two halves of the reference"), "", *noise])
    head = ("language", "tokens", "early layers", "middle layers", "late layers")
    reference = name(view, routing.get("reference", "en"))
    note = f"Distance from {reference} (D_H-JS, 0 to 1), mean over thirds of the depth."
    return Section("By language", [Block("table", table_rows(rows), "", head, note)])


def _drift_table(view: Record) -> Block:
    part = view["drift"]
    rows = []
    for tag, d_L in part["divergence"].items():
        moved_L = np.asarray(d_L)
        layer = part["layer_ids"][int(moved_L.argmax())]
        noise = number(float(np.mean(part["placebo"][tag])), 4) if tag in part["placebo"] else ""
        most = Cell(number(float(moved_L.max()), 4), f"layer {layer}")
        rows.append([Cell(name(view, tag), tag), number(float(moved_L.mean()), 4), most, noise])
    head = ("language", "mean over layers", "largest", "placebo")
    note = "JSD in nats. Placebo: two halves of the language's text before, mean over layers and splits."
    return Block("table", table_rows(rows), "", head, note)
