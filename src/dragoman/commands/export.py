"""`dragoman export`: a delta or an adapted model as a plain model folder, with proof of what is in it.

The folder is written beside its place, read again in plain transformers by a process that never imports dragoman, and
moved into place when everything holds: weights that were not trained have the bits of the base, of the others no row
differs but trained ones, logits are as exact as the method declares, and tensors have on disk the names that the base
has there, which are those of its family's checkpoints. Where anything fails, nothing is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.errors import ConfigError, ModelError
from dragoman.record import atomic_write, claim_folder, environment, read_json, write_json
from dragoman.routing.plan import ExpertPlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from dragoman.methods.base import Rows
    from dragoman.methods.delta import Delta
    from dragoman.modeling import TextCodec

# Shape letters: B sequences, S positions, V vocabulary.

BATCH, LENGTH = 8, 64
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
"""Dtype -> largest distance of logits over their norm that counts as rounding."""
SHOWN = 5
PROGRAM = Path(__file__).with_name("reloading.py")
NO_ROOM = ("OutOfMemoryError", "can't allocate memory")
"""What a process says that had too little memory; one that the system ends (signal 9) says nothing."""


@dataclass(frozen=True)
class Config:
    """Write a delta or an adapted model as a plain model folder, proven."""

    model: str
    """Delta folder (`dragoman adapt --save delta`), or folder of an adapted model."""
    _: KW_ONLY
    base: str | None = None
    """Model that was adapted: folder, Hub id or built-in name; default: where the delta says that it is."""
    out: Path = Path("exported")
    """New folder."""
    plan: Path | None = None
    """For a model, not a delta: the plan whose experts, and routers where it says so, may differ from the base."""
    dtype: str | None = None
    """Store in this dtype, such as bfloat16; default: in which it was trained."""
    format: str = "model"
    """model, or peft: the delta as an adapter for PEFT, not merged (method lora)."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""


@dataclass(frozen=True)
class Exported:
    """The plain model in memory, and what it has to be compared with."""

    model: PreTrainedModel
    codec: TextCodec
    base: str
    before: dict[str, Any]
    """Fingerprints of the base."""
    may_change: Rows | None
    """None where it is not known."""
    merge: dict[str, Any]
    """How exact merging was."""


def run(config: Config) -> dict[str, Any]:
    """Write a plain model folder, read it again without dragoman, and prove that it is what was trained."""
    from dragoman.methods.delta import Delta, is_delta

    delta = Delta.load(config.model) if is_delta(config.model) else None
    _require_sense(config, delta)
    out = claim_folder(Path(config.out))
    out.rmdir()  # it comes back when all is proven
    if config.format == "peft" and delta is not None:
        return _export_adapter(config, delta, out)
    return _export_model(config, delta, out)


def show(record: dict[str, Any]) -> None:
    """Print what was proven."""
    proof, config = record["proof"], record["config"]
    if config["format"] == "peft":
        print(f"{config['out']} holds an adapter for PEFT; logits with it are {_exactness(proof['logits'])}")
        return
    print(
        f"{config['out']} holds a plain {proof['class']}, read again without dragoman:\n"
        f"  {proof['untouched']} weights have the bits of the base, {len(proof['changed'])} differ, "
        f"{proof['changed_rows']:,} rows in all, and no other row\n"
        f"  merged logits are {_exactness(proof['merged'])}, stored ones {_stored(proof['stored'])}\n"
        f"  {proof['names']} tensors have the names that the base has on disk"
    )


def _stored(found: dict[str, Any]) -> str:
    if found["declared"] == "bits":
        return "the merged ones to the bit"
    return f"those of the model cast to {found['dtype']}, which moved them by {found['from_trained']:.1e} of their norm"


def _exactness(found: dict[str, Any]) -> str:
    how = "the bit" if found["declared"] == "bits" else f"rounding (distance {found['distance']:.1e})"
    return f"the trained ones to {how}"


