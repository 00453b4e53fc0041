"""Capture against naive counting, one segment at a time."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import distributed, multiprocessing
from transformers import PreTrainedTokenizerFast

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import TextCodec, moe_layers, tap_routers
from dragoman.routing.capture import capture
from dragoman.routing.trace import RoutingTrace
from tests.models import FAMILIES, dense, tiny

GENERATOR = np.random.default_rng(0)
SEQUENCES = {g: [GENERATOR.integers(3, 64, n).tolist() for n in (5, 17, 1, 9, 30)] for g in ("en", "de")}


def naive_counts(model, segments):
    """[N, L, E] with a loop over segments, layers, tokens and slots."""
    layers = moe_layers(model)
    count_NLE = np.zeros((len(segments), len(layers), 8), dtype=int)
    for n, ids in enumerate(segments):
        with torch.no_grad(), tap_routers(model, layers) as seen:
            model(torch.tensor([[1, *ids]]))
        for row, routed in enumerate(seen):
            for token in routed.indices_TK[1:].tolist():
                for expert in token:
                    count_NLE[n, row, expert] += 1
    return count_NLE


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_a_naive_loop(family):
    model = tiny(family)
    trace = capture(model, SEQUENCES, start_id=1, batch_tokens=64)
    for g, segments in SEQUENCES.items():
        expected_NLE = naive_counts(model, segments)
        np.testing.assert_array_equal(trace.segment_chosen_NLE[g], expected_NLE)
        np.testing.assert_array_equal(trace.chosen_GLE[trace.index(g)], expected_NLE.sum(axis=0))


def test_masses_and_tokens():
    model = tiny("olmoe")
    trace = capture(model, SEQUENCES, start_id=1)
    tokens = sum(map(len, SEQUENCES["en"]))
    assert trace.tokens_G.tolist() == [tokens, tokens]
    assert (trace.chosen_GLE.sum(-1) == 2 * tokens).all()
    np.testing.assert_allclose(trace.router_mass_GLE.sum(-1), tokens, rtol=1e-5)
    assert (trace.gate_mass_GLE <= trace.router_mass_GLE + 1e-6).all(), "OLMoE does not renormalise its top-k weights"
    assert (trace.gate_mass_GLE.sum(-1) > 0).all()


def test_batching_changes_nothing():
    model = tiny("olmoe")
    one, all_ = (capture(model, SEQUENCES, start_id=1, batch_tokens=b) for b in (1, 10_000))
    np.testing.assert_array_equal(one.chosen_GLE, all_.chosen_GLE)
    np.testing.assert_allclose(one.gate_mass_GLE, all_.gate_mass_GLE, rtol=1e-5)


def test_traces_of_parts_add_up():
    model = tiny("olmoe")
    whole = capture(model, SEQUENCES, start_id=1)
    parts = [capture(model, {g: s[a:b] for g, s in SEQUENCES.items()}, start_id=1) for a, b in ((0, 2), (2, 5))]
    both = parts[0] + parts[1]
    np.testing.assert_array_equal(both.chosen_GLE, whole.chosen_GLE)
    np.testing.assert_array_equal(both.segment_chosen_NLE["de"], whole.segment_chosen_NLE["de"])


def test_traces_of_other_weights_do_not_add():
    traces = [capture(tiny("olmoe", seed), SEQUENCES, start_id=1) for seed in (0, 0, 1)]
    assert (traces[0] + traces[1]).tokens_G.tolist() == [124, 124]
    with pytest.raises(DataError, match="differ in the weights of their routers"):
        traces[0] + traces[2]


def test_long_segments_are_cut_and_counted_whole():
    ids = GENERATOR.integers(3, 64, 150).tolist()  # the context is 64
    trace = capture(tiny("olmoe"), {"en": [ids]}, start_id=1)
    assert trace.tokens_G.tolist() == [150]
    assert trace.segment_chosen_NLE["en"].sum() == 150 * 2 * 3


def test_a_model_in_training_mode_is_in_it_again_afterwards():
    model = tiny("olmoe").train()
    capture(model, SEQUENCES, start_id=1)
    assert model.training


@pytest.mark.parametrize(
    ("sequences", "message"),
    [({"en": [[5]], "de": []}, "nothing to capture for de"), ({"en": [[5], []]}, "en segment 1"), ({}, "no language")],
)
def test_missing_text_is_refused(sequences, message):
    with pytest.raises(DataError, match=message):
        capture(tiny("olmoe"), sequences, start_id=1)


def test_dense_and_broken_models_are_refused():
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        capture(dense(), SEQUENCES, start_id=1)
    model = tiny("olmoe")
    moe_layers(model)[1].router.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="router of layer 1 gave values that are no numbers"):
        capture(model, SEQUENCES, start_id=1)


# Strings, special tokens, chat


WORDS = ["<unk>", "<s>", "</s>", "the", "cat", "sat", "on", "a", "mat", "user", ":", "assistant"]
TEMPLATE = "<s> user : {% for m in messages %}{{ m.content | trim }}{% endfor %} </s> assistant :"


def small_codec(template=None):
    """Words are tokens 0 to 11; <unk>, <s> and </s> are special."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **marks))


