"""`dragoman adapt`: train a model for a new language by a method, on a plan.

The model is evaluated on dev text before, after and, for a guard, while it trains; `outcome` of the record is what the
target gained, the worst that a known language lost, and the trained share (docs/adapting.md).
"""

from __future__ import annotations

import json
import sys
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dragoman.commands import Dtype, Numbers, Switch, Tags, forgetting
from dragoman.commands.arms import train_arm
from dragoman.commands.forgetting import Evaluation
from dragoman.commands.resuming import claim, unclaim_after
from dragoman.commands.training_text import Rows, Text, require_positions, training_rows
from dragoman.corpora.ntext import NText
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError
from dragoman.record import environment, sha256, write_json
from dragoman.routing.plan import ExpertPlan, other_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.modeling import TextCodec

__all__ = ["Config", "Rows", "Text", "run", "show", "train_arm", "training_rows"]

OF_METHOD = ("rank", "alpha", "parts", "layers", "routers", "embeddings")
"""Fields that are settings of a method."""
SAVE = {"model": ("model",), "delta": ("delta",), "both": ("model", "delta")}
"""Value of `save` -> folders that are written."""
CHANGEABLE = (
    "resume",
    "dry_run",
    "quiet",
    "out",
    "checkpoint_minutes",
    "checkpoint_steps",
    "report_to",
    "expert_parallel",
    "gradient_checkpointing",
    "device",
)
"""What may change when a run goes on: no loss depends on it but for rounding (`precision auto` goes by the device)."""
MAX_REPEATED = 0.05
"""Share of dev texts that may be train texts too before it is told."""


@dataclass(frozen=True)
class Config:
    """Adapt a model to a language."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    target: str
    """New language, BCP-47."""
    method: str = "expert_tuning"
    """expert_tuning (needs a plan), lora, full; mix_moe and moe_lpr take the flags of `dragoman mix train`, ra_moe,
    sara and router_alignment those of `dragoman align`."""
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
    """What the guard leaves: the weights as they are (with a patience, those of the best evaluation within the limit),
    or those of the last evaluation within the limit."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights; auto: as the model was saved."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """To compute in (autocast): auto takes bf16 where the machine is faster in it."""
    micro_batch: int = 0
    """Rows per forward pass, a divisor of text.batch; less needs less memory. Default: all of text.batch."""
    gradient_checkpointing: Switch = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    expert_parallel: Switch = False
    """Under torchrun: keep each expert in one process and send tokens there, in place of gathering every layer's
    experts in all; for classes that transformers has a plan for."""
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
    save: str = "model"
    """model (merged, a plain folder), delta (the trained weights alone, for this base only), or both."""
    out: Path = Path("adapted")
    """New folder for model, delta and record.json."""
    seed: int = 0
    """Of the order of the text."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        faults = []
        if self.save not in SAVE:
            raise ConfigError(f"save is {', '.join(SAVE)}, not {self.save!r}")
        if self.vocabulary and "delta" in SAVE[self.save]:
            faults.append("a delta fits its base alone, so it cannot hold --vocabulary (--save model can)")
        if self.guard_action != "stop" and not self.guard:
            faults.append("guard_action has no effect without --guard; give both or none")
        if self.guard:
            forgetting.share_of(self.guard)
        if self.text.source != "en" and not (self.text.parallel and self.text.segments):
            faults.append(f"text.source {self.text.source} has no effect without translations from it")
        if not 0 <= self.seed < 2**32:
            faults.append(f"seed is 0 or more and less than 2 ** 32, not {self.seed}")
        if self.vocabulary < 0:
            faults.append(f"vocabulary is 0 or more new pieces, not {self.vocabulary}")
        if self.guard and not self.evaluation.segments:
            faults.append("--guard has no effect without evaluation.segments; give both or none")
        if self.resume and self.dry_run:
            faults.append("--resume has no effect on a dry run; leave out one of them")
        if not self.learning_rate > 0:
            faults.append(f"with the learning rate {self.learning_rate} nothing trains; it is a number above 0")
        if self.trunk_dtype != "bf16" and not self.trunk_cache:
            faults.append("trunk_dtype has no effect without --trunk-cache; give both or none")
        if faults:
            raise ConfigError(f"the adaptation cannot run so: {'; '.join(faults)}")


def run(config: Config) -> dict[str, Any]:
    """Train a model for a new language and save it as a plain model folder, or as a delta, with a record.

    Under torchrun the processes share the training; the first one writes.
    """
    from dragoman.methods import sharding

    if sharding.started() > 1 and (odd := [n for n in ("dry_run", "trunk_cache") if getattr(config, n)]):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in odd)
        raise ConfigError(f"{flags} is for one process, and torchrun started several; leave out one or the other")
    with sharding.joined():
        sharding.rows_each(config.text.batch, config.micro_batch or config.text.batch)
        sharding.require_several(config.expert_parallel)
        return _adapted(config)


def _adapted(config: Config) -> dict[str, Any]:
    from dragoman.commands.rehearsal import rehearse
    from dragoman.methods import sharding
    from dragoman.methods.delta import trained_delta
    from dragoman.modeling import state_checksum

    chosen = _chosen(config)
    plan = ExpertPlan.load(config.plan) if config.plan else None
    corpus = open_corpus(config.corpus)
    model, codec = _opened(config)
    base_codec, codec = codec, _with_vocabulary(codec, config, corpus)
    rows = training_rows(codec, corpus, config.target, config.text, config.seed, same=bool(config.trunk_cache))
    asked = bool(config.guard or config.evaluation.every or config.evaluation.patience)
    texts = forgetting.dev_texts(corpus, config.target, config.evaluation, plan, asked)
    sharding.on_first(lambda: _say_what_repeats(corpus, config.target, texts))
    before = state_checksum(model) if "delta" in SAVE[config.save] and sharding.first() else ""
    chosen = _with_tag_row(chosen, codec, config.target)
    tag = _copied_tag(config, model, codec, plan)
    if config.dry_run:
        return rehearse(model, base_codec, codec, plan, rows, config, texts, chosen)
    stamp = _stamp(config, plan, corpus)
    if finished := sharding.on_first(lambda: _claim(config, stamp)):
        return finished
    sharding.on_first(lambda: _say_where_from(plan, stamp["model_sha256"]))

    def keep(model: PreTrainedModel) -> None:
        if before:
            delta = trained_delta(model, config.method, chosen, plan, base=config.model, base_sha256=before, tag=tag)
            delta.save(config.out / "delta")

    given = {"codec": codec, "base_codec": base_codec, "texts": texts, "chosen": chosen, "keep": keep}
    try:
        trained = train_arm(model, config.method, plan, rows, config, codec.pad_id, **given)
    except BaseException as e:
        unclaim_after(e, config.out)
        raise
    about = {"command": "adapt", "processes": sharding.started(), "config": asdict(config), "corpus": corpus.about}
    record = environment() | about | trained
    if sharding.first():
        _write(model, codec, config, record)
    return record


def _write(model: PreTrainedModel, codec: TextCodec, config: Config, record: dict[str, Any]) -> None:
    from dragoman.modeling import save_model

    if "model" in SAVE[config.save]:
        save_model(model, codec, config.out / "model")
    write_json(config.out / "record.json", record)


def _opened(config: Config) -> tuple[PreTrainedModel, TextCodec]:
    from dragoman.methods import sharding, training
    from dragoman.modeling import open_both

    model, codec = open_both(config.model, dtype=config.dtype, device=config.device)
    training.require_trainable(model)
    sharding.require_spreadable(model, config.expert_parallel)  # before anything takes time
    require_positions(config.text.block, model)
    return model, codec


def _chosen(config: Config) -> Any:
    """The method's settings."""
    from dragoman.commands.mixing_text import STAGED
    from dragoman.methods import METHODS
    from dragoman.methods.base import LossMethod, settings

    if config.method in STAGED:
        raise ConfigError(f"the method {config.method} trains in stages, on text of its own; use `dragoman mix train`")
    if config.method not in METHODS:
        raise ConfigError(f"there is no method {config.method!r}; methods are {', '.join((*METHODS, *STAGED))}")
    if isinstance(METHODS[config.method], LossMethod):
        raise ConfigError(f"the method {config.method} trains on parallel items of a task; use `dragoman align`")
    if METHODS[config.method].NEEDS_PLAN and config.plan is None:
        raise ConfigError(f"the method {config.method} trains what a plan names; make one with `dragoman plan`")
    return settings(config.method, METHODS[config.method], {n: getattr(config, n) for n in OF_METHOD})


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
        f"the {' and the '.join(SAVE[record['config']['save']])} in {out}"
    )
    if stopped := log.get("stopped"):
        weights = f"; the weights are those of step {stopped['weights_of']}" if "weights_of" in stopped else ""
        print(f"stopped at step {stopped['step']}: {stopped['why']}{weights}")
        if stopped.get("weights_of") == 0:
            print("nothing was learnt: these are the weights of the base; lower --learning-rate or raise --guard")
    if record.get("outcome"):
        print(forgetting.line(record["outcome"]))


