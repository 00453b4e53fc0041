"""Sizes: how many parameters a plan would train, and of how many. Known of a trace whose capture saw the model.

Shape letter: L MoE layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dragoman.routing.trace import RoutingTrace


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model as far as plans need them."""

    total: int
    """Of the whole model, tied weights once."""
    expert: dict[int, int]
    """Model layer -> of one routed expert."""
    router: dict[int, int]
    """Model layer -> of its router."""

    def trained(self, experts: Mapping[int, Sequence[int]], routers: bool) -> int:
        """Parameters of these experts, and of the routers of their layers where those train too."""
        return sum(len(ids) * self.expert[i] + routers * self.router[i] for i, ids in experts.items() if ids)

    def share(self, experts: Mapping[int, Sequence[int]], routers: bool) -> float:
        """`trained` over all parameters of the model."""
        return self.trained(experts, routers) / self.total


def sizes_of(trace: RoutingTrace) -> Sizes | None:
    """Sizes that the capture noted (`about["sizes"]`: total, and by row of the trace expert and router; of newer traces
    skips too, see `planners.base.tunable`).

    None for traces of other origin and of old versions.
    """
    noted = trace.about.get("sizes")
    if noted is None:
        return None
    expert, router = (dict(zip(trace.layer_ids, noted[name], strict=True)) for name in ("expert", "router"))
    return Sizes(noted["total"], expert, router)
