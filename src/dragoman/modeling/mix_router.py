"""The router of Mix-MoE blocks, and the settings that it shares with them.

    g = softmax(W [h ; phi(h)]),   y = sum over the chosen e of g_e E_e(h) / sum of the chosen g

phi is a transform over the hidden dimension of one token. (A transform over time would read later tokens, and change
with every generated one.) Experts 0 .. k-1 are the language-model group, those from k on the translation group.

Where one expert alone is chosen among several, the sum is left out: with it, its weight would be one whatever the
router says, and the router would learn nothing from the text.

Source: Li et al. 2026 (Mix-MoE, arXiv:2605.24681), sec. III-A, as far as known.
Differs: what the paper leaves open is a field of `Settings`, each with what was chosen.

Shape letters: T tokens, E experts, K chosen per token, D model width, X spectral features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from dragoman.errors import ModelError

CHOICES = {
    "transform": ("fft", "dct", "random", "none"),
    "parts": ("mag", "mag+phase", "real+imag"),
    "selection": ("all", "group"),
}
"""Setting -> what this version knows."""



@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the config of such a model says of its blocks."""

    layers: tuple[int, ...]
    """Model layers whose feed-forward is a block of experts."""
    experts: int = 2
    """Language-model experts, k. The paper's value."""
    translation: tuple[int, ...] = ()
    """Translation experts of each of `layers`; default k, the paper's value. The planner `layer_moe` gives others."""
    top_k: int = 2
    """Experts of a token. Differs: the paper's number is not known; two keep the arithmetic of the dense layer."""
    selection: str = "all"
    """all: the top k of both groups together; group: the first of each group, and while translation experts are masked
    every expert of the other. Differs: not known of the paper."""
    transform: str = "fft"
    """fft, dct, random (a fixed Gaussian matrix of the shape of fft) or none. The paper compares the first three.
    Differs: it does not say over which axis; here over the hidden dimension."""
    parts: str = "mag"
    """Of each coefficient: mag, mag+phase (phase in half turns) or real+imag. Differs: not known of the paper."""
    compress: bool = True
    """log(1 + magnitude), then a layer norm without weights over the features. Differs: not known of the paper; without
    it a few low coefficients outweigh the rest."""
    masked: bool = True
    """Whether the router leaves out the translation group, as before and in stage 1."""
    stage: int = 0
    """Last stage that was trained; 0 of a converted model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "translation", tuple(self.translation))
        for name, known in CHOICES.items():
            if (given := getattr(self, name)) not in known:
                raise ModelError(
                    f"the router of this model has {name} {given!r}; this version of dragoman knows "
                    f"{', '.join(known)}: take one of them, or a newer version for a model that was saved by one"
                )
        if faults := self._faults():
            raise ModelError(
                f"the blocks of this model have {', '.join(faults)}: the config is damaged; convert the model again"
            )

    def _faults(self) -> list[str]:
        """Numbers and switches that no conversion writes."""
        numbers = (self.experts, self.top_k, self.stage, *self.layers, *self.translation)
        flags = (self.masked, self.compress)
        if any(not isinstance(n, int) for n in numbers) or any(not isinstance(flag, bool) for flag in flags):
            return [f"{f.name} {getattr(self, f.name)!r}" for f in fields(self) if f.name not in CHOICES]
        most = self.experts + min(self.translation, default=self.experts)
        wrong = {
            "experts": self.experts < 1,
            "top_k": not 1 <= self.top_k <= most,
            "stage": not 0 <= self.stage <= 2,
            "layers": len(set(self.layers)) < len(self.layers) or min(self.layers, default=0) < 0,
            "translation": min(self.translation, default=1) < 1,
        }
        return [f"{name} {getattr(self, name)!r}" for name, is_wrong in wrong.items() if is_wrong]

    def translation_of(self, layer: int) -> int:
        """Translation experts of a layer."""
        return self.translation[self.layers.index(layer)] if self.translation else self.experts

    @property
    def preserves(self) -> bool:
        """Whether every language-model expert is chosen where translation experts are masked."""
        return self.top_k >= self.experts or self.selection == "group"

    @classmethod
    def of(cls, config: Any) -> Settings:
        """Those that a model's config holds. ModelError for some that this version does not know."""
        known = {field.name for field in fields(cls)}
        given = dict(config.mix_moe) if isinstance(config.mix_moe, dict) else {}
        if strange := sorted(set(given) - known):
            raise ModelError(
                f"the blocks of this model have the settings {', '.join(strange)}, which this version of dragoman does "
                "not know; take a newer one"
            )
        layers, numbers = given.get("layers"), given.get("translation")
        if not isinstance(layers, (list, tuple)) or (numbers and len(numbers) != len(layers)):
            raise ModelError(
                f"the blocks of this model are said to be in layers {layers}, with translation experts "
                f"{numbers}: its config is damaged, convert the dense model again"
            )
        return cls(**given)


