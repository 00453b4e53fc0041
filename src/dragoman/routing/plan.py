"""ExpertPlan: which experts of which layers to change, and why. A person can read, diff and edit it.

The file is JSON with one expert a line:

    {"layer": 14, "expert": 6, "role": "language", "statistic": 0.031, "threshold": 0.01},

A plan made by hand needs `format`, `planner`, `num_experts` and `experts`; the rest may be left out. What it says of
trained parameters and their share is for the reader and is not read back: both follow from the experts.
Layers are model layers, as the checkpoint counts them, not MoE layers.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from dragoman.errors import DataError
from dragoman.record import atomic_write, read_json
from dragoman.routing.sizes import Sizes

FORMAT = "dragoman-plan/1"
ROLES = ("language", "shared", "task", "used", "random", "all")
"""Why an expert was taken: it is a language's own, all languages share it, a task uses it more than other text, a text
uses it most, by lot, with all of its layer."""
WIDTH = 110
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class PlannedExpert:
    """One expert that a plan changes."""

    id: int
    """Row of the expert in its layer."""
    role: str
    """One of ROLES: why it was taken."""
    statistic: float | None = None
    """What the rule measured, as the gap to the next language; None where nothing was."""
    threshold: float | None = None
    """What the statistic was held against; of a rule that ranks, the statistic of the last expert that was taken."""


@dataclass(frozen=True)
class ExpertPlan:
    """What planners make and methods consume."""

    planner: str
    layers: dict[int, tuple[PlannedExpert, ...]]
    """Model layer -> planned experts in order of their ids; layers without any are left out."""
    num_experts: dict[int, int]
    """Model layer -> experts it has, for every MoE layer of the model: the plan fits no other model."""
    target: str | None = None
    """Language the plan is for."""
    parent: str | None = None
    """Known language whose experts the target takes."""
    train_routers: bool = True
    """Whether the routers of the planned layers train too."""
    trace_sha256: str | None = None
    """Checksum of the trace the plan was made from."""
    model_sha256: str | None = None
    """Checksum of the model of that trace; None where it was not on the disk."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Thresholds and choices as resolved, in JSON types."""
    why: tuple[str, ...] = ()
    """The reasons in words."""
    sizes: Sizes | None = None
    """Parameters of the model; None where the trace does not know them."""

    def experts(self) -> dict[int, tuple[int, ...]]:
        """Model layer -> ids of its planned experts, ascending."""
        return {layer: tuple(sorted(e.id for e in planned)) for layer, planned in sorted(self.layers.items())}

    @property
    def size(self) -> int:
        """Number of planned experts over all layers."""
        return sum(map(len, self.layers.values()))

    @property
    def share(self) -> float:
        """Planned experts over all routed experts of the model."""
        return self.size / sum(self.num_experts.values())

    @property
    def trained_parameters(self) -> int | None:
        """Parameters of the planned experts, and of the routers that train; None where sizes are not known."""
        return None if self.sizes is None else self.sizes.trained(self.experts(), self.train_routers)

    @property
    def trained_share(self) -> float | None:
        """Trained parameters over all of the model; None where sizes are not known."""
        return None if self.sizes is None else self.sizes.share(self.experts(), self.train_routers)

    def save(self, path: Path | str) -> None:
        """Write the plan as JSON, whole or not at all."""
        with atomic_write(Path(path)) as partial:
            partial.write_text(_json(self), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> ExpertPlan:
        """Read what `save` or a person wrote; DataError lists everything that is wrong with it."""
        raw = read_json(Path(path))
        if faults := _faults(raw):
            raise DataError(
                f"{path} is not a usable plan: {'; '.join(faults)}; mend it or make one with `dragoman plan`"
            )
        return _parsed(raw)

    def text(self) -> str:
        """The plan for people: what it changes, expert by expert, the settings and the reasons."""
        language = f" for {self.target}" if self.target else ""
        parent = f", parent {self.parent}" if self.parent else ""
        routers = "train" if self.train_routers else "stay frozen"
        head = (
            f"Plan {self.planner}{language}{parent}: {self.size} of {sum(self.num_experts.values())} experts "
            f"({self.share:.1%}) in {len(self.layers)} of {len(self.num_experts)} layers; their routers {routers}."
        )
        if self.sizes:
            head += (
                f" Trains {self.trained_parameters:,} of {self.sizes.total:,} parameters ({self.trained_share:.2%})."
            )
        table = ["layer  role      from threshold: experts (statistic)", *_table(self)]
        return page(head, table, self.settings, self.why, "trace", self.trace_sha256)


def page(
    head: str, table: Iterable[str], settings: Mapping[str, Any], why: Iterable[str], source: str, sha256: str | None
) -> str:
    """A plan for people. source: what it was made from, of this checksum; None where it is not known."""
    chosen = [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    reasons = [_wrapped(f"  - {reason}", 4) for reason in why]
    parts = [_wrapped(head, 2), "", *table]
    parts += ["", "Settings", *chosen] if chosen else []
    parts += ["", "Why", *reasons] if reasons else []
    parts += ["", f"Made from the {source} {sha256[:12]}."] if sha256 else []
    return "\n".join(parts)


def _table(plan: ExpertPlan) -> list[str]:
    lines = []
    for layer, planned in sorted(plan.layers.items()):
        ordered = sorted(planned, key=lambda e: ROLES.index(e.role))
        for role, threshold in dict.fromkeys((e.role, e.threshold) for e in ordered):
            members = [e for e in planned if (e.role, e.threshold) == (role, threshold)]
            bound = "" if threshold is None else f"from{NO_BREAK}{threshold:.4g}: "
            lines.append(_wrapped(f"{layer:>5}  {role:<8}  {bound}{_members(members)}", 17))
    return lines


def _members(members: list[PlannedExpert]) -> str:
    """Largest statistic first, or runs of ids where nothing was measured."""
    measured = [(e.statistic, e.id) for e in members if e.statistic is not None]
    if len(measured) == len(members):
        return ", ".join(f"{i}{NO_BREAK}({value:.4g})" for value, i in sorted(measured, key=lambda m: (-m[0], m[1])))
    return _runs(e.id for e in members)


def _runs(ids: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _wrapped(line: str, indent: int) -> str:
    filled = textwrap.fill(line, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    return filled.replace(NO_BREAK, " ")


# ---- the file ------------------------------------------------------------------------------------------------------

FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "planner": (str,),
    "target": (str, type(None)),
    "parent": (str, type(None)),
    "train_routers": (bool,),
    "trace_sha256": (str, type(None)),
    "model_sha256": (str, type(None)),
    "settings": (dict,),
    "why": (list,),
    "num_experts": (dict,),
    "parameters": (dict, type(None)),
    "experts": (list,),
}
REQUIRED = ("format", "planner", "num_experts", "experts")
PLAIN = ("planner", "target", "parent", "train_routers", "trace_sha256", "model_sha256")
EXPERT_FIELDS = ("layer", "expert", "role", "statistic", "threshold")
MEASURED = ("statistic", "threshold")
SIZES = ("total", "expert", "router")


def _json(plan: ExpertPlan) -> str:
    fields = [f'"format": {_dump(FORMAT)}', *[f'"{name}": {_dump(getattr(plan, name))}' for name in PLAIN]]
    fields.append(f'"settings": {_block("{}", [f"{_dump(n)}: {_dump(v)}" for n, v in plan.settings.items()])}')
    fields.append(f'"why": {_block("[]", [_dump(reason) for reason in plan.why])}')
    fields.append(f'"num_experts": {_dump({str(layer): n for layer, n in sorted(plan.num_experts.items())})}')
    if plan.sizes:
        counted = {"trained": plan.trained_parameters, "share": round(plan.trained_share or 0, 6)}
        noted = counted | {name: getattr(plan.sizes, name) for name in SIZES}
        fields.append(f'"parameters": {_block("{}", [f"{_dump(n)}: {_dump(v)}" for n, v in noted.items()])}')
    rows = [
        _dump(
            {"layer": layer, "expert": e.id, "role": e.role, "statistic": e.statistic}
            | ({} if e.threshold is None else {"threshold": e.threshold})
        )
        for layer, planned in sorted(plan.layers.items())
        for e in sorted(planned, key=lambda e: e.id)
    ]
    fields.append(f'"experts": {_block("[]", rows)}')
    return "{\n " + ",\n ".join(fields) + "\n}\n"


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _block(brackets: str, lines: list[str]) -> str:
    return brackets[0] + "\n  " + ",\n  ".join(lines) + "\n " + brackets[1] if lines else brackets


def _parsed(raw: dict[str, Any]) -> ExpertPlan:
    layers: dict[int, list[PlannedExpert]] = {}
    for row in sorted(raw["experts"], key=lambda row: (row["layer"], row["expert"])):
        measured = (row.get(name) for name in MEASURED)
        layers.setdefault(row["layer"], []).append(PlannedExpert(row["expert"], row["role"], *measured))
    plain = {name: raw[name] for name in (*PLAIN, "settings") if name in raw}
    return ExpertPlan(
        layers={layer: tuple(planned) for layer, planned in layers.items()},
        num_experts={int(layer): n for layer, n in raw["num_experts"].items()},
        why=tuple(raw.get("why", ())),
        sizes=_sizes(raw.get("parameters")),
        **plain,
    )


def _sizes(raw: dict[str, Any] | None) -> Sizes | None:
    if raw is None:
        return None
    expert, router = ({int(layer): n for layer, n in raw[name].items()} for name in SIZES[1:])
    return Sizes(raw["total"], expert, router)


def _faults(raw: Any) -> list[str]:
    """Everything that is wrong with a plan file, in words."""
    if faults := field_faults(raw, FORMAT, FIELDS, REQUIRED):
        return faults
    faults = layer_faults("num_experts", raw["num_experts"]) or _expert_faults(raw["experts"], raw["num_experts"])
    return faults or _size_faults(raw.get("parameters"), raw["num_experts"])


def field_faults(raw: Any, kind: str, fields: Mapping[str, tuple[type, ...]], required: Iterable[str]) -> list[str]:
    """What is wrong with a file's format, keys and the types of its values, in words."""
    if not isinstance(raw, dict):
        return ["it holds no JSON object"]
    if raw.get("format") != kind:
        return [f"the format is {raw.get('format')!r}, not {kind!r}"]
    faults = [f"{name!r} is missing" for name in required if name not in raw]
    faults += [_unknown(name, fields) for name in raw if name not in fields]
    return faults + [
        f"{name!r} is {raw[name]!r}, not {' or '.join('null' if t is type(None) else t.__name__ for t in types)}"
        for name, types in fields.items()
        if name in raw and not isinstance(raw[name], types)
    ]


def _unknown(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"unknown key {name!r}" + (f" (nearest: {near[0]!r})" if near else f" (known: {', '.join(known)})")


def layer_faults(name: str, values: dict[str, Any], whole: bool = True) -> list[str]:
    """What is wrong with a field that maps layers to numbers, in words. whole: these are counts above 0."""
    faults = [f"layer {k!r} of {name!r} is not a number" for k in values if not (k.isascii() and k.isdigit())]
    wanted = "a whole number above 0" if whole else "a number"
    wrong = {k: n for k, n in values.items() if not (_whole(n) and n > 0 if whole else _number(n))}
    return faults + [f"{name!r} of layer {k} is {n!r}, not {wanted}" for k, n in wrong.items()]


def _expert_faults(rows: list[Any], num_experts: dict[str, int]) -> list[str]:
    if not rows:
        return ["it plans no expert"]
    faults = []
    for line, row in enumerate(rows, 1):
        if row_faults := _row_faults(row, num_experts):
            faults.append(f"expert line {line}: {', '.join(row_faults)}")
    if faults:
        return faults
    twice = [place for place, n in Counter((row["layer"], row["expert"]) for row in rows).items() if n > 1]
    return [f"layer {layer} names expert {expert} more than once" for layer, expert in twice]


def _row_faults(row: Any, num_experts: dict[str, int]) -> list[str]:
    if not isinstance(row, dict):
        return [f"{row!r} is no JSON object"]
    faults = [_unknown(name, EXPERT_FIELDS) for name in row if name not in EXPERT_FIELDS]
    layer, expert, role = (row.get(name) for name in EXPERT_FIELDS[:3])
    if not _whole(layer) or str(layer) not in num_experts:
        faults.append(f"layer {layer!r} is none of the MoE layers {', '.join(num_experts)}")
    elif not _whole(expert) or not 0 <= expert < num_experts[str(layer)]:
        faults.append(f"expert {expert!r} of layer {layer} is not in 0-{num_experts[str(layer)] - 1}")
    if role not in ROLES:
        faults.append(f"role {role!r} is none of {', '.join(ROLES)}")
    for name in MEASURED:
        value = row.get(name)
        if value is not None and not _number(value):
            faults.append(f"{name} {value!r} is neither a number nor null")
    return faults


def _size_faults(sizes: dict[str, Any] | None, num_experts: dict[str, int]) -> list[str]:
    if sizes is None:
        return []
    total = sizes.get("total")
    faults = [] if _whole(total) and total > 0 else [f"'total' of 'parameters' is {total!r}, not a number above 0"]
    return faults + [
        f"{name!r} of 'parameters' does not give a whole number for each layer of 'num_experts'"
        for name in SIZES[1:]
        if not isinstance(sizes.get(name), dict)
        or sizes[name].keys() != num_experts.keys()
        or not all(map(_whole, sizes[name].values()))
    ]


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def other_weights(made_from: str | None, here: str | None, what: str) -> list[str]:
    """A sentence where a plan, or what was made of it, is used on a model with other weights than its own.

    made_from, here: checksums of the two models; what: of which nothing is said where one is not known.
    """
    if None in (made_from, here) or made_from == here:
        return []
    return [
        f"the {what} was made from other weights than those of this model: its numbers of experts mean the same only "
        "where one model was trained from the other"
    ]


# ---- two plans -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanDifference:
    """Experts of two plans: model layer -> ids, for every layer that either plan names."""

    only_first: dict[int, tuple[int, ...]]
    both: dict[int, tuple[int, ...]]
    only_second: dict[int, tuple[int, ...]]

    @property
    def jaccard(self) -> float:
        """Experts in both over experts in either; 1 for equal plans, 0 for disjoint ones."""
        parts = (self.both, self.only_first, self.only_second)
        common, first, second = (sum(map(len, part.values())) for part in parts)
        return common / (common + first + second)

    def text(self) -> str:
        """The difference for people, one line a layer."""
        lines = [f"Jaccard {self.jaccard:.3f} over all planned experts", "", "layer  both | only first | only second"]
        for layer in self.both:
            parts = (self.both[layer], self.only_first[layer], self.only_second[layer])
            lines.append(f"{layer:>5}  {' | '.join(_runs(ids) or '-' for ids in parts)}")
        return "\n".join(lines)


def differences(first: ExpertPlan, second: ExpertPlan) -> PlanDifference:
    """Compare the experts of two plans of one model; DataError where the models' layers or experts differ."""
    if first.num_experts != second.num_experts:
        raise DataError(
            f"the plans are for different models, experts by layer {first.num_experts} and {second.num_experts}; "
            "compare plans of one model"
        )
    a, b = ({layer: set(ids) for layer, ids in plan.experts().items()} for plan in (first, second))
    layers = sorted(a | b)
    pairs = {layer: (a.get(layer, set()), b.get(layer, set())) for layer in layers}
    return PlanDifference(
        only_first={layer: tuple(sorted(x - y)) for layer, (x, y) in pairs.items()},
        both={layer: tuple(sorted(x & y)) for layer, (x, y) in pairs.items()},
        only_second={layer: tuple(sorted(y - x)) for layer, (x, y) in pairs.items()},
    )
