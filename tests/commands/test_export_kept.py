"""Tensors that transformers keeps in float32, whatever a model is opened in: they are stored and held as they are."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import dragoman
from dragoman.methods import METHODS
from dragoman.methods.delta import open_both, trained_delta
from dragoman.modeling import open_model, save_model, state_checksum
from tests.commands.test_export import CODEC, here  # noqa: F401 (fixture)
from tests.models import tiny

BIAS = "e_score_correction_bias"


@pytest.fixture
def base(tmp_path):
    """Its biases, by which experts are chosen, lie where bfloat16 has steps of a thirty-second."""
    model = tiny("glm4_moe")
    for name, tensor in model.state_dict().items():
        if name.endswith(BIAS):
            tensor.copy_(6.8 + 0.25 * torch.rand(8))
    save_model(model, CODEC, tmp_path / "base")
    return str(tmp_path / "base")


def changed_in_a_row(base, folder, dtype):
    """A delta of that base opened in `dtype`."""
    model = open_model(base, dtype=dtype, device="cpu")
    sha256, chosen = state_checksum(model), METHODS["full"].Config()
    METHODS["full"].apply(model, chosen, None)
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    trained_delta(model, "full", chosen, None, base=base, base_sha256=sha256).save(folder)
    return str(folder)


def stored(folder):
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("trained", "dtype"), [("bfloat16", None), ("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", None)]
)
def test_they_are_exported_with_their_bits(base, trained, dtype, tmp_path, here):  # noqa: F811
    delta = changed_in_a_row(base, tmp_path / "delta", trained)
    proof = dragoman.export(delta, out=tmp_path / "out", dtype=dtype)["proof"]
    before, after = stored(base), stored(tmp_path / "out")
    biases = {n for n in before if n.endswith(BIAS)}
    assert len(biases) == 2
    assert all(after[n].dtype == torch.float32 and torch.equal(after[n], before[n]) for n in biases)
    assert {after[n].dtype for n in after.keys() - biases} == {getattr(torch, dtype or trained)}
    assert proof["changed"] == {"lm_head.weight": [3]}
    assert proof["stored"]["distance"] <= (1e-6 if dtype else 0)


def test_a_delta_in_another_dtype_has_them_as_its_base_has(base, tmp_path):
    delta = changed_in_a_row(base, tmp_path / "delta", "float32")
    found = open_both(delta, dtype="bfloat16", device="cpu")[0].state_dict()
    for name, tensor in open_model(base, dtype="bfloat16", device="cpu").state_dict().items():
        assert found[name].dtype == tensor.dtype == (torch.float32 if name.endswith(BIAS) else torch.bfloat16)
        assert name == "lm_head.weight" or torch.equal(found[name], tensor)
