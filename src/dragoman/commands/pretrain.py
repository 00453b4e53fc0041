"""`dragoman pretrain`: train a model from nothing, or further, on n-way text in stated shares.

The built-in bases were made by this command from the recipes in `benchmarks/base/`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dragoman.commands import Paths, Tags
from dragoman.commands.resuming import changes, completed, no_checkpoint
from dragoman.commands.training_text import require_positions
from dragoman.corpora import mix as mixing
from dragoman.corpora.languages import TABLE, language, listed, normalise_tags
from dragoman.corpora.ntext import NText, load, without_test
from dragoman.corpora.testsets import open_test_set
from dragoman.errors import ConfigError
from dragoman.methods import sharding, training
from dragoman.methods.checkpoints import discard_after, incomplete, log_of
from dragoman.record import environment, read_json, sha256, write_json

SHORTEST = 8
"""Least tokens of a row."""
TOKEN = 4
"""Characters of one, roughly: by this a run is long or short for its text."""
LENGTH = tuple(f"training.{key}" for key in ("steps", "decay", "minutes"))
"""What may change when a run is resumed: the text up to there and the rate stay the same."""
KEEPING = tuple(f"training.{key}" for key in ("checkpoint_minutes", "checkpoint_steps", "gradient_checkpointing"))
"""What may change, too, and has no part in the schedule."""
MOVED: dict[str, Any] = {"out": None, "device": None}
"""Where a run is and computes, which no loss depends on but for rounding (`precision: auto` goes by the machine)."""
SPECIAL = ("<s>", "</s>", "<pad>")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The tokenizer to train where none is given: byte-level BPE."""

    size: int = 12288
    """Entries, special tokens included."""
    languages: Tags = ()
    """Languages whose train text it is learnt from, in equal shares of bytes; default: those of the mix."""
    tags: Tags = ()
    """Languages that get a tag token such as <de>; more than are trained, so that new ones can be added later."""
    megabytes: float = 2.0
    """Text per language."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a model from random weights, or further from given ones."""

    out: Path
    """Folder for the model, its record and its checkpoints."""
    data: Paths
    """N-way tables to train on (their train split)."""
    start: str | None = None
    """Model to start from; default: random weights of `architecture`."""
    architecture: str = "olmoe"
    """Model type of transformers for a new model."""
    shape: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Fields of that type's config for a new model."""
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    """Tokenizer to train for a new model."""
    tokenizer: str | None = None
    """Folder of a tokenizer to use for a new model instead of training one."""
    mix: mixing.Mix = field(default_factory=mixing.Mix)
    """Shares of the training text."""
    held_out_languages: Tags = ()
    """Languages that must not occur."""
    held_out: Path | None = None
    """Test set of which nothing must occur, or a table with a column `split`, of which dev, devtest and test must not;
    default: each table's own."""
    block: int = 256
    """Tokens per row."""
    training: training.Config = field(default_factory=training.Config)
    """Optimizer, schedule, checkpoints."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of the saved weights."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    resume: bool = False
    """Go on from the last checkpoint in `out`. With more steps (or another decay or time limit) than before, go on from
    the last one whose rate had not begun to decay."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.training.learning_rate == 0:
            raise ConfigError("with the learning rate 0 nothing trains; it is a number above 0")
        if self.block < SHORTEST:
            raise ConfigError(f"block is {self.block}, at least {SHORTEST}")
        new = {"architecture": self.architecture != Config.architecture, "shape": bool(self.shape)}
        new |= {"tokenizer": bool(self.tokenizer), "vocabulary": self.vocabulary != Vocabulary()}
        for name, settings in {"start": tuple(new), "tokenizer": ("vocabulary",)}.items():
            if getattr(self, name) and (idle := [s for s in settings if new[s]]):
                raise ConfigError(
                    f"{' and '.join(idle)} would have no effect beside {name} {getattr(self, name)}: leave out one or "
                    "the other"
                )


def run(config: Config) -> dict[str, Any]:
    """Train and save the model; returns its record, which is also written to out/record.json.

    Under torchrun the processes share the training; the first one writes.
    """
    with sharding.joined():
        training.require_shareable(config.training)
        return _pretrained(config)


