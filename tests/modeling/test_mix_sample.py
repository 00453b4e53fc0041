"""The sample text by which balanced slices of a feed-forward are made, and weights of which none are made."""

import pytest
import torch

from dragoman.errors import ModelError
from dragoman.modeling import mix_conversion, upcycle
from dragoman.modeling.feed_forwards import feed_forwards
from dragoman.modeling.mix_conversion import ACTIVE_SHARE, Conversion, balanced, first_texts, to_mix_moe
from tests.modeling.mix_models import IDS, SAMPLE, dense


def test_activity_is_kept_as_flags_and_gives_the_groups_of_numbers():
    model, inner = dense(), []
    chosen = feed_forwards(model)
    found = mix_conversion._activity(model, chosen, SAMPLE)
    assert [flags_TF.dtype for flags_TF in found] == [torch.bool] * 3
    assert all(flags_TF.shape == (IDS.numel(), 32) for flags_TF in found)
    for flags_TF in found:
        assert (flags_TF.sum(-1) == round(ACTIVE_SHARE * 32)).all(), "as many of every token"
        assert torch.equal(balanced(flags_TF, 2), balanced(flags_TF.float(), 2))
    hook = getattr(chosen[1].holder, chosen[1].down).register_forward_pre_hook(lambda _m, args: inner.append(args[0]))
    with torch.no_grad():
        model(IDS[:1])
    hook.remove()
    sizes_F = inner[0][0, 5].abs()
    assert set(found[1][5].nonzero()[:, 0].tolist()) == set(sizes_F.topk(round(ACTIVE_SHARE * 32)).indices.tolist())


def test_a_sample_ends_where_enough_tokens_are_read(monkeypatch):
    monkeypatch.setattr(mix_conversion, "SAMPLE_TOKENS", 5)
    texts = [[1, 2], [3, 4], [5, 6, 7], [8]]
    assert first_texts(texts) == texts[:3] and first_texts(texts[:2]) == texts[:2] and first_texts(()) == []


def test_quantised_weights_become_no_experts():
    model = dense()
    model.config.quantization_config = {"quant_method": "fp8"}
    for make in (lambda: to_mix_moe(model, Conversion()), lambda: upcycle(model, 4, 2)):
        with pytest.raises(ModelError, match=r"of LlamaForCausalLM are quantised \(fp8\), .* take the original"):
            make()
