"""Quality estimators of the COMET and MetricX kinds from local weights, in plain transformers.

    COMET     e(t) = mean over tokens of  gamma * sum_l softmax(w)_l * norm(h_l(t));  h_l layers of XLM-R
              score = MLP([e_mt, e_ref, e_mt * e_ref, |e_mt - e_ref|, e_mt * e_src, |e_mt - e_src|])
              without reference: MLP([e_mt, e_src, e_mt * e_src, |e_mt - e_src|])
    MetricX   score = clamp(logit of <extra_id_10> at the first decoder position of mT5, 0, 25)

Weights are read from folders, as safetensors only; docs/evaluation.md says how to convert a published checkpoint.

Source: Rei et al. 2020 (arXiv:2009.09025) and 2022 (WMT22, COMET-22) with the layer mix of Peters et al. 2018; Juraska
    et al. 2023 and 2024 (MetricX-23, MetricX-24).
Differs: sparsemax is our own (Martins & Astudillo 2016, alg. 1). Texts over the limit are refused, not cut. Models that
    read source and answer as one sequence (UniTE, COMETKiwi, XCOMET) are not of this kind and are refused.
Agreement with the originals has not been checked: no published weights could be had where this was written.
"""

# Shape letters: B sequences, S positions, D model width, L hidden states (the embeddings and every layer).

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dragoman.errors import ModelError

COMET_CLASSES = {"regression_metric": 6, "referenceless_regression_metric": 4}
"""Classes of COMET checkpoints that are understood, and how many vectors their estimator takes."""
METRICX_TOKEN = 250089
"""<extra_id_10> in the vocabulary of mT5, whose logit MetricX trains to be the score."""


class CometEstimator(nn.Module):
    """Encoder, layer mix, pooling and MLP; parameter names are those of the published checkpoints."""

    def __init__(self, encoder: Any, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = nn.ModuleDict({"model": encoder})
        layers = encoder.config.num_hidden_layers + 1
        if settings["layer"] == "mix":
            self.layerwise_attention = LayerMix(layers, settings["layer_norm"], settings["layer_transformation"])
        width = encoder.config.hidden_size * COMET_CLASSES[settings["class_identifier"]]
        sizes = [width, *settings["hidden_sizes"], 1]
        steps: list[nn.Module] = []
        for size, following in pairwise(sizes):
            # dropout has no weights, but counts in the numbering of the checkpoints' layers
            steps += [nn.Linear(size, following), getattr(nn, settings["activations"])(), nn.Dropout(0.0)]
        steps = steps[:-2]
        if settings["final_activation"]:
            steps.append(getattr(nn, settings["final_activation"])())
        self.estimator = nn.ModuleDict({"ff": nn.Sequential(*steps)})

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D] of token ids [B, S]."""
        encoder = self.encoder["model"]
        states = encoder(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        mask_BS1 = attention_mask.unsqueeze(-1).to(states[0].dtype)
        if self.settings["layer"] == "mix":
            mixed_BSD = self.layerwise_attention(states, mask_BS1)
        else:
            mixed_BSD = states[int(self.settings["layer"])]
        if self.settings["pool"] == "cls":
            return mixed_BSD[:, 0]
        return (mixed_BSD * mask_BS1).sum(dim=1) / mask_BS1.sum(dim=1)

    def forward(
        self, answer_BD: torch.Tensor, source_BD: torch.Tensor, reference_BD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores [B] from embeddings [B, D]."""
        if reference_BD is None:
            features = [answer_BD, source_BD, *_related(answer_BD, source_BD)]
        else:
            features = [answer_BD, reference_BD, *_related(answer_BD, reference_BD), *_related(answer_BD, source_BD)]
        return self.estimator["ff"](torch.cat(features, dim=1)).squeeze(1)


