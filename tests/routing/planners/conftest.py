"""A trace of three MoE layers that a plan can be worked out of by hand, and one that knows its model's size."""

import dataclasses

import pytest

# Layers 1 (dense layer 0 before it), 2 and 3 of a model; layers 1 and 2 have 4 experts, layer 3 has 3 and a column of
# padding. Percent of slots, 100 slots a layer.
COUNTS = {
    "en": [[25, 25, 25, 25], [40, 30, 20, 10], [50, 30, 20, 0]],
    "es": [[25, 25, 25, 25], [40, 10, 35, 15], [50, 30, 20, 0]],
    "ru": [[25, 25, 25, 25], [40, 20, 10, 30], [20, 40, 40, 0]],
    "ca": [[97, 1, 1, 1], [40, 12, 34, 14], [48, 31, 21, 0]],
    "uk": [[97, 1, 1, 1], [41, 19, 12, 28], [20, 40, 40, 0]],
}


@pytest.fixture
def counts():
    return COUNTS


@pytest.fixture
def trace(make_trace):
    return make_trace(COUNTS, layer_ids=(1, 2, 3), num_experts=(4, 4, 3))


@pytest.fixture
def sized(trace):
    """The same of a model of 1,000 parameters: 10 an expert, 5 a router."""
    return dataclasses.replace(trace, about={"sizes": {"total": 1000, "expert": [10] * 3, "router": [5] * 3}})
