"""`dragoman evaluate` on files and on toy models."""

import json
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu

import dragoman
from dragoman import cli
from dragoman.commands import evaluate, scoring
from dragoman.commands.directions import only_direction, parse_directions
from dragoman.commands.judging import verdict
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.evaluation.coverage import WordAligner
from dragoman.evaluation.metrics import METRICS
from dragoman.evaluation.neural import Comet
from tests.evaluation.test_neural import comet_folder
from tests.texts import corpus

REFERENCES = [f"Der Hund von Haus {i} bellt heute {i * 7 % 11} Mal sehr laut." for i in range(40)]
SOURCES = [f"The dog of house {i} barks {i * 7 % 11} times very loudly today." for i in range(40)]
GOOD = [r.replace("sehr laut", "recht laut") if i % 2 else r for i, r in enumerate(REFERENCES)]
BAD = [r.replace("bellt heute", "schläft") if i % 3 else SOURCES[i] for i, r in enumerate(REFERENCES)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"good.de": GOOD, "bad.de": BAD, "ref.de": REFERENCES, "src.en": SOURCES}
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def score(**changes):
    settings = {"hypotheses": ("good.de", "bad.de"), "references": "ref.de", "source": "src.en", "target": "de"}
    return dragoman.evaluate(**{k: v for k, v in (settings | changes).items() if v is not None})


def test_values_of_files_are_those_of_sacrebleu(files):
    record = score()
    chrf = sacrebleu.corpus_chrf(GOOD, [REFERENCES]).score
    bleu = sacrebleu.corpus_bleu(BAD, [REFERENCES]).score
    assert record["chrf"]["good.de"]["de"] == pytest.approx(chrf, abs=1e-9)
    assert record["bleu"]["bad.de"]["de"] == pytest.approx(bleu, abs=1e-9)
    assert not any(files.glob("evaluation*")), "without --out nothing is written"


def test_every_metric_is_scored_or_left_out_with_a_reason(files):
    record = score()
    assert set(record["metrics"]) | set(record["left_out"]) == set(METRICS)
    assert not set(record["metrics"]) & set(record["left_out"])
    assert all(record["left_out"].values())
    assert {"chrf", "bleu", "off_target", "copies", "length_ratio", "numbers"} <= set(record["metrics"])
    without = score(source=None)
    assert "give --source" in without["left_out"]["copies"]
    assert without["chrf"] == record["chrf"]


def test_rates_of_the_references_stand_beside(files):
    record = score()
    assert record["off_target"]["references"]["de"] == 0
    assert record["copies"]["bad.de"]["de"] == pytest.approx(100 * 14 / 40)
    assert "references" not in record["chrf"]


def test_a_rate_with_nothing_judged_is_no_value_and_wins_nothing(files, capsys):
    """There is no placeholder in the files."""
    record = score()
    assert record["placeholders"] == {"good.de": {}, "bad.de": {}, "references": {}}
    assert record["placeholders_judged"]["good.de"] == {"de": 0}
    assert record["off_target_judged"]["good.de"] == record["off_target_judged"]["references"] == {"de": 40}
    assert not [c for c in record["comparisons"] if c["metric"] == "placeholders"]
    evaluate.show(record)
    assert "– (n 0)" in capsys.readouterr().out


def test_the_folder_is_asked_for_before_anything_is_scored(files, monkeypatch):
    (files / "run").mkdir()
    (files / "run" / "old").write_text("x")
    monkeypatch.setattr(scoring, "add_texts", lambda *_: 1 / 0)
    with pytest.raises(ConfigError, match="the output folder run is not empty"):
        score(out="run")


def test_comparisons_are_flagged_with_holm(files):
    record = score(metrics=("chrf", "bleu"))
    (chrf,) = [c for c in record["comparisons"] if c["metric"] == "chrf"]
    assert (chrf["a"], chrf["b"], chrf["unit"], chrf["units"]) == ("good.de", "bad.de", "segment", 40)
    assert chrf["verdict"] == "better"
    assert chrf["p_holm"] == chrf["p_value"], "one comparison in this metric"
    same = score(hypotheses=("good.de", "same.de"), metrics=("chrf",)) if copy_of("good.de", "same.de") else None
    (equal,) = same["comparisons"]
    assert (equal["verdict"], equal["difference"], equal["p_value"]) == ("cannot tell", 0, 1)
    assert any("not equality" in warning for warning in same["warnings"])


