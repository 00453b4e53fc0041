"""The router of Mix-MoE blocks: it looks at no later token, its features are what they say, and it learns."""

import pytest
import torch
from scipy.fft import dct

from dragoman.modeling import moe_layers
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import masking, settings_of
from dragoman.modeling.mix_router import MixRouter, Settings, cosine_transform
from tests.modeling.mix_models import IDS, dense, logits, mixed, routed


@pytest.mark.parametrize("transform", ["fft", "dct", "random", "none"])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_no_logit_depends_on_later_tokens(name, transform):
    made = mixed(name, transform=transform)
    changed = IDS.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 60 + 3
    torch.testing.assert_close(logits(made)[:, :12], logits(made, changed)[:, :12], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(made)[:, 12:], logits(made, changed)[:, 12:], atol=1e-2)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_cosine_transform_is_scipys(size):
    x = torch.randn(3, size)
    wanted = torch.from_numpy(dct(x.double().numpy(), norm="ortho"))
    torch.testing.assert_close(cosine_transform(x).double(), wanted, rtol=1e-5, atol=1e-5)


def test_spectrum_by_hand():
    """A constant has its first coefficient alone; a wave of two periods its third."""
    router = MixRouter(8, Settings(layers=(0,), compress=False), 2)
    constant, wave = torch.ones(8), torch.cos(2 * torch.pi * 2 * torch.arange(8) / 8)
    (size_TX,) = router.features(torch.stack([constant, wave]))
    wanted = torch.tensor([[8**0.5, 0, 0, 0, 0], [0, 0, 2**0.5, 0, 0]])  # orthonormal: 8 / sqrt 8, 4 / sqrt 8
    torch.testing.assert_close(size_TX, wanted, atol=1e-5, rtol=1e-5)
    both = MixRouter(8, Settings(layers=(0,), compress=False, parts="mag+phase"), 2)
    phase_TX = both.features(-constant[None])[1]
    assert phase_TX[0, 0].abs() == 1, "minus one is half a turn"


WIDTHS = {("fft", "mag"): 9, ("fft", "mag+phase"): 18, ("fft", "real+imag"): 18, ("random", "mag"): 9}
WIDTHS |= {("dct", "mag"): 16, ("dct", "mag+phase"): 32, ("dct", "real+imag"): 16, ("none", "mag"): 0}


@pytest.mark.parametrize(("transform", "parts"), WIDTHS)
def test_every_feature_enters_the_router_and_trains(transform, parts):
    made = mixed(transform=transform, parts=parts)
    router = moe_layers(made)[0].router
    assert router.weight.shape == (4, 16 + WIDTHS[transform, parts])
    made(IDS, labels=IDS).loss.backward()
    assert router.weight.grad.isfinite().all() and router.weight.grad.abs().sum(0).gt(0).float().mean() > 0.9
    router.zero_grad()
    router(torch.zeros(3, 16, requires_grad=True))[1].sum().backward()
    assert router.weight.grad.isfinite().all(), "a state of zeros has no direction, and still a gradient"


def test_selection_over_all_and_by_group():
    both, group = mixed(), mixed(selection="group")
    for one in routed(both):
        assert torch.equal(one.indices_TK, one.logits_TE.topk(2).indices)
        torch.testing.assert_close(one.weights_TK, one.logits_TE.topk(2).values.softmax(-1))
    for one in routed(group):
        best = [one.logits_TE[:, :2].argmax(-1), 2 + one.logits_TE[:, 2:].argmax(-1)]
        assert torch.equal(one.indices_TK, torch.stack(best, -1))
        torch.testing.assert_close(one.weights_TK.sum(-1), torch.ones(48))


@pytest.mark.parametrize("choice", [{"selection": "group"}, {"experts": 4, "top_k": 1, "scale": "none"}])
def test_the_router_learns_from_text_however_experts_are_chosen(choice):
    made = to_mix_moe(dense(), Conversion(**choice))
    router, count = moe_layers(made)[0].router, choice.get("experts", 2)
    made(IDS, labels=IDS).loss.backward()
    assert (router.weight.grad[:count].abs().sum(-1) > 0).all(), "stage 1"
    router.zero_grad()
    with masking(made, False):
        made(IDS, labels=IDS).loss.backward()
    assert router.weight.grad.abs().sum() > 0, "stage 2"


def test_a_single_chosen_expert_is_weighed_by_its_share_of_all():
    made = mixed(experts=4, top_k=1, scale="none")
    for one in routed(made):
        torch.testing.assert_close(one.weights_TK, one.logits_TE.softmax(-1).amax(-1, keepdim=True))


def test_translation_experts_share_the_first_tokens_of_stage_2():
    """With equal rows of the router each token would take the first of them."""
    made = to_mix_moe(dense(), Conversion())
    with masking(made, False):
        for one in routed(made):
            assert set(one.indices_TK[one.indices_TK >= 2].tolist()) == {2, 3}


def test_masked_experts_get_nothing_and_change_nothing():
    made = mixed(masked=True)
    before = logits(made)
    assert all((one.indices_TK < 2).all() and one.logits_TE[:, 2:].isneginf().all() for one in routed(made))
    for layer in moe_layers(made):
        layer.experts.down_proj.data[2:] += 1
    assert torch.equal(logits(made), before)
    with masking(made, False):
        assert not torch.allclose(logits(made), before, atol=1e-3)
    assert settings_of(made).masked and torch.equal(logits(made), before)
