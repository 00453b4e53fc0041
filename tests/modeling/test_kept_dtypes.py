"""A model that is cast in memory is the one that transformers opens in that dtype, float32 that it keeps included."""

import pytest
import torch

from dragoman.modeling import cast_stored, open_model
from tests.architectures import build


@pytest.mark.parametrize(
    ("family", "dtype", "kept"),
    [
        ("glm4_moe", "bfloat16", "e_score_correction_bias"),
        ("ernie4_5_moe", "bfloat16", "gate.weight"),
        ("lfm2_moe", "bfloat16", "expert_bias"),  # the class makes it so and does not list it
        ("gpt_oss", "float16", "input_layernorm.weight"),
        ("gpt_oss", "bfloat16", ""),
    ],
)
def test_what_is_cast_is_what_transformers_casts(family, dtype, kept, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    expected = open_model(str(tmp_path), dtype=dtype, device="cpu").state_dict()
    cast_stored(model, getattr(torch, dtype))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(t, expected[n]) for n, t in found.items())
    wide = {n for n, t in found.items() if t.dtype == torch.float32}
    assert any(n.endswith(kept) for n in wide) if kept else not wide
