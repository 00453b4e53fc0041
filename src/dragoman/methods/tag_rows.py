"""Rows of the embeddings that train while all others keep their bits: those of language tags.

The tuned rows are parameters of their own, and written into the frozen embeddings before each pass. So a pass computes
what it will after merging, to the bit, and no gradient of the vocabulary's size is made:

    grad row_r = sum of grad out_t over positions t that read r; of the head, sum over t of grad logit_tr h_t

Shape letters: B sequences, S positions, P tuned rows, D model width, V vocabulary.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dragoman.errors import ConfigError


class TagRows(nn.Module):
    """Rows of an embedding, and which ones they are; a part of the embedding as long as they train.

    scale: by what the embedding multiplies what is read.
    """

    def __init__(self, weight_VD: torch.Tensor, rows: tuple[int, ...], scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.rows_P: torch.Tensor
        self.register_buffer("rows_P", torch.tensor(rows, device=weight_VD.device), persistent=False)
        self.tuned_PD = nn.Parameter(weight_VD[list(rows)].detach().clone())

    @torch.no_grad()
    def write(self, weight_VD: torch.Tensor) -> None:
        """Put the rows, as they are now, where they stand in the embedding."""
        weight_VD.data.index_copy_(0, self.rows_P, self.tuned_PD.data)


class _Read(torch.autograd.Function):
    """Embeddings as they are; the gradient of tuned rows is that of the positions that read them, times the scale."""

    @staticmethod
    def forward(
        ctx: Any,
        tuned_PD: torch.Tensor,
        out_BSD: torch.Tensor,
        ids_BS: torch.Tensor,
        rows_P: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(ids_BS, rows_P)
        ctx.scale, ctx.dtype = scale, tuned_PD.dtype
        return out_BSD.view_as(out_BSD)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        ids_BS, rows_P = ctx.saved_tensors
        sums = [grads[0][ids_BS == row].to(ctx.dtype).sum(0) for row in rows_P]
        return torch.stack(sums) * ctx.scale, grads[0], None, None, None


class _Score(torch.autograd.Function):
    """Logits as they are; the gradient of the tuned rows comes from their own columns alone."""

    @staticmethod
    def forward(
        ctx: Any, tuned_PD: torch.Tensor, logits_BSV: torch.Tensor, hidden_BSD: torch.Tensor, rows_P: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_BSD, rows_P)
        ctx.dtype = tuned_PD.dtype
        return logits_BSV.view_as(logits_BSV)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_BSD, rows_P = ctx.saved_tensors
        own_TP = grads[0].index_select(-1, rows_P).flatten(0, -2).to(ctx.dtype)
        return own_TP.T @ hidden_BSD.flatten(0, -2).to(ctx.dtype), grads[0], None, None


def apply(model: PreTrainedModel, rows: tuple[int, ...]) -> None:
    """Make these rows of the embeddings trainable, in place, and those of the head, which are the same where tied."""
    table, head = _holders(model)
    if not rows or min(rows) < 0 or max(rows) >= len(table.weight):
        raise ConfigError(f"embedding rows {list(rows)} cannot train; there are {len(table.weight)} rows, from 0")
    table.tuned = TagRows(table.weight, rows, _scale(table, rows[0]))
    table.forward = MethodType(_embed, table)
    if head is not None:
        head.tuned = table.tuned if head.weight is table.weight else TagRows(head.weight, rows)
        head.forward = MethodType(_score, head)


def merge(model: PreTrainedModel) -> None:
    """Leave the tuned rows in the embeddings for good; nothing happens where none were tuned."""
    for module in _holders(model):
        if hasattr(module, "tuned"):
            module.tuned.write(module.weight)
            del module.tuned, module.forward


def _holders(model: PreTrainedModel) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _embed(table: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    """The embedding's forward with the tuned rows in place. It takes all from the module, so that copies of a model,
    as where several processes share its training, read their own weights.
    """
    own: TagRows = table.tuned
    own.write(table.weight)
    return _Read.apply(own.tuned_PD, type(table).forward(table, ids_BS), ids_BS, own.rows_P, own.scale)


def _score(head: Any, hidden_BSD: torch.Tensor) -> torch.Tensor:
    """The same of the head."""
    own: TagRows = head.tuned
    own.write(head.weight)
    return _Score.apply(own.tuned_PD, type(head).forward(head, hidden_BSD), hidden_BSD, own.rows_P)


@torch.no_grad()
def _scale(table: Any, row: int) -> float:
    """By what some families multiply the embeddings that they read."""
    weight_D = table.weight[row].double()
    read_D = table(torch.tensor([row], device=weight_D.device))[0].double()
    return float(read_D @ weight_D / (weight_D @ weight_D))
