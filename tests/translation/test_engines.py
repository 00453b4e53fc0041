"""Batched greedy decoding against a loop that reads each prompt alone, whole, without a cache."""

import pytest
import torch

from dragoman.errors import DataError, ModelError
from dragoman.modeling import TextCodec
from dragoman.translation.engines import Stops, first_parting, stops_of, translate_greedy
from tests.models import dense, tiny
from tests.texts import tokenizer

STOPS = Stops(frozenset({2, 7}), frozenset({9, 11, 30}))
PROMPTS = [[1, *((7 * i + 3 * j) % 60 + 3 for j in range(2 + 5 * i % 13))] for i in range(14)]


def alone(model, prompt, limit, stops=STOPS):
    """The oracle: no batch, no padding, no cache."""
    new = []
    while len(new) < limit:
        with torch.inference_mode():
            token = int(model(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1].argmax())
        if token in stops.ends:
            break
        new.append(token)
        if token in stops.lines:
            break
    return new


def decode(model, prompts=PROMPTS, **settings):
    return translate_greedy(model, prompts, stops=STOPS, pad_id=0, max_new=lambda n: n + 3, **settings)


@pytest.mark.parametrize(
    "family", ["olmoe", "mixtral", "deepseek_v3", pytest.param("qwen3_next", marks=pytest.mark.slow)]
)
def test_batches_give_what_prompts_give_alone(family):
    model = tiny(family, num_hidden_layers=4)  # the fourth layer of qwen3_next is its first with attention
    expected = [alone(model, p, len(p) + 3) for p in PROMPTS]
    assert len({len(new) for new in expected}) > 2, "rows must end at different times, or leaving is not tested"
    for batch in (1, 5, len(PROMPTS)):
        found = decode(model, batch=batch)
        partings = [first_parting(model, p, a, b, STOPS) for p, a, b in zip(PROMPTS, found, expected, strict=True)]
        assert all(p is None or p.gap < 1e-4 for p in partings)
        assert sum(p is not None for p in partings) <= 1


def test_stops_by_hand():
    """An end token is left out, a line token is kept, the limit counts tokens of the row's own prompt."""
    model = dense()
    free = translate_greedy(model, [[1, 5, 6], [1, 8]], stops=Stops(frozenset()), pad_id=0, max_new=lambda n: 2 * n)
    assert [len(new) for new in free] == [6, 4]
    first = free[0]
    at = next(i for i in range(1, 6) if first[i] not in first[:i])
    for stops, expected in (
        (Stops(frozenset({first[at], 63})), first[:at]),
        (Stops(frozenset(), frozenset({first[at]})), first[: at + 1]),
    ):
        assert translate_greedy(model, [[1, 5, 6]], stops=stops, pad_id=0, max_new=lambda n: 6) == [expected]


def test_a_context_that_is_full_ends_a_row():
    found = translate_greedy(dense(), [[1] * 60, [1] * 3], stops=Stops(frozenset()), pad_id=0, context=64)
    assert [len(new) for new in found] == [4, 26]


def test_prompts_without_room_are_named():
    with pytest.raises(DataError, match=r"segments 1, 2: .*context of 64 tokens; leave them out or split them"):
        decode(dense(), [[1, 2], [1] * 64, []], context=64)


def test_logits_that_are_not_numbers_are_refused():
    model = dense()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(ModelError, match="not numbers while translating"):
        decode(model)


def test_the_same_again_and_in_another_order():
    model = tiny("olmoe")
    once = decode(model)
    assert decode(model) == once
    assert decode(model, PROMPTS[::-1])[::-1] == once


def test_a_model_that_keeps_nothing_gives_the_same():
    model = tiny("olmoe")
    kept = decode(model)
    forward = model.forward
    model.forward = lambda input_ids, attention_mask, past_key_values, use_cache, position_ids: forward(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
    )
    assert decode(model) == kept


def test_progress_counts_prompts():
    seen = []
    decode(dense(), batch=10, progress=seen.append)
    assert seen == [10, 4]


def test_partings_by_hand():
    model = dense()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 5, 6]])).logits[0, -1]
    found = first_parting(model, [1, 5], [6, 8, 9], [6, 10], STOPS)
    assert found.position == 1
    assert found.gap == pytest.approx(abs(float(logits[8] - logits[10])))
    ended = first_parting(model, [1, 5], [6, 8], [6], STOPS)
    assert ended.gap == pytest.approx(abs(float(logits[8] - max(logits[2], logits[7]))))
    assert first_parting(model, [1, 5], [6], [6], STOPS) is None


def test_stops_of_a_model_and_its_tokenizer():
    codec = TextCodec(tokenizer())
    model = dense(vocab_size=len(codec.tokenizer))
    model.generation_config.eos_token_id = [2, 17]
    stops = stops_of(model, codec)
    assert stops.ends == {codec.end_id, 2, 17}
    (line,) = codec.encode(["\n"])
    assert set(line) <= stops.lines
    assert not set(codec.encode(["open the file"])[0]) & stops.lines
