"""Small traces by hand."""

import numpy as np
import pytest

from dragoman.routing.trace import RoutingTrace


@pytest.fixture(scope="session")
def make_trace():
    """Builds a trace from counts {language: [L][E]}; masses follow the counts."""

    def make(counts, layer_ids=None, num_experts=None, top_k=1, segments=None, about=None):
        chosen_GLE = np.array(list(counts.values()), dtype=np.int64)
        num_layers, width = chosen_GLE.shape[1:]
        return RoutingTrace(
            languages=tuple(counts),
            layer_ids=tuple(layer_ids or range(num_layers)),
            num_experts=tuple(num_experts or [width] * num_layers),
            top_k=(top_k,) * num_layers,
            chosen_GLE=chosen_GLE,
            gate_mass_GLE=chosen_GLE * 0.5,
            router_mass_GLE=chosen_GLE * 0.25,
            tokens_G=chosen_GLE[:, 0].sum(axis=-1) // top_k,
            segment_chosen_NLE=segments or {},
            about=about or {"model_sha256": "m"},
        )

    return make
