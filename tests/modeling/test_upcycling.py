"""Upcycling: whatever the routers choose, the dense model's logits."""

import pytest
import torch

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import moe_layers, open_model, upcycle
from dragoman.modeling.upcycling import TARGETS
from tests.models import dense, tiny

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
BUILDS = {
    "llama": ("llama", {}),
    "tied, grouped queries": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "scaled positions": ("llama", {"rope_parameters": LLAMA3}),
    "wide heads": ("llama", {"head_dim": 16}),
    "another activation": ("llama", {"hidden_act": "gelu"}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16}),
}
IDS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def chosen(model):
    """Experts that the routers of a model choose for IDS, in order of layers."""
    from dragoman.modeling import tap_routers

    layers = moe_layers(model)
    with torch.no_grad(), tap_routers(model, layers) as seen:
        model(IDS)
    return torch.stack([routed.indices_TK for routed in seen])


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_logits_are_the_dense_models(build, top_k):
    family, changes = BUILDS[build]
    model = tiny(family, **changes)
    made = upcycle(model, 4, top_k, seed=3)
    assert torch.allclose(logits(made), logits(model), atol=1e-5, rtol=1e-5)
    assert logits(model).std() > 0.1, "otherwise anything is close"
    assert [(x.num_experts, x.top_k) for x in moe_layers(made)] == [(4, top_k)] * 3
    assert made.config.model_type == TARGETS[family][0]


def test_any_routing_gives_the_same_logits_and_untouched_experts_are_needed():
    model = tiny("llama")
    a, b = upcycle(model, 4, 2, seed=0), upcycle(model, 4, 2, seed=1)
    assert not torch.equal(chosen(a), chosen(b))
    assert torch.allclose(logits(a), logits(b), atol=1e-5)
    with torch.no_grad():
        moe_layers(a)[0].experts.down_proj[0] *= 1.5
    assert not torch.allclose(logits(a), logits(b), atol=1e-5), "the experts compute, and not the dense weights"


def test_every_expert_is_a_copy_and_the_dense_model_stays():
    model = tiny("llama")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    made = upcycle(model, 3, 1)
    experts, mlp = moe_layers(made)[1].experts, model.model.layers[1].mlp
    for e in range(3):
        gate_up_2FD = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        assert torch.equal(experts.gate_up_proj[e], gate_up_2FD)
        assert torch.equal(experts.down_proj[e], mlp.down_proj.weight)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(1.0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    per_layer = 2 * 3 * 16 * 8 + 3 * 16  # two further copies of three matrices, a router
    assert sum(p.numel() for p in made.parameters()) == sum(t.numel() for t in before.values()) + 3 * per_layer


def test_routers_follow_the_seed_and_differ_over_layers():
    model = tiny("llama")
    a, b, c = ([x.router.weight for x in moe_layers(upcycle(model, 64, 2, seed=seed))] for seed in (5, 5, 6))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0]) and not torch.equal(a[0], a[1])
    assert 0.018 < torch.stack(list(a)).std() < 0.022


def test_it_survives_saving_in_half_precision_too(tmp_path):
    model = tiny("llama")
    upcycle(model, 4, 2).save_pretrained(tmp_path / "full")
    assert torch.allclose(logits(open_model(str(tmp_path / "full"), device="cpu")), logits(model), atol=1e-5)
    half = upcycle(tiny("llama").to(torch.bfloat16), 4, 2)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 0), (4, 5), (-1, -2)])
def test_impossible_numbers(experts, top_k):
    with pytest.raises(ConfigError, match=f"given were {experts} experts and top-k {top_k}"):
        upcycle(dense(), experts, top_k)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "mixtral",
            {},
            r"MixtralForCausalLM \(type mixtral\) cannot be upcycled: only for the dense types llama, mist",
        ),
        ("gpt2", {"n_embd": 16, "n_head": 2, "n_layer": 1}, r"GPT2LMHeadModel \(type gpt2\) cannot be upcycled"),
        ("apertus", {}, r"ApertusForCausalLM \(type apertus\) cannot be upcycled: only for the dense types llama"),
        ("bloom", {}, r"BloomForCausalLM \(type bloom\) cannot be upcycled"),
        ("mpt", {}, r"MptForCausalLM \(type mpt\) cannot be upcycled"),
        ("llama", {"attention_bias": True}, r"no place for model.layers.0.self_attn.q_proj.bias, .* …"),
        ("llama", {"mlp_bias": True}, r"no place for model.layers.0.mlp.gate_proj.bias"),
    ],
)
def test_models_without_a_class_of_their_build(family, changes, message):
    with pytest.raises(ModelError, match=message):
        upcycle(tiny(family, **changes), 4, 2)


def test_a_setting_that_the_class_does_not_follow_is_noticed(monkeypatch):
    """The last line of defence: a config that is carried over wrongly."""
    real = TARGETS["llama"][1]
    wrong = {"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}
    monkeypatch.setitem(TARGETS, "llama", ("mixtral", lambda *a: real(*a) | wrong))
    with pytest.raises(ModelError, match="does not compute what LlamaForCausalLM does"):
        upcycle(tiny("llama"), 4, 2)


def test_layers_that_differ_beyond_a_window_are_noticed():
    """The dense class has windows in its last layers alone, the other one in all; short texts do not tell."""
    windows = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1, "num_hidden_layers": 2}
    windows |= {"head_dim": 8, "max_position_embeddings": 128}
    with pytest.raises(ModelError, match="does not compute what Qwen3ForCausalLM does"):
        upcycle(tiny("qwen3", **windows), 4, 2)
