"""The trunk cache: training on it is training without it, kills and damage are noticed, what cannot be is refused."""

import contextlib
import json
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from filelock import FileLock

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import expert_tuning, training, trunk
from dragoman.methods.rows import Rows
from dragoman.modeling import decoder_layers, moe_layers
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import tiny

TEXT_NS = np.random.default_rng(0).integers(3, 64, (6, 12)).astype(np.int32)


def tuned(family="olmoe", **changes):
    """Four layers; two experts of the last two train."""
    model = tiny(family, num_hidden_layers=4, **changes)
    last = moe_layers(model)[-2:]
    plan = ExpertPlan(
        planner="test",
        layers={x.layer_id: (PlannedExpert(1, "language"), PlannedExpert(3, "shared")) for x in last},
        num_experts={x.layer_id: x.num_experts for x in moe_layers(model)},
        train_routers=True,
        trace_sha256="0" * 64,
    )
    expert_tuning.apply(model, expert_tuning.Config(), plan)
    return model


def rows(text_NS=TEXT_NS, passes=2):
    return Rows(text_NS, None, None, passes * len(text_NS))


def cached(model, folder, dtype="fp32", text=None, **options):
    config = trunk.Config(folder=folder / "trunk", dtype=dtype)
    return trunk.cached_trunk(model, text or rows(), config, **({"batch": 2, "announce": lambda _: None} | options))


def losses(model, folder, **changes):
    given = {"steps": 6, "batch": 2, "micro_batch": 2, "warmup": 1, "decay": 2, "precision": "fp32"}
    config = training.Config(**given | changes)
    return training.train(model, TEXT_NS, config, layers=(), folder=folder).losses


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "mixtral"])
def test_training_on_the_cache_is_training_without_it(family, tmp_path):
    alone = losses(tuned(family), tmp_path / "a")
    model = tuned(family)
    ran = []
    with cached(model, tmp_path) as difference:
        assert difference == 0
        decoder_layers(model)[0].input_layernorm.register_forward_hook(lambda *_: ran.append(1))
        decoder_layers(model)[2].input_layernorm.register_forward_hook(lambda *_: ran.append(2))
        with_it = losses(model, tmp_path / "b")
    assert set(ran) == {2}, "a layer below the cut ran"
    torch.testing.assert_close(torch.tensor(with_it), torch.tensor(alone), rtol=1e-5, atol=0)
    assert with_it[0] != with_it[3], "the same rows, after three updates"
    model(torch.from_numpy(TEXT_NS[:2]).long(), use_cache=False)
    assert set(ran) == {1, 2}, "outside the block all layers run"


def test_documents_are_kept_apart_on_the_cache_too(tmp_path):
    """Rows of two documents and filler: found in the cache, and what they teach without it."""
    places = np.array([[*range(6), *range(4), -1, -1]] * len(TEXT_NS))
    labels = np.where(places < 0, -100, TEXT_NS).astype(np.int64)
    config = training.Config(steps=6, batch=2, micro_batch=2, warmup=1, decay=2, precision="fp32")
    given = {"layers": (), "labels_NS": labels, "positions_NS": places, "pad_id": 0}
    alone = training.train(tuned(), TEXT_NS, config, folder=tmp_path / "a", **given).losses
    model, ran = tuned(), []
    with cached(model, tmp_path, text=Rows(TEXT_NS, labels, 0, len(TEXT_NS), places)):
        decoder_layers(model)[0].input_layernorm.register_forward_hook(lambda *_: ran.append(1))
        with_it = training.train(model, TEXT_NS, config, folder=tmp_path / "b", **given).losses
    assert len(ran) == 1, "but for the look whether the class keeps documents apart, no layer below the cut runs"
    torch.testing.assert_close(torch.tensor(with_it), torch.tensor(alone), rtol=1e-5, atol=0)
    together = training.train(tuned(), TEXT_NS, config, folder=tmp_path / "c", **given | {"positions_NS": None}).losses
    assert not np.allclose(together, alone), "else isolation shows nothing"


