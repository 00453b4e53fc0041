"""Claims, verdicts and the report, on records whose numbers are made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dragoman.commands import claims, report
from dragoman.commands.experiments import Question
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.significance import holm

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [f"d{i}" for i in range(40)]
TARGETS = ("ca", "tr")
LIST = {"corpus": "c", "known": ["en", "es"], "targets": {g: {} for g in TARGETS}, "seeds": [1, 2, 3]}
LIST |= {"arms": {"base": {"seeds": [0]}, "good": None, "bad": None}}
BITS = {
    "base": {"t": 4.0, "en": 1.0, "es": 1.0},
    "good": {"t": 2.0, "en": 1.1, "es": 1.2},
    "bad": {"t": 3.0, "en": 2.0, "es": 1.0},
}
CLAIM = {"paper": "p", "source": "s", "ours": "o", "a": "first/good", "b": "first/bad"}


def record(arm, target, seed):
    """Sums [bits, bytes] of 40 documents: an arm's bits per byte, documents and seeds varying about it."""
    rng = np.random.default_rng([seed, len(arm), TARGETS.index(target)])
    sums = {}
    for label in (target, "en", "es"):
        bits = BITS[arm]["t" if label == target else label]
        noise_U = rng.normal(0, 0.02, len(DOCUMENTS)) + rng.normal(0, 0.01)
        sums[label] = [[(bits + x) * 100, 100] for x in noise_U]
    return {"status": "ended", "documents": DOCUMENTS, "sums": {"bits_per_byte": sums}, "records": {}}


@pytest.fixture
def folder(tmp_path):
    question = tmp_path / "q"
    (question / "results").mkdir(parents=True)
    (question / "claim.md").write_text("# A claim\n")
    (question / "first.yaml").write_text(yaml.safe_dump(LIST))
    for arm in BITS:
        for g in TARGETS:
            for seed in (0,) if arm == "base" else (1, 2, 3):
                (question / "results" / f"first--{arm}--{g}--seed-{seed}.json").write_text(
                    json.dumps(record(arm, g, seed))
                )
    return tmp_path


def claim(folder, *given, **more):
    text = {"columns": ["target_bits", "gain", "worst_loss"]}
    text["figure"] = {"list": "first", "x": "worst_loss", "y": "gain"}
    path = folder / "q" / "claims.yaml"
    path.write_text(yaml.safe_dump(text | more | {"claims": [CLAIM | {"id": str(i)} | c for i, c in enumerate(given)]}))
    return claims.judged(Question(folder / "q"))


def test_measures_by_hand(folder):
    """Naive loops over the records give what the panel gives."""
    question = Question(folder / "q")

    def bits(arm, g, seed, label):
        sums_US = np.array(question.records[f"first--{arm}--{g}--seed-{seed}"]["sums"]["bits_per_byte"][label])
        return sums_US[:, 0].sum() / sums_US[:, 1].sum()

    for name, of_target in {
        "target_bits": lambda g: bits("good", g, 2, g),
        "gain": lambda g: 100 * (1 - bits("good", g, 2, g) / bits("base", g, 0, g)),
        "worst_loss": lambda g: max(100 * (bits("good", g, 2, k) / bits("base", g, 0, k) - 1) for k in ("en", "es")),
        "known_bits": lambda g: np.mean([bits("good", g, 2, k) for k in ("en", "es")]),
    }.items():
        panel = claims.panel(question, "first/good", name)
        assert len(panel.sums_KUS) == 3
        assert float(panel(panel.sums_KUS[1].sum(axis=0))) == pytest.approx(np.mean([of_target(g) for g in TARGETS]))
        many = panel(np.stack([s.sum(axis=0) for s in panel.sums_KUS]))
        assert many.shape == (3,) and many[1] == pytest.approx(panel(panel.sums_KUS[1].sum(axis=0)))


def second(folder, name, **more):
    """Another list, whose only arm has what `good` of the first has; its base, where it has one, twice its bits."""
    given = LIST | {"targets": {"ca": {}}, "arms": {"good": None}} | more
    (folder / "q" / f"{name}.yaml").write_text(yaml.safe_dump(given))
    for arm in given["arms"]:
        made = record("good", "ca", 1)
        made["sums"]["bits_per_byte"] = {
            g: [[(2 if arm == "base" else 1) * bits, size] for bits, size in rows]
            for g, rows in made["sums"]["bits_per_byte"].items()
        }
        for seed in (0,) if arm == "base" else (1, 2, 3):
            (folder / "q" / "results" / f"{name}--{arm}--ca--seed-{seed}.json").write_text(json.dumps(made))
    return Question(folder / "q")


