"""ExpertNumbers: the file, what is wrong with one, which models it fits, and how it is printed."""

import json
import re

import pytest

from dragoman.errors import DataError, ModelError
from dragoman.routing.expert_numbers import FORMAT, ExpertNumbers

BY_HAND = {"format": FORMAT, "planner": "hand", "experts": {"0": 1, "1": 3}}
MADE = ExpertNumbers(
    planner="layer_moe",
    experts={0: 1, 1: 3},
    statistic={0: 0.75, 1: 0.25},
    width=16,
    feed_forwards={0: 32, 1: 48},
    model_sha256="0123456789abcdef",
    settings={"new": ["ca"], "experts": 4},
    why=("because",),
)


def written(tmp_path, content):
    (tmp_path / "n.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / "n.json"


def test_the_file_holds_all_of_it_one_layer_a_line(tmp_path):
    MADE.save(tmp_path / "n.json")
    assert ExpertNumbers.load(tmp_path / "n.json") == MADE
    assert '"experts": {\n  "0": 1,\n  "1": 3\n }' in (tmp_path / "n.json").read_text()


def test_a_file_by_hand_needs_little_and_fits_models_of_any_width(tmp_path):
    plan = ExpertNumbers.load(written(tmp_path, BY_HAND))
    assert plan == ExpertNumbers("hand", {0: 1, 1: 3})
    plan.require_fit(16, {0: 32})
    assert plan.text() == (
        "Plan hand: 4 translation experts in 2 layers.\n\nlayer  translation experts (statistic)\n    0  1\n    1  3"
    )


def test_what_is_printed():
    assert MADE.text().splitlines()[3:] == [
        "    0  1 (0.75)",
        "    1  3 (0.25)",
        "",
        "Settings",
        '  new: ["ca"]',
        "  experts: 4",
        "",
        "Why",
        "  - because",
        "",
        "Made from the model 0123456789ab.",
    ]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[1]", ["it holds no JSON object"]),
        ({"translation": {"0": 1}}, [f"the format is None, not '{FORMAT}'", "`dragoman plan --planner layer_moe`"]),
        ({"format": FORMAT}, ["'planner' is missing; 'experts' is missing"]),
        (BY_HAND | {"expertts": {}}, ["unknown key 'expertts' (nearest: 'experts')"]),
        (BY_HAND | {"experts": [1, 3]}, ["'experts' is [1, 3], not dict"]),
        (BY_HAND | {"experts": {}}, ["'experts' names no layer"]),
        (
            BY_HAND | {"experts": {"a": 1, "0": 1.9, "1": 0, "2": True}, "statistic": {"0": "low"}},
            [
                "layer 'a' of 'experts' is not a number",
                "'experts' of layer 0 is 1.9, not a whole number above 0",
                "'experts' of layer 1 is 0",
                "'experts' of layer 2 is True",
                "'statistic' of layer 0 is 'low', not a number",
            ],
        ),
        (BY_HAND | {"feed_forwards": {"0": "wide"}, "width": "16"}, ["'width' is '16', not int or null"]),
        (BY_HAND | {"feed_forwards": {"0": "wide"}}, ["'feed_forwards' of layer 0 is 'wide', not a whole number"]),
    ],
)
def test_a_file_that_is_wrong_is_a_sentence(tmp_path, content, parts):
    with pytest.raises(DataError) as e:
        ExpertNumbers.load(written(tmp_path, content))
    assert all(part in str(e.value) for part in parts), e.value


@pytest.mark.parametrize(
    ("width", "feed_forwards", "sentence"),
    [
        (16, {0: 32, 1: 40}, "which has 48 neurons in layer 1; this one has 40 neurons in layer 1:"),
        (16, {0: 32}, "which has 48 neurons in layer 1; this one has no feed-forward in layer 1:"),
        (16, {0: 32, 1: 48, 2: 8}, "which has no feed-forward in layer 2; this one has 8 neurons in layer 2:"),
        (20, {0: 32, 1: 48}, "which has a width of 16; this one has a width of 20:"),
        (20, {0: 31, 1: 48}, "a width of 16, 32 neurons in layer 0; this one has a width of 20, 31 neurons in"),
    ],
)
def test_a_model_of_another_shape_is_refused(width, feed_forwards, sentence):
    MADE.require_fit(16, {0: 32, 1: 48})
    with pytest.raises(ModelError, match=re.escape(sentence)):
        MADE.require_fit(width, feed_forwards)
