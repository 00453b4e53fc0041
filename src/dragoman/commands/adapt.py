"""`dragoman adapt`: train a model for a new language by a method, on a plan.

The model is evaluated on dev text before, after and, for a guard, while it trains; `outcome` of the record is what the
target gained, the worst that a known language lost, and the trained share (docs/adapting.md).
"""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dragoman.commands import Switch, Tags, forgetting
from dragoman.commands.forgetting import Evaluation, Evaluator, share_of
from dragoman.commands.training_text import Rows, Text, training_rows
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError
from dragoman.record import claim_folder, environment, read_json, write_json
from dragoman.routing.plan import ExpertPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.methods import training
    from dragoman.methods.guard import Guard, Measured
    from dragoman.modeling import MoELayer, TextCodec

__all__ = ["Config", "Rows", "Text", "run", "show", "train_arm", "training_rows"]

CHANGEABLE = ("resume", "dry_run", "quiet", "out", "checkpoint_minutes", "checkpoint_steps", "report_to")
"""What may change when a run goes on: no loss depends on it."""


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
    vocabulary: int = 0
    """New entries for the target, learnt from its train text; their rows start as means of the pieces they replace."""
    balance: float = 0.0
    """Weight of the load-balance loss of the routers; balance is measured with or without."""
    text: Text = field(default_factory=Text)
    """What is trained on."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """What is measured on dev text."""
    guard: str = ""
    """Largest loss of a known language, such as 1%: more bits per byte than that end the training."""
    guard_action: Literal["stop", "rollback"] = "stop"
    """What the guard leaves: the weights as they are, or those of the last evaluation within the limit."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the weights; auto: as the model was saved."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """To compute in (autocast): auto takes bf16 where the machine is faster in it."""
    micro_batch: int = 0
    """Rows per forward pass, a divisor of text.batch; less needs less memory. Default: all of text.batch."""
    gradient_checkpointing: Switch = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    trunk_cache: Path | None = None
    """Folder for what enters the lowest trained layer: computed once, read from there in every epoch. Each epoch then
    has the same rows, in an order of its own."""
    trunk_dtype: Literal["bf16", "fp32"] = "bf16"
    """How numbers of the trunk cache are kept; fp32 takes twice the disk and rounds nothing."""
    report_to: Tags = ()
    """Trackers that also get the curves: tensorboard, wandb."""
    checkpoint_minutes: float = 0.0
    """Write a checkpoint to go on from every so often; 0: none."""
    checkpoint_steps: int = 0
    """Write one after every so many updates too."""
    resume: Switch = False
    """Go on from the last whole checkpoint in `out`, or from the start where there is none yet."""
    dry_run: Switch = False
    """Only say what would train, tensor by tensor, and what time and memory it would take; nothing is written."""
    out: Path = Path("adapted")
    """New folder for the model and record.json."""
    seed: int = 0
    """Of the order of the text."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        faults = []
        if self.guard_action != "stop" and not self.guard:
            faults.append("guard_action has no effect without --guard")
        if self.guard and not self.evaluation.segments:
            faults.append("--guard has no effect without evaluation.segments")
        if self.resume and self.dry_run:
            faults.append("--resume has no effect on a dry run")
        if self.trunk_dtype != "bf16" and not self.trunk_cache:
            faults.append("trunk_dtype has no effect without --trunk-cache")
        if faults:
            raise ConfigError(f"the adaptation cannot run so: {'; '.join(faults)}; leave out one or the other")


def run(config: Config) -> dict[str, Any]:
    """Train a model for a new language and save it as a plain model folder, with a record."""
    from dragoman.methods import METHODS
    from dragoman.methods.base import LossMethod
    from dragoman.modeling import model_checksum, open_both, save_model

    if config.method not in METHODS:
        raise ConfigError(f"there is no method {config.method!r}; methods are {', '.join(METHODS)}")
    if isinstance(METHODS[config.method], LossMethod):
        raise ConfigError(f"the method {config.method} trains on parallel items of a task; use `dragoman align`")
    plan = ExpertPlan.load(config.plan) if config.plan else None
    corpus = open_corpus(config.corpus)
    model, codec = open_both(config.model, dtype=config.dtype, device=config.device)
    base_codec, codec = codec, _with_vocabulary(codec, config, corpus)
    rows = training_rows(codec, corpus, config.target, config.text, config.seed, same=bool(config.trunk_cache))
    asked = bool(config.guard or config.evaluation.every or config.evaluation.patience)
    texts = forgetting.dev_texts(corpus, config.target, config.evaluation, plan, asked)
    _copy_parents_tag(model, codec, config, plan)
    if config.dry_run:
        from dragoman.commands.rehearsal import rehearse

        return rehearse(model, base_codec, codec, plan, rows, config, texts)
    stamp = _stamp(config, plan) | {"model_sha256": model_checksum(config.model), "corpus_sha256": corpus.checksum()}
    if finished := _claim(config, stamp):
        return finished
    codecs = {"codec": codec, "base_codec": base_codec}
    trained = train_arm(model, config.method, plan, rows, config, codec.pad_id, texts=texts, **codecs)
    save_model(model, codec, config.out / "model")
    record = environment() | {"command": "adapt", "config": asdict(config), "corpus": corpus.about, **trained}
    write_json(config.out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """Print what was trained, what that gained and cost, and where the model is."""
    if record.get("dry_run"):
        from dragoman.commands.rehearsal import text

        print(text(record))
        return
    log, out = record["log"], record["config"]["out"]
    print(
        f"trained {record['parameters']:,} parameters ({100 * record['trained_share']:.2f} %) for {log['steps']} steps "
        f"in {log['seconds']:.0f} s; loss {log['losses'][0]:.3f} -> {log['losses'][-1]:.3f}; "
        f"the model is in {out}/model"
    )
    if stopped := log.get("stopped"):
        weights = f"; the weights are those of step {stopped['weights_of']}" if "weights_of" in stopped else ""
        print(f"stopped at step {stopped['step']}: {stopped['why']}{weights}")
    if record.get("outcome"):
        print(forgetting.line(record["outcome"]))


def _with_vocabulary(codec: TextCodec, config: Config, corpus: NText) -> TextCodec:
    from dragoman.modeling import extended, new_pieces

    if not config.vocabulary:
        return codec
    corpus.require([config.target])
    return extended(codec, new_pieces(codec, corpus.texts(config.target, "train"), config.vocabulary))


def _copy_parents_tag(model: PreTrainedModel, codec: TextCodec, config: Config, plan: ExpertPlan | None) -> None:
    from dragoman.modeling import copy_tag

    parent = config.parent or (plan.parent if plan else None)
    if parent and not copy_tag(model, codec, parent, config.target) and config.parent:
        raise ConfigError(
            f"--parent would have no effect: the vocabulary has no tags for {parent} and {config.target}; leave it out"
        )


def _stamp(config: Config, plan: ExpertPlan | None) -> dict[str, Any]:
    fields = {k: v for k, v in asdict(config).items() if k not in CHANGEABLE} | {"plan": plan and asdict(plan)}
    return json.loads(json.dumps(fields, default=str))


def _claim(config: Config, stamp: dict[str, Any]) -> dict[str, Any] | None:
    """Make the output folder, or find there what --resume goes on with; the record of a run that is done already."""
    path = config.out / "config.json"
    if not config.resume or not config.out.exists():
        claim_folder(config.out)
        write_json(path, stamp)
        return None
    before = read_json(path)
    if changed := [f"{k}: {before.get(k)} -> {stamp[k]}" for k in stamp if before.get(k) != stamp[k]]:
        raise ConfigError(f"the run in {config.out} was another ({'; '.join(changed)}); resume with the old settings")
    done = config.out / "record.json"
    return read_json(done) if done.is_file() else None


def train_arm(
    model: PreTrainedModel,
    method_name: str,
    plan: ExpertPlan | None,
    rows: Rows,
    config: Config,
    pad_id: int,
    *,
    codec: TextCodec | None = None,
    base_codec: TextCodec | None = None,
    texts: dict[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Apply the method, train, merge: the model is plain again and adapted. Returns what was trained and the log.

    With a codec and dev texts (language -> texts) it is evaluated too; where the base has another codec, the model gets
    the vocabulary of the new one. Checkpoints, where the config asks for them, are in its
    `out`.
    """
    from dragoman.methods import METHODS, base
    from dragoman.modeling import device_memory_mb, grow

    method, settings = METHODS[method_name], training_settings(config, rows)
    evaluator = Evaluator(texts, settings.bf16) if codec and texts else None
    measured = evaluator(model, base_codec or codec) if evaluator and codec else None
    measure = functools.partial(evaluator, model, codec) if evaluator and codec else None
    total = sum(p.numel() for p in model.parameters())
    if codec and base_codec:
        grow(model, base_codec, codec)
    method.apply(model, method.Config(), plan)
    trained = base.trained(model, total)
    guard = _guard(config, settings, measure, measured) if measure and measured else None
    log, difference = _trained_log(model, rows, settings, config, guard, pad_id)
    method.merge(model)
    model.requires_grad_(True)
    return {
        "parameters": trained.parameters,
        "trained_share": trained.share,
        "samples": rows.samples,
        "samples_too_long": rows.too_long,
        "tokens_by_source": rows.tokens,
        "log": asdict(log),
        "outcome": forgetting.outcome(asdict(log), config.target, trained.share),
        "dev_sha256": evaluator.checksums if evaluator else {},
        "training": asdict(settings),
        "device_memory_mb": device_memory_mb(model),
        "trunk_difference": difference,
    }


