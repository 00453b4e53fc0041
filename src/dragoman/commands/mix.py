"""`dragoman mix`: a dense model becomes a Mix-MoE one, and is trained stage by stage, beside its neighbours.

Shape letters: N rows, S tokens per row.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from dragoman.commands import Dtype, Numbers, scoring
from dragoman.commands.converting import write_converted
from dragoman.commands.directions import parse_directions
from dragoman.commands.mixing_shares import shares_of, told
from dragoman.commands.mixing_text import STAGED, Train, require_room, require_scorable, sample_of, stage_rows
from dragoman.commands.resuming import checkpoint_folder, claim, unclaim_after
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError
from dragoman.record import atomic_write, environment, write_json
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.plan import other_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dragoman.methods.training import Log

app = App(name="mix")
CHANGEABLE = ("checkpoint_minutes", "checkpoint_steps", "report_to", "expert_parallel", "gradient_checkpointing")
"""Settings of the training that no loss depends on."""
ANY: dict[str, Any] = {"method": "full", "languages": ("en",)}
"""Makes a config of defaults that is possible."""


@app.command
def convert(
    model: str,
    *,
    out: Path,
    layers: Numbers = (),
    experts: int = 2,
    top_k: int = 2,
    selection: str = "all",
    transform: str = "fft",
    parts: str = "mag",
    compress: bool = True,
    scale: str = "preserve",
    slices: str = "contiguous",
    mt_init: str = "random",
    numbers: Path | None = None,
    corpus: str = "help",
    language: str = "en",
    segments: int = 64,
    seed: int = 0,
    dtype: Dtype = "float32",
    device: str | None = None,
) -> None:
    """Make a Mix-MoE model of a dense one: feed-forwards become slices, translation experts and a router.

    With the defaults it computes what the dense model does, to rounding, until it is trained.

    Parameters
    ----------
    model
        Dense model: folder, Hub id, or the name of a fetched one.
    out
        New folder for the model and its record.json.
    layers
        Model layers to convert; default all.
    experts
        Experts of each of the two groups.
    top_k
        Experts that each token is sent to.
    selection
        all: the top k of both groups together; group: the first of each.
    transform
        What the router reads beside the state, over the hidden dimension: fft, dct, random or none.
    parts
        Of each coefficient: mag, mag+phase or real+imag.
    compress
        Logarithm of magnitudes, then a layer norm over the features.
    scale
        preserve: the model computes what it did; none: literal slices.
    slices
        contiguous, or balanced: neurons that are active together on sample text.
    mt_init
        Translation experts start random, or zero: with a second map of zeros.
    numbers
        What `dragoman plan --planner layer_moe` wrote: so many translation experts in each layer, in place of
        `experts` in all.
    corpus
        N-way text for balanced slices.
    language
        Its language.
    segments
        So many train segments of it, up to some 8,000 tokens.
    seed
        Of random experts and of the transform random.
    dtype
        Of all weights; auto: as the dense model was saved.
    device
        cuda or cpu; default: cuda where there is one.
    """
    from dragoman.modeling import context_length
    from dragoman.modeling.mix_conversion import Conversion, first_texts, require_dense, to_mix_moe

    planned = ExpertNumbers.load(numbers) if numbers else None
    chosen: dict[str, Any] = {"layers": layers, "experts": experts, "top_k": top_k, "selection": selection}
    chosen |= {"transform": transform, "parts": parts, "compress": compress, "scale": scale, "slices": slices}
    chosen |= {"mt_init": mt_init, "seed": seed, "translation": planned.experts if planned else {}}
    conversion = Conversion(**chosen)

    text = {"corpus": (corpus, "help"), "language": (language, "en"), "segments": (segments, 64)}
    if slices != "balanced" and (idle := [f"--{name}" for name, (given, usual) in text.items() if given != usual]):
        raise ConfigError(f"{', '.join(idle)} would have no effect without --slices balanced; give it, or leave it out")

    def convert(dense: Any, codec: Any) -> tuple[Any, dict[str, Any]]:
        require_dense(dense)
        if planned:
            _require_fit(planned, dense, model)
        balanced, context = slices == "balanced", context_length(dense)
        text = sample_of(codec, open_corpus(corpus), language, segments, context) if balanced else ()
        sample = first_texts(text)
        about = {"corpus": corpus, "language": language, "segments": len(sample)} if sample else None
        return to_mix_moe(dense, conversion, sample), {"sample": about}

    about: dict[str, Any] = {"command": "mix convert", "config": {"model": model, **asdict(conversion)}}
    about |= {"numbers": planned and asdict(planned)}
    write_converted(model, out, convert, about, dtype, device)


def _require_fit(planned: ExpertNumbers, dense: Any, name: str) -> None:
    """ModelError where the numbers are of another shape; a sentence on standard error where of other weights."""
    from dragoman.modeling import model_checksum
    from dragoman.modeling.feed_forwards import feed_forwards
    from dragoman.modeling.probing import hidden_size

    planned.require_fit(hidden_size(dense), {ffn.layer_id: ffn.width for ffn in feed_forwards(dense)})
    for sentence in other_weights(planned.model_sha256, model_checksum(name), "plan of numbers"):
        print(f"dragoman: {sentence}", file=sys.stderr)


@app.command
def train(config: Annotated[Train, Parameter(name="*")]) -> None:
    """Train a stage of Mix-MoE, or a neighbour on the same text, and measure before and after."""
    record = run_stage(config)
    if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun the first one prints
        show(record)


def show(record: dict[str, Any]) -> None:
    """Print what was trained, the scores before and after, and where translations and text go."""
    config, log = record["config"], record["log"]
    stage = "" if config["stage"] is None else f", stage {config['stage']}"
    print(
        f"{config['method']}{stage}: {record['parameters']:,} parameters trained for {log['steps']} steps; "
        f"the model is in {config['out']}/model"
    )
    for name in ("bits_per_byte", "chrf"):
        values, intervals = (record["results"].get(key, {}) for key in (name, f"{name}_interval"))
        for label, value in values.get("after", {}).items():
            low, high = intervals["after"][label]
            before = "" if config["only_after"] else f"{values['before'][label]:7.3f} -> "
            print(f"  {name:13} {label:8} {before}{value:7.3f}  [{low:.3f}, {high:.3f}]")
    for line in told(record["shares"]) if "shares" in record else ():
        print(f"  {line}")


def run_stage(config: Train) -> dict[str, Any]:
    """Train, score before and after, save model and record; returns the record.

    Under torchrun the processes share the training; the first one scores and writes.
    """
    from dragoman.methods import sharding, training

    with sharding.joined():
        training.require_shareable(config.training, extra_loss=config.reviews)
        return _stage(config)


def _stage(config: Train) -> dict[str, Any]:
    from dragoman.methods import sharding
    from dragoman.modeling import model_checksum, open_both, save_model

    corpus = open_corpus(config.corpus)
    every = config.languages or corpus.languages
    directions = parse_directions(list(config.directions), every, corpus.languages)
    asked = parse_directions(list(config.score), every, corpus.languages) if config.score else directions
    spoken = tuple(dict.fromkeys([*config.languages, *(g for pair in asked.values() for g in pair)]))
    corpus.require(spoken)
    require_scorable(config, corpus, spoken, asked)
    model, codec = open_both(config.model, dtype=config.dtype, device=config.device)
    require_room(config, model, codec, corpus, asked)
    total, (method, extra) = sum(p.numel() for p in model.parameters()), _prepared(config, model)
    rows = stage_rows(config, codec, corpus, directions)
    checksums = {"model_sha256": model_checksum(config.model), "corpus_sha256": corpus.checksum()}
    stamp, default = _comparable(config) | checksums, Train(config.model, out=config.out, **ANY)
    if finished := sharding.on_first(lambda: claim(config.out, stamp, default, resume=config.resume)):
        return finished
    of = (config, model, codec, corpus, spoken, asked)
    try:
        before = {} if config.only_after else sharding.on_first(lambda: _measured(*of))
        log, trained = _trained(config, model, method, extra, rows, codec.pad_id)
    except BaseException as e:
        unclaim_after(e, config.out)
        raise
    if sharding.first():
        save_model(model, codec, config.out / "model")
    after = sharding.on_first(lambda: _measured(*of, figure=config.out / "shares.svg"))
    about: dict[str, Any] = {"command": "mix train", "config": asdict(config), "corpus": corpus.about, **checksums}
    about |= {"parameters": trained, "trained_share": trained / total, "method": asdict(extra)}
    about |= {"read": list(directions), "samples_too_long": rows.too_long, "filler_share": rows.filler_share}
    about |= {"log": asdict(log)}
    about |= {"training": asdict(config.training), "processes": sharding.started()}
    record = environment() | about | sharding.on_first(lambda: _results(config, before, after))
    if sharding.first():
        write_json(config.out / "record.json", record)
    return record


def _comparable(config: Train) -> dict[str, Any]:
    """The settings that a run keeps when it goes on: those that a loss or a score depends on."""
    fields = {name: value for name, value in asdict(config).items() if name not in ("out", "quiet", "resume", "device")}
    how = {name: value for name, value in fields["training"].items() if name not in CHANGEABLE}
    return json.loads(json.dumps(fields | {"training": how}, default=str))


def _measured(
    config: Train, model: Any, codec: Any, corpus: Any, spoken: Any, directions: Any, figure: Path | None = None
) -> dict[str, Any]:
    """What the model scores now, and of Mix-MoE what its router does; with a figure of it."""
    sums = scoring.score_model(
        model, codec, corpus, spoken, directions, split=config.split, segments=config.segments, quiet=config.quiet
    )
    if config.method != "mix_moe" or (config.stage == 1 and figure is None):  # before stage 1 there is one group
        return {"sums": sums}
    shares, svg = shares_of(config, model, codec, corpus, spoken, directions)
    if svg and figure:
        with atomic_write(figure) as partial:
            partial.write_text(svg, encoding="utf-8")
    return {"sums": sums, "shares": shares}


def _results(config: Train, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Values with intervals and comparisons, segments in a file of their own, router shares before and after."""
    sums = {when: found["sums"] for when, found in (("before", before), ("after", after)) if found}
    found = {"results": scoring.tables(sums, config.seed)}
    found["segments"] = scoring.write_segments(config.out / "segments.json", sums)
    shares = {"shares_before": before.get("shares"), "shares": after.get("shares")}
    return found | {name: value for name, value in shares.items() if value}


