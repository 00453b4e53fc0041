"""Random plans: the control of every other."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ConfigError, DataError
from dragoman.routing import planners
from dragoman.routing.plan import ExpertPlan, PlannedExpert, differences
from dragoman.routing.planners import LayersConfig, RandomConfig, SsftConfig


def big_trace(make_trace):
    rng = np.random.default_rng(0)
    return make_trace({g: rng.integers(1, 100, (3, 32)) for g in ("en", "es", "ca")}, layer_ids=(0, 2, 4))


def test_random_has_the_same_layers_and_numbers(make_trace):
    trace = big_trace(make_trace)
    reference = planners.ssft(trace, SsftConfig(target="ca", known=("en", "es"), train_routers=False))
    plan = planners.random_like(trace, reference, seed=1)
    assert {g: len(ids) for g, ids in plan.experts().items()} == {g: len(ids) for g, ids in reference.experts().items()}
    assert (plan.target, plan.parent, plan.train_routers) == ("ca", reference.parent, False)
    assert planners.random_like(trace, reference, seed=1) == plan
    assert planners.random_like(trace, reference, seed=2).experts() != plan.experts()
    assert {e.role for planned in plan.layers.values() for e in planned} == {"random"}


def test_random_is_uniform(make_trace):
    trace = big_trace(make_trace)
    reference = planners.ssft(trace, SsftConfig(target="ca", known=("en", "es"), layers=(4,)))
    drawn = [planners.random_like(trace, reference, seed=s).experts()[4] for s in range(300)]
    count_E = np.bincount(np.concatenate(drawn), minlength=32)
    share = reference.size / 32
    deviation = np.sqrt(300 * share * (1 - share))
    assert (abs(count_E - 300 * share) < 4.5 * deviation).all()


def test_a_disjoint_plan_shares_no_expert(make_trace):
    trace = big_trace(make_trace)
    reference = planners.ssft(trace, SsftConfig(target="ca", known=("en", "es"), alpha=0.03))
    plan = planners.random_like(trace, reference, avoid=[reference])
    assert all(not set(plan.experts()[g]) & set(ids) for g, ids in reference.experts().items())
    assert "0 of them are in that plan too" in plan.why
    third = planners.random_like(trace, reference, seed=1, avoid=[reference, plan])
    for other in (reference, plan):
        assert not differences(third, other).jaccard
    assert third.why[-1] == "none is in the 2 plans to be disjoint from"


@given(seed=st.integers(0, 2**32), numbers=st.lists(st.integers(0, 8), min_size=3, max_size=3).filter(any))
def test_counts_stay_and_disjoint_is_disjoint(make_trace, seed, numbers):
    trace = big_trace(make_trace)
    layers = {g: tuple(PlannedExpert(i, "all") for i in range(n)) for g, n in zip((0, 2, 4), numbers, strict=True) if n}
    reference = ExpertPlan("by hand", layers, {0: 32, 2: 32, 4: 32})
    plans = [reference]
    for _ in range(3):
        plans.append(planners.random_like(trace, reference, seed=seed, avoid=plans))
        assert {g: len(p) for g, p in plans[-1].layers.items()} == {g: len(p) for g, p in layers.items()}
    assert all(not differences(a, b).jaccard for a, b in combinations(plans, 2))


def test_random_plans_that_cannot_be(tmp_path, trace, make_trace):
    with pytest.raises(ConfigError, match="copies layers and numbers from another plan"):
        planners.random_plan(trace, RandomConfig())
    with pytest.raises(DataError, match="does not exist"):
        planners.random_plan(trace, RandomConfig(like=tmp_path / "no.json"))
    complete = planners.complete_layers(trace, LayersConfig())
    with pytest.raises(ConfigError, match="layer 2 has 0 left for 4, layer 3 has 0 left for 3"):
        planners.random_like(trace, complete, avoid=[complete])
    with pytest.raises(ConfigError, match="a draw would repeat it"):
        planners.random_like(trace, complete)
    with pytest.raises(ConfigError, match="the plan by layers is for a model with experts by layer"):
        planners.random_like(big_trace(make_trace), complete)
    with pytest.raises(ConfigError, match="seed is at least 0, not -1"):
        planners.random_like(trace, planners.complete_layers(trace, LayersConfig(layers=(1,))), seed=-1)
