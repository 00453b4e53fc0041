"""Activation: the K most chosen experts."""

import dataclasses

import pytest

from dragoman.errors import ConfigError
from dragoman.routing.planners import ActivationConfig, activation_plan


def experts(trace, **settings):
    return activation_plan(trace, ActivationConfig(target="ca", **settings)).experts()


def test_by_hand(trace):
    # ca: layer 1 .97 .01 .01 .01, layer 2 .40 .12 .34 .14, layer 3 .48 .31 .21
    assert experts(trace) == {1: (0,)}, "one of 40, one at least"
    assert experts(trace, experts=3) == {1: (0,), 2: (0,), 3: (0,)}
    assert experts(trace, experts=4) == {1: (0,), 2: (0, 2), 3: (0,)}
    assert experts(trace, experts=2, layers=(2, 3)) == {2: (0,), 3: (0,)}
    plan = activation_plan(trace, ActivationConfig(target="ca", experts=4))
    assert [(e.role, e.statistic, e.threshold) for e in plan.layers[2]] == [("used", 0.4, 0.34), ("used", 0.34, 0.34)]
    assert not plan.train_routers


def test_layers_that_choose_more_experts_count_for_more(trace):
    """Shares of tokens, not of slots: with two experts a token, .40 of layer 2's slots are .80 of tokens."""
    wider = dataclasses.replace(trace, top_k=(1, 2, 1))
    assert experts(wider, experts=3) == {1: (0,), 2: (0, 2)}


def test_the_default_is_one_of_forty(make_trace):
    trace = make_trace({"ca": [[*range(1, 41)], [*range(1, 41)]]})
    assert experts(trace) == {0: (39,), 1: (39,)}


def test_a_budget_finds_the_largest_number(sized):
    assert experts(sized, budget=0.039) == {1: (0,), 2: (0,), 3: (0,)}
    assert experts(sized, budget=0.039, train_routers=True) == {1: (0,), 3: (0,)}, "10 an expert, 5 a router, of 1000"
    plan = activation_plan(sized, ActivationConfig(target="ca", budget=0.04))
    assert plan.settings["experts"] == 4 and plan.trained_share == 0.04


def test_faults(make_trace, trace):
    silent = make_trace({"ca": [[3, 0, 1]]})
    with pytest.raises(ConfigError, match="3 experts were asked for, but ca chose no more than 2"):
        experts(silent, experts=3)
    with pytest.raises(ConfigError, match=r"no target 'xx'.*no MoE layer 9.*experts is 0.*both budget and experts"):
        activation_plan(trace, ActivationConfig(target="xx", experts=0, budget=0.1, layers=(9,)))
