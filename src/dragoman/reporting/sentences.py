"""What a record says, one small pure function a statement; each returns "" where its data is missing.

Systems differ only where the Holm-corrected p is below 0.05, the interval of the difference leaves out zero and it
rests on documents enough for a test to show something; else the sentence says that no difference was shown. Whatever
the numbers are, they are said: also that tuning did harm, that random experts do as well, that copying the source
beats the translation.
"""

# Shape letters: G languages, L MoE layers, E experts.

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dragoman.evaluation.significance import too_few_to_judge

Record = Mapping[str, Any]
ALPHA = 0.05
BASE, PLANNED, CONTROL, COPY = "base", "ssft", "random", "copy"
SYSTEM_NAMES = {
    BASE: "before tuning",
    PLANNED: "SSFT plan",
    CONTROL: "random plan",
    "last_layers": "complete last layers",
    "full": "full fine-tuning",
    COPY: "copy of the source",
}
METRICS = {"bits_per_byte": ("bits per byte", 3, -1), "chrf": ("chrF", 1, 1)}
"""Key in the record: name, decimals, +1 where higher is better."""


# ---- words and numbers ---------------------------------------------------------------------------------------------


def name(record: Record, tag: str) -> str:
    """English name of a language as the record has it, else its tag."""
    return record.get("corpus", {}).get("languages", {}).get(tag, {}).get("name") or tag


def system_name(system: str) -> str:
    """What readers call a system."""
    return SYSTEM_NAMES.get(system, system)


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last


def number(value: float, digits: int = 3, sign: bool = False) -> str:
    """Fixed decimals, a true minus sign, no negative zero."""
    text = f"{float(value):{'+' if sign else ''}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")


def limits(low: float, high: float, digits: int = 3, sign: bool = False) -> str:
    """`[low, high]`."""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def p_text(p_value: float) -> str:
    """A p-value to two digits; `< 0.001` below that."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def percent(share: float) -> str:
    """A share in percent, one decimal below ten."""
    return f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f}%"


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def from_training(record: Record) -> bool:
    """Whether known languages are those of the model's training; of most models only the user says which it knows."""
    return record.get("trained_on_known", True)


def as_known(record: Record) -> str:
    """What is said of known languages."""
    return "trained on" if from_training(record) else "named as known"


# ---- comparisons ---------------------------------------------------------------------------------------------------


def compared(record: Record, metric: str, a: str, b: str) -> dict[str, Any] | None:
    """Score of a minus score of b on the target, whichever way round it was recorded; None where it was not."""
    for c in record.get("comparisons", ()):
        if (c["metric"], c.get("language")) != (metric, record.get("target")):
            continue
        if (c["a"], c["b"]) == (a, b):
            return dict(c)
        if (c["a"], c["b"]) == (b, a):
            turned = {"difference": -c["difference"], "low": -c["high"], "high": -c["low"]}
            return {**c, "a": a, "b": b, **turned}
    return None


def judged(comparison: Mapping[str, Any]) -> bool:
    """Whether there are units enough for a test to show something; so where the record does not say how many."""
    return "units" not in comparison or not too_few_to_judge(comparison["units"])


def differs(comparison: Mapping[str, Any]) -> bool:
    """Whether a difference may be claimed: Holm-corrected p below 0.05, interval without zero, units enough."""
    beyond = comparison["p_holm"] < ALPHA and not comparison["low"] <= 0 <= comparison["high"]
    return judged(comparison) and beyond


def better(comparison: Mapping[str, Any]) -> str | None:
    """The system that is better beyond noise; None where none is."""
    sign = METRICS[comparison["metric"]][2]
    return comparison["a" if sign * comparison["difference"] > 0 else "b"] if differs(comparison) else None


