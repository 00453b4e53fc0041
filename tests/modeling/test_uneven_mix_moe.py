"""Mix-MoE models with other numbers of translation experts in other layers, as LayerMoE plans them."""

import pytest
import torch

from dragoman.errors import ConfigError
from dragoman.modeling import logit_difference, moe_layers, open_model
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import masking, settings_of
from tests.modeling.test_mix_moe import dense, logits, mixed, routed


def uneven(**conversion):
    """Three layers with 1, 4 and 2 translation experts."""
    return mixed(translation={0: 1, 1: 4, 2: 2}, **conversion)


@pytest.mark.parametrize("selection", ["all", "group"])
def test_layers_with_other_numbers_of_translation_experts(selection, tmp_path):
    model = uneven(selection=selection)
    assert [layer.num_experts for layer in moe_layers(model)] == [3, 6, 4]
    chosen = [r.indices_TK for r in routed(model)]
    assert [int(c.max()) for c in chosen] == [2, 5, 3], "every translation expert is reached, and no other"
    if selection == "group":
        assert all((c[:, 0] < 2).all() and (c[:, 1] >= 2).all() for c in chosen)
    model.save_pretrained(tmp_path)
    again = open_model(str(tmp_path), device="cpu")
    assert settings_of(again).translation == (1, 4, 2) and torch.equal(logits(again), logits(model))
    with masking(model, True):
        assert all(int(r.indices_TK.max()) < 2 and r.logits_TE[:, 2:].isneginf().all() for r in routed(model))


def test_uneven_conversion_keeps_the_logits():
    difference, largest = logit_difference(dense(), to_mix_moe(dense(), Conversion(translation={0: 3, 1: 1, 2: 2})))
    assert difference <= 1e-4 * largest


@pytest.mark.parametrize(
    ("conversion", "sentence"),
    [
        ({"translation": {0: 1, 7: 2}}, r"given for layers \[0, 7\], and layers \[0, 1, 2\] are converted"),
        ({"translation": {0: 1, 1: 2, 2: 1}, "layers": (0, 1)}, r"and layers \[0, 1\] are converted"),
        ({"translation": {0: 1, 1: 0, 2: 1}}, r"1 translation expert or more, not \{1: 0\}"),
    ],
)
def test_numbers_that_do_not_fit_are_sentences(conversion, sentence):
    with pytest.raises(ConfigError, match=sentence):
        to_mix_moe(dense(), Conversion(**conversion))


def test_the_limit_of_top_k_is_the_layer_with_fewest_experts():
    with pytest.raises(ConfigError, match="top-k is 4, from 1 to 3, the experts of the layer that has fewest"):
        Conversion(translation={0: 1, 1: 3, 2: 2}, top_k=4)
    made = to_mix_moe(dense(), Conversion(translation={0: 3, 1: 3, 2: 3}, top_k=5))
    difference, largest = logit_difference(dense(), made)
    assert difference <= 1e-4 * largest and settings_of(made).top_k == 5
    with masking(made, False):
        assert all(len(r.indices_TK[0].unique()) == 5 for r in routed(made)), "more than twice the slices"
