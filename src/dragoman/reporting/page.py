"""The page: sections of texts, tables and figures from a record and its trace."""

# Shape letters: G languages, L MoE layers, E experts.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dragoman.record import atomic_write
from dragoman.reporting import charts, findings
from dragoman.reporting import sentences as say
from dragoman.reporting.blocks import (
    MISSING,
    Block,
    Cell,
    Chart,
    Section,
    duration,
    measured,
    render,
    systems,
    table_rows,
)
from dragoman.reporting.making import making
from dragoman.reporting.sentences import Record, limits, name, number, percent, system_name
from dragoman.routing import figures
from dragoman.routing.drawing import Cast
from dragoman.routing.stats import slot_share
from dragoman.routing.trace import RoutingTrace

MOST_EXAMPLES = 8


def write_report(record: Record, trace: RoutingTrace, path: Path | str) -> None:
    """Write the page to `path`, whole or not at all; see `report_html`."""
    with atomic_write(Path(path)) as partial:
        partial.write_text(report_html(record, trace), encoding="utf-8")


def report_html(record: Record, trace: RoutingTrace) -> str:
    """One self-contained HTML page: no network, figures inline; the same bytes for the same record and trace.

    record: as `dragoman tour` writes it, or parts of it; what is missing is left out of the page.
    """
    sections = [_routing(record, trace), _choice(record, trace)]
    sections += [_gains(record), _costs(record), _examples(record), making(record)]
    return render(_title(record), _about(record), say.headline(record), sections)


def _title(record: Record) -> str:
    model = Path(record.get("model", {}).get("name", "a mixture of experts")).name
    target = record.get("target")
    return f"How {model} routes languages" + (f", and learns {name(record, target)}" if target else "")


def _about(record: Record) -> str:
    known = len(record.get("known", ()))
    of_them = f"trained on {known} languages" if say.from_training(record) else f"{known} languages named as known"
    parts = [of_them if known else ""]
    parts += [f"corpus {record['corpus']['name']}" if record.get("corpus", {}).get("name") else ""]
    parts += [f"made {record['created'][:10]}" if record.get("created") else ""]
    parts += [f"in {duration(record['seconds'])}" if record.get("seconds") else ""]
    return " · ".join(filter(None, parts))


def _cast(record: Record, trace: RoutingTrace) -> Cast:
    names = {g: name(record, g) for g in trace.languages}
    return Cast(record.get("known", ()), record.get("target"), record.get("parent", {}).get("chosen"), names)


# ---- 1 and 2: routing and the choice of experts --------------------------------------------------------------------

KEY = "Thick: the target (orange) and its parent (green, dash-dotted); blue: {0}; grey, dashed: not {0}."


def _routing(record: Record, trace: RoutingTrace) -> Section:
    cast, key = _cast(record, trace), KEY.format(say.as_known(record))
    found = charts.divergence(record, cast, key) + charts.entropy(record, cast, key) + charts.specialisation(record)
    parallel = (record.get("routing", {}).get("sample") or {}).get("parallel", True)
    blocks = [
        Block("text", "" if parallel else findings.OTHER_TEXT),
        Block("charts", [*found, _expert_map(record, trace, cast)]),
    ]
    return Section("How the model routes languages", blocks)


def _expert_map(record: Record, trace: RoutingTrace, cast: Cast) -> Chart:
    """The last MoE layer: its plans are those that name some of its experts, not all."""
    layer, num_experts = trace.layer_ids[-1], trace.num_experts[-1]
    by_system = {s: _layers(plan).get(layer, []) for s, plan in record.get("plans", {}).items()}
    planned = {s: ids for s, ids in by_system.items() if 0 < len(ids) < num_experts}
    chart = charts.experts(trace, -1, cast, {system_name(s): ids for s, ids in planned.items()})
    if record.get("target") not in trace.languages:
        return chart
    share_E = slot_share(trace.chosen_GLE[trace.index(record["target"]), -1, :num_experts])
    return replace(chart, says=say.experts(record, share_E.tolist(), planned, layer))


