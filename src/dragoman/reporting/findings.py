"""What a diagnosis says, one small pure function a statement; each returns "" or nothing where its data is missing.

As in `sentences`: whatever the numbers are, they are said, and nothing is claimed that they do not show.
"""

# Shape letters: G languages, L MoE layers, E experts, P pairs of languages.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import cophenet, to_tree
from scipy.spatial.distance import squareform

from dragoman.reporting.sentences import (
    ALPHA,
    Record,
    as_known,
    capital,
    from_training,
    limits,
    listed,
    name,
    number,
    p_text,
    percent,
)
from dragoman.routing.drawing import Cast
from dragoman.routing.relations import language_tree

FEWEST_FOR_CORRELATION = 4
"""Languages; three have six orders, so no permutation test of them could come out below 1/6."""
MOST_LISTED = 6
OTHER_TEXT = "The languages have different text: differences of topic look like differences of language here."


def count(number_of: int, noun: str) -> str:
    """`no expert`, `1 expert`, `2 experts`."""
    return f"{number_of or 'no'} {noun}{'s' if number_of > 1 else ''}"


def _some(words: Sequence[str]) -> str:
    """At most six of them, and how many more."""
    more = len(words) - MOST_LISTED
    return listed(words) if more <= 0 else f"{', '.join(words[:MOST_LISTED])} and {more} more"


# ---- of the whole --------------------------------------------------------------------------------------------------


def band(record: Record) -> tuple[int, int] | None:
    """First and last layer of the middle band where the curve has one."""
    found = record.get("routing", {}).get("middle_band")
    return (found["first"], found["last"]) if found and found.get("valley", True) else None


def mantel(record: Record) -> dict[str, Any] | None:
    """Pearson's r of routing and overlap of types with Mantel's p, all layers, and r's interval, as far as there."""
    routing = record.get("routing", {})
    found = ((routing.get("relations") or {}).get("measures") or {}).get("overlap") or {}
    tested = routing.get("overlap_correlation") or found.get("layers", {}).get("all", {}).get("pearson")
    if not tested:
        return None
    return {"r": float(tested["r"]), "p": float(tested["p"]), "interval": found.get("interval")}


def noise(record: Record) -> np.ndarray | None:
    """Upper edge of the placebo by layer: its 97.5 % quantile over splits where the record has that, else its mean."""
    routing = record.get("routing", {})
    interval, mean_L = routing.get("placebo_interval"), routing.get("placebo")
    if interval is None and mean_L is None:
        return None
    return np.asarray(mean_L if interval is None else interval[1])


def headline(record: Record) -> str:
    """Where routing parts languages, how surely, and how much an expert tells."""
    routing = record.get("routing", {})
    if not routing.get("divergence"):
        return ""
    parts = [depth(record), floor(record)]
    if routing.get("specialisation") is not None:
        special_L, layers = np.asarray(routing["specialisation"]), routing["layer_ids"]
        top = int(special_L.argmax())
        parts.append(
            f"The expert of one slot tells at most {percent(float(special_L[top]))} of which language it is "
            f"(layer {layers[top]})."
        )
    return " ".join(filter(None, parts))


def depth(record: Record) -> str:
    """The shape of the curve, mean over languages."""
    routing = record["routing"]
    mean_L, layers = np.mean(list(routing["divergence"].values()), axis=0), routing["layer_ids"]
    reference = name(record, routing.get("reference", "en"))
    low, high = int(mean_L.argmin()), int(mean_L.argmax())
    if len(layers) == 1:
        return f"Routing of the other languages is {number(float(mean_L[0]), 2)} from {reference}, mean over languages."
    words = f"Mean over languages, routing is nearest to {reference} in layer {layers[low]} ({number(mean_L[low], 2)}) "
    words += f"and farthest in layer {layers[high]} ({number(mean_L[high], 2)})"
    found = routing.get("middle_band")
    if not found:
        return f"{words}."
    if not found.get("valley", True):
        return f"{words}; the curve has no valley, so there is no middle band to speak of."
    return f"{words}; the middle band is layers {found['first']} to {found['last']}."


def floor(record: Record) -> str:
    """How many languages stand above the noise, by their intervals where there are any."""
    routing = record["routing"]
    placebo_L, intervals = noise(record), routing.get("divergence_interval") or {}
    if placebo_L is None:
        return ""
    least = {g: np.asarray(intervals[g][0] if g in intervals else d_L) for g, d_L in routing["divergence"].items()}
    above = [g for g, low_L in least.items() if (low_L > placebo_L).all()]
    level = limits(float(placebo_L.min()), float(placebo_L.max()))
    subject = f"{len(above)} of {len(least)} languages stand"
    if len(least) == 1:
        subject = f"{name(record, next(iter(least)))} {'stands' if above else 'does not stand'}"
    by = ", with the whole interval" if intervals else ""
    return f"{subject} above the noise floor {level} in every layer{by}."


