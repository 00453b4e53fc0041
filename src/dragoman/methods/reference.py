"""How the base model routes the English items: computed once, kept on disk, and checked when it is read again.

A file holds `share_NLE`, float32, and the SHA-256 of its bytes. Its name is a checksum of everything that it depends
on: weights and config of the model, the samples, which tokens count, which layers.

Shape letters: N items, B rows, S positions, L layers, E experts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from dragoman.errors import DataError
from dragoman.methods.alignment import (
    AlignmentLoss,
    Divergence,
    Pairs,
    Sample,
    Sequences,
    counted_tokens,
    kept_reference,
    sequence_means,
)
from dragoman.modeling import MoELayer, hidden_states, score_names, state_checksum, tap_routers
from dragoman.record import atomic_write, sha256

BATCH_TOKENS = 4096
SAYS_NOTHING = ("_name_or_path", "transformers_version", "use_cache", "output_router_logits")
"""Fields of a config that routing does not depend on."""


def base_routing(
    model: PreTrainedModel,
    layers: Sequence[MoELayer],
    samples: Sequence[Sample],
    sequence: Sequences,
    *,
    pad_id: int,
    folder: Path,
) -> np.ndarray:
    """Mean distribution over experts of each sample in each layer, [N, L, E], from `folder` where it is there.

    The model is read in evaluation mode without gradients; zeros stand behind the experts of narrower layers.
    Raises DataError for a kept file that is damaged.
    """
    path = folder / f"{_key(model, layers, samples, sequence)}.npz"
    if path.is_file():
        return _read(path)
    share_NLE = _computed(model, layers, samples, sequence, pad_id)
    with atomic_write(path) as partial, open(partial, "wb") as f:
        np.savez(f, share_NLE=share_NLE, sha256=np.array(sha256(share_NLE.tobytes())))
    return share_NLE


def against_base(
    model: PreTrainedModel,
    layers: Sequence[MoELayer],
    rows: Sequence[int],
    pairs: Pairs,
    config: Any,
    divergence: Divergence,
    folder: Path,
) -> AlignmentLoss:
    """The term of a method that aligns with the frozen base, which the model still is.

    rows: those of `layers` that are aligned. config: has `items`, `sequence` and `weight`.
    """
    aligned_N, aligned = pairs.aligned(config.items), [layers[row] for row in rows]
    reference_NLE = base_routing(model, aligned, pairs.english, config.sequence, pad_id=pairs.pad_id, folder=folder)
    return AlignmentLoss(
        layers=layers,
        scores=score_names(model, layers),
        rows={row: i for i, row in enumerate(rows)},
        english=kept_reference(reference_NLE),
        counted_NS=counted_tokens(pairs.target, config.sequence, pairs.width),
        aligned_N=aligned_N,
        divergence=divergence,
        weight=config.weight,
    )


def _key(model: PreTrainedModel, layers: Sequence[MoELayer], samples: Sequence[Sample], sequence: str) -> str:
    ids, config = [layer.layer_id for layer in layers], model.config.to_dict()
    shape = {name: value for name, value in sorted(config.items()) if name not in SAYS_NOTHING}
    read = [shape, ids, sequence, [[list(map(int, i)), n] for i, n in samples]]
    return sha256(state_checksum(model), json.dumps(read, default=str))[:32]


def _read(path: Path) -> np.ndarray:
    try:
        with np.load(path) as kept:
            share_NLE, checksum = kept["share_NLE"], str(kept["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        share_NLE, checksum = np.zeros(0), ""
    if sha256(share_NLE.tobytes()) != checksum:
        raise DataError(f"the kept English routing {path} is damaged: its checksum does not fit; remove it")
    return share_NLE


def _computed(
    model: PreTrainedModel, layers: Sequence[MoELayer], samples: Sequence[Sample], sequence: Sequences, pad_id: int
) -> np.ndarray:
    scores, was_training = score_names(model, layers), model.training
    share_NLE = np.zeros((len(samples), len(layers), max(x.num_experts for x in layers)), np.float32)
    model.eval()
    with torch.no_grad(), tap_routers(model, layers) as seen:
        for rows_B in _batches(samples):
            chosen = [samples[n] for n in rows_B]
            ids_BS, mask_BS = padded([ids for ids, _ in chosen], pad_id)
            counted_BS = torch.from_numpy(counted_tokens(chosen, sequence, ids_BS.shape[1])).to(model.device)
            seen.clear()
            hidden_states(model, ids_BS.to(model.device), mask_BS.to(model.device))
            share_NLE[rows_B] = sequence_means(seen, scores, counted_BS).cpu().numpy()
    model.train(was_training)
    return share_NLE


def _batches(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Samples of similar length together."""
    order = sorted(range(len(samples)), key=lambda n: -len(samples[n][0]))
    while order:
        rows = max(1, BATCH_TOKENS // len(samples[order[0]][0]))
        yield order[:rows]
        order = order[rows:]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as one tensor with filler on the right, and the mask that says where none is; [B, S] each."""
    width = max(map(len, rows))
    ids_BS = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    mask_BS = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_BS, mask_BS
