"""Steering: each rule by hand, what the router then chooses, decoding, files, controls."""

import json
import math

import pytest
import torch

from dragoman.commands.steer import Config, run
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import steer
from dragoman.methods.steer import Steering, steered, steering
from dragoman.modeling import moe_layers, tap_routers
from dragoman.routing.controls import CONTROLS, by_lot, elsewhere
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.translation.engines import Stops, translate_greedy
from tests import architectures
from tests.models import FAMILIES, tiny, unrecorded

IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(2))


def plan_of(model, experts=(2, 5), statistic=0.25):
    layers = moe_layers(model)
    planned = tuple(PlannedExpert(e, "shared", statistic) for e in experts)
    return ExpertPlan(
        planner="test",
        layers={layers[-1].layer_id: planned},
        num_experts={x.layer_id: x.num_experts for x in layers},
    )


def last_router(model, ids=IDS):
    with torch.no_grad(), tap_routers(model, moe_layers(model)[-1:]) as seen:
        model(ids)
    return seen[0]


def test_rules_by_hand():
    z = torch.tensor([[1.0, -2.0, 4.0, 1.0]])
    chosen, shares = torch.tensor([1, 3]), torch.tensor([0.5, 0.1])
    std = math.sqrt((0 + 9 + 9 + 0) / 3)
    settings = {"chosen_P": chosen, "shares_P": shares}

    def of(rule, strength):
        return steer.RULES[rule](z, **settings, strength=strength).tolist()[0]

    assert of("soft", 0.5) == pytest.approx([1, -2 + 0.5 * std, 4, 1 + 0.5 * std])
    assert of("hard", 1) == pytest.approx([1, 4.01, 4, 4.01])
    assert of("hard", -1) == pytest.approx([1, -2.01, 4, -2.01])
    assert of("shared", 0.2) == pytest.approx([1, -2 + 0.2 * 0.5 * 2, 4, 1 + 0.2 * 0.1])
    assert z.tolist() == [[1.0, -2.0, 4.0, 1.0]], "the router's own logits stay"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_router_chooses_by_the_steered_logits(family):
    model = tiny(family)
    plain, layer = last_router(model), moe_layers(model)[-1]
    with steered(model, steering(plan_of(model), "soft", 0.7)):
        soft = last_router(model)
    std = plain.logits_TE.std(-1, keepdim=True)
    torch.testing.assert_close(soft.logits_TE[:, [2, 5]], plain.logits_TE[:, [2, 5]] + 0.7 * std)
    torch.testing.assert_close(soft.logits_TE[:, [0, 1, 3, 4, 6, 7]], plain.logits_TE[:, [0, 1, 3, 4, 6, 7]])
    with steered(model, steering(plan_of(model), "hard", 1)):
        forced = last_router(model)
    with steered(model, steering(plan_of(model), "hard", -1)):
        banned = last_router(model)
    if family != "deepseek_v3":  # its groups may leave out an expert with the largest logit
        assert (forced.indices_TK.sort().values == torch.tensor([2, 5])).all()
    assert not torch.isin(banned.indices_TK, torch.tensor([2, 5])).any()
    again = last_router(model)
    assert torch.equal(again.logits_TE, plain.logits_TE), "outside the block nothing is steered"
    assert "forward" not in vars(layer.router)


def test_a_steered_model_is_probed_as_any_other():
    """Also where its routers are found by running them, without values."""
    model = unrecorded(tiny("deepseek_v3"))
    layers = moe_layers(model)
    with steered(model, steering(plan_of(model), "soft", 0.7)):
        assert moe_layers(model) == layers


def test_no_strength_is_no_change_to_the_bit():
    model = tiny("olmoe")
    expected = model(IDS).logits
    for rule in steer.RULES:
        with steered(model, steering(plan_of(model), rule, 0)):
            assert torch.equal(model(IDS).logits, expected)
        with steered(model, steering(plan_of(model), rule, 1)):
            assert not torch.equal(model(IDS).logits, expected), "otherwise this sees nothing"
    z = torch.randn(3, 8)
    for rule in ("soft", "shared"):  # and the formulas themselves
        change = steer.RULES[rule](z, chosen_P=torch.tensor([1]), shares_P=torch.tensor([0.5]), strength=0.0)
        assert torch.equal(change, z)


