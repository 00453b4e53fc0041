"""The gap rule: language experts, shared experts, parents and what a budget makes of alpha."""

import dataclasses

import numpy as np
import pytest

from dragoman.errors import ConfigError
from dragoman.routing import parents, planners
from dragoman.routing.planners import AllConfig, SeftConfig, SsftConfig

KNOWN = ("en", "es", "ru")


def roles(plan):
    return {layer: {e.id: e.role for e in planned} for layer, planned in plan.layers.items()}


def test_ssft_by_hand(trace):
    plan = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.1, shared=1))
    # layer 2, first minus second: expert 0 all equal; 1 en by .10; 2 es by .15; 3 ru by .15. Layer 3: es never first.
    assert plan.parent == "es"
    assert roles(plan) == {2: {0: "shared", 2: "language"}, 3: {0: "shared"}}
    assert [(e.statistic, e.threshold) for e in plan.layers[2]] == [(0.4, 0.4), (0.15, 0.1)]
    assert plan.layers[3][0].statistic == 0.4
    assert plan.num_experts == {1: 4, 2: 4, 3: 3}
    assert plan.trace_sha256 == planners.checksum(trace)
    assert plan.settings["alpha"] == {"2": 0.1, "3": 0.1}
    assert plan.why[-1] == (
        "layer 3: language experts of es: none, as no gap to the next known language reaches 0.1 of slots; "
        "shared experts alone: 1"
    )


def test_a_gap_equal_to_alpha_counts_and_an_expert_is_planned_once(trace):
    config = SsftConfig(target="ca", known=KNOWN, parent="en", alpha=0.1, layers=(2,), shared=3)
    plan = planners.ssft(trace, config)
    # means .400 .200 .217 .183: expert 1 is en's by exactly .10 and also shared
    assert roles(plan) == {2: {0: "shared", 1: "language", 2: "shared"}}
    assert plan.why[-1].endswith("shared experts: 3 (of these language experts too: 1)")
    stricter = planners.ssft(trace, dataclasses.replace(config, alpha=0.1001))
    assert roles(stricter)[2][1] == "shared"


def test_seft_leaves_shared_experts_and_empty_layers_out(trace):
    plan = planners.seft(trace, SeftConfig(target="ca", known=KNOWN, alpha=0.1))
    assert roles(plan) == {2: {2: "language"}}
    assert plan.planner == "seft" and "shared" not in plan.settings
    with pytest.raises(ConfigError, match="selects no expert in layers 2, 3; lower alpha"):
        planners.seft(trace, SeftConfig(target="ca", known=KNOWN, alpha=0.9))


def test_only_known_languages_decide(make_trace, trace, counts):
    """A target that takes every expert for itself changes nothing but the parent."""
    greedy = make_trace({**counts, "ca": [[1, 97, 1, 1], [1, 1, 97, 1], [1, 1, 98, 0]]}, (1, 2, 3), (4, 4, 3))
    config = SsftConfig(target="ca", known=KNOWN, parent="es", alpha=0.1, shared=1)
    assert planners.ssft(greedy, config).layers == planners.ssft(trace, config).layers


@pytest.mark.parametrize(("experts", "alpha", "shared"), [(64, 0.01, 5), (128, 0.005, 10), (32, 0.02, 2), (4, 0.16, 1)])
def test_defaults_scale_with_the_number_of_experts(make_trace, experts, alpha, shared):
    rng = np.random.default_rng(0)
    trace = make_trace({g: rng.integers(1, 100, (2, experts)) for g in ("en", "es", "ca")})
    plan = planners.ssft(trace, SsftConfig(target="ca", known=("en", "es"), parent="en"))
    assert plan.settings["alpha"] == {"0": alpha, "1": alpha}
    assert plan.settings["shared"] == {"0": shared, "1": shared}


def test_padding_is_never_planned(make_trace):
    trace = make_trace({g: [[1, 1, 0, 0]] for g in ("en", "es", "ca")}, num_experts=(2,))
    assert planners.ssft(trace, SsftConfig(target="ca", known=("en", "es"), shared=2)).experts() == {0: (0, 1)}
    assert planners.all_experts(trace, AllConfig()).experts() == {0: (0, 1)}


def test_the_parent_is_nearest_in_the_layers_to_be_planned(trace):
    choice = parents.choose_parent(trace, "uk", KNOWN, (2, 3), {"en": 0.1, "es": 0.2, "ru": 0.6})
    assert choice.parent == "ru" and choice.agree
    assert [g for g, _ in choice.overlap] == ["ru", "es", "en"]
    assert choice.routing[0][1] > choice.routing[1][1]
    assert choice.why[-1] == "on the nearest language routing (ru) and vocabulary overlap agree"
    indifferent = parents.choose_parent(trace, "uk", KNOWN, (1,))
    assert indifferent.parent == "en", "all alike in layer 1: the order of known"
    assert indifferent.agree is None


