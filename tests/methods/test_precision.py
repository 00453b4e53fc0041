"""In which precision training computes, and compiled code."""

import shutil

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError
from dragoman.methods import settings, training
from dragoman.methods.losses import cross_entropy
from dragoman.methods.training import train
from dragoman.modeling import experts, moe_layers, sorted_experts
from tests.methods.test_training import ROWS, config
from tests.models import tiny


def test_compiling_for_a_gpu_is_refused(tmp_path, monkeypatch):
    model = tiny("olmoe")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with pytest.raises(ConfigError, match="compiled training is for a CPU"):
        train(model, ROWS, config(compile=True), folder=tmp_path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_has_the_same_losses(tmp_path):
    losses = {"balance": 0.1, "z_loss": 0.1}
    models = [tiny("olmoe") for _ in range(2)]
    logs = [
        train(m, ROWS, config(compile=c, **losses), layers=moe_layers(m), folder=tmp_path / str(c))
        for m, c in zip(models, (False, True), strict=True)
    ]
    np.testing.assert_allclose(logs[1].losses, logs[0].losses, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow  # half a minute of compiling
def test_compiled_in_bfloat16_gradients_are_those_of_float32_but_for_rounding(monkeypatch, recwarn):
    """With plain attention and rows rounded up; and what that does to a model is undone."""
    monkeypatch.setattr(experts, "MULTIPLE", 2)
    getattr(torch._dynamo.utils, "warn_once_cache", set()).clear()
    model, ids = tiny("olmoe"), torch.from_numpy(ROWS.astype(np.int64))

    def gradients(compiled):
        model.zero_grad()
        chosen = config(compile=compiled, precision="bf16" if compiled else "fp32")
        loss_of = torch.compile(cross_entropy) if compiled else cross_entropy
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=compiled)
        with sorted_experts(model), training._compiling(model, chosen, ids.shape[1]), autocast:
            loss_of(model, {"input_ids": ids}, ids).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    expected, found = gradients(False), gradients(True)
    assert not [w for w in recwarn if "lru_cache" in str(w.message)]
    for name, grad in expected.items():
        assert (found[name] - grad).norm() < 0.15 * grad.norm(), name  # a few tokens go to other experts


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "processor", "expected"),
    [
        (True, True, "Intel(R) Xeon(R) Processor", True),
        (False, True, "Intel(R) Xeon(R) Processor", False),
        (False, True, "AMD EPYC 9R14", True),
        (False, False, "AMD EPYC 7763", False),
    ],
)
def test_auto_takes_bfloat16_on_the_cpus_that_are_faster_in_it(amx, avx512_bf16, processor, expected, monkeypatch):
    for name, there in (("amx_tile", amx), ("avx512_bf16", avx512_bf16)):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda there=there: there, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(settings, "machine", lambda: {"processor": processor})
    assert config(precision="auto").bf16 == expected
    assert config(precision="bf16").bf16 and not config(precision="fp32").bf16


@pytest.mark.parametrize(
    ("changes", "width", "expected"),
    [({}, 16, "eager"), ({}, 1025, "sdpa"), ({"precision": "fp32"}, 16, "sdpa"), ({"compile": False}, 16, "sdpa")],
)
def test_plain_attention_is_for_compiled_bfloat16_alone_and_is_put_back(changes, width, expected):
    model, chosen = tiny("olmoe"), config(**({"compile": True, "precision": "bf16"} | changes))
    with pytest.raises(KeyboardInterrupt), training._compiling(model, chosen, width):
        assert model.config._attn_implementation == expected
        raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"
