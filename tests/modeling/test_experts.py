"""Stacked experts on a CPU in bfloat16: rows rounded up, and what comes of it."""

import pytest
import torch

from dragoman.modeling import experts as module
from dragoman.modeling import moe_layers, sorted_experts
from dragoman.modeling.experts import by_expert, by_expert_rounded, permuted
from tests.models import tiny

TOKENS, TOP_K = 300, 2


def chosen(num_experts, idle=()):
    """[T, K], unlike numbers of slots, none of `idle`."""
    weight_E = torch.linspace(1.0, 4.0, num_experts)
    weight_E[list(idle)] = 0.0
    return torch.multinomial(weight_E.expand(TOKENS, -1), TOP_K, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("idle", [(), (0,), (2, 3)])
def test_each_experts_slots_stand_in_order_with_filler_behind(idle):
    indices_TK = chosen(4, idle)
    slots_P, back_S, ends_E = by_expert_rounded(indices_TK, 4, 8)
    assert torch.equal(slots_P[back_S], torch.arange(TOKENS * TOP_K))
    start = 0
    for expert, end in enumerate(ends_E.tolist()):
        assert (end - start) % 8 == 0
        own = (indices_TK.flatten() == expert).nonzero().flatten()
        assert slots_P[start:end].tolist() == own.tolist() + [-1] * (end - start - len(own))
        assert end - start - len(own) < 8
        start = end
    assert (slots_P[start:] == -1).all()


def test_a_multiple_of_one_is_the_plain_order():
    indices_TK = chosen(4)
    slots_S, back_S, _, ends_E = by_expert(indices_TK, 4)
    for given, expected in zip(by_expert_rounded(indices_TK, 4, 1), (slots_S, back_S, ends_E), strict=True):
        assert torch.equal(given, expected)


def test_rows_go_there_and_back_and_so_do_gradients():
    """By the definition: each slot's row, and the sum of its slots' gradients; what stands on filler is not read."""
    x_TD = torch.randn(TOKENS, 3, dtype=torch.float64, requires_grad=True)
    slots_P, back_S, _ = by_expert_rounded(chosen(4), 4, 8)
    factor_P = torch.randn(len(slots_P), 1, dtype=torch.float64)
    there_PD = permuted(x_TD, slots_P.clamp(min=0), back_S, TOP_K)
    again_SD = permuted(there_PD * factor_P, back_S, slots_P, 1, filler=True)
    torch.testing.assert_close(again_SD, x_TD.repeat_interleave(TOP_K, 0) * factor_P[back_S])
    asked = torch.randn(TOKENS * TOP_K, 3, dtype=torch.float64)
    again_SD.backward(asked)
    torch.testing.assert_close(x_TD.grad, (asked * factor_P[back_S]).view(TOKENS, TOP_K, 3).sum(1))


def run(experts, layer_weights, bf16, grad=True, tokens=TOKENS):
    """Output and gradients of a stack, within training's own implementation."""
    weights = [experts.gate_up_proj, experts.down_proj]
    x_TD = torch.randn(tokens, weights[0].shape[-1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    gate_TK = torch.rand(tokens, TOP_K, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.set_grad_enabled(grad):
        y_TD = experts(x_TD, layer_weights[:tokens], gate_TK)
    if not grad:
        return (y_TD,)
    return (y_TD, *torch.autograd.grad(y_TD.float().square().sum(), [x_TD, *weights]))


@pytest.mark.parametrize("tokens", [TOKENS, 20])
@pytest.mark.parametrize("family", ["olmoe", "mixtral"])
def test_in_bfloat16_it_is_the_float32_result_but_for_rounding(family, tokens, monkeypatch):
    """With filler where there are rows enough, else without."""
    model = tiny(family)
    layer = moe_layers(model)[0]
    indices_TK = chosen(layer.num_experts, idle=(1,))
    called, rounded = [], module.by_expert_rounded
    monkeypatch.setattr(module, "by_expert_rounded", lambda *given: called.append(given) or rounded(*given))
    monkeypatch.setattr(module, "MULTIPLE", 8)
    with sorted_experts(model):
        found, expected = (run(layer.experts, indices_TK, bf16, tokens=tokens) for bf16 in (True, False))
    assert len(called) == (tokens == TOKENS)
    assert found[0].dtype == expected[0].dtype
    assert not torch.equal(found[0], expected[0]), "computed in another precision"
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours - wanted).norm() < 0.02 * wanted.norm()
    assert not found[2][1].any(), "no token went there"


def test_without_gradients_it_computes_what_it_does_outside_of_training():
    """A base is measured outside and the model in training within, and they are compared."""
    model = tiny("olmoe")
    layer = moe_layers(model)[0]
    indices_TK = chosen(layer.num_experts)
    (outside,) = run(layer.experts, indices_TK, bf16=True, grad=False)
    with sorted_experts(model):
        (within,) = run(layer.experts, indices_TK, bf16=True, grad=False)
    torch.testing.assert_close(within, outside, rtol=1e-5, atol=1e-6)


def test_widths_that_grouped_products_cannot_take_in_bfloat16_stay_in_float32():
    model = tiny("olmoe", intermediate_size=12)
    layer = moe_layers(model)[0]
    with sorted_experts(model):
        found, expected = (run(layer.experts, chosen(layer.num_experts), bf16) for bf16 in (True, False))
    torch.testing.assert_close(found[0], expected[0])