def value(question, arm, measure):
    panel = claims.panel(question, arm, measure, ["ca"])
    return float(panel(panel.sums_KUS[0].sum(axis=0)))


def test_a_list_is_measured_from_its_own_base(folder):
    """A base of its own before one whose list comes first by name; without one, that of a list on the same base."""
    own = {"base": {"seeds": [0]}, "good": None}
    assert value(second(folder, "later", arms=own), "later/good", "gain") == pytest.approx(50)
    assert value(second(folder, "later", arms=own), "later/good", "worst_loss") == pytest.approx(-50)
    borrowed = second(folder, "later")
    assert claims.base_run(borrowed, "later", "ca").list == "first"
    assert value(borrowed, "later/good", "gain") == pytest.approx(value(borrowed, "first/good", "gain"), abs=1)
    second(folder, "earlier", arms=own, base="another")
    assert claims.base_run(second(folder, "later"), "later", "ca").list == "first", "not a base of another model"


def test_nothing_is_gained_or_lost_against_no_base(folder):
    question = second(folder, "later", corpus="another")
    with pytest.raises(ConfigError, match=r"no list of .* on mini-moe and another has an arm base for ca"):
        claims.panel(question, "later/good", "worst_loss")
    assert value(question, "later/good", "target_bits") == pytest.approx(2, abs=0.05), "which reads no base"


def test_verdicts(folder):
    """2 bits against 3: better, within no margin the wrong way round, and two equal arms show nothing."""
    better, worse, same, competes, not_within, untestable = claim(
        folder,
        {"measure": "target_bits"},
        {"measure": "target_bits", "a": "first/bad", "b": "first/good"},
        {"measure": "target_bits", "b": "first/good"},
        {"measure": "target_bits", "a": "first/bad", "b": "first/good", "margin": 0.6},
        {"measure": "target_bits", "a": "first/bad", "b": "first/good", "margin": 0.4},
        {"untestable": "by chance"},
    )
    assert (better["verdict"], worse["verdict"], same["verdict"]) == ("holds", "contradicts", "does not show")
    assert better["difference"] == pytest.approx(-1, abs=0.05) and better["runs"] == [3, 3] and better["units"] == 40
    assert (competes["verdict"], not_within["verdict"]) == ("holds", "contradicts")
    assert competes["difference"] == pytest.approx(3 - 1.6 * 2, abs=0.1)
    assert untestable["verdict"] == "cannot be tested here"
    tested = [better, worse, same, competes, not_within]
    np.testing.assert_allclose([c["p_holm"] for c in tested], holm([c["p_value"] for c in tested]))


def test_runs_are_paired_by_seed_alone(folder):
    """Arms whose documents do not vary and whose seeds do, equally: in pairs the difference is sure, else it is not."""
    for seed in (1, 2, 3, 4):
        for arm, bits in (("good", 2 + seed / 10), ("bad", 2.1 + seed / 10)):
            path = folder / "q" / "results" / f"first--{arm}--ca--seed-{seed}.json"
            sums = {g: [[bits * 100, 100]] * len(DOCUMENTS) for g in ("ca", "en", "es")}
            path.write_text(json.dumps(record("good", "ca", 1) | {"sums": {"bits_per_byte": sums}}))
    arms = LIST["arms"] | {"bad": {"seeds": [2, 3, 4]}}
    (folder / "q" / "first.yaml").write_text(yaml.safe_dump(LIST | {"targets": {"ca": {}}, "arms": arms}))
    other, same = claim(folder, {"measure": "target_bits"}, {"measure": "target_bits", "seeds": [2, 3]})
    assert other["runs"] == [3, 3] and other["high"] - other["low"] > 0.1, "seeds 1, 2, 3 and 2, 3, 4 are no pairs"
    assert same["runs"] == [2, 2] and same["low"] == pytest.approx(same["high"])


