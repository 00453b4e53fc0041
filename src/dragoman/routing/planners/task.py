"""Task: the experts of the middle band that a task's text uses more than a general corpus does.

Shape letters: L MoE layers (here those of the band), E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dragoman.errors import ConfigError
from dragoman.routing.bands import Band, given_band, middle_band
from dragoman.routing.contrast import FEWEST_TEXTS, Contrast, contrast_with_interval
from dragoman.routing.parents import target_problems
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners.assembly import assembled
from dragoman.routing.planners.base import Layers, experts_by_layer, from_places, of_tunable
from dragoman.routing.planners.budgets import budget_problems, largest_within
from dragoman.routing.sample import sample_of
from dragoman.routing.stats import divergence_from
from dragoman.routing.trace import RoutingTrace

DEFAULT_TAU = 0.3


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Experts of a task, in the middle band."""

    tasks: Path | None = None
    """Trace of the tasks' text, tasks.npz beside the trace that `dragoman diagnose --task.NAME FILE` wrote."""
    task: str | None = None
    """Which of its tasks; default its only one."""
    general: str = "en"
    """Language whose text in the trace is the general corpus; that of the task's text."""
    tau: float | None = None
    """Difference in share of tokens above which an expert is the task's; default 0.3."""
    budget: float | None = None
    """Largest share of the parameters that may train; finds the least tau that fits."""
    middle: tuple[int, ...] = ()
    """First and last model layer of the middle band; default by rule from the divergence of the trace's languages."""
    target: str | None = None
    """Language the plan is for; recorded in the plan."""
    train_routers: bool = True
    """Train the routers of the planned layers too."""


def task_plan(trace: RoutingTrace, config: TaskConfig) -> ExpertPlan:
    """Experts of the task in the trace at `config.tasks`; see `task_experts`. ConfigError where no trace is given."""
    if config.tasks is None:
        raise ConfigError(
            "a task's experts are found in a trace of its text; name it (tasks): tasks.npz of "
            "`dragoman diagnose --task.NAME FILE`"
        )
    return task_experts(trace, RoutingTrace.load(config.tasks), config)


def task_experts(trace: RoutingTrace, of_tasks: RoutingTrace, config: TaskConfig) -> ExpertPlan:
    """Experts of the middle band with Delta above tau.

        Delta(l, e) = mean share of tokens that choose e, over texts of the task  -  the same over the general corpus

    of_tasks: trace whose languages are tasks, of the same model.
    Raises ConfigError for settings that do not fit the traces or each other, all in one message, for a plan that would
    be empty and for a budget that nothing fits; DataError for traces of two models or too few texts.
    Source: Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), expert identification, tau 0.25 to 0.5; Deng et
    al. 2026 (RA-MoE, arXiv:2605.28306), task experts of the middle layers.
    Differs: the band is found by our rule (`middle_band`) where none is set. Delta of two halves of the general corpus
    stands in `why`: a tau below it finds noise.
    """
    trace.require_same_model(of_tasks)
    if problems := _problems(trace, of_tasks, config):
        raise ConfigError("; ".join(problems))
    experts_by_layer(trace)  # a layer with several routers is refused
    name, band = config.task or of_tasks.languages[0], _band(trace, config)
    found = contrast_with_interval(
        of_tasks.segment_chosen_NLE[name],
        trace.segment_chosen_NLE[config.general],
        trace.top_k,
        seed=0,
        general_documents=sample_of(trace, config.general, seed=0).documents.get(config.general),
    )
    layers = [trace.layer_ids[row] for row in band.rows]
    delta_LE = of_tunable(found.delta.value, trace, trace.layer_ids)[list(band.rows)]
    tau = DEFAULT_TAU if config.tau is None else config.tau
    if config.budget is not None:
        tau = _fitting_tau(config.budget, trace, layers, delta_LE, config.train_routers)
    planned = _select(layers, delta_LE, tau)
    why = _reasons(trace, found, name, config.general, band, tau)
    settings = {"task": name, "general": config.general, "tau": tau, "middle": [band.first, band.last]}
    chose = f"the least tau that fits is {tau:.4g}"
    way_out = f"the largest Delta in the band is {delta_LE.max():.4g}; lower tau or set another band"
    return assembled("task", trace, config, planned, settings=settings, why=why, chose=chose, way_out=way_out)


