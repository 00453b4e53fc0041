"""Claims about what predicts a gain: where a share of items was larger before training, is more gained over a control?

In `claims.yaml`, over the targets of several lists whose `prepare` ran `dragoman categorize` into {out}/categories:

    {id, paper, source, ours, a: [next/ra_moe, heading/ra_moe], b: [next/sft, heading/sft], measure, predictor: ci}

The effect is the slope of the gain (a minus b, means over seeds) on the share, in points of the measure for a point of
the share, with the targets' accuracy before training and the list held fixed.
"""

# Shape letters: N points (a target of a list), Z what is held fixed, P permutations.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dragoman.commands.categorize import LABELS
from dragoman.commands.experiments import Question
from dragoman.errors import DataError

PERMUTATIONS = 9999
NOT_TAKEN = ("margin", "targets", "seeds", "better")
"""Keys of claims that a prediction, over all targets and seeds of its lists, has no use for."""


def slope(gain_N: np.ndarray, share_N: np.ndarray, accuracy_N: np.ndarray, lists: Sequence[int]) -> dict[str, Any]:
    """Least-squares slope of the gain on the share beside accuracy and an intercept for each list, with its test.

    p: two-sided, what is left of the gain after accuracy and list permuted among the targets of a list. The interval is
    the slope and the 95 % quantile of the permuted ones on either side. Raises DataError where the share follows from
    accuracy and list, or too few points are left.
    Source: Freedman and Lane 1983, permutation of residuals under the reduced model.
    """
    which_N = np.asarray(lists)
    fixed_NZ = np.column_stack([which_N[:, None] == np.unique(which_N), accuracy_N])
    if len(gain_N) < fixed_NZ.shape[1] + 3:
        raise DataError(f"{len(gain_N)} targets are too few for a slope beside {fixed_NZ.shape[1]} other numbers")
    left_gain_N, left_share_N = (_left(values_N, fixed_NZ) for values_N in (gain_N, share_N))
    size = left_share_N @ left_share_N
    if size <= 1e-12 * max(1.0, share_N @ share_N):
        raise DataError("the share follows from accuracy and list alone, so it predicts nothing beside them")
    found = left_share_N @ left_gain_N / size
    rng = np.random.default_rng(0)
    permuted_P = _permuted(left_gain_N, which_N, rng) @ left_share_N / size
    beyond = int((np.abs(permuted_P) >= abs(found) * (1 - 1e-12)).sum())
    wide = float(np.quantile(np.abs(permuted_P), 0.95))
    return {
        "difference": float(found),
        "low": float(found - wide),
        "high": float(found + wide),
        "p_value": (1 + beyond) / (1 + PERMUTATIONS),
        "units": len(gain_N),
    }


def _left(values_N: np.ndarray, fixed_NZ: np.ndarray) -> np.ndarray:
    return values_N - fixed_NZ @ np.linalg.lstsq(fixed_NZ, values_N, rcond=None)[0]


def _permuted(values_N: np.ndarray, which_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values in other orders, [P, N], each within its list."""
    order_PN = np.tile(np.arange(len(values_N)), (PERMUTATIONS, 1))
    for one in np.unique(which_N):
        own = np.flatnonzero(which_N == one)
        order_PN[:, own] = rng.permuted(order_PN[:, own], axis=1)
    return values_N[order_PN]


def names(claim: Mapping[str, Any], side: str) -> list[Any]:
    """Arms of a side of a claim: one, or of a prediction as many as there are lists."""
    several = "predictor" in claim and isinstance(claim[side], list)
    return list(claim[side]) if several else [claim[side]]


def faults(question: Question, claim: Mapping[str, Any]) -> list[str]:
    """What is wrong with a prediction, in words."""
    found = [] if claim["predictor"] in LABELS else [f"predicts by {claim['predictor']}, not by {', '.join(LABELS)}"]
    a, b = ([str(name).partition("/")[0] for name in names(claim, side)] for side in ("a", "b"))
    if a != b or len(set(a)) < len(a):
        found.append("compares arms of other lists; a and b name an arm of each list, in one order")
    bare = [name for name in a if name in question.studies and not question.studies[name].prepare]
    found += [f"predicts by what is prepared for {name}, and nothing is" for name in bare]
    return found + [f"has {key}, which a prediction does not take" for key in NOT_TAKEN if key in claim]


def before(record: Mapping[str, Any], predictor: str, target: str) -> tuple[float, float]:
    """Share of the label and accuracy of a target before training, in percent, as `dragoman categorize` recorded them.

    Raises DataError where the record has none.
    """
    try:
        categories = record["records"]["categories"]
        share, accuracy = categories["shares"][target][predictor], categories["accuracy"][target]
    except KeyError:
        raise DataError(
            f"the record of {record.get('name', 'a list')} has no share of {predictor} in {target}: its `prepare` has "
            "to run `dragoman categorize` into {out}/categories"
        ) from None
    return 100 * share["share"], 100 * accuracy["share"]