def _trained_log(
    model: PreTrainedModel, rows: Rows, settings: training.Config, config: Config, guard: Guard | None, pad_id: int
) -> tuple[training.Log, float | None]:
    """The log, and how far logits from the trunk cache were from full ones, where there is one."""
    from dragoman.methods import training

    with _trunk(model, rows, config, settings, pad_id) as difference, _checkpoint_folder(config) as folder:
        log = training.train(
            model,
            rows.tokens_NS,
            settings,
            layers=_running_routers(model, config),
            labels_NS=rows.labels_NS,
            positions_NS=rows.positions_NS,
            guard=guard,
            pad_id=pad_id,
            folder=Path(folder),
            resume=next(iter(training.checkpoints(Path(folder))[::-1]), None),
            quiet=config.quiet,
        )
    return log, difference


def _checkpoint_folder(config: Config) -> Any:
    kept = bool(config.checkpoint_minutes or config.checkpoint_steps or config.report_to)
    return nullcontext(config.out / "checkpoints") if kept else tempfile.TemporaryDirectory()


def _running_routers(model: PreTrainedModel, config: Config) -> tuple[MoELayer, ...]:
    """The MoE layers to measure: those of a cached trunk do not run."""
    from dragoman.modeling import find_routers, lowest_trained, moe_layers

    layers = moe_layers(model) if find_routers(model) else ()
    lowest = lowest_trained(model) if config.trunk_cache else 0
    return tuple(layer for layer in layers if layer.layer_id >= lowest)


