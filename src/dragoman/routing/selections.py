"""Selections: expert ids that an inference server returned, checked and counted. Needs no torch.

Shape letters: T tokens, G languages, L MoE layers, K chosen per token, E experts (the largest number over layers),
N requests of one language.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dragoman.errors import DataError
from dragoman.record import sha256

Requests = dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Selected:
    """Counts of selections, in the fields of a RoutingTrace."""

    layer_ids: tuple[int, ...]
    num_experts: tuple[int, ...]
    top_k: int
    chosen_GLE: np.ndarray
    tokens_G: np.ndarray
    segment_chosen_NLE: dict[str, np.ndarray]
    pairs_GLEE: np.ndarray | None
    checksum: str
    """SHA-256 over the selections."""


def count_selections(
    selections: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    num_experts: int | Sequence[int],
    layer_ids: Sequence[int] | None = None,
    *,
    pairs: bool = False,
) -> Selected:
    """Check and count expert ids [T, L, K] by language and request; errors as `RoutingTrace.from_selections` says."""
    requests = _arrays(selections)
    num_rows, top_k = next(iter(requests.values()))[0].shape[1:]
    layers = tuple(range(num_rows)) if layer_ids is None else tuple(map(int, layer_ids))
    if outside := [x for x in layers if not 0 <= x < num_rows]:
        raise DataError(f"layer_ids {outside} are not among the {num_rows} layers of the arrays; count from 0")
    given = num_experts if isinstance(num_experts, Sequence | np.ndarray) else [num_experts] * len(layers)
    experts = tuple(map(int, given))
    if len(experts) != len(layers):
        raise DataError(f"num_experts has {len(experts)} numbers for {len(layers)} layers; give one for each, or one")
    requests = {g: [x_TLK[:, list(layers)] for x_TLK in arrays] for g, arrays in requests.items()}
    _require_in_range(requests, layers, experts)
    _require_distinct(requests, layers)
    segments = {g: np.stack([_counts(x_TLK, max(experts)) for x_TLK in arrays]) for g, arrays in requests.items()}
    return Selected(
        layers,
        experts,
        top_k,
        chosen_GLE=np.stack([n.sum(axis=0, dtype=np.int64) for n in segments.values()]),
        tokens_G=np.array([sum(map(len, arrays)) for arrays in requests.values()], dtype=np.int64),
        segment_chosen_NLE=segments,
        pairs_GLEE=np.stack([_pairs(arrays, max(experts)) for arrays in requests.values()]) if pairs else None,
        checksum=sha256(*(sha256(g, *(x.astype(np.int64).tobytes() for x in a)) for g, a in requests.items())),
    )


def _arrays(selections: Mapping[str, np.ndarray | Sequence[np.ndarray]]) -> Requests:
    """One list of integer arrays [T, L, K] for every language, all with the same L and K."""
    found = {g: [s] if isinstance(s, np.ndarray) else [np.asarray(x) for x in s] for g, s in selections.items()}
    if not found or (empty := [g for g, arrays in found.items() if not sum(map(len, arrays))]):
        raise DataError(f"no selections for {', '.join(empty) if found else 'any language'}; give at least one token")
    named = list(_named(found))
    wrong = [
        f"{name} {x.dtype} {x.shape}" for name, x in named if x.ndim != 3 or not np.issubdtype(x.dtype, np.integer)
    ]
    if wrong:
        raise DataError(f"selections are integer arrays [tokens, layers, top_k], not {_some(wrong)}")
    shapes = sorted({x.shape[1:] for _, x in named})
    if len(shapes) > 1:
        usual = max(shapes, key=lambda s: sum(x.shape[1:] == s for _, x in named))
        other = [f"{name} {x.shape[1:]}" for name, x in named if x.shape[1:] != usual]
        raise DataError(f"most arrays have (layers, top_k) {usual}, these differ: {_some(other)}; one model at a time")
    return found


def _require_in_range(requests: Requests, layers: Sequence[int], experts: Sequence[int]) -> None:
    limit_L1 = np.array(experts)[:, None]
    wrong = []
    for g, arrays in requests.items():
        bad = np.concatenate([x_TLK[(x_TLK < 0) | (x_TLK >= limit_L1)] for x_TLK in arrays])
        if len(bad):
            wrong.append(f"{g} has {len(bad)}, from {bad.min()} to {bad.max()}")
    if wrong:
        sizes = " or ".join(str(n) for n in sorted(set(experts)))
        raise DataError(
            f"expert ids should be from 0 to below {sizes}, others are there: {'; '.join(wrong)}; give the number of "
            "experts of this model, and leave padding out"
        )


def _require_distinct(requests: Requests, layers: Sequence[int]) -> None:
    """A router chooses K different experts; a row that does not is no router's."""
    twice_GL = np.array([np.sum([_twice(x_TLK) for x_TLK in arrays], axis=0) for arrays in requests.values()])
    wrong = np.flatnonzero(twice_GL.sum(axis=0)).tolist()
    if wrong:
        names = [f"{g} {n}" for g, n in zip(requests, twice_GL.sum(axis=1), strict=True) if n]
        others = [x for i, x in enumerate(layers) if i not in wrong]
        raise DataError(
            f"in layers {[layers[i] for i in wrong]} tokens have an expert twice ({', '.join(names)} times); dense "
            f"layers are filled with zeros: leave them out, as layer_ids={others}"
        )


def _twice(chosen_TLK: np.ndarray) -> np.ndarray:
    """How many tokens name an expert twice, [L]."""
    return (np.diff(np.sort(chosen_TLK, axis=-1), axis=-1) == 0).any(-1).sum(axis=0)


def _counts(chosen_TLK: np.ndarray, width: int) -> np.ndarray:
    """Choices int32 [L, E]."""
    num_layers = chosen_TLK.shape[1]
    slots = chosen_TLK + np.arange(num_layers)[:, None] * width
    return np.bincount(slots.ravel(), minlength=num_layers * width).reshape(num_layers, width).astype(np.int32)


def _pairs(arrays: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Tokens that chose both experts, int64 [L, E, E]."""
    total_LEE = np.zeros((arrays[0].shape[1], width, width), np.int64)
    for x_TLK in arrays:
        for layer, chosen_TK in enumerate(np.moveaxis(x_TLK, 1, 0)):
            hit_TE = np.zeros((len(chosen_TK), width))
            np.put_along_axis(hit_TE, chosen_TK.astype(np.int64), 1, axis=1)
            total_LEE[layer] += (hit_TE.T @ hit_TE).astype(np.int64)
    return total_LEE


def _named(requests: Requests) -> Iterator[tuple[str, np.ndarray]]:
    for g, arrays in requests.items():
        yield from ((f"{g} request {i}", x) for i, x in enumerate(arrays))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
