"""Experts of which single rows train: against autograd through whole stacks, and what is kept for a backward pass."""

import copy
from unittest import mock

import pytest
import torch

from dragoman.methods import METHODS, expert_tuning
from dragoman.modeling import experts as module
from dragoman.modeling import moe_layers, runs_planned, sorted_experts
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import tiny

# by layout: gate and up stacked, shared experts and groups; transposed, interleaved and with biases; no gate
LAYOUTS = {
    "olmoe": {},
    "deepseek_v3": {},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 8, "layer_types": ["full_attention"] * 3},
    "nemotron_h": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "moe_shared_expert_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "head_dim": 8,
        "layers_block_type": ["attention", "moe", "moe"],
    },
}


def ids():
    return torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(1))


def tuned(family, planned=(5, 1), **changes):
    """A model with planned experts in its last two MoE layers, and the plain one."""
    model = tiny(family, **(LAYOUTS.get(family, {}) | changes))
    plain = copy.deepcopy(model)
    last = moe_layers(model)[-2:]
    plan = ExpertPlan(
        planner="test",
        layers={x.layer_id: tuple(PlannedExpert(e, "language") for e in planned) for x in last},
        num_experts={x.layer_id: x.num_experts for x in moe_layers(model)},
        train_routers=True,
        trace_sha256="0" * 64,
    )
    expert_tuning.apply(model, expert_tuning.Config(), plan)
    return model, plain, plan


def gradients(model, plan):
    """(layer, weight) -> gradient of the planned rows, and the gradients of the routers."""
    found = {}
    for layer in moe_layers(model):
        rows = plan.experts().get(layer.layer_id)
        if rows is None:
            continue
        stacks = getattr(layer.experts, "parametrizations", None)
        for name in stacks or [n for n, p in layer.experts.named_parameters() if p.ndim > 1]:
            own = stacks[name][0].tuned_PFD.grad if stacks else getattr(layer.experts, name).grad[list(rows)]
            found[layer.layer_id, name] = own
        found |= {(layer.layer_id, n): p.grad for n, p in layer.router.named_parameters() if p.grad is not None}
    return found


@pytest.mark.parametrize("sort", [False, True], ids=["grouped_mm", "sorted"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_logits_to_the_bit_and_gradients_as_autograd_through_the_stacks(family, sort):
    model, plain, plan = tuned(family)
    assert all(runs_planned(x.experts, tuple(x.experts.parametrizations)) for x in moe_layers(model)[-2:])
    plain_logits = plain(ids()).logits
    plain(ids(), labels=ids()).loss.backward()
    if sort:
        with sorted_experts(model):
            model(ids(), labels=ids()).loss.backward()
    else:
        assert torch.equal(model(ids()).logits, plain_logits)
        model(ids(), labels=ids()).loss.backward()
    mine, theirs = gradients(model, plan), gradients(plain, plan)
    assert mine.keys() == theirs.keys()
    assert len(mine) >= 2 * 3
    for key, gradient in theirs.items():
        torch.testing.assert_close(mine[key], gradient, msg=lambda m, key=key: f"{key}: {m}")
        assert gradient.any(), key


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
def test_in_bfloat16_on_a_cpu_it_is_what_untuned_experts_compute_there(family, monkeypatch):
    """With rows rounded up; but for biases, with which untuned experts stay in float32, and so choose others above."""
    monkeypatch.setattr(module, "MULTIPLE", 2)
    model, plain, plan = tuned(family)
    with sorted_experts(model), sorted_experts(plain), torch.autocast("cpu", torch.bfloat16):
        found, expected = model(ids(), labels=ids()), plain(ids(), labels=ids())
        found.loss.backward()
        expected.loss.backward()
    biased = family == "gpt_oss"
    assert torch.equal(found.logits, expected.logits) or biased
    mine, theirs = gradients(model, plan), gradients(plain, plan)
    assert mine.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (mine[key] - gradient).norm() < (0.3 if biased else 0.02) * gradient.norm(), key


def test_planned_expert_without_a_token_has_the_gradient_zero():
    model, plain, plan = tuned("olmoe", planned=(0, 1, 2, 3, 4, 5, 6, 7))
    few = ids()[:1, :1].repeat(1, 2)
    for m in (model, plain):
        m(few, labels=few).loss.backward()
    mine, theirs = gradients(model, plan), gradients(plain, plan)
    assert any(not row.any() for row in theirs[2, "down_proj"])
    for key, gradient in theirs.items():
        torch.testing.assert_close(mine[key], gradient)


def test_another_implementation_and_another_layout_take_the_way_through_autograd():
    model, _, _ = tuned("olmoe")
    experts = moe_layers(model)[-1].experts
    names = tuple(experts.parametrizations)
    assert not runs_planned(experts, names[:1])
    model.set_experts_implementation("eager")
    assert not runs_planned(experts, names)
    with mock.patch.object(expert_tuning, "planned_forward", side_effect=AssertionError):
        model(ids())


def test_copy_of_a_tuned_model_has_its_own_rows():
    model, _, _ = tuned("olmoe")
    other = copy.deepcopy(model)
    with torch.no_grad():
        moe_layers(other)[-1].experts.parametrizations["down_proj"][0].tuned_PFD.add_(1.0)
    assert not torch.equal(other(ids()).logits, model(ids()).logits)


def kept(model):
    """Bytes kept for a backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(ids(), labels=ids()).loss
    assert loss.requires_grad
    return sum(found.values())


def test_nothing_is_kept_below_the_lowest_trained_layer():
    shallow, deep = (tuned("olmoe", num_hidden_layers=n)[0] for n in (2, 6))
    assert kept(deep) < 1.1 * kept(shallow)  # how many slots the planned experts have differs
    entering = []
    deep.model.layers[4].register_forward_pre_hook(lambda _, args: entering.append(args[0].requires_grad))
    deep(ids())
    assert entering == [False]
    METHODS["full"].apply(full := tiny("olmoe", num_hidden_layers=6), METHODS["full"].Config(), None)
    assert kept(full) > 2 * kept(deep)


def test_frozen_stacks_have_no_gradient():
    model, _, _ = tuned("olmoe")
    model(ids(), labels=ids()).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
