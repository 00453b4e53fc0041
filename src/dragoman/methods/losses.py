"""Losses: cross-entropy, and what is asked of routers.

Shape letters: B rows of a pass, S tokens per row, T tokens, E experts, K chosen per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dragoman.modeling import SCORES, PlainHead, Routed, logits_at, router_probabilities, slots_per_expert

ExtraLoss = Callable[[dict[str, torch.Tensor], torch.Tensor, list[Routed]], torch.Tensor]
"""A method's own term: (inputs of the pass, row_B: which rows of the text it holds, on the CPU, what the tapped routers
did). On a GPU it had best not wait for the pass, as reading a value from there does."""


def balance_loss(
    logits_TE: torch.Tensor, indices_TK: torch.Tensor, real_T: torch.Tensor, score: str = "softmax"
) -> torch.Tensor:
    """E * sum_e f_e P_e of one layer: f the share of slots that went to e, P the mean router probability, E the number
    of experts that are not masked (minus infinity for every token).

    1 where routing is uniform. score: one of SCORES; scores that are no distribution are divided by their sum.
    Source: Fedus et al. 2022 (arXiv:2101.03961), eq. 4-6, with slots for top-k; for sigmoid scores DeepSeek-V3
    (arXiv:2412.19437), eq. 17-20.
    Differs: per layer and without filler; transformers pools all layers, which can hide a collapsed one. Over the whole
    pass, where DeepSeek-V3 takes each sequence alone.
    """
    probability_E = _mean(_probabilities(logits_TE, score), real_T)
    slots_E = slots_per_expert(indices_TK, logits_TE.shape[-1], real_T).float()
    eligible = logits_TE.isneginf().logical_not().any(0).sum()
    return eligible * (slots_E / slots_E.sum() * probability_E).sum()


def _probabilities(logits_TE: torch.Tensor, score: str) -> torch.Tensor:
    if score == "softmax":
        return router_probabilities(logits_TE)
    score_TE = SCORES[score](logits_TE.float())
    return score_TE / score_TE.sum(-1, keepdim=True)


def z_loss(logits_TE: torch.Tensor, real_T: torch.Tensor) -> torch.Tensor:
    """Mean squared log-partition of the router. Source: Zoph et al. 2022 (arXiv:2202.08906), eq. 5."""
    return _mean(logits_TE.float().logsumexp(-1).square(), real_T)


def _mean(x_T: torch.Tensor, real_T: torch.Tensor) -> torch.Tensor:
    """Over text, without waiting for a device to tell how much of it there is."""
    filler_T = ~real_T.view(-1, *[1] * (x_T.ndim - 1))
    return x_T.masked_fill(filler_T, 0.0).sum(0) / real_T.sum()


CHUNK = 512
"""Tokens whose logits lie in memory at a time; from 128 to 512 as fast (docs/LOG.md, 2026-11-29)."""
IN_CHUNKS = hasattr(torch.nn, "LinearCrossEntropyOptions")
"""Whether torch computes the loss of a head in chunks (2.13 does)."""


def cross_entropy(
    model: Any,
    inputs: dict,
    labels_BS: torch.Tensor,
    reduction: str = "mean",
    labelled_T: torch.Tensor | None = None,
    head: PlainHead | None = None,
) -> torch.Tensor:
    """Mean nats per token that has a label, or their sum; a label stands under its own token.

    labelled_T: where in the flattened rows the next token has one, if that is known: other logits are not needed then.
    head: of a model that has a plain one; logits are then never all in memory, nor are their gradients.
    """
    shifted_T = torch.nn.functional.pad(labels_BS[:, 1:], (0, 1), value=-100).flatten()
    if head is not None:
        states_TD = head.states(inputs).flatten(0, 1)
        if labelled_T is not None:
            states_TD, shifted_T = states_TD[labelled_T], shifted_T[labelled_T]
        return _in_chunks(states_TD, head, shifted_T, reduction)
    if labelled_T is None:
        logits_TV = model(**inputs, use_cache=False).logits.flatten(0, 1)
    else:
        logits_TV, shifted_T = logits_at(model, labelled_T, **inputs, use_cache=False), shifted_T[labelled_T]
    return torch.nn.functional.cross_entropy(logits_TV.float(), shifted_T, reduction=reduction)


@torch.compiler.disable  # compiled, torch's function would keep its gradients twice
def _in_chunks(states_TD: torch.Tensor, head: PlainHead, shifted_T: torch.Tensor, reduction: str) -> torch.Tensor:
    weight, bias = head.linear.weight, head.linear.bias
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    return torch.nn.functional.linear_cross_entropy(
        states_TD, weight, shifted_T, linear_bias=bias, reduction=reduction, options=options
    )