def _require_sense(config: Config, delta: Delta | None) -> None:
    from dragoman.methods import METHODS, lora

    faults = []
    if config.format not in ("model", "peft"):
        faults.append(f"format is model or peft, not {config.format!r}")
    if config.dtype not in (None, *TOLERANCE):
        faults.append(f"dtype is {', '.join(TOLERANCE)}, not {config.dtype!r}")
    if delta is None and config.base is None:
        faults.append(f"{config.model} is no delta, so the model that it was made of has to be given with --base")
    if delta is not None and config.plan is not None:
        faults.append("--plan would have no effect: the delta has its own")
    if config.format == "peft" and (delta is None or METHODS[delta.method] is not lora):
        what = f"what {delta.method} trains" if delta else "a merged model"
        faults.append(f"PEFT has no form for {what}: only deltas of lora; export the model, or keep the delta")
    if config.format == "peft" and delta is not None and delta.tag:
        faults.append("the tag of {1} began as a copy of that of {0}, which no adapter can say".format(*delta.tag))
    if config.format == "peft" and config.dtype:
        faults.append("--dtype would have no effect on an adapter")
    if delta is not None and METHODS[delta.method].MERGE == "none":
        faults.append(f"models of {delta.method} cannot be merged; keep the delta")
    if faults:
        raise ConfigError(f"cannot export so: {'; '.join(faults)}")


# A plain model


def _export_model(config: Config, delta: Delta | None, out: Path) -> dict[str, Any]:
    from dragoman.modeling import expert_stacks, save_model, store_as_new, stored_names

    exported = _merged(config, delta) if delta else _adapted(config)
    if expert_stacks(exported.model).keys() & stored_names(exported.base):
        store_as_new(exported.model)
    with atomic_write(out) as partial:
        save_model(exported.model, exported.codec, partial, dtype=config.dtype)
        proof = _proof(exported, partial, config.dtype)
        record = environment() | {"command": "export", "config": asdict(config), "base": exported.base, "proof": proof}
        write_json(partial / "record.json", record)
    return record


def _merged(config: Config, delta: Delta) -> Exported:
    """The base with the delta, merged; logits are compared before and after."""
    from dragoman.commands.reloading import fingerprints, logits
    from dragoman.methods import METHODS
    from dragoman.methods.delta import open_base
    from dragoman.modeling import stored_dtypes

    model, codec = open_base(delta, config.base, config.device)
    method = METHODS[delta.method]
    delta.require_base(model)
    may_change = _tag_rows(model, codec, delta.tag) | method.changes(model, delta.settings, delta.plan)
    dtypes = stored_dtypes(model, _stored_dtype(model, config.dtype)) if config.dtype else {}
    before = fingerprints(model.state_dict(), may_change, dtypes)
    delta.put_on(model, codec)
    ids, device = fixed_batch(model), str(model.device)
    trained_BSV = logits(model, ids, device)
    method.merge(model)
    merged = _compared(logits(model, ids, device), trained_BSV, method.MERGE, delta.dtype, "merging")
    return Exported(model, codec, config.base or delta.base, before, may_change, merged)


def _tag_rows(model: PreTrainedModel, codec: TextCodec, tag: tuple[str | None, str | None] | None) -> Rows:
    """The row of the embeddings that a copied tag changes: (language it is copied from, and to)."""
    from dragoman.modeling import embedding_names

    parent, target = [g or "" for g in tag or ("", "")]
    row = codec.own_tag_id(target)
    return dict.fromkeys(embedding_names(model), (row,)) if row is not None and codec.tag_id(parent) is not None else {}


def _adapted(config: Config) -> Exported:
    """A model that is merged already, and the base, which is not kept."""
    from dragoman.commands.reloading import fingerprints
    from dragoman.modeling import open_both, open_model, outline
    from dragoman.modeling.mix_moe import PREFIX

    if outline(config.model).config.model_type.startswith(PREFIX):
        why = "a Mix-MoE model is of a class of dragoman's own and has no plain form"
        raise ModelError(f"{why}; its folder opens after dragoman.register()")
    model, codec = open_both(config.model, dtype="auto", device=config.device)
    as_stored = _stored_dtype(model, config.dtype)
    base = open_model(str(config.base), dtype=str(as_stored).removeprefix("torch."), device="cpu")  # it is only read
    plan = ExpertPlan.load(config.plan) if config.plan else None
    may_change = _planned_rows(config, base, codec, plan) if plan else None
    before = fingerprints(state := base.state_dict(), state)
    return Exported(model, codec, str(config.base), before, may_change, {"declared": "bits", "distance": 0.0})


def _planned_rows(config: Config, base: PreTrainedModel, codec: TextCodec, plan: ExpertPlan) -> Rows:
    """What training on the plan may change, with the settings that `dragoman adapt` recorded beside its model."""
    from dragoman.methods import expert_tuning

    path = Path(config.model).parent / "record.json"
    record = read_json(path) if path.is_file() else {}
    adapted = record["config"] if record.get("command") == "adapt" else {}
    target, embeddings = adapted.get("target") or plan.target, adapted.get("embeddings") or "none"
    row = codec.own_tag_id(target or "")
    rows = (row,) if embeddings == "tags" and row is not None else ()
    settings = expert_tuning.Config(routers=adapted.get("routers"), embeddings=embeddings, tag_rows=rows)
    tag = _tag_rows(base, codec, (adapted.get("parent") or plan.parent, target))
    return tag | expert_tuning.changes(base, settings, plan)


