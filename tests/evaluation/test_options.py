import math

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.likelihood import text_bits
from dragoman.evaluation.options import OptionAccuracy, Options, option_bits
from tests.evaluation.test_likelihood import CONTEXT, START, V, tiny


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)

    def tokens(n):
        return rng.integers(3, V, n).tolist()

    return [Options(tokens(p), [tokens(o) for o in sizes]) for p, sizes in [(4, (2, 3)), (0, (1, 5, 2)), (9, (7, 1))]]


def naive(model, prompt, option):
    text, bits = [START, *prompt, *option], 0.0
    for i in range(len(prompt), len(prompt) + len(option)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text[: i + 1]])).logits[0, -1]
        bits -= torch.log_softmax(logits.double(), dim=0)[text[i + 1]].item() / math.log(2)
    return bits


def test_bits_equal_a_naive_loop(model, items):
    found = option_bits(model, items, start_id=START, context=CONTEXT, batch_tokens=20)
    expected = [[naive(model, item.prompt, option) for option in item.options] for item in items]
    assert [bits.tolist() for bits in found] == [pytest.approx(e, rel=1e-4) for e in expected]


@pytest.mark.parametrize("given", [0, 1, 15, 17, 30, 39])
def test_given_tokens_cost_nothing_in_windows_too(model, given):
    # bits of the whole text less those of its beginning, as long as the beginning is read in the same windows
    tokens = np.random.default_rng(1).integers(3, V, 40).tolist()
    parts = [text_bits(model, [tokens], start_id=START, context=64, given=[n])[0] for n in (0, given)]
    head = text_bits(model, [tokens[:given]], start_id=START, context=64)[0] if given else 0.0
    assert parts[0] - parts[1] == pytest.approx(head, rel=1e-4)
    windowed = text_bits(model, [tokens, tokens[:5]], start_id=START, context=CONTEXT, given=[given, 0])
    assert 0 < windowed[0] <= text_bits(model, [tokens], start_id=START, context=CONTEXT)[0] * (1 + 1e-6)


def test_accuracy_by_hand():
    # item 1: option 0 costs fewer bits, option 1 fewer bits per byte
    answers = [[(10.0, 2), (12.0, 4)], [(3.0, 1), (9.0, 1)], [(5.0, 1), (5.0, 1)]]
    plain, per_byte = OptionAccuracy("none"), OptionAccuracy()
    assert sums_per_segment(plain, answers, [1, 0, 0]).tolist() == [[0, 1], [1, 1], [0.5, 1]]
    assert sums_per_segment(per_byte, answers, [1, 0, 1]).tolist() == [[1, 1], [1, 1], [0.5, 1]]
    ours = score(per_byte, sums_per_segment(per_byte, answers, [1, 0, 1]))
    assert ours.value == pytest.approx(250 / 3)
    assert str(ours).startswith("option accuracy per byte|normalised:bytes|ties:shared")


def test_what_the_prompt_adds_decides_by_pmi():
    # option 1 is likelier anyway (2 bits), option 0 gains 4 bits from the prompt and option 1 only half a bit
    answers = [[(4.0, 8.0), (1.5, 2.0)], [(4.0, 4.0), (2.0, 2.0)], [(9.0, 7.0), (9.0, 8.0)]]
    by_pmi = OptionAccuracy("pmi")
    assert sums_per_segment(by_pmi, answers, [0, 0, 0]).tolist() == [[1, 1], [0.5, 1], [0, 1]]
    assert by_pmi.signature().startswith("normalised:pmi")


def test_a_model_without_opinions_scores_as_chance():
    answers = [[(1.0, 1)] * 4] * 8
    assert (
        score(OptionAccuracy("none"), sums_per_segment(OptionAccuracy("none"), answers, [0, 1, 2, 3] * 2)).value == 25
    )


def test_errors(model, items):
    with pytest.raises(ConfigError, match="not normalised by 'tokens'; choose from none, bytes, pmi"):
        OptionAccuracy("tokens")
    with pytest.raises(DataError, match=r"options with bits \[nan, 1.0\], not all finite"):
        OptionAccuracy().segment_sums([(float("nan"), 1), (1.0, 1)], 0)
    settings = {"start_id": START, "context": CONTEXT}
    with pytest.raises(DataError, match="items 1 have fewer than two options"):
        option_bits(model, [items[0], Options([3], [[4]])], **settings)
    with pytest.raises(DataError, match="items 0 have options without tokens"):
        option_bits(model, [Options([3], [[4], []])], **settings)
    with pytest.raises(DataError, match="items 0 do not fit the context of 16 tokens"):
        option_bits(model, [Options([3] * 15, [[4], [5, 6]])], **settings)
