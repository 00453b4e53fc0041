import dataclasses

import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.routing import planners
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import PLANNERS, AllConfig, LayersConfig, RandomConfig, SsftConfig
from dragoman.routing.trace import RoutingTrace

# Layers 1 (dense layer 0 before it), 2 and 3 of a model; layers 1 and 2 have 4 experts, layer 3 has 3 and a column of
# padding. Percent of slots, 100 slots a layer.
COUNTS = {
    "en": [[25, 25, 25, 25], [40, 30, 20, 10], [50, 30, 20, 0]],
    "es": [[25, 25, 25, 25], [40, 10, 35, 15], [50, 30, 20, 0]],
    "ru": [[25, 25, 25, 25], [40, 20, 10, 30], [20, 40, 40, 0]],
    "ca": [[97, 1, 1, 1], [40, 12, 34, 14], [48, 31, 21, 0]],
    "uk": [[97, 1, 1, 1], [41, 19, 12, 28], [20, 40, 40, 0]],
}
KNOWN = ("en", "es", "ru")


@pytest.fixture
def trace(make_trace):
    return make_trace(COUNTS, layer_ids=(1, 2, 3), num_experts=(4, 4, 3))


def roles(plan):
    return {layer: {e.id: e.role for e in planned} for layer, planned in plan.layers.items()}


def test_ssft_by_hand(trace):
    plan = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.1, shared=1))
    # layer 2, first minus second: expert 0 all equal; 1 en by .10; 2 es by .15; 3 ru by .15. Layer 3: es never first.
    assert plan.parent == "es"
    assert roles(plan) == {2: {0: "shared", 2: "language"}, 3: {0: "shared"}}
    assert [e.statistic for e in plan.layers[2]] == [0.4, 0.15]
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
    plan = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.1, variant="seft"))
    assert roles(plan) == {2: {2: "language"}}
    with pytest.raises(ConfigError, match="selects no expert in layers 2, 3; lower alpha"):
        planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.9, variant="seft"))


def test_only_known_languages_decide(make_trace, trace):
    """A target that takes every expert for itself changes nothing but the parent."""
    greedy = make_trace({**COUNTS, "ca": [[1, 97, 1, 1], [1, 1, 97, 1], [1, 1, 98, 0]]}, (1, 2, 3), (4, 4, 3))
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
    choice = planners.choose_parent(trace, "uk", KNOWN, (2, 3), {"en": 0.1, "es": 0.2, "ru": 0.6})
    assert choice.parent == "ru" and choice.agree
    assert [g for g, _ in choice.overlap] == ["ru", "es", "en"]
    assert choice.routing[0][1] > choice.routing[1][1]
    assert choice.why[-1] == "on the nearest language routing (ru) and vocabulary overlap agree"
    indifferent = planners.choose_parent(trace, "uk", KNOWN, (1,))
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
        target="pt", known=("fr", "en", "nl"), parent="es", alpha=8, shared=2, variant="seft", layers=(0, 2, 9)
    )
    with pytest.raises(ConfigError) as e:
        planners.ssft(trace, config)
    for part in (
        "no target 'pt', only en, es, ru, ca, uk",
        "no known language fr, nl",
        "no MoE layer 0, 9; choose from 1, 2, 3",
        "the parent 'es' is not a known language; take one of fr, en, nl",
        "alpha is 8",
        "shared = 2 has no effect in the variant 'seft'",
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


def test_layers_and_all(trace):
    assert planners.complete_layers(trace, LayersConfig()).experts() == {2: (0, 1, 2, 3), 3: (0, 1, 2)}
    assert planners.complete_layers(trace, LayersConfig(layers=(1,))).experts() == {1: (0, 1, 2, 3)}
    assert planners.all_experts(trace, AllConfig()).size == 11
    assert not planners.all_experts(trace, AllConfig(train_routers=False)).train_routers
    with pytest.raises(ConfigError, match=r"no target 'xx'.*no MoE layer 7"):
        planners.complete_layers(trace, LayersConfig(target="xx", layers=(7,)))


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
    plan = planners.random_like(trace, reference, disjoint=True)
    assert all(not set(plan.experts()[g]) & set(ids) for g, ids in reference.experts().items())
    assert plan.why[-1] == "0 of them are in that plan too"


def test_random_plans_that_cannot_be(tmp_path, trace, make_trace):
    with pytest.raises(ConfigError, match="copies layers and numbers from another plan"):
        planners.random_plan(trace, RandomConfig())
    with pytest.raises(DataError, match="does not exist"):
        planners.random_plan(trace, RandomConfig(like=tmp_path / "no.json"))
    complete = planners.complete_layers(trace, LayersConfig())
    with pytest.raises(ConfigError, match="layer 2 has 0 left for 4, layer 3 has 0 left for 3"):
        planners.random_like(trace, complete, disjoint=True)
    with pytest.raises(ConfigError, match="a draw would repeat it"):
        planners.random_like(trace, complete)
    with pytest.raises(ConfigError, match="the other plan is for a model with experts by layer"):
        planners.random_like(big_trace(make_trace), complete)


def test_a_layer_with_several_routers_is_not_planned(make_trace):
    trace = make_trace({g: [[1, 2], [2, 1], [3, 1]] for g in ("en", "es", "ca")}, layer_ids=(0, 0, 1))
    with pytest.raises(ModelError, match="layers 0 have several routers"):
        planners.all_experts(trace, AllConfig())


def test_every_planner_makes_a_plan_that_survives_its_file(tmp_path, trace):
    ssft = planners.ssft(trace, SsftConfig(target="ca", known=KNOWN, alpha=0.1, shared=1))
    ssft.save(tmp_path / "ssft.json")
    configs = {
        "ssft": SsftConfig(target="ca", known=KNOWN),
        "random": RandomConfig(like=tmp_path / "ssft.json", disjoint=True),
        "layers": LayersConfig(target="ca"),
        "all": AllConfig(),
    }
    assert configs.keys() == PLANNERS.keys()
    for name, (config_type, make) in PLANNERS.items():
        assert isinstance(configs[name], config_type)
        plan = make(trace, configs[name])
        plan.save(tmp_path / f"{name}.json")
        assert ExpertPlan.load(tmp_path / f"{name}.json") == plan
        assert plan.planner == name and plan.why


def test_the_checksum_survives_the_file_and_sees_a_count(tmp_path, trace):
    trace.save(tmp_path / "t.npz")
    assert planners.checksum(RoutingTrace.load(tmp_path / "t.npz")) == planners.checksum(trace)
    changed = trace.chosen_GLE.copy()
    changed[0, 0, 0] += 1
    assert planners.checksum(dataclasses.replace(trace, chosen_GLE=changed)) != planners.checksum(trace)
