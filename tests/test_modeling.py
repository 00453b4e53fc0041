"""Probing of MoE parts, on families that lay them out differently; opening; text formats.

Every architecture of transformers is in test_architectures.py.
"""

import copy
import json

import pytest
import torch

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import (
    TextCodec,
    active_parameters,
    copy_tag,
    model_checksum,
    moe_layers,
    open_model,
    open_tokenizer,
    opening,
    outline,
    parameter_counts,
    router_kind,
    router_probabilities,
    save_model,
    state_checksum,
    stored_bytes,
    tap_routers,
    why_not_tunable,
)
from dragoman.modeling.codec import widened
from dragoman.routing.capture import capture
from tests.architectures import build
from tests.models import FAMILIES, dense, tiny, unrecorded
from tests.texts import tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found(family):
    layers = moe_layers(tiny(family))
    first = 1 if "first_k_dense_replace" in FAMILIES[family] else 0
    assert [x.layer_id for x in layers] == list(range(first, 3)), "a leading dense layer is no MoE layer"
    assert {(x.num_experts, x.top_k) for x in layers} == {(8, 2)}


@pytest.mark.parametrize(("family", "experts"), [*((f, 8) for f in FAMILIES), ("deepseek_v3", 16), ("qwen2_moe", 16)])
def test_routers_that_nothing_records_are_found_beside_their_experts(family, experts):
    """As transformers before 5.19 has DeepSeek-V3. With 16, shared experts return a row as long as the scores."""
    model = tiny(family, **{n: experts for n, value in FAMILIES[family].items() if n.endswith("experts") and value > 1})
    expected = moe_layers(model)
    assert {x.num_experts for x in expected} == {experts}
    assert moe_layers(unrecorded(model)) == expected


def test_what_only_looks_like_a_router_is_none():
    """Beside stacks: a map to another width, a bare one, and two that score alike, of which none is taken."""
    model = unrecorded(tiny("olmoe"))
    for layer in model.model.layers:
        layer.mlp.gate = torch.nn.Linear(16, 8)
        layer.mlp.other = torch.nn.Sequential(torch.nn.Linear(16, 9))
    with pytest.raises(ModelError, match="none that scores the experts it stands beside"):
        moe_layers(model)
    for layer in model.model.layers:
        layer.mlp.gate, layer.mlp.other = (torch.nn.Sequential(torch.nn.Linear(16, 8)) for _ in range(2))
    with pytest.raises(ModelError, match="none that scores the experts it stands beside"):
        moe_layers(model)
    for layer in model.model.layers:
        del layer.mlp.other
    assert [x.router for x in moe_layers(model)] == [layer.mlp.gate for layer in model.model.layers]


def test_the_router_of_a_recorded_block_is_the_module_that_scores():
    """Llama 4 of transformers 5.17 records its blocks: whatever trained the router trained its shared expert, too."""
    model = build("llama4_text")
    expected = moe_layers(model)
    record = type("Recorder", (), {"target_class": type(model.model.layers[0].feed_forward), "index": 1})()
    unrecorded(model).model._can_record_outputs = {"router_logits": record}
    assert moe_layers(model) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_tapped_selections_are_those_the_experts_receive(family):
    """Oracle: what arrives at the experts module, seen by a hook that knows nothing of routers."""
    model, ids = tiny(family), torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    layers = moe_layers(model)
    received = []
    handles = [
        x.experts.register_forward_pre_hook(lambda m, args, kw: received.append((args, kw)), with_kwargs=True)
        for x in layers
    ]
    with torch.no_grad(), tap_routers(model, layers) as seen:
        model(ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(received) == len(layers)
    for routed, (args, kw) in zip(seen, received, strict=True):
        indices = next(t for t in [*args, *kw.values()] if not t.is_floating_point())
        assert torch.equal(routed.indices_TK, indices.reshape(-1, 2))
        assert routed.logits_TE.shape == (48, 8)
        weights = next(t for t in [*args, *kw.values()] if t.is_floating_point() and t.shape[-1] == 2)
        torch.testing.assert_close(routed.weights_TK.float(), weights.reshape(-1, 2).float())


def test_a_correction_bias_changes_selections_and_the_tap_sees_it():
    """With a large bias on expert 5 a sigmoid router always chooses it; its logits do not show that."""
    model = tiny("deepseek_v3", n_group=1)
    layers = moe_layers(model)
    for layer in layers:
        layer.router.e_score_correction_bias[5] = 100.0
    with torch.no_grad(), tap_routers(model, layers) as seen:
        model(torch.randint(3, 64, (4, 12)))
    assert all((r.indices_TK == 5).any(-1).all() for r in seen)
    assert not all((r.logits_TE.topk(2).indices == 5).any(-1).all() for r in seen)


def test_hooks_are_removed_also_after_an_error():
    model = tiny("olmoe")
    layers = moe_layers(model)
    with pytest.raises(RuntimeError, match="stop"), tap_routers(model, layers):
        raise RuntimeError("stop")
    assert not any(x.router._forward_hooks for x in layers)


def test_a_dense_model_is_refused():
    with pytest.raises(ModelError, match="LlamaForCausalLM has no Mixture-of-Experts layers"):
        moe_layers(dense())


def test_probabilities_are_told_from_logits():
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])
    torch.testing.assert_close(router_probabilities(logits), logits.softmax(-1))
    torch.testing.assert_close(router_probabilities(logits.softmax(-1)), logits.softmax(-1))