def test_gradient_checkpointing_on_the_cache_changes_no_loss(tmp_path):
    alone = losses(tuned("olmoe"), tmp_path / "a")
    model = tuned("olmoe")
    with cached(model, tmp_path):
        again = losses(model, tmp_path / "b", gradient_checkpointing=True)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_an_extra_loss_and_a_penalty_are_those_of_the_whole_model(tmp_path, balance):
    """The term sees the routers above the cut, its rows and its tokens, as it does without a cache."""
    weights, said = [], []
    for name, kept in (("a", contextlib.nullcontext), ("b", None)):
        model = tuned()

        def extra(inputs, row_B, routed):
            said.append((row_B.tolist(), inputs["input_ids"].tolist(), [r.row for r in routed]))
            return 10 * sum(r.logits_TE.square().mean() for r in routed)

        config = training.Config(steps=6, batch=2, micro_batch=2, warmup=1, decay=2, precision="fp32", balance=balance)
        with kept() if kept else cached(model, tmp_path):
            given = {"layers": moe_layers(model)[-2:], "extra_loss": extra, "folder": tmp_path / name}
            training.train(model, TEXT_NS, config, **given)
        weights.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert said[:6] == said[6:]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_layers_of_the_trunk_are_not_measured_and_nothing_is_compiled(tmp_path):
    model = tuned()
    config = {"steps": 2, "batch": 2, "micro_batch": 2, "warmup": 0, "decay": 0, "precision": "fp32"}
    with cached(model, tmp_path):
        with pytest.raises(ModelError, match=r"layers \[0, 1\] are to be measured or aligned, and did not run"):
            training.train(
                model, TEXT_NS, training.Config(**config), layers=moe_layers(model), folder=tmp_path / "a"
            )
        with pytest.raises(ConfigError, match=r"torch\.compile and a trunk cache do not go together"):
            training.train(model, TEXT_NS, training.Config(**config, compile=True), folder=tmp_path / "b")