def copy_of(old, new):
    from pathlib import Path

    return Path(new).write_bytes(Path(old).read_bytes())


def test_documents_are_resampled_where_they_are_known(files):
    (files / "docs").write_text("\n".join(f"d{i // 4}" for i in range(40)) + "\n")
    record = score(documents="docs", metrics=("chrf",))
    assert [(c["unit"], c["units"]) for c in record["comparisons"]] == [("document", 10)]
    assert any("fewer than 30 documents" in w and "de (10)" in w for w in record["warnings"])
    assert not any("cannot be judged" in w for w in record["warnings"])


def test_too_few_documents_are_not_told_as_noise(files):
    (files / "docs").write_text("\n".join(f"d{i // 8}" for i in range(40)) + "\n")
    record = score(documents="docs", metrics=("chrf",))
    assert [(c["units"], c["verdict"]) for c in record["comparisons"]] == [(5, "cannot tell")]
    assert any("1 of 1 differences cannot be judged, however large" in w for w in record["warnings"])
    assert not any("within noise" in w for w in record["warnings"])


def test_verdict_by_hand():
    c = {"p_holm": 0.01, "difference": -1.0, "units": 6}
    assert verdict(c, True) == {"beyond_noise": True, "verdict": "worse"}
    assert verdict(c, False)["verdict"] == "better"
    assert verdict(c, None)["verdict"] == "differs"
    assert verdict(c | {"p_holm": 0.06}, True) == {"beyond_noise": False, "verdict": "cannot tell"}
    assert verdict(c | {"units": 5}, True)["verdict"] == "cannot tell", "2 / 2^5 is above 5 %"


def test_what_the_text_would_show_follows_from_the_interval(files):
    """2.80 standard errors; the interval is 2 * 1.96 of them where the bootstrap is about normal."""
    for c in score(metrics=("chrf", "bleu"))["comparisons"]:
        assert c["detectable"] == pytest.approx(2.80 / 3.92 * (c["high"] - c["low"]), rel=0.1)


def test_tables_and_record_are_written(files, capsys):
    names = [f"t.{form}" for form in ("md", "tex", "csv", "html", "txt")]
    words = ["evaluate", "--hypotheses", "good.de", "bad.de", "--references", "ref.de", "--target", "de", "--table"]
    cli.run([*words, *names, "--out", "run"])
    assert all((files / name).stat().st_size > 100 for name in names)
    record = json.loads((files / "run" / "record.json").read_text())
    segments = json.loads((files / "run" / record["segments"]["file"]).read_text())
    sums = np.array(segments["sums"]["good.de"]["chrf"]["de"])
    assert float(scoring.formula("chrf")(sums.sum(axis=0))) == record["chrf"]["good.de"]["de"]
    assert len(segments["documents"]["chrf"]["de"]) == 40
    assert segments["outputs"]["bad.de"]["de"] == BAD
    assert "chrF2, higher is better" in capsys.readouterr().out
    cli.run(["show", "run/record.json"])
    assert "chrF2, higher is better" in capsys.readouterr().out


def test_files_are_scored_without_torch(files):
    words = ["evaluate", "--hypotheses", "good.de", "--references", "ref.de", "--source", "src.en", "--target", "de"]
    code = f"from dragoman import cli; cli.run({words!r}); import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"references": None}, ConfigError, "--hypotheses needs --references too"),
        ({"hypotheses": ()}, ConfigError, "nothing to evaluate"),
        ({"model": "m"}, ConfigError, "score files without a model"),
        ({"directions": ("en-de",)}, ConfigError, "--directions would have no effect"),
        ({"hypotheses": ("good.de", "good.de")}, ConfigError, "named twice"),
        ({"target": "deutsch!"}, DataError, "is not a BCP-47 language tag"),
        ({"metrics": ("chrff",)}, ConfigError, "unknown metrics chrff; metrics are"),
        ({"table": ("t.docx",)}, ConfigError, r"no table can be written as t.docx; end in .txt, .md"),
        ({"split": "test"}, ConfigError, "--split would have no effect"),
        ({"segments": 7}, ConfigError, "--segments would have no effect"),
        ({"source": "ref.de"}, DataError, "references of ref.de are equal to their sources"),
    ],
)
def test_mistakes_are_a_sentence(files, changes, error, message):
    with pytest.raises(error, match=message):
        score(**changes)


