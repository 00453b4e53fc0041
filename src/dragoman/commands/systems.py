"""The systems of an evaluation: which there are, whether each can be scored, and on what text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.commands.scoring import cells, prompts_of
from dragoman.commands.tasking import require_room
from dragoman.corpora.choices import Choice, read_choices
from dragoman.corpora.items import TaskItems, spread
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError, DataError, UserError
from dragoman.record import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

Installed = Callable[["PreTrainedModel"], AbstractContextManager[Any]]


def systems_of(model: str, steer: Sequence[str], against: Sequence[str]) -> dict[str, tuple[str, Installed]]:
    """Label -> model and what is put on it while it is scored: the model steered by each file, as it is, the others.

    Raises ConfigError for two files of one name, DataError for a file that is none.
    """
    if not steer:
        return {name: (name, nullcontext) for name in (model, *against)}
    from dragoman.commands.steer import opened
    from dragoman.methods.steer import steered

    labels = {f"{model}+{Path(file).stem}": opened(Path(file), model) for file in steer}
    if len(labels) < len(steer):
        raise ConfigError(f"steering files are told apart by their names, and {', '.join(steer)} share one; rename one")
    found: dict[str, tuple[str, Installed]] = {
        label: (model, partial(steered, how=how)) for label, how in labels.items()
    }
    return found | {name: (name, nullcontext) for name in (model, *against)}


def opened(name: str, config: Any) -> tuple[PreTrainedModel, TextCodec]:
    """A model or a delta with its tokenizer, of the dtype and on the device of the settings."""
    from dragoman.methods.delta import open_both

    dtype = None if config.dtype == type(config).dtype else config.dtype  # that of a model or a delta differs
    return open_both(name, dtype=dtype, device=config.device)


# Before anything is scored


@dataclass(frozen=True)
class Asked:
    """What every model is asked beside bits per byte, for which any text is short enough."""

    pairs: Mapping[str, NText]
    choices: Mapping[str, Sequence[Choice]]
    items: TaskItems | None


def choices_of(path: Path | None, most: int) -> dict[str, Sequence[Choice]]:
    """Multiple choice by language, at most so many items of each, spread evenly over the file."""
    return {g: spread(items, most) for g, items in read_choices(Path(path)).items()} if path else {}


def require_ready(model: PreTrainedModel, codec: TextCodec, installed: Sequence[Installed], asked: Asked) -> None:
    """Before anything is scored, raise what a steering file that does not fit raises, or text without room."""
    for how in installed:
        with how(model):
            pass
    _require_room(model, codec, asked)


def require_others(names: Sequence[str], asked: Asked) -> None:
    """Before anything is scored, raise all that config and tokenizer of models that come later say against it."""
    from dragoman.methods.delta import base_of
    from dragoman.modeling import open_tokenizer, outline

    faults = []
    for name in names:
        try:
            base = base_of(name)
            codec, model = open_tokenizer(base), outline(base)
            _require_room(model, codec, asked)
        except UserError as e:
            faults.append(str(e) if name in str(e) else f"{name}: {e}")
    if faults:
        raise ConfigError(f"nothing was scored: {'; '.join(faults)}")


def _require_room(model: PreTrainedModel, codec: TextCodec, asked: Asked) -> None:
    """DataError that counts, by direction and language, the texts that leave no room in the model's context."""
    from dragoman.modeling import context_length

    context, faults = context_length(model), []
    for label, table in asked.pairs.items():
        sizes = map(len, prompts_of(codec, table))
        if full := [key for key, size in zip(table.keys, sizes, strict=True) if size >= context]:
            faults.append(f"{len(full)} of {len(table)} prompts of {label}, as {full[0]}")
    for g, chosen in asked.choices.items():
        sizes = map(len, codec.encode([item.context for item in chosen]))
        longest = [max(map(len, codec.encode(item.options)), default=0) for item in chosen]
        if full := [x.key for x, size, o in zip(chosen, sizes, longest, strict=True) if size + o > context]:
            faults.append(f"{len(full)} of {len(chosen)} multiple-choice items in {g}, as {full[0]}")
    if faults:
        raise DataError(
            f"the model's context of {context} tokens has no room for {'; '.join(faults)}; leave them out, or shorten "
            "them"
        )
    if asked.items is not None:
        require_room(model, codec, asked.items)


# What the record says


def text_checksums(
    pairs: Mapping[str, NText], rows: Mapping[str, NText], choices: Mapping[str, Sequence[Choice]]
) -> dict[str, dict[str, str]]:
    """What was scored, as checksums of texts in order, so that two records can tell whether theirs is the same.

    pairs: label -> columns source and target, or the target alone; rows: language -> rows of likelihoods.
    """
    columns: dict[str, dict[str, Sequence[Any]]] = {
        "references": {label: cells(table, table.languages[-1]) for label, table in pairs.items()},
        "sources": {label: cells(t, t.languages[0]) for label, t in pairs.items() if len(t.languages) > 1},
        "likelihoods": {g: cells(table, g) for g, table in rows.items()},
        "choices": {g: [asdict(item) for item in items] for g, items in choices.items()},
    }
    return {kind: {label: sha256(json.dumps(column)) for label, column in by.items()} for kind, by in columns.items()}
