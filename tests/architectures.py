"""Every causal language model of the installed transformers that records router logits, built tiny; and its table.

`python -m tests.architectures > docs/architectures.md` writes the table.
"""

from __future__ import annotations

import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.specifiers import SpecifierSet
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dragoman.errors import ModelError
from dragoman.modeling import find_routers, moe_layers, router_kind, why_not_tunable

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "hidden_size": 16,
    "hidden_size_per_layer_input": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_experts": 8,
    "n_routed_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "expert_ffn_hidden_size": 8,
    "ffn_hidden_size": 8,
    "shared_expert_intermediate_size": 8,
    "shared_experts_intermediate_size": 8,
    "moe_shared_expert_intermediate_size": 8,
    "shared_intermediate_size": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "o_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 16,
    "linear_head_dim": 4,
    "linear_num_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "ssm_state_size": 8,
    "chunk_size": 16,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 1,
    "make_ngram_vocab_size_divisible_by": 8,
    "heads_per_ngram": 2,
    "ple_embed_dim": 16,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "use_mamba_kernels": False,
    "router_hidden_size": 8,
    "kv_channels": 4,
}
"""Fields of configs, and what they are set to where a config has them."""

SLIDING = {
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "swa_q_lora_rank": 8,
    "swa_kv_lora_rank": 8,
    "swa_qk_nope_head_dim": 4,
    "swa_v_head_dim": 8,
}
MOE_TEXT = {"enable_moe_block": True, "top_k_experts": 2, "num_key_value_heads": 1, "num_kv_shared_layers": 0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 16, "ffn_hidden_size": 8, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe", "moe"], "o_groups": 2, "num_key_value_heads": 1},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots3_note": {
        "text_config": SLIDING,
        "vision_config": {"adapter_out_dim": 16},
        "audio_config": {"adapter_out_dim": 16},
    },
    "dots3_note_text": SLIDING,
    "gemma4": {"text_config": MOE_TEXT},
    "gemma4_text": MOE_TEXT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 4, "zero_expert_num": 3, "num_layers": 2},
    "mimo_v2_flash": {"head_dim": 24, "num_key_value_heads": 1},
    "nemotron_h": {"n_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside `SMALL`."""

CANNOT_RUN = {
    ("doge", "<5.18"): "its MoE layer returns a pair, which its decoder layer takes for a tensor",
    ("llama4", "==5.0.*"): "its causal-LM class reads the text settings from the composite config, which has none",
    ("jetmoe", "==5.0.*"): "it records modules called `gate`, and has none of that name, so no router is found",
}
"""(model type, versions of transformers) -> what is wrong with those versions of the class."""
NOT_BUILT = {t: why for (t, versions), why in CANNOT_RUN.items() if transformers.__version__ in SpecifierSet(versions)}
"""Model type -> why it cannot be built tiny with this version; at most three."""

OLDEST = (
    "With transformers 5.0.0, the oldest that is supported, 16 types record router logits, and capture works on 13 of "
    "them, all but the three above: `make test-oldest` builds an environment with it and runs the same tests there. Of "
    "what records only from 5.19 on, such as DeepSeek-V3 and GLM-4, routers are found beside their stacked experts: of "
    "6 further types with 5.0.0 and 19 with 5.17.0. With 5.17.0 aria_text, dbrx, lfm2_moe and longcat_flash are "
    "refused, and with 5.0.0 whatever else records none."
)
"""What a run of the tests there said."""


@cache
def recording() -> tuple[str, ...]:
    """Model types whose causal-LM class lives in a module where some model records `router_logits`."""
    folder = Path(transformers.__file__).parent / "models"
    sources = {m: folder.glob(f"{m}/modeling_*.py") for m in {_module(t) for t in every_type()}}
    named = {m for m, files in sources.items() if any("router_logits" in f.read_text("utf-8") for f in files)}
    return tuple(t for t in every_type() if _module(t) in named and records(t))


@cache
def unrecorded() -> tuple[str, ...]:
    """Model types that record none and whose routers are found by where they stand; none from 5.19 on."""
    folder = Path(transformers.__file__).parent / "models"
    sources = {t: folder.glob(f"{_module(t)}/modeling_*.py") for t in every_type() if t not in recording()}
    named = [t for t, files in sources.items() if any("top_k_index" in f.read_text("utf-8") for f in files)]
    return tuple(t for t in named if t not in NOT_BUILT and find_routers(build(t)))


def every_type() -> list[str]:
    """Model types of all causal language models, MoE or not."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _module(model_type: str) -> str:
    return model_type_to_module_name(model_type)


def causal_class(model_type: str) -> type:
    found = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[model_type]]
    return found[0] if isinstance(found, tuple) else found


def records(model_type: str) -> bool:
    """Whether some class beside the causal-LM class records `router_logits`."""
    module = sys.modules[causal_class(model_type).__module__]
    tables = [getattr(c, "_can_record_outputs", None) for c in vars(module).values() if inspect.isclass(c)]
    return any(isinstance(t, dict) and "router_logits" in t for t in tables)


def settings(config_class: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """`SMALL` where the config has such a field, text configs alike, then the changes."""
    fields = set(inspect.signature(config_class).parameters)
    aliases = getattr(config_class, "attribute_map", {})
    found = {k: v for k, v in SMALL.items() if k in fields or k == "pad_token_id"}  # that one, old configs only take
    found |= {aliases[k]: v for k, v in SMALL.items() if k in aliases and aliases[k] not in found}
    nested = getattr(config_class, "sub_configs", {}).get("text_config")
    if nested is not None:
        found["text_config"] = settings(nested, changes.get("text_config", {}))
    return found | {k: v for k, v in changes.items() if k != "text_config"}


def build(model_type: str, seed: int = 0) -> Any:
    """A tiny model with random weights large enough that routing differs over tokens, selection biases included."""
    config_class = CONFIG_MAPPING[model_type]
    torch.manual_seed(seed)
    config = config_class(**settings(config_class, OVERRIDES.get(model_type, {})))
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if "bias" in name:
            torch.nn.init.normal_(buffer, std=0.05)
        elif not buffer.is_floating_point() and buffer.ndim == 2:  # a table of experts by token id
            buffer.copy_(torch.randint_like(buffer, 4))
    return model


def row(model_type: str) -> str:
    """Line of the table: what probing finds of a model type."""
    cells = [model_type, causal_class(model_type).__name__]
    try:
        model = build(model_type)
        layers = moe_layers(model)
        notes = [_notes(layers), f"no expert tuning: {why}" if (why := why_not_tunable(layers)) else ""]
        kinds = dict.fromkeys(", ".join(router_kind(model, layer)) for layer in layers)
        cells += ["works", "; ".join(kinds), "; ".join(n for n in notes if n)]
    except ModelError as e:
        cells += ["no", "", str(e)]
    return f"| {' | '.join(cells)} |"


def _notes(layers: Any) -> str:
    routed = [layer.layer_id for layer in layers]
    notes = {
        "several routers a layer": len(set(routed)) < len(routed),
        "layers without a router before or between": len(set(routed)) <= max(routed),
        "experts that skip": any(x.num_skips for x in layers),
        "numbers of experts differ": len({x.num_experts for x in layers}) > 1,
    }
    return ", ".join(n for n, holds in notes.items() if holds)


def table() -> str:
    """docs/architectures.md."""
    found = [row(model_type) for model_type in sorted(recording())]
    works = sum(" | works | " in line for line in found)
    lines = [
        "# Architectures",
        "",
        "Generated by `python -m tests.architectures > docs/architectures.md`. Do not edit it.",
        "",
        f"Causal language models of transformers {transformers.__version__} that record router logits: {len(found)}. "
        f"Capture works on {works}; each was built tiny with random weights and its counts compared with those of a "
        "program that knows nothing of dragoman's hooks (`tests/test_architectures.py`). The router's kind is what it "
        "does with random weights, as configured there; groups, for one, are a setting.",
        "",
        "| model type | class | capture | router | notes |",
        "| --- | --- | --- | --- | --- |",
        *found,
        "",
        "Not tested, because the class itself does not work there: "
        + "; ".join(f"{t} with transformers {versions} ({why})" for (t, versions), why in CANNOT_RUN.items())
        + ".",
        "",
        OLDEST,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(), end="")
