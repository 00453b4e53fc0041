"""Logits of chosen tokens are those of the whole pass."""

import pytest
import torch

from dragoman.modeling import logits_at
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
