"""What is said of the differences between systems: a verdict each, and what to mind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dragoman.commands.scoring import Scored
from dragoman.evaluation.checks import some
from dragoman.evaluation.significance import LEVEL, too_few_to_judge

FEW_UNITS = 30
"""Documents (or segments) under which intervals and p-values promise too much."""


def verdict(comparison: Mapping[str, Any], higher_is_better: bool | None) -> dict[str, Any]:
    """Is the difference beyond noise after Holm, and in which direction? Never with units that `too_few_to_judge`."""
    beyond = bool(comparison["p_holm"] < LEVEL and not too_few_to_judge(comparison["units"]))
    up = comparison["difference"] > 0
    said = "differs" if higher_is_better is None else "better" if up == higher_is_better else "worse"
    return {"beyond_noise": beyond, "verdict": said if beyond else "cannot tell"}


def warnings_of(scored: Scored, comparisons: list[dict[str, Any]]) -> list[str]:
    """What to mind: few units to resample, text cut short, other settings, differences within noise."""
    documents = [labels for by in scored.values() for labels in by["documents"].values()]
    units = {g: n if (n := len(set(names))) > 1 else len(names) for by in documents for g, names in by.items()}
    told = []
    if few := [f"{g} ({n})" for g, n in units.items() if n < FEW_UNITS]:
        told.append(
            f"fewer than {FEW_UNITS} documents or segments to resample in {', '.join(few)}: the intervals there are "
            "too narrow; take more text"
        )
    unknown = [f"{g} ({share:.1%} by {s})" for s, by in scored.items() for g, share in by.get("unknown", {}).items()]
    if unknown:
        told.append(
            f"text without a place in the vocabulary in {', '.join(unknown)}: bits per byte are too low there, as one "
            "token stands for any such text; do not compare them with other models'"
        )
    if cut := [
        f"{name} of {g} by {s}, {some([n + 1 for n in rows])}"
        for s, by in scored.items()
        for name, labels in by.get("cut", {}).items()
        for g, rows in labels.items()
    ]:
        told.append(
            f"only the beginning was read of segments (numbered from 1) that are too long for the metric's model: "
            f"{'; '.join(cut)}. Mind their scores, or split them"
        )
    told += _unlike_settings(scored)
    unjudged = [c for c in comparisons if too_few_to_judge(c["units"])]
    if unjudged:
        told.append(
            f"{len(unjudged)} of {len(comparisons)} differences cannot be judged, however large they are: under six "
            "documents or segments no test could show one. Take more text; a column document names its documents, "
            "else 20 rows count as one"
        )
    if unclear := [c for c in comparisons if not c["beyond_noise"] and c not in unjudged]:
        told.append(
            f"{len(unclear)} of {len(comparisons)} differences are within noise. That is not equality: the text is too "
            "small to show differences under those in the column `would show`"
        )
    return told


def _unlike_settings(scored: Scored) -> list[str]:
    """Metrics of which systems have other settings than the first one that has it, with both signatures."""
    first = {name: (s, text) for s, by in list(scored.items())[::-1] for name, text in by.get("signatures", {}).items()}
    apart = [
        f"{name} ({first[name][0]}: {first[name][1]}; {s}: {text})"
        for s, by in scored.items()
        for name, text in by.get("signatures", {}).items()
        if text != first[name][1]
    ]
    return [f"systems were scored with different settings of {', '.join(apart)}"] if apart else []
