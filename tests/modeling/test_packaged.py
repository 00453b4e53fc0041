"""Packaged models: a GGUF in pieces becomes a plain folder, whole or not at all."""

import json
import os

import pytest
import torch

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import PACKAGED, convert, fetched_record, open_both, open_model
from dragoman.modeling.opening import _existing
from tests.ggufs import TOKENS, toy_llama, toy_package

WHEELS = ("toy_model-1.0-py3-none-any.whl", "toy_model_more-2.0-py3-none-any.whl")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Wheels of the toy model, which PACKAGED knows while the test runs."""
    folder = tmp_path / "pip"
    monkeypatch.setitem(PACKAGED, "toy", toy_package(folder))
    return [folder / name for name in WHEELS]


def test_the_folder_is_what_the_gguf_says(toy, tmp_path):
    out = tmp_path / "toy"
    record = convert("toy", toy, out)
    model, codec = open_both(str(out), device="cpu")
    ids = torch.randint(3, len(TOKENS), (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, toy_llama()(ids).logits)
    assert codec.encode(["No", "cab"]) == [[TOKENS.index(t) for t in ("N", "o")], [TOKENS.index("c"), len(TOKENS) - 1]]
    assert (codec.start_id, codec.end_id) == (1, 2)
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and "_name_or_path" not in config
    assert (out / "LICENSE").read_text() == "Be kind."
    assert record["gguf_sha256"] == PACKAGED["toy"].sha256
    assert record["parameters"] == sum(p.numel() for p in toy_llama().parameters())
    assert set(record["files"]) == set(os.listdir(out)) - {"fetched.json"}
    assert not list(out.glob("*.gguf"))


def test_a_record_holds_as_long_as_the_files_do(toy, tmp_path):
    out = tmp_path / "toy"
    assert fetched_record("toy", out) is None
    record = convert("toy", toy, out)
    assert fetched_record("toy", out) == json.loads(json.dumps(record))
    assert fetched_record("smollm2", out) is None, "another model's folder"
    with (out / "config.json").open("a") as f:
        f.write(" ")
    assert fetched_record("toy", out) is None
    convert("toy", toy, out)
    (out / "model.safetensors").unlink()
    assert fetched_record("toy", out) is None


def test_another_gguf_is_refused_and_nothing_is_left(toy, tmp_path):
    with pytest.raises(DataError, match=r"toy_model-1.0-py3-none-any.whl has the checksum .* delete these files"):
        convert("toy", toy[::-1], tmp_path / "toy")
    toy[0].write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"cannot read the package .*toy_model-1.0.* delete it and run again"):
        convert("toy", toy, tmp_path / "toy")
    assert os.listdir(tmp_path) == ["pip"]


def test_without_the_reader_of_ggufs(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dragoman\[models\]'"):
        convert("toy", toy, tmp_path / "toy")
    assert os.listdir(tmp_path) == ["pip"]


def test_names_that_are_not_fetched_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="smollm2 is not on this machine yet; run `dragoman models fetch smollm2`"):
        open_model("smollm2")
    with pytest.raises(ModelError, match="no built-in model 'gemma3-270'; did you mean gemma3-270m"):
        open_model("gemma3-270")
    assert _existing("google/gemma-3-270m") == "google/gemma-3-270m", "an id on the Hub, however near"


def test_a_folder_of_the_same_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    toy_llama().save_pretrained("smollm2")
    assert open_model("smollm2").config.num_hidden_layers == 2
