"""How evenly the experts of each layer work while a model trains: a measurement, always; the penalty is in `losses`.

Shape letters: L MoE layers, T tokens, K chosen per token, S chosen per token in all layers, E experts, X experts of all
layers.
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
        self.sizes = [layer.num_experts for layer in layers]
        self.count_X: torch.Tensor | None = None
        """Of every expert of every layer, layer after layer."""

    def add(self, routed: Sequence[Routed], real_T: torch.Tensor) -> None:
        """Count one pass. real_T: bool, which tokens are text."""
        if not self.layers:
            return
        chosen = [r.indices_TK.to(real_T.device) for r in routed[: len(self.layers)]]
        slot_TS, starts = torch.cat(chosen, dim=1), np.cumsum([0, *self.sizes])
        start_S = np.repeat(starts[:-1], [x_TK.shape[1] for x_TK in chosen])  # of the layer of each column
        slot_TS = slot_TS + torch.from_numpy(start_S).to(real_T.device, non_blocking=True)
        new_X = slots_per_expert(slot_TS, int(starts[-1]), real_T).long()
        self.count_X = new_X if self.count_X is None else self.count_X + new_X

    def report(self, step: int) -> dict[str, Any]:
        """What was counted, by all processes, and begin anew.

        {"step": 20, "slots": slots counted in each layer, "layers": [...], "variation": coefficient of variation by
        layer, "max_load": the busiest expert's count over the mean, "dead": experts that no token went to}
        """
        whole_X = np.zeros(sum(self.sizes), int) if self.count_X is None else summed(self.count_X).cpu().numpy()
        by_layer = np.split(whole_X, np.cumsum(self.sizes)[:-1])
        counted = [(x, count_E) for x, count_E in zip(self.layers, by_layer, strict=True) if count_E.any()]
        found = [(x, load_balance(count_E[None], [len(count_E)]), count_E) for x, count_E in counted]
        self.count_X = None
        return {
            "step": step,
            "slots": [int(count_E.sum()) for _, _, count_E in found],
            "layers": [x.layer_id for x, _, _ in found],
            "variation": [round(float(b.variation_XL[0]), 4) for _, b, _ in found],
            "max_load": [round(float(count_E.max() / np.mean(count_E)), 4) for _, _, count_E in found],
            "dead": [int(b.dead_XL[0]) for _, b, _ in found],
        }