@pytest.mark.parametrize("rule", steer.RULES)
def test_batches_left_padding_and_caches_decode_alike(rule):
    """The engine, batched with left padding and a cache, and generate, against one token at a time without a cache."""
    model = tiny("olmoe")
    prompts = [[1, 5, 9, 30, 7, 41], [1, 8, 8], [1, 17, 22, 50]]
    with steered(model, steering(plan_of(model), rule, 1)):
        naive = []
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(6):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            naive.append(ids[len(prompt) :])
        engine = translate_greedy(model, prompts, stops=Stops(frozenset()), pad_id=0, max_new=lambda n: 6)
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        generated = model.generate(ids, attention_mask=(ids != 0).long(), **settings)
    assert engine == naive
    assert generated[:, width:].tolist() == naive
    unsteered = translate_greedy(model, prompts, stops=Stops(frozenset()), pad_id=0, max_new=lambda n: 6)
    assert unsteered != naive, "otherwise this sees nothing"


def test_a_file_steers_as_what_was_saved(tmp_path):
    model = tiny("olmoe")
    how = steering(plan_of(model), "shared", 0.5)
    how.save(tmp_path / "s.json")
    assert Steering.load(tmp_path / "s.json") == how
    assert (tmp_path / "s.json").stat().st_size < 2000
    (tmp_path / "other.json").write_text('{"format": "dragoman-plan/1"}')
    with pytest.raises(DataError, match=r"other.json is no steering file .* `dragoman steer`"):
        Steering.load(tmp_path / "other.json")


def test_controls_have_the_size_of_the_plan_and_none_of_its_experts():
    plan = ExpertPlan("t", {1: (PlannedExpert(0, "shared", 0.3), PlannedExpert(4, "shared", 0.2))}, {0: 8, 1: 8, 2: 8})
    lot, other = by_lot(plan, 3), elsewhere(plan, 3)
    assert lot.size == other.size == plan.size
    assert set(lot.layers) == {1} and not set(lot.experts()[1]) & {0, 4}
    assert 1 not in other.layers
    assert {by_lot(plan, s).experts()[1] for s in range(8)} != {lot.experts()[1]}
    assert [e.statistic for made in (lot, other) for x in made.layers.values() for e in x] == [0.3, 0.2] * 2
    wide = ExpertPlan("t", {i: tuple(PlannedExpert(e, "all") for e in range(6)) for i in (1, 2)}, {0: 8, 1: 8, 2: 8})
    assert elsewhere(wide).experts() == {0: tuple(range(8))}, "twelve are wanted, eight are there"
    assert set(CONTROLS) == {"random", "elsewhere"}
    whole = ExpertPlan("t", {0: tuple(PlannedExpert(e, "all") for e in range(5))}, {0: 8})
    with pytest.raises(ConfigError, match=r"layers \[0\] have too few experts"):
        by_lot(whole)
    with pytest.raises(ConfigError, match="names every layer"):
        elsewhere(whole)


