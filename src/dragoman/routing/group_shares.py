"""How much of the routing goes to a group of experts, for several kinds of text, layer by layer.

    share = sum over tokens and chosen experts of the group of w_e / tokens,   w the weights of the chosen, sum 1

Source: the claim of Li et al. 2026 (Mix-MoE, arXiv:2605.24681) that routing separates language modelling from
translation; the paper's own measurement is not known.
Differs: every kind is compared over the very same tokens, and beside it stand the differences between languages and
between halves of one language's text (placebo), so that what is a text's content and what is its form can be told
apart.

Shape letters: L MoE layers, N segments or documents, B sequences, S positions, T tokens, K chosen per token, H splits
into halves, R resamples, C curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from dragoman.errors import DataError
from dragoman.modeling import hidden_states, moe_layers, tap_routers
from dragoman.routing.drawing import INK, MUTED, SYSTEM_COLOURS, axes_with_margins, inline, layer_axis
from dragoman.routing.resampling import bootstrap_interval, half_placebo, resampled

BATCH = 32
"""Segments at once."""
RESAMPLES = 2000
SPLITS = 200
"""Halves of a text that the placebo is the distribution of."""
ROUNDING = 1e-6
"""Masses come in single precision: a difference below this is none."""

Span = tuple[int, int]
"""First position that is counted, and the one behind the last."""


# Mass


@torch.no_grad()
def token_mass(model: PreTrainedModel, segments: Sequence[Sequence[int]], first: int) -> list[np.ndarray]:
    """Of each segment mass_SL: what each token's routing gives to experts from `first` on."""
    layers = moe_layers(model)
    order = sorted(range(len(segments)), key=lambda n: -len(segments[n]))
    found: dict[int, np.ndarray] = {}
    model.eval()
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        ids_BS = torch.zeros(len(batch), len(segments[batch[0]]), dtype=torch.long, device=model.device)
        mask_BS = torch.zeros_like(ids_BS)
        for b, n in enumerate(batch):
            ids_BS[b, : len(segments[n])] = torch.as_tensor(segments[n])
            mask_BS[b, : len(segments[n])] = 1
        with tap_routers(model, layers) as seen:
            hidden_states(model, ids_BS, mask_BS)
        masses = [(r.weights_TK.float() * (r.indices_TK >= first)).sum(-1).view(ids_BS.shape) for r in seen]
        mass_BSL = torch.stack(masses, -1).cpu().numpy()
        found |= {n: mass_BSL[b, : len(segments[n])] for b, n in enumerate(batch)}
    return [found[n] for n in range(len(segments))]


def summed(masses: Sequence[np.ndarray], spans: Sequence[Span]) -> np.ndarray:
    """sums_NL2: mass and tokens of each segment within its span. DataError for a span without a token."""
    if empty := [n for n, (begin, end) in enumerate(spans) if begin >= end]:
        raise DataError(f"segments {empty[:8]} have no token that counts, behind the start token; leave them out")
    sums = [
        (mass_SL[begin:end].sum(0, dtype=np.float64), np.full(mass_SL.shape[1], float(end - begin)))
        for mass_SL, (begin, end) in zip(masses, spans, strict=True)
    ]
    return np.stack([np.stack(pair, -1) for pair in sums])


def share(sums: np.ndarray) -> np.ndarray:
    """Mass over tokens, of summed sums [..., 2]."""
    return sums[..., 0] / sums[..., 1]


# Statistics


def described(sums_NL2: np.ndarray, seed: int) -> dict[str, Any]:
    """The share over all layers with its 95 % interval, and in each layer."""
    found = bootstrap_interval(
        lambda sums_RL2: share(sums_RL2.sum(1)), sums_NL2, seed=seed, resamples=RESAMPLES, kind="percentile"
    )
    limits = {name: float(getattr(found, name)) for name in ("value", "low", "high")}
    return limits | {"by_layer": share(sums_NL2.sum(0)).tolist()}


def contrast(a_NL2: np.ndarray, *others_NL2: np.ndarray, paired: bool, seed: int) -> dict[str, Any]:
    """Share of a minus the mean share of the others, over all layers, with its 95 % interval and two-sided p-value.

        p = (1 + #{|d_r - d| >= |d|}) / (1 + R)      d observed difference, d_r difference in resample r

    paired: the rows of all are the same segments or documents and are drawn together; else each is drawn apart.
    Source: as `significance.paired_bootstrap` of dragoman.evaluation, which knows paired systems alone.
    """
    sums = [x_NL2.sum(1) for x_NL2 in (a_NL2, *others_NL2)]
    value = float(_lead(*(x_N2.sum(0) for x_N2 in sums)))
    drawn_R = np.concatenate([_lead(*x) for x in resampled(*sums, seed=seed, resamples=RESAMPLES, paired=paired)])
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    as_far = np.abs(drawn_R - value) >= abs(value) - ROUNDING
    p_value = float((1 + as_far.sum()) / (1 + RESAMPLES))
    about = {"difference": value, "low": float(low), "high": float(high), "p_value": p_value}
    return about | {"paired": paired, "units": len(a_NL2)}


