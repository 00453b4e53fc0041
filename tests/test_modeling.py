"""Probing of MoE parts, on families that lay them out differently; opening; text formats."""

import pytest
import torch

from dragoman.errors import ModelError
from dragoman.modeling import (
    TextCodec,
    copy_tag,
    model_checksum,
    moe_layers,
    open_model,
    open_tokenizer,
    parameter_counts,
    router_probabilities,
    save_model,
    tap_routers,
)
from tests.models import FAMILIES, dense, tiny
from tests.texts import tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found(family):
    layers = moe_layers(tiny(family))
    first = 1 if "first_k_dense_replace" in FAMILIES[family] else 0
    assert [x.layer_id for x in layers] == list(range(first, 3)), "a leading dense layer is no MoE layer"
    assert {(x.num_experts, x.top_k) for x in layers} == {(8, 2)}


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


def test_round_trip_keeps_bits_and_ties(tmp_path):
    codec = TextCodec(tokenizer())
    model = tiny("olmoe", vocab_size=len(codec.tokenizer), tie_word_embeddings=True)
    save_model(model, codec, tmp_path / "m", dtype="bfloat16")
    again = open_model(str(tmp_path / "m"))
    kept = {n: t.bfloat16().float() for n, t in model.state_dict().items()}
    assert all(torch.equal(t, kept[n]) for n, t in again.state_dict().items())
    size = sum(f.stat().st_size for f in (tmp_path / "m").glob("*.safetensors"))
    assert size < 2 * sum(p.numel() for p in model.parameters()) + 20_000, "tied weights are stored once"
    assert open_tokenizer(str(tmp_path / "m")).encode(["hello"]) == codec.encode(["hello"])
    assert model_checksum(str(tmp_path / "m")) == model_checksum(str(tmp_path / "m"))


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


def test_broken_weights_are_one_sentence(tmp_path):
    save_model(tiny("olmoe"), TextCodec(tokenizer()), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(ModelError, match="cannot load the model"):
        open_model(str(tmp_path / "m"))


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