def _pretrained(config: Config) -> dict[str, Any]:
    from dragoman.modeling import find_routers, moe_layers, open_model, save_model

    tables = _tables(config)
    codec = _codec(config, tables)
    model = open_model(config.start, device=config.device) if config.start else _new(config, codec)
    require_positions(config.block, model)
    sharding.require_spreadable(model, config.training.expert_parallel)
    read = _read(config, tables, codec)
    resume, extended = sharding.on_first(lambda: _resumable(config, read))
    rows_NS = _rows(config, tables, codec)
    layers = moe_layers(model) if find_routers(model) or config.training.balance or config.training.z_loss else ()
    folder = config.out / "checkpoints"
    log = training.train(
        model,
        rows_NS,
        config.training,
        layers=layers,
        folder=folder,
        resume=resume,
        extended=extended,
        tokenizer=codec.tokenizer,
        quiet=config.quiet,
    )
    if sharding.first():
        save_model(model, codec, config.out / "model", dtype=config.dtype)
    record = environment() | {
        "command": "pretrain",
        "config": asdict(config),
        "test_opened": "for the leak check alone",
        "tables": {str(path): t.about["checksum"] for path, t in zip(config.data, tables, strict=True)},
        "start_sha256": read["start"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "computed_in": "bf16" if config.training.bf16 else "fp32",
        "training": asdict(log) | {"losses": [round(loss, 4) for loss in log.losses]},
        "processes": sharding.started(),
        "tokens_per_second": round(log.tokens / log.seconds, 1),
    }
    if sharding.first():
        write_json(config.out / "record.json", record)
    return record


def _tables(config: Config) -> list[NText]:
    """What may be read, without the sealed split, which the leak check alone sees."""
    opened = [load(path, open_test=True) for path in config.data]
    mixing.require_named(opened, config.mix)
    languages, barred = (normalise_tags(g) for g in (_languages(config, opened), config.held_out_languages))
    for table in [*opened, *([open_test_set(config.held_out, open_test=True)] if config.held_out else [])]:
        mixing.check_no_leak(opened, languages, barred, table)
    return [without_test(table) for table in opened]


def _languages(config: Config, tables: list[NText]) -> tuple[str, ...]:
    """All that text is taken of. ConfigError for languages that no table has."""
    there = {g for table in tables for g in table.languages}
    named = {"mix": [g for g, share in config.mix.languages.items() if share]}
    named["vocabulary"] = list(config.vocabulary.languages)
    absent = {name: [g for g in tags if g not in there] for name, tags in named.items()}
    if faults := [f"{name}.languages names {', '.join(tags)}" for name, tags in absent.items() if tags]:
        raise ConfigError(f"{' and '.join(faults)}; the tables have {listed(sorted(there))}")
    return (*named["mix"], *named["vocabulary"])


def show(record: dict[str, Any]) -> None:
    """Print how far it came and where the model is."""
    log = record["training"]
    last = log["losses"][-20:]
    print(
        f"{record['parameters']:,} parameters, {log['tokens']:,} tokens in {log['seconds'] / 60:.0f} minutes; loss "
        f"{sum(last) / len(last):.3f} nats per token; the model is in {record['config']['out']}/model"
    )


def _codec(config: Config, tables: list[NText]) -> Any:
    from dragoman.modeling import TextCodec, open_tokenizer

    if config.start or config.tokenizer:
        return open_tokenizer(config.start or config.tokenizer or "")
    return TextCodec(train_tokenizer(config.vocabulary, tables, tuple(config.mix.languages)))


def train_tokenizer(config: Vocabulary, tables: list[NText], languages: tuple[str, ...]) -> Any:
    """A byte-level BPE tokenizer learnt from train text, with language tags as special tokens."""
    from transformers import PreTrainedTokenizerFast

    tags = [f"<{tag}>" for tag in config.tags or sorted(TABLE)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        special_tokens=[*SPECIAL, *tags],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    budget = int(config.megabytes * 1e6)
    chosen = config.languages or languages
    core.train_from_iterator((t for g in chosen for t in _equal_text(tables, g, budget)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[2],
        clean_up_tokenization_spaces=False,
    )


def _equal_text(tables: list[NText], language: str, budget: int) -> list[str]:
    """Train text of a language, `budget` bytes of it: cut where there is more, repeated where there is less."""
    texts = [t for table in tables if language in table.languages for t in table.texts(language, "train")]
    taken: list[str] = []
    while texts and budget > 0:
        for text in texts:
            taken.append(text)
            budget -= len(text.encode())
            if budget <= 0:
                break
    return taken


def _new(config: Config, codec: Any) -> Any:
    from dragoman.modeling import default_device, device_of, keep_freed_memory, new_model

    keep_freed_memory()
    ids = {
        "vocab_size": len(codec.tokenizer),
        "bos_token_id": codec.start_id,
        "eos_token_id": codec.end_id,
        "pad_token_id": codec.pad_id,
    }
    device = device_of(config.device or default_device())
    return new_model(config.architecture, config.shape | ids, config.training.seed).to(device)  # type: ignore[arg-type]


def _remembering(codec: Any) -> Any:
    """The codec with a memory: a stream reads most texts several times, and the tokenizer is the slow part."""
    from dragoman.modeling import TextCodec

    known: dict[str, array] = {}

    class Remembering(TextCodec):
        def encode(self, texts: Sequence[str]) -> list:
            new = [text for text in dict.fromkeys(texts) if text not in known]
            known.update(zip(new, (array("i", ids) for ids in super().encode(new)), strict=True))
            return [list(known[text]) for text in texts]

    return Remembering(codec.tokenizer)


def _rows(config: Config, tables: list[NText], codec: Any) -> Any:
    names = {g: language(g).name for g, share in config.mix.languages.items() if share}
    codec = _remembering(codec)
    read = [(table, g) for g in config.mix.languages for table in tables if g in table.languages]
    texts = [t for table, g in read for t in table.texts(g, "train")]
    if config.training.steps * config.training.batch * config.block > sum(map(len, texts)) / TOKEN:
        codec.encode(texts)  # at once, on all cores; a short run reads few of them

    def encode(texts: Any) -> list[list[int]]:
        return [[codec.start_id, *ids, codec.end_id] for ids in codec.encode(texts)]

    def pair(sources: Any, targets: Any, source: str, target: str) -> list[list[int]]:
        return [ids for ids, _ in codec.pairs(sources, targets, source, target, names)]

    samples = mixing.stream(tables, config.mix, encode, pair, seed=config.training.seed)
    return mixing.pack(samples, config.training.steps * config.training.batch, config.block)


def _read(config: Config, tables: list[NText], codec: Any) -> dict[str, Any]:
    """Checksums of what a run reads: tables, tokenizer, and the model that it starts from."""
    from dragoman.modeling import model_checksum

    pieces = json.dumps(codec.tokenizer.get_vocab(), sort_keys=True)
    start = model_checksum(config.start) if config.start else None
    return {"tables": [t.checksum() for t in tables], "tokenizer": sha256(pieces), "start": start}


def _resumable(config: Config, read: dict[str, Any]) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, if asked for, and whether the run is now of another length.

    Any other change is an error, because the losses would not be the same.
    """
    stamp, now = config.out / "config.json", _comparable(config)
    if not config.resume:
        if config.out.exists() and not _untouched(config.out):
            raise ConfigError(f"{config.out} is not empty; choose another folder, or go on there with --resume")
        write_json(stamp, now | {"read": read})
        return None, False
    found = training.checkpoints(config.out / "checkpoints")
    if not found:
        raise no_checkpoint(config.out / "checkpoints", incomplete(config.out / "checkpoints"))
    default = Config(out=config.out, data=config.data)
    before = read_json(stamp) | MOVED
    if odd := [name for name, is_now in read.items() if before.get("read", read)[name] != is_now]:
        raise ConfigError(
            f"the run in {config.out} read other {' and '.join(odd)} than are there now, so it cannot go on; start "
            "anew in another folder, or restore them"
        )
    changed = changes(completed(before, default), now, default)
    idle = ("architecture", "vocabulary") if config.start else ("vocabulary",) if config.tokenizer else ()  # once taken
    may = (*LENGTH, *KEEPING, "dtype")
    if fixed := [line for key, line in changed.items() if key not in may and not key.startswith(idle)]:
        raise ConfigError(f"the run in {config.out} had another config ({'; '.join(fixed)}); resume with the old one")
    # a run of another length that was killed before its first checkpoint still has the old schedule in its last one
    extended = any(key in LENGTH for key in changed) or log_of(found[-1]).steps == before.get("extended_at")
    if extended:
        decay_from = config.training.steps - config.training.decay
        logs = {path: log_of(path) for path in found}
        found = [path for path, log in logs.items() if log.stable and log.steps <= decay_from]
        if not found:
            raise ConfigError(
                f"every checkpoint in {config.out} is from the decay, or from after update {decay_from}, where the new "
                "one would begin; resume with the old length or a greater one"
            )
        discard_after(config.out / "checkpoints", log_of(found[-1]).steps)  # before the stamp says that they are gone
    at = log_of(found[-1]).steps if extended else before.get("extended_at")
    if changed:
        write_json(stamp, now | {"read": read, "extended_at": at})
    return found[-1], extended


def _untouched(out: Path) -> bool:
    """Whether a folder has at most what a run leaves that failed before its first checkpoint."""
    rest = {path.name: path for path in out.iterdir()}
    rest.pop("config.json", None)
    checkpoints = rest.pop("checkpoints", None)
    return not rest and (checkpoints is None or not any(checkpoints.glob("checkpoint-*")))


def _comparable(config: Config) -> dict[str, Any]:
    given = asdict(config) | {"resume": None, "quiet": None} | MOVED
    given["training"]["expert_parallel"] = False  # how it is computed, not what
    return json.loads(json.dumps(given, default=str))
