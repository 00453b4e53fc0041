"""Records of runs: what they keep, in which form, once."""

import gzip
import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest

from dragoman import cli
from dragoman.commands import experimenting, run_records
from dragoman.commands.experiments import Question, Run
from dragoman.errors import ConfigError, DataError
from dragoman.record import FORMAT, read_json
from dragoman.routing.plan import ExpertPlan, PlannedExpert

RECORD = {"format": FORMAT, "command": "experiment", "name": "r", "lines": ["a --b"], "sums": {"x": [[1, 0.1]]}}


@pytest.fixture
def path(tmp_path):
    """Where the record of the run `r` goes, of a question without lists."""
    return tmp_path / "results" / "r.json.gz"


def test_a_record_is_read_as_it_was_written(path):
    given = RECORD | {"error": "naïve ü", "score": 0.1 + 0.2, "rate": None}
    run_records.write_once(path, given)
    assert read_json(path) == given and os.listdir(path.parent) == ["r.json.gz"]
    assert Question(path.parents[1]).records == {"r": given}
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == len(given) + 2 and lines[5] == '"sums": {"x":[[1,0.1]]},', "a field a line"


def test_one_record_has_the_same_bytes_whenever_it_is_written(path, tmp_path, monkeypatch):
    run_records.write_once(path, RECORD)
    monkeypatch.setattr("time.time", lambda: 1e9)
    run_records.write_once(tmp_path / "other" / "name.json.gz", RECORD)
    first = path.read_bytes()
    assert first == (tmp_path / "other" / "name.json.gz").read_bytes()
    flags, time = first[3], first[4:8]  # RFC 1952, sec. 2.3: bit 3 of the flags stands for a file name
    assert flags == 0 and time == bytes(4)


@pytest.mark.parametrize("form", ["r.json", "r.json.gz"])
def test_nothing_is_written_beside_a_record_in_either_form(path, form):
    path.parent.mkdir()
    path.with_name(form).write_bytes(b"what was there")
    with pytest.raises(ConfigError, match=f"results/{form} exists; records are added, not changed"):
        run_records.write_once(path, RECORD)
    assert os.listdir(path.parent) == [form] and path.with_name(form).read_bytes() == b"what was there"


def test_a_name_in_both_forms_is_refused(path):
    run_records.write_once(path, RECORD)
    for name in ("r.json", "s.json.gz", "s.json", "t--again-1.json", "opened.json"):
        path.with_name(name).write_text("{}")
    with pytest.raises(DataError, match=r"results has r, s as .json and as .json.gz; .*remove the later one"):
        _ = Question(path.parents[1]).records


@pytest.mark.parametrize("spoil", [
    lambda data: data[: len(data) // 2],
    lambda data: b"{}",
    lambda data: b"",
    lambda data: data[:20] + bytes([data[20] ^ 255]) + data[21:],
    lambda data: gzip.compress(b"{"),
    lambda data: gzip.compress(b"\xff"),
])  # fmt: skip
def test_a_damaged_record_is_named(path, spoil):
    run_records.write_once(path, RECORD)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"results/r.json.gz is not readable gzip-compressed JSON: "):
        _ = Question(path.parents[1]).records


def test_show_prints_a_record_in_either_form(path, capsys):
    run_records.write_once(path, RECORD)
    path.with_name("s.json").write_text(json.dumps(RECORD, indent=1))
    for file in (path, path.with_name("s.json")):
        cli.run(["show", str(file)])
        printed = capsys.readouterr().out
        assert json.loads(printed) == RECORD and '"lines": ["a --b"],\n' in printed
    with pytest.raises(DataError, match=r"none.json.gz is not a file"):
        cli.run(["show", "none.json.gz"])


