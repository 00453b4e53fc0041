"""Delta: what a method trained and nothing else, which fits the base that it was trained on and no other model.

A folder: `delta.safetensors` holds the trained weights under the names that they have while the method is applied;
`delta.json` holds method, settings, base and its checksum; `plan.json` the plan, where there was one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from dragoman import modeling
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import METHODS
from dragoman.methods.base import Method, settings
from dragoman.modeling import TextCodec, copy_tag, model_path, open_model, open_tokenizer, state_checksum
from dragoman.record import atomic_write, read_json, write_json
from dragoman.routing.plan import ExpertPlan

FORMAT = "dragoman-delta/1"
DELTA_FILE, PLAN_FILE, WEIGHTS_FILE = "delta.json", "plan.json", "delta.safetensors"
FIELDS = ("format", "method", "settings", "base", "base_sha256", "dtype", "tag")


@dataclass(frozen=True)
class Delta:
    """What a method trained, and on what."""

    method: str
    settings: Any
    """The method's Config."""
    plan: ExpertPlan | None
    base: str
    """Folder, Hub id or name of the base."""
    base_sha256: str
    """`state_checksum` of the base as opened, before anything was changed."""
    dtype: str
    """In which the base was opened."""
    tag: tuple[str, str] | None
    """Language whose tag was copied, and the one it was copied to, before training."""
    weights: dict[str, torch.Tensor]
    """Trained weights by their names under the applied method."""

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all."""
        about = {"format": FORMAT} | {name: getattr(self, name) for name in FIELDS[1:]}
        with atomic_write(folder) as partial:
            partial.mkdir()
            try:
                save_file(self.weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
            except SafetensorError as e:  # how a full disk shows there
                raise OSError(str(e)) from e
            if self.plan:
                self.plan.save(partial / PLAN_FILE)
            write_json(partial / DELTA_FILE, about | {"settings": asdict(self.settings)})

    @classmethod
    def load(cls, folder: Path | str) -> Delta:
        """Read what `save` wrote. DataError for a folder that is no delta, ConfigError for an unknown method."""
        folder = Path(folder)
        about = read_json(folder / DELTA_FILE)
        if not isinstance(about, dict) or about.get("format") != FORMAT or set(about) != set(FIELDS):
            raise DataError(f"{folder / DELTA_FILE} is no delta of the format {FORMAT} with {', '.join(FIELDS[1:])}")
        if about["method"] not in METHODS:
            raise ConfigError(f"{folder} was trained by {about['method']!r}; methods here are {', '.join(METHODS)}")
        try:
            weights = load_file(folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as e:
            raise DataError(f"the weights {folder / WEIGHTS_FILE} cannot be read: {e}") from None
        plan = ExpertPlan.load(folder / PLAN_FILE) if (folder / PLAN_FILE).exists() else None
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()}
        chosen = settings(about["method"], METHODS[about["method"]], listed)
        plain = {name: about[name] for name in ("method", "base", "base_sha256", "dtype")}
        return cls(**plain, settings=chosen, plan=plan, tag=about["tag"] and tuple(about["tag"]), weights=weights)

    def require_base(self, model: PreTrainedModel) -> None:
        """ModelError where a model is not the one that the delta was trained on."""
        if (found := state_checksum(model)) != self.base_sha256:
            raise ModelError(
                f"the delta was trained on {self.base} with weights {self.base_sha256[:12]}, this base has "
                f"{found[:12]}; name the right one with --base"
            )

    def put_on(self, model: PreTrainedModel, codec: TextCodec | None = None) -> None:
        """Apply the method to the base, in place, with the trained weights. ModelError for another base."""
        self.require_base(model)
        if self.tag:
            assert codec is not None
            copy_tag(model, codec, *self.tag)
        METHODS[self.method].apply(model, self.settings, self.plan)
        own = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if own.keys() != self.weights.keys():
            odd = sorted(own.keys() ^ self.weights.keys())
            raise ModelError(f"the delta and its method disagree about {', '.join(odd[:5])}; it is of another version")
        with torch.no_grad():
            for name, weight in self.weights.items():
                own[name].copy_(weight)
        model.eval()


def trained_delta(
    model: PreTrainedModel,
    method: str,
    settings: Any,
    plan: ExpertPlan | None,
    *,
    base: str,
    base_sha256: str,
    tag: tuple[str, str] | None = None,
) -> Delta:
    """The delta of a model that the method is applied to, after training and before merging."""
    where = str(Path(base).resolve()) if Path(base).exists() else base
    weights = {n: p.detach().cpu().clone().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    return Delta(method, settings, plan, where, base_sha256, str(model.dtype).removeprefix("torch."), tag, weights)


def is_delta(name: str) -> bool:
    """Whether a name is that of a delta's folder."""
    return (Path(name) / DELTA_FILE).is_file()


def base_of(name: str) -> str:
    """The model that a delta's folder is of; any other name as it is."""
    return Delta.load(name).base if is_delta(name) else name


def open_base(
    delta: Delta, base: str | None = None, device: str | None = None
) -> tuple[PreTrainedModel, TextCodec]:
    """The base that a delta was trained on, with its tokenizer; ModelError where it is not where it was."""
    name = base or delta.base
    if Path(name).is_absolute() and not Path(model_path(name)).exists():
        raise ModelError(f"the delta's base {name} is not there any more; name where it is with --base")
    return open_model(name, dtype=delta.dtype, device=device), open_tokenizer(name)


def open_both(name: str, *, dtype: str | None = None, device: str | None = None) -> tuple[PreTrainedModel, TextCodec]:
    """A model and its tokenizer, of a model or of a delta's folder; the delta is merged, where its method can be.

    dtype: by default float32, and a delta's own, which "auto" is too; in another one it is made on the CPU first.
    """
    if not is_delta(name):
        return modeling.open_both(name, dtype=dtype or "float32", device=device)
    delta = Delta.load(name)
    same = dtype in (None, "auto", delta.dtype)
    model, codec = open_base(delta, device=device if same else "cpu")
    delta.put_on(model, codec)
    if METHODS[delta.method].MERGE != "none":
        METHODS[delta.method].merge(model)
    if not same:
        modeling.cast_stored(model, getattr(torch, str(dtype)))
        model.to(modeling.device_of(device or modeling.default_device()))  # type: ignore[arg-type]
    return model, codec


def open_delta(name: str) -> PreTrainedModel:
    """The model of a delta's folder, merged where its method can be."""
    return open_both(name)[0]


def remove(model: PreTrainedModel, method: Method, base: Mapping[str, torch.Tensor]) -> None:
    """Turn a model with the method applied into its base again, in place. base: the base's state, as opened."""
    method.merge(model)
    own: Mapping[str, torch.Tensor] = nn.Module.state_dict(model)
    assert own.keys() == base.keys()
    with torch.no_grad():
        for name, before in base.items():
            own[name].copy_(before)
    model.requires_grad_(True)
