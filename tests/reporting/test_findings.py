"""What the sentences of a diagnosis say of numbers made by hand."""

import numpy as np
import pytest

from dragoman.reporting import findings
from dragoman.routing.drawing import Cast

NAMES = {"corpus": {"languages": {"ca": {"name": "Catalan"}, "en": {"name": "English"}}}}


def record(**routing):
    curves = {"ca": [0.5, 0.1, 0.1, 0.4], "fr": [0.3, 0.1, 0.3, 0.4]}
    return NAMES | {"routing": {"layer_ids": [0, 1, 2, 5], "reference": "en", "divergence": curves} | routing}


def test_depth_and_middle_band():
    said = findings.depth(record())
    assert said == (
        "Mean over languages, routing is nearest to English in layer 1 (0.10) and farthest in layer 0 (0.40)."
    )
    valley = {"first": 1, "last": 2, "valley": True}
    assert findings.depth(record(middle_band=valley)).endswith("the middle band is layers 1 to 2.")
    assert findings.band(record(middle_band=valley)) == (1, 2)
    flat = valley | {"valley": False}
    assert "no valley, so there is no middle band" in findings.depth(record(middle_band=flat))
    assert findings.band(record(middle_band=flat)) is None and findings.band(record()) is None


def test_floor_counts_intervals_where_there_are_any():
    noise = {"placebo": [0.05, 0.05, 0.05, 0.05]}
    assert findings.floor(record(**noise)) == (
        "2 of 2 languages stand above the noise floor [0.050, 0.050] in every layer."
    )
    wide = {"ca": [[0.4, 0.04, 0.1, 0.3], [0.6, 0.2, 0.2, 0.5]]}
    said = findings.floor(record(**noise, divergence_interval=wide))
    assert said.startswith("1 of 2 languages stand") and said.endswith("with the whole interval.")
    high = findings.floor(record(**noise, placebo_interval=[[0.0] * 4, [0.2, 0.2, 0.2, 0.2]]))
    assert high.startswith("0 of 2"), "the upper edge of the placebo counts, not its mean"
    assert findings.floor(record()) == ""


def test_one_language_is_not_nearest_and_farthest_at_once():
    one = NAMES | {"routing": {"layer_ids": [0, 1], "reference": "en", "divergence": {"ca": [0.5, 0.1]}}}
    assert findings.divergence(one) == "Catalan is nearest in layer 1 (0.10) and farthest in layer 0 (0.50)."
    assert findings.floor({**one, "routing": one["routing"] | {"placebo": [0.2, 0.2]}}) == (
        "Catalan does not stand above the noise floor [0.200, 0.200] in every layer."
    )