def _layers(plan: Mapping[str, Any]) -> dict[int, list[int]]:
    return {int(layer): list(ids) for layer, ids in plan.get("layers", {}).items()}


def _choice(record: Record, trace: RoutingTrace) -> Section:
    plan, parent = record.get("plans", {}).get(say.PLANNED, {}), record.get("parent") or {}
    overlap, routing = parent.get("by_overlap") or {}, parent.get("by_routing") or {}
    ranked = sorted({**routing, **overlap}, key=lambda g: -routing.get(g, 0))
    similar = [[name(record, g), *(number(by[g]) if g in by else MISSING for by in (routing, overlap))] for g in ranked]
    sizes = dict(zip(trace.layer_ids, trace.num_experts, strict=True))
    plans = [[system_name(s), str(p["experts"]), _experts(p, sizes)] for s, p in record.get("plans", {}).items()]
    note = "Similarity: 1 minus the divergence (JSD / ln 2) in the planned layers. Overlap: shared token types."
    blocks = [
        Block("text", say.parent(record)),
        Block("table", table_rows(similar), "Candidates", ("known language", "routing similarity", "overlap"), note),
        Block("text", " ".join(filter(None, (say.plans(record), say.no_language_expert(record))))),
        Block("text table", table_rows(plans), "Plans", ("system", "experts", "which")),
        Block("list", list(plan.get("why", ())), "Why these experts, in the planner's words"),
    ]
    return Section("Which experts were chosen, and why", blocks)


def _experts(plan: Mapping[str, Any], sizes: Mapping[int, int]) -> str:
    parts = []
    for layer, ids in sorted(_layers(plan).items()):
        parts.append(f"layer {layer}: {'all' if len(ids) == sizes.get(layer) else ', '.join(map(str, sorted(ids)))}")
    return "; ".join(parts)


# ---- 3 and 4: gains and costs --------------------------------------------------------------------------------------


def _gains(record: Record) -> Section:
    rows = []
    for system in systems(record):
        share, training = record.get("trained_share", {}).get(system), record.get("training", {}).get(system, {})
        rate, seconds = training.get("learning_rate"), training.get("seconds")
        trained = [percent(share) if share is not None else MISSING, f"{rate:.2g}" if rate else MISSING]
        quality = [measured(record, metric, system) for metric in say.METRICS]
        rows.append([Cell(system_name(system), system), *quality, *trained, duration(seconds or 0) or MISSING])
    target = name(record, record.get("target", ""))
    head = ("system", "bits per byte", "chrF", "trained share", "learning rate", "training")
    note = f"{target}, held-out text; small: 95% interval. Fewer bits per byte are better, more chrF is better."
    blocks = [Block("table", table_rows(rows), "Systems", head, note), Block("charts", _quality_charts(record, target))]
    blocks += [_comparisons(record, metric) for metric in say.METRICS]
    return Section(f"What tuning gained in {target}" if target else "Quality", blocks)


def _quality_charts(record: Record, target: str) -> list[Chart]:
    found = []
    directions = {"bits_per_byte": "fewer are better", "chrf": "more is better"}
    for metric, (label, digits, _) in say.METRICS.items():
        tag, by_system = record.get("target"), record.get(metric, {})
        values = {s: by_system[s][tag] for s in systems(record) if tag in by_system.get(s, {})}
        if not values:
            continue
        every = record.get(f"{metric}_interval", {})
        intervals = {s: every[s][tag] for s in values if tag in every.get(s, {})}
        names = {s: system_name(s) for s in values}
        svg = figures.quality_dots(values, intervals, f"{label}, {directions[metric]}", names, digits)
        first = names[next(iter(values))]
        shows = f"One dot a system with its 95% interval, its value at the right; the dotted line is {first}."
        found.append(Chart(f"{target}: {label}", Markup(svg), shows, say.quality(record, metric)))
    return found


