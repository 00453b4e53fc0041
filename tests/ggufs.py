"""A toy packaged model, for tests: a tiny Llama as a GGUF, cut into pieces and put into two wheels."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dragoman.modeling import Packaged
from dragoman.record import sha256
from tests.models import tiny

TOKENS = ["<|endoftext|>", "<1>", "<2>"] + [chr(c) for c in range(ord("!"), ord("~") + 1)] + ["ab"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def toy_llama() -> Any:
    """The model that the toy GGUF holds."""
    return tiny("llama", vocab_size=len(TOKENS), num_hidden_layers=2, num_key_value_heads=1, pad_token_id=None)


def write_gguf(model: Any, path: Path) -> None:
    """As llama.cpp lays a Llama out: rows of queries and keys interleaved, as its rotary embedding wants them."""
    GGUFWriter = pytest.importorskip("gguf").GGUFWriter

    c = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        found = gguf_name(name)
        turned = next((interleaved(tensor, n) for part, n in heads.items() if f".{part}." in found), tensor)
        writer.add_tensor(found, turned.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """model.layers.0.mlp.up_proj.weight -> blk.0.ffn_up.weight."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Halves of a head's rows in turns."""
    halves = rows.view(heads, 2, -1, rows.shape[-1])
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def toy_package(folder: Path) -> Packaged:
    """Put the wheels `toy-model 1.0` (first piece, licence) and `toy-model-more 2.0` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "toy.gguf"
    write_gguf(toy_llama(), gguf)
    content = gguf.read_bytes()
    gguf.unlink()
    middle = len(content) // 2
    made = {
        "toy_model-1.0": {
            "toy_model/toy.gguf.part00": content[:middle],
            "toy_model-1.0.dist-info/LICENSE": b"Be kind.",
        },
        "toy_model_more-2.0": {"toy_model_more/data/toy.gguf.part01": content[middle:]},
    }
    for name, files in made.items():
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    return Packaged(
        about="a toy",
        packages={"toy-model": "1.0", "toy-model-more": "2.0"},
        sha256=sha256(content),
        download_mb=1,
        folder_mb=1,
        licence="Kindness",
        terms_at="https://example.org/kindness",
        terms="be kind",
    )
