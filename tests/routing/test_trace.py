import dataclasses

import numpy as np
import pytest

from dragoman.errors import DataError
from dragoman.routing.trace import ARRAYS, RoutingTrace

EN = [[4, 2, 0], [3, 3, 0]]
ES = [[1, 1, 4], [6, 0, 0]]


GENERATOR = np.random.default_rng(0)
PAIRS = np.arange(36, dtype=np.int64).reshape(2, 2, 3, 3)


def same(a, b):
    plain = all(getattr(a, n) == getattr(b, n) for n in ("languages", "layer_ids", "num_experts", "top_k", "about"))
    arrays = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ARRAYS)
    segments = a.segment_chosen_NLE.keys() == b.segment_chosen_NLE.keys() and all(
        np.array_equal(a.segment_chosen_NLE[g], b.segment_chosen_NLE[g]) for g in a.segment_chosen_NLE
    )
    return plain and arrays and segments


def test_traces_of_parts_add_up_to_the_trace_of_all(make_trace):
    first = make_trace({"en": EN, "es": ES})
    second = make_trace({"de": ES, "en": ES})
    both = first + second
    assert both.languages == ("en", "es", "de")
    assert both.chosen_GLE.tolist() == [[[5, 3, 4], [9, 3, 0]], ES, ES]
    assert both.tokens_G.tolist() == [12, 6, 6]
    assert same(first.select(["es"]) + first.select(["en"]), first.select(["es", "en"]))


def test_a_sum_is_not_parallel_because_its_first_part_is(make_trace):
    first = make_trace({"en": EN, "es": ES})
    told = {"parallel": True, "documents": {"en": ["a"], "es": ["a"]}, "overlap": {"en": {"es": 0.5}}}
    first = dataclasses.replace(first, about=first.about | told)
    both = first + make_trace({"de": ES})
    assert both.about == {k: v for k, v in first.about.items() if k not in told}
    assert first.select(["es"]).about["parallel"]


def test_segments_are_joined_in_order_and_dropped_where_they_are_incomplete(make_trace):
    segments = np.array([EN, EN])
    kept = make_trace({"en": EN, "es": ES}, segments={"en": segments, "es": segments[:1]})
    joined = kept + make_trace({"en": EN}, segments={"en": segments[:1]})
    assert joined.segment_chosen_NLE["en"].shape == (3, 2, 3)
    assert joined.segment_chosen_NLE["es"].shape == (1, 2, 3)
    without = kept + make_trace({"en": EN})
    assert set(without.segment_chosen_NLE) == {"es"}, "English has counts of more text than segments"


def test_traces_of_different_models_do_not_add(make_trace):
    first = make_trace({"en": EN})
    other = dataclasses.replace(first, layer_ids=(1, 2), about={"model_sha256": "n"})
    with pytest.raises(DataError, match=r"layer_ids \(0, 1\) and \(1, 2\); model checksums m and n"):
        first + other


def test_select_reorders_and_unknown_languages_are_named(make_trace):
    trace = make_trace({"en": EN, "es": ES}, segments={"en": np.array([EN])})
    picked = trace.select(["es", "en"])
    assert picked.chosen_GLE.tolist() == [ES, EN]
    assert trace.select(["es"]).segment_chosen_NLE == {}
    with pytest.raises(DataError, match="no language 'fr', only en, es"):
        trace.index("fr")


def test_saving_and_loading_keep_everything(tmp_path, make_trace):
    segments = {"en": np.array([EN, ES], dtype=np.int32)}
    trace = make_trace({"en": EN, "zh-Hant": ES}, layer_ids=(1, 3), num_experts=(3, 2), top_k=2, segments=segments)
    trace.save(tmp_path / "trace.npz")
    loaded = RoutingTrace.load(tmp_path / "trace.npz")
    assert same(trace, loaded)
    assert loaded.segment_chosen_NLE["en"].dtype == np.int32
    assert [p.name for p in tmp_path.iterdir()] == ["trace.npz"], "no temporary file stays"


@pytest.mark.parametrize("fault", ["missing", "empty", "text", "truncated", "array", "other npz", "old format"])
def test_what_is_no_trace_is_refused(tmp_path, make_trace, fault):
    path = tmp_path / "trace.npz"
    trace = make_trace({"en": EN})
    if fault == "empty":
        path.write_bytes(b"")
    elif fault == "text":
        path.write_text("not a trace")
    elif fault == "truncated":
        trace.save(path)
        path.write_bytes(path.read_bytes()[:300])
    elif fault == "array":
        np.save(path.with_suffix(".npy"), np.ones(3))
        path.with_suffix(".npy").rename(path)
    elif fault == "other npz":
        np.savez(path, x=np.ones(3))
    elif fault == "old format":
        arrays = {name: getattr(trace, name) for name in ARRAYS}
        np.savez(path, meta='{"format": "dragoman-trace/0"}', **arrays)
    with pytest.raises(DataError, match="dragoman diagnose"):
        RoutingTrace.load(path)