def _related(a_BD: torch.Tensor, b_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return a_BD * b_BD, (a_BD - b_BD).abs()


class LayerMix(nn.Module):
    """gamma times a convex mixture of hidden states, each normalised over its sentence where `layer_norm` is set."""

    def __init__(self, layers: int, layer_norm: bool, transformation: str) -> None:
        super().__init__()
        self.layer_norm, self.transformation = layer_norm, transformation
        self.scalar_parameters = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(layers)])
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, states: tuple[torch.Tensor, ...], mask_BS1: torch.Tensor) -> torch.Tensor:
        weight_L = torch.cat(list(self.scalar_parameters))
        share_L = sparsemax(weight_L) if self.transformation == "sparsemax" else weight_L.softmax(dim=0)
        normed = [_over_sentence(state_BSD, mask_BS1) for state_BSD in states] if self.layer_norm else states
        return self.gamma * sum(share * state_BSD for share, state_BSD in zip(share_L, normed, strict=True))


def _over_sentence(state_BSD: torch.Tensor, mask_BS1: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over all positions and dimensions of a sentence; padding counts for nothing."""
    cells_B11 = mask_BS1.sum(dim=(1, 2), keepdim=True) * state_BSD.shape[-1]
    mean_B11 = (state_BSD * mask_BS1).sum(dim=(1, 2), keepdim=True) / cells_B11
    variance_B11 = ((state_BSD - mean_B11) ** 2 * mask_BS1).sum(dim=(1, 2), keepdim=True) / cells_B11
    return (state_BSD - mean_B11) / (variance_B11 + 1e-12).sqrt()


def sparsemax(weight_L: torch.Tensor) -> torch.Tensor:
    """The point of the simplex nearest to the weights."""
    descending_L = weight_L.sort(descending=True).values
    excess_L = descending_L.cumsum(0) - 1
    rank_L = torch.arange(1, len(weight_L) + 1, dtype=weight_L.dtype, device=weight_L.device)
    support = int((rank_L * descending_L > excess_L).sum())
    return (weight_L - excess_L[support - 1] / support).clamp(min=0)


def open_comet(folder: Path, settings: dict[str, Any]) -> tuple[CometEstimator, Any]:
    """Estimator and tokenizer from a folder with config.json and tokenizer of the encoder and model.safetensors.

    settings: the checkpoint's hyperparameters. Raises ModelError for weights that do not fit, all names at once.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
    estimator = CometEstimator(encoder, settings)
    state = {k: v for k, v in load_file(folder / "model.safetensors").items() if not k.endswith("position_ids")}
    state = {k: v for k, v in state.items() if ".dropout_" not in k}  # buffers that are used in training only
    wanted = {name: tuple(tensor.shape) for name, tensor in estimator.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if odd := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
        raise ModelError(
            f"{folder / 'model.safetensors'} does not fit its settings: {len(odd)} tensors are missing, unknown or of "
            f"another shape, first {', '.join(odd[:6])}; check hparams.yaml and config.json"
        )
    estimator.load_state_dict(state)
    return estimator.eval(), AutoTokenizer.from_pretrained(folder)


class MetricXEstimator(nn.Module):
    """mT5 as a regressor."""

    def __init__(self, seq2seq: Any, token: int = METRICX_TOKEN) -> None:
        super().__init__()
        self.seq2seq: Any = seq2seq
        self.token = token

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores [B], 0 (no errors) to 25, of token ids [B, S]."""
        first_B1 = torch.full_like(input_ids[:, :1], self.seq2seq.config.decoder_start_token_id)
        output = self.seq2seq(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=first_B1)
        return output.logits[:, 0, self.token].clamp(0, 25)


def open_metricx(folder: Path) -> tuple[MetricXEstimator, Any]:
    """Estimator and tokenizer from a folder of safetensors that transformers can open as mT5."""
    from transformers import AutoTokenizer, MT5ForConditionalGeneration

    loaded: Any = MT5ForConditionalGeneration.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    seq2seq, report = loaded
    if odd := sorted([*report["missing_keys"], *report["mismatched_keys"]], key=str):
        raise ModelError(f"{folder} lacks weights of mT5, first {', '.join(map(str, odd[:6]))}; convert it again")
    if seq2seq.config.vocab_size <= METRICX_TOKEN:
        raise ModelError(
            f"{folder} has a vocabulary of {seq2seq.config.vocab_size}, but MetricX reads the logit of token "
            f"{METRICX_TOKEN}; take a model with the vocabulary of mT5"
        )
    return MetricXEstimator(seq2seq).eval(), AutoTokenizer.from_pretrained(folder)