def test_parameters_by_group_by_hand():
    groups = parameter_counts(tiny("olmoe", tie_word_embeddings=True))
    assert groups["routed experts"] == 3 * 8 * 3 * 8 * 16  # layers, experts, three matrices of 8 x 16
    assert groups["router"] == 3 * 8 * 16
    assert groups["embeddings"] == 64 * 16


def test_active_parameters_by_hand():
    model = tiny("olmoe")
    counts = parameter_counts(model)
    assert active_parameters(model, counts) == sum(counts.values()) - counts["routed experts"] * 6 / 8, "2 of 8 chosen"
    assert active_parameters(dense(), parameter_counts(dense())) == sum(p.numel() for p in dense().parameters())


def test_shared_experts_and_attention_are_told_apart():
    counts = parameter_counts(tiny("qwen2_moe"))
    assert counts["shared experts"] == 3 * (3 * 8 * 16 + 16)  # layers, three matrices, the gate of the shared expert
    assert counts["attention"] == 3 * (4 * 16 * 16 + 3 * 16)  # four square maps, three of them with a bias


@pytest.mark.parametrize(
    ("family", "changes", "kind"),
    [
        ("olmoe", {}, ("softmax",)),
        ("deepseek_v3", {}, ("sigmoid", "bias-corrected", "grouped")),
        ("deepseek_v3", {"n_group": 1}, ("sigmoid", "bias-corrected")),
        ("glm4_moe", {}, ("sigmoid", "bias-corrected")),
    ],
)
def test_kinds_of_routers(family, changes, kind):
    model = tiny(family, **changes)
    assert {router_kind(model, layer) for layer in moe_layers(model)} == {kind}


def test_the_kind_does_not_depend_on_weights_or_random_state():
    model = tiny("deepseek_v3")
    for layer in moe_layers(model):
        layer.router.e_score_correction_bias[5] = 100.0
    state = torch.get_rng_state()
    assert router_kind(model, moe_layers(model)[0]) == ("sigmoid", "bias-corrected", "grouped")
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_of_experts_may_differ_over_layers():
    model, smaller = tiny("olmoe"), tiny("olmoe", num_experts=5, num_experts_per_tok=1)
    model.model.layers[1].mlp = copy.deepcopy(smaller.model.layers[1].mlp)
    assert [(x.num_experts, x.top_k) for x in moe_layers(model)] == [(8, 2), (5, 1), (8, 2)]
    trace = capture(model, {"en": [[5, 6, 7]]}, start_id=1)
    assert trace.chosen_GLE.sum(-1).tolist() == [[6, 3, 6]]
    assert not trace.chosen_GLE[:, 1, 5:].any()


