"""`dragoman diagnose` on a toy model and toy text: what it writes, tasks, and what it refuses before it writes."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

import dragoman
from dragoman import cli
from dragoman.commands import diagnose, systems
from dragoman.errors import ConfigError, DataError
from dragoman.modeling import TextCodec, save_model
from dragoman.routing import contrast, stats
from dragoman.routing.trace import RoutingTrace
from tests.models import tiny
from tests.texts import WORDS, corpus, tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a toy model, a toy corpus and a text set that uses few of its words."""
    folder = tmp_path_factory.mktemp("toy")
    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer), num_experts=8), codec, folder / "model")
    corpus().save(folder / "text.tsv.gz")
    lines = [f"save {WORDS['en'][i % 3]} save now {i % 4}" for i in range(40)]
    (folder / "saving.txt").write_text("\n\n".join(lines) + "\n")
    (folder / "few.txt").write_text("save now\n" * 5)
    return folder


def settings(place, out, **changes):
    return {"model": str(place / "model"), "corpus": str(place / "text.tsv.gz"), "out": out, "quiet": True} | changes


@pytest.fixture(scope="module")
def diagnosed(place):
    """(folder, record) of a diagnosis with a task, by documents."""
    out = place / "d"
    task = {"saving": place / "saving.txt"}
    dragoman.diagnose(**settings(place, out, task=task, tau=0.05, split="train", middle=(0, 1)))
    return out, json.loads((out / "record.json").read_text())


