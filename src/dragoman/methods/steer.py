"""Steering: raise experts in the router while a model runs, without training; and take it off again.

    soft    z_e <- z_e + strength * std(z)                  per token, std over all experts
    hard    z_e <- max(z) + 0.01   (strength 1),    z_e <- min(z) - 0.01   (strength -1)
    shared  z_e <- z_e + strength * s_e * |z_e|             s_e: what the plan measured of the expert

z: a token's logits before softmax or sigmoid, correction bias and top-k. Every token of every pass is steered, padding
too, which nothing attends to; so batches, caches and left padding change nothing. With strength 0 nothing is installed.

Source: soft and hard, Bandarkar et al. 2025 (Routing Steering, arXiv:2510.04694), strength 0.5, layers of the middle
band, after SteerMoE (arXiv:2509.09660); shared, Chen et al. 2026 (arXiv:2601.14050) and its code, strength 0.022 for
English, layers 10 to 39 of 48, s_e the share of an expert's use.
Differs: hard has a fixed 0.01 in place of noise, so that the same input always gives the same output. Where the
selection adds a correction bias or groups later, an expert with the largest logit can still lose.

Shape letters: T tokens, E experts, P steered experts.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods.alignment import single_layers
from dragoman.methods.base import require_fit
from dragoman.record import read_json, write_json
from dragoman.routing.plan import ExpertPlan

FORMAT = "dragoman-steering/1"
STEP = 0.01
"""How far beyond all others a forced logit lies."""

NOT_LINEAR = (
    "a router of this model does not make its logits by one linear map to all experts, so they cannot be steered; use "
    "another model, or train with the method ra_moe"
)

Rule = Literal["soft", "hard", "shared"]
STRENGTHS: Mapping[str, float] = {"soft": 0.5, "hard": 1.0, "shared": 0.022}
"""Rule -> its usual strength, that of its paper."""


@dataclass(frozen=True)
class Steering:
    """Which experts are steered, how and how strongly; a small JSON file."""

    rule: Rule
    strength: float
    experts: dict[int, tuple[int, ...]]
    """Model layer -> ids."""
    shares: dict[int, tuple[float, ...]]
    """Model layer -> share of each expert's use, for the rule `shared`; else empty."""
    num_experts: dict[int, int]
    """Model layer -> experts it has: the file fits no other model."""
    planner: str
    """What made the plan."""
    model_sha256: str | None = None
    """Checksum of the model that the plan was made for, where it is known."""

    def __post_init__(self) -> None:
        if faults := _faults(self):
            raise ConfigError(f"experts cannot be steered so: {'; '.join(faults)}")

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Steering:
        """Read what `save` wrote. DataError for anything else."""
        raw = read_json(path)
        names = {"format", *cls.__dataclass_fields__}
        if not isinstance(raw, dict) or raw.get("format") != FORMAT or set(raw) | {"model_sha256"} != names:
            raise DataError(f"{path} is no steering file ({FORMAT}); make one with `dragoman steer`")
        plain: dict[str, Any] = {name: raw.get(name) for name in ("rule", "strength", "planner", "model_sha256")}
        try:
            return cls(
                experts={int(layer): tuple(ids) for layer, ids in raw["experts"].items()},
                shares={int(layer): tuple(shares) for layer, shares in raw["shares"].items()},
                num_experts={int(layer): n for layer, n in raw["num_experts"].items()},
                **plain,
            )
        except (AttributeError, TypeError, ValueError, ConfigError) as e:
            raise DataError(f"{path} is damaged: {e}; make it anew with `dragoman steer`") from None


def steering(plan: ExpertPlan, rule: Rule, strength: float) -> Steering:
    """Steer the experts of a plan. Raises for a strength the rule does not have, or a plan without what it needs."""
    shares: dict[int, tuple[float, ...]] = {}
    if rule == "shared":
        found = {i: [e.statistic for e in sorted(x, key=lambda e: e.id)] for i, x in sorted(plan.layers.items())}
        if unknown := [str(i) for i, values in found.items() if None in values]:
            raise DataError(
                f"the rule shared weighs every expert by its measured share, and the plan has none in layers "
                f"{', '.join(unknown)}; take a plan with statistics, or the rule soft"
            )
        shares = {i: tuple(float(v) for v in values if v is not None) for i, values in found.items()}
    return Steering(rule, strength, plan.experts(), shares, plan.num_experts, plan.planner, plan.model_sha256)


def _faults(how: Steering) -> list[str]:
    """Everything that is wrong with it, in words."""
    faults = [] if how.rule in RULES else [f"the rule {how.rule!r} is none of {', '.join(RULES)}"]
    if not _finite(how.strength):
        faults.append(f"the strength is {how.strength!r}, not a finite number")
    elif how.rule == "hard" and how.strength not in (-1, 0, 1):
        faults.append(f"hard steering forces experts on (strength 1) or off (-1), it has no strength {how.strength}")
    if not how.experts:
        faults.append("there are no experts to steer")
    if foreign := sorted({*how.shares} - ({*how.experts} if how.rule == "shared" else set())):
        faults.append(f"layers {foreign} have shares, and none of their experts is steered by its share")
    for layer, ids in how.experts.items():
        there, shares = how.num_experts.get(layer, 0), how.shares.get(layer, ())
        if not ids or len(set(ids)) < len(ids):
            faults.append(f"layer {layer} has the experts {list(ids)}; one or more, each once")
        if odd := [e for e in ids if type(e) is not int or not 0 <= e < there]:
            faults.append(f"layer {layer} has {there} experts, so there is no expert {odd[0]!r} in it")
        if how.rule == "shared" and not (len(shares) == len(ids) and all(map(_finite, shares))):
            faults.append(f"layer {layer} has {len(shares)} shares for {len(ids)} experts; a finite number for each")
    return faults


