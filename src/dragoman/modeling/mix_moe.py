"""Mix-MoE models: feed-forwards of two groups of experts, for language modelling and for translation, behind a router
that also reads the spectrum of each token (`mix_router` has the formula).

Every dense class has one class of this kind, made of it by `register`: the same code with other feed-forwards, so
caches, masks and generation are those of transformers, and Auto classes load it without code from the model's folder.

Source: Li et al. 2026 (Mix-MoE, arXiv:2605.24681), sec. III-A, as far as known.
Differs: what the paper leaves open is a field of `Settings`, each with what was chosen.

Shape letters: T tokens, E experts, K chosen per token, D model width, F width of an expert.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import use_experts_implementation
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils.output_capturing import OutputRecorder

from dragoman.errors import ModelError
from dragoman.modeling.experts import BY_DEVICE, by_expert, permuted, register_by_device
from dragoman.modeling.feed_forwards import FeedForward, feed_forwards
from dragoman.modeling.mix_router import MixRouter, Settings

PREFIX = "mix_moe_"
"""Before the model type of the dense class."""
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3"),
    *("phi3", "glm", "glm4", "gpt2", "gpt_neox", "opt", "bloom", "mpt", "apertus", "lfm2"),
)
"""Types that `register()` knows without being told; any other dense type is registered by its name."""
GROUPED_MULTIPLE = 8
"""Neurons that an expert's width must be a multiple of for `grouped_mm`: 16 bytes in half precision."""


