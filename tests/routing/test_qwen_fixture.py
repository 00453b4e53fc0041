"""The statistics on real routing: Qwen3-30B-A3B on MGSM prompts, 48 MoE layers, 128 experts, top-8, eight languages.

The expected numbers were computed from the same counts by another program before this one existed. The counts are from
github.com/conctsai/Multilingualism-in-Mixture-of-Experts-LLMs (MIT).

They (routing/mgsm_result at commit ea1d65b, 0.6 MB) are not in this repository; without them these tests are skipped.
To run them, put a file where FIXTURE says: {"languages": [G tags], "chosen": [G][48][128] tokens that chose an expert,
"gate_sum": [G][48][128] sums of their gate values}.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dragoman.routing import bands, parents, planners, sharing, stats
from dragoman.routing.trace import ARRAYS, RoutingTrace

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "qwen3-30b-a3b-mgsm-routing.json"
pytestmark = pytest.mark.skipif(not FIXTURE.is_file(), reason=f"real routing of Qwen3-30B-A3B is not at {FIXTURE}")


@pytest.fixture(scope="module")
def trace():
    raw = json.loads(FIXTURE.read_text())
    chosen_GLE = np.array(raw["chosen"], dtype=np.int64)
    return RoutingTrace(
        languages=tuple(raw["languages"]),
        layer_ids=tuple(range(48)),
        num_experts=(128,) * 48,
        top_k=(8,) * 48,
        chosen_GLE=chosen_GLE,
        gate_mass_GLE=np.array(raw["gate_sum"]),
        router_mass_GLE=np.zeros(chosen_GLE.shape),
        tokens_G=chosen_GLE[:, 0].sum(axis=-1) // 8,
    )


def blocks(value_L):
    """Means over eight blocks of six layers, to the three decimals that are known."""
    return np.round(value_L.reshape(8, 6).mean(axis=1), 3).tolist()


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("es", [0.121, 0.046, 0.047, 0.039, 0.039, 0.044, 0.053, 0.186]),
        ("fr", [0.133, 0.050, 0.051, 0.044, 0.043, 0.048, 0.053, 0.191]),
        ("de", [0.136, 0.054, 0.070, 0.044, 0.058, 0.047, 0.071, 0.190]),
        ("zh", [0.230, 0.065, 0.117, 0.041, 0.082, 0.051, 0.161, 0.388]),
        ("ja", [0.230, 0.101, 0.151, 0.073, 0.114, 0.079, 0.180, 0.336]),
        ("bn", [0.283, 0.160, 0.196, 0.119, 0.154, 0.118, 0.199, 0.309]),
        ("sw", [0.303, 0.190, 0.188, 0.131, 0.144, 0.114, 0.167, 0.288]),
    ],
)
def test_divergence_from_english(trace, language, expected):
    assert blocks(stats.divergence_from(trace)[language]) == expected


def test_bengali_is_nearest_to_english_in_layer_31(trace):
    assert stats.divergence_from(trace)["bn"].argmin() == 31


def test_language_specialisation(trace):
    expected = [0.148, 0.074, 0.081, 0.044, 0.062, 0.048, 0.110, 0.277]
    assert blocks(stats.language_specialisation(trace.chosen_GLE)) == expected


def test_entropy_collapses_in_the_last_layers(trace):
    entropy_GL = stats.entropy(stats.slot_share(trace.chosen_GLE))
    last = {g: round(entropy_GL[trace.index(g), 42:].mean(), 2) for g in trace.languages}
    assert {g: last[g] for g in ("en", "bn", "sw", "zh")} == {"en": 4.10, "bn": 3.18, "sw": 3.39, "zh": 3.62}
    assert entropy_GL[trace.index("en"), :6].mean() == pytest.approx(4.29, abs=0.005)
    assert entropy_GL[trace.index("bn"), :6].mean() == pytest.approx(3.86, abs=0.005)


def test_no_expert_of_the_middle_is_more_english_than_bengali_by_three_tenths_of_tokens(trace):
    token_share_GLE = stats.token_share(trace.chosen_GLE, trace.top_k)
    more_LE = token_share_GLE[trace.index("en")] - token_share_GLE[trace.index("bn")] > 0.3
    assert (more_LE[18:36].sum(), more_LE[42:].sum()) == (0, 11)


@pytest.fixture(scope="module")
def trace_with_target(trace):
    """A ninth language that is routed as Swahili is, so that all eight may be known."""
    rows = [*range(8), trace.index("sw")]
    arrays = {name: getattr(trace, name)[rows] for name in ARRAYS}
    return replace(trace, languages=(*trace.languages, "target"), **arrays)


@pytest.mark.parametrize(("parent", "expected"), [("en", {46: 17, 47: 26}), ("fr", {46: 3})])
def test_the_gap_rule_at_the_alpha_of_the_paper(trace, trace_with_target, parent, expected):
    """alpha = 0.01 of slots is not portable: many experts for English, three and none for French."""
    config = planners.SeftConfig(target="target", known=trace.languages, parent=parent, alpha=0.01)
    plan = planners.seft(trace_with_target, config)
    assert {layer: len(ids) for layer, ids in plan.experts().items()} == expected


def test_the_parent_of_a_language_routed_as_swahili_is_swahili(trace, trace_with_target):
    choice = parents.choose_parent(trace_with_target, "target", trace.languages, (46, 47))
    assert choice.routing[0] == ("sw", 1)
    assert choice.routing[1][1] < 0.9


def test_the_middle_band_agrees_with_those_of_the_papers(trace):
    """8-35 (Routing Steering), 7-34 (SARA) and 10-39 (shared-expert steering), each chosen by hand."""
    divergence_GL = np.array(list(stats.divergence_from(trace).values()))
    band = bands.middle_band(divergence_GL, trace.layer_ids)
    assert (band.first, band.last, band.valley) == (6, 38, True)
    for first, last in ((8, 35), (7, 34), (10, 39)):
        common = len(set(band.rows) & set(range(first, last + 1)))
        assert common / len(set(band.rows) | set(range(first, last + 1))) > 0.8


def test_no_single_language_decides_the_band(trace):
    divergence = stats.divergence_from(trace)
    for left_out in divergence:
        rest_GL = np.array([d_L for g, d_L in divergence.items() if g != left_out])
        band = bands.middle_band(rest_GL, trace.layer_ids)
        assert abs(band.first - 6) <= 2 and abs(band.last - 38) <= 2, left_out


def test_smoothing_matters_on_this_curve(trace):
    """Without it the bumps at layers 11 to 17 end the band at once."""
    divergence_GL = np.array(list(stats.divergence_from(trace).values()))
    curve_L = divergence_GL.mean(axis=0)
    threshold = curve_L.min() + bands.FRACTION * (curve_L[0] - curve_L.min())
    assert (curve_L[8:36] > threshold).any()


@pytest.mark.parametrize(("language", "expected"), [("en", 17 + 26), ("fr", 3)])
def test_exclusive_experts_of_the_last_layers_by_the_gap(trace, language, expected):
    counted = sharing.Counted(trace.chosen_GLE, np.array(trace.num_experts), np.array(trace.top_k))
    found = sharing.find("gap", counted, sharing.GapConfig(alpha=0.01))
    assert found.exclusive_GLE[trace.index(language), 46:].sum() == expected


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("gap", {"bn": 174, "en": 277, "fr": 14, "shared": 480}),
        ("fraction", {"bn": 214, "en": 231, "fr": 53, "shared": 294}),
        ("specificity", {"bn": 96, "en": 96, "fr": 96, "shared": 32}),
        ("contrast", {"bn": 171, "en": 0, "fr": 56, "shared": 0}),
    ],
)
def test_the_rules_select_what_the_documentation_says(trace, rule, numbers):
    counted = sharing.Counted(trace.chosen_GLE, np.array(trace.num_experts), np.array(trace.top_k), trace.index("en"))
    found = sharing.find(rule, counted)
    selected = {g: int(found.exclusive_GLE[trace.index(g)].sum()) for g in ("bn", "en", "fr")}
    assert selected | {"shared": int(found.shared_LE.sum())} == numbers


def test_rise_at_the_size_of_the_paper(trace_with_target):
    """128 of 6,144 experts: 35, 25 and 40 % of them in layers 0 to 17, 18 to 29 and 30 to 47."""
    known = trace_with_target.languages[:-1]
    plan = planners.rise_plan(trace_with_target, planners.RiseConfig(target="target", known=known, experts=128))
    number = np.array([len(plan.layers.get(layer, ())) for layer in range(48)])
    assert [number[:18].sum(), number[18:30].sum(), number[30:].sum()] == [44, 32, 52]
    # routed as Swahili is: what is specific to the one is to the other
    again = planners.RiseConfig(target="sw", known=tuple(g for g in (*known, "target") if g != "sw"), experts=128)
    assert planners.rise_plan(trace_with_target, again).experts() == plan.experts()


def test_esft_reaches_its_part_in_every_layer(trace):
    for score, array_GLE in (("token", trace.chosen_GLE), ("gate", trace.gate_mass_GLE)):
        plan = planners.esft_plan(trace, planners.EsftConfig(target="bn", score=score))
        for layer, ids in plan.experts().items():
            share_E = array_GLE[trace.index("bn"), layer] / array_GLE[trace.index("bn"), layer].sum()
            assert share_E[list(ids)].sum() >= 0.2 > share_E[list(ids)].sum() - share_E[list(ids)].min()
