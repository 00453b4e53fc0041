import dataclasses

import numpy as np
import pytest

from dragoman.errors import DataError
from dragoman.routing.trace import ARRAYS, RoutingTrace

EN = [[4, 2, 0], [3, 3, 0]]
ES = [[1, 1, 4], [6, 0, 0]]


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