def test_pairs_add_up_and_are_kept(tmp_path, make_trace):
    trace = dataclasses.replace(make_trace({"en": EN, "es": ES}), pairs_GLEE=PAIRS)
    both = trace + trace.select(["es"])
    assert both.pairs_GLEE.tolist() == [PAIRS[0].tolist(), (2 * PAIRS[1]).tolist()]
    assert (trace + make_trace({"en": EN})).pairs_GLEE is None, "pairs of a part of the text would mislead"
    trace.save(tmp_path / "trace.npz")
    loaded = RoutingTrace.load(tmp_path / "trace.npz")
    np.testing.assert_array_equal(loaded.pairs_GLEE, PAIRS)
    assert loaded.pairs_GLEE.dtype == np.int64


def test_the_sum_names_both_texts(make_trace):
    first, second, third = (make_trace({"en": EN}, about={"text_sha256": x}) for x in "abc")
    assert ((first + second) + third).about == {"text_sha256": "a+b+c"} == (first + (second + third)).about


# Selections of an inference server


def requests(*lengths, num_layers=2, experts=6, top_k=2):
    """Distinct expert ids [T, L, K] per request."""
    return [GENERATOR.permuted(np.tile(np.arange(experts), (n, num_layers, 1)), axis=-1)[..., :top_k] for n in lengths]


def test_selections_equal_a_naive_loop():
    selections = {"en": requests(4, 9), "de": requests(5)[0].astype(np.int16)}
    trace = RoutingTrace.from_selections(selections, 6, coactivation=True)
    pairs = np.zeros((2, 2, 6, 6), int)
    for g, arrays in enumerate((selections["en"], [selections["de"]])):
        for n, chosen_TLK in enumerate(arrays):
            counted = np.zeros((2, 6), int)
            for token in chosen_TLK.tolist():
                for layer, experts in enumerate(token):
                    for a in experts:
                        counted[layer, a] += 1
                        for b in experts:
                            pairs[g, layer, a, b] += 1
            np.testing.assert_array_equal(trace.segment_chosen_NLE[("en", "de")[g]][n], counted)
    np.testing.assert_array_equal(trace.chosen_GLE, [trace.segment_chosen_NLE[g].sum(0) for g in ("en", "de")])
    np.testing.assert_array_equal(trace.pairs_GLEE, pairs)
    assert trace.tokens_G.tolist() == [13, 5]
    assert (trace.languages, trace.layer_ids, trace.top_k) == (("en", "de"), (0, 1), (2, 2))
    assert np.isnan(trace.gate_mass_GLE).all() and np.isnan(trace.router_mass_GLE).all(), "weights are not known"


def test_selections_of_captured_tokens_give_the_captured_trace(tmp_path):
    torch = pytest.importorskip("torch")
    from dragoman.modeling import moe_layers, tap_routers
    from dragoman.routing.capture import capture
    from tests.models import tiny

    model, ids = tiny("deepseek_v3"), [5, 9, 3, 7]
    with torch.no_grad(), tap_routers(model, moe_layers(model)) as seen:
        model(torch.tensor([[1, *ids]]))
    dense = torch.zeros_like(seen[0].indices_TK)
    served = torch.stack([dense, *(r.indices_TK for r in seen)], dim=1)[1:].numpy()  # the first layer is dense
    with pytest.raises(DataError, match=r"in layers \[0\] .*\(en 4 times\).*layer_ids=\[1, 2\]"):
        RoutingTrace.from_selections({"en": [served]}, 8)
    trace = RoutingTrace.from_selections({"en": [served]}, 8, layer_ids=[1, 2])
    with_numpy = RoutingTrace.from_selections({"en": [served]}, np.int64(8), layer_ids=np.array([1, 2]))
    with_numpy.save(tmp_path / "n.npz")
    again = RoutingTrace.load(tmp_path / "n.npz")
    assert (again.layer_ids, again.num_experts) == (trace.layer_ids, trace.num_experts) == ((1, 2), (8, 8))
    captured = capture(model, {"en": [ids]}, start_id=1)
    np.testing.assert_array_equal(trace.chosen_GLE, captured.chosen_GLE)
    assert (trace.layer_ids, trace.num_experts) == (captured.layer_ids, captured.num_experts)


@pytest.mark.parametrize(
    ("selections", "experts", "message"),
    [
        ({}, 6, "no selections for any language"),
        ({"en": requests(3), "de": []}, 6, "no selections for de"),
        ({"en": np.zeros((3, 2))}, 6, r"not en request 0 float64 \(3, 2\)"),
        ({"en": requests(3, 4), "de": requests(2, top_k=3)}, 6, r"\(2, 2\), these differ: de request 0 \(2, 3\)"),
        ({"en": requests(3), "de": [np.array([[[0, 6], [7, 1]], [[-1, 2], [1, 2]]])]}, 6, "de has 3, from -1 to 7"),
        ({"en": [np.array([[[0, 1], [4, 5]]])]}, [6, 5], "en has 1, from 5 to 5"),
        ({"en": requests(3)}, [6, 6, 6], "3 numbers for 2 layers"),
    ],
)
def test_wrong_selections_are_refused(selections, experts, message):
    with pytest.raises(DataError, match=message):
        RoutingTrace.from_selections(selections, experts)


def test_layers_that_are_not_there():
    with pytest.raises(DataError, match=r"layer_ids \[2\] are not among the 2"):
        RoutingTrace.from_selections({"en": requests(3)}, 6, layer_ids=[0, 2])