def test_experts_names_the_brightest_cell():
    share_GE = np.array([[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    assert findings.experts(share_GE, ["en", "ca"], Cast(names={"ca": "Catalan"})) == (
        "Catalan gives expert 0 the largest share, 70% of its slots, 2.8 times an even one; 1 of 4 experts have at "
        "least half an even share in every language."
    )


def test_tree_names_pair_last_join_and_noise():
    at = np.array([0.0, 0.01, 0.5, 0.52])
    said = findings.tree(abs(at[:, None] - at[None]), ["en", "de", "ja", "zh"], Cast(), 0.015)
    assert said.startswith("Nearest are en and de (0.010); the last to join, at 0.505: en and de and the other 2.") or (
        said.startswith("Nearest are en and de (0.010); the last to join, at 0.505: ja and zh and the other 2.")
    )
    assert "1 join of 3 within noise (0.015)" in said
    assert "correlate with those measured by 1.00" in said
    assert "No join of 3 within noise" in findings.tree(abs(at[:, None] - at[None]), list("abcd"), Cast(), 0.0)


@pytest.mark.parametrize(
    ("tested", "words"),
    [
        (None, "this number alone is no test"),
        ({"r": 0.9, "p": 0.2}, "(Mantel p = 0.2): no evidence that shared vocabulary and routing go together."),
        ({"r": 0.9, "p": 0.01}, "(Mantel p = 0.01): pairs that share more vocabulary are routed more alike."),
        ({"r": -0.9, "p": 0.0002}, "(Mantel p < 0.001): pairs that share more vocabulary are routed less alike."),
        ({"r": 0.5, "p": 0.01, "interval": [0.4, 0.6]}, "Pearson's r is 0.50 [0.40, 0.60] over 3 pairs"),
    ],
)
def test_overlap_claims_only_what_was_tested(tested, words):
    said = findings.overlap([0.1, 0.2, 0.3], [0.5, 0.7, 0.9], [True, False, False], tested)
    assert words in said
    assert said.endswith("Mean similarity: 0.50 within a family, 0.80 across.")


def test_overlap_without_spread_says_so():
    assert "nothing can correlate" in findings.overlap([0.1, 0.1], [0.5, 0.7], [False, False])


def test_mantel_reads_the_record():
    tested = {"pearson": {"r": np.float64(0.7), "p": 0.002}}
    relations = {"measures": {"overlap": {"layers": {"all": tested}, "interval": [0.6, 0.8]}}}
    assert findings.mantel(record(relations=relations)) == {"r": 0.7, "p": 0.002, "interval": [0.6, 0.8]}
    short = record(overlap_correlation={"r": 0.6, "p": 0.01})
    assert findings.mantel(short) == {"r": 0.6, "p": 0.01, "interval": None}
    assert findings.mantel(record()) is None and findings.mantel(record(relations=None)) is None


def test_tokenizer_with_and_without_parallel_text():
    cost = {
        "en": {"per_byte": 0.25, "relative": 1.0, "interval": (1.0, 1.0)},
        "el": {"per_byte": 1.0, "relative": 9.0, "interval": (8.5, 9.5)},
        "zh": {"per_byte": 0.3, "relative": 0.8, "interval": (0.7, 0.9)},
    }
    cast = Cast(names={"en": "English"})
    assert findings.tokenizer(cost, "en", cast) == (
        "el needs 9.00 [8.50, 9.50] times the tokens of English, zh 0.80 times. "
        "Tokens per byte reach from 0.25 (English) to 1.00 (el)."
    )
    alone = {g: {"per_byte": c["per_byte"], "relative": None} for g, c in cost.items()}
    assert findings.tokenizer(alone, "en", cast) == "Tokens per byte reach from 0.25 (English) to 1.00 (el)."


def test_balance_counts_the_dead():
    part = {"load_variation": [0.5, 1.2, 0.1, 0.3], "dead_experts": [0, 2, 0, 1]}
    assert findings.balance(record(**part)) == (
        "Most uneven is layer 1 (1.20), most even layer 2 (0.10). "
        "Never chosen by this text: 3 experts (layer 1: 2 and layer 5: 1)."
    )
    assert findings.balance(record(**part | {"dead_experts": [0] * 4})).endswith("chosen at least once.")


def test_contrast_leaves_out_padding():
    delta_LE = np.array([[0.4, -0.4, 0.0], [0.1, -0.1, 0.9]])
    said = findings.contrast("maths", delta_LE, [3, 4], [3, 2], 0.3, [0.05, 0.1])
    assert said == (
        "Farthest is expert 0 of layer 3 (+0.40 of tokens). The text maths uses 1 expert more than the general corpus "
        "by over 0.3 of tokens, 1 expert less by as much. Between halves of the general corpus the largest difference "
        "is 0.10 (mean over splits)."
    )
    assert "no expert more" in findings.contrast("maths", delta_LE, [3, 4], [3, 2], 0.5)


def drifted(**part):
    base = {"layer_ids": [0, 5], "divergence": {"ca": [0.1, 0.3], "en": [0.0, 0.01]}, "interval": {}, "placebo": {}}
    return NAMES | {"drift": base | {"other_text": (), "left_out": ()} | part}


def test_drift_says_who_moved_and_beyond_what():
    said = findings.drift(drifted(placebo={"ca": [0.01, 0.01], "en": [0.01, 0.01]}))
    assert said == (
        "Catalan moved most (0.2000 nats, mean over layers), English least (0.0050); mean over languages, most in "
        "layer 5 (0.1550). 1 of 2 moved further than another half of the text would make it seem."
    )
    assert findings.drift(drifted(divergence={"en": [0.0, 0.0]})) == "Routing is the same in both traces, to the count."


def test_other_text_is_a_warning():
    said = findings.text_differs(drifted(other_text=("ca",), left_out=("fr",)))
    assert said == (
        "The two traces are not of the same text for Catalan: their drift is that of the text too. "
        "In one trace only, so left out: fr."
    )
    assert findings.text_differs(drifted()) == ""