def caveats(record: Record, parallel: bool) -> list[str]:
    """What the numbers do not show."""
    routing = record.get("routing", {})
    corpus = record.get("corpus", {}).get("name")
    lines = [
        f"The text is {f'the corpus {corpus}' if corpus else 'of one corpus'}; text of another domain may be routed "
        "differently.",
        "Counts say which experts a language's tokens go to, not what the experts do there.",
    ]
    if parallel:
        lines.append(
            "All languages have the same text, so what differs is the language (and its tokens), not the topic."
        )
    else:
        lines.append(OTHER_TEXT)
    tokens = routing.get("tokens") or {}
    if tokens:
        least = min(tokens, key=lambda g: tokens[g])
        lines.append(
            f"The least text is that of {name(record, least)}, {tokens[least]:,} tokens: its noise is largest."
        )
    unit = (routing.get("sample") or {}).get("unit", "segments")
    lines.append(f"Intervals cover the choice of {unit}, not that of the model, its seed or its training.")
    return lines


# ---- of one figure -------------------------------------------------------------------------------------------------


def divergence(record: Record) -> str:
    """Where the target is nearest to and farthest from the reference, and among the other languages."""
    curves = record["routing"]["divergence"]
    mean = {g: float(np.mean(d_L)) for g, d_L in curves.items()}
    near, far = min(mean, key=mean.__getitem__), max(mean, key=mean.__getitem__)
    nearest, farthest = (
        f"{name(record, g)} is {word} ({number(mean[g], 2)})" for g, word in ((near, "nearest"), (far, "farthest"))
    )
    ranks = f"averaged over layers, {nearest} and {farthest}"
    if near == far:
        return capital(f"{name(record, near)} {_extremes(record, curves[near])}{_above_floor(record, curves[near])}.")
    target = record.get("target", "")
    if target not in curves:
        return capital(ranks) + "."
    place = _extremes(record, curves[target])
    return f"{name(record, target)} {place}{_above_floor(record, curves[target])}; {ranks}."


def _extremes(record: Record, curve_L: Sequence[float]) -> str:
    layers, low, high = record["routing"]["layer_ids"], int(np.argmin(curve_L)), int(np.argmax(curve_L))
    near = f"nearest in layer {layers[low]} ({number(curve_L[low], 2)})"
    return f"is {near} and farthest in layer {layers[high]} ({number(curve_L[high], 2)})"


def _above_floor(record: Record, curve_L: Sequence[float]) -> str:
    placebo_L = noise(record)
    if placebo_L is None:
        return ""
    above = int((np.asarray(curve_L) > placebo_L).sum())
    return f", above the noise floor in {above} of {len(curve_L)} layers"


def seen_and_unseen(record: Record) -> str:
    """Mean divergence of the languages that the model was, or is said to be, trained on, and of the others."""
    mean = {g: float(np.mean(d_L)) for g, d_L in record["routing"]["divergence"].items()}
    known = [v for g, v in mean.items() if g in record.get("known", ())]
    unseen = [v for g, v in mean.items() if g not in record.get("known", ())]
    if not known or not unseen:
        return f"The mean over all languages and layers is {number(float(np.mean(list(mean.values()))), 2)}."
    (seen, of_seen), (new, of_new) = ((number(float(np.mean(v)), 2), len(v)) for v in (known, unseen))
    rest = "unseen" if from_training(record) else "not"
    known_ones = f"{seen} for the {of_seen} other languages {as_known(record)}"
    return f"Averaged over layers: {known_ones}, {new} for the {of_new} {rest}."


def spread(record: Record) -> str:
    """Over how many experts languages spread."""
    effective = {g: np.exp(h_L) for g, h_L in record["routing"]["entropy"].items()}
    mean = {g: float(e_L.mean()) for g, e_L in effective.items()}
    few, many = min(mean, key=mean.__getitem__), max(mean, key=mean.__getitem__)
    fewest = f"{name(record, few)} uses the fewest ({number(mean[few], 1)})"
    most = f"{name(record, many)} the most ({number(mean[many], 1)})"
    rest = f"averaged over layers, {fewest} and {most}"
    if (target := record.get("target", "")) not in effective:
        return capital(rest) + "."
    e_L = effective[target]
    return f"{name(record, target)} spreads over {number(e_L.min(), 1)} to {number(e_L.max(), 1)} experts; {rest}."


