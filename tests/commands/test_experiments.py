"""Lists of runs, their records and the sealed split; the lists of this repository, line by line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cyclopts
import numpy as np
import pytest

from dragoman import cli
from dragoman.commands import experimenting, experiments
from dragoman.commands.experiments import Question, Run, Study, command_lines, questions, read_study
from dragoman.corpora.ntext import NText, load
from dragoman.errors import ConfigError, DataError, UserError
from dragoman.modeling import TextCodec, save_model
from tests.models import tiny
from tests.texts import tokenizer

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "benchmarks" / "experiments"
LIST = """
base: {folder}/model
corpus: {folder}/text.tsv
known: [en, es]
targets: {{ca: {{segments: 4}}}}
rows: {{dev: 3, test: null}}
seeds: [1, 2]
rate: {{values: [0.001, 0.01], file: adapted/record.json, at: outcome.bits_after}}
variables:
  adapting: --target {{target}} --corpus {{corpus}} --text.segments {{segments}} --text.block 64 --text.batch 2
    --device cpu --learning-rate {{rate}} --seed {{seed}} --out {{out}}/adapted --quiet
try:
  - adapt {{base}} {{method}} {{adapting}} --evaluation.segments 2
train:
  - adapt {{base}} {{method}} {{adapting}} --evaluation.segments 0
test:
  - evaluate {{model}} --corpus {{test}} --languages {{known}} {{target}} --segments 4 --out {{out}}/evaluation --quiet
