"""`dragoman mix train`: what is refused before anything is trained, and what a killed stage goes on from."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dragoman import cli
from dragoman.commands import mix, scoring
from dragoman.commands.mix import run_stage
from dragoman.commands.mixing_text import Train, Training
from dragoman.errors import ConfigError, DataError
from dragoman.methods import sharding
from dragoman.modeling import TextCodec, open_model, save_model
from tests.killing import killed
from tests.models import tiny
from tests.texts import corpus, tokenizer

STEPS = {"steps": 6, "batch": 4, "micro_batch": 4, "warmup": 1, "decay": 3, "precision": "fp32", "checkpoint_steps": 2}
METHODS = {
    "mix_moe-1": {"stage": 1, "languages": ("en", "de")},
    "mix_moe-2": {"stage": 2, "languages": ("ru",), "directions": ("en-de",), "replay": 0.3},
    "full": {"method": "full", "languages": ("en", "de")},
    "lora": {"method": "lora", "directions": ("en-de",)},
    "moe_lpr-1": {"method": "moe_lpr", "stage": 1, "languages": ("en", "ca")},
    "moe_lpr-2": {"method": "moe_lpr", "stage": 2, "languages": ("en", "ca"), "old": ("en",)},
}
STARTS = {"mix_moe-1": "mix", "mix_moe-2": "mix-1", "moe_lpr-1": "up", "moe_lpr-2": "up-1"}
"""Folders; the others start from the dense model."""
BALANCED = ("mix_moe-1", "mix_moe-2", "moe_lpr-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Toy text, a dense model and what its stages start from."""
    folder = tmp_path_factory.mktemp("mix")
    codec = TextCodec(tokenizer())
    model = tiny("llama", vocab_size=len(codec.tokenizer), intermediate_size=32, max_position_embeddings=128)
    save_model(model, codec, folder / "dense")
    corpus().save(folder / "toy.tsv.gz")
    cli.run(["mix", "convert", str(folder / "dense"), "--out", str(folder / "mix")])
    cli.run(["models", "upcycle", str(folder / "dense"), "--out", str(folder / "up")])
    for start, name in (("mix", "mix_moe-1"), ("up", "moe_lpr-1")):
        run_stage(settings(folder, name, folder / name, training=Training(**STEPS | {"steps": 4})))
        (folder / f"{start}-1").symlink_to(folder / name / "model")
    return folder


def settings(folder, name, out, **changes):
    how = Training(**STEPS, balance=0.01 if name in BALANCED else 0.0)
    rest = {"corpus": str(folder / "toy.tsv.gz"), "block": 64, "training": how, "segments": 6, "quiet": True}
    given = METHODS[name] | rest | {"only_after": True, "out": out} | changes
    return Train(str(folder / STARTS.get(name, "dense")), **given)