def test_file_holds_each_row_once_and_what_left_the_trunk(tmp_path):
    model, said = tuned(), []
    with cached(model, tmp_path, "bf16", announce=said.append) as difference:
        assert 0 < difference < 0.05
    raw = np.fromfile(tmp_path / "trunk" / "activations.bin", np.int16).reshape(6, 12, 16)
    states = model(torch.from_numpy(TEXT_NS).long(), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(torch.from_numpy(raw).view(torch.bfloat16).float(), states, rtol=2**-7, atol=1e-6)
    assert "6 of 6 rows" in said[0]
    with cached(model, tmp_path, "bf16", announce=said.append):
        assert len(said) == 1, "the second time nothing is written"


def test_text_that_is_not_in_the_cache_runs_through_the_whole_model(tmp_path):
    model, other = tuned(), torch.full((1, 12), 5)
    with torch.no_grad(), cached(model, tmp_path):
        inside = model(other, use_cache=False).logits
    with torch.no_grad():
        assert torch.equal(model(other, use_cache=False).logits, inside)


def test_cache_that_was_killed_while_written_goes_on(tmp_path, monkeypatch):
    model = tuned()
    with cached(model, tmp_path):
        pass
    whole = (tmp_path / "trunk" / "activations.bin").read_bytes()
    shutil.rmtree(tmp_path / "trunk")
    run, ran = trunk._Trunk.run, []

    def killed_in_the_second_block(self, block):
        if 2 in block:
            raise KeyboardInterrupt
        return run(self, block)

    monkeypatch.setattr(trunk._Trunk, "run", killed_in_the_second_block)
    with pytest.raises(KeyboardInterrupt), cached(model, tmp_path):
        pass
    with (tmp_path / "trunk" / "activations.bin").open("ab") as f:
        f.write(b"half a block")
    monkeypatch.setattr(trunk._Trunk, "run", lambda self, block: ran.append(list(block)) or run(self, block))
    with cached(model, tmp_path):
        pass
    assert (tmp_path / "trunk" / "activations.bin").read_bytes() == whole
    assert ran[-2:] == [[2, 3], [4, 5]]
    assert len(json.loads((tmp_path / "trunk" / "trunk.json").read_text())["blocks"]) == 3


def test_a_run_waits_for_one_that_writes_the_same_cache_and_reads_what_it_wrote(tmp_path):
    with cached(tuned(), tmp_path / "other"):
        pass
    said, waits = [], threading.Event()

    def announce(text):
        said.append(text)
        waits.set()

    def run():
        with cached(tuned(), tmp_path, announce=announce) as difference:
            said.append(difference)

    (tmp_path / "trunk").mkdir()
    with FileLock(tmp_path / "trunk" / ".lock"):  # another run writes
        run = threading.Thread(target=run)
        run.start()
        assert waits.wait(60)
        for file in ("activations.bin", "trunk.json"):
            shutil.copy(tmp_path / "other" / "trunk" / file, tmp_path / "trunk" / file)
    run.join(60)
    assert said == [f"trunk cache: another run is writing {tmp_path / 'trunk'}; waiting for it", 0], "it wrote nothing"


def test_damage_another_text_another_model_and_a_full_disk_are_said(tmp_path, monkeypatch):
    model = tuned()
    with cached(model, tmp_path):
        pass
    other_text = Rows(TEXT_NS[::-1].copy() + 0, None, None, 4)
    with pytest.raises(ConfigError, match="another run, it differs in rows"), cached(model, tmp_path, text=other_text):
        pass
    with pytest.raises(ConfigError, match="differs in trunk"), cached(tuned(rope_theta=77.0), tmp_path):
        pass
    with (tmp_path / "trunk" / "activations.bin").open("r+b") as f:
        f.write(b"xxxx")
    with pytest.raises(DataError, match=r"block 0 of .* is not what was written"), cached(model, tmp_path):
        pass
    (tmp_path / "trunk" / "activations.bin").unlink()
    with cached(model, tmp_path):  # written anew
        assert (tmp_path / "trunk" / "activations.bin").stat().st_size
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"needs 0\.0 MiB .* make room"), cached(model, tmp_path / "full"):
        pass
    with pytest.raises(ConfigError, match="bf16 or fp32, not in 'int8'"):
        trunk.Config(folder=tmp_path, dtype="int8")


def test_what_trains_below_the_cut_is_named(tmp_path):
    model = tuned()
    model.get_input_embeddings().requires_grad_(True)
    model.model.norm.requires_grad_(True)
    told = "cache: model.embed_tokens.weight below layer 2 trains"
    with pytest.raises(ModelError, match=told), cached(model, tmp_path):
        pass
    model.requires_grad_(True)
    with pytest.raises(ModelError, match="its first layer trains"), cached(model, tmp_path):
        pass


def test_frozen_tied_head_is_used_and_head_of_its_own_may_train(tmp_path):
    with cached(tuned(tie_word_embeddings=True), tmp_path / "tied") as difference:
        assert difference == 0
    model = tuned()
    model.lm_head.requires_grad_(True)
    with cached(model, tmp_path / "own") as difference:
        assert difference == 0


def test_layers_that_need_more_than_the_trunks_output_are_refused(tmp_path):
    model = tuned()
    seen = {}
    below, above = decoder_layers(model)[0], decoder_layers(model)[3]
    below.self_attn.register_forward_hook(lambda _m, _a, out: seen.__setitem__("values", out[0]))
    above.self_attn.register_forward_hook(lambda _m, _a, out: (out[0] + seen.pop("values"), *out[1:]))
    with pytest.raises(ModelError, match=r"layers from 2 up do not run without those below"), cached(model, tmp_path):
        pass
    told = tuned()
    told.config.num_kv_shared_layers = 2
    with pytest.raises(ModelError, match="share keys and values of earlier"), cached(told, tmp_path):
        pass
    assert not (tmp_path / "trunk").exists()