def specialisation(record: Record) -> str:
    """Where experts tell most and least of the language."""
    s_L, layers = np.asarray(record["routing"]["specialisation"]), record["routing"]["layer_ids"]
    high, low = int(s_L.argmax()), int(s_L.argmin())
    most = f"largest in layer {layers[high]}, where an expert tells {percent(s_L[high])} of what there is to tell"
    return f"It is {most}, and smallest in layer {layers[low]} ({percent(s_L[low])})."


def experts(share_GE: np.ndarray, tags: Sequence[str], cast: Cast) -> str:
    """The brightest cell, and the experts that no language leaves out."""
    num_experts = share_GE.shape[1]
    top, expert = map(int, np.unravel_index(share_GE.argmax(), share_GE.shape))
    share = float(share_GE[top, expert])
    words = f"{cast.name(tags[top])} gives expert {expert} the largest share, {percent(share)} of its slots, "
    words += f"{number(share * num_experts, 1)} times an even one"
    used = int((share_GE * num_experts >= 0.5).all(axis=0).sum())
    return f"{words}; {used} of {num_experts} experts have at least half an even share in every language."


def tree(distance_GG: np.ndarray, tags: Sequence[str], cast: Cast, placebo: float | None = None) -> str:
    """The nearest pair, the last join, and how well a tree renders the distances."""
    near_GG = distance_GG + np.where(np.eye(len(tags), dtype=bool), np.inf, 0)
    a, b = map(int, np.unravel_index(near_GG.argmin(), near_GG.shape))
    links = language_tree(distance_GG)
    root = to_tree(links)
    sides = sorted((root.get_left().pre_order(), root.get_right().pre_order()), key=len)
    small = _some([cast.name(tags[i]) for i in sorted(sides[0])])
    words = f"Nearest are {cast.name(tags[a])} and {cast.name(tags[b])} ({number(float(near_GG[a, b]))}); "
    words += f"the last to join, at {number(float(links[-1, 2]))}: {small} with the other {len(sides[1])}."
    if placebo is not None:
        below = int((links[:, 2] <= placebo).sum())
        words += f" {count(below, 'join').capitalize()} of {len(links)} within noise ({number(placebo)})."
    flat_P = squareform((distance_GG + distance_GG.T) / 2, checks=False)
    kept_P = cophenet(links)
    if len(tags) > 3 and np.ptp(flat_P) > 0 and np.ptp(kept_P) > 0:
        words += (
            f" Distances in the tree correlate with those measured by {number(np.corrcoef(flat_P, kept_P)[0, 1], 2)}."
        )
    return words


def overlap(
    overlap_P: Sequence[float],
    similarity_P: Sequence[float],
    related_P: Sequence[bool],
    tested: Mapping[str, Any] | None = None,
) -> str:
    """The correlation with its permutation test; without a test, no claim."""
    x_P, y_P, family_P = np.asarray(overlap_P), np.asarray(similarity_P), np.asarray(related_P, dtype=bool)
    if np.ptp(x_P) == 0 or np.ptp(y_P) == 0:
        return "All pairs are alike in one of the two, so nothing can correlate."
    r = float(tested["r"]) if tested else float(np.corrcoef(x_P, y_P)[0, 1])
    interval = (
        limits(tested["interval"][0], tested["interval"][1], 2) if tested and tested.get("interval") is not None else ""
    )
    words = f"Pearson's r is {' '.join(filter(None, (number(r, 2), interval)))} over {len(x_P)} pairs"
    if not tested:
        words += "; pairs share languages, so this number alone is no test."
    elif tested["p"] >= ALPHA:
        words += f" (Mantel p = {p_text(tested['p'])}): no evidence that shared vocabulary and routing go together."
    else:
        p = p_text(tested["p"])
        direction = "more alike" if r > 0 else "less alike"
        words += f" (Mantel p {p if p.startswith('<') else f'= {p}'}): pairs that share more vocabulary are routed "
        words += f"{direction}. That is no proof of a cause."
    if family_P.any() and not family_P.all():
        means = [number(float(y_P[which].mean()), 2) for which in (family_P, ~family_P)]
        words += f" Mean similarity: {means[0]} within a family, {means[1]} across."
    return words


