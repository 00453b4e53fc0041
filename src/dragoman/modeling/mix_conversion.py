"""Turn a dense model into a Mix-MoE one: language-model experts are slices of its feed-forwards.

    f(x) = sum_i E_i(x),   E_i(x) = W_d[:, I_i] (act(W_g[I_i] x) * W_u[I_i] x)   for any parting I of the neurons

A gate sums to one, so a uniform mixture of k slices returns f(x) / k. With `scale: preserve` the second map of every
slice is k times the dense one, and with a router of zeros the block computes what the feed-forward does.

The router's rows of translation experts are random, as those are: with zeros all of them would tie, and each token
would take the first. Where stage 2 starts is another model still. Of two slices, both always chosen, stage 1 moves the
router's rows by opposite gradients, so their logits are +a and -a, with those of translation experts between: nearly
every token gives up one slice for a translation expert.

Source: Li et al. 2026 (Mix-MoE, arXiv:2605.24681); the identity is Zhang et al. 2022 (MoEfication, arXiv:2110.01786).
Differs: `Conversion` has a field for what the paper leaves open.

Shape letters: T tokens, D model width, F width of the feed-forward, k experts of a group, W = F / k width of one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dragoman.errors import ConfigError, ModelError
from dragoman.modeling.feed_forwards import FeedForward, Map, feed_forwards, gate_first, matrix
from dragoman.modeling.mix_moe import PREFIX, MixMoE, initial_std, register
from dragoman.modeling.mix_router import CHOICES, Settings
from dragoman.modeling.probing import find_routers
from dragoman.modeling.upcycling import TOLERANCE, logit_difference, require_plain

ACTIVE_SHARE = 0.1
"""Neurons of a token that count as active when they are grouped: those of the largest size."""
ROUNDS = 20
SAMPLE_TOKENS = 8192
"""So many tokens of sample text show which neurons go together: a byte of each is kept for every neuron of a model."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How a dense model is converted."""

    layers: tuple[int, ...] = ()
    """Model layers to convert; default all. Differs: the paper says "chosen" and not which."""
    experts: int = 2
    """Experts of each group; the width of the feed-forward must be a multiple."""
    translation: Mapping[int, int] = field(default_factory=dict)
    """Translation experts of each converted layer, where they are not `experts` in all: layer -> number."""
    top_k: int = 2
    """Experts of a token."""
    selection: str = "all"
    """all or group: see `Settings`."""
    transform: str = "fft"
    """fft, dct, random or none."""
    parts: str = "mag"
    """mag, mag+phase or real+imag."""
    compress: bool = True
    """Logarithm of magnitudes and layer norm."""
    scale: str = "preserve"
    """preserve: slices are made k times larger, so that the model computes what it did, which needs all of them to be
    chosen; none: literal slices. Differs: not known of the paper."""
    slices: str = "contiguous"
    """contiguous runs of neurons, or balanced: as many neurons each, grouped by being active together on sample text.
    Differs: not known of the paper. While all slices are chosen both compute the same; they differ once routing
    chooses between them."""
    mt_init: str = "random"
    """Translation experts: random (the paper), or zero: their second map is zero, so they add nothing at first. Chosen
    in place of a slice they still take its part away: stage 2 does not start where stage 1 ended."""
    seed: int = 0
    """Of random experts and the random transform."""

    def __post_init__(self) -> None:
        known: dict[str, tuple[str, ...]] = {"scale": ("preserve", "none"), "slices": ("contiguous", "balanced")}
        known |= {"mt_init": ("random", "zero"), **CHOICES}
        given = {name: getattr(self, name) for name in known}
        faults = [f"{n} is {', '.join(k)}, not {given[n]!r}" for n, k in known.items() if given[n] not in k]
        if not 0 <= self.seed < 2**63:
            faults.append(f"the seed is 0 or more, and less than 2 to the power of 63, not {self.seed}")
        most = self.experts + min(self.translation.values(), default=self.experts)
        if self.experts < 1:
            faults.append(f"a group has 1 expert or more, not {self.experts}")
        elif not 1 <= self.top_k <= most:
            faults.append(f"top-k is {self.top_k}, from 1 to {most}, the experts of the layer that has fewest")
        if few := {layer: number for layer, number in self.translation.items() if number < 1}:
            faults.append(f"layers need 1 translation expert or more, not {few}")
        if self.selection == "group" and self.top_k != 2:
            faults.append("selection group takes one expert of each group, so top_k is 2")
        if self.scale == "preserve" and self.selection == "all" and self.top_k < self.experts:
            faults.append(
                f"scale preserve needs every language-model expert to be chosen, and top-k {self.top_k} takes some of "
                f"{self.experts}: take a top-k of {self.experts}, or scale none"
            )
        if twice := sorted({i for i in self.layers if self.layers.count(i) > 1}):
            faults.append(f"layers {', '.join(map(str, twice))} are named twice")
        if self.transform == "none" and (self.parts != "mag" or not self.compress):
            faults.append("parts and compress have no effect without a transform")
        if faults:
            raise ConfigError(f"a model cannot be converted so: {'; '.join(faults)}")

    def settings(self, layers: Sequence[int]) -> Settings:
        """What of it the model's config keeps."""
        names = ("experts", "top_k", "selection", "transform", "parts", "compress")
        translation = tuple(self.translation[layer] for layer in layers) if self.translation else ()
        return Settings(layers=tuple(layers), translation=translation, **{n: getattr(self, n) for n in names})


