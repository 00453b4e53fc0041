"""Which runs may be compared: what they read, which languages they were scored in, and whether they kept any sums."""

import json
import re

import pytest
import yaml

from dragoman.commands import claims, experimenting, report
from dragoman.commands.experiments import Question
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError

DOCUMENTS = ["d0", "d1"]
LIST = {"corpus": "c", "known": ["en", "es"], "targets": {"ca": None, "tr": None}, "seeds": [1, 2]}
CLAIM = {"id": "x", "paper": "p", "source": "s", "ours": "o", "a": "first/good", "b": "second/bad"}


def run(folder, listed, arm, target, seed, *, labels=("en", "es"), inputs=None, table="t"):
    """A record of two documents, each language of which has seed bits in ten bytes."""
    sums = {"bits_per_byte": {g: [[seed, 10]] * 2 for g in (target, *labels)}}
    made = {"status": "ended", "documents": DOCUMENTS, "sums": sums, "records": {}}
    if inputs:
        made["inputs"] = {f"{what}_sha256": checksum for what, checksum in inputs.items()}
        corpus = {"checksum": inputs.get("test"), "from_table": table}
        made["records"] = {"adapted": {"corpus": {"checksum": "other", "from_table": "u"}}, "e": {"corpus": corpus}}
    path = folder / "q" / "results" / f"{listed}--{arm}--{target}--seed-{seed}.json"
    path.write_text(json.dumps(made))


def question(tmp_path, second=None, **of_second):
    """Lists `first` and `second` with an arm each; what differs in the second list, and in its records."""
    (tmp_path / "q" / "results").mkdir(parents=True, exist_ok=True)
    (tmp_path / "q" / "claim.md").write_text("# A claim\n")
    known = {"inputs": {"base": "b", "corpus": "c", "test": "t"}}
    for listed, arm, more, given in (("first", "good", {}, known), ("second", "bad", second or {}, known | of_second)):
        text = yaml.safe_dump(LIST | more | {"arms": {arm: None}}, sort_keys=False)
        (tmp_path / "q" / f"{listed}.yaml").write_text(text)
        for g in ("ca", "tr"):
            for seed in (1, 2):
                run(tmp_path, listed, arm, g, seed, **given)
    return Question(tmp_path / "q")


def judged(question, **more):
    text = {"columns": [], "claims": [CLAIM | {"measure": "known_bits"} | more]}
    (question.folder / "claims.yaml").write_text(yaml.safe_dump(text))
    (found,) = claims.judged(question)
    return found


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"base": "z"}, r"q, first/good against q, second/bad compares runs that .* \(base mini-moe: b in first--good--"
                        r"tr--seed-2, z in second--bad--tr--seed-2\); compare those that did"),
        ({"corpus": "z"}, r"\(text of c in en es ca tr: c in .*, z in"),
        ({"test": "z"}, r"\(test text in en es ca tr: t in .*, z in"),
        ({"base": "y", "test": "z"}, r"\(base mini-moe: b in .*, y in .*; test text in en es ca tr: t in .*, z in"),
    ],
)  # fmt: skip
def test_runs_that_read_other_things_are_not_compared(tmp_path, other, message):
    assert judged(question(tmp_path / "same"))["difference"] == 0
    both = {"base": "b", "corpus": "c", "test": "t"}
    with pytest.raises(DataError, match=message):
        judged(question(tmp_path / "other", inputs=both | other))


def test_nor_runs_of_one_arm(tmp_path):
    found = question(tmp_path)
    run(tmp_path, "first", "good", "tr", 2, inputs={"base": "b", "corpus": "c", "test": "z"})
    with pytest.raises(DataError, match=r"q, first/good, compares .* t in first--good--ca--seed-2, z in .*tr--seed-2"):
        judged(Question(found.folder))


def test_what_a_record_does_not_say_and_what_lists_declare_is_no_difference(tmp_path):
    assert judged(question(tmp_path / "old", inputs=None))["difference"] == 0
    other = {"base": "another", "corpus": "d", "test_corpus": "c"}
    assert judged(question(tmp_path / "b", other, inputs={"base": "z", "corpus": "z", "test": "t"}))["difference"] == 0


def test_columns_in_another_order_are_the_same_test_text(tmp_path):
    """Its checksum is another one then; rows of another table, other rows or other languages are other text."""
    turned = {"targets": {"tr": None, "ca": None}}
    inputs = {"base": "b", "corpus": "y", "test": "z"}
    assert judged(question(tmp_path / "a", turned, inputs=inputs))["difference"] == 0
    assert judged(question(tmp_path / "e", turned, inputs=inputs), measure="target_bits")["difference"] == 0
    with pytest.raises(DataError, match=r"\(table of the test text: t in .*, v in .*\)"):
        judged(question(tmp_path / "b", turned, inputs=inputs, table="v"))
    with pytest.raises(DataError, match=r"\(rows of the test text: 300 in ca en es tr in .*, 9 in ca en es tr in"):
        judged(question(tmp_path / "c", turned | {"rows": {"test": 9}}, inputs=inputs))
    with pytest.raises(DataError, match=r"\(rows of the test text: 300 in ca en es tr in .*, 300 in ca de en es tr in"):
        judged(question(tmp_path / "d", {"complete": ["de"]}, inputs=inputs))


