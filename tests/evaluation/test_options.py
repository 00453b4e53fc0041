import math

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OlmoeConfig,
    OPTConfig,
    RobertaConfig,
)

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.evaluation import likelihood
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.likelihood import text_bits
from dragoman.evaluation.options import OptionAccuracy, Options, option_bits
from tests.evaluation.test_likelihood import CONTEXT, SMALL, START, V, tiny


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


EARLY = {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
ENCODER = {"num_hidden_layers": 2, "intermediate_size": 48, "is_decoder": True, "initializer_range": 0.5}
KINDS = {
    "llama": LlamaConfig(**SMALL),
    "olmoe": OlmoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2),
    "mistral": MistralConfig(**SMALL, sliding_window=4),  # shorter than most prompts
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_head=4, n_layer=2, n_positions=64, initializer_range=0.5),
    "opt": OPTConfig(**EARLY, ffn_dim=48, num_hidden_layers=2, word_embed_proj_dim=32, init_std=0.5),
    "bloom": BloomConfig(vocab_size=V, hidden_size=32, n_head=4, n_layer=2, initializer_range=0.5),
    "roberta": RobertaConfig(**EARLY, **ENCODER),  # its positions begin behind the filler's id
    "bart": BartConfig(vocab_size=V, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
                       max_position_embeddings=64, init_std=0.5, pad_token_id=0),  # counts positions by its cache
    "falcon_h1": FalconH1Config(**SMALL, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8,
                                mamba_chunk_size=8),  # keys, values and states in one layer
    "lfm2": Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
    "mamba": MambaConfig(vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=0.5),
}  # fmt: skip
EACH_ALONE = {"roberta", "bart", "falcon_h1", "lfm2", "mamba"}
NO_SDPA = {"gemma2", "bloom", "mamba"}


@pytest.mark.parametrize(
    ("kind", "attention"), [(k, a) for k in KINDS for a in ("eager", "sdpa") if not (k in NO_SDPA and a == "sdpa")]
)
def test_a_prompt_is_read_once_where_that_gives_the_same_bits(kind, attention, items):
    """Learned, rotary and relative positions, windows shorter than a prompt, states instead of keys and values."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind], attn_implementation=attention).train()
    settings = {"start_id": START, "context": CONTEXT, "batch_tokens": 30}
    wide = [Options(item.prompt, [*item.options, [9, 6], [9], [8], [7]]) for item in items[::2]]
    wide += items[1:2]
    found = option_bits(model, wide, **settings)
    assert model.training, "left in the mode it came in"
    model.eval()
    expected = [[naive(model, item.prompt, option) for option in item.options] for item in wide]
    assert [bits.tolist() for bits in found] == [pytest.approx(e, rel=1e-4) for e in expected]
    assert abs(found[1][0] / 7 - math.log2(V)) > 0.05, "a model without opinions would hide faults"
    with torch.inference_mode():
        reads_on = likelihood._reads_on(model, *zip(*wide, strict=True), **settings)
    assert likelihood._spares_half(*zip(*wide, strict=True)) and not likelihood._spares_half(*zip(*items, strict=True))
    assert reads_on == (kind not in EACH_ALONE)


def test_it_saves_the_prompts(model):
    many, read = [Options([5, 6, 7, 8, n + 3], [[3, 4], [9], [4, 3, 9], [8]]) for n in range(20)], []
    hook = model.register_forward_pre_hook(
        lambda _, words, given: read.append(int(given["attention_mask"][:, -given["input_ids"].shape[1] :].sum())),
        with_kwargs=True,
    )
    option_bits(model, many, start_id=START, context=CONTEXT)
    hook.remove()
    once, tried = 20 * (6 + 1 + 0 + 2 + 0), 1 + 2 * (6 + 1 + 0 + 2 + 0) + 2 * (7 + 6 + 8 + 6)
    assert sum(read) == tried + once, "and each with its prompt 540"


def test_options_of_one_token_need_no_second_pass(model):
    letters, read = [Options([5, 6, n], [[3], [4], [9]]) for n in range(3, 40)], []
    hook = model.register_forward_hook(lambda *_: read.append(1))
    found = option_bits(model, letters, start_id=START, context=CONTEXT)
    hook.remove()
    assert len(read) == 4, "three to try, one for all prompts"
    assert found[5].tolist() == pytest.approx([naive(model, [5, 6, 8], [token]) for token in (3, 4, 9)], rel=1e-4)


@pytest.mark.parametrize("once", [True, False, None])
def test_items_without_finite_bits_are_named(once, items, monkeypatch):
    """However options are read, and where the item is one that it is tried on, too."""
    broken = tiny("llama")
    broken.get_input_embeddings().weight.data[V - 1] = math.nan
    if once is not None:
        monkeypatch.setattr(likelihood, "_reads_on", lambda *_, **__: once)
    monkeypatch.setattr(likelihood, "_spares_half", lambda *_: True)
    asked = [*items, Options([V - 1], [[3], [4, 5]])]
    with pytest.raises(ModelError, match="not finite for segments 3 "):
        option_bits(broken, asked, start_id=START, context=CONTEXT)


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
    with pytest.raises(ConfigError, match="a context of 1 tokens leaves nothing"):
        option_bits(model, [Options([], [[3], [4]])], start_id=START, context=1)
    for prompts, faulty in [([[3], [4]], [[[3]], []]), ([[3], [4]], [[[3]], [[3], []]])]:
        with pytest.raises(DataError, match="prompts 1 have no continuation, or one without tokens; leave them out"):
            likelihood.continuation_bits(model, prompts, faulty, **settings)
    with pytest.raises(DataError, match="prompts 0 do not fit the context of 16 tokens with what follows"):
        likelihood.continuation_bits(model, [[3] * 15, [3]], [[[4], [5, 6]], [[4]]], **settings)
