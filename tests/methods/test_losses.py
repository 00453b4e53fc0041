"""Losses by hand, and the cross-entropy in chunks against all logits."""

import math

import numpy as np
import pytest
import torch

from dragoman.methods import losses, training
from dragoman.methods.losses import balance_loss, cross_entropy, z_loss
from dragoman.methods.training import Config, train
from dragoman.modeling import plain_head
from tests.models import tiny

ROWS = np.random.default_rng(0).integers(3, 64, (32, 16)).astype(np.int32)


def test_balance_loss_by_hand():
    # two tokens, two experts, top-1: both chose expert 0; probabilities 0.75 / 0.25 and 0.5 / 0.5
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.1, 0.9]]))
    chosen = torch.tensor([[0], [0], [1]])
    real = torch.tensor([True, True, False])
    assert balance_loss(logits, chosen, real).item() == pytest.approx(2 * (1.0 * 0.625 + 0.0))
    uniform = torch.zeros(4, 4)
    assert balance_loss(uniform, torch.arange(4)[:, None], torch.ones(4, dtype=bool)).item() == pytest.approx(1.0)
    of_filler = torch.tensor([[0.0], [0.0], [5.0]])  # counts for nothing
    assert z_loss(torch.zeros(3, 4) + of_filler, real).item() == pytest.approx(math.log(4) ** 2)


in_chunks = pytest.mark.skipif(not losses.IN_CHUNKS, reason="torch before 2.13 has no loss in chunks")


@in_chunks
@pytest.mark.parametrize("family", ["olmoe", "phi"])  # phi's head has a bias
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("answers", [False, True])
def test_in_chunks_loss_and_gradients_are_those_of_all_logits(family, reduction, answers, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", 7)
    ids = torch.from_numpy(ROWS[:2].astype(np.int64))
    labels = ids.clone()
    labels[0, :9] = -100
    labelled = torch.nonzero(labels[:, 1:].reshape(-1) >= 0).flatten() if answers else None
    labelled = None if labelled is None else labelled // 15 * 16 + labelled % 15
    found = []
    for chunked in (True, False):
        model = tiny(family)
        head = plain_head(model) if chunked else None
        loss = cross_entropy(model, {"input_ids": ids}, labels, reduction, labelled, head)
        (2 * loss).backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    for name, grad in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], grad, rtol=1e-4, atol=1e-6 * grad.abs().max().item() + 1e-7)


@in_chunks
@pytest.mark.parametrize("frozen", [False, True])
def test_training_computes_its_loss_in_chunks(tmp_path, monkeypatch, frozen):
    config = Config(steps=8, batch=4, micro_batch=2, warmup=2, decay=4, precision="fp32")
    calls, chunked = [], losses._in_chunks
    monkeypatch.setattr(losses, "_in_chunks", lambda *given: calls.append(1) or chunked(*given))
    logs = []
    for there in (True, False):
        monkeypatch.setattr(training, "IN_CHUNKS", there)
        model = tiny("olmoe")
        model.get_output_embeddings().weight.requires_grad_(not frozen)
        logs.append(train(model, ROWS, config, folder=tmp_path / str(there)).losses)
    assert len(calls) == 8 * 2, "every pass of the first run, none of the second"
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)
