"""What scoring makes of the sums of segments."""

import numpy as np
import pytest

from dragoman.commands import scoring
from dragoman.commands.judging import warnings_of
from dragoman.evaluation import significance

BITS = {
    # bits and bytes of each segment; es lacks one of the three documents
    "bits_per_byte": {"en": [[8.0, 4.0], [4.0, 4.0], [6.0, 6.0]], "es": [[3.0, 1.0], [2.0, 2.0]]},
    "documents": {"bits_per_byte": {"en": ["a", "b", "a"], "es": ["c", "a"]}},
}


def test_a_mean_of_labels_draws_a_document_in_all_its_languages():
    sums_US, documents, mean = scoring.mean_of_labels(BITS, "bits_per_byte", ["en", "es"])
    assert documents == ["a", "b", "c"]
    np.testing.assert_array_equal(sums_US, [[14, 10, 2, 2], [4, 4, 0, 0], [0, 0, 3, 1]])
    assert mean(sums_US.sum(0)[None]) == pytest.approx([(18 / 14 + 5 / 3) / 2])
    assert mean(np.stack([sums_US[[0, 0, 2]].sum(0), sums_US.sum(0)]))[0] == pytest.approx((28 / 20 + 7 / 5) / 2)
    alone, _, of_one = scoring.mean_of_labels(BITS, "bits_per_byte", ["en"])
    whole = significance.interval(alone, of_one, seed=3)
    assert whole.value == pytest.approx(18 / 14) and whole.units == 2


@pytest.mark.parametrize("number", [1, 150, 400])
def test_a_plain_difference_stays_one_among_many_comparisons(number):
    """Holm multiplies the smallest p by their number, and R resamples give none below 1 / (R + 1)."""
    rng = np.random.default_rng(0)
    sums = [[[50 + x, 1.0] for x in rng.normal(0, 1, 40)] for _ in range(number)]
    labels = [f"g{i}" for i in range(number)]
    documents = {"bits_per_byte": {g: [str(i) for i in range(40)] for g in labels}}
    scored = {
        name: {"bits_per_byte": {g: [[x + plus, n] for x, n in s] for g, s in zip(labels, sums, strict=True)},
               "documents": documents}
        for name, plus in (("a", 10.0), ("b", 0.0))
    }  # fmt: skip
    found = scoring.comparisons(scored, "bits_per_byte", [("a", "b", g) for g in labels], seed=0)
    assert max(c["p_holm"] for c in found) < 0.05


def test_tokens_that_stand_for_anything_are_told():
    assert scoring.unknown_share([[5, 1, 1], [7]], 1) == 0.5
    assert scoring.unknown_share([[5, 1, 1], [7]], None) == scoring.unknown_share([], 1) == 0
    scored = {"m": BITS | {"unknown": {"es": 0.25}}, "n": BITS}
    (told,) = [w for w in warnings_of(scored, []) if "without a place" in w]
    assert "es (25.0% by m)" in told


def test_translations_have_room_for_the_reference_and_its_normal_form(monkeypatch):
    """The tokenizer knows the source, and not the target, of which it needs a token a byte."""
    from dragoman.corpora.ntext import from_columns
    from dragoman.modeling import TextCodec
    from dragoman.translation import engines
    from tests.models import tiny
    from tests.texts import tokenizer

    codec, seen = TextCodec(tokenizer()), []
    said = codec.encode(["e\u0301\u200b a\u00adb\nmore"])[0]
    monkeypatch.setattr(engines, "translate_greedy", lambda model, prompts, **how: seen.append(how) or [said] * 2)
    table = from_columns(("en", "el"), {"en": ["the file", "save"], "el": ["το αρχείο", "αποθήκευση του αρχείου"]})
    model = tiny("olmoe", vocab_size=len(codec.tokenizer))
    assert scoring.translations(model, codec, table, "en-el", True, stops="any") == ["\u00e9 ab"] * 2
    prompts = codec.prompts(["the file", "save"], "en", "el", {"en": "English", "el": "Greek"})
    references = codec.encode(["το αρχείο", "αποθήκευση του αρχείου"])
    assert len(references[1]) > len(prompts[1]), "else the limit is the prompt's"
    assert seen[0]["max_new"] == [2 * max(len(p), len(r)) + 20 for p, r in zip(prompts, references, strict=True)]


def test_a_rate_of_nothing_has_no_value():
    rates = {"copies": {"en-de": [[0, 1], [1, 1], [0, 0]], "de-en": [[0, 0]] * 3}}
    documents = {"copies": dict.fromkeys(rates["copies"], ["d"] * 3)}
    found = scoring.values({"m": rates | {"documents": documents}, "n": {}}, "copies", seed=0)
    assert found["copies"] == {"m": {"en-de": 50}} and found["copies_judged"] == {"m": {"en-de": 2, "de-en": 0}}
    assert "bits_per_byte_judged" not in scoring.values({"m": BITS}, "bits_per_byte", seed=0)


def test_rows_of_a_test_set_are_spread():
    from dragoman.corpora.ntext import from_columns

    texts = {g: [f"{g} {i}" for i in range(10)] for g in ("en", "de")}
    table = from_columns(("en", "de"), texts)
    table = table.take(range(10))
    split = table.splits[0]
    rows = {evenly: scoring.parallel(table, "en", "de", split, 4, evenly) for evenly in (False, True)}
    there = scoring.cells(table.select(["en"], split), "en")
    n = len(there)
    assert scoring.cells(rows[False], "en") == there[:4]
    assert scoring.cells(rows[True], "en") == [there[i * n // 4] for i in range(4)]
    assert scoring.cells(scoring.held_out(table, ["de"], split, 4, True)["de"], "de")[1] == f"de {there[n // 4][3:]}"


def test_systems_with_other_settings_are_told():
    scored = {"m": BITS | {"signatures": {"bits_per_byte": "context:512"}}, "n": BITS | {"signatures": {}}}
    assert not [w for w in warnings_of(scored, []) if "settings" in w]
    other = {"o": BITS | {"signatures": {"bits_per_byte": "context:64"}}}
    (told,) = [w for w in warnings_of(scored | other, []) if "settings" in w]
    assert told == "systems were scored with different settings of bits_per_byte (m: context:512; o: context:64)"
