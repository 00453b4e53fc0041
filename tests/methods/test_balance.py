"""Balance of experts: measured by layer without filler, its penalty for softmax and sigmoid routers."""

import numpy as np
import pytest
import torch

from dragoman.methods.balance import Balance
from dragoman.methods.losses import balance_loss
from dragoman.methods.training import Config, train
from dragoman.modeling import Routed, moe_layers, score_names, slots_per_expert, tap_routers
from dragoman.routing.capture import capture
from tests.models import FAMILIES, tiny

ROWS = np.random.default_rng(0).integers(3, 64, (8, 16)).astype(np.int32)


def routed(*indices):
    chosen = torch.tensor(indices)
    return Routed(torch.zeros(len(chosen), 8), chosen, torch.ones(chosen.shape))


@pytest.mark.parametrize("experts", [8, 6144, 24576])
def test_slots_of_many_experts_are_counted_each_in_its_bin(experts):
    counts = slots_per_expert(torch.arange(experts)[:, None], experts)
    assert (counts == 1).all()
    text = torch.arange(experts) % 2 == 0
    assert torch.equal(slots_per_expert(torch.arange(experts)[:, None], experts, text).bool(), text)


def test_by_hand():
    layers = moe_layers(tiny("olmoe"))[:1]
    balance = Balance(layers)
    balance.add([routed([0, 1], [0, 2], [7, 7])], torch.tensor([True, True, False]))
    balance.add([routed([0, 1])], torch.tensor([True]))
    # counts 3 2 1 0 0 0 0 0: mean 6/8, variance (9 + 4 + 1) / 8 - (6/8)^2
    entry = balance.report(4)
    assert (entry["step"], entry["slots"], entry["layers"], entry["dead"]) == (4, [6], [0], [5])
    assert entry["max_load"] == [4.0]
    assert entry["variation"][0] == pytest.approx((14 / 8 - 36 / 64) ** 0.5 / 0.75, abs=1e-4)
    assert balance.report(5)["slots"] == [], "a report begins anew"


@pytest.mark.parametrize("family", FAMILIES)
def test_training_counts_what_capture_counts(family, tmp_path):
    """Oracle: the rows without their filler, counted by hand; the rate is zero."""
    model = tiny(family)
    rows, labels = ROWS.copy(), ROWS.astype(np.int64)
    rows[:, 11:], labels[:, 11:] = 0, -100
    settings = Config(steps=2, batch=4, micro_batch=2, warmup=0, decay=0, learning_rate=0.0, precision="fp32")
    log = train(model, rows, settings, layers=moe_layers(model), labels_NS=labels, pad_id=0, folder=tmp_path)
    (entry,) = log.balance
    with tap_routers(model, moe_layers(model)) as seen, torch.no_grad():
        model(torch.from_numpy(rows[:, :11].astype(np.int64)))
    counts = [torch.bincount(r.indices_TK.flatten(), minlength=8).double() for r in seen]
    assert entry["layers"] == [x.layer_id for x in moe_layers(model)]
    assert entry["slots"] == [8 * 11 * x.top_k for x in moe_layers(model)]
    assert entry["max_load"] == pytest.approx([(c.max() / c.mean()).item() for c in counts], abs=1e-4)
    assert entry["dead"] == [int((c == 0).sum()) for c in counts]


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_an_evaluation_between_passes_leaves_no_trace(family):
    model = tiny(family)
    ids = torch.from_numpy(ROWS.astype(np.int64))
    with tap_routers(model, moe_layers(model), training=True) as seen:
        model.train()(ids)
        model.eval()
        capture(model, {"en": ROWS.tolist()}, start_id=1)
        assert [r.row for r in seen] == [0, 1, 2]


@pytest.mark.parametrize(("family", "score"), [("olmoe", "softmax"), ("deepseek_v3", "sigmoid")])
def test_the_penalty_knows_the_score_of_the_router(family, score):
    model = tiny(family)
    assert set(score_names(model, moe_layers(model))) == {score}


def test_the_penalty_of_sigmoid_scores_by_hand():
    # scores 0.75 0.25 and 0.5 0.5 are distributions already: as in the softmax case, 2 x (1 x 0.625)
    logits = torch.logit(torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.1, 0.9]]))
    chosen, real = torch.tensor([[0], [0], [1]]), torch.tensor([True, True, False])
    assert balance_loss(logits, chosen, real, "sigmoid").item() == pytest.approx(1.25)
    assert balance_loss(logits, chosen, real).item() != pytest.approx(1.25)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_the_penalty_is_there_on_request_alone(family, tmp_path):
    def routers(**changes):
        model = tiny(family)
        few = {"steps": 2, "batch": 4, "micro_batch": 4, "warmup": 0, "decay": 0, "precision": "fp32"}
        log = train(model, ROWS, Config(**few, **changes), layers=moe_layers(model), folder=tmp_path / str(changes))
        return log.losses[0], moe_layers(model)[-1].router.state_dict()

    (plain, before), (penalised, after) = routers(), routers(balance=1.0)
    assert plain == penalised, "the log holds the cross-entropy"
    assert any(not torch.equal(before[n], after[n]) for n in before)
