"""Training on several processes (torchrun): weights, gradients and the optimizer's state are shared out by FSDP2.

Each decoder layer is gathered when it runs, and the rest of the model at its start. What the user holds stays a plain
model: it is emptied while its sharded copy trains, and filled for evaluations, checkpoints and at the end. Files are
written, and languages measured, by the first process alone.

Source: Zhao et al. 2023 (FSDP, arXiv:2304.11277), in the per-parameter form of torch (`fully_shard`).
Differs: accelerate takes FSDP for accelerators alone, so it is applied here, on a CPU as on GPUs.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, ModelError, UserError
from dragoman.modeling import decoder_layers, spread_experts, why_not_spread

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long processes wait for each other: the first one measures while the others wait."""


def started() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def active() -> bool:
    """Whether this process works together with others."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def first() -> bool:
    """Whether this process is the one that writes, prints and measures."""
    return not active() or distributed.get_rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Within the block the processes that torchrun started know each other; nothing to do where there is one."""
    if started() == 1 or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def on_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them; it runs there alone. Its UserError is raised in all."""
    if not active():
        return make()
    outcome: list[Any] = [None, None]
    if first():
        try:
            outcome[0] = make()
        except UserError as e:
            outcome[1] = e
    distributed.broadcast_object_list(outcome)
    if outcome[1]:
        raise outcome[1]
    return outcome[0]


def clock() -> float:
    """Seconds on the first process's clock: what depends on time must be decided alike."""
    return on_first(time.monotonic)


def wait() -> None:
    """Until all processes are here."""
    if active():
        distributed.barrier()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors, in place."""
    if active():
        distributed.all_reduce(tensor)
    return tensor


def rows_each(batch: int, micro_batch: int) -> int:
    """Rows per forward pass of one process. ConfigError where the rows of a batch cannot be shared out evenly."""
    processes = distributed.get_world_size() if active() else 1
    rows = min(micro_batch, max(1, batch // processes))
    if batch % (rows * processes):
        raise ConfigError(
            f"a batch of {batch} rows cannot be shared out to {processes} processes in passes of {rows}; choose a "
            "batch that is a multiple of both, or another micro_batch"
        )
    return rows


def require_several(expert_parallel: bool) -> None:
    """ConfigError where experts are to be spread, and there is one process."""
    if expert_parallel and not active():
        raise ConfigError(
            "expert parallelism is for several processes, and here is one; start it with torchrun, or leave out "
            "expert_parallel"
        )


def require_spreadable(model: PreTrainedModel, asked: bool = True) -> None:
    """ModelError where the experts of a model are to be spread over the processes and, as it is now, cannot be."""
    if not asked:
        return
    if reason := why_not_spread(model, distributed.get_world_size()):
        raise ModelError(f"{reason}; leave out expert_parallel, then each layer's experts are gathered when it runs")


class Shards:
    """A model that is shared out, and the plain one that it stands for."""

    def __init__(self, model: PreTrainedModel, spread: bool = False):
        """spread: keep each expert in one process, and send tokens there."""
        if spread:
            require_spreadable(model)
        if model.device.type == "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes for {torch.cuda.device_count()} GPUs; "
                "start as many as there are, or give --device cpu"
            )
        self.plain = model
        memo = {id(t): t for t in (*model.parameters(), *model.buffers())}  # a copy of modules, not of weights
        self.model = copy.deepcopy(model, memo)
        shape = (distributed.get_world_size(), 1)
        mesh = init_device_mesh(model.device.type, shape, mesh_dim_names=("experts", "same"))
        given: dict[str, Any] = {
            "mesh": mesh["experts"],
            "ignored_params": set(spread_experts(self.model, mesh) if spread else ()),
        }
        for layer in decoder_layers(self.model):
            # Planned rows are written into gathered stacks, and the backward pass reads them there; spread ones stay.
            written = any(parametrize.is_parametrized(m) for m in layer.modules())
            fully_shard(layer, **given, reshard_after_forward=spread or not written)
        fully_shard(self.model, **given)
        self.release()

    def release(self) -> None:
        """Empty the plain model."""
        for parameter in self.plain.parameters():
            parameter.data = parameter.data.new_empty(0)

    def fill(self) -> None:
        """Gather all weights into the plain model, in every process."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.plain.get_parameter(name).data = whole(parameter.detach())

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Within the block the plain model has its weights."""
        self.fill()
        try:
            yield
        finally:
            self.release()

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Whole tensors by name -> the shards."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in tensors:
                    parameter.copy_(shared_out(tensors[name], parameter))


def whole(value: Any) -> Any:
    """The whole of a tensor that is shared out; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shared_out(tensor: torch.Tensor, like: nn.Parameter) -> torch.Tensor:
    """A whole tensor, shared out as a parameter is."""
    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device, like.dtype), like.device_mesh, like.placements)


def whole_state(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as one process has it, gathered tensor by tensor; only the first process keeps it."""

    def kept(value: Any) -> Any:
        gathered = whole(value)
        return (gathered.cpu() if isinstance(gathered, torch.Tensor) else gathered) if first() else None

    tensors = {i: {k: kept(v) for k, v in of.items()} for i, of in state["state"].items()}
    return state | {"state": tensors}


def shared_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state that one process has, as these need it."""
    own = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = {
        i: {k: shared_out(v, own[i]) if getattr(v, "shape", ()) == own[i].shape else v for k, v in of.items()}
        for i, of in state["state"].items()
    }
    return state | {"state": tensors}
