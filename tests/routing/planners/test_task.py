"""Task experts: the contrast in the middle band."""

import dataclasses

import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.routing.bands import middle_band
from dragoman.routing.planners import TaskConfig, task_experts, task_plan
from dragoman.routing.stats import divergence_from

SIZES = {"total": 1000, "expert": [10] * 4, "router": [5] * 4}
EVEN = [[5, 5, 5, 5]] * 4
MATHS = [[20, 0, 0, 0], [12, 4, 4, 0], [5, 13, 2, 0], [5, 5, 5, 5]]
"""Delta from EVEN by layer: .75 -.25 -.25 -.25; .35 -.05 -.05 -.25; 0 .4 -.15 -.25; 0."""


@pytest.fixture
def of_text(make_trace):
    """A trace of 20 equal segments a language: {language: slots [L][E]}."""

    def make(slots, **changes):
        segments = {g: np.array([of_layers] * 20, dtype=np.int32) for g, of_layers in slots.items()}
        made = make_trace({g: n.sum(axis=0) for g, n in segments.items()}, segments=segments, about={"sizes": SIZES})
        return dataclasses.replace(made, **changes)

    return make


@pytest.fixture
def general(of_text):
    return of_text({"en": EVEN, "de": EVEN})


def test_by_hand(general, of_text):
    tasks = of_text({"maths": MATHS, "law": EVEN})
    plan = task_experts(general, tasks, TaskConfig(task="maths", middle=(1, 2), target="de"))
    assert plan.experts() == {1: (0,), 2: (1,)}
    assert [(e.role, e.statistic, e.threshold) for e in plan.layers[2]] == [("task", 0.4, 0.3)]
    assert plan.target == "de" and plan.settings["middle"] == [1, 2] and plan.settings["task"] == "maths"
    assert "2 experts of the band with Delta above 0.3, 2 of them with the whole 95% interval; 1 outside" in plan.why[1]
    assert plan.why[2].endswith("the largest Delta in the band is 0")
    stricter = task_experts(general, tasks, TaskConfig(task="maths", middle=(1, 2), tau=0.36))
    assert stricter.experts() == {2: (1,)}
    wider = task_experts(general, tasks, TaskConfig(task="maths", middle=(0, 3)))
    assert wider.experts() == {0: (0,), 1: (0,), 2: (1,)}


def test_a_task_without_experts_says_the_largest_delta(general, of_text):
    tasks = of_text({"maths": MATHS})
    with pytest.raises(ConfigError, match=r"no expert in layers 1, 2; the largest Delta in the band is 0.4; lower tau"):
        task_experts(general, tasks, TaskConfig(middle=(1, 2), tau=0.5))


def test_a_budget_finds_the_least_tau(general, of_text):
    tasks = of_text({"maths": MATHS})

    def plan(budget):
        return task_experts(general, tasks, TaskConfig(middle=(1, 2), budget=budget))

    assert plan(0.015).experts() == {2: (1,)}, "an expert of 10 and a router of 5, of 1000"
    assert plan(0.015).settings["tau"] == pytest.approx(0.35)
    assert plan(0.03).experts() == plan(1).experts() == {1: (0,), 2: (1,)}
    assert plan(1).settings["tau"] == 0, "a Delta of 0 is no task's"
    with pytest.raises(ConfigError, match="the smallest plan trains 1 expert and the routers"):
        plan(0.01)


def test_the_band_is_found_by_the_rule(of_text):
    """de parts from en in the first and the last of nine layers."""
    other = [[20, 0, 0, 0], [15, 5, 0, 0], *[[5, 5, 5, 5]] * 5, [15, 5, 0, 0], [20, 0, 0, 0]]
    nine = of_text({"en": [[5, 5, 5, 5]] * 9, "de": other}, about={})
    band = middle_band(np.array([divergence_from(nine, "en")["de"]]), range(9))
    assert 0 < band.first < band.last < 8, "otherwise there is nothing to see"
    tasks = of_text({"maths": [[20, 0, 0, 0]] * 9}, about={})
    plan = task_experts(nine, tasks, TaskConfig())
    assert list(plan.experts()) == list(range(band.first, band.last + 1))
    assert plan.settings["middle"] == [band.first, band.last] and band.how in plan.why[0]


def test_from_the_files_of_a_diagnosis(tmp_path, general, of_text):
    of_text({"maths": MATHS}).save(tmp_path / "tasks.npz")
    plan = task_plan(general, TaskConfig(tasks=tmp_path / "tasks.npz", middle=(1, 2)))
    assert plan.experts() == {1: (0,), 2: (1,)}
    with pytest.raises(ConfigError, match=r"name it \(tasks\)"):
        task_plan(general, TaskConfig())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "the trace of tasks holds maths, law; name one"),
        ({"task": "physics"}, "there is no task 'physics'; the trace of tasks holds maths, law"),
        ({"general": "fr"}, "no general corpus in 'fr', only en, de"),
        ({"target": "pt"}, "no target 'pt'"),
        ({"middle": (1,)}, "middle takes two layers"),
        ({"tau": 3}, "tau is 3, but it is a share of tokens"),
        ({"tau": 0.3, "budget": 0.1}, "both budget and tau are given"),
        ({"task": "maths", "middle": (2, 9)}, "the middle band 2 to 9 does not fit"),
    ],
)
def test_faults_are_said(general, of_text, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        task_experts(general, of_text({"maths": MATHS, "law": EVEN}), TaskConfig(**settings))


def test_traces_that_do_not_fit(general, of_text):
    tasks = of_text({"maths": MATHS})
    with pytest.raises(DataError, match="traces of one model are needed, these differ in model checksums"):
        task_experts(general, dataclasses.replace(tasks, about={"model_sha256": "other"}), TaskConfig())
    pooled = [dataclasses.replace(t, segment_chosen_NLE={}) for t in (general, tasks)]
    with pytest.raises(ConfigError, match="the counts of single texts of en, maths were not kept"):
        task_experts(*pooled, TaskConfig())
    alone = of_text({"en": EVEN})
    with pytest.raises(ConfigError, match="holds en alone, so the band cannot be found"):
        task_experts(alone, tasks, TaskConfig())
    few = {"maths": tasks.segment_chosen_NLE["maths"][:19]}
    with pytest.raises(DataError, match="needs 20 texts or more on both sides, there are 19"):
        task_experts(general, dataclasses.replace(tasks, segment_chosen_NLE=few), TaskConfig(middle=(1, 2)))
