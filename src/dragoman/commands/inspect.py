"""`dragoman inspect`: a model's Mixture-of-Experts layers and where its parameters are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Look at a model."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""


def run(config: Config) -> dict[str, Any]:
    """Find routers and experts of a model and count its parameters by group."""
    from dragoman.modeling import moe_layers, open_model, parameter_counts

    model = open_model(config.model)
    layers = moe_layers(model)
    groups = parameter_counts(model)
    return {
        "model": config.model,
        "class": type(model).__name__,
        "layers": [
            {
                "layer": x.layer_id,
                "block": x.name,
                "router": type(x.router).__name__,
                "experts": x.num_experts,
                "chosen": x.top_k,
            }
            for x in layers
        ],
        "parameters": groups,
        "total": sum(groups.values()),
    }


def show(found: dict[str, Any]) -> None:
    """Print the layers and the parameters."""
    print(f"{found['model']}: {found['class']}, {found['total']:,} parameters")
    for layer in found["layers"]:
        print(
            f"  layer {layer['layer']:3}  {layer['experts']} experts, {layer['chosen']} chosen per token  "
            f"({layer['router']} in {layer['block']})"
        )
    for group, size in found["parameters"].items():
        print(f"  {group:16} {size:14,}  {100 * size / found['total']:5.1f} %")