def test_files_of_different_length_are_told_where(files):
    (files / "short.de").write_text("\n".join(GOOD[:20] + GOOD[21:]) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"short.de has 39 lines and ref.de 40.*near line 21"):
        score(hypotheses=("short.de",))
    (files / "empty.de").write_text("")
    with pytest.raises(DataError, match=r"empty.de is empty"):
        score(hypotheses=("empty.de",))


def test_a_language_that_the_identifier_lacks_costs_one_metric(files):
    record = score(target="rm")
    assert "rm" in record["left_out"]["off_target"]
    assert "chrf" in record["metrics"]


# Directions


def test_directions_by_hand():
    columns = ("en", "de", "pt", "pt-BR", "zh-TW")
    assert parse_directions(["en-de", "pt-BR-zh-TW"], columns, columns) == {
        "en-de": ("en", "de"),
        "pt-BR-zh-TW": ("pt-BR", "zh-TW"),
    }
    every = parse_directions(["en-all", "all-en"], ("en", "de", "pt"), columns)
    assert list(every) == ["en-de", "en-pt", "de-en", "pt-en"]
    assert len(parse_directions(["all-all"], columns, columns)) == 20
    with pytest.raises(ConfigError, match="no directions are en-en, xx-de, de; give source and target"):
        parse_directions(["en-en", "en-de", "xx-de", "de"], columns, columns)


def test_the_one_direction_of_two_plain_files():
    assert only_direction(["EN-de"]) == ["en", "de"]
    assert only_direction(["en-pt-BR"]) == ["en", "pt-BR"]
    assert only_direction(["zh-TW-sr-Latn"]) == ["zh-TW", "sr-Latn"]
    for words, told in (([], "given were none"), (["en-de", "de-en"], "given was en-de, de-en"), (["en"], "was en")):
        with pytest.raises(ConfigError, match=f"two plain files need one direction.*{told}"):
            only_direction(words)


# Models


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    from dragoman.modeling import TextCodec, save_model
    from tests.models import tiny
    from tests.texts import tokenizer

    folder = tmp_path_factory.mktemp("models")
    codec = TextCodec(tokenizer())
    for seed in (0, 1):
        save_model(tiny("olmoe", seed, vocab_size=len(codec.tokenizer)), codec, folder / f"m{seed}")
    corpus().save(folder / "text.tsv.gz")
    return folder


def test_models_in_two_directions(place):
    a, b = str(place / "m0"), str(place / "m1")
    record = dragoman.evaluate(
        a,
        against=(b,),
        corpus=str(place / "text.tsv.gz"),
        directions=("en-ca,ca-en",),
        segments=12,
        metrics=("chrf", "copies", "length_ratio"),
        out=place / "run",
        quiet=True,
    )
    assert record["systems"] == [a, b, "copy"]
    assert set(record["bits_per_byte"][a]) == {"en", "ca"}, "the languages of the directions"
    assert set(record["chrf"]["copy"]) == {"en-ca", "ca-en"}
    mean = record["means"]["chrf"]
    assert mean["of"][a] == pytest.approx(np.mean([*record["chrf"][a].values()]))
    pairs = [(c["metric"], c["b"]) for c in record["comparisons"]]
    assert pairs.count(("chrf", b)) == pairs.count(("chrf", "copy")) == 2
    assert ("copies", "copy") not in pairs, "the copy is scored against references only"
    holm = [c["p_holm"] for c in record["comparisons"] if c["metric"] == "chrf"]
    p = sorted(c["p_value"] for c in record["comparisons"] if c["metric"] == "chrf")
    assert min(holm) == pytest.approx(min(1, 4 * p[0])), "Holm is over all four comparisons of the metric"
    again = json.loads((place / "run" / "segments.json").read_text())
    assert len(again["outputs"][a]["en-ca"]) == 12
    texts = record["texts"]
    assert set(texts["likelihoods"]) == {"en", "ca"} and set(texts["references"]) == {"en-ca", "ca-en"}
    assert texts["sources"]["en-ca"] == texts["references"]["ca-en"] != texts["references"]["en-ca"]
    compared = dragoman.compare(place / "run", place / "run", out=place / "compared")
    assert all(n["comparable"] for n in compared["numbers"]) and not compared["untested"]
    assert {c["metric"] for c in compared["comparisons"]} == {"bits_per_byte", "chrf", "copies", "length_ratio"}


