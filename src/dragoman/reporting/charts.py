"""Figures of routing with their captions and numbers: what the tour's page and the diagnosis share, and the rest.

Each function takes a record (its `routing` part) or a trace and returns charts; none where the numbers are missing.
"""

# Shape letters: G languages, L MoE layers, E experts.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from dragoman.corpora.languages import language
from dragoman.reporting import findings
from dragoman.reporting.blocks import Chart, Table
from dragoman.reporting.sentences import Record, as_known, name
from dragoman.routing import figures, maps, relations
from dragoman.routing.drawing import Cast, Curves
from dragoman.routing.stats import slot_share
from dragoman.routing.trace import RoutingTrace


def by_layer(
    curves: Curves,
    layer_ids: Sequence[int],
    intervals: Mapping[str, Any] | None = None,
    placebo: Curves | None = None,
) -> Table:
    """One row a language and layer: value, and what there is of interval and placebo."""
    intervals, placebo = intervals or {}, placebo or {}
    head = ["language", "layer", "value"] + ["low", "high"] * bool(intervals) + ["placebo"] * bool(placebo)
    rows = []
    for tag, curve_L in curves.items():
        low_L, high_L = intervals.get(tag, ([""] * len(layer_ids),) * 2)
        noise_L = placebo.get(tag, [""] * len(layer_ids))
        for i, layer in enumerate(layer_ids):
            limits = [_number(low_L[i]), _number(high_L[i])] * bool(intervals)
            rows.append([tag, layer, float(curve_L[i]), *limits, *[_number(noise_L[i])] * bool(placebo)])
    return Table(head, rows)


def wide(curves: Curves, layer_ids: Sequence[int]) -> Table:
    """One row a language, one column a layer."""
    head = ["language", *(f"layer {layer}" for layer in layer_ids)]
    return Table(head, [[tag, *map(float, curve_L)] for tag, curve_L in curves.items()])


def _number(value: Any) -> Any:
    return value if value == "" else float(value)


def divergence(record: Record, cast: Cast, key: str) -> list[Chart]:
    """The curves over depth with intervals, placebo and middle band, and the same as a map."""
    routing = record.get("routing", {})
    if not routing.get("divergence"):
        return []
    layers, curves_by = routing["layer_ids"], routing["divergence"]
    reference = name(record, routing.get("reference", "en"))
    interval, placebo_L, band = routing.get("divergence_interval"), findings.noise(record), findings.band(record)
    svg = figures.divergence_curves(curves_by, layers, cast, interval, placebo_L, band=band)
    edge = "mean over splits" if routing.get("placebo_interval") is None else "97.5% of splits lie below its edge"
    floor = f" The grey band at the foot is noise: two halves of the {reference} text ({edge})."
    floor = "" if placebo_L is None else floor
    middle = " Shaded: the middle band." if band else ""
    spans = " Bands about lines: 95% intervals." if interval else ""
    shows = f"Distance of each language's use of experts from {reference}: 0 the same, 1 nothing in common. "
    shows += f"{key}{spans}{floor}{middle}"
    placebo = {} if placebo_L is None else dict.fromkeys(curves_by, placebo_L)
    table = by_layer(curves_by, layers, interval, placebo)
    italic = "" if all(map(cast.seen, curves_by)) else f"; italic: not {as_known(record)}"
    map_shows = f"The same numbers as a map, languages from near to far{italic}."
    heat = maps.divergence_map(curves_by, layers, cast)
    return [
        Chart(
            f"Distance from {reference} by depth", Markup(svg), shows, findings.divergence(record), "divergence", table
        ),
        Chart(
            f"Distance from {reference}, all languages",
            Markup(heat),
            map_shows,
            findings.seen_and_unseen(record),
            "divergence-map",
            wide(curves_by, layers),
        ),
    ]


def entropy(record: Record, cast: Cast, key: str) -> list[Chart]:
    """Over how many experts languages spread."""
    routing = record.get("routing", {})
    if not routing.get("entropy"):
        return []
    intervals = {g: np.exp(limits) for g, limits in (routing.get("entropy_interval") or {}).items()}
    svg = figures.entropy_curves(routing["entropy"], routing["layer_ids"], cast, intervals)
    shows = f"The number of equally busy experts that would have the same entropy, exp(H), by layer. {key}"
    effective = {g: np.exp(h_L) for g, h_L in routing["entropy"].items()}
    table = by_layer(effective, routing["layer_ids"], intervals)
    return [
        Chart("How many experts a language uses", Markup(svg), shows, findings.spread(record), "experts-used", table)
    ]