def rows(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def test_trace_record_and_tables_are_written(diagnosed):
    out, record = diagnosed
    trace = RoutingTrace.load(out / "trace.npz")
    assert trace.about["parallel"] and len(trace.about["documents"]["en"]) == 60
    assert record["routing"]["sample"]["unit"] == "documents"
    assert record["routing"]["sample"]["number"] == dict.fromkeys(trace.languages, 12)
    assert record["routing"]["middle_band"]["how"] == "as set"
    names = {p.stem for p in (out / "figures").iterdir()}
    assert {"entropy", "correlations", "exclusive-experts", "contrast-saving-intervals"} <= names
    by_file = {(r["language"], int(r["layer"])): float(r["value"]) for r in rows(out / "figures" / "entropy.csv")}
    assert by_file["de", 2] == pytest.approx(record["routing"]["entropy"]["de"][2], rel=1e-5)


def test_documents_of_segments_are_those_of_the_corpus(place):
    names = diagnose.documents_of(corpus(), ("en", "de"), "train", 11, parallel=True)
    assert names["en"] == names["de"] == [0] * 5 + [1] * 5 + [2]
    columns = {**corpus().columns, "de": [None, *corpus().columns["de"][1:]]}
    names = diagnose.documents_of(replace(corpus(), columns=columns), ("en", "de"), "train", 7, parallel=False)
    assert (names["en"], names["de"]) == ([0] * 5 + [1] * 2, [0] * 4 + [1] * 3)


def test_both_overlaps_are_measured(diagnosed):
    about = RoutingTrace.load(diagnosed[0] / "trace.npz").about
    ids = {g: TextCodec(tokenizer()).encode(corpus().texts(g, "train")) for g in ("en", "es")}
    counts = [{t: sum(s.count(t) for s in part) for part in [ids[g]] for s in part for t in s} for g in ids]
    assert about["overlap"]["en"]["es"] == pytest.approx(stats.vocabulary_overlap(*counts), abs=1e-6)
    assert about["overlap_weighted"]["en"]["es"] == pytest.approx(stats.vocabulary_overlap(*counts, True), abs=1e-6)


def test_a_task_is_contrasted_with_the_reference(diagnosed):
    out, record = diagnosed
    task = record["tasks"]["saving"]
    trace, of_tasks = (RoutingTrace.load(out / name) for name in ("trace.npz", "tasks.npz"))
    expected_LE = contrast.contrast(of_tasks.segment_chosen_NLE["saving"], trace.segment_chosen_NLE["en"], trace.top_k)
    assert np.array(task["delta"]) == pytest.approx(expected_LE, abs=1e-6)
    assert task["texts"] == 40 and "documents:40,12" in task["signature"]
    found = {(e["layer"], e["expert"]) for e in task["experts"]}
    assert found == {tuple(e) for e in np.argwhere(expected_LE > 0.05).tolist()} and found
    assert [e["delta"] for e in task["experts"]] == sorted((e["delta"] for e in task["experts"]), reverse=True)
    assert all(e["in_middle_band"] == (e["layer"] < 2) for e in task["experts"])
    assert all(e["interval"][0] <= e["delta"] <= e["interval"][1] for e in task["experts"])
    assert len(task["placebo"]) == 3 and all(p > 0 for p in task["placebo"])
    table = rows(out / "figures" / "contrast-saving-intervals.csv")
    assert len(table) == 3 * 8 and float(table[9]["delta"]) == pytest.approx(task["delta"][1][1], rel=1e-5)
    assert "saving" not in trace.languages, "a task is no language"


def test_what_is_printed_names_band_and_tasks(diagnosed, capsys):
    diagnose.show(diagnosed[1])
    printed = capsys.readouterr().out
    assert "middle band: layers 0 to 1" in printed
    assert f"task saving: {len(diagnosed[1]['tasks']['saving']['experts'])} experts" in printed


def test_flags_of_tasks_and_band(monkeypatch):
    seen = []
    monkeypatch.setattr(diagnose, "run", seen.append)
    monkeypatch.setattr(diagnose, "show", lambda record: None)
    cli.run(["diagnose", "m", "--task.maths", "a.txt", "--task.law", "b.txt", "--middle", "2", "5", "--tau", "0.4"])
    assert {name: str(path) for name, path in seen[0].task.items()} == {"maths": "a.txt", "law": "b.txt"}
    assert (seen[0].middle, seen[0].tau) == ((2, 5), 0.4)


def text_of_parts():
    """Every row has one language: nothing is parallel."""
    table = corpus()
    cells = enumerate(table.languages)
    return replace(
        table, columns={g: [t if i % 5 == k else None for i, t in enumerate(table.columns[g])] for k, g in cells}
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"segments": 4}, DataError, r"too few tokens: .*en \d+.* need 40 of each \(10 slots per expert\)"),
        ({"task": {"few": "few.txt"}}, DataError, r"task few: .*few.txt has 5 texts, one a line; a contrast needs 20"),
        ({"task": {"none": "none.txt"}}, DataError, "cannot read .*none.txt"),
        ({"task": {"raw": "raw.jsonl"}}, DataError, r"task raw: .*raw.jsonl is .jsonl, and a task is plain text"),
        ({"task": {"raw": "raw.TSV.gz"}}, DataError, r"raw.TSV.gz is .tsv, .* take a folder of items with"),
        ({"task": {"saving": "saving.txt"}, "segments": 19}, DataError, "needs 20 segments or more of en.* are 19"),
        ({"middle": (1, 7)}, ConfigError, "middle band 1 to 7 does not fit"),
        ({"middle": (1,)}, ConfigError, "middle takes two layers, the first and the last of the band, not 1"),
        ({"tau": 0.3}, ConfigError, "tau has no effect without a task"),
        ({"task": {"a/b": "saving.txt"}}, ConfigError, "a task's name is letters, digits, - and _, not a/b"),
        ({"tau": 3, "task": {"saving": "saving.txt"}}, ConfigError, "tau is a share of tokens"),
        (
            {"segments": 5, "split": "dev", "resample": "documents"},
            DataError,
            "is one document, so documents cannot be resampled",
        ),
        ({"corpus": "parts.tsv.gz", "parallel": True}, DataError, "not parallel: 0 rows .* 20 are needed"),
        ({"corpus": "own.tsv", "reference": "fr"}, ConfigError, "no text in fr, .* another with --reference: en, de"),
        ({"corpus": "own.tsv", "split": "dev"}, DataError, "en, de in split dev; take --split train, which has 8 rows"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(place, tmp_path, changes, error, message):
    text_of_parts().save(place / "parts.tsv.gz")
    (place / "own.tsv").write_text("en\tde\n" + "".join(f"save {i}\tsichern {i}\n" for i in range(8)))
    (place / "raw.jsonl").write_text('{"question": "save", "answer": "now"}\n' * 40)
    if "task" in changes:
        changes = changes | {"task": {name: place / file for name, file in changes["task"].items()}}
    if "corpus" in changes:
        changes = changes | {"corpus": str(place / changes["corpus"])}
    with pytest.raises(error, match=message):
        dragoman.diagnose(**settings(place, tmp_path / "d", **({"split": "train"} | changes)))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "test"}, DataError, "fewer than two segments of .* in split test"),
        ({"split": "dev", "segments": 5, "resample": "documents"}, DataError, "is one document"),
        ({"task": {"saving": "saving.txt"}, "segments": 19}, DataError, "needs 20 segments or more of en"),
        ({"out": "taken"}, ConfigError, "taken is not empty"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(place, tmp_path, monkeypatch, changes, error, message):
    def opener(name, config):
        raise AssertionError("the model was opened")

    monkeypatch.setattr(systems, "opened", opener)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "record.json").write_text("{}")
    given = {"split": "train"} | changes | {"out": tmp_path / changes.get("out", "d")}
    if "task" in given:
        given["task"] = {name: place / file for name, file in given["task"].items()}
    with pytest.raises(error, match=message):
        dragoman.diagnose(**settings(place, **given))
    with pytest.raises(AssertionError, match="was opened"):
        dragoman.diagnose(**settings(place, tmp_path / "d", split="train"))


def test_intervals_over_segments_for_want_of_documents_are_told(place, diagnosed, tmp_path, capsys):
    """20 rows of 5 a document, where the split has 12 documents."""
    record = dragoman.diagnose(**settings(place, tmp_path / "d", split="train", segments=20))
    assert record["routing"]["sample"]["unit"] == "segments"
    assert record["documents"] == {"read": 4, "in_split": 12}
    diagnose.show(record)
    said = (
        "intervals are over segments, not documents: the first 20 of split train are of 4 documents, 10 are needed and "
        "the split has 12; raise --segments\n"
    )
    assert said in capsys.readouterr().out
    asked = record | {"config": record["config"] | {"resample": "segments"}}
    small = record | {"documents": {"read": 4, "in_split": 9}}
    for quiet in (asked, small, {k: v for k, v in record.items() if k != "documents"}, diagnosed[1]):
        diagnose.show(quiet)
        assert "intervals are over" not in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_a_model_of_one_layer_has_its_mean_and_no_empty_thirds(capsys):
    routing = {"divergence": {"de": [0.25]}, "placebo": [0.125], "sample": {"unit": "documents"}}
    config = {"reference": "en", "out": "d", "resample": None}
    diagnose.show({"config": config, "routing": routing})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [["de", "0.250"], ["placebo", "0.125"]]