def tokenizer(cost: Mapping[str, Mapping[str, Any]], reference: str, cast: Cast) -> str:
    """Who pays most and least for the same text."""
    per_byte = {g: c["per_byte"] for g, c in cost.items()}
    low, high = min(per_byte, key=lambda g: per_byte[g]), max(per_byte, key=lambda g: per_byte[g])
    density = f"Tokens per byte reach from {number(per_byte[low], 2)} ({cast.name(low)}) to "
    density += f"{number(per_byte[high], 2)} ({cast.name(high)})."
    relative = {g: c["relative"] for g, c in cost.items() if c.get("relative") is not None and g != reference}
    if not relative:
        return density
    dear, cheap = max(relative, key=lambda g: relative[g]), min(relative, key=lambda g: relative[g])
    interval = cost[dear].get("interval")
    sure = f" {limits(interval[0], interval[1], 2)}" if interval else ""
    words = f"{cast.name(dear)} needs {number(relative[dear], 2)}{sure} times the tokens of {cast.name(reference)}"
    words += f", {cast.name(cheap)} {number(relative[cheap], 2)} times" if cheap != dear else ""
    return f"{words}. {density}"


def balance(record: Record) -> str:
    """The most and least even layer, and the dead experts."""
    routing = record["routing"]
    variation_L, dead_L, layers = np.asarray(routing["load_variation"]), routing["dead_experts"], routing["layer_ids"]
    high, low = int(variation_L.argmax()), int(variation_L.argmin())
    words = f"Most uneven is layer {layers[high]} ({number(variation_L[high], 2)})"
    words += f", most even layer {layers[low]} ({number(variation_L[low], 2)})" if len(layers) > 1 else ""
    dead = {layer: int(n) for layer, n in zip(layers, dead_L, strict=True) if n}
    if not dead:
        return f"{words}. Every expert was chosen at least once."
    where = _some([f"layer {layer}: {n}" for layer, n in dead.items()])
    return f"{words}. Never chosen by this text: {count(sum(dead.values()), 'expert')} ({where})."


def contrast(
    task: str,
    delta_LE: np.ndarray,
    layer_ids: Sequence[int],
    num_experts: Sequence[int],
    threshold: float | None,
    placebo_L: Sequence[float] | None = None,
) -> str:
    """The farthest expert, how many pass the threshold, and what halves of one text give."""
    real_LE = np.arange(delta_LE.shape[1]) < np.asarray(num_experts)[:, None]
    known_LE = np.where(real_LE, delta_LE, 0)
    row, expert = map(int, np.unravel_index(abs(known_LE).argmax(), known_LE.shape))
    farthest = number(float(known_LE[row, expert]), 2, sign=True)
    words = f"Farthest is expert {expert} of layer {layer_ids[row]} ({farthest} of tokens)."
    if threshold is not None:
        over, under = int((known_LE > threshold).sum()), int((known_LE < -threshold).sum())
        words += f" The text {task} uses {count(over, 'expert')} more than the general corpus by over {threshold:g} "
        words += f"of tokens, {count(under, 'expert')} less by as much."
    if placebo_L is not None:
        largest = float(np.max(placebo_L))
        words += (
            f" Between halves of the general corpus the largest difference is {number(largest, 2)} (mean over splits)."
        )
    return words


def drift(record: Record) -> str:
    """Who moved most, in which layer, and who moved beyond the placebo."""
    part = record["drift"]
    curves = {g: np.asarray(d_L) for g, d_L in part["divergence"].items()}
    mean = {g: float(d_L.mean()) for g, d_L in curves.items()}
    if not any(d_L.any() for d_L in curves.values()):
        return "Routing is the same in both traces, to the count."
    most, least = max(mean, key=lambda g: mean[g]), min(mean, key=lambda g: mean[g])
    over_L = np.mean(list(curves.values()), axis=0)
    words = f"{name(record, most)} moved most ({number(mean[most], 4)} nats, mean over layers)"
    words += f", {name(record, least)} least ({number(mean[least], 4)})" if least != most else ""
    layer = part["layer_ids"][int(over_L.argmax())]
    words += f"; mean over languages, most in layer {layer} ({number(float(over_L.max()), 4)})."
    floor_by = {g: np.asarray(n_L) for g, n_L in part["placebo"].items()}
    beyond = [g for g in floor_by if mean[g] > floor_by[g].mean()]
    if floor_by:
        words += f" {len(beyond)} of {len(floor_by)} moved further than another half of the text would make it seem."
    return words


def text_differs(record: Record) -> str:
    """A warning where drift is also that of the text, and the languages left out."""
    part, words = record["drift"], []
    if part["other_text"]:
        others = _some([name(record, g) for g in part["other_text"]])
        words.append(f"The two traces are not of the same text for {others}: their drift is that of the text too.")
    if part["left_out"]:
        words.append(f"In one trace only, so left out: {_some([name(record, g) for g in part['left_out']])}.")
    return " ".join(words)