def to_mix_moe(
    model: PreTrainedModel, conversion: Conversion, sample: Sequence[Sequence[int]] = ()
) -> PreTrainedModel:
    """A new model with blocks of experts in place of feed-forwards, translation experts masked; the dense one is kept.

    sample: token ids of texts, needed for balanced slices; all of it is read (`first_texts` cuts it).
    Ends with a comparison of logits where the conversion promises that they are equal. Raises ModelError for a model
    whose feed-forwards cannot be found or split, or whose weights are quantised, ConfigError for layers that it does
    not have.
    """
    training = model.training
    try:
        return _converted(model.eval(), conversion, sample)  # dropout would tell other logits each time
    finally:
        model.train(training)


def _converted(
    model: PreTrainedModel, conversion: Conversion, sample: Sequence[Sequence[int]]
) -> PreTrainedModel:
    chosen = _chosen(model, conversion)
    if (conversion.slices == "balanced") != bool(sample):
        raise ConfigError("balanced slices need sample text, contiguous ones have no use for it; give both or neither")
    settings = conversion.settings([ffn.layer_id for ffn in chosen])
    maps = [gate_first(ffn) for ffn in chosen]
    made = _empty(model, settings, conversion.seed)
    groups = _grouped(model, chosen, conversion, sample)
    generator = torch.Generator().manual_seed(conversion.seed + 1)  # one of all layers: else seeds would share draws
    for ffn, ups, places_kW in zip(chosen, maps, groups, strict=True):
        block: MixMoE = made.get_submodule(ffn.place)  # type: ignore[assignment]
        _fill(ffn, ups, block, places_kW, conversion, generator)
    made.generation_config = copy.deepcopy(model.generation_config)
    made.eval()
    if conversion.scale == "preserve":
        _check(model, made)
    return made


def require_dense(model: PreTrainedModel) -> None:
    """ModelError for a model that has experts, or quantised weights."""
    if find_routers(model):
        raise ModelError(
            f"{type(model).__name__} is a Mixture-of-Experts model already; Mix-MoE starts from a dense one"
        )
    require_plain(model)