def _comparisons(record: Record, metric: str) -> Block:
    label, digits, _ = say.METRICS[metric]
    rows, unit = [], ""
    for c in record.get("comparisons", ()):
        if (c["metric"], c.get("language")) == (metric, record.get("target")):
            winner = say.better(c)
            interval = limits(c["low"], c["high"], digits, sign=True)
            difference = Cell(number(c["difference"], digits, sign=True), interval)
            verdict = Cell(f"{system_name(winner)} better" if winner else "no difference shown")
            pair = f"{system_name(c['a'])} − {system_name(c['b'])}"
            rows.append([pair, difference, verdict, say.p_text(c["p_holm"]), say.p_text(c["p_value"])])
            unit = f" over {c['units']} {c['unit']}s" if "units" in c else ""
            unit += "" if say.judged(c) else " (too few to judge any difference)"
    note = f"Paired bootstrap{unit}, two-sided; Holm: over the pairs of this table. Claimed: Holm p below 0.05."
    head = ("pair", "difference", "verdict", "Holm p", "p")
    return Block("table", table_rows(rows), f"Every two systems: {label}", head, note)


def _costs(record: Record) -> Section:
    changes = {s: by for s, by in record.get("forgetting", {}).items() if by}
    if not changes:
        return Section("What it cost", [])
    tags = [g for g in record.get("known", ()) if any(g in by for by in changes.values())]
    rows = [[name(record, g), *(_change(by.get(g)) for by in changes.values())] for g in tags]
    note = "Bits per byte after minus before; more is worse. ▲ ▼: its own 95% interval leaves out zero (no correction)."
    blocks = [
        Block("text", say.beyond_noise({**record, "forgetting": changes})),
        Block("table", table_rows(rows), "Change by language", ("known language", *map(system_name, changes)), note),
        Block("charts", _frontier(record, changes)),
    ]
    return Section("What it cost in the languages known before", blocks)


def _change(change: Mapping[str, Any] | None) -> Cell:
    if change is None:
        return Cell(MISSING)
    sure = say.judged(change)
    mark = " ▲" if sure and change["low"] > 0 else " ▼" if sure and change["high"] < 0 else ""
    interval = limits(change["low"], change["high"], sign=True)
    return Cell(number(change["difference"], sign=True) + mark, interval, mark=sure and change["low"] > 0)


def _frontier(record: Record, changes: Mapping[str, Any]) -> list[Chart]:
    trades = {}
    for system, by in record.get("bits_per_byte", {}).items():
        if record.get("target") not in by or not (system in changes or system == say.BASE):
            continue
        value = by[record["target"]]
        low, high = record.get("bits_per_byte_interval", {}).get(system, {}).get(record["target"], (value, value))
        found = [c["difference"] for c in changes.get(system, {}).values()] or [0.0]
        trades[system] = figures.Trade((value, low, high), (float(np.mean(found)), min(found), max(found)))
    if not trades:
        return []
    names, target = {s: system_name(s) for s in trades}, name(record, record["target"])
    svg = figures.frontier(trades, names, target)
    shows = (
        f"{target} against the mean change on known languages. Upright bars: 95% interval; level: range of languages."
    )
    return [Chart("Gain against cost", Markup(svg), shows, say.trade({**record, "forgetting": changes}))]


# ---- 5: examples ----------------------------------------------------------------------------------


def _examples(record: Record) -> Section:
    shown = []
    for example in list(record.get("examples", ()))[:MOST_EXAMPLES]:
        fixed = [Cell(example[key], key) for key in ("source", "reference") if example.get(key)]
        shown.append([*fixed, *(Cell(text, system_name(s)) for s, text in example.get("outputs", {}).items())])
    return Section("Examples of translations", [Block("examples", shown)])
