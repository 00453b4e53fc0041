"""`--dtype` and `--device` of the commands that open a model as it is: what the model is then held in."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import dragoman
from dragoman import cli
from dragoman.commands import aiding, systems, translate
from dragoman.errors import ConfigError
from dragoman.methods import METHODS
from dragoman.methods.delta import open_both, trained_delta
from dragoman.modeling import TextCodec, open_model, opening, save_model, state_checksum
from dragoman.translation import local
from dragoman.translation.memory import Memory
from tests.commands.test_align import two_sentences
from tests.models import tiny
from tests.texts import tokenizer
from tests.translation.test_command import Talker

COMMANDS = ("diagnose", "evaluate", "translate", "categorize", "align")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dtype")
    codec = TextCodec(tokenizer())
    for seed, name in enumerate(("model", "other")):
        model = tiny("olmoe", seed, vocab_size=len(codec.tokenizer), num_experts=8, max_position_embeddings=128)
        save_model(model, codec, folder / name)
        save_model(model, codec, folder / f"{name}-half", dtype="bfloat16")
    two_sentences().save(folder / "text.tsv")
    (folder / "a.txt").write_text("save the file\n")
    return folder


@pytest.fixture
def held(monkeypatch):
    """(name, dtype, device) of every model that is opened; none of them translates."""
    found, original = [], opening.open_model
    monkeypatch.setattr(local, "LocalEngine", lambda *_, **__: Talker(lambda text: f"so {text}"))

    def open_model(name, **settings):
        model = original(name, **settings)
        found.append((Path(name).name, str(model.dtype).removeprefix("torch."), settings["device"]))
        return model

    monkeypatch.setattr(opening, "open_model", open_model)
    return found


def run(command, place, out, suffix="", **settings):
    model = {"model": str(place / f"model{suffix}"), "out": out, "quiet": True}
    text = {"corpus": str(place / "text.tsv")}
    given = {
        "diagnose": text | {"split": "train", "languages": ("en", "ca"), "segments": 20},
        "evaluate": text | {"languages": ("ca",), "segments": 4, "against": (str(place / f"other{suffix}"),)},
        "translate": {"files": (str(place / "a.txt"),), "to": "de", "steps": ("zero_shot",)},
        "categorize": text | {"targets": ("ca",), "items": 8},
        "align": text | {"target": "ca", "method": "sft", "items": 8, "epochs": 1, "batch": 4},
    }[command]
    return getattr(dragoman, command)(**model, **given, **settings)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_is_held_as_the_settings_say(command, place, tmp_path, held):
    record = run(command, place, tmp_path / "default", "-half")
    names = ["model", "other"] if command == "evaluate" else ["model"]
    assert held == [(f"{name}-half", "float32", None) for name in names]
    assert [record["config"][name] for name in ("dtype", "device")] == ["float32", None]
    held.clear()
    record = run(command, place, tmp_path / "half", dtype="bfloat16", device="cpu")
    assert held == [(name, "bfloat16", "cpu") for name in names]
    assert [record["config"][name] for name in ("dtype", "device")] == ["bfloat16", "cpu"]
    held.clear()
    run(command, place, tmp_path / "auto", "-half", dtype="auto")
    assert held == [(f"{name}-half", "bfloat16", None) for name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_dtype_or_device_is_one_sentence(command, place, tmp_path, capsys):
    with pytest.raises(ConfigError, match=f"{command}: dtype is float32, bfloat16, auto, not 'half'"):
        run(command, place, tmp_path / "o", dtype="half")
    with pytest.raises(ConfigError, match="the device 'abacus' cannot be used"):
        run(command, place, tmp_path / "o", device="abacus")
    to = {"align": ["--target", "ca"], "translate": ["--to", "de"]}.get(command, [])
    with pytest.raises(SystemExit):
        cli.main([command, "mini-moe", *to, "--dtype", "half"])
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and '--dtype. Choose from: "float32", "bfloat16", "auto"' in told


def test_a_delta_has_its_own_dtype_unless_another_is_given(place, tmp_path):
    model = open_model(str(place / "model"), dtype="bfloat16", device="cpu")
    before, chosen = state_checksum(model), METHODS["full"].Config()
    METHODS["full"].apply(model, chosen, None)
    delta = trained_delta(model, "full", chosen, None, base=str(place / "model"), base_sha256=before)
    delta.save(tmp_path / "delta")
    config = translate.Config(("a.md",), to="de", model=str(tmp_path / "delta"), device="cpu")
    assert systems.opened(config.model, config)[0].dtype == torch.bfloat16
    both = replace(config, model=str(place / "model"))
    assert systems.opened(both.model, both)[0].dtype == torch.float32


@pytest.mark.parametrize("own", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_delta_in_another_dtype_is_the_model_in_that_one(place, tmp_path, own, asked):
    """With angles of positions in float32, as a model that is opened so has them."""
    model = open_model(str(place / "model"), dtype=own, device="cpu")
    before, chosen = state_checksum(model), METHODS["full"].Config()
    METHODS["full"].apply(model, chosen, None)
    delta = trained_delta(model, "full", chosen, None, base=str(place / "model"), base_sha256=before)
    delta.save(tmp_path / "delta")
    found, _ = open_both(str(tmp_path / "delta"), dtype=asked, device="cpu")
    model.save_pretrained(tmp_path / "merged")
    expected = open_model(str(tmp_path / "merged"), dtype=asked, device="cpu")
    ids = torch.arange(3, 43)[None]
    assert found.dtype == expected.dtype == getattr(torch, asked)
    assert torch.equal(found(ids).logits, expected(ids).logits)
    assert {b.dtype for b in found.buffers() if b.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("method", ["sft", "sara"])
def test_training_on_items_works_in_bfloat16(method, place, tmp_path):
    beside = {} if method == "sft" else {"align": "all", "references": tmp_path / "references"}
    settings = {"method": method, "train": "full", "items": 16, "epochs": 6, "learning_rate": 0.01, **beside}
    record = dragoman.align(
        str(place / "model"), target="ca", corpus=str(place / "text.tsv"), out=tmp_path / "o",
        dtype="bfloat16", quiet=True, **settings,
    )  # fmt: skip
    losses = record["log"]["losses"]
    assert losses[-1] < 0.9 * losses[0]
    with safe_open(tmp_path / "o" / "model" / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(n).get_dtype() for n in stored.keys()} == {"BF16"}  # noqa: SIM118


def test_english_routing_is_kept_by_dtype(place, tmp_path):
    given = {"method": "sara", "align": "all", "items": 8, "epochs": 1, "references": tmp_path / "references"}
    given |= {"target": "ca", "corpus": str(place / "text.tsv"), "quiet": True}
    for dtype in ("float32", "bfloat16"):
        dragoman.align(str(place / "model"), out=tmp_path / dtype, dtype=dtype, **given)
    assert len(list((tmp_path / "references").iterdir())) == 2


# ---- translate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": "http://x", "dtype": "bfloat16", "device": "cpu"}, "--device, --dtype would have no effect"),
        ({"model": "apertium", "dtype": "auto"}, "--dtype would have no effect on this engine"),
        ({"server": "http://x", "draft_model": "apertium", "device": "cpu"}, "--device would have no effect"),
        ({"server": "http://x", "draft_model": "mini-moe", "dtype": "auto"}, ""),
        ({"draft_model": "apertium", "dtype": "auto"}, ""),
    ],
)
def test_settings_of_local_models_need_one(settings, message):
    steps = {"steps": ("scale",), "memory": Path("m")} if settings.get("draft_model") else {}
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        translate.Config(("a.md",), to="de", **steps, **settings)


@pytest.mark.parametrize(("drafter", "dtype"), [("other", "bfloat16"), ("apertium", "float32")])
def test_the_model_that_drafts_is_held_as_the_other_one(drafter, dtype, tmp_path):
    Memory.open(tmp_path / "m.sqlite").close()
    settings = {"memory": tmp_path / "m.sqlite", "steps": ("scale",), "draft_model": drafter}
    config = translate.Config(("a.md",), to="de", dtype="bfloat16", device="cpu", **settings)
    opened = []
    helps = aiding.aids(config, ("en", "de"), config.steps)
    aiding.strategist(config, helps, config.steps, opened.append)
    assert [(c.model, c.dtype) for c in opened] == [("mini-moe", "bfloat16"), (drafter, dtype)]
    assert opened[1].device == ("cpu" if drafter == "other" else None)


def test_a_journal_goes_by_the_dtype_and_not_by_the_device(place, tmp_path, held):
    run("translate", place, tmp_path / "o")
    run("translate", place, tmp_path / "o", device="cpu")
    with pytest.raises(ConfigError, match="another job: dtype differ"):
        run("translate", place, tmp_path / "o", dtype="bfloat16")
    run("translate", place, tmp_path / "p", dtype="bfloat16")
    with pytest.raises(ConfigError, match="another job: dtype differ"):
        run("translate", place, tmp_path / "p")


def test_hypotheses_have_no_model_to_hold():
    with pytest.raises(ConfigError, match="--device, --dtype would have no effect on hypotheses"):
        dragoman.evaluate(hypotheses=("a",), references="b", target="de", dtype="auto", device="cpu")