def _evidence(comparison: Mapping[str, Any]) -> str:
    digits = METRICS[comparison["metric"]][1]
    difference = number(comparison["difference"], digits, sign=True)
    interval = limits(comparison["low"], comparison["high"], digits, sign=True)
    p = p_text(comparison["p_holm"])
    return f"{difference} {interval}, Holm p {p if p.startswith('<') else f'= {p}'}"


def _value(record: Record, metric: str, system: str) -> float | None:
    return record.get(metric, {}).get(system, {}).get(record.get("target"))


def _values(record: Record, metric: str) -> dict[str, float]:
    return {s: v for s in record.get(metric, {}) if (v := _value(record, metric, s)) is not None}


def _best(record: Record, metric: str) -> list[str]:
    """Systems with a value for the target, best first; copying is no system."""
    values = {s: v for s, v in _values(record, metric).items() if s != COPY}
    return sorted(values, key=lambda s: -METRICS[metric][2] * values[s])


# ---- headline ------------------------------------------------------------------------------------------------------


def headline(record: Record) -> str:
    """The main result in one paragraph."""
    parts = (gain(record), control(record), best(record), against_copy(record), no_language_expert(record))
    return " ".join(filter(None, parts))


def gain(record: Record) -> str:
    """What tuning the planned experts did to the target."""
    comparison = compared(record, "bits_per_byte", PLANNED, BASE)
    before, after = (_value(record, "bits_per_byte", s) for s in (BASE, PLANNED))
    if not comparison or before is None or after is None:
        return ""
    target, share = name(record, record["target"]), record.get("trained_share", {}).get(PLANNED)
    known = record.get("known") or [record["target"]]  # nothing is claimed where the training languages are not known
    said = "the model was not trained on" if from_training(record) else "not named as known"
    unseen = "" if record["target"] in known else f", a language {said},"
    what = "the experts that SSFT chose" + (f" ({percent(share)} of the parameters)" if share else "")
    values = f"from {number(before)} to {number(after)} bits per byte (difference {_evidence(comparison)})"
    verdict = better(comparison)
    if not judged(comparison):
        few = f"{comparison['units']} {comparison.get('unit', 'document')}s"
        return f"Tuning {what} changed {target}{unseen} {values}, which {few} are too few to judge."
    if verdict is None:
        return f"Tuning {what} changed {target}{unseen} no more than noise would: {values}."
    if verdict == PLANNED:
        return f"Tuning {what} improves {target}{unseen} {values}."
    return f"Tuning {what} makes {target}{unseen} worse: {values}."


ONE_DRAW = ": the interval covers the choice of test text, not that of the draw or of the training seed."


def control(record: Record) -> str:
    """SSFT against as many experts by lot. One draw and one training run: the test knows of the text's chance alone."""
    comparison = compared(record, "bits_per_byte", PLANNED, CONTROL)
    if not comparison:
        return ""
    evidence, verdict = f"SSFT minus random is {_evidence(comparison)}", better(comparison)
    if verdict == PLANNED:
        return f"As many experts drawn at random do worse in this one draw ({evidence}){ONE_DRAW}"
    if verdict == CONTROL:
        return f"As many experts drawn at random do better in this one draw ({evidence}){ONE_DRAW}"
    return (
        f"As many experts drawn at random do as well, as far as this test can tell ({evidence}): "
        "this run gives no evidence that choosing them by routing helps."
    )


def best(record: Record) -> str:
    """Which system is best in the target, how surely, what it trains and what it costs."""
    order = _best(record, "bits_per_byte")
    if len(order) < 2:
        return ""
    first, second = order[:2]
    share, cost = record.get("trained_share", {}).get(first), mean_change(record, first)
    facts = [f"it trains {percent(share)} of the parameters"] if share else []
    facts += [f"changes the known languages by {number(cost, sign=True)} on average"] if cost is not None else []
    about = f"; {' and '.join(facts)}" if facts else ""
    comparison = compared(record, "bits_per_byte", first, second)
    sure = comparison is None or differs(comparison)
    doubt = "" if sure else f", though not beyond noise below {system_name(second)}"
    value = number(_values(record, "bits_per_byte")[first])
    return f"{capital(system_name(first))} reaches the lowest value, {value}{doubt}{about}."