arms:
  base: {{method: null, model: "{{base}}", seeds: [0]}}
  full: {{method: --method full, model: "{{out}}/adapted/model"}}
  broken: {{method: --method expert_tuning, model: "{{out}}/adapted/model", rate_of: full}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a toy model, a corpus of 6 train, 4 dev and 4 sealed rows, and a question `q`."""
    folder = tmp_path_factory.mktemp("home")
    save_model(tiny("olmoe", vocab_size=400, max_position_embeddings=256), TextCodec(tokenizer()), folder / "model")
    splits = ("train",) * 6 + ("dev",) * 4 + ("test",) * 4
    text = {g: [f"{word} {i} and some more words" for i in range(14)] for g, word in
            (("en", "file"), ("es", "archivo"), ("ca", "fitxer"))}  # fmt: skip
    documents = tuple(f"{s}-{i // 2}" for i, s in enumerate(splits))
    NText(tuple(text), tuple(map(str, range(14))), documents, splits, text, {}).save(folder / "text.tsv")
    question = folder / "questions" / "q"
    question.mkdir(parents=True)
    (question / "claim.md").write_text("# A claim\n")
    (question / "first.yaml").write_text(LIST.format(folder=folder))
    return folder


@pytest.fixture
def question(home):
    return Question(home / "questions" / "q")


def test_runs_by_hand(question):
    assert [r.name for r in question.runs("rate")] == ["first--full--ca--rate-0.001", "first--full--ca--rate-0.01"]
    assert [r.name for r in question.runs("final")] == [
        "first--base--ca--seed-0",
        "first--full--ca--seed-1",
        "first--broken--ca--seed-1",
        "first--full--ca--seed-2",
        "first--broken--ca--seed-2",
    ]
    assert question.runs("common") == question.runs("prepared") == []


def test_a_line_with_a_null_name_is_left_out_and_names_may_stand_for_names(question):
    study = question.studies["first"]
    run = Run(list="first", kind="final", arm="base", target="ca")
    (words,) = command_lines(study, study.train + study.test, run, {"out": "o", "corpus": "c", "test": "t"})
    assert words[:4] == ["evaluate", study.base, "--corpus", "t"]
    run = Run(list="first", kind="final", arm="full", target="ca", seed=2, rate=0.01)
    train, _ = command_lines(study, study.train + study.test, run, {"out": "o", "corpus": "c", "test": "t"})
    assert train[:4] == ["adapt", study.base, "--method", "full"]
    assert train[train.index("--learning-rate") + 1] == "0.01"
    with pytest.raises(ConfigError, match="nothing says what nobody is"):
        command_lines(study, ["show {nobody}"], run, {})


def test_names_may_stand_for_names_at_any_depth():
    """The rate, a null and an unknown name, each where the second name of a line stands for the third."""
    lines = ("adapt {one}", "show {two} {out}")
    arms = {"a": {"one": "{x} --on", "x": "{y}", "y": "--lr {rate}", "two": "{v}", "v": "{w}", "w": None}}
    study = Study(arms=arms, corpus="c", known=("en",), train=lines)
    run = Run(list="l", kind="final", arm="a", rate=0.01)
    assert command_lines(study, lines, run, {"out": "o"}) == [["adapt", "--lr", "0.01", "--on"]]
    assert experiments.uses_rate(study, "a")
    without = replace(study, arms={"a": arms["a"] | {"y": "--lr 1"}})
    assert not experiments.uses_rate(without, "a") and command_lines(without, lines, run, {"out": "o"})[0][2] == "1"
    unknown = replace(study, arms={"a": arms["a"] | {"y": "--lr {speed}"}})
    with pytest.raises(ConfigError, match="nothing says what speed is; give it to the arm or list"):
        command_lines(unknown, lines, run, {"out": "o"})
    circle = replace(study, arms={"a": arms["a"] | {"y": "{x}"}})
    with pytest.raises(ConfigError, match=r"what x stands for has \{x\} in it"):
        command_lines(circle, lines, run, {"out": "o"})
    by_target = replace(without, targets={"ca": {"y": "{lr}", "lr": "--lr {rate}"}}, arms={"a": {"one": "{y}"}})
    assert experiments.uses_rate(by_target, "a"), "what a target says may have the rate"
    assert experiments.filled("{scored}/x", {"scored": "{out}/y", "out": Path("z")}) == "z/y/x"
    with pytest.raises(ConfigError, match=r"nothing says what out is in: \{scored\}"):
        experiments.filled("{scored}", {"scored": "{out}"})


def test_faults_of_a_list_come_together(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("arms: {a: {rate_of: b}}\nsteps: []\nknown: [en]\n")
    with pytest.raises(ConfigError, match="steps is no key of a list; corpus is missing; a takes the rates of b"):
        read_study(path)
    for text in ("- a\n", "arms: {a: [\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no list of runs"):
            read_study(path)
    with pytest.raises(DataError, match="has no question"):
        questions(tmp_path)


def test_norwegian_in_a_list_is_no_boolean(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("known: [en, no]\ntargets: {no: {}}\narms: {off: {}}\ncorpus: c\n")
    study = read_study(path)
    assert (tuple(study.known), tuple(study.targets), tuple(study.arms)) == (("en", "no"), ("no",), ("off",))


def test_values_of_another_shape_come_together(tmp_path):
    """Strings in place of lists, lists in place of names, a rate without values, with a key that it has not."""
    path = tmp_path / "list.yaml"
    given = {"corpus": "c", "known": [], "train": "adapt {base}", "variables": ["a"], "rows": None}
    given |= {"arms": {"a": "--method full", "b": {"seeds": []}, "c": {"seeds": 3}, "d": None}, "targets": {"ca": [1]}}
    given["rate"] = {"file": "f", "at": "a.b", "speed": 1, "better": "lowest"}
    path.write_text(json.dumps(given))
    with pytest.raises(ConfigError) as error:
        read_study(path)
    assert str(error.value).split(": ", 1)[1].split("; ")[:-1] == [
        "train is no list",
        "known is empty",
        "rows has no names",
        "variables has no names",
        "arms.a has no names",
        "targets.ca has no names",
        "arms.b.seeds is no list of one or more",
        "arms.c.seeds is no list of one or more",
        "rate.speed is no key of a list",
        "rate.values is missing",
        "rate.better is neither lower nor higher",
    ]
    good = {"corpus": "c", "known": ["en"], "arms": {"a": None}, "targets": {"ca": None}}
    path.write_text(json.dumps(good | {"rate": {"values": 0.1, "file": "f", "at": "a"}}))
    with pytest.raises(ConfigError, match=r"rate.values is no list of one or more; docs"):
        read_study(path)
    path.write_text(json.dumps(good | {"rate": None}))
    study = read_study(path)
    assert study.arms == {"a": {}} and study.targets == {"ca": {}} and study.rate is None


def test_training_text_from_the_built_in_corpus_and_sealed_rows_from_another(question, tmp_path):
    first = question.studies["first"]
    study = replace(first, corpus="help", test_corpus=first.corpus, known=("en",), targets={"ca": {}}, complete=())
    read = load(experimenting.table(study, tmp_path / "a", sealed=True))
    assert set(read.splits) == {"train", "dev"} and read.about["name"] == "help" and read.languages == ("en", "ca")
    study = replace(study, targets=first.targets, complete=first.complete, known=first.known)
    opened = load(experimenting.table(study, tmp_path / "b", sealed=False), open_test=True)
    assert opened.keys == ("10", "11", "12", "13")


def test_no_table_has_sealed_rows_before_the_split_is_opened(question, tmp_path):
    study = question.studies["first"]
    sealed = load(experimenting.table(study, tmp_path / "a", sealed=True), open_test=True)
    opened = load(experimenting.table(study, tmp_path / "b", sealed=False), open_test=True)
    assert sorted(set(sealed.splits)) == ["dev", "train"] and sealed.splits.count("dev") == 3
    assert set(opened.splits) == {"devtest"} and opened.keys == ("10", "11", "12", "13")
    assert opened.about["test_opened"] and opened.about["devtest_is"] == "the sealed split"
    assert not set(sealed.keys) & set(opened.keys)


def test_a_table_is_made_anew_for_other_rows_languages_or_text(question, home, tmp_path):
    corpus = tmp_path / "text.tsv"
    corpus.write_bytes((home / "text.tsv").read_bytes())
    study = replace(question.studies["first"], corpus=str(corpus))

    def made(study):
        return load(experimenting.table(study, tmp_path / "a", sealed=True), open_test=True)

    first = made(study)
    assert made(replace(study, rows={"dev": 2, "test": None})).splits.count("dev") == 2
    assert made(replace(study, complete=("en",), targets={"all": {}})).languages == ("en", "es")
    assert experimenting.table(study, tmp_path / "a", sealed=True) == experimenting.table(study, tmp_path / "a", True)
    assert made(study).columns == first.columns, "those of before are still there"
    corpus.write_text(corpus.read_text().replace("file 0", "folder 0"))
    assert made(study).columns["en"][0].startswith("folder") and first.columns["en"][0].startswith("file")


def test_sums_by_document_by_hand():
    names, sums_US = experimenting.by_document(["b", "a", "b"], np.array([[1, 2], [3, 4], [5, 6]]))
    assert names == ["a", "b"] and sums_US.tolist() == [[3, 4], [6, 8]]


def test_a_score_is_found_by_its_keys():
    value = {"a": {"x/y.z": {"ca": 1, "en": 5}, "copy": {"ca": 3, "en": 7}}}
    assert experimenting.score_at(value, "a.copy.en") == 7
    assert experimenting.score_at(value, "a.*.ca") == 2 and experimenting.score_at(value, "a.*.*") == 4


def test_a_question_from_rates_to_records(home, tmp_path):
    """All of it in this process: rates on dev, opening, runs, a failure that stays, and no second writing."""
    question, work = Question(home / "questions" / "q"), tmp_path
    for run in question.runs("rate"):
        experimenting.execute(question, run, work, experimenting.attempt_path(question, run), cli.run)
    assert not list(work.glob("q/*opened*")), "nothing of the sealed split lies about before it is opened"
    experimenting.open_question(question, work)
    scores = {r.rate: question.ended(r)["score"] for r in question.runs("rate")}
    rate = question.opened["rates"]["first"]["full"]["ca"]
    assert scores[rate] == min(scores.values()) and len(set(scores.values())) == 2
    tried = question.ended(question.runs("rate")[0])
    assert {*tried["records"]["adapted"]} == {"command", "parameters", "trained_share", "log", "outcome"}
    assert "sums" not in tried and all(p.stat().st_size < 2000 for p in question.results.glob("*--rate-*.json.gz"))
    base, full, broken, *_ = question.runs("final")
    for run in (base, full, broken):
        experimenting.execute(question, run, work, experimenting.attempt_path(question, run), cli.run)
    question = Question(question.folder)
    record = question.ended(full)
    assert record["rate"] == rate and record["test_opened"] and record["seed"] == 1
    assert record["inputs"]["test_sha256"] == question.opened["test_sha256"]["first"]
    assert len(record["sums"]["bits_per_byte"]["ca"]) == len(record["documents"]) == 2
    bits, size = np.sum(record["sums"]["bits_per_byte"]["ca"], axis=0)
    (of_model, *_) = record["records"]["evaluation"]["bits_per_byte"].values()
    assert of_model["ca"] == pytest.approx(bits / size, rel=1e-6), "what was dropped follows from the sums"
    assert str(home) not in record["lines"][1] and "{test}" in record["lines"][1]
    assert question.ended(base)["sums"] != record["sums"], "training changes the scores"
    failed = question.records[broken.name]
    assert failed["status"] == "failed" and "plan" in failed["error"] and not question.ended(broken)
    assert not list(work.glob("q/*.running")), "models are not kept"
    with pytest.raises(ConfigError, match="records are added, not changed"):
        experimenting.write_once(question.results / f"{full.name}.json.gz", {})
    assert experimenting.attempt_path(question, broken).name == f"{broken.name}--again-1.json.gz"
    assert experimenting.attempt_path(question, question.runs("final")[-1]).name == "first--broken--ca--seed-2.json.gz"


def test_runs_that_are_left_need_the_text_that_was_opened(home, tmp_path):
    question = Question(shutil.copytree(home / "questions" / "q", tmp_path / "q", ignore=lambda *_: ["results"]))
    for _ in range(2):
        experimenting.open_question(question, tmp_path / "runs")
    path = question.results / "opened.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_sha256": {"first": "0"}}))
    with pytest.raises(ConfigError, match=r"rows of .* are other ones than when q was opened \(lists first\)"):
        experimenting.open_question(question, tmp_path / "runs")


def test_what_was_opened_stands(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "claim.md").write_text("a claim\n")
    opened = {"files": Question(tmp_path).checksums()}
    (tmp_path / "results" / "opened.json").write_text(json.dumps(opened))
    assert Question(tmp_path).opened == opened
    (tmp_path / "claim.md").write_text("another claim\n")
    (tmp_path / "new.yaml").write_text("arms: {}\ncorpus: c\nknown: [en]\n")
    with pytest.raises(ConfigError, match=r"claim.md, new.yaml of .* changed after the test split was opened"):
        _ = Question(tmp_path).opened


def one_of_each():
    """A run of every list, kind, arm and target, with the first seed or rate."""
    for question in questions(LISTS):
        for kind in experiments.RUNS:
            seen = set()
            for run in question.runs(kind):
                if (run.list, run.arm, run.target) not in seen:
                    seen.add((run.list, run.arm, run.target))
                    yield question, run


def test_every_line_of_the_lists_can_be_run(monkeypatch):
    """The flags are there and fit together: each command line is parsed up to the point where it would run."""
    monkeypatch.chdir(ROOT)
    only = {"exit_on_error": False, "print_error": False}
    monkeypatch.setattr(cyclopts.App, "__call__", lambda app, tokens, **_: app.parse_args(tokens, **only))
    folders = {name: f"/nowhere/{name}" for name in ("out", "common", "prepared", "corpus", "test")}
    parsed, faults = set(), []
    for question, run in one_of_each():
        study = question.studies[run.list]
        kinds = {"common": study.prepare, "prepared": study.prepare_target, "rate": study.tried}
        rated = run if run.rate or not study.rate else Run(**vars(run) | {"rate": study.rate.values[0]})
        for words in command_lines(study, kinds.get(run.kind, study.train + study.test), rated, folders):
            shape = tuple(w for w in words if w not in study.targets)
            if words[0].endswith(".py") or shape in parsed:
                continue
            parsed.add(shape)
            try:
                cli.run(words)
            except (UserError, cyclopts.CycloptsError) as e:
                faults.append(f"{question.name} {run.name}: {' '.join(words)}: {e}")
    assert len(parsed) > 10 and not faults, "\n".join(faults)


def test_the_lists_ask_for_what_their_claims_do():
    ssft = Question(LISTS / "ssft")
    final = [r for r in ssft.runs("final") if r.list == "primary"]
    assert {(r.arm, r.target, r.seed) for r in final if r.arm != "base"} == {
        (arm, g, s) for arm in ("ssft", "random", "last_layers", "full") for g in ("ca", "nl", "tr", "ja")
        for s in range(1, 6)
    }  # fmt: skip
    assert set(ssft.studies["secondary"].languages) == set(ssft.studies["primary"].languages), "the same rows"
    assert questions(LISTS)[0].name == "ssft", "whole before the others"


def test_questions_out_of_turn():
    from benchmarks.experiments.run import picked

    every = questions(LISTS)
    assert picked(every, ()) == every
    assert [q.name for q in picked(every, ("ra-moe", "routing"))] == ["routing", "ra-moe"]
    with pytest.raises(ConfigError, match="no question rooting, x; there are ssft, routing"):
        picked(every, ("rooting", "ssft", "x"))


def test_more_workers_than_cores_share_them_evenly():
    from benchmarks.experiments.run import freest

    taken = []
    for _ in range(7):
        taken.append(freest([4, 6, 7], taken))
    assert taken == [4, 6, 7, 4, 6, 7, 4]
    assert freest([4, 6, 7], [6, 6, 4, 7, 7]) == 4, "whatever ended first"


@pytest.mark.slow
def test_a_queue_that_is_killed_goes_on(home, tmp_path):
    """Killed in the middle of a run: no record of it, no second queue beside what is left, and then all of them."""
    folder = tmp_path / "questions"
    (folder / "q").mkdir(parents=True)
    (folder / "q" / "claim.md").write_text("# A claim\n")
    (folder / "q" / "first.yaml").write_text(LIST.format(folder=home))
    words = [sys.executable, str(LISTS / "run.py"), "--folder", str(folder), "--work", str(tmp_path / "work")]
    queue = subprocess.Popen(words, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    while not list((tmp_path / "work").glob("q/*.running")):
        time.sleep(0.1)
    queue.send_signal(signal.SIGKILL)
    queue.wait()
    second = subprocess.run(words, capture_output=True, text=True)
    assert "still at work" in second.stderr and second.returncode
    while (again := subprocess.run(words, capture_output=True, text=True)).returncode:
        time.sleep(1)
    records = Question(folder / "q").records
    assert {r.name for k in experiments.RUNS for r in Question(folder / "q").runs(k)} == set(records), again.stdout
    assert {name for name, r in records.items() if r["status"] == "failed"} == {n for n in records if "broken" in n}


def test_effects_by_hand():
    """Specialisation of the ends and the middle where two languages share nothing, or everything, of a layer."""
    from benchmarks.experiments.effects import by_document, effect, ends_over_middle, last_minus_first

    apart, together = np.array([[4.0, 0], [0, 4]]), np.array([[2.0, 2], [2, 2]])
    count_GLE = np.stack([together] * 6 + [apart] * 2, axis=1)
    assert last_minus_first(count_GLE) == pytest.approx(1)
    assert ends_over_middle(count_GLE) == pytest.approx(0.5 * 1 - 0)
    count_GNLE = np.stack([count_GLE] * 3, axis=1)
    count_UGLE = by_document(count_GNLE, ["b", "a", "b"])
    assert count_UGLE.shape == (2, 2, 8, 2) and count_UGLE[1].tolist() == (2 * count_GLE).tolist()
    sure = effect(lambda c: last_minus_first(c[0]), count_UGLE[:, None])
    assert sure["difference"] == sure["low"] == sure["high"] == pytest.approx(1) and sure["p_value"] < 0.01
    nothing = effect(lambda c: last_minus_first(c[0]) - last_minus_first(c[1]), np.stack([count_UGLE] * 2, axis=1))
    assert nothing["difference"] == 0 and nothing["p_value"] == 1


def test_halves_share_no_document_and_lose_none():
    from benchmarks.experiments.task_halves import halves
    from dragoman.corpora.pack import load_pack

    corpus = load_pack()
    first, second = halves(corpus)
    assert sorted(first.keys + second.keys) == sorted(corpus.keys) and set(first.splits) == {"train"}
    assert not set(first.documents) & set(second.documents)
    assert 0.3 < len(first) / corpus.splits.count("train") < 0.7