def test_experts_in_a_list_of_modules_are_found():
    class Router(torch.nn.Linear):
        def forward(self, hidden):
            weights, indices = super().forward(hidden).softmax(-1).topk(2)
            return super().forward(hidden), weights, indices

    model = tiny("olmoe")
    for layer in model.model.layers:
        layer.mlp = torch.nn.Module()
        layer.mlp.gate = Router(16, 6)
        layer.mlp.experts = torch.nn.ModuleList([torch.nn.Linear(16, 16) for _ in range(6)])
    model._can_record_outputs = {"router_logits": type("Recorder", (), {"target_class": Router, "index": 0})()}
    layers = moe_layers(model)
    assert [(x.num_experts, x.top_k, len(x.experts)) for x in layers] == [(6, 2, 6)] * 3
    assert "not stacked" in why_not_tunable(layers)
    assert parameter_counts(model)["routed experts"] == 3 * 6 * (16 * 16 + 16)


def test_several_routers_in_a_layer_are_several_rows():
    layers = moe_layers(build("jetmoe"))
    assert [x.layer_id for x in layers] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({x.name for x in layers}) == len(layers)
    assert "layers [0, 1, 2, 3] have several routers each" in why_not_tunable(layers)


def test_what_skips_is_a_column():
    layers = moe_layers(build("zaya"))
    assert {(x.num_experts, x.num_skips) for x in layers} == {(9, 1)}


def test_a_router_that_cannot_be_read_is_refused():
    model = tiny("olmoe")
    layers = moe_layers(model)
    layers[1].router.register_forward_hook(lambda module, inputs, output: (output[0], output[1], output[1]))
    layers[1].experts.forward = lambda hidden, *rest: hidden
    with (
        pytest.raises(
            ModelError, match=r"router of layer 1 .*layers.1.mlp.* returned torch.float32 .*looked for integer"
        ),
        torch.no_grad(),
        tap_routers(model, layers),
    ):
        model(torch.tensor([[3, 4, 5]]))


def test_an_outline_needs_the_config_alone(tmp_path):
    model = tiny("deepseek_v3", tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    empty = outline(str(tmp_path))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert parameter_counts(empty) == parameter_counts(model)
    assert stored_bytes(str(tmp_path)) is None
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 1234}, "weight_map": {}}')
    assert stored_bytes(str(tmp_path)) == 1234
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"by": "a merge"}, "weight_map": {}}')
    assert stored_bytes(str(tmp_path)) is None


def test_an_unknown_architecture_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match=r"cannot outline the model .*nonesuch"):
        outline(str(tmp_path))


def test_round_trip_keeps_bits_and_ties(tmp_path):
    codec = TextCodec(tokenizer())
    model = tiny("olmoe", vocab_size=len(codec.tokenizer), tie_word_embeddings=True)
    save_model(model, codec, tmp_path / "m", dtype="bfloat16")
    again = open_model(str(tmp_path / "m"), device="cpu")
    with pytest.raises(ConfigError, match=r"the device 'gpu' cannot be used \(.*\); give cpu, or cuda where a GPU is"):
        open_model(str(tmp_path / "m"), device="gpu")
    kept = {n: t.bfloat16().float() for n, t in model.state_dict().items()}
    assert all(torch.equal(t, kept[n]) for n, t in again.state_dict().items())
    size = sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    assert size < 2 * sum(p.numel() for p in model.parameters()) + 20_000, "tied weights are stored once"
    assert open_tokenizer(str(tmp_path / "m")).encode(["hello"]) == codec.encode(["hello"])
    assert model_checksum(str(tmp_path / "m")) == model_checksum(str(tmp_path / "m"))


def test_a_checksum_is_of_single_numbers_too():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("beta", torch.tensor(0.5))
    before = state_checksum(module)
    module.beta += 1
    assert state_checksum(module) != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no config.json in it; give a folder"),
        ("a/b/c", "no config.json in it"),
    ],
)
def test_missing_models_are_one_sentence(name, message):
    with pytest.raises(ModelError, match=message):
        open_model(name)


def test_the_folder_of_a_run_is_no_model(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match=r"there is no .*/run/model: the run of .*/run has made no model"):
        open_model(str(tmp_path / "run" / "model"))
    save_model(tiny("olmoe"), TextCodec(tokenizer()), tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")  # what a run goes on by
    for opened in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match=r"is the folder of a run; its model is .*/run/model"):
            opened(str(tmp_path / "run"))


def test_weights_that_are_not_there_are_not_made_up(tmp_path):
    tiny("olmoe").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1}))
    with pytest.raises(ModelError, match=r"no weights for \d+ tensors of OlmoeForCausalLM, as model\.layers\."):
        open_model(str(tmp_path))


