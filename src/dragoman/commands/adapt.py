"""`dragoman adapt`: train a model for a new language by a method, on a plan."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dragoman.commands import Switch
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
    """expert_tuning (needs a plan) or full."""
    plan: Path | None = None
    """Plan that `dragoman plan` wrote."""
    corpus: str = "help"
    """N-way text: the built-in corpus, or a .tsv, .jsonl (also .gz) or Moses prefix."""
    parent: str | None = None
    """Language whose tag the new tag starts as a copy of; default: the plan's parent."""
    learning_rate: float = 0.01
    """Peak learning rate; the default is that of expert tuning on mini-moe, larger models need far less."""
    text: Text = field(default_factory=Text)
    """What is trained on."""
    out: Path = Path("adapted")
    """New folder for the model and record.json."""
    seed: int = 0
    """Of the order of the text."""
    quiet: Switch = False
    """No progress bars."""


def run(config: Config) -> dict[str, Any]:
    """Train a model for a new language and save it as a plain model folder, with a record."""
    from dragoman.methods import METHODS
    from dragoman.methods.base import LossMethod
    from dragoman.modeling import copy_tag, open_both, save_model

    if config.method not in METHODS:
        raise ConfigError(f"there is no method {config.method!r}; methods are {', '.join(METHODS)}")
    if isinstance(METHODS[config.method], LossMethod):
        raise ConfigError(f"the method {config.method} trains on parallel items of a task; use `dragoman align`")
    plan = ExpertPlan.load(config.plan) if config.plan else None
    corpus = open_corpus(config.corpus)
    model, codec = open_both(config.model)
    rows = training_rows(codec, corpus, config.target, config.text, config.seed)
    parent = config.parent or (plan.parent if plan else None)
    if parent and not copy_tag(model, codec, parent, config.target) and config.parent:
        raise ConfigError(
            f"--parent would have no effect: the vocabulary has no tags for {parent} and {config.target}; leave it out"
        )
    out = claim_folder(config.out)
    trained = train_arm(model, config.method, plan, rows, config, codec.pad_id)
    save_model(model, codec, out / "model")
    record = environment() | {"command": "adapt", "config": asdict(config), "corpus": corpus.about, **trained}
    write_json(out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print what was trained and where it is."""
    log, out = record["log"], record["config"]["out"]
    print(
        f"trained {record['parameters']:,} parameters ({100 * record['trained_share']:.2f} %) for {log['steps']} steps "
        f"in {log['seconds']:.0f} s; loss {log['losses'][0]:.3f} -> {log['losses'][-1]:.3f}; "
        f"the model is in {out}/model"
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
) -> dict[str, Any]:
    """Apply the method, train, merge: the model is plain again and adapted. Returns what was trained and the log."""
    from dragoman.methods import METHODS, base, training

    method = METHODS[method_name]
    total = sum(p.numel() for p in model.parameters())
    method.apply(model, method.Config(), plan)
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
