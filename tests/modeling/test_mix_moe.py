"""Mix-MoE models: conversion keeps the dense model's logits, and transformers treats the result like any model."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import dragoman
from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import logit_difference, moe_layers, open_model, outline, router_kind
from dragoman.modeling.feed_forwards import feed_forwards, gate_first
from dragoman.modeling.mix_conversion import Conversion, balanced, to_mix_moe
from dragoman.modeling.mix_moe import settings_of
from tests.modeling.mix_models import CLASSES, IDS, SAMPLE, dense, logits, mixed, routed
from tests.models import tiny

ODD = ["bloom", "mpt", "apertus"]
"""What is given the residual too, and what has an activation with weights."""


@pytest.mark.parametrize("slices", ["contiguous", "balanced"])
@pytest.mark.parametrize("name", CLASSES)
def test_conversion_keeps_the_logits_of_every_class(name, slices):
    model = dense(name)
    for n, p in model.named_parameters():  # those of a class are alike at birth, so a lost one would not show
        if n.endswith("bias") or p.numel() == 1:
            nn.init.normal_(p, std=0.3)
    made = to_mix_moe(model, Conversion(slices=slices), SAMPLE if slices == "balanced" else ())
    wanted = logits(model)
    assert (logits(made) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert wanted.std() > 0.1, "otherwise anything is close"
    layers = moe_layers(made)
    assert [(x.num_experts, x.top_k) for x in layers] == [(4, 2)] * 3
    assert router_kind(made, layers[0]) == ("softmax",)
    layers[0].experts.down_proj.data[1] = 0
    assert (logits(made) - wanted).abs().max() > 1e-2, "both slices are needed, or the comparison sees nothing"


@pytest.mark.parametrize("experts", [1, 4, 8])
def test_any_number_of_slices_preserves_if_all_are_chosen(experts):
    made = to_mix_moe(dense(), Conversion(experts=experts, top_k=experts))
    difference, largest = logit_difference(dense(), made)
    assert difference <= 1e-4 * largest


def test_literal_slices_return_a_share_of_the_feed_forward():
    model = dense("gpt_neox")
    made = to_mix_moe(model, Conversion(scale="none"))
    whole, block = model.get_submodule("gpt_neox.layers.1.mlp"), made.get_submodule("gpt_neox.layers.1.mlp")
    x = torch.randn(5, 16)
    torch.testing.assert_close(block(x), whole(x) / 2)


@pytest.mark.parametrize(("name", "path"), [("bloom", "transformer.h.1.mlp"), ("mpt", "transformer.blocks.1.ffn")])
def test_the_residual_is_added_whole(name, path):
    model = dense(name)
    made = to_mix_moe(model, Conversion(scale="none"))
    x, residual = torch.randn(2, 1, 5, 16)
    torch.testing.assert_close(
        made.get_submodule(path)(x, residual) - residual, (model.get_submodule(path)(x, residual) - residual) / 2
    )


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_dropout_before_the_residual_is_the_dense_models(name):
    model = dense(name)
    made, found = to_mix_moe(model, Conversion()), []
    for one in (model, made):
        for module in one.modules():
            if hasattr(module, "hidden_dropout"):
                module.hidden_dropout = 0.5
        torch.manual_seed(0)
        found.append(logits(one.train()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], logits(model.eval()), atol=0.1), "it drops nothing"


def test_chosen_layers_alone_are_converted_and_everything_else_keeps_its_bits():
    model = dense()
    made = to_mix_moe(model, Conversion(layers=(1,)))
    assert [x.layer_id for x in moe_layers(made)] == [1]
    state = made.state_dict()
    kept = {n for n in model.state_dict() if not n.startswith("model.layers.1.mlp")}
    assert kept and all(torch.equal(state[n], model.state_dict()[n]) for n in kept)


def test_seeds_share_no_draw():
    """Not even shifted by a layer."""
    drawn = [
        layer.mlp.experts.down_proj[2:].flatten().tolist() + layer.mlp.router.weight[2:].flatten().tolist()
        for seed in (0, 1, 2)
        for layer in to_mix_moe(tiny("llama"), Conversion(seed=seed)).model.layers
    ]
    assert len({tuple(x) for x in drawn}) == len(drawn) == 9


def test_gate_is_found_whatever_it_is_called():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(16, 32)
            self.back, self.bend = nn.Linear(32, 16), nn.SiLU()

        def forward(self, x):
            return self.back(self.bend(self.two(x)) * self.one(x))

    class Function(Odd):
        def __init__(self):
            super().__init__()
            del self.bend

        def forward(self, x):
            return self.back(nn.functional.elu(self.two(x), alpha=3.0) * self.one(x))

    class Other(Odd):
        def forward(self, x):
            return self.back(self.bend(self.two(x)) + self.one(x))

    class Needy(Odd):
        def forward(self, x, layer=None):
            return [self.back(x)][layer]

    model = dense()
    for kind in (Odd, Function, Other, Needy):
        model.model.layers[0].mlp = kind()
        ffn = feed_forwards(model)[0]
        if kind in (Odd, Function):
            gate, up = gate_first(ffn)
            assert gate[0] is ffn.holder.two.weight and up[1] is ffn.holder.one.bias
            continue
        with pytest.raises(ModelError, match="neither of one and two is a gate"):
            gate_first(ffn)


# A model like any other


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt_neox", "opt", "lfm2", *ODD])
def test_saved_and_loaded_through_auto_classes(name, tmp_path):
    made = mixed(name, transform="random")
    made.save_pretrained(tmp_path)
    loaded = open_model(str(tmp_path), device="cpu")
    assert type(loaded) is type(made)
    assert torch.equal(logits(loaded), logits(made))
    dragoman.register()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(made))
    assert settings_of(loaded) == settings_of(made)
    assert [x.num_experts for x in moe_layers(outline(str(tmp_path)))] == [4] * 3


@pytest.mark.parametrize("name", ["llama", *ODD])
def test_generation_with_caches_is_that_without(name):
    made = mixed(name)
    wanted = made.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=False)
    for cache in ("dynamic", "static"):
        new = made.generate(IDS, max_new_tokens=12, do_sample=False, cache_implementation=cache)
        assert torch.equal(new, wanted), cache


@pytest.mark.parametrize("name", ["llama", *ODD])
def test_left_padded_batch_is_that_of_single_texts(name):
    made = mixed(name)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), IDS[:1, :18]], dim=1)
    mask = (torch.arange(24) >= 6).long()[None]
    place = (mask.cumsum(1) - 1).clamp(min=0)
    both = torch.cat([padded, IDS[1:]])
    inputs = {"attention_mask": torch.cat([mask, torch.ones(1, 24, dtype=torch.long)])}
    inputs["position_ids"] = torch.cat([place, torch.arange(24)[None]])
    found = logits(made, both, **inputs)
    torch.testing.assert_close(found[0, 6:], logits(made, IDS[:1, :18])[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], logits(made, IDS[1:])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama with biases", "opt", *ODD])
def test_experts_agree_under_every_implementation(name):
    made = mixed(name)
    found = {}
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        made.set_experts_implementation(implementation)
        found[implementation] = logits(made)
    for other in ("grouped_mm", "batched_mm"):
        torch.testing.assert_close(found[other], found["eager"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", *ODD])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    made = mixed(name)
    plain = copy.deepcopy(made)
    made.gradient_checkpointing_enable()
    for model in (made.train(), plain.train()):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    for (name, a), b in zip(made.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_router_is_float32_inside_a_bfloat16_model_and_under_autocast():
    made = mixed()
    half = copy.deepcopy(made).to(torch.bfloat16)
    assert all(one.logits_TE.dtype == torch.float32 for one in routed(half))
    assert (logits(half).float() - logits(made)).abs().max() < 0.2 * logits(made).abs().max()
    router, x = moe_layers(made)[0].router, torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = router(x)[0]
    assert torch.equal(inside, router(x)[0])


@pytest.mark.parametrize("name", ["llama", "opt", *ODD])
def test_router_logits_are_returned_where_they_are_asked_for(name):
    made = mixed(name)
    wanted = [one.logits_TE for one in routed(made)]
    with torch.no_grad():
        output = made(IDS, output_router_logits=True)
    assert len(output.router_logits) == 3 and all(map(torch.equal, output.router_logits, wanted))
    assert torch.equal(output.logits, logits(made)) and "router_logits" not in made(IDS)
    assert len(made(IDS, output_router_logits=True, return_dict=False)[-1]) == 3
    made.config.output_router_logits = True
    assert len(made(IDS, labels=IDS).router_logits) == 3
    assert made.generate(IDS, max_new_tokens=3, do_sample=False).shape == (2, 27)


@pytest.mark.parametrize("name", ["llama", *ODD])
def test_capture_sees_it_as_any_mixture(name):
    made = mixed(name)
    trace = dragoman.capture(made, {"en": SAMPLE, "de": SAMPLE[::-1]}, start_id=1)
    assert trace.chosen_GLE.shape == (2, 3, 4)
    assert (trace.chosen_GLE.sum(-1) == trace.chosen_GLE.sum(-1)[0, 0]).all()


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    made = mixed()
    made.set_experts_implementation("grouped_mm")
    block = made.model.layers[0].mlp
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_smollm2_keeps_its_logits_and_its_words(tmp_path, monkeypatch):
    """Real weights: the fetched model, converted, saved and opened, goes on with the same sentence."""
    from dragoman.commands.models import fetch
    from dragoman.modeling import open_both, save_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetch("smollm2", accept_licence=True, quiet=True)
    model, codec = open_both("smollm2", device="cpu")
    save_model(to_mix_moe(model, Conversion()), codec, tmp_path / "mix")
    made = open_model(str(tmp_path / "mix"), device="cpu")
    ids = torch.tensor([[codec.start_id, *codec.encode(["The capital of France is"])[0]]])
    wanted = logits(model, ids)
    assert (logits(made, ids) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert "Paris" in codec.decode(made.generate(ids, max_new_tokens=8, do_sample=False)[0])


# Slices


def test_balanced_slices_find_planted_groups():
    generator = torch.Generator().manual_seed(0)
    group_F = torch.randperm(12, generator=generator) % 3
    topic_T = torch.arange(60) % 3
    active_TF = (topic_T[:, None] == group_F[None]).float()
    flips = torch.rand(60, 12, generator=generator) < 0.1
    found = balanced((active_TF - flips.float()).abs(), 3)
    planted = [tuple((group_F == g).nonzero()[:, 0].tolist()) for g in range(3)]
    assert sorted(map(tuple, found.tolist())) == sorted(planted)


def test_balanced_slices_are_a_parting_in_equal_parts():
    found = balanced(torch.zeros(4, 8), 4)  # neurons that are never active
    assert found.shape == (4, 2) and sorted(found.flatten().tolist()) == list(range(8))


# Bad input


def refused(error, match, of=None, **conversion):
    with pytest.raises(error, match=match):
        to_mix_moe(of or dense(), Conversion(**conversion))


def test_what_cannot_be_converted_is_a_sentence():
    refused(ModelError, "32 neurons wide, which 3 experts cannot share evenly", experts=3, top_k=3)
    refused(ConfigError, r"layers \[7, 9\] cannot be .* LlamaForCausalLM has .* in layers 0 to 2", layers=(0, 7, 9))
    refused(ConfigError, "balanced slices need sample text", slices="balanced")
    refused(ConfigError, "scale is preserve, none, not 'twice'", scale="twice")
    refused(ConfigError, "top-k 2 takes some of 4: take a top-k of 4, or scale none", experts=4)
    refused(ConfigError, "layers 1 are named twice", layers=(1, 0, 1))
    refused(ConfigError, "no effect without a transform", transform="none", parts="mag+phase")
    refused(ConfigError, "selection group takes one expert of each group", selection="group", top_k=3)
    refused(ConfigError, "transform is fft, dct, random, none, not 'wavelet'", transform="wavelet")
    with pytest.raises(ModelError, match="OlmoeForCausalLM is a Mixture-of-Experts model already"):
        to_mix_moe(tiny("olmoe"), Conversion())
    with pytest.raises(ModelError, match="no feed-forward was found in LlamaForCausalLM"):
        to_mix_moe(dense(intermediate_size=16), Conversion())
    with pytest.raises(ModelError, match="LlamaForCausalLM is no Mix-MoE model"):
        settings_of(dense())


def test_a_model_that_trains_with_dropout_is_converted_as_without():
    model = tiny("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    made = to_mix_moe(model, Conversion())
    assert model.training and not made.training
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, model.eval()(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_does_more_than_its_maps_is_a_sentence():
    slow = tiny("bloom", pretraining_tp=2, slow_but_exact=True)  # reads the weights of its second map, not its bias
    skipping, twice = dense("gpt_neox"), dense()
    skipping.gpt_neox.layers[0].mlp.forward = lambda x: x
    twice.model.layers[1].other = copy.deepcopy(twice.model.layers[1].mlp)
    for model, said in (
        (slow, r"no feed-forward was found in BloomForCausalLM: .* run one after the other"),
        (tiny("bitnet"), r"model\.layers\.0\.mlp is no gated feed-forward"),  # norm before the last map
        (skipping, r"gpt_neox\.layers\.0\.mlp is no plain feed-forward: dense_h_to_4h, its activation"),
        (twice, r"LlamaForCausalLM has several feed-forwards in each of the layers \[1\]"),
    ):
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(ModelError, match=said):
            to_mix_moe(model, Conversion())
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items()), "left as it was"


def test_saved_model_with_an_unknown_feature_is_refused(tmp_path):
    mixed().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["mix_moe"]["transform"] = "wavelet"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'wavelet'; this version of dragoman knows fft, dct, random, none"):
        open_model(str(tmp_path))
    config["mix_moe"] |= {"transform": "fft", "window": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the settings window, which this version of dragoman does not know"):
        open_model(str(tmp_path))
    del config["mix_moe"]["window"]
    for change, said in (
        ({"layers": None}, "in layers None, with translation experts"),
        ({"translation": [2]}, r"in layers \[0, 1, 2\], with translation experts \[2\]: its config is damaged"),
        ({"experts": 0, "stage": 3}, "have experts 0, top_k 2, stage 3: the config is damaged"),
        ({"top_k": 9}, "have top_k 9: the config is damaged"),
        ({"masked": "no"}, "masked 'no'"),
        ({"layers": [0, 0, 1]}, r"have layers \(0, 0, 1\)"),
        ({"layers": [0, 1]}, "no weights for .* tensors of MixMoELlamaForCausalLM"),
        ({"layers": [0, 9]}, r"has blocks in layers \[9\], which it does not have itself"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {"mix_moe": config["mix_moe"] | change}))
        with pytest.raises(ModelError, match=said):
            open_model(str(tmp_path))
