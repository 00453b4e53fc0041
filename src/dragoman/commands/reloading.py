"""Reads an exported model in plain transformers. Run as a program, in an interpreter that never imports dragoman.

    python -P reloading.py FOLDER REQUEST REPLY

REQUEST is JSON: token ids, dtype, device, threads, and the weights that are wanted row by row. REPLY gets the logits
(`logits.safetensors`) and fingerprints of all weights (`fingerprints.json`).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def fingerprints(state: Mapping[str, torch.Tensor], dtype: torch.dtype, by_row: Collection[str]) -> dict[str, Any]:
    """SHA-256 of the bits of each weight in `dtype`, of those in `by_row` one for each row; integers as they are."""
    return {
        name: [_bits(row, dtype) for row in torch.atleast_1d(t)] if name in by_row else _bits(t, dtype)
        for name, t in state.items()
    }


def _bits(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    cast = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
    return hashlib.sha256(cast.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def logits(model: Any, ids: list[list[int]], device: str) -> torch.Tensor:
    """Logits of a fixed batch, on the CPU."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids, device=device), use_cache=False).logits.cpu()


def main(folder: str, request: str, reply: str) -> None:
    """Load, compute, write the reply."""
    wanted = json.loads(Path(request).read_text(encoding="utf-8"))
    torch.set_num_threads(wanted["threads"])
    dtype = getattr(torch, wanted["dtype"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(wanted["device"]).eval()
    save_file({"logits": logits(model, wanted["ids"], wanted["device"])}, Path(reply) / "logits.safetensors")
    found = fingerprints(model.state_dict(), dtype, wanted["by_row"])
    own = sorted(m for m in sys.modules if m.partition(".")[0] == "dragoman")
    answer = {"fingerprints": found, "own_modules": own, "class": type(model).__name__}
    (Path(reply) / "fingerprints.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
