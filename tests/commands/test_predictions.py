"""Does a share predict a gain: against least squares, on planted slopes, and as a claim of a question."""

import json

import numpy as np
import pytest
import yaml

from dragoman.commands import claims, predictions
from dragoman.commands.experiments import Question
from dragoman.errors import ConfigError, DataError

LANGUAGES = ("de", "fr", "es", "cs", "ru", "zh")


def points(planted, noise=1.0, seed=0):
    """Twelve targets of two lists: gains with a planted slope on the share, and what is held fixed."""
    rng = np.random.default_rng(seed)
    lists_N = np.repeat([0, 1], 6)
    accuracy_N = rng.uniform(20, 60, 12)
    share_N = 30 - 0.3 * accuracy_N + rng.normal(0, 4, 12)
    gain_N = planted * share_N + 0.5 * accuracy_N + 10 * lists_N + rng.normal(0, noise, 12)
    return gain_N, share_N, accuracy_N, lists_N


def test_the_slope_is_that_of_least_squares():
    gain_N, share_N, accuracy_N, lists_N = points(0.7)
    design = np.column_stack([share_N, accuracy_N, lists_N == 0, lists_N == 1])
    found = predictions.slope(gain_N, share_N, accuracy_N, lists_N)
    assert found["difference"] == pytest.approx(np.linalg.lstsq(design, gain_N, rcond=None)[0][0])
    assert found["low"] < found["difference"] < found["high"] and found["units"] == 12
    assert found["p_value"] < 0.01
    assert predictions.slope(-gain_N, share_N, accuracy_N, lists_N)["difference"] == pytest.approx(-found["difference"])


def test_where_nothing_is_planted_few_are_found():
    """The accuracy goes with the share and with the gain, so without it held fixed nearly all would be."""
    planted = [points(0.0, seed=s) for s in range(20)]
    lone = [predictions.slope(gain_N, share_N, np.zeros(12), lists)["p_value"] for gain_N, share_N, _, lists in planted]
    assert sum(p < 0.05 for p in lone) >= 15
    found = [predictions.slope(*points(0.0, seed=s))["p_value"] for s in range(100)]
    assert sum(p < 0.05 for p in found) <= 12
    covered = [predictions.slope(*points(0.7, seed=s)) for s in range(100)]
    assert sum(f["low"] <= 0.7 <= f["high"] for f in covered) >= 85


def test_what_cannot_be_fitted():
    gain_N, share_N, accuracy_N, lists_N = points(0.7)
    with pytest.raises(DataError, match="the share follows from accuracy and list alone"):
        predictions.slope(gain_N, 2 * accuracy_N + lists_N, accuracy_N, lists_N)
    with pytest.raises(DataError, match="5 targets are too few for a slope beside 3 other numbers"):
        predictions.slope(gain_N[4:9], share_N[4:9], accuracy_N[4:9], lists_N[4:9])


@pytest.fixture
def question(tmp_path):
    """Two tasks of six languages; gains over the control are half of the share of ci, exactly."""
    folder = tmp_path / "q"
    (folder / "results").mkdir(parents=True)
    (folder / "claim.md").write_text("# A claim\n")
    rng = np.random.default_rng(0)
    for name, seeds in (("next", (1, 2)), ("heading", (1,))):
        given = {"corpus": "c", "known": ["en"], "targets": dict.fromkeys(sorted(LANGUAGES)), "seeds": list(seeds)}
        given |= {"prepare": ["x"], "arms": {"ours": None, "control": None}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
        wilson = {g: {"share": float(x)} for g, x in zip(LANGUAGES, rng.uniform(0.1, 0.4, 6), strict=True)}
        accuracy = {g: {"share": float(x)} for g, x in zip(LANGUAGES, rng.uniform(0.3, 0.6, 6), strict=True)}
        categories = {"shares": {g: {"ci": x} for g, x in wilson.items()}, "accuracy": accuracy}
        made = {f"{name}--prepare--all": {"status": "ended", "records": {"categories": categories}}}
        for g in LANGUAGES:
            for arm, share in (("ours", 0.4 + wilson[g]["share"] / 2), ("control", 0.4)):
                for seed in seeds:
                    sums = {"task_accuracy": {g: [[10 * share + 0.1 * seed, 10]] * 4}}
                    made[f"{name}--{arm}--{g}--seed-{seed}"] = {"status": "ended", "documents": [*"abcd"], "sums": sums}
        for file, record in made.items():
            (folder / "results" / f"{file}.json").write_text(json.dumps(record))
    return folder


def judge(folder, **changes):
    claim = {"id": "ci", "paper": "p", "source": "s", "ours": "o", "measure": "target_accuracy", "predictor": "ci"}
    claim |= {"a": ["next/ours", "heading/ours"], "b": ["next/control", "heading/control"]} | changes
    (folder / "claims.yaml").write_text(yaml.safe_dump({"columns": [], "claims": [claim]}))
    (found,) = claims.judged(Question(folder))
    return found


def test_a_claim_over_two_lists(question):
    found = judge(question)
    assert found["difference"] == pytest.approx(0.5) and found["units"] == 12
    assert found["verdict"] == "holds" and found["p_value"] < 0.001
    (question / "results" / "next--ours--ru--seed-2.json").unlink()
    (question / "results" / "heading--prepare--all.json").unlink()
    found = judge(question)
    assert found["missing"] == ["next--ours--ru--seed-2", "heading--prepare--all"] and found["verdict"] == "open"


def test_mistakes(question):
    with pytest.raises(ConfigError, match=r"predicts by cx, not by cc, ci, ic, ii; ci has margin, which a prediction"):
        judge(question, predictor="cx", margin=0.05)
    with pytest.raises(ConfigError, match="ci compares arms of other lists; a and b name an arm of each list"):
        judge(question, b=["heading/control", "next/control"])
    with pytest.raises(ConfigError, match="ci names next/theirs, and there is no such list and arm"):
        judge(question, a=["next/theirs", "heading/ours"])
    with pytest.raises(DataError, match=r"has no share of ii in cs: its `prepare` has to run `dragoman categorize`"):
        judge(question, predictor="ii")