def _stored_dtype(model: PreTrainedModel, dtype: str | None) -> torch.dtype:
    import torch

    return getattr(torch, dtype) if dtype else model.dtype


# The proof


def fixed_batch(model: PreTrainedModel) -> list[list[int]]:
    """The same token ids for every model of this size, B x S."""
    import torch

    from dragoman.modeling import context_length

    shape = (BATCH, min(LENGTH, context_length(model)))
    entries = model.config.get_text_config().vocab_size
    return torch.randint(entries, shape, generator=torch.Generator().manual_seed(0)).tolist()


def _proof(exported: Exported, folder: Path, dtype: str | None) -> dict[str, Any]:
    """Read the folder again and compare everything. ModelError where something does not hold."""
    from dragoman.commands.reloading import fingerprints, leave_gpu, logits
    from dragoman.modeling import cast_stored

    model: Any = exported.model
    as_stored = _stored_dtype(model, dtype)
    by_row = [n for n, print_ in exported.before.items() if isinstance(print_, list)]
    ids, device = fixed_batch(model), str(model.device)
    name = str(as_stored).removeprefix("torch.")
    declared = "rounding" if as_stored != model.dtype else "bits"
    trained_BSV = expected_BSV = logits(model, ids, device)
    if dtype:  # else every tensor is stored as it is
        cast_stored(model, as_stored)
        expected_BSV = logits(model, ids, device)
    now = fingerprints(model.state_dict(), by_row)
    leave_gpu(model)
    stored_BSV, answer = reloaded(folder, ids, name, device, by_row)
    stored = _compared(stored_BSV, expected_BSV, declared, name, "storing")
    after = answer["fingerprints"]
    if lost := sorted(n for n in now.keys() | after.keys() if now.get(n) != after.get(n)):
        raise ModelError(f"weights as stored are not those in memory: {_some(lost)}; nothing was written")
    changed = _changed(exported.before, after)
    _require_allowed(changed, exported.may_change)
    return {
        "class": answer["class"],
        "changed": {n: rows if len(rows) <= 64 else len(rows) for n, rows in changed.items()},
        "changed_rows": sum(map(len, changed.values())),
        "trained_and_equal": _equal_rows(exported.before, exported.may_change or {}, changed),
        "untouched": len(after) - len(changed),
        "known": exported.may_change is not None,
        "merged": exported.merge,
        "stored": stored | {"dtype": name, "from_trained": _distance(stored_BSV, trained_BSV)},
        "batch": [len(ids), len(ids[0])],
    } | _require_names(model, exported.base, folder)


def reloaded(folder: Path, ids: list[list[int]], dtype: str, device: str, by_row: list[str]) -> Any:
    """Logits [B, S, V] and the answer of a process that reads the folder in plain transformers."""
    import torch
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as scratch:
        request = {"ids": ids, "dtype": dtype, "device": device, "threads": torch.get_num_threads(), "by_row": by_row}
        write_json(Path(scratch) / "request.json", request)
        command = [sys.executable, "-P", str(PROGRAM), str(folder), f"{scratch}/request.json", scratch]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == -9 or (done.returncode and any(sign in done.stderr for sign in NO_ROOM)):
            gpu = f"on {device} to read the export; try --device cpu" if NO_ROOM[0] in done.stderr else ""
            raise ModelError(f"not enough memory {gpu or 'for the model twice; free some'}; nothing was written")
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ModelError(f"plain transformers cannot read what was exported: {why}; nothing was written")
        answer = json.loads((Path(scratch) / "fingerprints.json").read_text(encoding="utf-8"))
        assert not answer["own_modules"], answer["own_modules"]
        return load_file(f"{scratch}/logits.safetensors")["logits"], answer


