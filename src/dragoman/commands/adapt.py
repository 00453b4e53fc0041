"""`dragoman adapt`: train a model for a new language by a method, on a plan."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands import Numbers, Switch, Tags
from dragoman.corpora.languages import language
from dragoman.corpora.mix import pad
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError, DataError
from dragoman.record import claim_folder, environment, write_json
from dragoman.routing.plan import ExpertPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.methods.training import Log
    from dragoman.modeling import TextCodec

OF_METHOD = ("rank", "alpha", "parts", "layers", "routers", "embeddings")
"""Fields that are settings of a method."""
SAVE = {"model": ("model",), "delta": ("delta",), "both": ("model", "delta")}
"""Value of `save` -> folders that are written."""

# Shape letters: N rows, S tokens per row.


@dataclass(frozen=True, kw_only=True)
class Text:
    """What of the corpus is trained on: each segment once alone and once as a translation."""

    source: str = "en"
    """Language translated from."""
    segments: int = 1200
    """Train segments of the target language."""
    parallel: bool = True
    """Also train the translation of each segment from `source`; the loss is on the translation alone."""
    epochs: int = 1
    """Times each segment is seen."""
    block: int = 512
    """Tokens per row; samples that are longer are left out, and the record says how many."""
    batch: int = 4
    """Rows per update."""

    def __post_init__(self) -> None:
        low = {"segments": 1, "epochs": 1, "block": 8, "batch": 1}
        if faults := [
            f"{name} is {getattr(self, name)}, at least {n}" for name, n in low.items() if getattr(self, name) < n
        ]:
            raise ConfigError(f"the text to train on cannot be so: {'; '.join(faults)}")


@dataclass(frozen=True)
class Config:
    """Adapt a model to a language."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    target: str
    """New language, BCP-47."""
    method: str = "expert_tuning"
    """expert_tuning (needs a plan), lora or full."""
    plan: Path | None = None
    """Plan that `dragoman plan` wrote."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    parent: str | None = None
    """Language whose tag the new tag starts as a copy of; default: the plan's parent."""
    rank: int | None = None
    """lora: rank of the updates; default 8."""
    alpha: float | None = None
    """lora: updates are scaled by alpha / rank; default 16."""
    parts: Tags | None = None
    """lora: what gets updates, of attention, experts, shared; default: attention experts."""
    layers: Numbers | None = None
    """lora: model layers; default: those of the plan, without a plan all."""
    routers: bool | None = None
    """expert_tuning: train the routers of the planned layers; default: what the plan says."""
    embeddings: str | None = None
    """expert_tuning: none, tags (the row of the target's tag) or all; default none."""
    learning_rate: float = 0.01
    """Peak learning rate; the default is that of expert tuning on mini-moe, larger models need far less."""
    text: Text = field(default_factory=Text)
    """What is trained on."""
    save: str = "model"
    """model (merged, a plain folder), delta (the trained weights alone, for this base only), or both."""
    out: Path = Path("adapted")
    """New folder for model, delta and record.json."""
    seed: int = 0
    """Of the order of the text."""
    quiet: Switch = False
    """No progress bars."""


    def __post_init__(self) -> None:
        if self.save not in SAVE:
            raise ConfigError(f"save is {', '.join(SAVE)}, not {self.save!r}")


def run(config: Config) -> dict[str, Any]:
    """Train a model for a new language and save it as a plain model folder, or as a delta, with a record."""
    from dragoman.methods import METHODS
    from dragoman.methods.base import settings
    from dragoman.methods.delta import trained_delta
    from dragoman.modeling import open_both, save_model, state_checksum

    if config.method not in METHODS:
        raise ConfigError(f"there is no method {config.method!r}; methods are {', '.join(METHODS)}")
    chosen = settings(config.method, METHODS[config.method], {n: getattr(config, n) for n in OF_METHOD})
    plan = ExpertPlan.load(config.plan) if config.plan else None
    corpus = open_corpus(config.corpus)
    model, codec = open_both(config.model)
    rows = training_rows(codec, corpus, config.target, config.text, config.seed)
    before = state_checksum(model) if "delta" in SAVE[config.save] else ""
    chosen = _with_tag_row(chosen, codec, config.target)
    tag = _copied_tag(config, model, codec, plan)
    out = claim_folder(config.out)

    def keep(model: PreTrainedModel) -> None:
        if before:
            delta = trained_delta(model, config.method, chosen, plan, base=config.model, base_sha256=before, tag=tag)
            delta.save(out / "delta")

    trained = train_arm(model, config.method, plan, rows, config, codec.pad_id, chosen, keep)
    if "model" in SAVE[config.save]:
        save_model(model, codec, out / "model")
    record = environment() | {"command": "adapt", "config": asdict(config), "corpus": corpus.about, **trained}
    write_json(out / "record.json", record)
    return record


