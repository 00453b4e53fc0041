"""ESFT: cumulative scores."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ConfigError
from dragoman.routing.planners import EsftConfig, esft_plan


def experts(trace, **settings):
    return esft_plan(trace, EsftConfig(target="ca", **settings)).experts()


def test_token_scores_by_hand(trace):
    # ca: layer 1 .97 .01 .01 .01, layer 2 .40 .12 .34 .14, layer 3 .48 .31 .21
    assert experts(trace) == experts(trace, p=0.4) == {1: (0,), 2: (0,), 3: (0,)}
    assert experts(trace, p=0.41) == {1: (0,), 2: (0, 2), 3: (0,)}
    assert experts(trace, p=0.5) == {1: (0,), 2: (0, 2), 3: (0, 1)}
    assert experts(trace, p=0.88, layers=(2,)) == {2: (0, 2, 3)}
    assert experts(trace, p=1) == {1: (0, 1, 2, 3), 2: (0, 1, 2, 3), 3: (0, 1, 2)}
    plan = esft_plan(trace, EsftConfig(target="ca", p=0.5))
    assert [(e.role, e.statistic, e.threshold) for e in plan.layers[2]] == [("used", 0.4, 0.34), ("used", 0.34, 0.34)]
    assert plan.why[2] == "layer 2: 74.0% of the token score in 2 of 4 experts"
    assert not plan.train_routers and plan.settings == {"score": "token", "p": 0.5, "layers": [1, 2, 3]}


def test_gate_scores_are_normalised_by_layer(trace):
    """Layer 2 has ten times the weight of the others: dividing by sums over layers would change the order."""
    gate_GLE = np.ones(trace.chosen_GLE.shape)
    gate_GLE[trace.index("ca")] = [[4, 3, 2, 1], [10, 50, 10, 30], [1, 1, 2, 0]]
    weighted = dataclasses.replace(trace, gate_mass_GLE=gate_GLE)
    assert experts(weighted, score="gate", p=0.5) == {1: (0, 1), 2: (1,), 3: (2,)}
    assert experts(weighted, score="gate", p=0.51) == {1: (0, 1), 2: (1, 3), 3: (0, 2)}
    assert experts(weighted, p=0.5) == experts(trace, p=0.5), "token scores do not read weights"


@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 1))
def test_as_a_loop_that_adds_until_p_is_reached(make_trace, seed, p):
    counts = np.random.default_rng(seed).integers(0, 9, (2, 7)) + np.eye(2, 7, dtype=int)
    found = experts(make_trace({"ca": counts}), p=p)
    for layer, count_E in enumerate(counts.tolist()):
        taken, total = [], 0
        for e in sorted(range(7), key=lambda e: (-count_E[e], e)):
            if total >= p * sum(count_E) - 1e-9:
                break
            taken.append(e)
            total += count_E[e]
        assert found[layer] == tuple(sorted(taken))
        assert all(count_E[e] for e in taken)


def test_a_budget_finds_the_largest_p_that_fits(sized):
    def plan(budget, routers=False):
        return esft_plan(sized, EsftConfig(target="ca", budget=budget, train_routers=routers))

    assert plan(0.03).settings["p"] == pytest.approx(0.40) and plan(0.03).size == 3
    assert plan(0.05).settings["p"] == pytest.approx(0.74), "a second expert in layer 3 and in layer 2"
    assert plan(0.05).experts() == {1: (0,), 2: (0, 2), 3: (0, 1)}
    assert plan(1).settings["p"] == 1
    assert plan(0.05, routers=True).size == 3, "3 experts of 10 and 3 routers of 5, of 1000"
    with pytest.raises(ConfigError, match=r"trains 3 experts, 3%; raise the budget or plan fewer layers$"):
        plan(0.02)


def test_all_faults_are_said_at_once(trace):
    nameless = dataclasses.replace(trace, gate_mass_GLE=np.full(trace.chosen_GLE.shape, np.nan))
    with pytest.raises(ConfigError) as e:
        esft_plan(nameless, EsftConfig(target="pt", score="gate", p=2, budget=0.1, layers=(0,)))
    for part in (
        "no target 'pt'",
        "no MoE layer 0",
        "p is 2, but",
        "holds no weights",
        "both budget and p are given",
        "name the model too",
    ):
        assert part in str(e.value)
    with pytest.raises(ConfigError, match="score is 'mass'; take token or gate"):
        esft_plan(trace, EsftConfig(target="ca", score="mass"))