def test_a_control_that_can_do_nothing_is_told(tmp_path, capsys):
    """Its plan can: six of eight experts. In the layer that is left it is all of them."""
    wide = ExpertPlan("t", {i: tuple(PlannedExpert(e, "all") for e in range(6)) for i in (1, 2)}, {0: 8, 1: 8, 2: 8})
    wide.save(tmp_path / "wide.json")
    for rule in ("soft", "hard"):
        run(Config(tmp_path / "wide.json", rule=rule, out=tmp_path / rule))
    assert not capsys.readouterr().err
    run(Config(tmp_path / "wide.json", control="elsewhere", out=tmp_path / "b"))
    assert "of layers [0] all experts are steered alike, which changes nothing under" in capsys.readouterr().err
    run(Config(tmp_path / "wide.json", rule="hard", control="elsewhere", out=tmp_path / "c"))
    assert "forces more experts in layers [0] than the plan in any, 6: models that" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "firm"}, "the rule 'firm' is none of soft, hard, shared"),
        ({"strength": "much"}, "the strength is 'much', not a finite number"),
        ({"strength": float("nan"), "rule": 1}, "the rule 1 is none of .*; the strength is nan"),
        ({"experts": {"2": [99]}}, "layer 2 has 8 experts, so there is no expert 99 in it"),
        ({"experts": {"9": [0]}}, "layer 9 has 0 experts"),
        ({"experts": [2]}, "is damaged"),
        ({"experts": {"2": [1, 1]}}, r"layer 2 has the experts \[1, 1\]; one or more, each once"),
        ({"experts": {"2": []}}, r"layer 2 has the experts \[\]"),
        ({"experts": {}}, "there are no experts to steer"),
        ({"rule": "soft"}, "have shares, and none of their experts is steered by its share"),
        ({"shares": {"2": [0.5]}}, "layer 2 has 1 shares for 2 experts"),
        ({"num_experts": {"two": 8}}, "is damaged"),
    ],
)
def test_a_file_that_was_edited_badly_is_told(tmp_path, change, said):
    steering(plan_of(tiny("olmoe")), "shared", 0.5).save(tmp_path / "s.json")
    kept = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps(kept | change))
    with pytest.raises(DataError, match=rf"s\.json is damaged: .*{said}|s\.json {said}"):
        Steering.load(tmp_path / "s.json")


def test_errors():
    model = tiny("olmoe")
    with pytest.raises(ConfigError, match="the strength is inf, not a finite number"):
        steering(plan_of(model), "soft", float("inf"))
    with pytest.raises(ConfigError, match=r"has no strength 0\.5"):
        steering(plan_of(model), "hard", 0.5)
    with pytest.raises(DataError, match="the plan has none in layers 2"):
        steering(plan_of(model, statistic=None), "shared", 0.1)
    with (
        pytest.raises(ConfigError, match="forced than a token is sent to: 3 of at most 2 in layer 2"),
        steered(model, steering(plan_of(model, (1, 2, 3)), "hard", 1)),
    ):
        pass
    with (
        pytest.raises(ModelError, match="the plan is of another model"),
        steered(tiny("olmoe", num_experts=16), steering(plan_of(model), "soft", 0.5)),
    ):
        pass


NOT_STEERED = {"doge", "inkling_text", "jetmoe"}
"""Model types that are refused: no one linear map to all experts, or several routers a layer."""


@pytest.mark.slow  # builds every architecture
@pytest.mark.parametrize("model_type", [t for t in architectures.recording() if t not in architectures.NOT_BUILT])
def test_every_architecture_is_steered_or_refused(model_type):
    """A strong push sends more tokens to the expert, whatever the router does later; then all is as before."""
    model = architectures.build(model_type)
    layers = moe_layers(model)
    how = Steering("soft", 4.0, {layers[-1].layer_id: (1,)}, {}, {x.layer_id: x.num_experts for x in layers}, "test")

    def chosen():
        with torch.no_grad(), tap_routers(model, layers) as seen:
            model(input_ids=IDS, use_cache=False)
        return seen[-1].indices_TK

    plain = chosen()
    if model_type in NOT_STEERED:
        with pytest.raises(ModelError), steered(model, how):
            chosen()
        return
    with steered(model, how):
        pushed = chosen()
    assert (pushed == 1).sum() > (plain == 1).sum()
    assert torch.equal(chosen(), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_forced_experts_are_chosen_at_any_size_of_the_logits(dtype):
    z_TE = (8 * torch.randn(200, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    chosen_P, none = torch.arange(0, 64, 8), torch.zeros(0)
    on = steer.RULES["hard"](z_TE, chosen_P=chosen_P, shares_P=none, strength=1)
    assert (on.topk(8).indices.sort(-1).values == chosen_P).all()
    off = steer.RULES["hard"](z_TE, chosen_P=chosen_P, shares_P=none, strength=-1)
    assert not torch.isin(off.topk(56).indices, chosen_P).any()


def test_steering_within_steering_leaves_the_outer_one():
    model = tiny("olmoe")
    first, second = (steering(plan_of(model, ids), "soft", 2.0) for ids in ((2, 5), (1, 3)))
    with torch.no_grad(), steered(model, first):
        once = model(IDS).logits
        with steered(model, second):
            assert not torch.equal(model(IDS).logits, once)
        assert torch.equal(model(IDS).logits, once)