def stopped(done, copy):
    """A run that was killed after the checkpoint before its last one."""
    shutil.copytree(done, copy)
    shutil.rmtree(copy / "model")
    (copy / "record.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "checkpoint-6")
    assert (copy / "checkpoints" / "checkpoint-4").is_dir()
    return copy


def same_weights(a, b):
    ours, theirs = (open_model(str(place / "model")).state_dict() for place in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_with_the_same_losses(folder, tmp_path, name):
    plain = replace(settings(folder, name, tmp_path / "a").training, checkpoint_steps=0)
    straight = run_stage(settings(folder, name, tmp_path / "a", training=plain))
    assert not (tmp_path / "a" / "checkpoints").exists()
    run_stage(settings(folder, name, tmp_path / "b"))
    copy = stopped(tmp_path / "b", tmp_path / "c")
    resumed = run_stage(settings(folder, name, copy, resume=True))
    assert resumed["log"]["losses"] == straight["log"]["losses"] and len(resumed["log"]["losses"]) == 6
    assert resumed["log"]["tokens"] == straight["log"]["tokens"]
    assert resumed["results"] == straight["results"] and resumed.get("shares") == straight.get("shares")
    assert same_weights(tmp_path / "a", copy)
    again = run_stage(settings(folder, name, copy, resume=True))
    assert again["created"] == resumed["created"], "a finished stage is not trained again"


def test_killed_at_a_step_and_inside_a_save_it_resumes_to_the_bit(folder, tmp_path):
    words = ["mix", "train", str(folder / "mix"), "--stage", "1", "--languages", "en", "de", "--block", "64", "--quiet"]
    words += ["--corpus", str(folder / "toy.tsv.gz"), "--segments", "4", "--only-after"]
    words += [w for name, value in STEPS.items() for w in (f"--training.{name.replace('_', '-')}", str(value))]
    (tmp_path / "words.json").write_text(json.dumps(words))
    assert killed(tmp_path, "step:5", "torch_save:3")["steps"] == 6


def test_a_stage_is_resumed_with_its_own_settings_alone(folder, tmp_path):
    first = settings(folder, "mix_moe-1", tmp_path / "a")
    run_stage(first)
    other = replace(first, block=32, training=replace(first.training, learning_rate=0.5), resume=True)
    said = r"the run in .* was another \(block: 64 -> 32; training.learning_rate: 0.001 -> 0.5\); resume with the old"
    with pytest.raises(ConfigError, match=said):
        run_stage(other)
    with pytest.raises(ConfigError, match=r"is not empty; choose another with --out"):
        run_stage(first)
    (tmp_path / "a" / "record.json").unlink()
    often = replace(first.training, checkpoint_minutes=1.0, checkpoint_steps=3, gradient_checkpointing=True)
    assert run_stage(replace(first, training=often, resume=True))["log"]["steps"] == 6
    (tmp_path / "a" / "record.json").unlink()
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "checkpoint-6")
    none = replace(first, training=replace(first.training, checkpoint_steps=0), resume=True)
    assert run_stage(none)["log"]["steps"] == 6 and len(list((tmp_path / "a" / "checkpoints").iterdir())) == 2, "read"


def test_the_model_is_there_when_scoring_fails_and_the_run_goes_on(folder, tmp_path, monkeypatch):
    whole = run_stage(settings(folder, "mix_moe-1", tmp_path / "a"))
    with monkeypatch.context() as patched:
        patched.setattr(scoring, "score_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_stage(settings(folder, "mix_moe-1", tmp_path / "b"))
    assert same_weights(tmp_path / "a", tmp_path / "b") and not (tmp_path / "b" / "record.json").exists()
    resumed = run_stage(settings(folder, "mix_moe-1", tmp_path / "b", resume=True))
    assert resumed["log"]["losses"] == whole["log"]["losses"] and resumed["results"] == whole["results"]


@pytest.fixture
def untrained(monkeypatch):
    """Fails where something is trained or scored all the same."""
    for module, name in ((mix, "_trained"), (scoring, "score_model")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("nothing was to be trained or scored"))


@pytest.mark.usefixtures("untrained")
def test_prompts_that_fill_the_context_are_told_before_training(folder, tmp_path):
    text = corpus().take(range(120))
    at = text.splits.index("devtest")
    text.columns["de"][at] = "Datei speichern " * 64
    text.save(tmp_path / "long.tsv")
    given = {"corpus": str(tmp_path / "long.tsv"), "score": ("en-de", "de-en")}
    with pytest.raises(DataError, match=r"split devtest fill the context of 128 tokens \(1 of de-en\), so nothing was"):
        run_stage(settings(folder, "full", tmp_path / "a", **given))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_z_loss_is_for_methods_with_routers(folder, tmp_path, method):
    with pytest.raises(ConfigError, match=f"{method} trains without a z-loss of routers here: set training"):
        settings(folder, method, tmp_path / "a", training=Training(balance=0.0, z_loss=0.1))


def test_a_z_loss_alone_reaches_the_routers(folder, tmp_path):
    plain, pressed = (
        run_stage(settings(folder, "mix_moe-2", tmp_path / str(weight), training=how))
        for weight in (0.0, 1.0)
        for how in [Training(**STEPS, balance=0.0, z_loss=weight)]
    )
    assert plain["log"]["losses"] != pressed["log"]["losses"] and pressed["log"]["balance"]


def test_three_segments_are_enough_where_no_shares_are_measured(folder, tmp_path):
    assert run_stage(settings(folder, "full", tmp_path / "a", segments=3))["log"]["steps"] == 6


@pytest.mark.usefixtures("untrained")
def test_a_second_stage_of_moe_lpr_is_not_shared_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "active", lambda: True)
    with pytest.raises(ConfigError, match="that is shared out takes no loss over parallel or old text; start it with"):
        run_stage(settings(folder, "moe_lpr-2", tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_what_is_refused_while_training_leaves_no_folder(folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise DataError("no room")

    monkeypatch.setattr(scoring, "score_model", refuse)
    with pytest.raises(DataError, match="no room"):
        run_stage(settings(folder, "full", tmp_path / "a", only_after=False))
    assert not (tmp_path / "a").exists()


def test_routers_are_balanced_whatever_else_is_set(monkeypatch):
    seen = []

    def refuse(config):
        seen.append(config.training)
        raise DataError("seen")

    monkeypatch.setattr(mix, "run_stage", refuse)
    line = ["mix", "train", "x", "--out", "y", "--languages", "en"]
    for flags in ([], ["--training.steps", "300"], ["--training.balance", "0"]):
        with pytest.raises(DataError, match="seen"):
            cli.run([*line, "--stage", "1", *flags])
    assert [(how.balance, how.steps) for how in seen] == [(0.01, 100), (0.01, 300), (0.0, 100)]
    review = ["--method", "moe_lpr", "--stage", "2", "--old", "en", "--training.steps", "300"]
    for flags in (["--method", "lora"], review):
        with pytest.raises(DataError, match="seen"):
            cli.run([*line, *flags])
    assert [(how.balance, how.steps) for how in seen[3:]] == [(0.0, 100), (0.0, 300)], "these have none"