def _prepared(config: Train, model: PreTrainedModel) -> tuple[Any, Any]:
    """Freeze the model and make trainable what the method trains; the method and its settings."""
    from dragoman.methods import full, lora, mix_moe, moe_lpr, sharding, training

    stage: dict[str, Any] = {"stage": config.stage}
    methods: dict[str, tuple[Any, Callable[[], Any]]] = {
        "mix_moe": (mix_moe, lambda: mix_moe.Config(**stage)),
        "moe_lpr": (moe_lpr, lambda: moe_lpr.Config(**stage, lpr=config.lpr, mode=config.lpr_mode)),
        "full": (full, full.Config),
        "lora": (lora, lambda: _lora_settings(config, model)),
    }
    method, settings = methods[config.method][0], methods[config.method][1]()
    method.apply(model, settings, None)
    training.require_trainable(model)
    sharding.require_spreadable(model, config.training.expert_parallel)
    return method, settings


def _lora_settings(config: Train, model: PreTrainedModel) -> Any:
    """Of LoRA on attention and feed-forwards, of the rank that was asked for."""
    from dragoman.methods import lora

    chosen = lora.Config(parts=("attention", "feed_forward"), seed=config.seed)
    rank = chosen.rank if config.rank is None else config.rank
    if config.parameters is not None:
        rank = lora.matched_rank(model, chosen, config.parameters)
    return replace(chosen, rank=rank, alpha=2.0 * rank)


def _trained(
    config: Train, model: PreTrainedModel, method: Any, settings: Any, rows: Any, pad_id: int
) -> tuple[Log, int]:
    """The log, and how many parameters trained. Checkpoints, where the config asks for them, are in `out`."""
    from dragoman.methods import moe_lpr, training
    from dragoman.modeling import moe_layers

    ours = config.training
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with checkpoint_folder(config.out, ours, config.resume) as folder:
        log = training.train(
            model,
            rows.tokens_NS,
            ours,
            layers=moe_layers(model) if config.method in STAGED else (),
            extra_loss=moe_lpr.extra_loss(settings, rows.old_N) if config.reviews else None,
            labels_NS=rows.labels_NS,
            pad_id=pad_id,
            folder=Path(folder),
            resume=next(iter(training.checkpoints(Path(folder))[::-1]), None),
            quiet=config.quiet,
        )
    method.merge(model)
    model.requires_grad_(True)
    return log, parameters
