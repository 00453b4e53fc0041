"""The last section: model, corpus, machine, times and the command that repeats the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dragoman.reporting.blocks import MISSING, Block, Cell, Section, duration, table_rows
from dragoman.reporting.sentences import Record, as_known, name


def making(record: Record) -> Section:
    """How the numbers were made."""
    languages = record.get("corpus", {}).get("languages", {})
    splits = list(dict.fromkeys(s for about in languages.values() for s in about.get("segments", {})))
    known = {True: as_known(record), False: f"not {as_known(record)}", None: MISSING}
    segments = [
        [
            Cell(name(record, g), g),
            known[about.get("known")],
            *(str(about.get("segments", {}).get(s, 0)) for s in splits),
        ]
        for g, about in languages.items()
    ]
    times = [[step, duration(seconds)] for step, seconds in record.get("step_seconds", {}).items()]
    config = json.dumps(record["config"], indent=1, ensure_ascii=False, default=str) if record.get("config") else ""
    blocks = [
        Block("code", record.get("repeat", ""), "The command that repeats it"),
        Block("text table", table_rows(_facts(record)), "Model, corpus, machine"),
        Block("table", table_rows(segments), "Languages and segments", ("language", "base model", *splits)),
        Block(
            "text table", table_rows(record.get("signatures", {}).items()), "Signatures", ("metric", "what must match")
        ),
        Block("table", table_rows(times), "Time by step", ("step", "time")),
        Block("folded", config, head=("Full configuration",)),
    ]
    return Section("How this was made", blocks)


def _facts(record: Record) -> list[list[str]]:
    model, corpus, machine = (record.get(part) or {} for part in ("model", "corpus", "machine"))
    groups = ", ".join(f"{group} {n:,}" for group, n in (model.get("parameters") or {}).items())
    memory = f"{record['peak_memory_mb']:,.0f} MB" if record.get("peak_memory_mb") else ""
    facts = {
        "model": " ".join(filter(None, (model.get("name"), f"({model['class']})" if model.get("class") else ""))),
        "parameters": f"{model['total']:,}" + (f": {groups}" if groups else "") if model.get("total") else "",
        "mixture of experts": _shape(model),
        "model checksum": model.get("sha256", ""),
        "corpus": ", licence ".join(filter(None, (corpus.get("name"), corpus.get("licence")))),
        "corpus checksum": corpus.get("checksum", ""),
        "machine": ", ".join(filter(None, (machine.get("processor"), _size(machine), machine.get("system")))),
        "time, peak memory": ", ".join(filter(None, (duration(record.get("seconds") or 0), memory))),
        "versions": ", ".join(f"{package} {version}" for package, version in (record.get("versions") or {}).items()),
        "commit": record.get("commit") or "",
        "seed": str(record.get("seed", "")),
        "made": record.get("created", ""),
    }
    return [[key, str(value)] for key, value in facts.items() if value]


def _shape(model: Mapping[str, Any]) -> str:
    if not model.get("moe_layers"):
        return ""
    per_layer = [sorted(set(model.get(key) or ())) for key in ("num_experts", "top_k")]
    experts, chosen = (" to ".join(dict.fromkeys(map(str, (n[0], n[-1])))) if n else "?" for n in per_layer)
    return f"{model['moe_layers']} layers, {experts} experts each, {chosen} chosen per token"


def _size(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores, {machine.get('memory_gb', '?')} GB" if machine.get("cores") else ""