def test_the_difference_seed_by_seed(folder):
    """By naive loops; a margin multiplies the second arm, a single run is beside each of the others."""
    bits = {}
    for arm, seeds in {"good": (1, 2, 3), "bad": (1, 2, 3), "base": (0,)}.items():
        sums = {k: np.array(record(arm, "ca", k)["sums"]["bits_per_byte"]["ca"]).sum(axis=0) for k in seeds}
        bits |= {(arm, k): bits / size for k, (bits, size) in sums.items()}
    of_ca = {"measure": "target_bits", "targets": ["ca"]}
    of_base = {"a": "first/base", "b": "first/base"}
    pairs, margin, base, odd = claim(
        folder, of_ca, of_ca | {"margin": 0.05}, of_ca | {"b": "first/base"}, of_ca | of_base
    )
    good, bad = ([bits[arm, k] for k in (1, 2, 3)] for arm in ("good", "bad"))
    assert report.by_seed(pairs) == ", ".join(f"{a - b:+.3f}" for a, b in zip(good, bad, strict=True))
    assert report.by_seed(margin) == ", ".join(f"{a - 1.05 * b:+.3f}" for a, b in zip(good, bad, strict=True))
    assert report.by_seed(base) == ", ".join(f"{a - bits['base', 0]:+.3f}" for a in good)
    assert report.by_seed(odd) == "–", "one run of each"
    assert report.by_seed({"id": "untestable"}) == "–"


def test_seed_0_is_that_of_an_arm_that_has_no_other(folder):
    arms = {"base": {"seeds": [0]}, "good": {"seeds": [0, 1, 2]}}
    (folder / "q" / "first.yaml").write_text(yaml.safe_dump(LIST | {"arms": arms}))
    for g in TARGETS:
        (folder / "q" / "results" / f"first--good--{g}--seed-0.json").write_text(json.dumps(record("good", g, 0)))
    question = Question(folder / "q")
    seeds = {arm: claims.panel(question, f"first/{arm}", "gain", seeds=[1, 2]).seeds for arm in arms}
    assert seeds == {"base": (0,), "good": (1, 2)}
    assert claims.panel(question, "first/good", "gain").seeds == (0, 1, 2)


def test_families_have_a_holm_each_and_wait_for_all_of_theirs(folder):
    (folder / "q" / "results" / "first--bad--tr--seed-3.json").unlink()
    of_good = {"b": "first/base", "measure": "target_bits"}
    first, second, alone = claim(
        folder, of_good, {"measure": "target_bits"}, of_good | {"family": "other"}
    )
    assert second["missing"] == ["first--bad--tr--seed-3"] and second["verdict"] == "open"
    assert first["verdict"] == "open", "its family is not whole"
    assert alone["verdict"] == "holds" and alone["p_holm"] == alone["p_value"]
    only_ca = claim(folder, {"measure": "target_bits", "targets": ["ca"]}, {"measure": "target_bits", "seeds": [1, 2]})
    assert [c["verdict"] for c in only_ca] == ["holds", "holds"] and only_ca[1]["runs"] == [2, 2]


def test_effects_that_a_script_measured(folder):
    path = folder / "q" / "results" / "first--base--ca--seed-0.json"
    effect = {"difference": 0.3, "low": 0.1, "high": 0.5, "p_value": 0.01, "units": 40, "better": "higher"}
    path.write_text(json.dumps(record("base", "ca", 0) | {"effects": {"x": effect}}))
    (folder / "q" / "first.yaml").write_text(yaml.safe_dump(LIST | {"targets": {"ca": {}}}))
    (found,) = claim(folder, {"a": "first/base", "effect": "x"})
    assert found["verdict"] == "holds" and report.effect(found) == "+0.300 [+0.100, +0.500]"


def test_what_cannot_be_compared(folder):
    with pytest.raises(ConfigError, match="0 names 'taste', and measures are target_bits"):
        claim(folder, {"measure": "taste"})
    with pytest.raises(ConfigError, match="0 names first/nobody, and there is no such list and arm"):
        claim(folder, {"measure": "target_bits", "a": "first/nobody"})
    with pytest.raises(DataError, match="has no chrf of en-ca"):
        claim(folder, {"measure": "target_chrf"})
    path = folder / "q" / "results" / "first--good--ca--seed-1.json"
    path.write_text(json.dumps(record("good", "ca", 1) | {"documents": DOCUMENTS[::-1]}))
    with pytest.raises(DataError, match="were scored on other documents"):
        claim(folder, {"measure": "target_bits"})