def test_broken_weights_are_one_sentence(tmp_path):
    save_model(tiny("olmoe"), TextCodec(tokenizer()), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="cannot load the model"):
        open_model(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("You are trying to access a gated repo.\nMake sure", r"gated repo\. Ask for access at .*/a/b, .*HF_TOKEN"),
        ("We couldn't connect to 'https' to load the files\nsee", r"couldn't connect .* `hf download a/b`; HF_HOME"),
    ],
)
def test_a_hub_that_refuses_or_is_not_there_is_told_with_a_way_out(monkeypatch, said, way_out):
    def fails(*_, **__):
        raise OSError(said)

    monkeypatch.setattr(opening.PreTrainedConfig, "get_config_dict", fails)
    for opened in (open_model, open_tokenizer, outline):
        with pytest.raises(ModelError, match=way_out):
            opened("a/b")


def test_code_that_comes_with_a_model_is_not_run_nor_asked_for(tmp_path, monkeypatch):
    """transformers would ask on the terminal, and run it after a yes."""
    model = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": model}))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for opened in (open_model, outline):
        with pytest.raises(ModelError, match="Code that comes with a model is never run"):
            opened(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_tag_widens_within_its_script():
    assert widened("ca-ES-valencia") == ["ca-ES-valencia", "ca-ES", "ca"]
    assert widened("de-DE-u-co-phonebk") == ["de-DE-u-co-phonebk", "de-DE-u-co", "de-DE", "de"]
    assert widened("zh-CN") == ["zh-CN", "zh"]
    assert widened("zh-Hans-SG") == ["zh-Hans-SG", "zh-Hans", "zh"]
    for alone in ("zh-TW", "zh-Hant", "sr-Latn", "en"):
        assert widened(alone) == [alone]
    assert widened("sr-Latn-RS") == ["sr-Latn-RS", "sr-Latn"]


class TestTextCodec:
    codec = TextCodec(tokenizer())

    def test_text_that_looks_like_a_tag_stays_text(self):
        (ids,) = self.codec.encode(["say <de> and </s>"])
        assert self.codec.tag_id("de") not in ids
        assert self.codec.end_id not in ids
        assert self.codec.decode(ids) == "say <de> and </s>"

    def test_tagged_pair(self):
        ((ids, prompt),) = self.codec.pairs(["one"], ["eins"], "en", "de", {})
        tags = [self.codec.tag_id(g) for g in ("en", "de")]
        (source, target) = self.codec.encode(["one", "eins"])
        assert ids == [self.codec.start_id, tags[0], *source, tags[1], *target, self.codec.end_id]
        assert prompt == len(source) + 3

    def test_languages_without_tags_get_a_written_prompt(self):
        ((ids, prompt),) = self.codec.pairs(["one"], ["jedna"], "en", "xx", {"en": "English", "xx": "Exxish"})
        assert self.codec.decode(ids) == "English: one\nExxish: jedna"
        assert self.codec.decode(ids[:prompt]) == "English: one\nExxish:"

    def test_a_regional_tag_stands_behind_the_tag_of_its_language(self):
        for tag in ("de-AT", "de-CH-1996", "de-DE-u-co-phonebk"):
            assert self.codec.tag_id(tag) == self.codec.tag_id("de"), tag
        assert self.codec.tag_id("de-Cyrl") is None
        assert self.codec.tag_id("xx-DE") is None

    def test_unicode_survives(self):
        text = "Ελληνικά 日本語 ñ 👍"
        assert self.codec.decode(self.codec.encode([text])[0]) == text


def test_a_new_tag_starts_as_its_parent():
    codec = TextCodec(tokenizer())
    model = tiny("olmoe", vocab_size=len(codec.tokenizer))
    assert copy_tag(model, codec, "es", "ca")
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[codec.tag_id("ca")], embedding[codec.tag_id("es")])
    assert not copy_tag(model, codec, "es", "xx")
    before = embedding.clone()
    assert not copy_tag(model, codec, "ca", "es-MX"), "it would overwrite <es>"
    assert torch.equal(embedding, before)
    assert copy_tag(model, codec, "de-AT", "ca"), "a parent may be one that is stood in for"
