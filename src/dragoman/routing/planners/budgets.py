"""Budgets: the share of a model's parameters that may train, in place of a threshold.

A budget counts what would really train: the planned experts, and the routers of planned layers where the plan trains
those. A planner hands over what its threshold could be, from the fewest experts to the most, and gets the last that
fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from dragoman.errors import ConfigError
from dragoman.routing.planners.base import Layers, ids_of
from dragoman.routing.sizes import Sizes, sizes_of
from dragoman.routing.trace import RoutingTrace

T = TypeVar("T")


def budget_problems(trace: RoutingTrace, budget: float | None, **instead: object) -> list[str]:
    """What is wrong with a budget, in words. instead: the settings that a budget finds itself, by name."""
    if budget is None:
        return []
    problems = []
    if given := [name for name, value in instead.items() if value is not None]:
        name = " and ".join(given)
        problems.append(f"both budget and {name} are given, but a budget finds {name} itself; leave one of them out")
    if not 0 < budget <= 1:
        problems.append(f"the budget is {budget:g}, but it is a share of parameters, above 0 up to 1; 2% is 0.02")
    if sizes_of(trace) is None:
        problems.append(
            "the trace does not say how large its model is, which a budget needs; name the model too "
            "(`dragoman plan --model`), or diagnose it again"
        )
    return problems


def largest_within(
    budget: float,
    trace: RoutingTrace,
    options: Sequence[T],
    make: Callable[[T], Layers],
    routers: bool,
    way_out: str = "raise the budget",
) -> T:
    """The last of the options whose experts train at most `budget` of the parameters.

    options: from the fewest experts to the most, one at least. Found by bisection; what is returned was counted.
    Raises ConfigError where the first does not fit.
    """
    sizes = known_sizes(trace)
    fitting = bisect_right(options, budget, key=lambda option: sizes.share(ids_of(make(option)), routers))
    if not fitting:
        first = ids_of(make(options[0]))
        number = sum(map(len, first.values()))
        least = f"{number} expert{'s' * (number > 1)}" + (" and the routers of planned layers" if routers else "")
        way_out += " or leave routers frozen" if routers else ""
        raise ConfigError(
            f"nothing fits a budget of {percent(budget)} of {sizes.total:,} parameters: the smallest plan trains "
            f"{least}, {percent(sizes.share(first, routers))}; {way_out}"
        )
    return options[fitting - 1]


def percent(share: float) -> str:
    """A share in a sentence, to four digits."""
    return f"{100 * share:.4g}%"


def known_sizes(trace: RoutingTrace) -> Sizes:
    """Sizes that `budget_problems` has asked for."""
    sizes = sizes_of(trace)
    assert sizes is not None, "budget_problems comes first"
    return sizes
