"""Which models' experts can be spread over processes; that they train so is in tests/commands/test_sharding.py."""

import sys

import pytest

from dragoman.methods import expert_tuning, lora
from dragoman.modeling import why_not_spread
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import FAMILIES, dense, tiny

OFFERED = "this version" not in why_not_spread(tiny("olmoe"), 2)
spreads = pytest.mark.skipif(not OFFERED, reason="this version of transformers does not spread experts")


@spreads
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_which_transformers_says_how(family):
    model = tiny(family)
    assert why_not_spread(model, 2) == why_not_spread(model, 4) == ""
    assert why_not_spread(model, 3) == "8 experts can be spread over a divisor of 8, not over 3 processes"


@spreads
@pytest.mark.parametrize("model", [dense(), tiny("jetmoe", num_local_experts=8)])
def test_classes_without_a_plan(model):
    assert why_not_spread(model, 2) == (
        f"transformers has no plan for {type(model).__name__} by which whole experts are spread"
    )


@spreads
def test_planned_rows_can_follow_their_stack_and_low_ranks_cannot():
    planned, low = tiny("olmoe"), tiny("olmoe")
    plan = ExpertPlan("test", {1: (PlannedExpert(3, "language"),)}, dict.fromkeys(range(3), 8), target="ca")
    expert_tuning.apply(planned, expert_tuning.Config(), plan)
    assert why_not_spread(planned, 2) == ""
    lora.apply(low, lora.Config(parts=("attention",)))
    assert why_not_spread(low, 2) == ""
    lora.apply(low := tiny("olmoe"), lora.Config(parts=("experts",)))
    assert why_not_spread(low, 2).startswith("what the method trains in model.layers.0.mlp.experts.")


def test_a_version_of_transformers_without_the_exchange(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.distributed.expert_parallel", None)
    assert why_not_spread(tiny("olmoe"), 2).startswith("this version of transformers does not spread experts")
