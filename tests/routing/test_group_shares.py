"""Shares of routing by hand, contrasts beside another implementation, the placebo's distribution, the figure."""

import numpy as np
import pytest
import torch

from dragoman.errors import DataError
from dragoman.evaluation.significance import paired_bootstrap
from dragoman.modeling import moe_layers, tap_routers
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import set_settings
from dragoman.routing.group_shares import (
    contrast,
    described,
    group_share_figure,
    placebo,
    placebo_differences,
    share,
    summed,
    token_mass,
)
from tests.models import tiny


def sums(masses, tokens=10.0):
    """[N, 1, 2] of one layer."""
    return np.stack([np.asarray(masses, float), np.full(len(masses), tokens)], -1)[:, None]


def test_token_mass_is_that_of_single_texts():
    made = to_mix_moe(tiny("llama", vocab_size=80, intermediate_size=32), Conversion())
    for layer in moe_layers(made):
        torch.nn.init.normal_(layer.router.weight)
    set_settings(made, masked=False)
    texts = [[1, 5, 9, 30, 7], [1, 8], [1, 60, 2, 11]]
    for ids, mass_SL in zip(texts, token_mass(made, texts, 2), strict=True):
        with torch.no_grad(), tap_routers(made, moe_layers(made)) as seen:
            made(torch.tensor([ids]))
        assert mass_SL.shape == (len(ids), len(seen))
        for row, routed in enumerate(seen):
            wanted = (routed.weights_TK * (routed.indices_TK >= 2)).sum(-1)
            assert mass_SL[:, row].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_sums_and_share_by_hand():
    mass_SL = np.array([[9.0, 9.0], [0.5, 0.0], [0.25, 1.0], [9.0, 9.0]])
    sums_NL2 = summed([mass_SL], [(1, 3)])
    assert sums_NL2.tolist() == [[[0.75, 2], [1, 2]]]
    assert share(sums_NL2).tolist() == [[0.375, 0.5]]
    assert share(np.array([[3.0, 4.0]])).tolist() == [0.75]


def test_a_span_without_a_token_is_named():
    with pytest.raises(DataError, match=r"segments \[1\] have no token that counts"):
        summed([np.ones((3, 1))] * 2, [(1, 3), (1, 1)])


def test_a_shift_of_every_segment_is_certain_when_paired_and_not_when_apart():
    b = sums([1, 2, 3, 4, 5, 6])
    found = contrast(b + np.array([0.5, 0]), b, paired=True, seed=0)
    assert [found[k] for k in ("difference", "low", "high")] == pytest.approx([0.05] * 3)
    assert found["p_value"] == 1 / 2001 and found["units"] == 6
    apart = contrast(b + np.array([0.5, 0]), b, paired=False, seed=0)
    assert apart["difference"] == pytest.approx(0.05) and apart["low"] < 0 < apart["high"] and apart["p_value"] > 0.3


def test_a_contrast_is_that_of_the_paired_bootstrap():
    rng = np.random.default_rng(3)
    b = sums(rng.uniform(2, 6, 60), 12)
    a = b + np.stack([rng.normal(0.15, 0.6, (60, 1)), np.zeros((60, 1))], -1)
    found, wanted = contrast(a, b, paired=True, seed=0), paired_bootstrap(a[:, 0], b[:, 0], share)
    assert found["difference"] == pytest.approx(wanted.difference)
    for name in ("low", "high", "p_value"):
        assert found[name] == pytest.approx(getattr(wanted, name), abs=0.02)


def test_against_several_the_mean_of_their_shares_counts():
    found = contrast(sums([5, 5]), sums([1, 1]), sums([20, 20], 100), paired=True, seed=0)
    assert found["difference"] == pytest.approx(0.5 - (0.1 + 0.2) / 2)


def test_what_rounding_makes_is_no_difference():
    b = sums([1, 2, 3, 4])
    assert contrast(b + np.array([1e-8, 0]), b, paired=True, seed=0)["p_value"] == 1


def test_description_by_hand():
    sums_NL2 = np.array([[[1.0, 10], [3, 10]]] * 4)
    found = described(sums_NL2, seed=0)
    assert [found["value"], found["low"], found["high"]] == pytest.approx([0.2] * 3)
    assert found["by_layer"] == pytest.approx([0.1, 0.3])


def test_placebo_of_two_segments_by_hand():
    found = placebo(sums([1, 4]), [0, 0])
    assert found["mean"] == pytest.approx(0.3) and found["p95"] == pytest.approx(0.3)
    assert found["p95_by_layer"] == pytest.approx([0.3]) and found["splits"] == 200 and found["units"] == 2


def test_placebo_of_exchangeable_segments_is_centred_and_shrinks_with_text():
    rng = np.random.default_rng(0)
    few, many = (sums(rng.uniform(0, 10, n)) for n in (20, 2000))
    differences = placebo_differences(few, [0, 0], splits=2000)[:, 0]
    assert abs(differences.mean()) < 3 * differences.std() / 2000**0.5
    assert (differences > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert placebo(many, [0, 0])["p95"] < placebo(few, [0, 0])["p95"] / 5


def test_the_placebo_of_each_language_is_a_draw_of_its_own():
    few = sums(np.arange(9))
    one, other, again = (placebo_differences(few, seed) for seed in ([0, 0], [0, 1], [0, 0]))
    assert (one == again).all() and (one != other).any()


def test_figure_has_three_lines_and_says_their_numbers():
    kinds = {"text alone": [[0.1, 0.2], [0.2, 0.3]], "source in prompts": [[0.2, 0.4]], "translations": [[0.7, 0.9]]}
    svg = group_share_figure(kinds, [0.02, 0.04], [0, 1])
    assert "text alone 0.200 (0.150 to 0.250), source in prompts 0.300 (0.300 to 0.300), translations 0.800" in svg
    assert "differ by up to 0.030 in 95 of 100 splits" in svg
    assert all(f">{kind}</text>" in svg for kind in (*kinds, "halves of one text (placebo)"))
