"""What a plan says it trains is what trains, and what a trace knows of its model's size."""

import pytest

from dragoman.methods import METHODS
from dragoman.methods.base import trained
from dragoman.modeling import layer_sizes, moe_layers, parameter_counts
from dragoman.routing.capture import capture
from dragoman.routing.planners import ActivationConfig, activation_plan
from tests.architectures import build
from tests.models import FAMILIES, tiny


@pytest.mark.parametrize("routers", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_share_of_a_plan_is_what_trains(family, routers):
    model = tiny(family)
    trace = capture(model, {"ca": [[5, 9, 3, 7, 11], [8, 4]]}, start_id=1)
    plan = activation_plan(trace, ActivationConfig(target="ca", experts=3, train_routers=routers))
    total = sum(p.numel() for p in model.parameters())
    method = METHODS["expert_tuning"]
    method.apply(model, method.Config(), plan)
    found = trained(model, total)
    assert (plan.trained_parameters, plan.sizes.total, plan.trained_share) == (found.parameters, total, found.share)


@pytest.mark.parametrize("architecture", ["zaya", "jetmoe", "gpt_oss", *FAMILIES])
def test_experts_of_all_layers_are_the_routed_experts(architecture):
    """Zaya's last expert of a layer means "skip" and has no weights."""
    model = build(architecture)
    sizes, counts = layer_sizes(model), parameter_counts(model)
    experts = [layer.num_experts - layer.num_skips for layer in moe_layers(model)]
    assert sum(n * size for n, size in zip(experts, sizes["expert"], strict=True)) == counts["routed experts"]
    assert sum(sizes["router"]) == counts["router"] and sizes["total"] == sum(counts.values())
