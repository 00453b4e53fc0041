"""How evenly the experts of each layer work while a model trains: a measurement, always; the penalty is in `losses`.

Shape letters: L MoE layers, T tokens, K chosen per token, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dragoman.methods.sharding import summed
from dragoman.modeling import MoELayer, Routed, slots_per_expert
from dragoman.routing.stats import load_balance


class Balance:
    """Choices of each layer since the last report, filler left out; counted where the model is, without waiting."""

    def __init__(self, layers: Sequence[MoELayer]):
        self.layers = layers
        self._clear()

    def _clear(self) -> None:
        self.count_LE: list[torch.Tensor | None] = [None] * len(self.layers)

    def add(self, routed: Sequence[Routed], real_T: torch.Tensor) -> None:
        """Count one pass. real_T: bool, which tokens are text."""
        for i, r in enumerate(routed[: len(self.layers)]):
            chosen_TK = r.indices_TK.detach()
            new_E = slots_per_expert(chosen_TK, self.layers[i].num_experts, real_T.to(chosen_TK.device)).long()
            before_E = self.count_LE[i]
            self.count_LE[i] = new_E if before_E is None else before_E + new_E

    def report(self, step: int) -> dict[str, Any]:
        """What was counted, by all processes, and begin anew.

        {"step": 20, "slots": slots counted in each layer, "layers": [...], "variation": coefficient of variation by
        layer, "max_load": the busiest expert's count over the mean, "dead": experts that no token went to}
        """
        pairs = zip(self.layers, self.count_LE, strict=True)
        counted = [(x, summed(c).cpu().numpy()) for x, c in pairs if c is not None]
        counted = [(x, count_E) for x, count_E in counted if count_E.any()]
        found = [(x, load_balance(count_E[None], [len(count_E)]), count_E) for x, count_E in counted]
        self._clear()
        return {
            "step": step,
            "slots": [int(count_E.sum()) for _, _, count_E in found],
            "layers": [x.layer_id for x, _, _ in found],
            "variation": [round(float(b.variation_XL[0]), 4) for _, b, _ in found],
            "max_load": [round(float(count_E.max() / np.mean(count_E)), 4) for _, _, count_E in found],
            "dead": [int(b.dead_XL[0]) for _, b, _ in found],
        }
