"""`dragoman inspect` on folders that hold a config and nothing else."""

import json

import pytest

from dragoman.commands.inspect import Config, _ranges, run, show
from dragoman.errors import ModelError
from tests.architectures import build
from tests.models import dense, tiny


def found(tmp_path, model):
    model.config.save_pretrained(tmp_path)
    return run(Config(str(tmp_path)))


def test_layers_parameters_and_methods(tmp_path, capsys):
    seen = found(tmp_path, tiny("deepseek_v3"))
    assert [x["layer"] for x in seen["layers"]] == [1, 2]
    assert seen["total"] == sum(p.numel() for p in tiny("deepseek_v3").parameters())
    assert seen["active"] == seen["total"] - seen["parameters"]["routed experts"] * 6 / 8
    assert seen["methods"]["full"] is None and seen["methods"]["expert_tuning"] is None
    assert json.loads(json.dumps(seen)) == seen
    show(seen)
    printed = capsys.readouterr().out
    assert "layers 1-2: 8 experts, 2 chosen per token, sigmoid, bias-corrected, grouped (" in printed
    assert "in model.layers.*.mlp)" in printed


def test_skips_and_several_routers(tmp_path, capsys):
    show(found(tmp_path / "zaya", build("zaya")))
    assert "layers 0-3: 9 experts (1 of them skip), 1 chosen per token" in capsys.readouterr().out
    seen = found(tmp_path / "jetmoe", build("jetmoe"))
    assert "several routers" in seen["methods"]["expert_tuning"]
    show(seen)
    assert capsys.readouterr().out.count("layers 0-3: 8 experts, 2 chosen") == 2


def test_a_dense_model_is_described_too(tmp_path, capsys):
    seen = found(tmp_path, dense())
    assert seen["layers"] == [] and seen["active"] == seen["total"]
    assert seen["methods"]["expert_tuning"] == "it has no Mixture-of-Experts layers"
    show(seen)
    assert "no Mixture-of-Experts layers" in capsys.readouterr().out


def test_no_folder_is_one_sentence():
    with pytest.raises(ModelError, match=r"no config\.json in it"):
        run(Config("./nowhere"))


def test_ranges_by_hand():
    assert _ranges([1, 2, 3, 5, 9, 8]) == "1-3, 5, 8-9"