def test_a_test_set_of_two_files_and_one_of_a_folder(place, tmp_path):
    text = corpus().select(["en", "ca"], "devtest")
    for g in ("en", "ca"):
        (tmp_path / f"t.{g}").write_text("\n".join(text.columns[g]) + "\n", encoding="utf-8")
        long = {"en": "eng_Latn", "ca": "cat_Latn"}[g]
        (tmp_path / "f" / "devtest").mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / "devtest" / f"{long}.devtest").write_text("\n".join(text.columns[g]) + "\n", encoding="utf-8")
    settings = {"directions": ("en-ca",), "metrics": ("chrf",), "segments": 8, "quiet": True}
    model = str(place / "m0")
    one = dragoman.evaluate(
        model, test_set=(str(tmp_path / "t.en"), str(tmp_path / "t.ca")), out=tmp_path / "1", **settings
    )
    two = dragoman.evaluate(model, test_set=(str(tmp_path / "f"),), out=tmp_path / "2", **settings)
    assert one["chrf"] == two["chrf"]
    assert one["segments_scored"] == {"en-ca": 8}


def test_multiple_choice(place, tmp_path):
    """The accuracy is that of whole-sentence likelihoods, computed apart."""
    from dragoman.evaluation.likelihood import text_bits

    pairs = [("open the file", "open file the the"), ("save it now", "now it it save"), ("and another", "name name")]
    lines = ["sen\twrong_sen", *map("\t".join, pairs)]
    (tmp_path / "en.tsv").write_text("\n".join(lines) + "\n")
    settings = {"choices": tmp_path / "en.tsv", "out": tmp_path / "o", "quiet": True}
    record = dragoman.evaluate(str(place / "m0"), corpus=str(place / "text.tsv.gz"), **settings)
    model, codec = dragoman.open_model(str(place / "m0")), dragoman.open_tokenizer(str(place / "m0"))
    flat = [text for pair in pairs for text in pair]
    bits = text_bits(model, codec.encode(flat), start_id=codec.start_id, context=64)
    rate = (bits / [len(t.encode()) for t in flat]).reshape(-1, 2)
    assert record["option_accuracy"][str(place / "m0")]["en"] == pytest.approx(100 * (rate[:, 0] < rate[:, 1]).mean())
    assert "bits_per_byte" not in record["metrics"]
    assert list(record["texts"]["choices"]) == ["en"]


def test_mistakes_with_models_are_told_before_anything_is_written(place, tmp_path):
    settings = {"corpus": str(place / "text.tsv.gz"), "out": tmp_path / "x", "quiet": True}
    with pytest.raises(ConfigError, match="no directions are en-xx"):
        dragoman.evaluate(str(place / "m0"), directions=("en-xx",), **settings)
    with pytest.raises(ConfigError, match="--target score files without a model"):
        dragoman.evaluate(str(place / "m0"), target="de", **settings)
    with pytest.raises(ConfigError, match="the test split is sealed"):
        dragoman.evaluate(str(place / "m0"), split="test", **settings)
    with pytest.raises(ConfigError, match="give --directions too"):
        dragoman.evaluate(str(place / "m0"), metrics=("chrf",), **settings)
    with pytest.raises(DataError, match="fewer than two pairs"):
        dragoman.evaluate(str(place / "m0"), directions=("en-ca",), segments=2, split="dev", test_set=(), **settings | {
            "corpus": one_row(tmp_path)})  # fmt: skip
    (tmp_path / "own.tsv").write_text("en\tca\n" + "".join(f"a house {i}\tuna casa {i}\n" for i in range(8)))
    with pytest.raises(DataError, match="segments of en, ca in split devtest; no row of the file is held out for"):
        dragoman.evaluate(str(place / "m0"), **settings | {"corpus": str(tmp_path / "own.tsv")})
    rows = [f"{s}\t{s}{i}\ta house {i}\tuna casa {i}\n" for s, n in (("train", 9), ("dev", 3)) for i in range(n)]
    (tmp_path / "own.tsv").write_text("split\tdocument\ten\tca\n" + "".join(rows))
    with pytest.raises(DataError, match="segments of en, ca in split devtest; take --split dev, which has 3 rows"):
        dragoman.evaluate(str(place / "m0"), **settings | {"corpus": str(tmp_path / "own.tsv")})
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "olmoe"}')
    with pytest.raises(ConfigError, match=r"nothing was scored: .*/gone'.*; .*/bare'"):
        dragoman.evaluate(str(place / "m0"), against=(str(tmp_path / "gone"), str(tmp_path / "bare")), **settings)
    assert not (tmp_path / "x").exists()