def test_as_many_other_languages_are_not_compared(tmp_path):
    message = r"in other languages are not compared: q, first/good in en es and q, second/bad in en de"
    with pytest.raises(DataError, match=message):
        judged(question(tmp_path / "a", {"known": ["en", "de"]}, labels=("en", "de"), inputs=None))
    turned = question(tmp_path / "b", {"known": ["es", "en"]}, labels=("es", "en"), inputs=None)
    assert judged(turned)["difference"] == 0, "a mean has no order"


def test_a_prediction_compares_too(tmp_path):
    found = question(tmp_path)
    more = {"arms": {"good": None, "bad": None}, "prepare": ["categorize"]}
    (found.folder / "first.yaml").write_text(yaml.safe_dump(LIST | more))
    (found.results / "first--prepare--all.json").write_text(json.dumps({"status": "ended", "records": {}}))
    for g in ("ca", "tr"):
        for seed in (1, 2):
            run(tmp_path, "first", "bad", g, seed, inputs={"base": "z", "corpus": "c", "test": "t"})
    with pytest.raises(DataError, match="q, first/good against q, first/bad compares runs that did not read the same"):
        judged(Question(found.folder), b="first/bad", predictor="ci")


def test_a_record_without_sums_is_told_in_a_sentence(tmp_path):
    found = question(tmp_path)
    path = found.results / "second--bad--tr--seed-1.json"
    for documents in ({}, {"documents": {"chrf": {"en-tr": DOCUMENTS}}}):
        made = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("documents", "sums")}
        path.write_text(json.dumps(made | documents))
        with pytest.raises(DataError, match=r"second--bad--tr--seed-1 of q has no bits_per_byte, as what its .*scored"):
            judged(Question(found.folder))
        (found.folder / "claims.yaml").write_text("columns: [known_bits]\nclaims: []\n")
        with pytest.raises(DataError, match="has no bits_per_byte"):
            report.run(report.Config(tmp_path))


@pytest.fixture
def scored(tmp_path):
    """Runs a list whose `scored` is a folder; what evaluates is a stub that writes the sums of two segments."""
    splits = ("train", "dev", "dev", "test", "test")
    text = {"en": [f"some words that stand in row {i}" for i in range(5)]}
    NText(("en",), tuple("01234"), tuple("abcde"), splits, text, {}).save(tmp_path / "text.tsv")

    def evaluate(words):
        out = experimenting.Path(words[words.index("--out") + 1])
        out.mkdir()
        sums = {"model": {"bits_per_byte": {"en": [[1, 2], [3, 4]]}}}
        documents = {"bits_per_byte": {"en": ["e", "d"]}}
        (out / "segments.json").write_text(json.dumps({"sums": sums, "documents": documents}))
        (out / "record.json").write_text(json.dumps({"command": "evaluate", "systems": ["model"]}))

    def executed(folder, **more):
        given = {"corpus": str(tmp_path / "text.tsv"), "known": ["en"], "arms": {"base": {"seeds": [0]}}}
        given |= {"test": ["evaluate {base} --corpus {test} --out {out}/evaluation"]}
        (tmp_path / "q").mkdir()
        (tmp_path / "q" / "claim.md").write_text("# A claim\n")
        (tmp_path / "q" / "list.yaml").write_text(yaml.safe_dump(given | {"scored": folder} | more))
        found = Question(tmp_path / "q")
        experimenting.open_question(found, tmp_path / "work")
        (final,) = found.runs("final")
        experimenting.execute(found, final, tmp_path / "work", experimenting.attempt_path(found, final), evaluate)
        return found.records[final.name], tmp_path / "work" / "q"

    return executed


def test_sums_are_kept_where_the_list_says_they_are(scored):
    record, work = scored("{out}/evaluation")
    assert record["status"] == "ended" and record["documents"] == ["d", "e"]
    assert record["sums"] == {"bits_per_byte": {"en": [[3, 4], [1, 2]]}}
    assert not list(work.glob("*.unscored")) and not list(work.glob("*.running"))


def test_a_mistyped_folder_of_sums_is_a_failure_that_loses_nothing(scored):
    """The run has scored something: it counts as failed, says why, and what it left stays."""
    arms = {"base": {"seeds": [0], "place": "evaluation"}}
    lines = ["evaluate {base} --corpus {test} --out {out}/{place}"]
    record, work = scored("{out}/evalaution", arms=arms, test=lines)
    assert record["status"] == "failed" and "sums" not in record
    said = r"{out}/evalaution, the `scored` of the list list, .* \(DataError .*segments.json.*question of its own"
    assert re.search(said, record["error"]), record["error"]
    assert (work / "list--base--all--seed-0.unscored" / "evaluation" / "segments.json").is_file()
    assert not list(work.glob("*.running"))


def test_so_is_a_system_that_is_not_there(scored):
    record, work = scored("{out}/evaluation", system="modle")
    assert record["status"] == "failed" and "KeyError 'modle'" in record["error"]
    assert (work / "list--base--all--seed-0.unscored" / "evaluation" / "segments.json").is_file()


def test_a_folder_into_which_nothing_is_evaluated_is_told_before_anything_runs(scored):
    with pytest.raises(ConfigError, match=r"`scored` is .*evalaution, but its lines evaluate into .*/eval"):
        scored("{out}/evalaution")


def test_a_run_that_evaluates_nothing_has_no_sums(scored):
    record, work = scored("{out}/evaluation", test=["inspect {base} --out {out}/x"])
    assert record["status"] == "ended" and "sums" not in record and not list(work.glob("*.unscored"))
