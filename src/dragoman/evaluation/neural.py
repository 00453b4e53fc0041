"""COMET and MetricX as metrics, from local weights; neither needs the package it came with.

A folder for `Comet` has `model.safetensors` (the checkpoint's tensors under their own names), `hparams.yaml` as
published, and `config.json` and the tokenizer of the encoder; one for `MetricX` is what transformers saves of an mT5.
The sum of a segment is its score, so bootstrap and tests work as for every other metric. Of a text over the limit the
beginning is read, as the originals do; `cut` tells of which segments.

Agreement with the originals has not been checked: no published weights could be had where this was written.
"""

# Shape letters: N segments, B sequences of a batch, S positions, D width of an embedding.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dragoman.errors import ConfigError, ModelError
from dragoman.evaluation.base import Metric, ratio
from dragoman.record import sha256

COMET_FILES = ("config.json", "hparams.yaml", "model.safetensors")
DEFAULTS = {"layer": "mix", "layer_norm": True, "layer_transformation": "softmax", "pool": "avg", "activations": "Tanh",
            "final_activation": None, "hidden_sizes": [2304, 768]}  # fmt: skip
"""What COMET takes where a checkpoint's hparams.yaml, older than the setting, does not say."""
ALLOWED: dict[str, tuple[Any, ...]] = {"layer_transformation": ("softmax", "sparsemax"), "pool": ("avg", "cls"),
           "activations": ("Tanh", "Sigmoid", "ReLU", "GELU"), "final_activation": (None, "Tanh", "Sigmoid"),
           "class_identifier": ("regression_metric", "referenceless_regression_metric")}  # fmt: skip
METRICX_LENGTH = 1536