def test_the_first_attempt_that_ended_counts_else_the_last(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    run = Run(list="r", kind="final", arm="a", target="g", seed=1)
    for name, said in {
        "r": ["failed", "ended", "failed"],
        "two": ["ended", "ended"],
        "three": ["failed"] * 3,
        "twelve": ["failed"] * 12,
        run.name: ["ended", "ended", "failed"],
    }.items():
        for k, status in enumerate(said):
            path = results / ((f"{name}--again-{k}" if k else name) + (".json" if k % 3 else ".json.gz"))
            text = json.dumps({"status": status, "k": k}).encode()
            path.write_bytes(text if k % 3 else gzip.compress(text))
    question = Question(tmp_path)
    counted = {"r": 1, "two": 0, "three": 2, "twelve": 11, run.name: 0}
    assert {name: r["k"] for name, r in question.records.items()} == counted
    assert question.status(run) == "failed", "what the last one says"
    assert experimenting.attempt_path(question, run).name == f"{run.name}--again-3.json.gz"
    assert question.status(replace(run, seed=2)) == "no record"


def test_what_a_run_keeps_of_an_evaluation():
    corpus = {"name": "help", "checksum": "c", "packages": {"a": "1"}, "cleaning": {"rows": 5}, "notice": "text"}
    found = {"format": FORMAT, "command": "evaluate", "config": {"seed": 0}, "corpus": corpus, "models": {"m": "f"}}
    found |= {"texts": {}, "comparisons": [1], "means": {}, "signatures": {"chrf": "s"}, "chrf": {"m": {"ca": 1 / 3}}}
    found |= {"chrf_interval": {}, "warnings": ["few"], "segments": {"file": "segments.json"}}
    assert run_records.kept({"evaluation": found}, "final") == {
        "evaluation": {
            "format": FORMAT,
            "command": "evaluate",
            "corpus": {"name": "help", "checksum": "c", "packages": {"a": "1"}},
            "models": {"m": "f"},
            "signatures": {"chrf": "s"},
            "chrf": {"m": {"ca": 0.3333333}},
        }
    }
    assert run_records.kept({"evaluation": found}, "rate") == {
        "evaluation": {"command": "evaluate", "chrf": {"m": {"ca": 0.3333333}}}
    }


def test_what_a_run_keeps_of_a_training():
    log = {"losses": [float(i) for i in range(101)], "extra_losses": [], "step_seconds": [0.1] * 101, "steps": 101}
    log |= {"balance": [{"step": 20}, {"step": 40}]}
    layers = {1: (PlannedExpert(5, "shared", 0.1), PlannedExpert(2, "shared", 0.2))}
    made = ExpertPlan("task", layers, {1: 8}, settings={"tau": 0.1}, why=("long",))
    plan = json.loads(json.dumps(asdict(made)))  # as `align` writes it
    found = {"command": "align", "config": {}, "training": {}, "log": log, "plan": plan, "parameters": 7, "aligned": 3}
    kept = run_records.kept({"aligned": found}, "final")["aligned"]
    assert kept["plan"] == {"planner": "task", "settings": {"tau": 0.1}, "model_sha256": None, "layers": {"1": [5, 2]}}
    assert {*kept} == {"command", "log", "plan", "parameters", "aligned"}
    means = [1 + 3 * i for i in range(33)] + [99.5]  # 0, 1, 2, then 3, 4, 5, ..., at last 99 and 100
    assert kept["log"] == {"losses": means, "extra_losses": [], "steps": 101, "balance": [{"step": 40}]}
    of_rate = run_records.kept({"aligned": found, "steer.json": {"strength": 0.5}}, "rate")
    assert of_rate == {"aligned": {"command": "align", "log": kept["log"], "parameters": 7}}


def test_what_a_run_keeps_of_other_files():
    """Plans whole, of tables what identifies them, what a stage of Mix-MoE scored without its tests."""
    plan = {"format": "dragoman-plan/1", "settings": {}, "points": [1], "why": ["because"]}
    results = {"chrf": {"after": {"en-de": 2.0}}, "chrf_interval": {}, "comparisons": [], "signatures": {}}
    found = {"middle.json": plan, "half.about.json": {"checksum": "c", "cleaning": {}}}
    found |= {"two": {"command": "mix train", "results": results, "shares": {"kinds": {}}, "shares_before": {}}}
    assert run_records.kept(found, "common") == {
        "middle.json": plan,
        "half.about.json": {"checksum": "c"},
        "two": {
            "command": "mix train",
            "results": {"chrf": {"after": {"en-de": 2}}, "signatures": {}},
            "shares": {"kinds": {}},
        },
    }


def test_stretches_are_few_and_even():
    for n in (0, 1, 50, 51, 100, 101, 999):
        values = np.random.default_rng(n).normal(size=n)
        means = run_records.stretches(values.tolist())
        size = max(1, int(np.ceil(n / 50)))
        assert len(means) <= 50 and means == pytest.approx([values[i : i + size].mean() for i in range(0, n, size)])


def test_digits_by_hand():
    given = {"a": [123456789.25, 0.000123456789, -2.0, 7, True, None, "x"], "b": (1e300, float("inf"))}
    found = run_records.rounded(given)
    assert found == {"a": [123456800, 0.0001234568, -2, 7, True, None, "x"], "b": [1e300, float("inf")]}
    assert json.dumps(found["a"][2:5]) == "[-2, 7, true]", "whole numbers without a point, and no other truth"
