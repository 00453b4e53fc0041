"""Sparse upcycling: a dense model becomes a Mixture-of-Experts whose experts all start as copies of its feed-forward.

    y = sum over the chosen e of w_e FFN_e(x),   sum w_e = 1,   FFN_e = FFN   =>   y = FFN(x), whatever is chosen

The result is of a class that transformers has, so it needs no code of ours to load.

Source: Komatsuzaki et al. 2022 (Sparse Upcycling, arXiv:2212.05055): experts are copies of the dense feed-forward, the
router is random, everything else is carried over.
Differs: every layer becomes a Mixture-of-Experts (the paper: a part of them); tokens choose their top k (the paper:
experts choose tokens in encoders); the weights of the chosen always sum to one, because the target classes do so. The
size of the router's weights is ours: it moves gate weights and no selection.

Shape letters: E experts, D model width, F width of the feed-forward, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling.opening import context_length, quantisation
from dragoman.modeling.probing import moe_layers

Settings = dict[str, Any]


def _mixtral(dense: Any, num_experts: int, top_k: int) -> Settings:
    return {"num_local_experts": num_experts, "num_experts_per_tok": top_k}


def _qwen3_moe(dense: Any, num_experts: int, top_k: int) -> Settings:
    sizes = {"num_experts": num_experts, "num_experts_per_tok": top_k, "head_dim": dense.head_dim}
    return sizes | {"moe_intermediate_size": dense.intermediate_size, "norm_topk_prob": True}


TARGETS: dict[str, tuple[str, Callable[[Any, int, int], Settings]]] = {
    "llama": ("mixtral", _mixtral),
    "mistral": ("mixtral", _mixtral),
    "qwen3": ("qwen3_moe", _qwen3_moe),
}
"""Type of a dense model -> the type whose layers differ from it by their experts alone, and what its config adds."""
UPCYCLED = "upcycled_from"
"""What the config of an upcycled model has more: the type of the dense one."""
ROUTER_STD = 0.02
TOLERANCE = {torch.float32: 1e-4}
"""Of logits, relative to the largest; 0.1 in half precision."""


def upcycle(model: PreTrainedModel, num_experts: int, top_k: int, seed: int = 0) -> PreTrainedModel:
    """A new model with `num_experts` copies of every feed-forward behind random routers that choose `top_k`.

    Type, device and config of the dense model are kept, its weights copied. Ends with a comparison of logits.
    Raises ConfigError for impossible numbers, ModelError for quantised weights and for a model that has no
    Mixture-of-Experts class of its build.
    """
    if not 1 <= top_k <= num_experts or num_experts < 2:
        raise ConfigError(
            f"upcycling takes 2 or more experts and a top-k between 1 and their number, given were {num_experts} "
            f"experts and top-k {top_k}"
        )
    require_plain(model)
    made = AutoModelForCausalLM.from_config(_config(model, num_experts, top_k), dtype=model.dtype).to(model.device)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in moe_layers(made):
            gate_FD, up_FD, down_DF = (
                state.pop(f"{layer.name}.{n}.weight") for n in ("gate_proj", "up_proj", "down_proj")
            )
            layer.experts.gate_up_proj.copy_(torch.cat([gate_FD, up_FD]))  # type: ignore[operator]
            layer.experts.down_proj.copy_(down_DF)  # type: ignore[operator]
            weight_ED: torch.Tensor = layer.router.weight  # type: ignore[assignment]
            weight_ED.copy_(nn.init.normal_(torch.empty(weight_ED.shape), std=ROUTER_STD, generator=generator))
    _carry_over(model, made, state)
    made.generation_config = copy.deepcopy(model.generation_config)
    return _checked(model, made.eval())


def require_plain(model: PreTrainedModel) -> None:
    """ModelError for a model whose weights are quantised."""
    if kind := quantisation(model):
        raise ModelError(
            f"the weights of {type(model).__name__} are quantised ({kind}), and experts cannot be made of them; take "
            "the original in float32 or bfloat16"
        )


def _config(model: PreTrainedModel, num_experts: int, top_k: int) -> Any:
    dense = model.config
    if dense.model_type not in TARGETS:
        raise ModelError(
            f"{type(model).__name__} (type {dense.model_type}) cannot be upcycled: only for the dense types "
            f"{', '.join(TARGETS)} does transformers have a Mixture-of-Experts class that differs by its experts alone"
        )
    model_type, added = TARGETS[dense.model_type]
    known = AutoConfig.for_model(model_type).to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    settings = {name: value for name, value in dense.to_dict().items() if name in known}
    made = AutoConfig.for_model(model_type, **(settings | added(dense, num_experts, top_k)))
    setattr(made, UPCYCLED, dense.model_type)
    return made


def _carry_over(model: PreTrainedModel, made: PreTrainedModel, rest: dict[str, torch.Tensor]) -> None:
    """Copy what is not feed-forward, and refuse weights that have no place: biases that the class does not have."""
    try:
        found = made.load_state_dict(rest, strict=False)
    except RuntimeError as e:
        what = str(e).splitlines()[1].strip()
        raise ModelError(f"{type(model).__name__} cannot be upcycled to {type(made).__name__}: {what}") from None
    new = tuple(f"{x.name}." for x in moe_layers(made))
    absent = [n for n in found.missing_keys if not n.startswith(new)]
    if left := [*found.unexpected_keys, *absent]:
        raise ModelError(
            f"{type(model).__name__} cannot be upcycled to {type(made).__name__}, which has no place for "
            f"{', '.join(left[:3])}{' …' if len(left) > 3 else ''}"
        )


def _checked(model: PreTrainedModel, made: PreTrainedModel) -> PreTrainedModel:
    difference, largest = logit_difference(model, made)
    if not difference <= TOLERANCE.get(model.dtype, 0.1) * largest:
        raise ModelError(
            f"the upcycled {type(made).__name__} does not compute what {type(model).__name__} does: logits of up to "
            f"{largest:.3g} differ by {difference:.3g}; its config has a setting that the class does not follow"
        )
    return made


def logit_difference(model: PreTrainedModel, other: PreTrainedModel, tokens: int = 32) -> tuple[float, float]:
    """Largest difference of two models' logits on random tokens, and the first model's largest logit.

    The tokens are so many more than a sliding window, where the context is as long.
    """
    vocabulary = model.config.get_text_config().vocab_size
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    context = context_length(model, largest=window + tokens)
    tokens = min(tokens + (window if window + tokens <= context else 0), context)
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        ours_V, others_V = (m(ids).logits.float() for m in (model, other))
    return (ours_V - others_V).abs().max().item(), ours_V.abs().max().item()
