"""What the statistics say of random routers: many draws, on the hidden states of one dense model.

An upcycled model computes what its dense model does whatever its routers choose, so one forward pass of the dense model
gives the hidden states that any random router would see, and a draw costs a product of matrices.

    dragoman models fetch smollm2
    python benchmarks/random_routers.py --out benchmarks/diagnose/upcycled-smollm2/routers.json

Shape letters: R draws, G languages, L layers, E experts, K chosen per token, N segments, T tokens, D model width.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dragoman.commands.diagnose import aligned
from dragoman.corpora.pack import open_corpus
from dragoman.modeling import TextCodec, hidden_states, model_checksum, open_both
from dragoman.modeling.upcycling import ROUTER_STD
from dragoman.record import environment, write_json
from dragoman.routing import stats

LANGUAGES = ("en", "de", "es", "ru", "zh")
SHAPES = ((4, 2), (32, 4))
"""(experts, chosen): the upcycled model's, and mini-moe's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--segments", type=int, default=24)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model, codec = open_both(given.model)
    texts, _ = aligned(open_corpus("help"), LANGUAGES, "dev", given.segments)
    states = {g: segment_states(model, codec, t) for g, t in texts.items()}
    record = environment() | {
        "model": given.model,
        "model_sha256": model_checksum(given.model),
        "settings": {"segments": given.segments, "draws": given.draws, "split": "dev", "languages": LANGUAGES},
        "tokens": {g: sum(len(s[0]) for s in segments) for g, segments in states.items()},
        "shapes": {f"{e} experts, {k} chosen": summary(states, e, k, given.draws) for e, k in SHAPES},
    }
    write_json(given.out, record)
    for name, found in record["shapes"].items():
        print(name, {key: [round(x, 4) for x in value] for key, value in found.items() if "by_draw" not in key})


def segment_states(model: Any, codec: TextCodec, texts: list[str]) -> list[list[torch.Tensor]]:
    """Per segment, what the feed-forward of each layer receives: L tensors [T, D], the start token left out."""
    found: list[list[torch.Tensor]] = []
    blocks = [m for name, m in model.named_modules() if name.endswith(".mlp")]
    hooks = [m.register_forward_pre_hook(lambda _, args: found[-1].append(args[0][0, 1:])) for m in blocks]
    with torch.no_grad():
        for ids in codec.encode(texts):
            found.append([])
            input_ids = torch.tensor([[codec.start_id, *ids]])
            hidden_states(model, input_ids, torch.ones_like(input_ids))
    for hook in hooks:
        hook.remove()
    return found


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
    """Means over layers (and languages), for every draw, and their mean and extremes over draws."""
    values: dict[str, list[float]] = {"divergence": [], "placebo": [], "specialisation": [], "shuffled": []}
    for seed in range(draws):
        count = {g: chosen(segments, num_experts, top_k, seed) for g, segments in states.items()}
        for name, value in measured(count, num_experts, seed).items():
            values[name].append(value)
    spread = {name: [float(np.mean(v)), float(np.min(v)), float(np.max(v))] for name, v in values.items()}
    return spread | {f"{name}_by_draw": v for name, v in values.items()}


def measured(count: dict[str, np.ndarray], num_experts: int, seed: int) -> dict[str, float]:
    """Divergence from English and its placebo; specialisation, and with the segments' languages shuffled."""
    english_NLE = count["en"]
    num_experts_L = np.full(english_NLE.shape[1], num_experts)
    share_GLE = {g: stats.slot_share(c.sum(axis=0)) for g, c in count.items()}
    divergence = [
        stats.normalised_divergence(share_GLE[g], share_GLE["en"], num_experts_L) for g in share_GLE if g != "en"
    ]
    all_NLE = np.concatenate(list(count.values()))
    mixed_NLE = all_NLE[np.random.default_rng(seed).permutation(len(all_NLE))]
    shuffled_GLE = np.stack([part.sum(axis=0) for part in np.split(mixed_NLE, len(count))])
    by_language_GLE = np.stack([c.sum(axis=0) for c in count.values()])
    return {
        "divergence": float(np.mean(divergence)),
        "placebo": float(stats.split_half_placebo(english_NLE, seed, num_experts_L).mean()),
        "specialisation": float(np.mean(stats.language_specialisation(by_language_GLE))),
        "shuffled": float(np.mean(stats.language_specialisation(shuffled_GLE))),
    }


if __name__ == "__main__":
    main()
