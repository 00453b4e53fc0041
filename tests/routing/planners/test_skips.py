"""Experts that mean "skip" have no weights: they are counted, no plan names them, and what is planned trains."""

import numpy as np
import pytest

from dragoman.errors import ConfigError
from dragoman.methods import METHODS
from dragoman.methods.base import trained
from dragoman.modeling import moe_layers
from dragoman.routing.capture import capture
from dragoman.routing.planners import (
    PLANNERS,
    ActivationConfig,
    AllConfig,
    EsftConfig,
    LayersConfig,
    RiseConfig,
    SeftConfig,
    SharedConfig,
    SsftConfig,
    activation_plan,
    all_experts,
    random_like,
)
from tests.architectures import build

SEQUENCES = {"ca": np.random.default_rng(0).integers(3, 60, (4, 30)).tolist()}
KNOWN = ("en", "es")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("all", AllConfig()),
        ("layers", LayersConfig(train_routers=False)),
        ("activation", ActivationConfig(target="ca", experts=3)),
        ("esft", EsftConfig(target="ca", p=1)),
    ],
)
def test_what_is_planned_of_a_model_with_skips_trains(name, config):
    """All tokens skip in the first layer of this one: no expert is used more than that, and none trains less."""
    model = build("zaya")
    moe_layers(model)[0].router.balancing_biases[-1] = 2
    trace = capture(model, SEQUENCES, start_id=1)
    assert trace.num_experts == (9,) * 4 and trace.chosen_GLE[0, 0].tolist() == [0] * 8 + [120]
    plan = PLANNERS[name].make(trace, config)
    assert all(e < 8 for ids in plan.experts().values() for e in ids) and plan.num_experts == dict.fromkeys(range(4), 9)
    method = METHODS["expert_tuning"]
    method.apply(model, method.Config(), plan)
    assert plan.trained_parameters == trained(model, plan.sizes.total).parameters
    if name == "all":
        assert plan.size == 4 * 8
    with pytest.raises(ConfigError, match="ca chose no expert that has weights in layers 0; plan others"):
        activation_plan(trace, ActivationConfig(target="ca", layers=(0,)))


@pytest.fixture
def skipping(make_trace):
    """Three layers of three experts and two skips, which are what every rule would take first."""
    counts = {
        "en": [[10, 10, 10, 40, 30], [12, 8, 10, 20, 50], [10, 10, 10, 40, 30]],
        "es": [[20, 10, 10, 10, 50], [10, 15, 5, 60, 10], [20, 10, 10, 10, 50]],
        "ca": [[25, 5, 10, 10, 50], [10, 10, 10, 60, 10], [25, 5, 10, 10, 50]],
    }
    sizes = {"total": 1000, "expert": [10] * 3, "router": [5] * 3, "skips": [2] * 3}
    return make_trace(counts, about={"parallel": True, "sizes": sizes})


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ssft", SsftConfig(target="ca", known=KNOWN, parent="es", alpha=0.01, shared=3)),
        ("seft", SeftConfig(target="ca", known=KNOWN, parent="es", alpha=0.01)),
        ("esft", EsftConfig(target="ca", p=0.9)),
        ("rise", RiseConfig(target="ca", known=KNOWN, experts=9)),
        ("activation", ActivationConfig(target="ca", experts=9)),
        ("activation", ActivationConfig(target="ca", budget=0.09)),
        ("shared", SharedConfig(between=KNOWN, keep=5)),
        ("layers", LayersConfig(budget=0.075)),
        ("all", AllConfig()),
    ],
)
def test_no_planner_names_a_skip(skipping, name, config):
    plan = PLANNERS[name].make(skipping, config)
    assert plan.size and all(e < 3 for ids in plan.experts().values() for e in ids)
    assert set(plan.num_experts.values()) == {5}, "the router still chooses among five"


def test_shares_are_those_of_all_that_a_token_can_choose(skipping):
    plan = activation_plan(skipping, ActivationConfig(target="ca", experts=1))
    assert [e.statistic for e in plan.layers[0]] == [0.25], "25 of 100, not of the 40 that stayed"


def test_a_control_by_lot_draws_no_skip_and_none_is_left_beside_all(skipping):
    few = activation_plan(skipping, ActivationConfig(target="ca", experts=4))
    drawn = [random_like(skipping, few, seed).experts() for seed in range(20)]
    assert {e for found in drawn for ids in found.values() for e in ids} == {0, 1, 2}
    with pytest.raises(ConfigError, match="names every expert of its layers, so a draw would repeat it"):
        random_like(skipping, all_experts(skipping, AllConfig()))


def test_more_shared_experts_than_have_weights_are_refused(skipping):
    with pytest.raises(ConfigError, match="shared is 4, but it may be 1 to 3"):
        PLANNERS["ssft"].make(skipping, SsftConfig(target="ca", known=KNOWN, shared=4))