def keep_documents(folder, arm, target, kept):
    """Cut the records of an arm on a target to some documents."""
    for path in (folder / "q" / "results").glob(f"first--{arm}--{target}--*.json"):
        found = json.loads(path.read_text())
        where = [DOCUMENTS.index(name) for name in kept]
        found["documents"] = kept
        by = found["sums"]["bits_per_byte"]
        found["sums"]["bits_per_byte"] = {label: [rows[i] for i in where] for label, rows in by.items()}
        path.write_text(json.dumps(found))


def test_targets_may_have_documents_of_their_own(folder):
    """As items of a task have. Of each target its own count, and of both arms the same ones."""
    kept = DOCUMENTS[1::3]
    for arm in BITS:
        keep_documents(folder, arm, TARGETS[1], kept)
    question = Question(folder / "q")
    ours = claims.panel(question, "first/good", "target_bits")
    assert ours.documents == sorted(DOCUMENTS) and ours.of_targets[1] == tuple(kept)
    for sums_US, seed in zip(ours.sums_KUS, (1, 2, 3), strict=True):
        by = [question.records[f"first--good--{g}--seed-{seed}"]["sums"]["bits_per_byte"][g] for g in TARGETS]
        naive = np.mean([np.sum(rows, axis=0)[0] / np.sum(rows, axis=0)[1] for rows in by])
        assert ours(sums_US.sum(axis=0)) == pytest.approx(naive)
    (found,) = claim(folder, {"measure": "target_bits"})
    assert np.isfinite([found["difference"], found["low"], found["high"]]).all()
    keep_documents(folder, "good", TARGETS[0], DOCUMENTS[::2])
    with pytest.raises(DataError, match="on other documents are not compared"):
        claim(folder, {"measure": "target_bits"})


def test_of_five_documents_no_claim_is_shown(folder):
    """However small p is by bootstrap; an effect that a script measured on as few shows nothing either."""
    verdicts = []
    for number in (6, 5):
        for arm in BITS:
            for g in TARGETS:
                keep_documents(folder, arm, g, DOCUMENTS[:number])
        (found,) = claim(folder, {"measure": "target_bits"})
        assert found["units"] == number and found["p_holm"] < 0.05
        verdicts.append(found["verdict"])
    assert verdicts == ["holds", "does not show"]
    effect = {"p_value": 0.01, "p_holm": 0.01, "difference": 1.0, "better": "higher"}
    assert claims.verdict(effect | {"units": 5}, False) == "does not show"
    assert claims.verdict(effect | {"units": 5, "predictor": "ci"}, False) == "holds", "its test is exact"
    assert claims.verdict(effect, False) == "holds", "a script need not say of how many"


def faults(folder, text):
    path = folder / "q" / "claims.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(ConfigError) as error:
        claims.judged(Question(folder / "q"))
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(f"{path}: ").removesuffix("; docs/experiments.md says what claims are")


def test_mistakes_in_claims_come_together(folder):
    second(folder, "later")
    given = {
        "nothing": {},
        "both": {"effect": "x", "a": "frist/good"},
        "many": {"effect": "x"},
        "measure": {"measure": "taste", "margins": 0.1},
        "arm": {"measure": "gain", "b": "first/nobody"},
        "choice": {"measure": "gain", "targets": ["ca", "nl"], "seeds": [3, 4], "b": "first/base"},
        "one": {"measure": "gain", "targets": "ca", "margin": "5 %"},
        "other": {"measure": "gain", "b": "later/good"},
        "fine": {"untestable": "by chance"},
    }
    listed = [CLAIM | {"id": name} | more for name, more in given.items()]
    figure = {"list": "later", "x": "worst_loss", "y": "taste"}
    measures = f"and measures are {', '.join(claims.MEASURES)}"
    found = faults(folder, {"columns": ["gain", "looks"], "figure": figure, "claims": [*listed, {"id": "a"}, "b"]})
    assert found.split("; ") == [
        f"columns names 'looks', {measures}",
        f"figure names 'taste', {measures} (axis y)",
        "figure names the list later, and there is no such list with an arm base",
        "a claim is not a mapping: b",
        "nothing has no measure, effect or reason why it is untestable",
        "both names frist/good, and there is no such list and arm",
        "many takes an effect of first/good, which has 6 runs, not one",
        "measure has margins, which is no key of a claim",
        f"measure names 'taste', {measures}",
        "arm names first/nobody, and there is no such list and arm",
        "choice names the target nl, which first/good has not",
        "choice names the seed 4, which first/good has not",
        "choice names the target nl, which first/base has not",
        "one has targets that are no list",
        "one has the margin 5 %, which is no number",
        "other compares first/good and later/good, which have other targets",
        "name those that both have",
        "a has no paper",
        "a has no source",
        "a has no ours",
        "a has no measure, effect or reason why it is untestable",
    ]


