"""Updates by hand: what clip, weight decay, beta2 and the losses of routers do to the weights.

Oracle: torch's AdamW, on gradients of the losses as they are documented, of a plain model. Routers are read with hooks.

Shape letters: T tokens, D model width, E experts, K chosen per token.
"""

import numpy as np
import torch
from torch.nn import functional

from dragoman.methods.training import Config, train
from dragoman.modeling import moe_layers
from tests.models import tiny

ROWS = np.random.default_rng(0).integers(3, 64, (12, 16)).astype(np.int32)
ROWS[4:8] = 7  # of other gradients than the rest
SETTINGS = {"learning_rate": 1e-2, "weight_decay": 0.5, "beta2": 0.5, "clip": 4.0, "balance": 0.7, "z_loss": 0.5}
WITHOUT = {"weight_decay": 0.0, "beta2": 0.95, "clip": 1e9, "balance": 0.0, "z_loss": 0.0}
K = 2


def filled(tokens_NS):
    """Labels of rows of which every other one ends in six tokens of filler."""
    tokens_NS, labels_NS = tokens_NS.copy(), tokens_NS.astype(np.int64)
    tokens_NS[::2, -6:], labels_NS[::2, -6:] = 0, -100
    return tokens_NS, labels_NS


def of_routers(logits_TE, real_T, settings):
    """E * sum_e f_e P_e and the mean squared log-partition of one layer, over text alone."""
    logits_TE = logits_TE[real_T]
    chosen_TK = logits_TE.topk(K, dim=-1).indices
    share_E = torch.bincount(chosen_TK.flatten(), minlength=logits_TE.shape[-1]) / chosen_TK.numel()
    balance = logits_TE.shape[-1] * (share_E * logits_TE.softmax(-1).mean(0)).sum()
    return settings["balance"] * balance + settings["z_loss"] * logits_TE.logsumexp(-1).square().mean()


def by_hand(model, tokens_NS, labels_NS, settings):
    """Three updates of four rows; norms of the gradients before they were clipped."""
    states_TD = {}
    routers = [layer.router for layer in moe_layers(model)]
    for router in routers:
        router.register_forward_pre_hook(lambda module, given: states_TD.update({module: given[0].flatten(0, -2)}))
    named = dict(model.named_parameters())
    matrices, others = ([p for p in named.values() if (p.ndim > 1) == flag] for flag in (True, False))
    assert any("norm" in n for n in named) and any(n.endswith("bias") for n in named), "both are there, and in others"
    groups = [{"params": matrices, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, settings["beta2"]))
    norms = []
    for first in (0, 4, 8):
        ids, labels = (torch.from_numpy(x[first : first + 4].astype(np.int64)) for x in (tokens_NS, labels_NS))
        real = (labels != -100).long()
        logits = model(ids, attention_mask=real).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        router_logits = [functional.linear(states_TD[r], r.weight) for r in routers]
        loss = loss + sum(of_routers(x, real.flatten().bool(), settings) for x in router_logits) / len(routers)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])))
        optimizer.step()
    return norms


def apart(a, b, start):
    """The difference of two models' weights as a share of how far training moved them."""
    flat = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b, start)]
    return float((flat[0] - flat[1]).norm() / (flat[1] - flat[2]).norm())


def test_three_updates_by_hand(tmp_path):
    """All settings at once; by hand each of them makes a difference, else this would show nothing of it."""
    tokens_NS, labels_NS = filled(ROWS)
    ours, hand, start = (tiny("qwen2_moe") for _ in range(3))
    config = Config(steps=3, batch=4, micro_batch=4, warmup=0, decay=0, precision="fp32", **SETTINGS)
    train(ours, tokens_NS, config, layers=moe_layers(ours), labels_NS=labels_NS, pad_id=0, folder=tmp_path)
    norms = by_hand(hand, tokens_NS, labels_NS, SETTINGS)
    assert min(norms) < SETTINGS["clip"] < max(norms), "some are clipped, some are not"
    assert apart(ours, hand, start) < 1e-4
    for name, value in WITHOUT.items():
        other = tiny("qwen2_moe")
        by_hand(other, tokens_NS, labels_NS, SETTINGS | {name: value})
        assert apart(other, hand, start) > 1e-2, name
