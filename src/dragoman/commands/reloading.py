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


def fingerprints(
    state: Mapping[str, torch.Tensor], by_row: Collection[str], dtypes: Mapping[str, torch.dtype] | None = None
) -> dict[str, Any]:
    """SHA-256 of the bits of each weight, of those in `by_row` one for each row; `dtypes`: what to cast to before."""
    to = {name: (dtypes or {}).get(name, t.dtype) for name, t in state.items()}
    return {
        name: [_bits(row, to[name]) for row in torch.atleast_1d(t)] if name in by_row else _bits(t, to[name])
        for name, t in state.items()
    }


def _bits(tensor: torch.Tensor, dtype: torch.dtype) -> str:
    cast = tensor.detach().to("cpu", dtype).contiguous()
    return hashlib.sha256(cast.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def logits(model: Any, ids: list[list[int]], device: str) -> torch.Tensor:
    """Logits of a fixed batch, on the CPU."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids, device=device), use_cache=False).logits.cpu()


def leave_gpu(model: Any) -> None:
    """Make room on the GPU for a second model."""
    model.to("cpu")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(folder: str, request: str, reply: str) -> None:
    """Load, compute, write the reply."""
    wanted = json.loads(Path(request).read_text(encoding="utf-8"))
    torch.set_num_threads(wanted["threads"])
    dtype = getattr(torch, wanted["dtype"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(wanted["device"]).eval()
    save_file({"logits": logits(model, wanted["ids"], wanted["device"])}, Path(reply) / "logits.safetensors")
    found = fingerprints(model.state_dict(), wanted["by_row"])
    own = sorted(m for m in sys.modules if m.partition(".")[0] == "dragoman")
    answer = {"fingerprints": found, "own_modules": own, "class": type(model).__name__}
    (Path(reply) / "fingerprints.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
