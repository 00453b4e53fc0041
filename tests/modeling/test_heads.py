"""Logits of chosen tokens are those of the whole pass; which models have a plain head."""

import pytest
import torch

from dragoman.modeling import logits_at, plain_head
from tests.models import FAMILIES, tiny


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "cohere", "gpt2"])
def test_logits_are_those_of_the_whole_pass_and_no_others_are_computed(family):
    model = tiny(family)
    ids = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    places = torch.tensor([2, 5, 6, 19])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        sizes = []
        hook = model.get_output_embeddings().register_forward_hook(lambda _m, _given, out: sizes.append(out.shape))
        found = logits_at(model, places, input_ids=ids)
        hook.remove()
        after = model(input_ids=ids).logits
    torch.testing.assert_close(found, whole.flatten(0, 1)[places], rtol=1e-5, atol=1e-6)
    assert sizes == [(1, 4, whole.shape[-1])]
    assert torch.equal(after, whole), "nothing stays behind"


def test_a_model_whose_head_cannot_be_told_apart_gives_the_same():
    model, places = tiny("olmoe"), torch.tensor([0, 8])
    ids = torch.arange(3, 12).reshape(3, 3)
    expected = logits_at(model, places, input_ids=ids)
    model.get_output_embeddings = lambda: None
    torch.testing.assert_close(logits_at(model, places, input_ids=ids), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "llama", "gpt2", "qwen3"])
def test_a_plain_head_and_states_are_the_logits(family):
    model = tiny(family)
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    head = plain_head(model)
    with torch.no_grad():
        found = head.linear(head.states({"input_ids": ids}))
        torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-6, atol=1e-6)
    modules = [model, *model.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules), "nothing stays behind"


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 30.0}),  # tanh of the logits
        ("cohere", {"logit_scale": 0.5}),  # logits, multiplied
        ("granitemoe", {"logits_scaling": 4.0}),  # logits, divided
        ("minicpm3", {"dim_model_base": 4}),  # states, divided
    ],
)
def test_what_is_done_to_logits_or_states_is_seen_however_small_they_are(family, changes):
    model = tiny(family, **changes)
    model.get_output_embeddings().weight.data.mul_(1e-6)
    assert plain_head(model) is None


def test_a_head_that_is_no_plain_matrix_is_seen():
    model = tiny("olmoe", tie_word_embeddings=False)
    assert plain_head(model) is not None
    hook = model.lm_head.register_forward_hook(lambda _module, _given, out: out * 2)
    assert plain_head(model) is None
    hook.remove()
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    assert plain_head(model) is None