class MixExperts(nn.Module):
    """Stacked experts; of the four kinds below, each says whether it is gated and whether it has biases.

    All share the dense feed-forward's activation, with its weights where it has some.
    """

    def __init__(self, config: Any, ffn: FeedForward, num_experts: int, width: int):
        super().__init__()
        self.num_experts, self.act_fn = num_experts, ffn.act
        self.first = "gate_up_proj" if ffn.gated else "up_proj"
        rows, size = (2 if ffn.gated else 1) * width, ffn.size
        self.register_parameter(self.first, nn.Parameter(torch.empty(num_experts, rows, size)))
        self.down_proj = nn.Parameter(torch.empty(num_experts, size, width))
        if ffn.has_bias:
            self.register_parameter(f"{self.first}_bias", nn.Parameter(torch.empty(num_experts, rows)))
            self.down_proj_bias = nn.Parameter(torch.empty(num_experts, size))

    def forward(self, hidden_TD: torch.Tensor, indices_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        """What `eager` of transformers stands for, [T, D]."""
        return self.one_by_one(hidden_TD, indices_TK, weights_TK)

    def one_by_one(
        self, hidden_TD: torch.Tensor, indices_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """Every expert on the tokens that chose it, [T, D]."""
        top_k = indices_TK.shape[-1]
        slots_S, back_S, _, ends_E = by_expert(indices_TK, self.num_experts)
        parts = permuted(hidden_TD, slots_S, back_S, top_k).tensor_split(ends_E[:-1].tolist())
        y_SD = torch.cat([self.one(e, part_SD) for e, part_SD in enumerate(parts)])
        y_TKD = permuted(y_SD, back_S, slots_S, 1).view(-1, top_k, y_SD.shape[-1])
        weighted = [y_TKD[:, k] * weights_TK[:, k, None] for k in range(top_k)]
        return functools.reduce(torch.add, weighted).to(hidden_TD.dtype)

    def one(self, e: int, hidden_SD: torch.Tensor) -> torch.Tensor:
        """What one expert computes, [S, D]."""
        bias, down_bias = [getattr(self, f"{n}_bias")[e] if self.has_bias else None for n in (self.first, "down_proj")]
        halves = 2 if self.has_gate else 1
        weights = getattr(self, self.first)[e].chunk(halves)
        biases = (None,) * halves if bias is None else bias.chunk(halves)
        inner_SF, *others = [nn.functional.linear(hidden_SD, w, b) for w, b in zip(weights, biases, strict=True)]
        hidden_SF = functools.reduce(torch.mul, others, self.act_fn(inner_SF))
        return nn.functional.linear(hidden_SF, self.down_proj[e], down_bias)


@use_experts_implementation(has_gate=True, has_bias=False)
class GatedExperts(MixExperts):
    """Of Llama and its like."""


@use_experts_implementation(has_gate=True, has_bias=True)
class GatedBiasedExperts(MixExperts):
    """Of Llama with biases."""


@use_experts_implementation(has_gate=False, has_bias=False)
class PlainExperts(MixExperts):
    """Of two maps without biases."""


@use_experts_implementation(has_gate=False, has_bias=True)
class PlainBiasedExperts(MixExperts):
    """Of GPT-NeoX and OPT."""


KINDS = {
    (True, False): GatedExperts,
    (True, True): GatedBiasedExperts,
    (False, False): PlainExperts,
    (False, True): PlainBiasedExperts,
}
"""(gated, biased) -> class."""


class MixMoE(nn.Module):
    """The block that stands where a feed-forward was, or the first map of one whose module stays."""

    def __init__(self, config: Any, ffn: FeedForward, settings: Settings):
        super().__init__()
        translation = settings.translation_of(ffn.layer_id)
        self.router = MixRouter(ffn.size, settings, translation)
        kind = KINDS[ffn.gated, ffn.has_bias]
        self.experts = kind(config, ffn, settings.experts + translation, ffn.width // settings.experts)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        flat_TD = hidden.reshape(-1, hidden.shape[-1])
        _, weights_TK, indices_TK = self.router(flat_TD)
        return self.experts(flat_TD, indices_TK, weights_TK).view(hidden.shape)


class _Mixed:
    """What a class of this kind adds to its dense one."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        wanted = config._experts_implementation
        config._experts_implementation_internal = "eager"  # the dense class would refuse any other
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        chosen = self._check_and_adjust_experts_implementation(wanted)  # type: ignore[attr-defined]
        settings = Settings.of(config)
        found = [ffn for ffn in feed_forwards(self) if ffn.layer_id in settings.layers]  # type: ignore[arg-type]
        if absent := sorted(set(settings.layers) - {ffn.layer_id for ffn in found}):
            raise ModelError(f"the config of this model has blocks in layers {absent}, which it does not have itself")
        narrow = any(ffn.width // settings.experts % GROUPED_MULTIPLE for ffn in found)
        config._experts_implementation_internal = chosen if wanted else "eager" if narrow else BY_DEVICE
        for ffn in found:
            block = MixMoE(config, ffn, settings)
            self._init_weights(block.router)
            self._init_weights(block.experts)
            ffn.replace(block)
        self.post_init()  # type: ignore[attr-defined]

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for the decorator in the file of the dense class

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MixRouter):
            nn.init.zeros_(module.weight)
            for _, random_2DX in module.named_buffers():
                nn.init.normal_(random_2DX, std=(2 * random_2DX.shape[1]) ** -0.5)
        elif isinstance(module, MixExperts):
            for p in module.parameters(recurse=False):
                nn.init.normal_(p, std=initial_std(self.config)) if p.ndim == 3 else nn.init.zeros_(p)  # type: ignore
        else:
            super()._init_weights(module)  # type: ignore[misc]


def with_router_logits(dense_forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a dense class that knows `output_router_logits`, as those of Mixture-of-Experts classes do.

    The logits are a tuple of [T, E], one of each block in order of depth. (What records them in those classes belongs
    to the model below the head, whose class here is the dense one.)
    """

    @functools.wraps(dense_forward)
    def forward(model: Any, *args: Any, output_router_logits: bool | None = None, **kwargs: Any) -> Any:
        asked = getattr(model.config, "output_router_logits", False)
        if not (asked if output_router_logits is None else output_router_logits):
            return dense_forward(model, *args, **kwargs)
        kept: list[torch.Tensor] = []
        hooks = [
            m.register_forward_hook(lambda _m, _args, output: kept.append(output[0]))
            for m in model.modules()
            if isinstance(m, MixRouter)
        ]
        try:
            output = dense_forward(model, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return (*output, tuple(kept)) if isinstance(output, tuple) else _of_moe(output, tuple(kept))

    return forward


def _of_moe(output: Any, router_logits: Any) -> MoeCausalLMOutputWithPast:
    return MoeCausalLMOutputWithPast(**output, router_logits=router_logits)


def initial_std(config: Any) -> float:
    """Of random experts: what the dense class gives its own weights."""
    found = (getattr(config, name, None) for name in ("initializer_range", "init_std"))
    return next((std for std in found if std is not None), 0.02)


def register(*model_types: str) -> None:
    """Make Auto classes know the Mix-MoE forms of dense model types; without names, of the usual ones.

    Raises ModelError for a type that transformers has no causal language model of.
    """
    register_by_device()
    for model_type in model_types or FAMILIES:
        if PREFIX + model_type in CONFIG_MAPPING:
            continue
        if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
            if model_types:
                raise ModelError(
                    f"transformers has no causal language model of type {model_type!r}; install the version that the "
                    "model was made with"
                )
            continue  # an older version without this family
        dense_config: Any = CONFIG_MAPPING[model_type]
        dense_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[dense_config]
        here = {"__module__": __name__, "__doc__": f"Mix-MoE form of {model_type}."}
        config = type(
            f"MixMoE{dense_config.__name__}", (dense_config,), here | {"model_type": PREFIX + model_type, "mix_moe": {}}
        )
        recorded = (dense_model._can_record_outputs or {}) | {"router_logits": OutputRecorder(MixRouter, index=0)}
        of_class = {"config_class": config, "_can_record_outputs": recorded, "_dense_class": dense_model}
        of_class["forward"] = with_router_logits(dense_model.forward)
        model = type(f"MixMoE{dense_model.__name__}", (_Mixed, dense_model), here | of_class)
        AutoConfig.register(PREFIX + model_type, config)
        AutoModelForCausalLM.register(config, model)


def settings_of(model: PreTrainedModel) -> Settings:
    """The settings of a Mix-MoE model. ModelError for any other."""
    if not isinstance(model, _Mixed):
        raise ModelError(
            f"{type(model).__name__} is no Mix-MoE model; make one of a dense model with `dragoman mix convert`"
        )
    return Settings.of(model.config)


def set_settings(model: PreTrainedModel, **changes: Any) -> None:
    """Change what the config and all routers say, in place: `masked` and `stage`."""
    settings = replace(settings_of(model), **changes)
    model.config.mix_moe = asdict(settings)
    for module in model.modules():
        if isinstance(module, MixRouter):
            module.settings = settings


@contextlib.contextmanager
def masking(model: PreTrainedModel, masked: bool) -> Iterator[None]:
    """Within the block, translation experts are left out, or not."""
    before = settings_of(model).masked
    set_settings(model, masked=masked)
    try:
        yield
    finally:
        set_settings(model, masked=before)