def _lead(a: np.ndarray, *others: np.ndarray) -> np.ndarray:
    return share(a) - np.mean([share(x) for x in others], axis=0)


def placebo_differences(sums_NL2: np.ndarray, seed: Sequence[int], splits: int = SPLITS) -> np.ndarray:
    """Share of one random half of the rows minus that of the other, [H, L]; the seed is one language's own."""
    return half_placebo(lambda a_HL2, b_HL2: share(a_HL2) - share(b_HL2), sums_NL2, seed=seed, splits=splits)


def placebo(sums_NL2: np.ndarray, seed: Sequence[int], splits: int = SPLITS) -> dict[str, Any]:
    """How far halves of one text lie apart: mean and 95th percentile of |difference|, over all layers and in each."""
    differences_H = np.abs(placebo_differences(sums_NL2.sum(1, keepdims=True), seed, splits)[:, 0])
    by_layer_HL = np.abs(placebo_differences(sums_NL2, seed, splits))
    return {
        "mean": float(differences_H.mean()),
        "p95": float(np.quantile(differences_H, 0.95)),
        "p95_by_layer": np.quantile(by_layer_HL, 0.95, axis=0).tolist(),
        "splits": splits,
        "units": len(sums_NL2),
    }


# Figure


@inline
def group_share_figure(
    kinds: Mapping[str, Sequence[Sequence[float]]], placebo_L: Sequence[float], layer_ids: Sequence[int]
) -> tuple[Figure, str]:
    """Share of routing that goes to translation experts over depth: of each kind the mean, and from lowest to highest.

    kinds: {kind: [C, L]}, a curve a language or direction, the first kind text alone; placebo_L: the difference that
        halves of one text seldom exceed, a band about the mean of the first kind.
    """
    figure, axes = axes_with_margins(230, left=48, right=12, top=46)
    curves = {kind: np.asarray(curves_CL) for kind, curves_CL in kinds.items()}
    for (kind, curves_CL), style in zip(curves.items(), STYLES, strict=True):
        _with_band(axes, kind, curves_CL, style)
    text_L, reach_L = next(iter(curves.values())).mean(0), np.asarray(placebo_L)
    for side, label in ((1, "halves of one text (placebo)"), (-1, None)):
        axes.plot(text_L + side * reach_L, color=INK, linewidth=1, linestyle=":", label=label)
    layer_axis(axes, layer_ids)
    top = max(float((text_L + reach_L).max()), *(float(curves_CL.max()) for curves_CL in curves.values()))
    axes.set_ylim(0, min(1.0, max(0.05, 1.08 * top)))
    axes.set_ylabel("mass on translation experts")
    axes.legend(fontsize=8.5, ncol=2, frameon=False, loc="lower center", bbox_to_anchor=(0.46, 1.0))
    return figure, _in_words(curves, reach_L)


STYLES: tuple[dict[str, Any], ...] = (
    {"color": MUTED, "linestyle": (0, (4, 2)), "marker": ""},
    {"color": SYSTEM_COLOURS[2], "linestyle": "-", "marker": "o"},
    {"color": SYSTEM_COLOURS[1], "linestyle": "-", "marker": "s"},
)
"""Of text alone, source texts, translations."""


def _with_band(axes: Axes, kind: str, curves_CL: np.ndarray, style: Mapping[str, Any]) -> None:
    places = range(curves_CL.shape[1])
    axes.fill_between(places, curves_CL.min(0), curves_CL.max(0), color=style["color"], alpha=0.18, linewidth=0)
    axes.plot(places, curves_CL.mean(0), linewidth=1.8, markersize=3.5, label=kind, **style)


def _in_words(curves: Mapping[str, np.ndarray], reach_L: np.ndarray) -> str:
    means = {kind: curves_CL.mean(1) for kind, curves_CL in curves.items()}
    told = [f"{kind} {m.mean():.3f} ({m.min():.3f} to {m.max():.3f})" for kind, m in means.items()]
    return (
        f"Share of routing that goes to translation experts by layer, as lines of means with bands from the lowest to "
        f"the highest language or direction. Over all layers: {', '.join(told)}. Dotted: halves of one text differ by "
        f"up to {reach_L.mean():.3f} in 95 of 100 splits, mean over layers."
    )
