"""`dragoman align`: train a model on a task's items in a new language, with its routing aligned to English or without.

Rows are one item each. Methods with a loss of their own (`ra_moe`, `sara`, `router_alignment`) see every item's English
counterpart, as the base routes it; `sft` and all others train on the same rows without it, so that a comparison differs
in the method alone. The plain model and a record are written; `dragoman evaluate --task` compares models on the task.
"""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import numpy as np

from dragoman.commands import Dtype, Numbers, Switch, categorize, tasking
from dragoman.corpora.items import REFERENCE, TaskItems
from dragoman.errors import ConfigError, DataError
from dragoman.record import cache_folder, claim_folder, environment, require_free, sha256, write_json
from dragoman.routing.plan import ExpertPlan, other_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.methods import training
    from dragoman.methods.alignment import AlignmentLoss, Pairs, Sample
    from dragoman.modeling import TextCodec

# Shape letters: N rows, S tokens per row.

OF_METHOD = ("weight", "match", "align", "band", "sequence", "source", "train", "rank")
"""Fields that are settings of a method; `align` is its `items`."""
ASKED = 100
"""Items that are asked in English before training where no categories say how well the model does there."""


@dataclass(frozen=True)
class Config:
    """Train on a task's items, with routing aligned to English."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    target: str
    """Language of the items that are trained on, BCP-47."""
    task: str = "next"
    """next, heading, translation or text, made of the corpus; or a folder of items with answers."""
    method: str = "ra_moe"
    """ra_moe (needs a plan), sara, router_alignment, sft, or any other method, which trains without alignment."""
    plan: Path | None = None
    """Plan that `dragoman plan` wrote."""
    categories: Path | None = None
    """What `dragoman categorize` wrote for these items; needed where ci or right items are aligned."""
    corpus: str = "help"
    """N-way text that a built-in task is made of."""
    split: str | None = None
    """Which split of the corpus; default: train."""
    items: int | None = None
    """At most so many items; default: all."""
    shots: int = 0
    """Examples before every prompt of a task, answered, in its language; none of them is trained on."""
    chat: Switch = False
    """Put prompts into the model's chat template."""
    into: str = ""
    """For translation: the language translated into."""
    weight: float | None = None
    """Of the alignment beside the cross-entropy; default: the method's."""
    match: str | None = None
    """ra_moe: both, mass or allocation."""
    align: str | None = None
    """Items that are aligned: ci, all, or right (sara, router_alignment); default: the method's."""
    band: Numbers = ()
    """First and last model layer that is aligned; default: the method's."""
    sequence: str | None = None
    """Tokens whose routing is averaged: both, prompt or answer."""
    source: str | None = None
    """router_alignment: English side in the trained model or in the base."""
    train: str | None = None
    """routers, lora (routers, and LoRA on attention), full; router_alignment: upstream, routers or full."""
    rank: int | None = None
    """Of LoRA; default 8."""
    learning_rate: float = 3e-4
    """Peak learning rate; of four, dev chose it on mini-moe for ra_moe and sft, for sara it or 0.0001."""
    epochs: int = 3
    """Times each item is seen, in the same order."""
    batch: int = 16
    """Items per update."""
    micro_batch: int = 0
    """Items per pass, of which an update may take several to save memory; 0: all at once."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights; auto: as the model was saved."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """To compute in (autocast): auto takes bf16 where long rows are faster in it; short ones may be in fp32."""
    balance: float = 0.0
    """Weight of a load-balance loss."""
    block: int = 512
    """Most tokens of an item; longer ones are left out, and the record says how many."""
    references: Path | None = None
    """Folder where the base's English routing is kept; default: in the user's cache."""
    out: Path = Path("aligned")
    """New folder for the model and record.json."""
    seed: int = 0
    """Of the order of the items and of training."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        low = {"epochs": 1, "batch": 1, "micro_batch": 0, "block": 8, "seed": 0}
        faults = [f"{k} is {getattr(self, k)}, at least {n}" for k, n in low.items() if getattr(self, k) < n]
        if self.shots < 0 or (self.items is not None and self.items < 1):
            faults.append(f"items is {self.items} and shots {self.shots}; at least 1 and 0")
        if not self.learning_rate > 0:
            faults.append(f"with the learning rate {self.learning_rate} nothing trains; it is a number above 0")
        if self.target == REFERENCE:
            faults.append("the target is English, which is what others are aligned with")
        if self.band and len(self.band) != 2:
            faults.append(f"the band takes two layers, the first and the last, not {len(self.band)}")
        if faults:
            raise ConfigError("; ".join(faults))


