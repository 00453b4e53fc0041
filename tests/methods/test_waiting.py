"""An alignment loss reads no value from its device in a pass, so that a GPU does not wait for it."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

from dragoman.methods import METHODS, training
from tests.methods.test_alignment import PAD, labels, pairs, plan_of, rows
from tests.models import tiny

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
"""What float(x), `if x:` and x[mask] come to; a GPU finishes all before it for each."""


class _Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func in WAITS
        return func(*args, **(kwargs or {}))


def waits_of_passes(model, extra_loss, layers, folder):
    """Number of waits within forward, losses and backward of two updates of two passes each."""
    step, waits = Trainer.training_step, _Waits()

    def watched(*args, **kwargs):
        with waits:
            return step(*args, **kwargs)

    shape = {"steps": 2, "batch": 2, "micro_batch": 1, "warmup": 1, "decay": 0, "precision": "fp32"}
    config = training.Config(**shape, balance=0.01, z_loss=0.001)
    with mock.patch.object(Trainer, "training_step", watched):
        log = training.train(
            model, rows(), config, layers=layers, extra_loss=extra_loss, labels_NS=labels(), pad_id=PAD, folder=folder
        )
    assert len(log.losses) == 2 and len(log.extra_losses) == (2 if extra_loss else 0)
    return waits.number


@pytest.mark.parametrize("name", ["ra_moe", "sara"])
def test_alignment_waits_no_more_than_training_without(name, tmp_path):
    model, method = tiny("olmoe"), METHODS[name]
    plan = plan_of(model) if name == "ra_moe" else None
    loss = method.extra_loss(model, method.Config(), plan, pairs(), tmp_path)

    def reads(inputs, row_B, routed):
        return loss(inputs, row_B, routed) * float(routed[0].logits_TE.detach().isfinite().all())

    without = waits_of_passes(model, None, loss.layers, tmp_path / "without")
    assert without < 4 * 3, "two for the mask of transformers, none for the losses"
    assert waits_of_passes(model, loss, loss.layers, tmp_path / "with") == without
    assert waits_of_passes(model, reads, loss.layers, tmp_path / "reads") == without + 4, "the check itself"