class MixRouter(nn.Module):
    """Scores of all experts from a token's state and its spectrum, in float32 whatever the model's type."""

    random_2DX: torch.Tensor

    def __init__(self, width: int, settings: Settings, translation: int):
        super().__init__()
        self.settings, self.translation, bins = settings, translation, width // 2 + 1
        size = {"fft": bins, "dct": width, "random": bins, "none": 0}[settings.transform]
        real = settings.transform == "dct" and settings.parts == "real+imag"
        size *= 1 if settings.parts == "mag" or real else 2
        self.weight = nn.Parameter(torch.empty(settings.experts + translation, width + size))
        if settings.transform == "random":
            self.register_buffer("random_2DX", torch.empty(2, width, bins))

    def forward(self, hidden_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [T, E], minus infinity where masked; weights [T, K], which sum to one if K > 1; indices [T, K]."""
        hidden_TD = hidden_TD.reshape(-1, hidden_TD.shape[-1])
        device = hidden_TD.device.type if hidden_TD.device.type != "meta" else "cpu"
        with torch.autocast(device, enabled=False):
            state_TD = hidden_TD.float()
            inputs = [state_TD, *self.features(state_TD)]
            weights = self.weight.float().split([x.shape[-1] for x in inputs], dim=-1)
            parts = [nn.functional.linear(x_TX, w_EX) for x_TX, w_EX in zip(inputs, weights, strict=True)]
            logits_TE = torch.stack(parts).sum(0)
            if self.settings.masked:
                kept_TE = logits_TE[:, : self.settings.experts]
                logits_TE = nn.functional.pad(kept_TE, (0, self.translation), value=float("-inf"))
            chosen_TK, indices_TK = self._choose(logits_TE)
            if chosen_TK.shape[-1] == 1:
                return logits_TE, (chosen_TK - logits_TE.logsumexp(-1, keepdim=True)).exp(), indices_TK
            # the softmax over all, divided by the sum of the chosen, is the softmax over the chosen
            return logits_TE, chosen_TK.softmax(-1), indices_TK

    def _choose(self, logits_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.settings.experts
        groups = [logits_TE[:, :size]] if self.settings.masked else [logits_TE[:, :size], logits_TE[:, size:]]
        if self.settings.selection == "all" or self.settings.masked:
            eligible = sum(group.shape[-1] for group in groups)
            wanted = self.settings.top_k if self.settings.selection == "all" else eligible
            return logits_TE.topk(min(wanted, eligible), dim=-1)
        best = [group.max(-1) for group in groups]
        indices = [found.indices + at * size for at, found in enumerate(best)]
        return torch.stack([found.values for found in best], dim=-1), torch.stack(indices, dim=-1)

    def features(self, state_TD: torch.Tensor) -> list[torch.Tensor]:
        """phi(h): parts of the transform of each token, each [T, X]; nothing for the transform none."""
        if self.settings.transform == "none":
            return []
        parts = self._parts(*self._transformed(state_TD))
        return [nn.functional.layer_norm(p, p.shape[-1:]) for p in parts] if self.settings.compress else parts

    def _transformed(self, state_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Real and imaginary parts of the orthonormal transform; a cosine transform has real ones only."""
        if self.settings.transform == "fft":
            spectrum_TX = torch.fft.rfft(state_TD, norm="ortho")
            return spectrum_TX.real, spectrum_TX.imag
        if self.settings.transform == "dct":
            return cosine_transform(state_TD), None
        random_2DX = self.random_2DX.float()
        return state_TD @ random_2DX[0], state_TD @ random_2DX[1]

    def _parts(self, real_TX: torch.Tensor, imag_TX: torch.Tensor | None) -> list[torch.Tensor]:
        if self.settings.parts == "real+imag":
            return [real_TX] if imag_TX is None else [real_TX, imag_TX]
        # the gradient of a root at zero is none, so the smallest float stands under it
        size_TX = real_TX.abs() if imag_TX is None else (real_TX**2 + imag_TX**2 + 1e-20).sqrt()
        found = [size_TX.log1p() if self.settings.compress else size_TX]
        if self.settings.parts == "mag+phase":
            found.append(torch.atan2(torch.zeros_like(real_TX) if imag_TX is None else imag_TX, real_TX) / torch.pi)
        return found


def cosine_transform(x_TD: torch.Tensor) -> torch.Tensor:
    """Orthonormal DCT-II over the last axis, by one complex transform of the same length.

    Source: Makhoul 1980 (IEEE TASSP 28:27), the N-point method.
    """
    size = x_TD.shape[-1]
    folded_TD = torch.cat([x_TD[..., ::2], x_TD[..., 1::2].flip(-1)], dim=-1)
    spectrum_TD = torch.view_as_real(torch.fft.fft(folded_TD))
    angle_D = torch.pi * torch.arange(size, device=x_TD.device) / (2 * size)
    turned_TD = spectrum_TD[..., 0] * angle_D.cos() + spectrum_TD[..., 1] * angle_D.sin()
    scale_D = torch.full((size,), (2 / size) ** 0.5, device=x_TD.device)
    return turned_TD * torch.where(torch.arange(size, device=x_TD.device) == 0, size**-0.5, scale_D)
