"""`dragoman export`: what is proven, and that every fault is found and leaves nothing behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dragoman
from dragoman.commands import export, reloading
from dragoman.commands.adapt import Text
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import METHODS
from dragoman.methods.delta import Delta, open_both, trained_delta
from dragoman.modeling import open_model, open_tokenizer, save_model, state_checksum, stored_names
from tests.methods.contract import FURTHER, batch, model_of, toy_plan, trained
from tests.models import tiny

CODEC = open_tokenizer("mini-moe")
NAMES = {
    "olmoe": ("model.layers.{}.mlp.experts.{}.", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
    "mixtral": ("model.layers.{}.block_sparse_moe.experts.{}.", ("w1.weight", "w2.weight", "w3.weight")),
    "qwen3_moe": ("model.layers.{}.mlp.experts.{}.", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
    "qwen2_moe": ("model.layers.{}.mlp.experts.{}.", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
    "deepseek_v3": ("model.layers.{}.mlp.experts.{}.", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
    "glm4_moe": ("model.layers.{}.mlp.experts.{}.", ("gate_proj.weight", "up_proj.weight", "down_proj.weight")),
}
"""Family -> start and ends of the names of an expert's tensors, as published checkpoints and vLLM's loaders have."""


def make_base(folder, family="olmoe", seed=0):
    """A base on disk; its tokenizer is larger than its vocabulary, which only `open_both` minds."""
    save_model(model_of(family, seed), CODEC, folder)
    return str(folder)


def make_delta(base, folder, method="expert_tuning", dtype="float32", **settings):
    """A delta after three steps, and the logits of the model that it was taken from.

    On the CPU, whatever there is: what the tests hold against them is computed there, to the bit.
    """
    model = open_model(base, dtype=dtype, device="cpu")
    sha256, plan = state_checksum(model), toy_plan(model) if METHODS[method].NEEDS_PLAN else None
    chosen = METHODS[method].Config(**settings)
    trained(METHODS[method], model, chosen, plan, batch())
    trained_delta(model, method, chosen, plan, base=base, base_sha256=sha256).save(folder)
    with torch.no_grad():
        return str(folder), model(batch()).logits


@pytest.fixture
def here(monkeypatch):
    """The reading program runs in this process, which saves five seconds; the answer is the same."""

    def run(command, **_):
        reloading.main(*command[3:])
        answer = json.loads(Path(command[-1], "fingerprints.json").read_text())
        Path(command[-1], "fingerprints.json").write_text(json.dumps(answer | {"own_modules": []}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(export.subprocess, "run", run)


@pytest.mark.parametrize("method", ["expert_tuning", "lora"])
def test_a_delta_becomes_a_plain_model_that_another_process_reads(method, tmp_path, capsys):
    base = make_base(tmp_path / "base")
    delta, expected = make_delta(base, tmp_path / "delta", method)
    record = dragoman.export(delta, out=tmp_path / "out")
    export.show(record)
    proof = record["proof"]
    plain = type(tiny("olmoe")).from_pretrained(tmp_path / "out", dtype="float32").eval()
    if method == "lora":
        torch.testing.assert_close(plain(batch()).logits, expected, rtol=1e-4, atol=1e-5)
        assert proof["merged"]["declared"] == "rounding" and 0 < proof["merged"]["distance"] < 1e-6
        assert not any("lm_head" in n or "norm" in n for n in proof["changed"])
    else:
        assert torch.equal(plain(batch()).logits, expected)
        stacks = {n: rows for n, rows in proof["changed"].items() if "experts" in n}
        assert set(map(tuple, stacks.values())) == {(1, 3)} and len(stacks) == 2 * 2
        assert set(proof["changed"]) - set(stacks) == {f"model.layers.{i}.mlp.gate.weight" for i in (1, 2)}
    assert proof["stored"] == {"declared": "bits", "distance": 0.0, "dtype": "float32", "from_trained": 0.0}
    assert json.loads((tmp_path / "out" / "record.json").read_text())["proof"]["names"] == proof["names"]
    assert "no other row" in capsys.readouterr().out


@pytest.mark.parametrize("family", NAMES)
def test_experts_have_the_names_of_published_checkpoints(family, tmp_path, here):
    delta, _ = make_delta(make_base(tmp_path / "base", family), tmp_path / "delta")
    dragoman.export(delta, out=tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stored:
        names = [n for n in stored.keys() if ".experts." in n]  # noqa: SIM118, it is no dict
    start, ends = NAMES[family]
    layers = range(1 if family in ("deepseek_v3", "glm4_moe") else 0, 3)
    assert sorted(names) == sorted(start.format(i, e) + end for i in layers for e in range(8) for end in ends)


def test_storing_in_bfloat16_is_to_rounding(tmp_path, here):
    delta, _ = make_delta(make_base(tmp_path / "base"), tmp_path / "delta")
    proof = dragoman.export(delta, out=tmp_path / "out", dtype="bfloat16")["proof"]
    assert proof["stored"]["declared"] == "rounding" and proof["merged"]["distance"] == 0
    assert proof["stored"]["distance"] < 1e-6 < proof["stored"]["from_trained"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(n).get_dtype() for n in stored.keys()} == {"BF16"}  # noqa: SIM118


def test_an_adapted_model_is_held_against_its_base_and_plan(tmp_path, here):
    base, plan = str(tmp_path / "base"), tmp_path / "plan.json"
    save_model(tiny("olmoe", vocab_size=len(CODEC.tokenizer)), CODEC, tmp_path / "base")
    delta, _ = make_delta(base, tmp_path / "delta")
    model, _ = open_both(delta)
    toy_plan(model).save(plan)
    save_model(model, CODEC, tmp_path / "model")
    proof = dragoman.export(str(tmp_path / "model"), base=base, plan=plan, out=tmp_path / "out")["proof"]
    assert len(proof["changed"]) == 6 and proof["known"]
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[6, 0, 0] += 1
    save_model(model, CODEC, tmp_path / "model")
    with pytest.raises(ModelError, match=r"experts\.down_proj, rows \[6\]"):
        dragoman.export(str(tmp_path / "model"), base=base, plan=plan, out=tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not dragoman.export(str(tmp_path / "model"), base=base, out=tmp_path / "third")["proof"]["known"]
    model.resize_token_embeddings(len(CODEC.tokenizer) + 2)
    save_model(model, CODEC, tmp_path / "model")
    with pytest.raises(ModelError, match=r"a vocabulary that grew .*: lm_head\.weight, model\.embed_tokens\.weight"):
        dragoman.export(str(tmp_path / "model"), base=base, out=tmp_path / "fourth")
    assert not (tmp_path / "fourth").exists()


def test_a_bit_lost_in_storing_is_found_and_nothing_stays(tmp_path, here, monkeypatch):
    delta, _ = make_delta(make_base(tmp_path / "base"), tmp_path / "delta")

    def losing(model, codec, folder, dtype=None):
        state = {n: t.clone() for n, t in model.state_dict().items()}
        state["model.norm.weight"][3] += 1e-6
        model.save_pretrained(folder, state_dict=state)

    monkeypatch.setattr("dragoman.modeling.save_model", losing)
    with pytest.raises(ModelError, match="storing moved the logits"):
        dragoman.export(delta, out=tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"base", "delta"}


def test_a_fault_of_the_reading_process_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}')
    with pytest.raises(ModelError, match=r"plain transformers cannot read .*safetensors"):
        export.reloaded(tmp_path, [[1]], "float32", "cpu", [])


def test_other_names_on_disk_are_refused(tmp_path, here, monkeypatch):
    base = make_base(tmp_path / "base")
    delta, _ = make_delta(base, tmp_path / "delta")
    names = dragoman.modeling.stored_names
    renamed = lambda name: frozenset(n.replace("gate_proj", "w1") for n in names(name)) if name == base else names(name)  # noqa: E731
    monkeypatch.setattr("dragoman.modeling.stored_names", renamed)
    with pytest.raises(ModelError, match=r"names on disk.*gate_proj.*and \d+ more"):
        dragoman.export(delta, out=tmp_path / "out")


def test_what_the_class_of_the_base_does_not_read_is_left_out(tmp_path, here):
    """As old Llamas have angles of positions, and GLM-4.5 layers that predict further tokens."""
    base, unread = make_base(tmp_path / "base"), "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights = {n: t.clone() for n, t in load_file(tmp_path / "base" / "model.safetensors").items()}
    save_file(weights | {unread: torch.ones(4)}, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    delta, _ = make_delta(base, tmp_path / "delta")
    proof = dragoman.export(delta, out=tmp_path / "out")["proof"]
    assert proof["left_out"] == [unread] and proof["names"] == len(weights)
    assert stored_names(base) - stored_names(str(tmp_path / "out")) == {unread}


@pytest.mark.parametrize(
    ("code", "said", "what"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory.", "on cuda to read the export; try --device cpu"),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", "for the model twice; free some"),
        (-9, "", "for the model twice; free some"),
    ],
)
def test_too_little_memory_is_no_fault_of_the_file(code, said, what, tmp_path, monkeypatch):
    done = type("Done", (), {"returncode": code, "stderr": f"Traceback\n{said}\n"})
    monkeypatch.setattr(export.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelError, match=f"not enough memory {what}; nothing was written"):
        export.reloaded(tmp_path, [[1]], "float32", "cuda", [])


def test_one_model_at_a_time_is_held_on_the_device_that_was_named(tmp_path, here, monkeypatch):
    delta, _ = make_delta(make_base(tmp_path / "base"), tmp_path / "delta")
    steps, reloaded, leave_gpu = [], export.reloaded, reloading.leave_gpu
    monkeypatch.setattr(reloading, "leave_gpu", lambda model: steps.append("left") or leave_gpu(model))
    monkeypatch.setattr(export, "reloaded", lambda *given: steps.append(given[3]) or reloaded(*given))
    assert dragoman.export(delta, device="cpu", out=tmp_path / "out")["config"]["device"] == "cpu"
    assert steps == ["left", "cpu"]
    for name, beside in ((delta, {}), (str(tmp_path / "base"), {"base": str(tmp_path / "base")})):
        with pytest.raises(ConfigError, match="the device 'abacus' cannot be used"):
            dragoman.export(name, device="abacus", out=tmp_path / "again", **beside)


def test_a_base_with_stacked_experts_on_disk_becomes_one_tensor_for_each(tmp_path, here):
    base = make_base(tmp_path / "base")
    state = {n: t.clone() for n, t in model_of("olmoe").state_dict().items()}
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    delta, expected = make_delta(base, tmp_path / "delta")
    dragoman.export(delta, out=tmp_path / "out")
    names = stored_names(str(tmp_path / "out"))
    assert "model.layers.0.mlp.experts.gate_up_proj" in stored_names(base) - names
    assert "model.layers.0.mlp.experts.7.gate_proj.weight" in names
    assert torch.equal(open_model(str(tmp_path / "out"), device="cpu")(batch()).logits, expected)


@pytest.mark.parametrize("family", FURTHER)
def test_families_with_stacked_experts_on_disk_keep_them(family, tmp_path, here):
    base = make_base(tmp_path / "base", family)
    delta, _ = make_delta(base, tmp_path / "delta", "lora")
    dragoman.export(delta, out=tmp_path / "out")
    assert stored_names(str(tmp_path / "out")) == stored_names(base)


def test_a_delta_fits_its_base_alone(tmp_path, here):
    base, other = make_base(tmp_path / "base"), make_base(tmp_path / "other", seed=1)
    delta, expected = make_delta(base, tmp_path / "delta")
    with pytest.raises(ModelError, match=r"trained on .*base.* --base"):
        dragoman.export(delta, base=other, out=tmp_path / "out")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="not there any more"):
        dragoman.export(delta, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model = open_model(str(tmp_path / "moved"), device="cpu")
    Delta.load(delta).put_on(model)
    assert torch.equal(model(batch()).logits, expected)


def test_what_makes_no_sense_is_one_sentence(tmp_path):
    base = make_base(tmp_path / "base")
    delta, _ = make_delta(base, tmp_path / "delta")
    with pytest.raises(ConfigError, match=r"dtype is float32.*PEFT has no form for what expert_tuning trains"):
        dragoman.export(delta, dtype="int8", format="peft", out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--base.*only deltas of lora"):
        dragoman.export(base, format="peft", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="not empty"):
        dragoman.export(delta, out=tmp_path / "base")
    (tmp_path / "delta" / "delta.json").write_text("{}")
    with pytest.raises(DataError, match="is no delta of the format"):
        dragoman.export(delta, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("olmoe", "float32"), ("mixtral", "float32"), ("deepseek_v3", "float32"), ("olmoe", "bfloat16")],
)
def test_lora_becomes_an_adapter_that_peft_reads(family, dtype, tmp_path):
    from peft import PeftModel

    base = make_base(tmp_path / "base", family)
    parts = ("attention", "experts", "shared") if family == "deepseek_v3" else ("attention", "experts")
    delta, expected = make_delta(base, tmp_path / "delta", "lora", dtype, rank=2, parts=parts)
    assert dragoman.export(delta, format="peft", out=tmp_path / "out")["proof"]["logits"]["distance"] == 0
    as_trained = {"torch_device": "cpu", "autocast_adapter_dtype": False}
    read = PeftModel.from_pretrained(open_model(base, dtype=dtype, device="cpu"), tmp_path / "out", **as_trained)
    assert torch.equal(read(batch()).logits, expected)


def test_adapt_saves_model_and_delta_that_are_the_same(tmp_path, here):
    base = str(tmp_path / "base")
    save_model(tiny("olmoe", vocab_size=len(CODEC.tokenizer), max_position_embeddings=128), CODEC, tmp_path / "base")
    record = dragoman.adapt(
        base, target="pt", parent="es", method="lora", rank=2, layers=(1, 2), save="both", out=tmp_path / "out",
        text=Text(segments=8, block=96), quiet=True,
    )  # fmt: skip
    model, delta = open_model(str(tmp_path / "out" / "model")), open_both(str(tmp_path / "out" / "delta"))[0]
    assert state_checksum(model) == state_checksum(delta) != state_checksum(open_model(base))
    assert Delta.load(tmp_path / "out" / "delta").tag == ("es", "pt")
    assert record["parameters"] == sum(t.numel() for t in Delta.load(tmp_path / "out" / "delta").weights.values())
    proof = dragoman.export(str(tmp_path / "out" / "delta"), out=tmp_path / "exported")["proof"]
    tag = CODEC.tag_id("pt")
    assert proof["changed"]["model.embed_tokens.weight"] == proof["changed"]["lm_head.weight"] == [tag]
    assert all(".layers.0." not in n for n in proof["changed"])
    with pytest.raises(ConfigError, match=r"began as a copy"):
        dragoman.export(str(tmp_path / "out" / "delta"), format="peft", out=tmp_path / "peft")


def test_the_row_of_a_tag_trains_with_the_planned_experts(tmp_path, here):
    base = tiny("olmoe", vocab_size=len(CODEC.tokenizer), max_position_embeddings=128, tie_word_embeddings=True)
    save_model(base, CODEC, tmp_path / "base")
    toy_plan(base).save(tmp_path / "plan.json")
    dragoman.adapt(
        str(tmp_path / "base"), target="pt", plan=tmp_path / "plan.json", embeddings="tags", routers=False,
        save="delta", out=tmp_path / "out", text=Text(segments=8, block=96), quiet=True,
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "delta", "record.json"}
    proof = dragoman.export(str(tmp_path / "out" / "delta"), out=tmp_path / "exported")["proof"]
    experts = {n: rows for n, rows in proof["changed"].items() if "experts" in n}
    assert len(experts) == 4 and set(proof["changed"]) - set(experts) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert proof["changed"]["lm_head.weight"] == [CODEC.tag_id("pt")]
    with pytest.raises(ConfigError, match="no tag for tlh"):
        dragoman.commands.adapt._with_tag_row(Delta.load(tmp_path / "out" / "delta").settings, CODEC, "tlh")


def test_a_model_is_held_against_what_adapt_recorded_beside_it(tmp_path, here):
    """A parent that only the command named, tags and routers that train, bfloat16: as it was asked for."""
    base = tiny("olmoe", vocab_size=len(CODEC.tokenizer), max_position_embeddings=128)
    save_model(base, CODEC, tmp_path / "base")
    plan = toy_plan(base)
    replace(plan, train_routers=False).save(tmp_path / "plan.json")
    dragoman.adapt(
        str(tmp_path / "base"), target="pt", parent="es", plan=tmp_path / "plan.json", embeddings="tags", routers=True,
        dtype="bfloat16", out=tmp_path / "out", text=Text(segments=8, block=96), quiet=True, learning_rate=0.01,
    )  # fmt: skip
    given = {"base": str(tmp_path / "base"), "plan": tmp_path / "plan.json"}
    proof = dragoman.export(str(tmp_path / "out" / "model"), out=tmp_path / "exported", **given)["proof"]
    assert proof["stored"]["dtype"] == "bfloat16"
    assert proof["changed"]["lm_head.weight"] == [CODEC.tag_id("pt")]
    assert any(n.endswith("gate.weight") for n in proof["changed"])
    (tmp_path / "out" / "record.json").unlink()
    with pytest.raises(ModelError, match=r"weights differ from the base that were not trained: .*embed_tokens"):
        dragoman.export(str(tmp_path / "out" / "model"), out=tmp_path / "again", **given)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_base_is_held_in_the_dtype_that_is_stored_whatever_its_config_says(dtype, tmp_path, here):
    """Weights in float32 under a config that says bfloat16: a model made of them in float32 has all their bits."""
    model = tiny("olmoe", vocab_size=len(CODEC.tokenizer))
    save_model(model, CODEC, tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[6] += 1
    save_model(model, CODEC, tmp_path / "model")
    given = {"base": str(tmp_path / "base"), "out": tmp_path / "out", "dtype": dtype}
    proof = dragoman.export(str(tmp_path / "model"), **given)["proof"]
    assert proof["changed"] == {"model.layers.1.mlp.experts.down_proj": [6]}
    assert proof["stored"]["dtype"] == (dtype or "float32")


def test_rows_that_were_trained_and_stayed_equal_are_counted_by_hand():
    before = {"stack": ["a", "b", "c", "d"], "router": ["x", "y"], "norm": "n"}
    after = before | {"stack": ["a", "B", "c", "D"]}
    changed = export._changed(before, after)
    assert changed == {"stack": [1, 3]}
    assert export._equal_rows(before, {"stack": (1, 2, 3), "router": None}, changed) == {"stack": 1, "router": 2}
    export._require_allowed(changed, {"stack": (1, 2, 3)})
    with pytest.raises(ModelError, match=r"not trained: stack, rows \[1\]"):
        export._require_allowed(changed, {"stack": (2, 3)})
    with pytest.raises(ModelError, match="not trained: norm"):
        export._changed(before, after | {"norm": "m"})
    with pytest.raises(ModelError, match="only one of the model and its base has router"):
        export._changed(before, {n: t for n, t in after.items() if n != "router"})


def test_a_setting_of_another_method_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="rank, routers would have no effect on the method full"):
        dragoman.adapt("mini-moe", target="pt", method="full", rank=2, routers=False, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="save is model, delta, both, not 'all'"):
        dragoman.adapt("mini-moe", target="pt", save="all", out=tmp_path / "out")
