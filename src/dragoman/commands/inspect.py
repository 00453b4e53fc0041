"""`dragoman inspect`: a model's Mixture-of-Experts layers, where its parameters are, and what applies to it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import MoELayer


@dataclass(frozen=True)
class Config:
    """Look at a model, without loading its weights."""

    model: str
    """Model folder (its config.json is enough), Hub id or built-in name (mini-moe)."""


def run(config: Config) -> dict[str, Any]:
    """Find routers and experts of a model and count its parameters by group, from its config alone."""
    from dragoman.modeling import active_parameters, find_routers, moe_layers, outline, parameter_counts, stored_bytes

    model = outline(config.model)
    layers = moe_layers(model) if find_routers(model) else ()
    groups = parameter_counts(model)
    return {
        "model": config.model,
        "class": type(model).__name__,
        "layers": _described(model, layers),
        "parameters": groups,
        "active": active_parameters(model, groups),
        "total": sum(groups.values()),
        "stored_bytes": stored_bytes(config.model),
        "methods": _methods(model, layers),
    }


def _described(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> list[dict[str, Any]]:
    from dragoman.modeling import router_kind

    alike = {(type(x.router), x.num_experts, x.top_k): x for x in layers}
    kinds = {key: list(router_kind(model, layer)) for key, layer in alike.items()}
    return [
        {
            "layer": x.layer_id,
            "block": x.name,
            "router": type(x.router).__name__,
            "kind": kinds[type(x.router), x.num_experts, x.top_k],
            "experts": x.num_experts,
            "skips": x.num_skips,
            "chosen": x.top_k,
        }
        for x in layers
    ]


def _methods(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> dict[str, str | None]:
    """Method -> why it does not apply, None where it does."""
    from dragoman.methods import METHODS
    from dragoman.methods.base import LossMethod
    from dragoman.modeling import why_not_tunable

    reason = why_not_tunable(layers) if layers else "it has no Mixture-of-Experts layers"
    of_experts = {name for name, method in METHODS.items() if method.NEEDS_PLAN}
    of_routers = {name for name, method in METHODS.items() if isinstance(method, LossMethod) and not layers}
    found = {name: reason if name in of_experts | of_routers else None for name in METHODS}
    ours = getattr(model.config, "mix_moe", None)
    return found | {"mix_moe": None if ours else "it is no Mix-MoE model; `dragoman mix convert` makes one"}


def show(found: dict[str, Any]) -> None:
    """Print the layers, like ones together, the parameters and the methods."""
    total, size = found["total"], found["stored_bytes"]
    stored = "" if size is None else f", {size / 1e6:,.1f} MB stored"
    print(f"{found['model']}: {found['class']}, {total:,} parameters, {found['active']:,} active per token{stored}")
    for line in _layer_lines(found["layers"]) or ["no Mixture-of-Experts layers"]:
        print(f"  {line}")
    for group, count in found["parameters"].items():
        print(f"  {group:16} {count:18,}  {100 * count / total:5.1f} %")
    for method, reason in found["methods"].items():
        print(f"  {method:16} {'applies' if reason is None else f'does not apply: {reason}'}")


def _layer_lines(layers: list[dict[str, Any]]) -> list[str]:
    def facts(x: dict[str, Any]) -> tuple[Any, ...]:
        block = x["block"].replace(f".{x['layer']}", ".*", 1)
        return x["experts"], x["skips"], x["chosen"], ", ".join(x["kind"]), x["router"], block

    order = {key: i for i, key in enumerate(dict.fromkeys(map(facts, layers)))}
    alike = groupby(sorted(layers, key=lambda x: order[facts(x)]), key=facts)
    return [_layer_line([x["layer"] for x in rows], *key) for key, rows in alike]


def _layer_line(ids: list[int], experts: int, skips: int, chosen: int, kind: str, router: str, block: str) -> str:
    skipping = f" ({skips} of them skip)" if skips else ""
    return (
        f"layers {_ranges(ids)}: {experts} experts{skipping}, {chosen} chosen per token, {kind} ({router} in {block})"
    )


def _ranges(numbers: list[int]) -> str:
    """1-3, 5 of [1, 2, 3, 5]."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [[n for _, n in run] for _, run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)
