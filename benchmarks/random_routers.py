"""What the statistics say of random routers: many draws, on the hidden states that one model's routers see.

Of a dense model the feed-forwards' inputs are taken: what it would be with any random routers once upcycled, for that
computes what the dense model does, whatever is chosen. Of a Mixture-of-Experts the inputs of its own routers, which go
on steering it: then the question is how much more than random directions the trained routers make of the same states,
and their own statistics stand beside those of the draws. Either way a draw costs a product of matrices.

    python benchmarks/random_routers.py --model mini-moe --out benchmarks/diagnose/mini-moe/routers.json
    dragoman models fetch smollm2
    python benchmarks/random_routers.py --model smollm2 --out benchmarks/diagnose/upcycled-smollm2/routers.json

Shape letters: R draws, G languages, L layers, E experts, K chosen per token, N segments, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run
from tqdm import tqdm

from dragoman.commands.diagnose import aligned
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError
from dragoman.modeling import TextCodec, find_routers, hidden_states, model_checksum, moe_layers, open_both
from dragoman.modeling.upcycling import ROUTER_STD
from dragoman.record import environment, write_json
from dragoman.routing import stats
from dragoman.routing.capture import capture

LANGUAGES = ("en", "de", "es", "ru", "zh")
"""The first is the one that divergence is measured from."""
SHAPES = ((4, 2), (32, 4))
"""(experts, chosen) for a dense model: the upcycled model's, and mini-moe's. A Mixture-of-Experts has its own."""

Counts = dict[str, np.ndarray]
"""count_NLE by language."""


def control(
    out: Path,
    model: str = "smollm2",
    languages: Sequence[str] = LANGUAGES,
    segments: int = 24,
    draws: int = 20,
    split: str = "dev",
) -> None:
    """Measure random routers, and a Mixture-of-Experts' own beside them, and write the record."""
    if out.exists():
        raise ConfigError(f"{out} exists; records are added, not changed: choose another name")
    opened, codec = open_both(model)
    texts, _ = aligned(open_corpus("help"), languages, split, segments)
    ids = {g: codec.encode(t) for g, t in texts.items()}
    sparse = bool(find_routers(opened))
    states = {g: segment_states(opened, codec, i, sparse) for g, i in ids.items()}
    settings = {"segments": segments, "draws": draws, "split": split, "languages": list(languages)}
    record = environment() | {"command": "random_routers", "model": model, "model_sha256": model_checksum(model)}
    record |= {"settings": settings, "tokens": {g: sum(map(len, i)) for g, i in ids.items()}}
    shapes = {(x.num_experts, x.top_k) for x in moe_layers(opened)} if sparse else SHAPES
    record["shapes"] = {f"{e} experts, {k} chosen": summary(states, e, k, draws) for e, k in shapes}
    if sparse:
        trace = capture(opened, ids, start_id=codec.start_id)
        own = measured(trace.segment_chosen_NLE, np.array(trace.num_experts), seed=0)
        record["own_routers"] = {name: float(x_L.mean()) for name, x_L in own.items()}
        record["own_routers"] |= {f"{name}_by_layer": x_L.round(4).tolist() for name, x_L in own.items()}
    write_json(out, record)
    for name, found in record["shapes"].items():
        print(name, {key: [round(x, 4) for x in found[key]] for key in ("divergence", "specialisation")})
    if sparse:
        print("own routers", {key: round(record["own_routers"][key], 4) for key in ("divergence", "specialisation")})


def segment_states(model: Any, codec: TextCodec, ids: list[list[int]], sparse: bool) -> list[list[torch.Tensor]]:
    """Per segment, what the router (or feed-forward) of each layer gets: L tensors [T, D], the start token left out."""
    found: list[list[torch.Tensor]] = []
    mlps = [m for name, m in model.named_modules() if name.endswith(".mlp")]
    blocks: list[Any] = [layer.router for layer in moe_layers(model)] if sparse else mlps
    hooks = [m.register_forward_pre_hook(lambda m, args: found[-1].append(flat(args[0])[1:])) for m in blocks]
    with torch.no_grad():
        for segment in ids:
            found.append([])
            input_ids = torch.tensor([[codec.start_id, *segment]])
            hidden_states(model, input_ids, torch.ones_like(input_ids))
    for hook in hooks:
        hook.remove()
    return found


def flat(states: torch.Tensor) -> torch.Tensor:
    """[T, D] of one segment, whether or not there is an axis for the batch."""
    return states.reshape(-1, states.shape[-1])


def chosen(segments: list[list[torch.Tensor]], num_experts: int, top_k: int, seed: int) -> np.ndarray:
    """count_NLE of routers drawn as `upcycle` draws them."""
    generator = torch.Generator().manual_seed(seed)
    width = segments[0][0].shape[-1]
    routers = [torch.empty(num_experts, width).normal_(0, ROUTER_STD, generator=generator) for _ in segments[0]]
    return np.array(
        [
            [
                (x_TD @ router_ED.T).topk(top_k).indices.flatten().bincount(minlength=num_experts).numpy()
                for x_TD, router_ED in zip(layers, routers, strict=True)
            ]
            for layers in segments
        ]
    )


def summary(states: dict[str, Any], num_experts: int, top_k: int, draws: int) -> dict[str, Any]:
    """For each statistic, [mean, least, largest] over draws of its mean over layers, every draw, and so by layer."""
    values: dict[str, list[np.ndarray]] = {}
    for seed in tqdm(range(draws), desc=f"{num_experts} experts"):
        count = {g: chosen(segments, num_experts, top_k, seed) for g, segments in states.items()}
        for name, value_L in measured(count, np.full(count[next(iter(count))].shape[1], num_experts), seed).items():
            values.setdefault(name, []).append(value_L)
    found: dict[str, Any] = {}
    for name, rows in values.items():
        value_RL = np.stack(rows)
        mean_R = value_RL.mean(axis=1)
        found[name] = [float(mean_R.mean()), float(mean_R.min()), float(mean_R.max())]
        found[f"{name}_by_draw"] = mean_R.tolist()
        found[f"{name}_by_layer"] = {
            key: getattr(value_RL, key)(axis=0).round(4).tolist() for key in ("mean", "min", "max")
        }
    return found


def measured(count: Counts, num_experts_L: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """By layer: divergence from the first language, mean over the others, and its placebo; specialisation, and with
    the segments' languages shuffled."""
    reference_NLE, *others = count.values()
    share_LE = stats.slot_share(reference_NLE.sum(axis=0))
    distances = [stats.normalised_divergence(stats.slot_share(c.sum(axis=0)), share_LE, num_experts_L) for c in others]
    all_NLE = np.concatenate(list(count.values()))
    mixed_NLE = all_NLE[np.random.default_rng(seed).permutation(len(all_NLE))]
    shuffled_GLE = np.stack([part.sum(axis=0) for part in np.split(mixed_NLE, len(count))])
    by_language_GLE = np.stack([c.sum(axis=0) for c in count.values()])
    return {
        "divergence": np.mean(distances, axis=0),
        "placebo": stats.split_half_placebo(reference_NLE, seed, num_experts_L).mean(axis=0),
        "specialisation": stats.language_specialisation(by_language_GLE),
        "shuffled": stats.language_specialisation(shuffled_GLE),
    }


if __name__ == "__main__":
    run(control)
