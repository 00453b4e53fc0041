"""The page: sections of texts, tables and figures from a record and its trace."""

# Shape letters: G languages, L MoE layers, E experts.

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from dragoman.record import atomic_write
from dragoman.reporting import sentences as say
from dragoman.reporting.blocks import MISSING, Block, Cell, Chart, Section, duration, measured, systems, table_rows
from dragoman.reporting.making import making
from dragoman.reporting.sentences import Record, limits, name, number, percent, system_name
from dragoman.routing import figures
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
    filled = [Section(s.title, blocks) for s in sections if (blocks := [b for b in s.blocks if b.content])]
    template = (resources.files("dragoman") / "assets" / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return page.render(title=_title(record), about=_about(record), headline=say.headline(record), sections=filled)


def _title(record: Record) -> str:
    model = Path(record.get("model", {}).get("name", "a mixture of experts")).name
    target = record.get("target")
    return f"How {model} routes languages" + (f", and learns {name(record, target)}" if target else "")


def _about(record: Record) -> str:
    known = len(record.get("known", ()))
    parts = [f"trained on {known} languages" if known else ""]
    parts += [f"corpus {record['corpus']['name']}" if record.get("corpus", {}).get("name") else ""]
    parts += [f"made {record['created'][:10]}" if record.get("created") else ""]
    parts += [f"in {duration(record['seconds'])}" if record.get("seconds") else ""]
    return " · ".join(filter(None, parts))


def _chart(title: str, svg: str, shows: str, says: str) -> Chart:
    return Chart(title, Markup(svg), shows, says)


def _cast(record: Record, trace: RoutingTrace) -> figures.Cast:
    names = {g: name(record, g) for g in trace.languages}
    return figures.Cast(record.get("known", ()), record.get("target"), record.get("parent", {}).get("chosen"), names)


# ---- 1 and 2: routing and the choice of experts --------------------------------------------------------------------

KEY = "Thick: the target (orange) and its parent (green); blue: trained on; grey, dashed: not trained on."


def _routing(record: Record, trace: RoutingTrace) -> Section:
    routing, cast = record.get("routing", {}), _cast(record, trace)
    charts = []
    if routing.get("divergence"):
        charts += _divergence_charts(record, cast)
    if routing.get("entropy"):
        svg = figures.entropy_curves(routing["entropy"], routing["layer_ids"], cast)
        shows = f"The number of equally busy experts that would have the same entropy, exp(H), by layer. {KEY}"
        charts.append(_chart("How many experts a language uses", svg, shows, say.spread(record)))
    if routing.get("specialisation") is not None:
        interval = routing.get("specialisation_interval")
        svg = figures.specialisation_curve(routing["specialisation"], routing["layer_ids"], interval)
        shows = (
            "How much of the language the expert of one slot tells, I(L;E)/H(L): 0 nothing, 1 all; band: 95% interval."
        )
        charts.append(_chart("What an expert tells of the language", svg, shows, say.specialisation(record)))
    charts += _expert_map(record, trace, cast)
    return Section("How the model routes languages", [Block("charts", charts)])


def _divergence_charts(record: Record, cast: figures.Cast) -> list[Chart]:
    routing = record["routing"]
    reference = name(record, routing.get("reference", "en"))
    interval, placebo_L = routing.get("divergence_interval"), routing.get("placebo")
    curves = figures.divergence_curves(routing["divergence"], routing["layer_ids"], cast, interval, placebo_L)
    heat = figures.divergence_map(routing["divergence"], routing["layer_ids"], cast)
    floor = f" The grey band at the foot is noise: two halves of the {reference} text." if placebo_L is not None else ""
    shows = (
        f"Distance of each language's use of experts from {reference}: 0 the same, 1 nothing in common. {KEY}{floor}"
    )
    map_shows = "The same numbers as a map, languages from near to far; italic: not trained on."
    return [
        _chart(f"Distance from {reference} by depth", curves, shows, say.divergence(record)),
        _chart(f"Distance from {reference}, all languages", heat, map_shows, say.seen_and_unseen(record)),
    ]


def _expert_map(record: Record, trace: RoutingTrace, cast: figures.Cast) -> list[Chart]:
    """The last MoE layer: its plans are those that name some of its experts, not all."""
    layer, num_experts = trace.layer_ids[-1], trace.num_experts[-1]
    share_GE = slot_share(trace.chosen_GLE[:, -1:, :num_experts], trace.languages, [layer])[:, 0]
    by_system = {s: _layers(plan).get(layer, []) for s, plan in record.get("plans", {}).items()}
    planned = {s: ids for s, ids in by_system.items() if 0 < len(ids) < num_experts}
    svg = figures.expert_map(share_GE, trace.languages, cast, {system_name(s): ids for s, ids in planned.items()})
    marks = " Marks above: the experts that a plan changes." if planned else ""
    shows = f"How often each language chooses each expert of layer {layer}; similar ones stand together.{marks}"
    if record.get("target") not in trace.languages:
        return [_chart(f"Who uses which expert (layer {layer})", svg, shows, "")]
    says = say.experts(record, share_GE[trace.index(record["target"])].tolist(), planned, layer)
    return [_chart(f"Who uses which expert (layer {layer})", svg, shows, says)]


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
    charts = []
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
        charts.append(_chart(f"{target}: {label}", svg, shows, say.quality(record, metric)))
    return charts


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


def _change(change: Mapping[str, float] | None) -> Cell:
    if change is None:
        return Cell(MISSING)
    mark = " ▲" if change["low"] > 0 else " ▼" if change["high"] < 0 else ""
    interval = limits(change["low"], change["high"], sign=True)
    return Cell(number(change["difference"], sign=True) + mark, interval, mark=change["low"] > 0)


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
    return [_chart("Gain against cost", svg, shows, say.trade({**record, "forgetting": changes}))]


# ---- 5: examples ----------------------------------------------------------------------------------


def _examples(record: Record) -> Section:
    shown = []
    for example in list(record.get("examples", ()))[:MOST_EXAMPLES]:
        fixed = [Cell(example[key], key) for key in ("source", "reference") if example.get(key)]
        shown.append([*fixed, *(Cell(text, system_name(s)) for s, text in example.get("outputs", {}).items())])
    return Section("Examples of translations", [Block("examples", shown)])
