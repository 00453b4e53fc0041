"""What all planners share."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ConfigError, ModelError
from dragoman.routing import planners
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import (
    NUMBER_PLANNERS,
    PLANNERS,
    ActivationConfig,
    AllConfig,
    EsftConfig,
    LayersConfig,
    RandomConfig,
    RiseConfig,
    SeftConfig,
    SharedConfig,
    SsftConfig,
    TaskConfig,
)
from dragoman.routing.trace import RoutingTrace

KNOWN = ("en", "es", "ru")


def test_layers_and_all(trace):
    assert planners.complete_layers(trace, LayersConfig()).experts() == {2: (0, 1, 2, 3), 3: (0, 1, 2)}
    assert planners.complete_layers(trace, LayersConfig(layers=(1,))).experts() == {1: (0, 1, 2, 3)}
    assert planners.all_experts(trace, AllConfig()).size == 11
    assert not planners.all_experts(trace, AllConfig(train_routers=False)).train_routers
    with pytest.raises(ConfigError, match=r"no target 'xx'.*no MoE layer 7"):
        planners.complete_layers(trace, LayersConfig(target="xx", layers=(7,)))


def test_a_layer_with_several_routers_is_not_planned(make_trace):
    trace = make_trace({g: [[1, 2], [2, 1], [3, 1]] for g in ("en", "es", "ca")}, layer_ids=(0, 0, 1))
    with pytest.raises(ModelError, match="layers 0 have several routers"):
        planners.all_experts(trace, AllConfig())


def with_segments(trace, slots):
    """The trace with these languages, 20 segments each."""
    segments = {g: np.array([of_layers] * 20, dtype=np.int32) for g, of_layers in slots.items()}
    chosen_GLE = np.stack([n.sum(axis=0, dtype=np.int64) for n in segments.values()])
    mass, tokens_G = chosen_GLE * 0.5, chosen_GLE[:, 0].sum(axis=-1)
    return dataclasses.replace(
        trace, languages=tuple(slots), chosen_GLE=chosen_GLE, gate_mass_GLE=mass, router_mass_GLE=mass,
        tokens_G=tokens_G, segment_chosen_NLE=segments,
    )  # fmt: skip


def test_every_planner_makes_a_plan_that_survives_its_file(tmp_path, trace, counts):
    like, tasks = tmp_path / "like.json", tmp_path / "tasks.npz"
    planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.1, shared=1)).save(like)
    with_segments(trace, {"maths": [[20, 0, 0, 0], [0, 20, 0, 0], [0, 20, 0, 0]]}).save(tasks)
    trace = with_segments(trace, counts)
    configs = {
        "ssft": SsftConfig(target="ca", known=KNOWN),
        "seft": SeftConfig(target="ca", known=KNOWN, alpha=0.1),
        "esft": EsftConfig(target="ca"),
        "rise": RiseConfig(target="ca", known=KNOWN),
        "activation": ActivationConfig(target="ca"),
        "task": TaskConfig(tasks=tasks, middle=(2, 3)),
        "shared": SharedConfig(between=("en", "ru"), keep=2),
        "random": RandomConfig(like=like, disjoint=(like,)),
        "layers": LayersConfig(target="ca"),
        "all": AllConfig(),
    }
    assert configs.keys() == PLANNERS.keys()
    for name, (config_type, make) in PLANNERS.items():
        assert isinstance(configs[name], config_type)
        plan = make(trace, configs[name])
        plan.save(tmp_path / f"{name}.json")
        assert ExpertPlan.load(tmp_path / f"{name}.json") == plan
        assert plan.planner == name and plan.why and plan.size


def test_the_checksum_survives_the_file_and_sees_a_count(tmp_path, trace):
    trace.save(tmp_path / "t.npz")
    assert planners.checksum(RoutingTrace.load(tmp_path / "t.npz")) == planners.checksum(trace)
    changed = trace.chosen_GLE.copy()
    changed[0, 0, 0] += 1
    assert planners.checksum(dataclasses.replace(trace, chosen_GLE=changed)) != planners.checksum(trace)


def test_layers_of_a_budget_are_the_last_ones(sized):
    def layers(budget, routers=True):
        return planners.complete_layers(sized, LayersConfig(budget=budget, train_routers=routers)).experts()

    assert layers(0.035) == layers(0.079) == {3: (0, 1, 2)}, "3 experts of 10 and a router of 5, of 1000"
    assert layers(0.07, routers=False) == layers(0.08) == {2: (0, 1, 2, 3), 3: (0, 1, 2)}
    assert layers(0.125).keys() == layers(1).keys() == {1, 2, 3}
    with pytest.raises(ConfigError, match=r"nothing fits a budget of 3% .* 3 experts and the routers .*, 3.5%"):
        layers(0.03)
    with pytest.raises(ConfigError, match="both budget and layers are given"):
        planners.complete_layers(sized, LayersConfig(budget=0.5, layers=(1,)))


def budgeted(languages):
    return {
        "ssft": lambda budget, routers: SsftConfig(
            target="ca", known=languages, shared=1, budget=budget, train_routers=routers
        ),
        "seft": lambda budget, routers: SeftConfig(target="ca", known=languages, budget=budget, train_routers=routers),
        "esft": lambda budget, routers: EsftConfig(target="ca", budget=budget, train_routers=routers),
        "rise": lambda budget, routers: RiseConfig(
            target="ca", known=languages, budget=budget, train_routers=routers
        ),
        "activation": lambda budget, routers: ActivationConfig(target="ca", budget=budget, train_routers=routers),
        "layers": lambda budget, routers: LayersConfig(budget=budget, train_routers=routers),
    }


@pytest.mark.parametrize("name", budgeted(()))
@given(seed=st.integers(0, 1000), budgets=st.tuples(*[st.floats(0.001, 1)] * 2).map(sorted), routers=st.booleans())
def test_no_budget_is_exceeded_and_no_room_is_left(make_trace, name, seed, budgets, routers):
    rng = np.random.default_rng(seed)
    counts = {g: rng.integers(0, 50, (4, 6)) + np.eye(4, 6, dtype=int) for g in ("en", "es", "ru", "ca")}
    sizes = {"total": 1000, "expert": rng.integers(1, 30, 4).tolist(), "router": rng.integers(1, 30, 4).tolist()}
    trace = make_trace(counts, about={"sizes": sizes})
    config = budgeted(("en", "es", "ru"))[name]

    def plan(budget):
        try:
            return PLANNERS[name].make(trace, config(budget, routers))
        except ConfigError as e:
            said = str(e)
        assert re.search("nothing fits a budget|selects no expert", said)

    smaller, larger = map(plan, budgets)
    for made, budget in ((smaller, budgets[0]), (larger, budgets[1])):
        assert made is None or 0 < made.trained_share <= budget
    if larger is not None and larger != smaller and name != "rise":  # whose zones may lose an expert as K grows
        assert smaller is None or set(pairs(smaller)) <= set(pairs(larger))
        assert larger.experts() == getattr(smaller, "experts", dict)() or larger.trained_share > budgets[0]


def pairs(plan):
    return [(layer, i) for layer, ids in plan.experts().items() for i in ids]


def test_the_page_has_every_planner():
    page = (Path(__file__).resolve().parents[3] / "docs" / "planning.md").read_text(encoding="utf-8")
    table = page.split("## The planners")[1].split("\n\n")[1]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [*PLANNERS, *NUMBER_PLANNERS]