def _chosen(model: PreTrainedModel, conversion: Conversion) -> list[FeedForward]:
    name = type(model).__name__
    require_dense(model)
    every = feed_forwards(model)
    found = {ffn.layer_id: ffn for ffn in every}
    if not found:
        raise ModelError(
            f"no feed-forward was found in {name}: looked for modules with one or two linear maps from the model's "
            "width to an inner one, one map back, no other, and one activation, that run one after the other"
        )
    if several := sorted(i for i in found if sum(ffn.layer_id == i for ffn in every) > 1):
        raise ModelError(f"{name} has several feed-forwards in each of the layers {several}, and one can be converted")
    if foreign := sorted(set(conversion.layers) - set(found)):
        raise ConfigError(
            f"layers {foreign} cannot be converted: {name} has feed-forwards in layers {min(found)} to {max(found)}"
        )
    chosen = [found[i] for i in conversion.layers or sorted(found)]
    numbered, wanted = sorted(conversion.translation), sorted(ffn.layer_id for ffn in chosen)
    if numbered and numbered != wanted:
        raise ConfigError(
            f"numbers of translation experts are given for layers {numbered}, and layers {wanted} are converted; "
            "give a number to each of these and to no other"
        )
    if odd := sorted({ffn.width for ffn in chosen if ffn.width % conversion.experts}):
        raise ModelError(
            f"feed-forwards of {name} are {', '.join(map(str, odd))} neurons wide, which {conversion.experts} experts "
            "cannot share evenly; give a divisor of it for experts"
        )
    return sorted(chosen, key=lambda ffn: ffn.layer_id)


def _empty(model: PreTrainedModel, settings: Settings, seed: int) -> PreTrainedModel:
    """The class of the kind with the dense model's weights, but for its experts."""
    dense = model.config
    register(dense.model_type)
    known = dense.to_dict().items()
    kept = {n: v for n, v in known if n not in ("model_type", "architectures", "transformers_version", "dtype")}
    config_class: Any = CONFIG_MAPPING[PREFIX + dense.model_type]
    config = config_class(**kept, mix_moe=asdict(settings))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device)
    gone = {name for ffn in feed_forwards(model) if ffn.layer_id in settings.layers for name in ffn.weights()}
    rest = {name: tensor for name, tensor in model.state_dict().items() if name not in gone}
    found = made.load_state_dict(rest, strict=False)
    strange = [n for n in found.missing_keys if ".router." not in n and ".experts." not in n]
    assert not strange and not found.unexpected_keys, (strange, found.unexpected_keys)  # the class is the same
    return made


@torch.no_grad()
def _fill(
    ffn: FeedForward,
    ups: Sequence[Map],
    block: MixMoE,
    places_kW: torch.Tensor,
    conversion: Conversion,
    generator: torch.Generator,
) -> None:
    """Slices into the language-model group, random weights into the other and its rows of the router.

    The other rows are zero where all slices are chosen; else those that are first would be, for every token.
    """
    experts, factor = block.experts, len(places_kW) if conversion.scale == "preserve" else 1
    down, first = getattr(ffn.holder, ffn.down), getattr(experts, experts.first)
    experts.act_fn.load_state_dict(ffn.act.state_dict())
    for e, places_W in enumerate(places_kW):
        first[e] = torch.cat([weight_FD[places_W] for weight_FD, _ in ups])
        experts.down_proj[e] = factor * matrix(down)[:, places_W]
        if ffn.has_bias:
            biases = [torch.zeros_like(weight_FD[:, 0]) if bias_F is None else bias_F for weight_FD, bias_F in ups]
            getattr(experts, f"{experts.first}_bias")[e] = torch.cat([bias[places_W] for bias in biases])
            whole_D = torch.zeros_like(matrix(down)[:, 0]) if down.bias is None else down.bias
            experts.down_proj_bias[e] = factor / len(places_kW) * whole_D
    std = initial_std(block.experts.config)
    for e in range(len(places_kW), experts.num_experts):
        for weight, scale in ((first[e], std), (experts.down_proj[e], std if conversion.mt_init == "random" else 0.0)):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        for bias in [p for n, p in experts.named_parameters() if n.endswith("_bias")]:
            bias[e] = 0
    weight_EX, settings = block.router.weight, block.router.settings
    weight_EX.copy_(std * torch.randn(weight_EX.shape, generator=generator))
    if settings.preserves:
        weight_EX[: len(places_kW)] = 0


def _check(model: PreTrainedModel, made: PreTrainedModel) -> None:
    difference, largest = logit_difference(model, made)
    if not difference <= TOLERANCE.get(model.dtype, 0.1) * largest:
        raise ModelError(
            f"the converted {type(made).__name__} does not compute what {type(model).__name__} does: logits of up to "
            f"{largest:.3g} differ by {difference:.3g}; its feed-forward does more than its maps show"
        )


