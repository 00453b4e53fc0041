"""Tiny random models of several MoE families, for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHARED = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    # softmax router
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    # softmax router with top-k weights renormalised
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    # another name for the experts' width, optional dense layers
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    # a shared expert beside the routed ones
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    # sigmoid router with a correction bias, groups, a leading dense layer, shared experts
    "deepseek_v3": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    # sigmoid router with a correction bias, no groups
    "glm4_moe": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "head_dim": 8,
    },
}


def tiny(family: str, seed: int = 0, **changes: Any):
    """A model of the family with random weights large enough that routing differs over tokens."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(SHARED | FAMILIES.get(family, {}) | changes))
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in name else 0.15)
    return model.eval()


def unrecorded(model: Any) -> Any:
    """The model, of which transformers records nothing any more."""
    for module in model.modules():
        if hasattr(module, "_can_record_outputs"):
            module._can_record_outputs = {}
    return model


def dense(seed: int = 0, **changes: Any):
    """A tiny dense model."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **(SHARED | changes))).eval()
