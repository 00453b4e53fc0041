"""What every method promises, on every family: it starts at the base, trains what it owns and nothing else, merges."""

import copy

import pytest
import torch

from dragoman.methods import METHODS, base
from dragoman.modeling import moe_layers
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import FAMILIES, tiny

CASES = [(m, f) for m in METHODS for f in FAMILIES]


def toy_plan(model) -> ExpertPlan:
    """Two experts in each of the last two MoE layers."""
    last = moe_layers(model)[-2:]
    return ExpertPlan(
        planner="test",
        layers={x.layer_id: (PlannedExpert(1, "language"), PlannedExpert(3, "shared")) for x in last},
        num_experts={x.layer_id: x.num_experts for x in last},
        train_routers=True,
        trace_sha256="0" * 64,
    )


def batch() -> torch.Tensor:
    """Enough tokens that every expert is reached."""
    return torch.randint(3, 64, (16, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "family"), CASES)
def test_contract(name, family):
    method, model, ids = METHODS[name], tiny(family), batch()
    plain = copy.deepcopy(model)
    plan = toy_plan(model) if method.NEEDS_PLAN else None
    method.apply(model, method.Config(), plan)
    if method.STARTS_AT_BASE:
        assert torch.equal(model(ids).logits, plain(ids).logits), "the start must equal the base"

    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rest = {n: p.detach().clone() for n, p in model.named_parameters() if n not in own}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    assert own

    optimizer = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0.1)
    reached = set()
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        reached |= {n for n, p in own.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    assert reached == set(own), "a parameter without a gradient adapts nothing"
    planned_rows = _planned_rows(model, plan)
    for n, before in rest.items():
        now = model.get_parameter(n)
        kept = [e for e in range(len(now)) if e not in planned_rows.get(n, ())] if now.ndim else [...]
        assert torch.equal(now[kept], before[kept]), f"{n} is frozen, it must keep its bits"
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())

    trained = model(ids).logits
    assert not torch.equal(trained, plain(ids).logits), "otherwise every check here is empty"
    method.merge(model)
    assert method.MERGE in ("bits", "rounding")
    torch.testing.assert_close(model(ids).logits, trained, **({"rtol": 0, "atol": 0} if method.MERGE == "bits" else {}))
    assert {n: p.shape for n, p in model.state_dict().items()} == {n: p.shape for n, p in plain.state_dict().items()}
    assert type(model) is type(plain)
    assert all(type(a) is type(b) for a, b in zip(model.modules(), plain.modules(), strict=True))


def _planned_rows(model, plan) -> dict[str, tuple[int, ...]]:
    """Name of a frozen stack -> the rows of it that a method may write its own parameters into."""
    if plan is None:
        return {}
    blocks = {x.layer_id: x.name for x in moe_layers(model)}
    return {
        n: rows
        for layer, rows in plan.experts().items()
        for n, _ in model.named_parameters()
        if n.startswith(blocks[layer]) and ".parametrizations." in n and n.endswith(".original")
    }


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
    with pytest.raises(ModelError, match=r"layers \[7\].*layer 2 has 8 experts, it names \[30\]"):
        METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), plan)
    with pytest.raises(ConfigError, match="dragoman plan"):
        METHODS["expert_tuning"].apply(model, METHODS["expert_tuning"].Config(), None)
    with pytest.raises(ConfigError, match="no effect"):
        METHODS["full"].apply(model, METHODS["full"].Config(), plan)