class Neural(Metric):
    """Mean of a model's segment scores."""

    folder: Path
    device: str
    _weights: str
    _model: Any
    _tokenizer: Any
    _limit: int

    def _inputs(self, hypotheses: Sequence[str], *against: Sequence[str]) -> list[list[str]]:
        """The texts that the model reads for each segment."""
        raise NotImplementedError

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, the end token last also where the text is cut."""
        return self._tokenizer(texts, truncation=True, max_length=self._limit)["input_ids"]

    def cut(self, hypotheses: Sequence[str], *against: Sequence[str]) -> list[int]:
        rows = self._inputs(hypotheses, *against)
        sizes = [max(map(len, self._tokenizer(texts, verbose=False)["input_ids"])) for texts in rows]
        return [n for n, size in enumerate(sizes) if size > self._limit]

    def segment_sums(self, hypothesis: str, *against: str) -> list[float]:
        """[score, 1]."""
        return self.all_sums([hypothesis], *([text] for text in against))[0].tolist()

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1])

    def _signed(self, kind: str) -> str:
        return f"kind:{kind}|weights:{self._weights}|truncation:end|transformers:{version('transformers')}"


class Comet(Neural):
    """A COMET regression model, with or without reference as its checkpoint says; higher is better.

    folder: see the module. batch_tokens: most tokens in a batch, padding included.
    Raises ModelError for files that are missing or do not fit.

    Source: of a text over the encoder's limit the beginning is read, as `prepare_sample` of Unbabel's package does.
    """

    name = "COMET"
    higher_is_better = True

    def __init__(self, folder: Path | str, device: str = "cpu", batch_tokens: int = 8192) -> None:
        from dragoman.modeling.estimators import open_comet

        self.folder, self.device, self.batch_tokens = Path(folder), device, batch_tokens
        _require_files(self.folder, COMET_FILES, "COMET")
        settings = _comet_settings(self.folder / "hparams.yaml")
        self._model, self._tokenizer = open_comet(self.folder, settings)
        self._model.to(device)
        self._limit = self._model.encoder["model"].config.max_position_embeddings - 2  # XLM-R counts from 2
        self._weights = sha256(self.folder / "model.safetensors")[:12]
        self._settings = settings
        without = settings["class_identifier"].startswith("referenceless")
        self.needs = ("sources",) if without else ("sources", "references")
        self.name = "COMET-QE" if without else "COMET"

    def _inputs(self, hypotheses: Sequence[str], *against: Sequence[str]) -> list[list[str]]:
        return [list(row) for row in zip(hypotheses, *against, strict=True)]

    def all_sums(self, hypotheses: Sequence[str], *against: Sequence[str]) -> np.ndarray:
        """Sums_N2; each text is encoded once, however often it comes."""
        import torch

        columns = [hypotheses, *against]
        texts = list(dict.fromkeys(text for column in columns for text in column))
        row = {text: i for i, text in enumerate(texts)}
        ids = self._ids(texts)
        with torch.inference_mode():
            embeddings_ND = _in_batches(self._model.embed, ids, self._tokenizer.pad_token_id, self)
            chosen = [embeddings_ND[[row[text] for text in column]] for column in columns]
            scores_N = self._model(*chosen).double().cpu().numpy()
        return np.stack([scores_N, np.ones(len(scores_N))], axis=1)

    def signature(self) -> str:
        s = self._settings
        layer = f"layer:{s['layer']},{s['layer_transformation']},norm {s['layer_norm']}"
        return f"{self._signed(s['class_identifier'])}|{layer}|pool:{s['pool']}|max_tokens:{self._limit}"


class MetricX(Neural):
    """A MetricX model, 0 (no errors) to 25; lower is better.

    reference: whether the model is shown the reference (of `hybrid` models both ways are published).
    Raises ModelError for files that are missing or do not fit.

    Source: the input is that of MetricX-24: `source: ... candidate: ... reference: ...`, cut to `max_tokens` with the
    end token, which is then taken away (its `predict.py`).
    """

    name = "MetricX"
    higher_is_better = False

    def __init__(
        self, folder: Path | str, reference: bool = True, device: str = "cpu", max_tokens: int = METRICX_LENGTH,
        batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        from dragoman.modeling.estimators import open_metricx

        self.folder, self.device, self.batch_tokens, self._limit = Path(folder), device, batch_tokens, max_tokens
        _require_files(self.folder, ("config.json",), "MetricX", any_of=".safetensors")
        self._model, self._tokenizer = open_metricx(self.folder)
        self._model.to(device)
        self._weights = sha256(*sorted(self.folder.glob("*.safetensors")))[:12]
        self.needs = ("sources", "references") if reference else ("sources",)
        self.name = "MetricX" if reference else "MetricX-QE"

    def _inputs(self, hypotheses: Sequence[str], *against: Sequence[str]) -> list[list[str]]:
        sources, references = against[0], against[1] if len(against) == 2 else None
        texts = [f"source: {s} candidate: {h}" for s, h in zip(sources, hypotheses, strict=True)]
        if references is not None:
            texts = [f"{text} reference: {r}" for text, r in zip(texts, references, strict=True)]
        return [[text] for text in texts]

    def all_sums(self, hypotheses: Sequence[str], *against: Sequence[str]) -> np.ndarray:
        """Sums_N2."""
        import torch

        end = self._tokenizer.eos_token_id
        rows = self._ids([text for (text,) in self._inputs(hypotheses, *against)])
        ids = [row[:-1] if row and row[-1] == end else row for row in rows]
        with torch.inference_mode():
            scores_N = _in_batches(self._model, ids, self._tokenizer.pad_token_id, self).double().cpu().numpy()
        return np.stack([scores_N, np.ones(len(scores_N))], axis=1)

    def signature(self) -> str:
        shown = "+".join(name.removesuffix("s") for name in self.needs)
        return f"{self._signed('metricx-24')}|shown:{shown}|max_tokens:{self._limit}"


def _require_files(folder: Path, names: Sequence[str], kind: str, any_of: str = "") -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    missing += [f"*{any_of}"] if any_of and not list(folder.glob(f"*{any_of}")) else []
    if missing:
        raise ModelError(
            f"no {kind} weights in {folder.absolute()}: {', '.join(missing)} not found there; "
            "docs/metrics.md says what belongs into the folder and how to convert a published checkpoint"
        )


def _comet_settings(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = DEFAULTS | (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as e:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(e).split())}; take the published file") from None
    odd = {key: settings.get(key) for key, allowed in ALLOWED.items() if settings.get(key) not in allowed}
    if odd:
        given = ", ".join(f"{key} {value}" for key, value in odd.items())
        known = "; ".join(f"{key}: {' or '.join(map(str, ALLOWED[key]))}" for key in odd)
        raise ModelError(f"{path} asks for {given}, which is not built here ({known})")
    return settings


def _in_batches(run: Callable[..., Any], ids: Sequence[Sequence[int]], padding: int, metric: Any) -> Any:
    """What `run` gives for all rows, in their order; rows of like length run together."""
    import torch

    order = sorted(range(len(ids)), key=lambda n: -len(ids[n]))
    parts = []
    for batch in _batches([ids[n] for n in order], metric.batch_tokens):
        size = max(map(len, batch))
        input_BS = torch.tensor([[*row, *[padding] * (size - len(row))] for row in batch], device=metric.device)
        mask_BS = torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in batch], device=metric.device)
        parts.append(run(input_BS, attention_mask=mask_BS))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[back]


def _batches(rows: list[Sequence[int]], batch_tokens: int) -> Iterator[list[Sequence[int]]]:
    while rows:
        size = max(1, batch_tokens // max(1, len(rows[0])))
        yield rows[:size]
        rows = rows[size:]