def test_strings_are_captured_as_their_ids():
    model, codec = tiny("olmoe"), small_codec()
    of_text = capture(model, {"en": ["the cat sat", "a mat"]}, codec=codec)
    of_ids = capture(model, {"en": [[3, 4, 5], [7, 8]]}, start_id=1)
    np.testing.assert_array_equal(of_text.segment_chosen_NLE["en"], of_ids.segment_chosen_NLE["en"])
    assert of_text.about["text_sha256"] == of_ids.about["text_sha256"]


def chosen_at(model, ids, places):
    """[L, E] of some places of a sequence."""
    layers = moe_layers(model)
    with torch.no_grad(), tap_routers(model, layers) as seen:
        model(torch.tensor([ids]))
    return np.stack([np.bincount(r.indices_TK[places].flatten().numpy(), minlength=8) for r in seen])


def test_special_tokens_are_read_and_left_out_of_the_counts():
    model, ids = tiny("olmoe"), [3, 2, 4, 1, 5]
    kwargs = {"codec": small_codec()}
    trace = capture(model, {"en": [ids]}, count_special=False, **kwargs)
    np.testing.assert_array_equal(trace.chosen_GLE[0], chosen_at(model, [1, *ids], [1, 3, 5]))
    assert trace.tokens_G.tolist() == [3]
    assert capture(model, {"en": [ids]}, **kwargs).tokens_G.tolist() == [5]
    with pytest.raises(DataError, match="no token of de is counted"):
        capture(model, {"en": [ids], "de": [[2, 2]]}, count_special=False, **kwargs)


def test_chat_counts_the_text_and_not_the_template():
    model = tiny("olmoe")
    trace = capture(model, {"en": ["  the cat ", "user"]}, codec=small_codec(TEMPLATE), chat=True)
    rendered = [([1, 9, 10, 3, 4, 2, 11, 10], [3, 4]), ([1, 9, 10, 9, 2, 11, 10], [3])]
    for counted_LE, (ids, places) in zip(trace.segment_chosen_NLE["en"], rendered, strict=True):
        np.testing.assert_array_equal(counted_LE, chosen_at(model, ids, places))
    assert trace.tokens_G.tolist() == [3]
    assert "chat template" in trace.about["excluded"]


@pytest.mark.parametrize(
    ("error", "message", "text", "settings"),
    [
        (ConfigError, "strings were given for en: pass codec", ["a mat"], {"start_id": 1}),
        (ConfigError, "token ids alone need start_id", [[5]], {}),
        (ConfigError, "no ids and no start_id", [[5]], {"codec": small_codec(TEMPLATE), "chat": True}),
        (ModelError, "needs a chat template", ["a mat"], {"codec": small_codec(), "chat": True}),
        (
            ModelError,
            "changes 1 of 1 texts, as 'a mat'",
            ["a mat"],
            {"codec": small_codec("{{ messages[0].content | upper }} text-goes-here"), "chat": True},
        ),
        (ConfigError, "en has one string", "a mat", {"codec": small_codec()}),
        (DataError, "en segment 1", ["a mat", ""], {"codec": small_codec()}),
        (ConfigError, "start the script with torchrun", [[5]], {"start_id": 1, "distributed": True}),
    ],
)
def test_settings_that_do_not_fit(error, message, text, settings):
    with pytest.raises(error, match=message):
        capture(tiny("olmoe"), {"en": text}, **settings)


# Pairs, layers of several widths, sigmoid routers


def test_pairs_equal_a_naive_loop():
    model = tiny("olmoe")
    trace = capture(model, SEQUENCES, start_id=1, batch_tokens=64, coactivation=True)
    layers = moe_layers(model)
    expected = np.zeros((2, 3, 8, 8), int)
    for g, segments in enumerate(SEQUENCES.values()):
        for ids in segments:
            with torch.no_grad(), tap_routers(model, layers) as seen:
                model(torch.tensor([[1, *ids]]))
            for row, routed in enumerate(seen):
                for token in routed.indices_TK[1:].tolist():
                    for a, b in combinations_with_replacement(sorted(token), 2):
                        expected[g, row, a, b] += 1
    upper = np.triu(np.ones((8, 8), bool))
    np.testing.assert_array_equal(trace.pairs_GLEE * upper, expected)
    np.testing.assert_array_equal(trace.pairs_GLEE, trace.pairs_GLEE.swapaxes(-1, -2))
    assert capture(model, SEQUENCES, start_id=1).pairs_GLEE is None


