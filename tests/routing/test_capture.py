"""Capture against naive counting, one segment at a time."""

import numpy as np
import pytest
import torch

from dragoman.errors import DataError, ModelError
from dragoman.modeling import moe_layers, tap_routers
from dragoman.routing.capture import capture
from tests.models import FAMILIES, dense, tiny

GENERATOR = np.random.default_rng(0)
SEQUENCES = {g: [GENERATOR.integers(3, 64, n).tolist() for n in (5, 17, 1, 9, 30)] for g in ("en", "de")}


def naive_counts(model, segments):
    """[N, L, E] with a loop over segments, layers, tokens and slots."""
    layers = moe_layers(model)
    count_NLE = np.zeros((len(segments), len(layers), 8), dtype=int)
    for n, ids in enumerate(segments):
        with torch.no_grad(), tap_routers(model, layers) as seen:
            model(torch.tensor([[1, *ids]]))
        for row, routed in enumerate(seen):
            for token in routed.indices_TK[1:].tolist():
                for expert in token:
                    count_NLE[n, row, expert] += 1
    return count_NLE


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_a_naive_loop(family):
    model = tiny(family)
    trace = capture(model, SEQUENCES, start_id=1, batch_tokens=64)
    for g, segments in SEQUENCES.items():
        expected_NLE = naive_counts(model, segments)
        np.testing.assert_array_equal(trace.segment_chosen_NLE[g], expected_NLE)
        np.testing.assert_array_equal(trace.chosen_GLE[trace.index(g)], expected_NLE.sum(axis=0))


def test_masses_and_tokens():
    model = tiny("olmoe")
    trace = capture(model, SEQUENCES, start_id=1)
    tokens = sum(map(len, SEQUENCES["en"]))
    assert trace.tokens_G.tolist() == [tokens, tokens]
    assert (trace.chosen_GLE.sum(-1) == 2 * tokens).all()
    np.testing.assert_allclose(trace.router_mass_GLE.sum(-1), tokens, rtol=1e-5)
    assert (trace.gate_mass_GLE <= trace.router_mass_GLE + 1e-6).all(), "OLMoE does not renormalise its top-k weights"
    assert (trace.gate_mass_GLE.sum(-1) > 0).all()


def test_batching_changes_nothing():
    model = tiny("olmoe")
    one, all_ = (capture(model, SEQUENCES, start_id=1, batch_tokens=b) for b in (1, 10_000))
    np.testing.assert_array_equal(one.chosen_GLE, all_.chosen_GLE)
    np.testing.assert_allclose(one.gate_mass_GLE, all_.gate_mass_GLE, rtol=1e-5)


def test_traces_of_parts_add_up():
    model = tiny("olmoe")
    whole = capture(model, SEQUENCES, start_id=1)
    parts = [capture(model, {g: s[a:b] for g, s in SEQUENCES.items()}, start_id=1) for a, b in ((0, 2), (2, 5))]
    both = parts[0] + parts[1]
    np.testing.assert_array_equal(both.chosen_GLE, whole.chosen_GLE)
    np.testing.assert_array_equal(both.segment_chosen_NLE["de"], whole.segment_chosen_NLE["de"])


def test_long_segments_are_cut_and_counted_whole():
    ids = GENERATOR.integers(3, 64, 150).tolist()  # the context is 64
    trace = capture(tiny("olmoe"), {"en": [ids]}, start_id=1)
    assert trace.tokens_G.tolist() == [150]
    assert trace.segment_chosen_NLE["en"].sum() == 150 * 2 * 3


def test_padding_columns_stay_zero_and_state_is_kept():
    model = tiny("olmoe").train()
    capture(model, SEQUENCES, start_id=1)
    assert model.training


@pytest.mark.parametrize(
    ("sequences", "message"),
    [({"en": [[5]], "de": []}, "nothing to capture for de"), ({"en": [[5], []]}, "en segment 1"), ({}, "no language")],
)
def test_missing_text_is_refused(sequences, message):
    with pytest.raises(DataError, match=message):
        capture(tiny("olmoe"), sequences, start_id=1)


def test_dense_and_broken_models_are_refused():
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        capture(dense(), SEQUENCES, start_id=1)
    model = tiny("olmoe")
    moe_layers(model)[1].router.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="router of layer 1 gave values that are no numbers"):
        capture(model, SEQUENCES, start_id=1)
