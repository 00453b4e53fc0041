import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.evaluation import likelihood
from dragoman.evaluation.likelihood import text_bits

V, START, CONTEXT = 64, 1, 16
SMALL = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def tiny(family: str, attention: str = "eager") -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "llama":
        config, kind = LlamaConfig(**SMALL), LlamaForCausalLM
    else:
        config, kind = OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2), OlmoeForCausalLM
    config._attn_implementation = attention
    return kind(config).eval()


@pytest.fixture(scope="module")
def segments():
    rng = np.random.default_rng(0)
    return [rng.integers(3, V, size).tolist() for size in (5, 1, 16, 17, 40, 3, 24, 15, 25, 5)]


def naive_bits(model, tokens: list[int], context: int) -> float:
    """One forward for each token. The window of token i: all before it, while that fits the context; then the one
    that ends at the next multiple of context // 2 after the first context tokens, or at the end of the segment."""
    text, total = [START, *tokens], 0.0
    for i in range(len(tokens)):
        stride = context // 2
        over = max(0, -(-(i + 1 - context) // stride))
        end = min(context + over * stride, len(tokens))
        begin = max(0, end - context) if i >= context else 0
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([text[begin : i + 1]])).logits[0, -1]
        total -= torch.log_softmax(logits.double(), dim=0)[tokens[i]].item() / math.log(2)
    return total


@pytest.mark.parametrize("family", ["llama", "olmoe"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_a_naive_loop_over_tokens(family, attention, segments):
    model = tiny(family, attention)
    expected = [naive_bits(model, tokens, CONTEXT) for tokens in segments]
    bits_N = text_bits(model, segments, start_id=START, context=CONTEXT, batch_tokens=64)
    assert bits_N.dtype == np.float64
    assert bits_N == pytest.approx(expected, rel=1e-4)
    uniform = [len(tokens) * math.log2(V) for tokens in segments]
    assert bits_N != pytest.approx(uniform, rel=0.05), "a model without opinions would hide faults"


@pytest.mark.parametrize("family", ["llama", "olmoe"])
def test_batches_and_order_change_nothing(family, segments):
    model = tiny(family)
    bits_N = text_bits(model, segments, start_id=START, context=CONTEXT)
    for batch_tokens in (1, 50, 10_000):
        again = text_bits(model, segments, start_id=START, context=CONTEXT, batch_tokens=batch_tokens)
        assert again == pytest.approx(bits_N, rel=1e-4)
    assert text_bits(model, segments[::-1], start_id=START, context=CONTEXT)[::-1] == pytest.approx(bits_N, rel=1e-4)


def test_small_blocks_of_rows_change_nothing(segments, monkeypatch):
    model = tiny("llama")
    bits_N = text_bits(model, segments, start_id=START, context=CONTEXT)
    monkeypatch.setattr(likelihood, "ROWS", 3)
    assert text_bits(model, segments, start_id=START, context=CONTEXT) == pytest.approx(bits_N, rel=1e-6)


class Stub(torch.nn.Module):
    """Gives every token of the vocabulary the same chance, or what `logits` says; notes what it was given."""

    device = torch.device("cpu")

    def __init__(self, logits=None):
        super().__init__()
        self.dropout = torch.nn.Dropout()
        self.seen, self.logits = [], logits

    def forward(self, input_ids, attention_mask):
        self.seen.append((input_ids, attention_mask, self.training))
        shape = *input_ids.shape, V
        return SimpleNamespace(logits=torch.zeros(shape) if self.logits is None else self.logits(input_ids))


@pytest.mark.parametrize("context", [2, 3, 16, 31, 200])
def test_a_model_without_opinions_spends_log2_v_bits_on_each_token(context, segments):
    # true only if every token is counted exactly once
    bits_N = text_bits(Stub(), segments, start_id=START, context=context, batch_tokens=100)
    assert bits_N == pytest.approx([6.0 * len(tokens) for tokens in segments])


def test_windows_by_hand():
    # 7 tokens, 4 at once: first 4, then 2 new ones with 2 seen, then the last one with 3 seen
    windows = likelihood._windows([[10, 11, 12, 13, 14, 15, 16]], context=4)
    assert windows == [(0, 0, 4, 4), (0, 2, 6, 2), (0, 3, 7, 1)]
    model = Stub()
    text_bits(model, [[10, 11, 12, 13, 14, 15, 16]], start_id=START, context=4)
    ((input_BS, _, _),) = model.seen
    assert input_BS.tolist() == [[START, 10, 11, 12], [11, 12, 13, 14], [12, 13, 14, 15]]


def test_padding_is_masked_and_batches_keep_their_limit(segments):
    model = Stub()
    text_bits(model, segments, start_id=START, context=CONTEXT, batch_tokens=40)
    assert all(input_BS.numel() <= 40 for input_BS, _, _ in model.seen)
    windows = likelihood._windows(segments, CONTEXT)
    assert sum(int(mask_BS.sum()) for _, mask_BS, _ in model.seen) == sum(w.end - w.begin for w in windows)
    for input_BS, mask_BS, _ in model.seen:
        assert mask_BS.sum() > 0 and ((mask_BS[:, 1:] <= mask_BS[:, :-1]).all())
        assert (input_BS[mask_BS == 0] == START).all()


def test_float32_is_used_on_half_precision_logits():
    # bfloat16 keeps 8 bits: a sum of 64 exponentials made in it would be off by far more than 1e-5
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(1)).bfloat16()
    bits = text_bits(Stub(lambda ids: table[ids]), [[5, 6]], start_id=START, context=8)[0]
    rows = torch.log_softmax(table.double(), dim=1)
    assert bits == pytest.approx(-(rows[START, 5] + rows[5, 6]).item() / math.log(2), rel=1e-6)


def test_runs_in_evaluation_mode_and_gives_each_mode_back(segments):
    model = Stub().train()
    model.dropout.eval()
    text_bits(model, segments, start_id=START, context=CONTEXT)
    assert not any(training for _, _, training in model.seen)
    assert model.training and not model.dropout.training


def test_progress_counts_up_to_all_windows(segments):
    calls = []
    text_bits(Stub(), segments, start_id=START, context=CONTEXT, batch_tokens=40,
              progress=lambda done, total: calls.append((done, total)))  # fmt: skip
    assert calls[-1][0] == calls[-1][1] == len(likelihood._windows(segments, CONTEXT))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_no_second_copy_of_the_logits_is_made():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                sizes.append((func.__name__, out.numel(), out.untyped_storage().data_ptr()))
            return out

    held = torch.zeros(40, 100, V)  # 4000 positions, made outside the watch
    with Watch():
        text_bits(Stub(lambda ids: held), [[3] * 100] * 40, start_id=START, context=100, batch_tokens=4000)
    copies = [name for name, size, where in sizes if size > likelihood.ROWS * V and where != held.data_ptr()]
    assert sizes and not copies


def test_empty_segments_are_refused():
    with pytest.raises(DataError, match="segments 1, 3 have no tokens; leave out"):
        text_bits(Stub(), [[5], [], [6], []], start_id=START, context=8)
    assert text_bits(Stub(), [], start_id=START, context=8).shape == (0,)


def test_likelihoods_that_are_not_finite_are_refused():
    def broken(input_BS):
        logits = torch.zeros(*input_BS.shape, V)
        logits[(input_BS == 7).any(dim=1)] = float("nan")
        return logits

    with pytest.raises(ModelError, match=r"segments 1, 2 \(batch 2 of 2\).*bfloat16"):
        text_bits(Stub(broken), [[5, 5, 5], [7, 4], [7, 8]], start_id=START, context=8, batch_tokens=4)


def test_a_context_without_room_is_refused():
    with pytest.raises(ConfigError, match=r"context of 1 token.*2 or more"):
        text_bits(Stub(), [[5]], start_id=START, context=1)