def _band(trace: RoutingTrace, config: TaskConfig) -> Band:
    if config.middle:
        return given_band(config.middle[0], config.middle[1], trace.layer_ids)
    curves = divergence_from(trace, config.general)
    return middle_band(np.array(list(curves.values())), trace.layer_ids)


def _select(layers: Sequence[int], delta_LE: np.ndarray, tau: float) -> Layers:
    places = [(row, e) for row, e in np.argwhere(delta_LE > tau).tolist()]
    return from_places(places, layers, delta_LE, "task", tau)


def _fitting_tau(
    budget: float, trace: RoutingTrace, layers: Sequence[int], delta_LE: np.ndarray, routers: bool
) -> float:
    """The least tau that fits: a Delta itself, which is not above tau, or 0."""
    values = sorted({0.0, *delta_LE[delta_LE > 0].tolist()}, reverse=True)
    options = values[1:] or values  # above the largest Delta there is nothing
    return largest_within(budget, trace, options, lambda tau: _select(layers, delta_LE, tau), routers)


def _reasons(trace: RoutingTrace, found: Contrast, name: str, general: str, band: Band, tau: float) -> list[str]:
    inside_L = np.isin(np.arange(len(trace.layer_ids)), band.rows)
    delta_LE, low_LE = (of_tunable(x, trace, trace.layer_ids) for x in (found.delta.value, found.delta.low))
    above, surely = (int((x_LE[inside_L] > tau).sum()) for x_LE in (delta_LE, low_LE))
    outside = int((delta_LE[~inside_L] > tau).sum())
    noise = float(np.abs(found.placebo_SLE[:, inside_L]).max(axis=(1, 2)).mean())
    valley = "" if band.valley else "; the curve has no valley there, so there is no middle to speak of"
    return [
        f"middle band: layers {band.first} to {band.last} ({band.how}){valley}",
        f"task {name} against {general}: {above} experts of the band with Delta above {tau:.4g}, {surely} of them with "
        f"the whole 95% interval; {outside} outside the band, left out",
        f"between halves of the text of {general} the largest Delta in the band is {noise:.4g}",
    ]


def _problems(trace: RoutingTrace, of_tasks: RoutingTrace, config: TaskConfig) -> list[str]:
    problems = target_problems(trace, config.target)
    here = ", ".join(of_tasks.languages)
    if config.task is None and len(of_tasks.languages) > 1:
        problems.append(f"the trace of tasks holds {here}; name one (task)")
    elif config.task is not None and config.task not in of_tasks.languages:
        problems.append(f"there is no task {config.task!r}; the trace of tasks holds {here}")
    if config.general not in trace.languages:
        there = ", ".join(trace.languages)
        problems.append(f"the trace holds no general corpus in {config.general!r}, only {there}; name one (general)")
    elif not config.middle and len(trace.languages) < 2:
        problems.append(f"the trace holds {config.general} alone, so the band cannot be found; set it (middle)")
    sides = ((trace, config.general), (of_tasks, config.task or of_tasks.languages[0]))
    if missing := [g for t, g in sides if g in t.languages and g not in t.segment_chosen_NLE]:
        problems.append(
            f"the counts of single texts of {', '.join(missing)} were not kept; a contrast needs those of "
            f"{FEWEST_TEXTS} or more on both sides, so capture with per_segment"
        )
    if config.middle and len(config.middle) != 2:
        problems.append(f"middle takes two layers, the first and the last of the band, not {len(config.middle)}")
    if config.tau is not None and not 0 < config.tau <= 1:
        problems.append(f"tau is {config.tau}, but it is a share of tokens, above 0 up to 1")
    return problems + budget_problems(trace, config.budget, tau=config.tau)