def _trunk(model: PreTrainedModel, rows: Rows, config: Config, settings: training.Config, pad_id: int) -> Any:
    """The trunk cache around a training, or nothing; gives the difference of cached from full logits, or None."""
    from dragoman.methods import rows as read
    from dragoman.methods import trunk

    if not config.trunk_cache:
        return nullcontext()
    text = read.Rows(rows.tokens_NS, rows.labels_NS, pad_id, len(rows.tokens_NS), rows.positions_NS)
    cache = trunk.Config(folder=config.trunk_cache, dtype=config.trunk_dtype)
    announce = functools.partial(print, file=sys.stderr)
    return trunk.cached_trunk(model, text, cache, batch=settings.micro_batch, bf16=settings.bf16, announce=announce)


def training_settings(config: Config, rows: Rows) -> training.Config:
    """The loop's settings for these rows: one pass, a tenth of it warm-up and half of it decay."""
    from dragoman.methods import training

    steps = math.ceil(len(rows.tokens_NS) / config.text.batch)
    return training.Config(
        learning_rate=config.learning_rate,
        steps=steps,
        batch=config.text.batch,
        micro_batch=config.micro_batch or config.text.batch,
        warmup=max(1, steps // 10),
        decay=steps // 2,
        weight_decay=0.0,
        precision=config.precision,
        balance=config.balance,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=config.seed,
        checkpoint_minutes=config.checkpoint_minutes,
        checkpoint_steps=config.checkpoint_steps,
        report_to=tuple(config.report_to),
    )


def evaluation_interval(config: Config, steps: int) -> int:
    """Updates between evaluations; 0 where only the end is evaluated."""
    asked = config.guard or config.evaluation.patience
    return config.evaluation.every or (max(1, steps // 10) if asked else 0)


def _guard(config: Config, settings: training.Config, measure: Any, measured: Measured) -> Guard:
    from dragoman.methods.guard import Guard

    return Guard(
        measure=measure,
        base=measured,
        target=config.target,
        limit=share_of(config.guard) if config.guard else None,
        action=config.guard_action,
        every=evaluation_interval(config, settings.steps),
        patience=config.evaluation.patience,
    )
