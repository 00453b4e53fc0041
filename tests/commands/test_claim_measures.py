"""Each measure of a claim by hand, on records of two documents."""

import json

import pytest
import yaml

from dragoman.commands import claims
from dragoman.commands.experiments import Question

LIST = {"corpus": "c", "known": ["en", "es"], "targets": {"ca": None, "tr": None}, "seeds": [1]}
LIST |= {"arms": {"base": {"seeds": [0]}, "good": None}}
BITS = {  # bits in 10 bytes of each document
    "base": {"ca": (30, 50), "tr": (40, 40), "en": (8, 12), "es": (15, 25)},
    "good": {"ca": (10, 30), "tr": (30, 40), "en": (10, 14), "es": (10, 12)},
}
CHRF = {  # one order: n-grams of hypothesis, of reference, matches
    "en-ca": [[10, 8, 4], [10, 12, 6]],  # precision and recall 10 / 20: 50
    "ca-en": [[1, 1, 1], [1, 1, 1]],  # 100
    "en-tr": [[4, 8, 4], [4, 8, 4]],  # 1 and 8 / 16: 5 * 0.5 / (4 + 0.5)
}
ACCURACY = {"ca": [[1, 2], [2, 2]], "tr": [[1, 4], [1, 4]], "en": [[2, 2], [2, 2]]}  # 75, 25, 100 %
F_TR = 100 * 2.5 / 4.5
EXPECTED = {
    "target_bits": (2.0 + 3.5) / 2,
    "gain": (100 * (1 - 2 / 4) + 100 * (1 - 3.5 / 4)) / 2,
    "target_chrf": (50 + F_TR) / 2,
    "worst_loss": 20.0,  # English 1.2 against 1.0; Spanish 1.1 against 2.0 is none
    "mean_loss": (20 - 45) / 2,
    "known_bits": (1.2 + 1.1) / 2,
    "english_bits": 1.2,
    "chrf": ((50 + 100) / 2 + F_TR) / 2,
    "target_accuracy": (75 + 25) / 2,
    "accuracy": ((75 + 100) / 2 + (25 + 100) / 2) / 2,
}


@pytest.fixture
def question(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "claim.md").write_text("# A claim\n")
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(LIST))
    for arm, seed in (("base", 0), ("good", 1)):
        for target, other in (("ca", "tr"), ("tr", "ca")):
            sums = {"bits_per_byte": {g: [[b, 10] for b in by] for g, by in BITS[arm].items() if g != other}}
            sums["chrf"] = {pair: by for pair, by in CHRF.items() if other not in pair}
            sums["task_accuracy"] = {g: by for g, by in ACCURACY.items() if g != other}
            record = {"status": "ended", "documents": ["d0", "d1"], "sums": sums, "records": {}}
            (tmp_path / "results" / f"first--{arm}--{target}--seed-{seed}.json").write_text(json.dumps(record))
    return Question(tmp_path)


def test_every_measure_is_here():
    assert EXPECTED.keys() == claims.MEASURES.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_measure_by_hand(question, name):
    """The mean of the targets' values, each of sums over both documents."""
    panel = claims.panel(question, "first/good", name)
    assert panel(panel.sums_KUS[0].sum(axis=0)) == pytest.approx(EXPECTED[name])