def _compared(found: torch.Tensor, expected: torch.Tensor, declared: str, dtype: str, step: str) -> dict[str, Any]:
    """Distance of logits over their norm. ModelError where it is larger than declared."""
    import torch

    distance = _distance(found, expected)
    holds = torch.equal(found, expected) if declared == "bits" else distance <= TOLERANCE[dtype]
    if not holds:
        limit = "the same bits" if declared == "bits" else f"a distance of at most {TOLERANCE[dtype]:.0e}"
        moved = f"{step} moved the logits by {distance:.1e} of their norm"
        raise ModelError(f"{moved}, declared is {limit}; nothing was written")
    return {"declared": declared, "distance": distance}


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[int]]:
    """Weight -> rows whose bits differ from the base. ModelError for weights that differ and should not."""
    if before.keys() != after.keys():
        odd = _some(sorted(before.keys() ^ after.keys()))
        raise ModelError(f"only one of the model and its base has {odd}; is it the right base? Nothing was written")
    whole = sorted(n for n, print_ in before.items() if isinstance(print_, str) and print_ != after[n])
    resized = sorted(n for n, print_ in before.items() if len(print_) != len(after[n]))
    if whole or resized:
        odd = _some(whole + resized)
        if resized and not whole:
            raise ModelError(f"a vocabulary that grew is no change of the base's tensors: {odd}; nothing was written")
        raise ModelError(f"weights differ from the base that were not trained: {odd}; nothing was written")
    pairs = {n: zip(print_, after[n], strict=True) for n, print_ in before.items() if isinstance(print_, list)}
    rows = {n: [i for i, (a, b) in enumerate(pair) if a != b] for n, pair in pairs.items()}
    return {n: found for n, found in rows.items() if found}


def _require_allowed(changed: dict[str, list[int]], may_change: Rows | None) -> None:
    beyond = [n for n in changed if may_change is not None and n not in may_change]
    for n, rows in (may_change or {}).items():
        other = sorted(set(changed.get(n, ())) - set(rows)) if rows is not None else []
        beyond += [f"{n}, rows {other}"] if other else []
    if beyond:
        raise ModelError(f"weights differ from the base that were not trained: {_some(beyond)}; nothing was written")


def _equal_rows(before: dict[str, Any], may_change: Rows, changed: dict[str, list[int]]) -> dict[str, int]:
    """Weight -> number of its rows that might have changed and did not, as those of experts that no token reached."""
    allowed = {n: len(before[n]) if rows is None else len(rows) for n, rows in may_change.items()}
    return {n: size - len(changed.get(n, ())) for n, size in allowed.items() if size > len(changed.get(n, ()))}


def _require_names(model: PreTrainedModel, base: str, folder: Path) -> dict[str, Any]:
    """Number of tensors on disk, and names in the base's own checkpoint that its class does not read (of those that it
    does none is missing, as fingerprints are equal). ModelError where a name is not one of that checkpoint's.

    Where that has stacked experts, those here have the names that the family has, stacked or not.
    """
    from dragoman.modeling import expert_stacks, stored_names

    found, expected, stacks = stored_names(str(folder)), stored_names(base), expert_stacks(model)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    free = tuple(f"{n.rpartition('.')[0]}." for n in stacks) if stacks.keys() & expected else ()
    if odd := sorted(n for n in found - expected - tied if not n.startswith(free)):
        raise ModelError(
            f"the names on disk are not those of {base}: {_some(odd)}; other programs would not find these weights; "
            "nothing was written"
        )
    return {"names": len(found), "left_out": sorted(n for n in expected - found - tied if not n.startswith(free))}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# An adapter


def _export_adapter(config: Config, delta: Delta, out: Path) -> dict[str, Any]:
    """Write the delta for PEFT; read it again with PEFT and compare."""
    from peft import PeftModel

    from dragoman.commands.reloading import leave_gpu, logits
    from dragoman.methods import lora
    from dragoman.methods.delta import open_base
    from dragoman.modeling import model_path

    model, codec = open_base(delta, config.base, config.device)
    delta.put_on(model, codec)
    base = config.base or delta.base
    with atomic_write(out) as partial:
        lora.save_peft(model, model_path(base), partial)
        ids, device = fixed_batch(model), str(model.device)
        expected_BSV = logits(model, ids, device)
        leave_gpu(model)
        plain = open_base(delta, config.base, device)[0]
        as_trained: dict[str, Any] = {"torch_device": device, "autocast_adapter_dtype": False}  # else A, B in float32
        read = PeftModel.from_pretrained(plain, str(partial), **as_trained).eval()
        same = _compared(logits(read, ids, device), expected_BSV, "bits", delta.dtype, "converting")
        about = {"command": "export", "config": asdict(config), "base": base, "proof": {"logits": same}}
        write_json(partial / "record.json", record := environment() | about)
    return record
