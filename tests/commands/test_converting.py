"""What `mix convert` and `models upcycle` share: the device, weights that they refuse; and numbers beyond a layer."""

import json

import pytest

from dragoman import cli
from dragoman.errors import ConfigError, ModelError
from dragoman.modeling import TextCodec, opening, save_model
from tests.commands.test_dtype import held  # noqa: F401 (fixture)
from tests.models import tiny
from tests.texts import tokenizer

COMMANDS = {"convert": ("mix", "convert"), "upcycle": ("models", "upcycle")}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converting") / "dense"
    codec = TextCodec(tokenizer())
    save_model(tiny("llama", vocab_size=len(codec.tokenizer), intermediate_size=32), codec, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_is_converted_on_the_device_that_was_named(command, dense, tmp_path, held):  # noqa: F811
    words = [*COMMANDS[command], str(dense), "--out"]
    cli.run([*words, str(tmp_path / "a"), "--device", "cpu"])
    assert held == [("dense", "float32", "cpu")]
    held.clear()
    cli.run([*words, str(tmp_path / "b")])
    assert held == [("dense", "float32", None)]
    with pytest.raises(ConfigError, match="the device 'abacus' cannot be used"):
        cli.run([*words, str(tmp_path / "c"), "--device", "abacus"])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_quantised_weights_are_a_sentence(command, dense, tmp_path, monkeypatch):
    original = opening.open_model

    def quantised(*given, **settings):
        model = original(*given, **settings)
        model.config.quantization_config = {"quant_method": "fp8"}
        return model

    monkeypatch.setattr(opening, "open_model", quantised)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM are quantised \(fp8\), and experts cannot be made of them"):
        cli.run([*COMMANDS[command], str(dense), "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_a_top_k_beyond_the_planned_numbers_is_refused_before_a_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "open_model", lambda *_, **__: pytest.fail("no model was to be opened"))
    layers = {"0": 1, "1": 3, "2": 2}
    numbers = {"format": "dragoman-numbers/1", "planner": "layer_moe", "experts": layers}
    (tmp_path / "n.json").write_text(json.dumps(numbers))
    words = ["mix", "convert", str(tmp_path / "none"), "--numbers", str(tmp_path / "n.json"), "--top-k", "4"]
    with pytest.raises(ConfigError, match="top-k is 4, from 1 to 3, the experts of the layer that has fewest"):
        cli.run([*words, "--out", str(tmp_path / "no")])