def against_copy(record: Record) -> str:
    """Translation beside returning the source unchanged."""
    system = PLANNED if PLANNED in record.get("chrf", {}) else next(iter(_best(record, "chrf")), None)
    value, copied = (_value(record, "chrf", s) if s else None for s in (system, COPY))
    if system is None or value is None or copied is None:
        return ""
    comparison = compared(record, "chrf", system, COPY)
    sure = comparison is not None and differs(comparison)
    where = "above" if value > copied else "below"
    noise = "" if sure else ", a difference within noise" if comparison else ", a difference that was not tested"
    verdict = "" if where == "above" and sure else "; it does not beat handing back the source"
    into = f"The chrF of translations into {name(record, record['target'])} ({system_name(system)})"
    return f"{into} is {number(value, 1)}, {where} the {number(copied, 1)} of copying the source{noise}{verdict}."


def language_experts(why: Iterable[str]) -> int | None:
    """Language experts that a plan's reasons count, over all layers; None where they count none at all."""
    counts = re.findall(r"language experts of \S+: (none|\d+)", " ".join(why))
    return sum(0 if n == "none" else int(n) for n in counts) if counts else None


def no_language_expert(record: Record) -> str:
    """Said where the rule selected shared experts only."""
    if language_experts(record.get("plans", {}).get(PLANNED, {}).get("why", ())) != 0:
        return ""
    parent = name(record, record.get("parent", {}).get("chosen", "the parent"))
    return f"The rule found no language expert of {parent}, so the SSFT plan holds shared experts alone."


# ---- routing -------------------------------------------------------------------------------------------------------


def experts(record: Record, share_E: Sequence[float], planned: Mapping[str, Sequence[int]], layer: int) -> str:
    """How much of the target's slots the plans take in one layer; share_E: the target's."""
    target, busiest = name(record, record["target"]), int(np.argmax(share_E))
    top = f"For {target} expert {busiest} of layer {layer} is the busiest ({percent(share_E[busiest])} of slots)"
    taken = [
        f"{system_name(s)} {percent(float(np.asarray(share_E)[list(e)].sum()))} "
        f"(even use would give its {len(e)} experts {percent(len(e) / len(share_E))})"
        for s, e in planned.items()
    ]
    return f"{top}; of its slots the plans cover: {listed(taken)}." if taken else f"{top}."


def parent(record: Record) -> str:
    """Who the parent is, by what, and what the other measure says."""
    choice, target = record.get("parent"), name(record, record.get("target", ""))
    if not choice:
        return ""
    chosen, routing, overlap = choice["chosen"], choice.get("by_routing", {}), choice.get("by_overlap") or {}
    first = _ranked(routing)
    if choice.get("by") in ("routing", None):
        words = f"{name(record, chosen)} is the parent, the known language whose routing is most like that of {target}"
    else:
        words = f"{name(record, chosen)} is the parent as set by hand"
        words += f"; routing would choose {name(record, first[0])}" if first and first[0] != chosen else ""
    words += f" (similarity {number(routing[chosen])}{_next(record, routing, chosen)})" if chosen in routing else ""
    return f"{words}. {_by_overlap(record, chosen, overlap)}".strip()


def _ranked(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=lambda g: -values[g])


def _next(record: Record, values: Mapping[str, float], chosen: str) -> str:
    others = [g for g in _ranked(values) if g != chosen]
    return f"; {name(record, others[0])} {number(values[others[0]])}" if others else ""


