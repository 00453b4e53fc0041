"""Mix-MoE by hand where the settings are the defaults, and translation experts that start as zero."""

import math

import pytest
import torch

from dragoman.modeling import moe_layers
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_router import MixRouter, Settings
from tests.models import tiny


def test_the_routers_features_by_hand():
    """log(1 + magnitude), then a layer norm: of 1, 0, 2, 0, 0 the mean is 0.6 and the deviation 0.8."""
    constant, wave = torch.ones(8) / 8**0.5, torch.cos(2 * torch.pi * 2 * torch.arange(8) / 8) / 2**0.5
    state_D = (math.e - 1) * constant + (math.e**2 - 1) * wave  # magnitudes e - 1 and e^2 - 1 at 0 and 2
    (features_TX,) = MixRouter(8, Settings(layers=(0,)), 2).features(state_D[None])
    torch.testing.assert_close(features_TX, torch.tensor([[0.5, -0.75, 1.75, -0.75, -0.75]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["random", "zero"])
def test_how_translation_experts_start(start):
    """Zero: they compute nothing, until they learn; a token of one of each group gets its weight of the other alone."""
    made = to_mix_moe(tiny("llama", intermediate_size=32), Conversion(mt_init=start))
    states_TD = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for layer in moe_layers(made):
        experts = layer.experts
        assert experts.num_experts == 4 and all(experts.down_proj[e].any() for e in (0, 1))
        theirs_TD = experts(states_TD, torch.tensor([[2, 3]] * 3), torch.full((3, 2), 0.5))
        assert not theirs_TD.any() if start == "zero" else theirs_TD.all()
        mixed_TD = experts(states_TD, torch.tensor([[1, 2]] * 3), torch.tensor([[0.25, 0.75]] * 3))
        assert torch.allclose(mixed_TD, 0.25 * experts.one(1, states_TD)) is (start == "zero")
        weights = dict(experts.named_parameters(recurse=False))
        assert all(w[2:].any() for n, w in weights.items() if n != "down_proj"), "else no gradient would reach them"
