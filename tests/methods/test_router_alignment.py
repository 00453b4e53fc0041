"""Router alignment in training: the two sides are read alike."""

import pytest
import torch

from dragoman.errors import ModelError
from dragoman.methods import METHODS, training
from tests.methods.test_alignment import PAD, labels, pairs, plan_of, rows
from tests.models import tiny


def test_both_sides_are_read_in_the_precision_of_training(tmp_path):
    model, method = tiny("olmoe"), METHODS["router_alignment"]
    seen = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _m, _a, out: seen.append(out))
    loss = method.extra_loss(model, method.Config(), None, pairs(labels=()), tmp_path)
    method.apply(model, method.Config())
    shape = {"steps": 1, "batch": 3, "micro_batch": 3, "warmup": 1, "decay": 0}
    how = training.Config(**shape, learning_rate=1e-2, precision="bf16")
    training.train(
        model,
        rows(),
        how,
        layers=loss.layers,
        extra_loss=loss,
        labels_NS=labels(),
        pad_id=PAD,
        folder=tmp_path / "run",
    )
    assert [out.shape[1] for out in seen] == [7, 6], "the longest of the target, then of English"
    assert [out.dtype for out in seen] == [torch.bfloat16] * 2


@pytest.mark.parametrize("name", ["sft", "ra_moe", "router_alignment"])
def test_routers_that_are_one_module_with_their_experts_do_not_train_alone(name):
    model, method = tiny("doge", is_moe=True, num_experts=16), METHODS[name]
    with pytest.raises(ModelError, match="are one module with their experts, so they do not train alone; train full"):
        method.apply(model, method.Config(train="routers"), plan_of(model) if name == "ra_moe" else None)