def test_what_is_no_file_of_claims(folder):
    assert "claims.yaml is no file of claims: " in faults(folder, "claims: [a\n")
    assert "claims.yaml is no file of claims: " in faults(folder, "- a\n")
    assert faults(folder, "claim: []\n") == "claim is no key of it; columns is missing; claims is missing"
    assert faults(folder, "columns: gain\nclaims: {}\nfigure: x\n") == (
        "columns is no list; claims is no list; figure is no mapping"
    )


def test_an_effect_that_the_record_has_not(folder):
    (folder / "q" / "first.yaml").write_text(yaml.safe_dump(LIST | {"targets": {"ca": {}}}))
    path = folder / "q" / "results" / "first--base--ca--seed-0.json"
    path.write_text(json.dumps(record("base", "ca", 0) | {"effects": {"x": {"difference": 1, "p_value": 0.01}}}))
    with pytest.raises(DataError, match=r"asks for difference, p_value, better of the effect y, .*its effects are x"):
        claim(folder, {"a": "first/base", "effect": "y"})
    with pytest.raises(DataError, match="asks for better of the effect x"):
        claim(folder, {"a": "first/base", "effect": "x"})
    (found,) = claim(folder, {"a": "first/base", "effect": "x", "better": "lower"})
    assert found["verdict"] == "contradicts"


def test_the_report_is_the_same_again_and_a_stale_one_is_seen(folder):
    claim(folder, {"measure": "target_bits"})
    config = report.Config(folder)
    assert report.run(config)["claims"]["q"][0]["verdict"] == "holds"
    page, figure = folder / "report.md", folder / "q" / "frontier.svg"
    before = page.read_bytes(), figure.read_bytes()
    report.run(config)
    assert (page.read_bytes(), figure.read_bytes()) == before
    assert "**holds**" in page.read_text() and "| first | tr | good | " in page.read_text()
    assert "![What arms gain and lose](q/frontier.svg)" in page.read_text()
    assert "- final: 14 of 14 runs" in page.read_text() and "- test split: sealed" in page.read_text()
    checked = report.Config(folder, check=True)
    report.run(checked)
    (folder / "q" / "results" / "first--bad--tr--seed-3.json").unlink()
    with pytest.raises(DataError, match=r"report.md, .*frontier.svg is not what the records give; run"):
        report.run(checked)
    assert page.read_bytes() == before[0], "a check writes nothing"


def test_a_list_without_targets_is_shown_language_by_language(folder):
    """Mean and deviation over seeds by naive loops; nothing of a measure that is relative, or has one language."""
    given = {k: v for k, v in LIST.items() if k != "targets"}
    (folder / "q" / "whole.yaml").write_text(yaml.safe_dump(given))
    runs = {(a, s): record(a, "ca", s) for a in given["arms"] for s in ((0,) if a == "base" else (1, 2, 3))}
    for (arm, seed), made in runs.items():
        (folder / "q" / "results" / f"whole--{arm}--all--seed-{seed}.json").write_text(json.dumps(made))
    claim(folder, {"measure": "target_bits"}, columns=["known_bits", "mean_loss", "english_bits"])
    report.run(report.Config(folder))
    text = (folder / "report.md").read_text()
    by_language = text[text.index("| whole: known, bits per byte | en | es |") :].split("\n\n")[0].splitlines()
    for row, arm in zip(by_language[2:], sorted(given["arms"]), strict=True):
        cells = []
        for g in ("en", "es"):
            sums = [np.array(m["sums"]["bits_per_byte"][g]).sum(axis=0) for (a, _), m in runs.items() if a == arm]
            values = [bits / size for bits, size in sums]
            cells.append(f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if arm != "base" else ""))
        assert row == f"| {arm} | {' | '.join(cells)} |"
    assert "whole: mean" not in text and "whole: English" not in text and "first: known" not in text


def test_the_committed_report_is_what_the_records_give():
    folder = ROOT / "benchmarks" / "experiments"
    found = report.run(report.Config(folder, check=True))
    assert set(found["claims"]) == {path.parent.name for path in folder.glob("*/claim.md")}
    assert all(found["claims"].values()), "every question has claims"