def _finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


@contextlib.contextmanager
def steered(model: PreTrainedModel, how: Steering) -> Iterator[PreTrainedModel]:
    """Within the block the model is steered. Raises where it is not the model of the plan or cannot be steered."""
    if how.strength == 0:
        yield model
        return
    layers = single_layers(model)
    require_fit(layers, how.num_experts)
    by_id = {layer.layer_id: layer for layer in layers}
    if any(layer.experts is layer.router for layer in layers):
        raise ModelError(NOT_LINEAR)
    _require_room(how, {layer.layer_id: layer.top_k for layer in layers})
    routers = [(by_id[i].router, by_id[i].num_experts, _change(how, i)) for i in how.experts]
    before = [vars(router).get("forward") for router, *_ in routers]  # of a block around this one, or of a library
    try:
        for router, num_experts, change in routers:
            router.forward = _steering(router.forward, num_experts, change)
        yield model
    finally:
        for (router, *_), forward in zip(routers, before, strict=True):
            vars(router).pop("forward", None)
            if forward is not None:
                router.forward = forward


def _require_room(how: Steering, top_k: Mapping[int, int]) -> None:
    forced = how.experts if how.rule == "hard" and how.strength > 0 else {}
    if many := [f"{len(ids)} of at most {top_k[i]} in layer {i}" for i, ids in forced.items() if len(ids) > top_k[i]]:
        raise ConfigError(
            f"more experts are forced than a token is sent to: {', '.join(many)}; take a smaller plan or the rule soft"
        )


Change = Callable[[torch.Tensor], torch.Tensor]
"""Logits [T, E] -> logits [T, E]."""


def _change(how: Steering, layer: int) -> Change:
    """On the device of the logits: parts of a model may be on several, and probing runs a router on meta."""

    def change(z_TE: torch.Tensor) -> torch.Tensor:
        chosen_P = torch.tensor(how.experts[layer], device=z_TE.device)
        shares_P = torch.tensor(how.shares.get(layer, ()), device=z_TE.device)
        return RULES[how.rule](z_TE, chosen_P=chosen_P, shares_P=shares_P, strength=how.strength)

    return change


def _soft(z_TE: torch.Tensor, chosen_P: torch.Tensor, shares_P: torch.Tensor, strength: float) -> torch.Tensor:
    by_T1 = strength * z_TE.std(dim=-1, keepdim=True)
    return z_TE.index_add(-1, chosen_P, by_T1.expand(*z_TE.shape[:-1], len(chosen_P)))


def _hard(z_TE: torch.Tensor, chosen_P: torch.Tensor, shares_P: torch.Tensor, strength: float) -> torch.Tensor:
    edge_T1 = z_TE.amax(-1, keepdim=True) if strength > 0 else z_TE.amin(-1, keepdim=True)
    step_T1 = STEP + 2 * torch.finfo(z_TE.dtype).eps * edge_T1.abs()  # in half precision STEP alone may round away
    edge_T1 = edge_T1 + step_T1 if strength > 0 else edge_T1 - step_T1
    return z_TE.index_copy(-1, chosen_P, edge_T1.expand(*z_TE.shape[:-1], len(chosen_P)))


def _shared(z_TE: torch.Tensor, chosen_P: torch.Tensor, shares_P: torch.Tensor, strength: float) -> torch.Tensor:
    size_TP = z_TE.index_select(-1, chosen_P).abs()
    return z_TE.index_add(-1, chosen_P, strength * shares_P.to(z_TE.dtype) * size_TP)


RULES: Mapping[str, Callable[..., torch.Tensor]] = {"soft": _soft, "hard": _hard, "shared": _shared}


class _FirstLogits(TorchFunctionMode):
    """Within the block, the first linear map with an output for every expert gives changed logits."""

    def __init__(self, num_experts: int, change: Change):
        super().__init__()
        self.num_experts, self.change, self.done = num_experts, change, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.done or getattr(func, "__name__", "") not in ("linear", "matmul", "__matmul__", "mm"):
            return out
        if out.shape[-1] != self.num_experts:
            return out
        self.done = True
        return self.change(out)


def _steering(forward: Callable[..., Any], num_experts: int, change: Change) -> Callable[..., Any]:
    """A router's forward in which the logits are changed before anything is chosen."""

    @functools.wraps(forward)
    def steered_forward(*args: Any, **kwargs: Any) -> Any:
        with _FirstLogits(num_experts, change) as logits:
            out = forward(*args, **kwargs)
        if not logits.done:
            raise ModelError(NOT_LINEAR)
        return out

    return steered_forward
