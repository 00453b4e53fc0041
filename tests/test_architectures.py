"""Capture on every architecture of the installed transformers, against counts that know nothing of our hooks.

The oracle replaces the forward of classes, keeps what each module was given in plain Python lists, and counts. Most
experts are given indices; the few that are not are read or recomputed one by one.
"""

import contextlib
import inspect
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import transformers

from dragoman.modeling import moe_layers, outline, parameter_counts, router_kind
from dragoman.routing.capture import capture
from tests.architectures import NOT_BUILT, build, every_type, recording, records, row, unrecorded

GENERATOR = np.random.default_rng(0)
LENGTH = 9
SEQUENCES = {g: GENERATOR.integers(3, 60, (3, LENGTH)).tolist() for g in ("en", "de")}


RECEIVED = {"top_k_index": "top_k_weights", "router_indices": "routing_weights"}
"""What the parameters of experts are called: chosen experts, and their weights."""


def received(_module, arguments):
    """(experts, weights) by token, as the experts get them."""
    name = next(n for n in RECEIVED if n in arguments)
    return arguments[name].tolist(), arguments[RECEIVED[name]].tolist()


def skipping(module, arguments):
    """Zaya masks what it skips to expert 0 with weight 0; the column after the last expert is for it."""
    experts, weights = received(module, arguments)
    slots = [zip(*token, strict=True) for token in zip(experts, weights, strict=True)]
    return [[module.num_experts if w == 0 else e for e, w in token] for token in slots], weights


def filled_rows(module, arguments):
    """Llama 4 gives every expert every token, times zero where it was not chosen."""
    inputs_ETD = arguments["hidden_states"].view(module.num_experts, -1, module.hidden_size).tolist()
    tokens = range(len(inputs_ETD[0]))
    return [[e for e, rows in enumerate(inputs_ETD) if any(rows[t])] for t in tokens], None


def best_logits(module, arguments):
    """JetMoE's router tells slots sorted by expert: its linear map and a sort of our own instead."""
    rows = module.layer(arguments["hidden_states"]).tolist()
    return [sorted(range(len(row)), key=lambda e: -row[e])[: module.top_k] for row in rows], None


def best_pairs(module, arguments):
    """Doge's product keys, by going through all pairs."""
    hidden = arguments["hidden_states"]
    first, second = module.router_gate(hidden).view(2, -1, module.num_keys).tolist()
    sums = [[x + y for x in a for y in b] for a, b in zip(first, second, strict=True)]
    return [sorted(range(len(row)), key=lambda e: -row[e])[: module.top_k] for row in sums], None


SPECIAL = {
    "ZayaExperts": skipping,
    "Llama4TextExperts": filled_rows,
    "JetMoeTopKGating": best_logits,
    "DogeCDMoE": best_pairs,
}
TABLE_ROUTED = {"deepseek_v4": 1}
"""How many layers have experts that are looked up by token id: there is no router to capture."""


def reader(module):
    known = SPECIAL.get(type(module).__name__)
    return known or (received if set(RECEIVED) & set(inspect.signature(type(module).forward).parameters) else None)


@contextlib.contextmanager
def oracle(model):
    """Within the block, the dict collects [tokens][chosen] and weights by module."""
    seen = {}
    watched = {type(m): reader(m) for m in model.modules() if reader(m)}
    originals = {cls: cls.forward for cls in watched}

    def watching(cls, original, read):
        signature = inspect.signature(original)

        def forward(self, *args, **kwargs):
            chosen, weights = read(self, signature.bind(self, *args, **kwargs).arguments)
            seen.setdefault(self, []).append((chosen, weights))
            return original(self, *args, **kwargs)

        return forward

    for cls, read in watched.items():
        cls.forward = watching(cls, originals[cls], read)
    try:
        yield seen
    finally:
        for cls, original in originals.items():
            cls.forward = original


def counted(passes, columns):
    """[G, E] of one module, the start token of every segment left out."""
    counts = [Counter() for _ in passes]
    for counter, (chosen, _) in zip(counts, passes, strict=True):
        for position, experts in enumerate(chosen):
            counter.update(experts if position % (LENGTH + 1) else [])
    return [[counter[e] for e in range(columns)] for counter in counts]


def mass(passes):
    """Sum of the weights that the experts were given, [G]; None where they are given none."""
    if passes[0][1] is None:
        return None
    return [sum(sum(w) for i, w in enumerate(weights) if i % (LENGTH + 1)) for _, weights in passes]


@pytest.mark.parametrize("model_type", [t for t in recording() + unrecorded() if t not in NOT_BUILT])
def test_capture_counts_what_the_experts_get(model_type, tmp_path):
    model = build(model_type)
    with oracle(model) as seen:
        trace = capture(model, SEQUENCES, start_id=1)
    assert len(seen) - TABLE_ROUTED.get(model_type, 0) == len(trace.layer_ids) > 0
    for i, layer in enumerate(moe_layers(model)):
        (passes,) = [seen[m] for m in model.get_submodule(layer.name).modules() if m in seen]
        passes = passes[-len(SEQUENCES) :]  # some routers are asked for their kind before
        assert trace.chosen_GLE[:, i].tolist() == counted(passes, trace.chosen_GLE.shape[-1])
        if (expected := mass(passes)) is not None:
            np.testing.assert_allclose(trace.gate_mass_GLE[:, i].sum(-1), expected, rtol=1e-4)
    tokens = LENGTH * len(SEQUENCES["en"])
    assert trace.chosen_GLE.sum(-1).tolist() == [[tokens * k for k in trace.top_k]] * 2
    assert (np.count_nonzero(trace.chosen_GLE.sum(0), axis=-1) > 1).all(), "all tokens at one place test nothing"
    np.testing.assert_allclose(trace.router_mass_GLE.sum(-1), tokens, rtol=1e-4)
    check_outline(model, tmp_path)


def check_outline(model, folder):
    """From the config alone, without values, the same is found."""
    model.config.save_pretrained(folder)
    empty = outline(str(folder))
    facts = [
        [(x.layer_id, x.name, x.num_experts, x.top_k, x.num_skips, router_kind(m, x)) for x in moe_layers(m)]
        for m in (model, empty)
    ]
    assert facts[0] == facts[1]
    assert parameter_counts(model) == parameter_counts(empty)
    assert sum(parameter_counts(empty).values()) == sum(p.numel() for p in model.parameters())


def test_few_are_left_out():
    assert len(NOT_BUILT) <= 3
    assert set(NOT_BUILT) <= set(recording())


@pytest.mark.slow
def test_reading_sources_misses_no_class_that_records():
    assert set(recording()) == {t for t in every_type() if records(t)}


TABLE = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
IS_OF_THIS_VERSION = f"transformers {transformers.__version__} " in TABLE
"""The table is of one version; others are tested, and have no table."""


def test_the_table_lists_every_type():
    listed = [line.split(" | ")[0].removeprefix("| ") for line in TABLE.splitlines() if " | works | " in line]
    assert not IS_OF_THIS_VERSION or listed == sorted(recording())


@pytest.mark.skipif(not IS_OF_THIS_VERSION, reason="docs/architectures.md is of another version of transformers")
@pytest.mark.parametrize("model_type", recording())
def test_the_table_is_up_to_date(model_type):
    assert row(model_type) in TABLE.splitlines(), "python -m tests.architectures > docs/architectures.md"