def _with_tag_row(chosen: Any, codec: TextCodec, target: str) -> Any:
    """The method's settings with the row of the target's tag, where tags are to train."""
    if getattr(chosen, "embeddings", "none") != "tags":
        return chosen
    row = codec.tag_id(target)
    if row is None:
        raise ConfigError(f"--embeddings tags would have no effect: the vocabulary has no tag for {target}")
    return replace(chosen, tag_rows=(row,))


def _copied_tag(
    config: Config, model: PreTrainedModel, codec: TextCodec, plan: ExpertPlan | None
) -> tuple[str, str] | None:
    """Parent and target, where the target's tag now is a copy of the parent's."""
    from dragoman.modeling import copy_tag

    parent = config.parent or (plan.parent if plan else None)
    if parent and copy_tag(model, codec, parent, config.target):
        return parent, config.target
    if config.parent:
        raise ConfigError(
            f"--parent would have no effect: the vocabulary has no tags for {parent} and {config.target}; leave it out"
        )
    return None


def show(record: dict[str, Any]) -> None:
    """Print what was trained and where it is."""
    log, out = record["log"], record["config"]["out"]
    print(
        f"trained {record['parameters']:,} parameters ({100 * record['trained_share']:.2f} %) for {log['steps']} steps "
        f"in {log['seconds']:.0f} s; loss {log['losses'][0]:.3f} -> {log['losses'][-1]:.3f}; "
        f"the {' and the '.join(SAVE[record['config']['save']])} in {out}"
    )


@dataclass(frozen=True)
class Rows:
    """Packed training text."""

    tokens_NS: np.ndarray
    labels_NS: np.ndarray
    samples: int
    too_long: int
    """Samples left out because they do not fit into a row."""


def training_rows(codec: TextCodec, corpus: NText, target: str, text: Text, seed: int) -> Rows:
    """The target's train segments, alone and as translations, in a seeded order."""
    corpus.require([target, *([text.source] if text.parallel else [])])
    if text.parallel and text.source == target:
        raise ConfigError(
            f"source and target are both {target}; give another text.source, or set text.parallel to false"
        )
    table = corpus.select(split="train", complete=(text.source, target) if text.parallel else (target,))
    if not len(table):
        raise DataError(f"the corpus has no train segment in {target}; give another corpus or target")
    rng = np.random.default_rng(seed)
    chosen = table.take(sorted(rng.permutation(len(table))[: text.segments].tolist()))
    samples: list[tuple[list[int], int]] = [
        ([codec.start_id, *ids, codec.end_id], 0) for ids in codec.encode(_cells(chosen, target))
    ]
    if text.parallel:
        names = {g: language(g).name for g in (text.source, target)}
        samples += codec.pairs(_cells(chosen, text.source), _cells(chosen, target), text.source, target, names)
    fitting = [s for s in samples if len(s[0]) <= text.block]
    if not fitting:
        raise DataError(f"no sample fits into {text.block} tokens; give a larger text.block")
    ordered = [fitting[i] for _ in range(text.epochs) for i in rng.permutation(len(fitting))]
    tokens_NS, labels_NS = pad(ordered, text.block, codec.pad_id)
    return Rows(tokens_NS, labels_NS, len(fitting), len(samples) - len(fitting))


def _cells(table: NText, tag: str) -> Sequence[str]:
    return [cell for cell in table.columns[tag] if cell is not None]


def train_arm(
    model: PreTrainedModel,
    method_name: str,
    plan: ExpertPlan | None,
    rows: Rows,
    config: Config,
    pad_id: int,
    chosen: Any = None,
    keep: Callable[[PreTrainedModel], None] | None = None,
) -> dict[str, Any]:
    """Apply the method, train, merge: the model is plain again and adapted. Returns what was trained and the log.

    chosen: the method's Config; keep: what to do with the trained model before it is merged.
    """
    from dragoman.methods import METHODS, base, training

    method = METHODS[method_name]
    total = sum(p.numel() for p in model.parameters())
    method.apply(model, chosen or method.Config(), plan)
    trained = base.trained(model, total)
    steps = math.ceil(len(rows.tokens_NS) / config.text.batch)
    settings = training.Config(
        learning_rate=config.learning_rate,
        steps=steps,
        batch=config.text.batch,
        micro_batch=config.text.batch,
        warmup=max(1, steps // 10),
        decay=steps // 2,
        weight_decay=0.0,
        seed=config.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        log: Log = training.train(
            model,
            rows.tokens_NS,
            settings,
            labels_NS=rows.labels_NS,
            pad_id=pad_id,
            folder=Path(scratch),
            quiet=config.quiet,
        )
    if keep:
        keep(model)
    method.merge(model)
    model.requires_grad_(True)
    return {
        "parameters": trained.parameters,
        "trained_share": trained.share,
        "samples": rows.samples,
        "samples_too_long": rows.too_long,
        "log": asdict(log),
        "training": asdict(settings),
    }