def one_row(folder):
    (folder / "one.tsv").write_text("document\tsplit\ten\tca\nd\tdev\ta house\tuna casa\n")
    return str(folder / "one.tsv")


def test_an_untranslated_test_set_is_refused(place, tmp_path):
    rows = "".join(f"a house {i}\ta house {i}\n" for i in range(5))
    (tmp_path / "same.tsv").write_text("en\tca\n" + rows)
    with pytest.raises(DataError, match="all 5 references of en -> ca in same are equal"):
        evaluate.run(evaluate.Config(str(place / "m0"), test_set=(str(tmp_path / "same.tsv"),), directions=("en-ca",)))


def test_terms_and_parallel_text_bring_their_metrics(files):
    pytest.importorskip("thot")
    terms = [f"Hund\tHaus {i}" if i % 2 else "" for i in range(40)]  # half of the segments require two
    (files / "terms.tsv").write_text("\n".join(terms) + "\n")
    (files / "more.en").write_text("\n".join(SOURCES * 3) + "\n")
    (files / "more.de").write_text("\n".join(REFERENCES * 3) + "\n")
    record = score(terms="terms.tsv", aligner_text=("more.en", "more.de"))
    assert record["term_recall"]["good.de"]["de"] == 100
    has = sum("Hund" in a for a in BAD[1::2]) + sum(f"Haus {i}" in a for i, a in enumerate(BAD) if i % 2)
    assert record["term_recall"]["bad.de"]["de"] == pytest.approx(100 * has / 40)
    direct = METRICS["unaligned_source"](WordAligner(SOURCES * 3, REFERENCES * 3))
    sums_NS = direct.all_sums(BAD, SOURCES)
    assert record["unaligned_source"]["bad.de"]["de"] == pytest.approx(float(direct.from_sums(sums_NS.sum(axis=0))))
    assert {"terms.tsv"} <= {name.split("/")[-1] for name in record["files"]}
    assert {"unaligned_source", "unaligned_hypothesis", "term_recall"}.isdisjoint(record["left_out"])


def test_weights_bring_their_metric(files):
    folder = comet_folder(files, hidden_sizes=[8])
    short = {"few.de": ["b a", "c d"], "few.ref": ["b b", "d d"], "few.en": ["a b c", "d"]}
    for name, lines in short.items():
        (files / name).write_text("\n".join(lines) + "\n")
    record = score(hypotheses=("few.de",), references="few.ref", source="few.en", weights={"comet": folder})
    expected = Comet(folder).all_sums(short["few.de"], short["few.en"], short["few.ref"])[:, 0].mean()
    assert record["comet"]["few.de"]["de"] == pytest.approx(expected, rel=1e-5)
    assert record["metrics"]["comet"] == {"title": "COMET", "higher_is_better": True}
    assert not any("beginning" in warning for warning in record["warnings"])
    (files / "few.de").write_text(f"b a\n{'c d ' * 9}\n")
    long = score(hypotheses=("few.de",), references="few.ref", source="few.en", weights={"comet": folder})
    (told,) = [warning for warning in long["warnings"] if "beginning" in warning]
    assert "comet of de by few.de, 2. " in told


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": {"comet": "nowhere"}}, ModelError, "no COMET weights in /.*nowhere: config.json, hparams.yaml"),
        ({"weights": {"metricx": "nowhere"}}, ModelError, "no MetricX weights in /.*nowhere"),
        ({"weights": {"bleurt": "nowhere"}}, ConfigError, "no weights are read for bleurt; .* comet and metricx"),
        ({"metrics": ("comet",)}, DataError, "comet: it needs local weights: --weights.comet FOLDER"),
        ({"metrics": ("term_recall",)}, DataError, "term_recall: it needs the terms of each segment: --terms FILE"),
        ({"metrics": ("bleu",), "terms": "src.en"}, ConfigError, "--terms would have no effect on bleu"),
        ({"aligner_text": ("src.en",)}, ConfigError, "two files, sources and translations, not 1"),
        ({"aligner_text": ("src.en", "short.de")}, DataError, "src.en has 40 lines and short.de 5"),
        ({"terms": "short.de"}, DataError, "short.de has 5 lines and ref.de 40"),
    ],
)
def test_files_of_metrics_that_do_not_fit(files, changes, error, message):
    (files / "short.de").write_text("\n".join(REFERENCES[:5]) + "\n")
    with pytest.raises(error, match=message):
        score(**changes)
