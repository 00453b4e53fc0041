"""Small Mix-MoE models and what they compute, for tests."""

import torch
from torch import nn

from dragoman.modeling import moe_layers, tap_routers
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import set_settings
from tests.models import tiny

CLASSES = {
    "llama": {},
    "llama with biases": {"mlp_bias": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "smollm3": {},
    "phi3": {},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "gpt2": {"n_inner": 32},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32},
    "bloom": {},
    "mpt": {},
    "apertus": {},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "gemma3n_text": {
        "head_dim": 8,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"] * 3,
        "activation_sparsity_pattern": [0.0] * 3,
        "intermediate_size": [32] * 3,
    },
}
IDS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(1))
SAMPLE = IDS.tolist()


def dense(name="llama", **changes):
    return tiny(name.split()[0], **({"intermediate_size": 32} | CLASSES[name] | changes))


def mixed(name="llama", masked=False, **conversion):
    """A converted model whose router and whose biases say something."""
    made = to_mix_moe(dense(name), Conversion(**conversion))
    torch.manual_seed(2)
    for layer in moe_layers(made):
        nn.init.normal_(layer.router.weight, std=0.5)
        for p in layer.experts.parameters():
            nn.init.normal_(p, std=0.15)
    set_settings(made, masked=masked)
    return made


def logits(model, ids=IDS, **inputs):
    with torch.no_grad():
        return model(ids, **inputs).logits


def routed(model, ids=IDS):
    with torch.no_grad(), tap_routers(model, moe_layers(model)) as seen:
        model(ids)
    return list(seen)
