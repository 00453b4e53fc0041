"""A Mix-MoE model has no plain form, which is told before any weights are read."""

import pytest

import dragoman
from dragoman import modeling
from dragoman.commands import export
from dragoman.errors import ModelError
from tests.commands.test_export import CODEC
from tests.modeling.mix_models import mixed


def test_a_mix_moe_model_is_refused_before_it_is_read(tmp_path, monkeypatch):
    mixed().save_pretrained(tmp_path / "mix")
    CODEC.tokenizer.save_pretrained(tmp_path / "mix")
    for module, name in ((export, "reloaded"), (modeling, "open_both"), (modeling, "open_model")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("no weights were to be read"))
    with pytest.raises(ModelError, match=r"no plain form; its folder opens after dragoman\.register\(\)"):
        dragoman.export(str(tmp_path / "mix"), base=str(tmp_path / "mix"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
