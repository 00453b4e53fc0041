"""`dragoman compare` on two evaluations: of files of translations, and on records changed by hand."""

import json

import pytest

import dragoman
from dragoman import cli
from dragoman.commands import records, scoring, show
from dragoman.errors import DataError
from dragoman.evaluation.significance import holm, paired_bootstrap
from dragoman.record import sha256

REFERENCES = [f"Der Hund von Haus {i} bellt heute {i * 7 % 11} Mal sehr laut." for i in range(40)]
SOURCES = [f"The dog of house {i} barks {i * 7 % 11} times very loudly today." for i in range(40)]
GOOD = [r.replace("sehr laut", "recht laut") if i % 2 else r for i, r in enumerate(REFERENCES)]
BAD = [r.replace("bellt heute", "schläft") if i % 3 else SOURCES[i] for i, r in enumerate(REFERENCES)]
METRICS = ("chrf", "bleu", "length_ratio")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two evaluations of the same text, in folders `a` (bad) and `b` (good)."""
    monkeypatch.chdir(tmp_path)
    texts = {"good.de": GOOD, "bad.de": BAD, "ref.de": REFERENCES, "src.en": SOURCES}
    texts["docs"] = [f"d{i // 4}" for i in range(40)]
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    for out, file in (("a", "bad.de"), ("b", "good.de")):
        evaluate(out, file)
    return tmp_path


def evaluate(out, *files, **changes):
    settings = {"references": "ref.de", "documents": "docs", "target": "de", "metrics": METRICS}
    return dragoman.evaluate(hypotheses=files, out=out, **(settings | changes))


def change(folder, function):
    """Write a record again after a function has changed it."""
    file = folder / "record.json"
    record = json.loads(file.read_text())
    function(record)
    file.write_text(json.dumps(record))


def numbers(record):
    return {n["metric"]: n for n in record["numbers"]}


def test_the_test_is_that_of_one_evaluation_of_both(runs):
    record = dragoman.compare("a", "b", out="out")
    together = evaluate("both", "good.de", "bad.de")
    found, expected = ({c["metric"]: c for c in r["comparisons"]} for r in (record, together))
    assert set(found) == set(METRICS)
    for name in METRICS:
        for part in ("difference", "low", "high", "p_value", "unit", "units", "detectable"):
            assert found[name][part] == expected[name][part], (name, part)
    assert found["chrf"]["verdict"] == "better" and found["chrf"]["units"] == 10
    p = [c["p_value"] for c in record["comparisons"]]
    assert [c["p_holm"] for c in record["comparisons"]] == holm(p).tolist(), "Holm over all metrics"
    assert found["chrf"]["p_holm"] > found["chrf"]["p_value"]
    assert not record["untested"] and all(n["comparable"] for n in record["numbers"])
    assert numbers(record)["bleu"]["after"] == together["bleu"]["good.de"]["de"]
    assert any("fewer than 30 documents" in w for w in record["warnings"])


def test_documents_and_seed_reach_the_bootstrap(runs):
    (c, *_) = dragoman.compare("a", "b", out="out", seed=5)["comparisons"]
    read = {side: json.loads((runs / side / "segments.json").read_text()) for side in ("a", "b")}
    sums = [scoring.np.array(read[s]["sums"][f]["chrf"]["de"]) for s, f in (("b", "good.de"), ("a", "bad.de"))]
    by_hand = paired_bootstrap(*sums, scoring.formula("chrf"), documents=read["a"]["documents"]["chrf"]["de"], seed=5)
    assert (c["metric"], c["low"], c["p_value"]) == ("chrf", by_hand.low, by_hand.p_value)


def test_what_is_printed_and_written(runs, capsys):
    cli.run(["compare", "a", "b/record.json", "--out", "out"])
    printed = capsys.readouterr().out
    assert "before: bad.de in a/record.json\nafter: good.de in b/record.json" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "system bad.de good.de" in lines
    assert any(line.startswith("chrf de 48.5 91.3 yes") for line in lines)
    assert any(line.startswith("de after - before +42.9 [") for line in lines)
    assert "Holm over all differences" in printed
    assert (runs / "out" / "report.txt").read_text() in printed
    show.show(runs / "out" / "record.json")
    assert capsys.readouterr().out == printed, "the record alone gives the tables again"


def test_an_evaluation_and_itself(runs):
    record = dragoman.compare("a", "a", out="out")
    assert record["differs"] == []
    assert {(c["difference"], c["p_value"], c["verdict"]) for c in record["comparisons"]} == {(0, 1, "cannot tell")}


def test_what_differs_is_listed(runs):
    def later(record):
        record["versions"]["sacrebleu"] = "9.9"
        record["config"]["segments"] = 7
        record["dtypes"] = {record["systems"][0]: "bfloat16"}
        record["signatures"]["bleu"] = record["signatures"]["bleu"].replace("tok:13a", "tok:char")
        record["corpus"] = {"name": "help", "checksum": "abc"}

    change(runs / "b", later)
    differs = {d["what"]: (d["before"], d["after"]) for d in dragoman.compare("a", "b", out="out")["differs"]}
    assert differs.pop("version of sacrebleu")[1] == "9.9"
    assert differs.pop("segments") == ("300", "7")
    assert differs.pop("dtype") == ("float32", "bfloat16")
    assert differs.pop("bleu, setting tok") == ("13a", "char")
    assert (differs.pop("corpus"), differs.pop("checksum of the corpus")) == (("–", "help"), ("–", "abc"))
    assert set(differs) == {"system", "checksum of the system"}


def test_another_signature_keeps_one_metric_apart(runs):
    change(runs / "b", lambda r: r["signatures"].update(bleu=r["signatures"]["bleu"].replace("tok:13a", "tok:char")))
    record = dragoman.compare("a", "b", out="out")
    assert numbers(record)["bleu"]["reasons"] == ["signatures differ: tok is 13a and char"]
    assert [c["metric"] for c in record["comparisons"]] == ["chrf", "length_ratio"]
    row = next(line for line in records.text(record).splitlines() if line.split()[:2] == ["bleu", "de"])
    assert row.split()[1:5] == ["de", "–", "–", "no:"], "no numbers side by side that may not be compared"


@pytest.mark.parametrize(
    ("joined", "other", "comparable"),
    [("13a+zh", True, True), ("13a+zh", False, False), ("zh+char", True, False), ("13a", False, True)],
)
def test_settings_that_depend_on_the_language(runs, joined, other, comparable):
    """With more labels in one record, its `13a+zh` agrees with `13a`; with the same labels it does not."""

    def later(record):
        record["signatures"]["bleu"] = record["signatures"]["bleu"].replace("tok:13a", f"tok:{joined}")
        record["bleu"]["good.de"] |= {"zh": 1.0} if other else {}

    change(runs / "b", later)
    assert numbers(dragoman.compare("a", "b", out="out"))["bleu"]["comparable"] is comparable


def test_other_text_is_never_compared(runs):
    (runs / "ref.de").write_text("\n".join(["Etwas anderes.", *REFERENCES[1:]]) + "\n", encoding="utf-8")
    evaluate("c", "good.de")
    record = dragoman.compare("a", "c", out="out")
    assert {tuple(n["reasons"]) for n in record["numbers"]} == {("other references",)}
    assert not record["comparisons"] and not record["untested"]


def test_another_source_is_another_text_and_none_is_no_matter(runs):
    evaluate("c", "good.de", source="src.en")
    assert all(n["comparable"] for n in dragoman.compare("a", "c", out="out")["numbers"])
    (runs / "src.en").write_text("\n".join(s.upper() for s in SOURCES) + "\n")
    evaluate("d", "good.de", source="src.en")
    assert numbers(dragoman.compare("c", "d", out="out2"))["chrf"]["reasons"] == ["other sources"]


def test_other_terms_are_another_text(runs):
    for name, term in (("x", "Hund"), ("y", "Katze")):
        (runs / f"{name}.terms").write_text(f"{term}\n" * 40)
        evaluate(name, "good.de", terms=f"{name}.terms", metrics=("term_recall", "chrf"))
    found = numbers(dragoman.compare("x", "y", out="out"))
    assert not found["term_recall"]["comparable"] and found["term_recall"]["reasons"] == ["other terms"]
    assert found["chrf"]["comparable"]


def test_a_record_without_checksums_of_its_text_is_not_believed(runs):
    change(runs / "a", lambda r: r.pop("texts"))
    record = dragoman.compare("a", "b", out="out")
    assert numbers(record)["chrf"]["reasons"] == ["no checksum of the text in before: evaluate again"]


def test_without_segments_there_is_no_test(runs):
    (runs / "a" / "segments.json").unlink()
    record = dragoman.compare("a", "b", out="out")
    assert numbers(record)["chrf"]["comparable"] and not record["comparisons"]
    assert "Not tested: a/segments.json is not there, so only signatures" in records.text(record)
    (runs / "a" / "segments.json").write_text("{}")
    record = dragoman.compare("a", "b", out="out2")
    assert record["untested"] == [
        "a/segments.json is not the file that its record was written with, so nothing is tested"
    ]


def test_segments_of_other_documents_are_not_paired(runs):
    evaluate("c", "good.de", documents=None)
    record = dragoman.compare("a", "c", out="out")
    assert numbers(record)["chrf"]["comparable"] and not record["comparisons"]
    assert "chrf of de: its segments are in other documents; evaluate both with the same" in record["untested"]


def test_a_system_in_both_is_a_control(runs):
    evaluate("c", "good.de", "bad.de")
    evaluate("d", "ref.de", "bad.de")
    assert not [w for w in dragoman.compare("c", "d", out="out")["warnings"] if "bad.de" in w]
    change(runs / "d", lambda r: r["chrf"]["bad.de"].update(de=40.0))
    (told,) = [w for w in dragoman.compare("c", "d", out="out2")["warnings"] if "bad.de" in w]
    assert told.startswith("bad.de is the same in both records, but its chrf of de was 48.464 and is 40")
    change(runs / "d", lambda r: r["files"].update({"bad.de": sha256("another")}))
    assert not [w for w in dragoman.compare("c", "d", out="out3")["warnings"] if "bad.de" in w]


def test_what_cannot_be_compared_is_a_sentence(runs):
    evaluate("c", "good.de", metrics=("ter",))
    (runs / "d").mkdir()
    (runs / "e").mkdir()
    (runs / "e" / "record.json").write_text('{"command": "evaluate", "config": {"seed": 0}}')
    (runs / "f").mkdir()
    (runs / "f" / "record.json").write_text('{"command": "diagnose"}')
    for after, words in (
        (
            "c",
            r"nothing in common: a/record.json has chrf of de; bleu of de; .* and c/record.json has ter of de; evalu",
        ),
        ("d", r"d/record.json is not a file; give .*folder of `dragoman evaluate`"),
        ("e", r"e/record.json is an evaluation without systems, signatures, metrics; make it again"),
        ("f", r"f/record.json is a record of diagnose; compare takes two files of one kind: .*a record of evaluate"),
    ):
        with pytest.raises(DataError, match=words):
            dragoman.compare("a", after, out="out")
    assert not (runs / "out").exists()