def _by_overlap(record: Record, chosen: str, overlap: Mapping[str, float]) -> str:
    if not overlap:
        return ""
    first = _ranked(overlap)[0]
    if first == chosen:
        return f"Vocabulary overlap agrees ({number(overlap[first])}{_next(record, overlap, first)})."
    own = f" against {number(overlap[chosen])}" if chosen in overlap else ""
    return f"Vocabulary overlap disagrees: it would choose {name(record, first)} ({number(overlap[first])}{own})."


def plans(record: Record) -> str:
    """What the SSFT plan holds, and how much of it the random plan drew too."""
    plan = record.get("plans", {}).get(PLANNED)
    if not plan:
        return ""
    total = sum(record.get("model", {}).get("num_experts", ()))
    layers = listed(str(layer) for layer in plan["layers"])
    found = language_experts(plan.get("why", ()))
    roles = "" if found is None else f": {found} language experts of the parent and {plan['experts'] - found} shared"
    size = f"{plan['experts']}{f' of {total}' if total else ''} experts"
    words = f"The SSFT plan changes {size}, in layers {layers}{roles}."
    if not (lot := record["plans"].get(CONTROL)):
        return words
    both = sum(len(set(ids) & set(lot["layers"].get(layer, ()))) for layer, ids in plan["layers"].items())
    return f"{words} The random plan has as many in the same layers; {both} of them are the same."


# ---- quality and cost ----------------------------------------------------------------------------------------------


def quality(record: Record, metric: str) -> str:
    """The best system in a metric, and those it is better than beyond noise."""
    order = _best(record, metric)
    if not order:
        return ""
    label, digits, sign = METRICS[metric]
    first, values = order[0], _values(record, metric)
    most = "highest" if sign > 0 else "lowest"
    words = f"{capital(system_name(first))} has the {most} {label} ({number(values[first], digits)})"
    pairs = {s: c for s in order[1:] if (c := compared(record, metric, first, s))}
    beaten = [system_name(s) for s, c in pairs.items() if better(c) == first]
    even = [system_name(s) for s, c in pairs.items() if better(c) is None]
    words += f"; better beyond noise than {listed(beaten)}" if beaten else ""
    words += f"; no difference shown to {listed(even)}" if even else ""
    copied = values.get(COPY)
    below = [] if copied is None else [system_name(s) for s in order if values[s] < copied]
    return words + (f"; below copying the source: {listed(below)}" if below else "") + "."


def mean_change(record: Record, system: str) -> float | None:
    changes = record.get("forgetting", {}).get(system, {})
    return float(np.mean([c["difference"] for c in changes.values()])) if changes else None


def trade(record: Record) -> str:
    """Mean and worst change on known languages, least first."""
    systems = sorted(
        (s for s in record["forgetting"] if record["forgetting"][s]), key=lambda s: mean_change(record, s) or 0
    )
    parts = []
    for system in systems:
        changes = record["forgetting"][system]
        worst = max(changes, key=lambda g: changes[g]["difference"])
        change = number(changes[worst]["difference"], sign=True)
        mean = number(mean_change(record, system) or 0.0, sign=True)
        parts.append(f"{system_name(system)} {mean} (at most {change}, {name(record, worst)})")
    return f"Mean change on the known languages: {', '.join(parts)}."


def beyond_noise(record: Record) -> str:
    """In how many known languages each system's interval leaves out zero, and in which no test could show a change."""
    parts = []
    unjudged = {g: name(record, g) for by in record["forgetting"].values() for g, c in by.items() if not judged(c)}
    for system, changes in record["forgetting"].items():
        sure = [c for c in changes.values() if judged(c)]
        worse, improved = (sum(c[end] * sign > 0 for c in sure) for end, sign in (("low", 1), ("high", -1)))
        parts.append(f"{system_name(system)} {worse} worse, {improved} better")
    number_of = max(map(len, record["forgetting"].values()))
    words = f"Of {number_of} known languages, changed beyond their own 95% interval: {'; '.join(parts)}."
    few = f" In {listed(unjudged.values())} documents are too few to judge any change." if unjudged else ""
    return words + few
