"""LoRA: what is trained, that it is what PEFT computes, and that nothing stays frozen without a word."""

import copy
import sys

import pytest
import torch

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import lora
from dragoman.methods.base import settings, trained
from dragoman.modeling import expert_stacks, linear_maps
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.methods.contract import batch, distance, model_of
from tests.models import dense, tiny


def names(model, **stated):
    lora.apply(model, lora.Config(**stated), None)
    return trained(model, 1).names


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "llama4_text", "gpt_oss"])
def test_logits_are_those_of_updates_added_by_hand(family):
    """Oracle: expert by expert, W + alpha / rank * B A on the plain model; stacks that say so have its transpose.

    Those of Llama 4 are transposed and do not say so: PEFT's A is then on the side of the output, of the same rank.
    """
    model, ids = model_of(family), batch()
    by_hand, stacks, maps = copy.deepcopy(model), expert_stacks(model), linear_maps(model, "attention")
    lora.apply(model, lora.Config(rank=3, alpha=6.0), None)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    seen = []
    for name, module in lora._updates(model):
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        weight = by_hand.get_parameter(name)
        with torch.no_grad():
            if name in stacks:
                a_ERD, b_DRE = a.view(len(weight), 3, -1), b.view(len(b), 3, len(weight))
                for e in range(len(weight)):
                    update = 2.0 * b_DRE[:, :, e] @ a_ERD[e]
                    weight[e] += update.T if getattr(module.get_base_layer(), "is_transposed", False) else update
            else:
                weight += 2.0 * b @ a
        seen.append(name)
    assert set(seen) == {*stacks, *(f"{m}.weight" for m in maps)} and len(seen) == len(set(seen))
    assert distance(model(ids).logits, model_of(family)(ids).logits) > 1e-3
    assert distance(by_hand(ids).logits, model(ids).logits) < 1e-5


@pytest.mark.parametrize(("family", "maps"), {"gpt2": 4, "bloom": 4, "mpt": 4, "apertus": 6, "lfm2": 7}.items())
def test_updates_of_dense_maps(family, maps):
    """Logits with the updates, added by hand (GPT-2 keeps maps transposed), and merged are one."""
    model, ids = tiny(family, intermediate_size=32), batch()
    by_hand, plain = copy.deepcopy(model), copy.deepcopy(model)
    lora.apply(model, lora.Config(rank=3, alpha=6.0, parts=("attention", "feed_forward")), None)
    updates = dict(lora._updates(model))
    assert len(updates) == 3 * maps, "those of attention and of the feed-forward, in three layers"
    for name, module in updates.items():
        torch.nn.init.normal_(module.lora_B["default"].weight, std=0.05)
        with torch.no_grad():
            a_RI, b_OR = module.lora_A["default"].weight, module.lora_B["default"].weight
            update = 2.0 * b_OR @ a_RI
            by_hand.get_parameter(name).add_(update.T if family == "gpt2" else update)
    wanted = by_hand(ids).logits
    assert distance(plain(ids).logits, wanted) > 1e-3
    assert distance(model(ids).logits, wanted) < 1e-5
    lora.merge(model)
    assert distance(model(ids).logits, wanted) < 1e-5
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in plain.named_parameters()}


def test_parts_and_layers_are_what_trains():
    shared = names(tiny("deepseek_v3"), parts=("shared",))
    assert shared and all("shared_experts." in n for n in shared)
    routed = names(tiny("deepseek_v3"), parts=("experts",), layers=(2,))
    assert routed and all(n.startswith("model.layers.2.mlp.experts.") and "shared" not in n for n in routed)
    both = names(tiny("qwen2_moe"), layers=(0,))
    assert {n.split(".")[3] for n in both} == {"self_attn", "mlp"} and all(".layers.0." in n for n in both)
    assert not [n for n in both if "shared" in n or "gate.weight" in n], "neither shared experts nor routers"


def test_a_plan_gives_its_layers():
    model = tiny("olmoe")
    plan = ExpertPlan("by hand", layers={1: (PlannedExpert(3, "language"),)}, num_experts={0: 8, 1: 8, 2: 8})
    lora.apply(model, lora.Config(parts=("experts",)), plan)
    assert {n.split(".")[2] for n in trained(model, 1).names} == {"1"}
    with pytest.raises(ConfigError, match="leave one out"):
        lora.apply(tiny("olmoe"), lora.Config(layers=(1,)), plan)


def test_trained_parameters_by_hand():
    model = tiny("olmoe")
    lora.apply(model, lora.Config(rank=2, parts=("experts",), layers=(2,)), None)
    # 8 experts x rank 2 x (gate and up: 16 in, 2 x 8 out; down: 8 in, 16 out)
    assert trained(model, 1).parameters == 8 * 2 * ((16 + 16) + (8 + 16))


def test_a_dense_model_has_updates_of_attention():
    assert all("self_attn" in n for n in names(dense(), parts=("attention",)))
    with pytest.raises(ModelError, match=r"no routed experts in layers \[0, 1, 2\]"):
        names(dense())


def test_parts_and_layers_without_anything_to_train_are_refused():
    with pytest.raises(ModelError, match="no shared experts"):
        names(tiny("olmoe"), parts=("attention", "shared"))
    with pytest.raises(ModelError, match=r"layers \[0\] have no routed experts"):
        names(tiny("deepseek_v3"), parts=("experts",), layers=(0, 1))
    with pytest.raises(ModelError, match=r"layers \[7\]; OlmoeForCausalLM has layers 0 to 2"):
        names(tiny("olmoe"), layers=(1, 7))
    with pytest.raises(ConfigError, match=r"no part 'router'.*rank is 0.*alpha is 0"):
        lora.Config(parts=("router",), rank=0, alpha=0.0)
    with pytest.raises(ConfigError, match=r"ranks would have no effect on the method lora; did you mean rank\?"):
        settings("lora", lora, {"ranks": 3, "alpha": None})


def test_experts_that_peft_leaves_frozen_are_an_error(monkeypatch):
    import peft

    inject = peft.inject_adapter_in_model

    def forgetful(config, model):
        config.target_parameters = [t for t in config.target_parameters if "down_proj" not in t]
        return inject(config, model)

    monkeypatch.setattr(peft, "inject_adapter_in_model", forgetful)
    with pytest.raises(ModelError, match=r"left model\.layers\.0\.mlp\.experts\.down_proj, .* frozen"):
        names(tiny("olmoe"))


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'dragoman\[lora\]'"):
        names(tiny("olmoe"))


def test_the_start_is_seeded_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = tiny("olmoe"), tiny("olmoe"), tiny("olmoe")
    torch.manual_seed(5)
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        lora.apply(model, lora.Config(seed=seed), None)
    assert torch.equal(torch.rand(3), expected)
    a = [next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (first, again, other)]
    assert torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2])