def run(config: Config) -> dict[str, Any]:
    """Train on the target's items, save the plain model and a record."""
    from dragoman.methods import training
    from dragoman.modeling import model_checksum, most_positions, open_both, save_model

    method_config = settings_of(config)
    _training(config, config.batch)  # refuses what cannot be, before anything is read
    require_free(config.out)
    plan = ExpertPlan.load(config.plan) if config.plan else None
    settings: dict[str, Any] = {"corpus": config.corpus, "split": config.split, "number": config.items}
    known = categorize.read_categories(config.categories) if config.categories else {}
    languages = tuple(known.get("labels", ())) or (config.target,)  # items that are made depend on all of them
    settings |= {"into": config.into, "shots": config.shots, "chat": config.chat}
    items = tasking.open_task(config.task, languages, **settings)
    checksum = model_checksum(config.model)
    labels = categorize.labels_for(known, config.target, items, checksum) if known else []
    told = list(known["advice"][config.target]) if known else []
    told += other_weights(plan.model_sha256, checksum, "plan") if plan else []
    model, codec = open_both(config.model, dtype=config.dtype, device=config.device)
    training.require_trainable(model)
    pairs, order, too_long = pairs_of(codec, items, config, labels, most_positions(model))
    settings_of_loop = _training(config, len(order))
    told += in_english(model, codec, items, order[:ASKED]) if not known else []
    for sentence in told:
        print(f"before training: {sentence}", file=sys.stderr)
    loss, counts = prepared(model, method_config, plan, pairs, config)
    out = claim_folder(config.out)
    log = train_items(model, loss, pairs, config, settings_of_loop)
    save_model(model, codec, out / "model")
    record = environment() | {"command": "align", "config": asdict(config), "method": asdict(method_config)}
    record |= {"task": items.name, "about": items.about, "items": len(order), "items_too_long": too_long}
    record |= {"items_sha256": items.checksum(), "advice": told, **counts, **log}
    record |= {"model_sha256": checksum, "plan": plan and asdict(plan)}
    record |= {"categories_sha256": sha256(Path(known["file"])) if known else None}
    write_json(out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print what was trained and where it is."""
    log, config = record["log"], record["config"]
    found = {"loss": log["losses"], "alignment": log["extra_losses"] if record["aligned"] else []}
    ends = [f"{name} {values[0]:.3g} -> {values[-1]:.3g}" for name, values in found.items() if values]
    print(
        f"{config['method']}: {record['items']} items in {config['target']}, {record['aligned']} aligned; trained "
        f"{record['parameters']:,} parameters ({100 * record['trained_share']:.2f} %) for {log['steps']} steps in "
        f"{log['seconds']:.0f} s; {', '.join(ends)}; the model is in {config['out']}/model"
    )


def in_english(model: PreTrainedModel, codec: TextCodec, items: TaskItems, which: np.ndarray) -> list[str]:
    """That the model may be at chance in English on these items; no sentence where no item fits or is judged."""
    if items.judged in ("text", "translation"):
        return []
    from dragoman.modeling import context_length

    asked, context = [items.items[REFERENCE][n] for n in which], context_length(model)
    tokens = tasking.lengths(codec, replace(items, items={REFERENCE: asked}), REFERENCE)
    if not (asked := [item for item, n in zip(asked, tokens, strict=True) if n <= context]):
        return []
    some, task = replace(items, items={REFERENCE: asked}), tasking.task_of(items)
    points = tasking.points_of(task, tasking.answers_of(model, codec, some, task, REFERENCE), asked)
    return categorize.of_english(categorize.wilson(int((points == 1).sum()), len(points)), task.chance(asked))


def settings_of(config: Config) -> Any:
    """The method's own Config; ConfigError for an unknown method or settings that it does not have."""
    from dragoman.methods import METHODS

    if config.method not in METHODS:
        raise ConfigError(f"there is no method {config.method!r}; methods are {', '.join(METHODS)}")
    given = {name: value for name in OF_METHOD if (value := getattr(config, name)) not in (None, ())}
    given = {"items" if name == "align" else name: value for name, value in given.items()}
    kind = METHODS[config.method].Config
    known = get_type_hints(kind)
    if idle := sorted(set(given) - set(known)):
        flags = ", ".join("--align" if name == "items" else f"--{name}" for name in idle)
        raise ConfigError(f"{flags} would have no effect on the method {config.method}; leave them out")
    words = {name: get_args(known[name]) for name, value in given.items() if isinstance(value, str)}
    flag = {"items": "align"}
    if wrong := [
        f"{flag.get(n, n)} is one of {', '.join(w)}, not {given[n]!r}" for n, w in words.items() if given[n] not in w
    ]:
        raise ConfigError(f"the method {config.method} has no such setting: {'; '.join(wrong)}")
    return kind(**given)


def pairs_of(
    codec: TextCodec, items: TaskItems, config: Config, labels: list[str], positions: int | None = None
) -> tuple[Pairs, np.ndarray, int]:
    """Items that fit block and positions with their English counterparts, in a seeded order; the order; how many did
    not fit."""
    from dragoman.methods.alignment import Pairs

    samples: dict[str, list[Sample]] = {
        g: tasking.samples_of(codec, items, g) for g in (REFERENCE, config.target)
    }
    lengths_N = np.array([[len(ids) for ids, _ in samples[g]] for g in samples]).max(axis=0)
    most = min(config.block, positions or config.block)
    fitting_N = np.flatnonzero(lengths_N <= most)
    if not len(fitting_N):
        raise DataError(f"no item fits into {most} tokens; give a larger block, or other items")
    order = np.random.default_rng(config.seed).permutation(fitting_N)
    target, english = ([samples[g][n] for n in order] for g in (config.target, REFERENCE))
    width = max(len(ids) for ids, _ in target)
    ordered = [labels[n] for n in order] if labels else []
    return Pairs(target, english, codec.pad_id, width, ordered), order, len(lengths_N) - len(order)


def prepared(
    model: PreTrainedModel, method_config: Any, plan: ExpertPlan | None, pairs: Pairs, config: Config
) -> tuple[AlignmentLoss | None, dict[str, Any]]:
    """The method's loss, made on the base, and the model with the method applied; how much trains and is aligned."""
    from dragoman.methods import METHODS, base

    method = METHODS[config.method]
    total = sum(p.numel() for p in model.parameters())
    loss = None
    if isinstance(method, base.LossMethod):
        folder = config.references or cache_folder() / "references"
        loss = method.extra_loss(model, method_config, plan, pairs, folder)
    method.apply(model, method_config, plan)
    trained = base.trained(model, total)
    counts = {"parameters": trained.parameters, "trained_share": trained.share}
    return loss, counts | {"aligned": int(loss.aligned_N.sum()) if loss else 0}


def train_items(
    model: PreTrainedModel, loss: AlignmentLoss | None, pairs: Pairs, config: Config, settings: training.Config
) -> dict[str, Any]:
    """Train on the target side of the pairs and merge: the model is plain again. Returns the log and its settings."""
    from dragoman.methods import METHODS, training
    from dragoman.modeling import moe_layers

    tokens_NS, labels_NS = rows_of(pairs)
    layers = loss.layers if loss else moe_layers(model) if config.balance else ()
    with tempfile.TemporaryDirectory() as scratch:
        log = training.train(
            model,
            tokens_NS,
            settings,
            layers=layers,
            extra_loss=loss,
            labels_NS=labels_NS,
            pad_id=pairs.pad_id,
            folder=Path(scratch),
            quiet=config.quiet,
        )
    METHODS[config.method].merge(model)
    model.requires_grad_(True)
    return {"log": asdict(log), "training": asdict(settings)}


def _training(config: Config, rows: int) -> training.Config:
    from dragoman.methods import training

    steps = math.ceil(config.epochs * rows / config.batch)
    return training.Config(
        learning_rate=config.learning_rate,
        steps=steps,
        batch=config.batch,
        micro_batch=config.micro_batch or config.batch,
        precision=config.precision,
        warmup=max(1, steps // 10),
        decay=steps // 2,
        weight_decay=0.0,
        balance=config.balance,
        seed=config.seed,
    )


def rows_of(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The target items one a row, with filler behind: tokens int32 [N, S], labels int64 [N, S] of the answers alone."""
    shape = len(pairs.target), pairs.width
    tokens_NS, labels_NS = np.full(shape, pairs.pad_id, dtype=np.int32), np.full(shape, -100, dtype=np.int64)
    for n, (ids, silent) in enumerate(pairs.target):
        tokens_NS[n, : len(ids)] = ids
        labels_NS[n, silent : len(ids)] = ids[silent:]
    return tokens_NS, labels_NS