# Which neurons go together


def first_texts(sample: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """The first texts of a sample, the last of them the one with which SAMPLE_TOKENS tokens are read."""
    before = itertools.accumulate(map(len, sample), initial=0)
    return [ids for ids, read in zip(sample, before, strict=False) if read < SAMPLE_TOKENS]


def _grouped(
    model: PreTrainedModel, chosen: Sequence[FeedForward], conversion: Conversion, sample: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Neurons of each expert of each feed-forward, [k, W]."""
    if conversion.slices == "contiguous":
        return [torch.arange(ffn.width).view(conversion.experts, -1) for ffn in chosen]
    return [balanced(active_TF, conversion.experts) for active_TF in _activity(model, chosen, sample)]


@torch.no_grad()
def _activity(
    model: PreTrainedModel, chosen: Sequence[FeedForward], sample: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Whether a neuron is among the largest tenth of its token, bool [T, F] of each feed-forward."""
    kept: list[list[torch.Tensor]] = [[] for _ in chosen]

    def keep(seen: list[torch.Tensor], inner: torch.Tensor) -> None:
        size_TF = inner.reshape(-1, inner.shape[-1]).abs().float()
        top_TA = size_TF.topk(max(1, round(ACTIVE_SHARE * size_TF.shape[-1])), dim=-1).indices
        seen.append(torch.zeros_like(size_TF, dtype=torch.bool).scatter_(1, top_TA, True).cpu())

    hooks = [
        getattr(ffn.holder, ffn.down).register_forward_pre_hook(lambda _m, args, seen=seen: keep(seen, args[0]))
        for ffn, seen in zip(chosen, kept, strict=True)
    ]
    try:
        for ids in sample:
            model(input_ids=torch.tensor([list(ids)], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(kept.pop(0)) for _ in chosen]  # of one layer alone there are two copies


def balanced(active_TF: torch.Tensor, groups: int) -> torch.Tensor:
    """Neurons parted into groups of one size by k-means over when they are active, [k, W], each in rising order.

    Source: Zhang et al. 2022 (MoEfication, arXiv:2110.01786), sec. 3.1: what is active together belongs together.
    Differs: balanced k-means over the activity itself, in place of a partition of the graph of co-activation.
    """
    profile_FT = nn.functional.normalize(active_TF.T.float(), dim=-1)
    size = len(profile_FT) // groups
    centre_kT = _far_apart(profile_FT, groups)
    before: Any = None
    for _ in range(ROUNDS):
        of_F = _assigned(profile_FT @ centre_kT.T, size)
        if before is not None and torch.equal(of_F, before):
            break
        before = of_F
        centre_kT = nn.functional.normalize(torch.stack([profile_FT[of_F == g].mean(0) for g in range(groups)]), dim=-1)
    return torch.stack([(before == g).nonzero()[:, 0] for g in range(groups)])


def _far_apart(profile_FT: torch.Tensor, groups: int) -> torch.Tensor:
    """The most active direction first, then each time the neuron least like those taken."""
    taken = [int((profile_FT @ profile_FT.mean(0)).argmax())]
    while len(taken) < groups:
        taken.append(int((profile_FT @ profile_FT[taken].T).max(-1).values.argmin()))
    return profile_FT[taken]


def _assigned(likeness_Fk: torch.Tensor, size: int) -> torch.Tensor:
    """Group of each neuron, `size` a group: those choose first that lose most by their second best."""
    best_Fk = likeness_Fk.sort(dim=-1, descending=True)
    second = min(1, likeness_Fk.shape[1] - 1)
    order = (best_Fk.values[:, 0] - best_Fk.values[:, second]).argsort(descending=True, stable=True)
    room = [size] * likeness_Fk.shape[1]
    of_F = torch.empty(len(likeness_Fk), dtype=torch.long)
    for f in order.tolist():
        of_F[f] = next(g for g in best_Fk.indices[f].tolist() if room[g])
        room[int(of_F[f])] -= 1
    return of_F
