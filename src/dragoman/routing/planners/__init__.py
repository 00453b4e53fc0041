"""Planners: a trace in, an ExpertPlan out. To add one: a Config, a function (trace, config), one line in PLANNERS.

Those of a dense model, which has no routing to trace and no experts to name, are apart: the model and text in,
ExpertNumbers out, one line in NUMBER_PLANNERS.
"""

from dragoman.routing.planners.activation import ActivationConfig, activation_plan
from dragoman.routing.planners.assembly import checksum
from dragoman.routing.planners.base import NumberPlanner, Planner
from dragoman.routing.planners.complete import AllConfig, LayersConfig, all_experts, complete_layers
from dragoman.routing.planners.control import RandomConfig, random_like, random_plan
from dragoman.routing.planners.esft import EsftConfig, esft_plan
from dragoman.routing.planners.gap import SeftConfig, SsftConfig, seft, ssft
from dragoman.routing.planners.layer_moe import LayerMoeConfig, layer_moe_numbers
from dragoman.routing.planners.rise import RiseConfig, rise_plan
from dragoman.routing.planners.shared import SharedConfig, shared_plan
from dragoman.routing.planners.task import TaskConfig, task_experts, task_plan

PLANNERS: dict[str, Planner] = {
    "ssft": Planner(SsftConfig, ssft),
    "seft": Planner(SeftConfig, seft),
    "esft": Planner(EsftConfig, esft_plan),
    "rise": Planner(RiseConfig, rise_plan),
    "activation": Planner(ActivationConfig, activation_plan),
    "task": Planner(TaskConfig, task_plan),
    "shared": Planner(SharedConfig, shared_plan),
    "random": Planner(RandomConfig, random_plan),
    "layers": Planner(LayersConfig, complete_layers),
    "all": Planner(AllConfig, all_experts),
}
NUMBER_PLANNERS: dict[str, NumberPlanner] = {"layer_moe": NumberPlanner(LayerMoeConfig, layer_moe_numbers)}

__all__ = [
    "NUMBER_PLANNERS",
    "PLANNERS",
    "ActivationConfig",
    "AllConfig",
    "EsftConfig",
    "LayerMoeConfig",
    "LayersConfig",
    "NumberPlanner",
    "Planner",
    "RandomConfig",
    "RiseConfig",
    "SeftConfig",
    "SharedConfig",
    "SsftConfig",
    "TaskConfig",
    "activation_plan",
    "all_experts",
    "checksum",
    "complete_layers",
    "esft_plan",
    "layer_moe_numbers",
    "random_like",
    "random_plan",
    "rise_plan",
    "seft",
    "shared_plan",
    "ssft",
    "task_experts",
    "task_plan",
]
