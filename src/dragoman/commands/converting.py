"""What the commands share that make another model of a dense one: open, convert, compare logits, save, record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.commands import Dtype
from dragoman.record import claim_folder, environment, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec


def write_converted(
    model: str,
    out: Path,
    convert: Callable[[PreTrainedModel, TextCodec], tuple[PreTrainedModel, dict[str, Any]]],
    about: dict[str, Any],
    dtype: Dtype = "float32",
    device: str | None = None,
) -> None:
    """Convert a model, write folder and record, and print how far the logits are from the dense model's.

    convert: gives the new model and what its record is to say of the conversion beside `about`. dtype: that both
    models have. device: that both are on, by default cuda where there is one.
    """
    from dragoman.modeling import logit_difference, model_checksum, open_both, save_model

    if out.exists():
        claim_folder(out)
    dense, codec = open_both(model, dtype=dtype, device=device)
    made, found = convert(dense, codec)
    difference, largest = logit_difference(dense, made)
    save_model(made, codec, out)
    counts = [sum(p.numel() for p in m.parameters()) for m in (dense, made)]
    record = environment() | about | found | {"dtype": dtype}
    record |= {
        "model_sha256": model_checksum(model),
        "converted_sha256": model_checksum(str(out)),
        "classes": [type(dense).__name__, type(made).__name__],
        "parameters": counts,
        "logit_difference": difference,
        "largest_logit": largest,
    }
    write_json(out / "record.json", record)
    print(f"{out}: {type(made).__name__}, {counts[1]:,} parameters from {counts[0]:,}")
    print(f"logits of up to {largest:.1f} differ from the dense model's by at most {difference:.1e}")
