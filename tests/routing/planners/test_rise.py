"""RISE: three zones."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.errors import ConfigError
from dragoman.routing.planners import RiseConfig, rise_plan

# Percent of slots; with zones of .25, .5 and .25 layer 0 is shallow, 1 and 2 are the middle and 3 is deep.
COUNTS = {
    "t": [[60, 20, 20, 0], [50, 30, 20, 0], [25, 25, 25, 25], [10, 40, 50, 0]],
    "a": [[20, 20, 60, 0], [50, 10, 40, 0], [25, 25, 25, 25], [30, 40, 30, 0]],
    "b": [[10, 80, 10, 0], [50, 20, 30, 0], [25, 25, 25, 25], [20, 40, 40, 0]],
}
ZONES = (0.25, 0.5, 0.25)


@pytest.fixture
def zoned(make_trace):
    sizes = {"total": 1000, "expert": [10] * 4, "router": [5] * 4}
    return make_trace(COUNTS, about={"parallel": True, "sizes": sizes})


def plan(trace, **settings):
    return rise_plan(trace, RiseConfig(target="t", known=("a", "b"), **{"zones": ZONES, **settings}))


def test_by_hand(zoned):
    """Layer 0: means .3 .4 .3, so .6/.3 (1 + 6) = 14, .2/.4 (1 + 2) = 1.5, .2/.3 (1 + 2) = 2.

    Layer 3: 1/2 (1 + 1) = 1, 1 (1 + 4) = 5, 1.25 (1 + 5) = 7.5. Layer 1: expert 0 is even, 1 (1 + 5) = 6. Layer 2: all
    even, 1 (1 + 2.5) = 3.5.
    """
    four = plan(zoned, experts=4)
    assert four.experts() == {0: (0,), 1: (0,), 3: (1, 2)}, "1, 1 and the rest"
    measured = {(layer, e.id): (e.role, e.statistic, e.threshold) for layer, ids in four.layers.items() for e in ids}
    assert measured == {
        (0, 0): ("language", 14, 14),
        (1, 0): ("shared", 6, 6),
        (3, 1): ("language", 5, 5),
        (3, 2): ("language", 7.5, 5),
    }
    assert not four.train_routers and four.settings["experts"] == 4
    assert "middle zone, layers 1 to 2: 1 of 7 experts that the text chose, by overlap" in four.why
    assert "only 3 languages: specificity and overlap say little; 4 say more" in four.why


def test_the_surplus_of_a_full_zone_goes_where_most_room_is(zoned):
    """2, 2 and 4: the deep zone has three experts in use, the middle most room left."""
    assert plan(zoned, experts=8).experts() == {0: (0, 2), 1: (0,), 2: (0, 1), 3: (0, 1, 2)}
    everything = plan(zoned, experts=13)
    assert everything.size == 13 and 3 not in everything.experts()[1], "expert 3 is dead, and so never even"
    with pytest.raises(ConfigError, match="14 experts were asked for, but there are 13 that the text chose"):
        plan(zoned, experts=14)


def test_zones_shares_and_magnitude_are_settings(zoned):
    assert plan(zoned, experts=2, zones=(0.5, 0.5, 0), shares=(1, 0, 0)).experts() == {0: (0,), 1: (0,)}
    assert plan(zoned, experts=2, shares=(0, 1, 0)).experts() == {1: (0,), 2: (0,)}
    one = plan(zoned, experts=1, shares=(0, 0, 1), magnitude=0)
    assert [e.statistic for e in one.layers[3]] == [1.25], "the preference alone"


def test_three_experts_at_least_by_default(zoned):
    assert plan(zoned).settings["experts"] == 3


def test_a_budget_finds_the_largest_number(zoned):
    assert plan(zoned, budget=0.08).experts() == plan(zoned, experts=8).experts()
    assert plan(zoned, budget=0.089).settings["experts"] == 8
    with_routers = plan(zoned, budget=0.055, train_routers=True)
    assert with_routers.settings["experts"] == 4 and with_routers.trained_share == 0.055
    with pytest.raises(ConfigError, match=r"nothing fits a budget of 0.9% of 1,000 .* trains 1 expert, 1%"):
        plan(zoned, budget=0.009)


@pytest.mark.parametrize("routers", [False, True])
def test_no_larger_number_fits_a_budget(make_trace, routers):
    """By trying all of them; where layers differ, one expert more can train less."""
    rng = np.random.default_rng(0)
    counts = {g: rng.integers(1, 90, (6, 12)).tolist() for g in ("t", "a", "b")}
    sizes = {"total": 9000, "expert": [100, 110, 30, 20, 240, 250], "router": [5] * 6}
    trace = make_trace(counts, about={"parallel": True, "sizes": sizes})
    shares = [plan(trace, experts=n, train_routers=routers).trained_share for n in range(1, 73)]
    assert sorted(shares) != shares
    for budget in (0.03, 0.1, 0.2, 0.35):
        expected = max(n for n, share in enumerate(shares, 1) if share <= budget)
        assert plan(trace, budget=budget, train_routers=routers).settings["experts"] == expected


@given(seed=st.integers(0, 10_000), number=st.integers(1, 30))
def test_scores_as_a_loop_over_experts(make_trace, seed, number):
    """Against the formulas written out for one expert at a time."""
    rng = np.random.default_rng(seed)
    counts = {g: rng.integers(1, 30, (6, 5)) for g in ("t", "a", "b", "c")}
    share = {g: (count / count.sum(axis=1, keepdims=True)).tolist() for g, count in counts.items()}
    found = rise_plan(make_trace(counts), RiseConfig(target="t", known=("a", "b", "c"), experts=number))
    assert found.size == number
    for layer, planned in found.layers.items():
        for e in planned:
            uses = [share[g][layer][e.id] for g in counts]
            mean = sum(uses) / 4
            deviation = (sum((x - mean) ** 2 for x in uses) / 4) ** 0.5
            middle = layer in (2, 3)  # round(6 x .375) is 2, round(6 x .625) is 4
            score = 1 / (1 + deviation / mean) * (1 + 10 * mean) if middle else uses[0] / mean * (1 + 10 * uses[0])
            assert e.role == ("shared" if middle else "language")
            assert e.statistic == pytest.approx(score, abs=2e-6) and e.statistic >= e.threshold


def test_all_faults_are_said_at_once(zoned):
    config = RiseConfig(
        target="x", known=("a", "y"), experts=0, budget=0.1, zones=(0.5, 0.5), shares=(0.5, 0.4, 0.2), magnitude=-1
    )
    with pytest.raises(ConfigError) as e:
        rise_plan(zoned, config)
    for part in (
        "no target 'x'",
        "no known language y",
        "zones are three parts of 1 (shallow, middle, deep), not 0.5, 0.5",
        "shares are three parts of 1",
        "experts is 0",
        "magnitude is -1",
        "both budget and experts",
    ):
        assert part in str(e.value)
    with pytest.raises(ConfigError, match="no known languages were given"):
        rise_plan(zoned, RiseConfig(target="t"))


def test_text_that_is_not_parallel_is_said(zoned):
    pooled = dataclasses.replace(zoned, about={})
    assert any("not parallel" in reason for reason in plan(pooled, experts=3).why)
    assert not any("not parallel" in reason for reason in plan(zoned, experts=3).why)
