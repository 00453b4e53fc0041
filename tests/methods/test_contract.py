"""What every method promises, on every family: it starts at the base, trains what it owns and nothing else, merges."""

import copy
import types

import pytest
import torch

from dragoman.methods import METHODS, base
from dragoman.modeling import moe_layers
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.methods import contract
from tests.methods.contract import FURTHER, batch, toy_plan
from tests.models import FAMILIES, tiny

CASES = [(m, f) for m in METHODS for f in [*FAMILIES, *FURTHER]]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_contract(name, family):
    assert contract.contract(name, family).startswith("holds")


@pytest.mark.parametrize("label", contract.FROM_DENSE)
def test_contract_from_a_dense_model(label):
    assert contract.from_dense(label).startswith("holds")


def test_the_page_has_what_the_contract_found():
    text = contract.PAGE.read_text(encoding="utf-8")
    shown = text.partition(contract.BEGIN)[2].partition(contract.END)[0]
    assert shown == contract.generated(), "docs/methods.md is out of date: run `make docs`"


def test_the_contract_sees_rows_that_only_a_gradient_mask_freezes(monkeypatch):
    """AdamW's decay moves them: the fault that planned rows as parameters of their own avoid."""
    planned = METHODS["expert_tuning"]

    def masked(model, config, plan):
        model.requires_grad_(False)
        for layer in moe_layers(model):
            for weight in layer.experts.parameters() if layer.layer_id in plan.layers else ():
                weight.requires_grad_(True)
                rows = torch.zeros_like(weight)
                rows[list(plan.experts()[layer.layer_id])] = 1
                weight.register_hook(lambda grad, rows=rows: grad * rows)

    fake = types.SimpleNamespace(**vars(planned) | {"apply": masked, "merge": lambda model: None})
    fake.changes = lambda model, config, plan: planned.changes(model, planned.Config(routers=False), plan)
    monkeypatch.setitem(METHODS, "masked", fake)
    with pytest.raises(AssertionError, match="every other row"):
        contract.contract("masked", "olmoe")


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_planned_rows_train_alike_under_every_experts_implementation(family, implementation):
    """Oracle: the same steps by hand on the plain model's stacks, planned rows alone."""
    model, ids = tiny(family), batch()
    model.set_experts_implementation(implementation)
    plan = toy_plan(model)
    METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(routers=False), plan)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plain = tiny(family)
    plain.set_experts_implementation(implementation)
    for _ in range(2):
        for m in (model, plain):
            m.zero_grad()
            m(ids, labels=ids).loss.backward()
        optimizer.step()
        for layer in moe_layers(plain):
            for weight in layer.experts.parameters():
                rows = list(plan.experts().get(layer.layer_id, ()))
                weight.data[rows] -= 0.1 * weight.grad[rows]
    METHODS["expert_tuning"].merge(model)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_merged_model_survives_saving(family, tmp_path):
    method, model, ids = METHODS["expert_tuning"], tiny(family), batch()
    method.apply(model, method.Config(), toy_plan(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    trained = model(ids).logits
    method.merge(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path, dtype="float32").eval()(ids).logits, trained)


def test_merging_changes_planned_rows_alone():
    model = tiny("olmoe")
    plain = copy.deepcopy(model)
    method, plan, ids = METHODS["expert_tuning"], toy_plan(model), batch()
    method.apply(model, method.Config(routers=False), plan)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    method.merge(model)
    before = plain.state_dict()
    moved = {
        (name, row)
        for name, tensor in model.state_dict().items()
        for row in range(len(tensor))
        if not torch.equal(tensor[row], before[name][row])
    }
    expected = {
        (f"model.layers.{layer}.mlp.experts.{weight}", row)
        for layer, rows in plan.experts().items()
        for row in rows
        for weight in ("gate_up_proj", "down_proj")
    }
    assert moved == expected


def test_gradient_of_planned_rows_is_that_of_the_plain_model():
    model, ids = tiny("olmoe"), batch()
    plain = copy.deepcopy(model)
    METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), toy_plan(model))
    for m in (model, plain):
        m(ids, labels=ids).loss.backward()
    for layer, rows in toy_plan(plain).experts().items():
        for weight in ("gate_up_proj", "down_proj"):
            mine = model.get_parameter(f"model.layers.{layer}.mlp.experts.parametrizations.{weight}.0.tuned_PFD").grad
            theirs = plain.get_parameter(f"model.layers.{layer}.mlp.experts.{weight}").grad
            torch.testing.assert_close(mine, theirs[list(rows)])


def test_trained_share_counts_the_planned_rows():
    model = tiny("olmoe")
    total = sum(p.numel() for p in model.parameters())
    METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), toy_plan(model))
    # 2 layers x 2 experts x (gate, up, down: 3 x 8 x 16) and 2 routers of 8 x 16
    assert base.trained(model, total).parameters == 2 * 2 * 3 * 8 * 16 + 2 * 8 * 16


def test_plan_of_another_model_is_refused():
    from dragoman.errors import ConfigError, ModelError

    model = tiny("olmoe")
    plan = ExpertPlan(
        planner="test",
        layers={7: (PlannedExpert(1, "language"),), 2: (PlannedExpert(30, "language"),)},
        num_experts={7: 32, 2: 32},
        trace_sha256="0" * 64,
    )
    told = "which has no MoE layer 0, no MoE layer 1, 32 experts in layer 2, 32 experts in layer 7; this one has 8"
    with pytest.raises(ModelError, match=told):
        METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), plan)
    here = {2: (PlannedExpert(1, "language"),)}
    wider, deeper = (ExpertPlan("test", here, dict.fromkeys(range(n), e)) for n, e in ((3, 16), (4, 8)))
    for name in ("expert_tuning", "lora", "ra_moe"):
        for other, what in ((wider, "16 experts in layer 0"), (deeper, "8 experts in layer 3; this one has no MoE")):
            with pytest.raises(ModelError, match=f"the plan is of another model, which has {what}"):
                METHODS[name].apply(tiny("olmoe"), METHODS[name].Config(), other)
    with pytest.raises(ConfigError, match="dragoman plan"):
        METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), None)
    with pytest.raises(ConfigError, match="no effect"):
        METHODS["full"].apply(model, METHODS["full"].Config(), plan)