def specialisation(record: Record) -> list[Chart]:
    """What an expert tells of the language."""
    routing = record.get("routing", {})
    if routing.get("specialisation") is None:
        return []
    interval, placebo_L = routing.get("specialisation_interval"), routing.get("specialisation_placebo")
    layers, curve_L = routing["layer_ids"], routing["specialisation"]
    svg = figures.specialisation_curve(curve_L, layers, interval, placebo_L)
    shows = "How much of the language the expert of one slot tells, I(L;E)/H(L): 0 nothing, 1 all"
    shows += "; band: 95% interval" * (interval is not None)
    shows += "; grey: the same where halves of one language stand for languages" * (placebo_L is not None)
    table = by_layer(
        {"all": curve_L},
        layers,
        {"all": interval} if interval is not None else None,
        {"all": placebo_L} if placebo_L is not None else None,
    )
    title = "What an expert tells of the language"
    return [Chart(title, Markup(svg), f"{shows}.", findings.specialisation(record), "specialisation", table)]


def experts(trace: RoutingTrace, row: int, cast: Cast, planned: Mapping[str, Sequence[int]] | None = None) -> Chart:
    """Languages by experts of one MoE layer; row: that of the trace."""
    layer, num_experts, tags = trace.layer_ids[row], trace.num_experts[row], trace.languages
    share_GE = slot_share(trace.chosen_GLE[:, row, None, :num_experts], tags, [layer])[:, 0]
    svg = maps.expert_map(share_GE, tags, cast, planned)
    marks = " Marks above: the experts that a plan changes." if planned else ""
    shows = f"How often each language chooses each expert of layer {layer}; similar ones stand together.{marks}"
    rows = [[g, *map(float, share_E)] for g, share_E in zip(tags, share_GE, strict=True)]
    table = Table(["language", *(f"expert {e}" for e in range(num_experts))], rows)
    title = f"Who uses which expert (layer {layer})"
    return Chart(title, Markup(svg), shows, findings.experts(share_GE, tags, cast), f"experts-layer-{layer}", table)


def tree(distance_GG: np.ndarray, tags: Sequence[str], cast: Cast, placebo: float | None) -> list[Chart]:
    """Which languages are routed alike; none for two languages, which make no tree."""
    if len(tags) < 3:
        return []
    svg = relations.language_dendrogram(distance_GG, tags, cast, placebo)
    shows = "Two branches join at the mean distance between their languages (1 minus similarity, mean over layers)."
    shows += " Dotted: two halves of one language; what joins to the right of it is not told apart." * bool(placebo)
    rows = [[a, b, float(distance_GG[i, j])] for i, a in enumerate(tags) for j, b in enumerate(tags) if i < j]
    table = Table(["language", "other", "distance"], rows)
    says = findings.tree(distance_GG, tags, cast, placebo)
    return [Chart("Languages that are routed alike", Markup(svg), shows, says, "language-distance", table)]


def overlap(
    distance_GG: np.ndarray,
    tags: Sequence[str],
    overlap_by: Mapping[str, Mapping[str, float]],
    cast: Cast,
    tested: Mapping[str, Any] | None = None,
) -> list[Chart]:
    """Similarity of routing against overlap of vocabulary; none for fewer than four languages or without overlaps.

    tested: what a Mantel test said, {"r", "p"}; without it the sentence makes no claim.
    """
    pairs = [(a, b) for i, a in enumerate(tags) for b in tags[i + 1 :] if b in overlap_by.get(a, {})]
    if len(tags) < findings.FEWEST_FOR_CORRELATION or not pairs:
        return []
    index = {g: i for i, g in enumerate(tags)}
    similar = [1 - float(distance_GG[index[a], index[b]]) for a, b in pairs]
    shared = [float(overlap_by[a][b]) for a, b in pairs]
    family = {g: language(g).family for g in tags}
    related = [family[a] == family[b] != "" for a, b in pairs]
    svg = relations.overlap_scatter(shared, similar, pairs, related)
    shows = "One mark a pair of languages: routing similarity (1 minus JSD / ln 2, mean over layers) against the share "
    shows += "of the two texts' token types that both have. Dashed: least squares."
    says = findings.overlap(shared, similar, related, tested)
    rows = [[*pair, s, o, int(r)] for pair, s, o, r in zip(pairs, similar, shared, related, strict=True)]
    table = Table(["language", "other", "similarity", "overlap", "one family"], rows)
    return [Chart("Routing and shared vocabulary", Markup(svg), shows, says, "overlap", table)]


