"""`dragoman compare` on traces made by hand."""

import json

import numpy as np
import pytest

import dragoman
from dragoman.commands import compare, show
from dragoman.errors import ConfigError, DataError
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.trace import RoutingTrace


def trace(seed, share, tags=("en", "ca"), num_layers=2):
    rng = np.random.default_rng(seed)
    segments = {g: rng.multinomial(40, share, size=(30, num_layers)).astype(np.int32) for g in tags}
    chosen_GLE = np.stack([n.sum(axis=0) for n in segments.values()]).astype(np.int64)
    layers, experts = tuple(range(num_layers)), (len(share),) * num_layers
    about = {"model": f"model-{seed}", "model_sha256": str(seed)}
    mass, tokens_G = chosen_GLE * 0.5, chosen_GLE[:, 0].sum(axis=-1)
    return RoutingTrace(tags, layers, experts, (1,) * num_layers, chosen_GLE, mass, mass, tokens_G, segments, about)


@pytest.fixture
def files(tmp_path):
    trace(0, [0.6, 0.2, 0.2]).save(tmp_path / "before.npz")
    trace(1, [0.2, 0.2, 0.6]).save(tmp_path / "after.npz")
    return tmp_path


def test_two_traces(files, capsys):
    record = dragoman.compare(files / "before.npz", files / "after.npz", out=files / "out")
    compare.show(record)
    printed = capsys.readouterr().out
    on_disk = json.loads((files / "out" / "record.json").read_text())
    assert on_disk["kind"] == "a trace" and on_disk["models"]["after"] == {"model": "model-1", "model_sha256": "1"}
    moved = on_disk["drift"]["divergence"]["ca"]
    assert min(moved) > 0.05 and max(moved) < 0.2, "JSD of (.6, .2, .2) and (.2, .2, .6) is 0.105"
    assert f"{moved[0]:.4f}" in printed and "placebo" in printed
    show.show(files / "out" / "record.json")
    assert capsys.readouterr().out == printed, "the record alone gives the table again"
    html = (files / "out" / "report.html").read_text()
    assert "Catalan" in html and f"from {files / 'before.npz'} to {files / 'after.npz'}" in html
    assert html.count("<svg") == 2
    csv = (files / "out" / "figures" / "drift.csv").read_text().splitlines()
    assert csv[0] == "language,layer,value,low,high,placebo" and len(csv) == 1 + 2 * 2


def test_two_traces_of_one_name_are_told_apart(tmp_path):
    """By their folders and models; and the caption says which language is of which colour."""
    for seed, (folder, catalan) in enumerate({"a": [0.6, 0.2, 0.2], "b": [0.2, 0.2, 0.6]}.items()):
        (tmp_path / folder).mkdir()
        joined = trace(seed, [0.4, 0.3, 0.3], ("en",)) + trace(seed, catalan, ("ca",))
        joined.save(tmp_path / folder / "trace.npz")
    dragoman.compare(tmp_path / "a" / "trace.npz", tmp_path / "b" / "trace.npz", out=tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert f"from {tmp_path / 'a' / 'trace.npz'} to {tmp_path / 'b' / 'trace.npz'}" in html
    assert "before: model-0 · after: model-1" in html
    assert "Orange: Catalan, which moved most; green, dash-dotted: English, which moved least." in html


def test_of_two_plans_there_is_no_report(tmp_path, capsys):
    for name, expert in (("a", 1), ("b", 2)):
        plan = ExpertPlan("by hand", {2: (PlannedExpert(expert, "all"),)}, {2: 8})
        plan.save(tmp_path / f"{name}.json")
    record = dragoman.compare(tmp_path / "a.json", tmp_path / "b.json", out=tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["record.json"]
    compare.show(record)
    assert capsys.readouterr().out.splitlines()[-1] == f"the record is in {tmp_path / 'out'}"


def test_a_trace_and_itself_have_no_drift(files):
    record = dragoman.compare(files / "before.npz", files / "before.npz", out=files / "out")
    assert not any(np.any(d_L) for d_L in record["drift"]["divergence"].values())
    assert "the same in both traces" in (files / "out" / "report.html").read_text()


def test_what_cannot_be_compared_is_refused_before_anything_is_written(files):
    (files / "record.json").write_text('{"command": "diagnose"}')
    (files / "list.json").write_text("[]")
    (files / "other.npz").write_text("no archive")
    trace(2, [0.5, 0.5]).save(files / "narrow.npz")
    for before, after, words in (
        ("before.npz", "record.json", r"record.json is a record of diagnose; .*trace"),
        ("list.json", "record.json", r"list.json is no record; .*record.json is a record of diagnose"),
        ("before.npz", "absent.npz", "absent.npz is not a file"),
        ("before.npz", "other.npz", r"other.npz is not a routing trace \(no .npz file\)"),
        ("before.npz", "narrow.npz", r"experts \[3, 3\] and \[2, 2\]"),
    ):
        with pytest.raises(DataError, match=words):
            dragoman.compare(files / before, files / after, out=files / "out")
    assert not (files / "out").exists()


def test_settings_that_cannot_work(files):
    with pytest.raises(ConfigError, match="seed is at least 0"):
        dragoman.compare(files / "before.npz", files / "after.npz", seed=-1)
    (files / "full").mkdir()
    (files / "full" / "a").touch()
    with pytest.raises(ConfigError, match="not empty"):
        dragoman.compare(files / "before.npz", files / "after.npz", out=files / "full")


def test_a_second_kind_is_one_line(files, monkeypatch):
    written = []
    kind = compare.Kind(lambda config: {"changes": 3}, lambda record, out: written.append(out), print)
    monkeypatch.setitem(compare.KINDS, "a record of evaluate", kind)
    for name in ("a.json", "b.json"):
        (files / name).write_text('{"command": "evaluate"}')
    record = dragoman.compare(files / "a.json", files / "b.json", out=files / "out")
    assert record["changes"] == 3 and written == [files / "out"]
    with pytest.raises(DataError, match=r"two of a kind are compared, but .*a.json is a record of evaluate"):
        dragoman.compare(files / "a.json", files / "after.npz", out=files / "out2")