def narrowed(model, row, num_experts):
    """The model with fewer experts in one layer."""
    layer = moe_layers(model)[row]
    layer.router.num_experts = layer.experts.num_experts = num_experts
    for module in (layer.router, layer.experts):
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(p.data[:num_experts].clone()))
    return model


def test_layers_of_several_widths_are_padded_with_zeros():
    model = narrowed(tiny("olmoe"), 1, 5)
    trace = capture(model, SEQUENCES, start_id=1, coactivation=True)
    assert trace.num_experts == (8, 5, 8)
    for g, segments in SEQUENCES.items():
        np.testing.assert_array_equal(trace.segment_chosen_NLE[g], naive_counts(model, segments))
    assert not trace.chosen_GLE[:, 1, 5:].any() and not trace.pairs_GLEE[:, 1, 5:].any()
    assert not trace.router_mass_GLE[:, 1, 5:].any() and not trace.gate_mass_GLE[:, 1, 5:].any()
    assert trace.chosen_GLE[:, 1, :5].any(axis=-1).all()


def test_mass_of_a_sigmoid_router_is_its_scores():
    model = tiny("glm4_moe")
    trace = capture(model, {"en": SEQUENCES["en"][:1]}, start_id=1)
    layers = moe_layers(model)
    with torch.no_grad(), tap_routers(model, layers) as seen:
        model(torch.tensor([[1, *SEQUENCES["en"][0]]]))
    for row, routed in enumerate(seen):
        score_TE = 1 / (1 + np.exp(-routed.logits_TE[1:].double().numpy()))
        expected_E = (score_TE / score_TE.sum(-1, keepdims=True)).sum(0)
        np.testing.assert_allclose(trace.router_mass_GLE[0, row], expected_E, rtol=1e-5)
    assert trace.about["router_mass"] == "sigmoid"


# Counts per segment on disk, several ranks


def test_counts_per_segment_on_disk_equal_those_in_memory(tmp_path):
    model = tiny("olmoe")
    text = {g: [*s, GENERATOR.integers(3, 64, 150).tolist()] for g, s in SEQUENCES.items()}  # one is cut into pieces
    memory = capture(model, text, start_id=1, batch_tokens=64)
    disk = capture(model, text, start_id=1, batch_tokens=64, per_segment=tmp_path / "segments")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["de.npy", "en.npy", "segments"]
    for g, count_NLE in disk.segment_chosen_NLE.items():
        assert isinstance(count_NLE, np.memmap)
        np.testing.assert_array_equal(count_NLE, memory.segment_chosen_NLE[g])
    disk.save(tmp_path / "trace.npz")
    assert (disk + disk).segment_chosen_NLE["en"].shape == (12, 3, 8)
    with pytest.raises(ConfigError, match="not empty"):
        capture(model, text, start_id=1, per_segment=tmp_path / "segments")
    assert capture(model, text, start_id=1, per_segment=False).segment_chosen_NLE == {}


def test_a_broken_model_leaves_no_files(tmp_path):
    model = tiny("olmoe")
    moe_layers(model)[0].router.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="layer 0"):
        capture(model, SEQUENCES, start_id=1, per_segment=tmp_path / "segments")
    assert not list(tmp_path.rglob("*.npy"))
    assert not model.training


def capture_on_a_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    settings = {"start_id": 1, "batch_tokens": 64, "distributed": True}
    for name, where in (("memory", True), ("disk", folder / "segments")):
        done = []
        trace = capture(
            tiny("olmoe"), SEQUENCES, per_segment=where, coactivation=True, progress=done.append, **settings
        )
        trace.save(folder / f"{name}-{rank}.npz")
        (folder / f"{name}-{rank}.txt").write_text(str(sum(done)))
    distributed.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
def test_two_ranks_make_the_trace_of_one(tmp_path):
    multiprocessing.spawn(capture_on_a_rank, (tmp_path,), nprocs=2)
    alone = capture(tiny("olmoe"), SEQUENCES, start_id=1, batch_tokens=64, coactivation=True)
    for name in ("memory-0", "memory-1", "disk-0", "disk-1"):
        trace = RoutingTrace.load(tmp_path / f"{name}.npz")
        assert trace.about == alone.about
        for field in ("chosen_GLE", "tokens_G", "pairs_GLEE"):
            np.testing.assert_array_equal(getattr(trace, field), getattr(alone, field))
        for field in ("gate_mass_GLE", "router_mass_GLE"):
            np.testing.assert_allclose(getattr(trace, field), getattr(alone, field), rtol=1e-12)
        kept = {} if name == "disk-1" else alone.segment_chosen_NLE
        assert trace.segment_chosen_NLE.keys() == kept.keys()
        for g in kept:
            np.testing.assert_array_equal(trace.segment_chosen_NLE[g], kept[g])
    parts = [int((tmp_path / f"memory-{rank}.txt").read_text()) for rank in (0, 1)]
    assert min(parts) > 0 and sum(parts) == alone.tokens_G.sum(), "each rank should have read a part"