def tokenizer(cost: Mapping[str, Mapping[str, Any]], reference: str, cast: Cast) -> list[Chart]:
    """What the tokenizer makes of each language; cost: `routing.cost.TokenizerCost` of each, as dicts."""
    if not cost:
        return []
    relative = {g: c["relative"] for g, c in cost.items() if c.get("relative") is not None}
    intervals = {g: c["interval"] for g, c in cost.items() if c.get("interval")}
    svg = relations.tokenizer_dots({g: c["per_byte"] for g, c in cost.items()}, relative, intervals, reference, cast)
    shows = "Left: tokens per byte of UTF-8. Right: tokens for the same text, over those of "
    shows = f"{shows}{cast.name(reference)}, with 95% intervals." if relative else "Tokens per byte of UTF-8."
    fields = ("tokens", "bytes", "per_byte", "relative")
    rows = [[g, *(c.get(f) for f in fields), *(c.get("interval") or ("", ""))] for g, c in cost.items()]
    table = Table(["language", "tokens", "bytes", "tokens per byte", "relative", "low", "high"], rows)
    says = findings.tokenizer(cost, reference, cast)
    return [Chart("What the tokenizer costs each language", Markup(svg), shows, says, "tokenizer", table)]


def balance(record: Record) -> list[Chart]:
    """How evenly experts work, by layer."""
    routing = record.get("routing", {})
    if routing.get("load_variation") is None or routing.get("dead_experts") is None:
        return []
    variation_L, dead_L, layers = routing["load_variation"], routing["dead_experts"], routing["layer_ids"]
    interval = routing.get("load_variation_interval")
    svg = figures.load_balance(variation_L, dead_L, layers, interval)
    shows = "Above: coefficient of variation of the experts' slots over the whole text (standard deviation over mean; "
    shows += "0 is even). Below: experts that no token chose."
    low_L, high_L = interval if interval is not None else ([""] * len(layers),) * 2
    rows = [
        [layer, float(v), int(d), _number(low), _number(high)]
        for layer, v, d, low, high in zip(layers, variation_L, dead_L, low_L, high_L, strict=True)
    ]
    table = Table(["layer", "variation", "dead experts", "low", "high"], rows)
    return [Chart("How evenly experts work", Markup(svg), shows, findings.balance(record), "load-balance", table)]


def contrast(task: str, found: Mapping[str, Any], layer_ids: Sequence[int], num_experts: Sequence[int]) -> list[Chart]:
    """Experts that a task's text uses more than the general corpus.

    found: {"delta": [L][E], "threshold": tau, "placebo": [L] largest size between halves, or missing}.
    """
    if not found or found.get("delta") is None:
        return []
    delta_LE, threshold = np.array(found["delta"], dtype=np.float64), found.get("threshold")
    placebo_L = found.get("placebo")
    svg = figures.contrast_depth(delta_LE, layer_ids, num_experts, threshold, placebo_L)
    shows = f"Share of tokens that choose an expert, {task} minus the general corpus: thin line, all experts of the "
    shows += "layer; thick, nine in ten of them."
    shows += f" Marks: experts past ±{threshold:g}, the farthest with their number." if threshold is not None else ""
    shows += (
        " Grey: the largest difference between halves of the general corpus, mean over splits."
        if placebo_L is not None
        else ""
    )
    rows = [
        [layer, e, float(delta_LE[i, e])]
        for i, (layer, n) in enumerate(zip(layer_ids, num_experts, strict=True))
        for e in range(n)
    ]
    says = findings.contrast(task, delta_LE, layer_ids, num_experts, threshold, placebo_L)
    table = Table(["layer", "expert", "delta"], rows)
    return [Chart(f"Experts of {task}", Markup(svg), shows, says, f"contrast-{task}", table)]


def drift(record: Record, cast: Cast) -> list[Chart]:
    """How far routing moved between two traces: curves with placebo, and a map.

    cast: its target is the language that moved most, its parent the one that moved least.
    """
    part = record["drift"]
    layers, curves_by, intervals, placebo = (part[k] for k in ("layer_ids", "divergence", "interval", "placebo"))
    noise_L = np.mean(list(placebo.values()), axis=0) if placebo else None
    label = "drift (JSD, nats)"
    svg = figures.divergence_curves(curves_by, layers, cast, intervals, noise_L, label)
    shows = "Jensen-Shannon divergence of each language's use of experts before and after: 0 the same, 0.69 nothing in "
    shows += "common." + " Bands about lines: 95% intervals." * bool(intervals)
    shows += " Grey band: two halves of a language's text before, mean over languages." * bool(placebo)
    if cast.target and cast.parent and cast.target != cast.parent:
        shows += f" Orange: {cast.name(cast.target)}, which moved most; green, dash-dotted: "
        shows += f"{cast.name(cast.parent)}, which moved least."
    table = by_layer(curves_by, layers, intervals, placebo)
    heat = maps.divergence_map(curves_by, layers, cast, label)
    return [
        Chart("Drift by depth", Markup(svg), shows, findings.drift(record), "drift", table),
        Chart(
            "Drift, all languages",
            Markup(heat),
            "The same numbers as a map, least moved first.",
            "",
            "drift-map",
            wide(curves_by, layers),
        ),
    ]