def test_a_disagreement_stands_in_the_plan_with_both_rankings(trace):
    overlap = {"en": 0.1, "es": 0.2, "ru": 0.6}
    plan = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, overlap=overlap))
    assert plan.parent == "es"
    assert plan.why[0] == "parent es: of the known languages the one routed most like ca"
    assert plan.why[1].startswith("routing similarity (1 - JSD / ln 2) in layers 2, 3: es 0.99")
    assert plan.why[2] == "vocabulary overlap: ru 0.600, es 0.200, en 0.100"
    assert "disagree: overlap would take ru, routing decides" in plan.why[3]
    by_hand = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, overlap=overlap, parent="ru"))
    assert by_hand.parent == "ru" and by_hand.settings["parent_by"] == "setting"
    assert by_hand.why[0] == "parent ru: as set; routing would choose es"


def test_all_faults_of_an_ssft_config_are_said_at_once(trace):
    config = SsftConfig(
        target="pt", known=("fr", "en", "nl"), parent="es", alpha=8, shared=9, budget=2, layers=(0, 2, 9)
    )
    with pytest.raises(ConfigError) as e:
        planners.ssft(trace, config)
    for part in (
        "no target 'pt', only en, es, ru, ca, uk",
        "no known language fr, nl",
        "no MoE layer 0, 9; choose from 1, 2, 3",
        "the parent 'es' is not a known language; take one of fr, en, nl",
        "alpha is 8",
        "shared is 9, but it may be 1 to 4; for none take the planner seft",
        "both budget and alpha are given, but a budget finds alpha itself",
        "the budget is 2, but it is a share of parameters",
        "the trace does not say how large its model is",
    ):
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"known": ()}, "no known languages were given"),
        ({"known": ("en",)}, "needs two known languages, only en was given"),
        ({"known": ("en", "es", "en")}, "named twice: en"),
        ({"known": ("en", "ca")}, "the target 'ca' is among the known languages"),
        ({"known": KNOWN, "overlap": {"en": 0.5}}, "no vocabulary overlap is given for es, ru"),
        ({"known": KNOWN, "shared": 4}, "shared is 4, but it may be 1 to 3"),
        ({"known": KNOWN, "layers": ()}, "no layer was given; choose from 1, 2, 3"),
    ],
)
def test_each_fault_is_said(trace, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        planners.ssft(trace, SsftConfig(target="ca", **settings))


def test_a_budget_finds_the_least_alpha_that_fits(sized):
    """Gaps of ru times experts: layer 2, expert 3 .15 x 4; layer 3, expert 2 .2 x 3, expert 1 .1 x 3."""

    def plan(budget, routers=True):
        return planners.seft(
            sized, SeftConfig(target="uk", known=KNOWN, parent="ru", budget=budget, train_routers=routers)
        )

    two, three = {2: (3,), 3: (2,)}, {2: (3,), 3: (1, 2)}
    assert plan(0.03).experts() == plan(0.0399).experts() == two, "2 experts of 10 and 2 routers of 5, of 1000"
    assert plan(0.04).experts() == plan(1).experts() == three
    assert plan(0.03, routers=False).experts() == three
    assert plan(0.03).settings["alpha"] == pytest.approx({"2": 0.15, "3": 0.2})
    assert plan(0.04).settings["alpha"] == pytest.approx({"2": 0.075, "3": 0.1})
    assert plan(0.04).trained_share == 0.04 and plan(0.03, routers=False).trained_parameters == 30
    assert plan(0.0399).why[-1] == (
        "budget 3.99%: the least alpha that fits is 0.15 in layer 2, 0.2 in layer 3; it trains 30 of 1,000 parameters "
        "(3%), routers included"
    )
    with pytest.raises(ConfigError, match=r"nothing fits a budget of 2.9% .* 2 experts and the routers .*, 3%;"):
        plan(0.029)


def test_a_budget_takes_shared_experts_first(sized):
    def plan(budget):
        config = SsftConfig(target="uk", known=KNOWN, parent="ru", shared=1, budget=budget)
        return roles(planners.ssft(sized, config))

    shared = {2: {0: "shared"}, 3: {0: "shared"}}
    assert plan(0.03) == plan(0.049) == shared
    assert plan(0.05) == {2: {0: "shared", 3: "language"}, 3: {0: "shared", 2: "language"}}
    with pytest.raises(ConfigError, match="the smallest plan trains 2 experts"):
        plan(0.02)