def _with_vocabulary(codec: TextCodec, config: Config, corpus: NText) -> TextCodec:
    from dragoman.modeling import extended, new_pieces

    if not config.vocabulary:
        return codec
    corpus.require([config.target])
    return extended(codec, new_pieces(codec, corpus.texts(config.target, "train"), config.vocabulary))


def _with_tag_row(chosen: Any, codec: TextCodec, target: str) -> Any:
    """The method's settings with the row of the target's tag, where tags are to train."""
    if getattr(chosen, "embeddings", "none") != "tags":
        return chosen
    row = codec.own_tag_id(target)
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


def _say_where_from(plan: ExpertPlan | None, model_sha256: str | None) -> None:
    """On standard error, where the plan is of other weights."""
    for sentence in other_weights(plan.model_sha256, model_sha256, "plan") if plan else ():
        print(f"dragoman: {sentence}", file=sys.stderr)


def _say_what_repeats(corpus: NText, target: str, texts: dict[str, list[str]]) -> None:
    """On standard error, where many dev texts of the target are training texts too."""
    if target not in corpus.languages:  # it has texts from files alone
        return
    trained, dev = set(corpus.texts(target, "train")), texts.get(target, [])
    if (repeated := sum(text in trained for text in dev)) > MAX_REPEATED * len(dev):
        print(
            f"dragoman: {repeated} of {len(dev)} dev texts in {target} are train texts too, word for word, so that dev "
            "measures memory; keep such rows once, or in one split",
            file=sys.stderr,
        )


def _claim(config: Config, stamp: dict[str, Any]) -> dict[str, Any] | None:
    return claim(config.out, stamp, Config(config.model, target=config.target), resume=config.resume)


def _stamp(config: Config, plan: ExpertPlan | None, corpus: NText) -> dict[str, Any]:
    from dragoman.modeling import model_checksum

    read = {"model_sha256": model_checksum(config.model), "corpus_sha256": corpus.checksum()}
    read |= {f"text.sources.{name}_sha256": sha256(path) for name, path in config.text.sources.items()}
    fields = {k: v for k, v in asdict(config).items() if k not in CHANGEABLE} | {"plan": plan and asdict(plan)}
    return json.loads(json.dumps(fields, default=str)) | read
