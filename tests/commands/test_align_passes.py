"""How `align` trains: passes of fewer items, precision."""

import numpy as np
import pytest

from dragoman.errors import ConfigError
from tests.commands.test_align import categorized, place, plan, run, train  # noqa: F401 (fixtures)


def test_passes_of_fewer_items_train_as_one_does(place, plan, monkeypatch):  # noqa: F811
    from transformers import Trainer

    rows, step = [], Trainer.training_step

    def watched(self, model, inputs, *rest):
        rows.append(len(inputs["input_ids"]))
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", watched)
    whole = train(place, plan, "whole", "ra_moe", "--precision", "fp32", "--learning-rate", 0.01)
    assert set(rows) == {8}
    rows.clear()
    parts = train(place, plan, "parts", "ra_moe", "--precision", "fp32", "--learning-rate", 0.01, "--micro-batch", 2)
    assert set(rows) == {2} and parts["log"]["steps"] == whole["log"]["steps"] == len(rows) / 4
    np.testing.assert_allclose(parts["log"]["losses"], whole["log"]["losses"], rtol=1e-4)
    np.testing.assert_allclose(parts["log"]["extra_losses"], whole["log"]["extra_losses"], rtol=1e-3)


def test_precision_is_chosen(place, plan):  # noqa: F811
    kept = {name: train(place, plan, name, "sft", "--precision", name) for name in ("fp32", "bf16")}
    assert [record["training"]["precision"] for record in kept.values()] == ["fp32", "bf16"]
    assert kept["fp32"]["log"]["losses"] != kept["bf16"]["log"]["losses"]
    np.testing.assert_allclose(kept["fp32"]["log"]["losses"], kept["bf16"]["log"]["losses"], rtol=0.02)


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path):
    given = ("align", "no/such/model", "--target", "ca", "--method", "sft", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="batch 4 is no multiple of micro_batch 3"):
        run(*given, "--batch", 4, "--micro-batch", 3)
    with pytest.raises(ConfigError, match="micro_batch is -1, at least 0"):
        run(*given, "--micro-batch", -1)
    assert not (tmp_path / "out").exists()
