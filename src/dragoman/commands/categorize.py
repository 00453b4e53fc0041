"""`dragoman categorize`: what a model gets right in English, in other languages, in both; can alignment help?

The record holds, for each language, `accuracy` (share, Wilson interval); for each target `counts` and `shares` of cc,
ci, ic and ii (first letter: correct or incorrect in English, second: in the target), `p_value` of English being better
than the target (exact, one-sided, on the items that differ) and `advice`. `categories.json` beside it keeps the label
of every item, for `dragoman align`; `tasks.npz` has the routing of the English items, prompt and answer, for
`dragoman plan --planner task`; for translation `plain.npz` has that of the same segments as plain text, to contrast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from dragoman.commands import Dtype, Switch, Tags, tasking
from dragoman.corpora.items import REFERENCE, TaskItems
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.tasks import ByMetric, Task
from dragoman.record import claim_folder, environment, read_json, write_json

FORMAT = "dragoman-categories/1"
KEPT = {"task", "items", "items_sha256", "model_sha256", "advice", "labels"}
"""What a file of categories has beside its format."""
LABELS = ("cc", "ci", "ic", "ii")
LITTLE = 0.10
"""Share of ci items under which alignment has little to gain, at the upper end of its interval."""
LEVEL = 0.05


@dataclass(frozen=True)
class Config:
    """Label the items of a task by what a model gets right."""

    model: str
    """Model folder, Hub id or built-in name (mini-moe)."""
    _: KW_ONLY
    task: str = "next"
    """next, heading or translation, made of the corpus; or a folder of MMLU, Belebele, GSM8K or IFEval items."""
    targets: Tags = ()
    """Languages beside English; default: all of the task's files."""
    corpus: str = "help"
    """N-way text that a built-in task is made of."""
    split: str | None = None
    """Of the corpus; default: train, the items that will be trained on."""
    items: int | None = None
    """At most so many items; default: all."""
    shots: int = 0
    """Examples before every prompt of a task, answered, in its language; none of them is scored."""
    chat: Switch = False
    """Put prompts into the model's chat template."""
    normalise: str = ""
    """How likelihoods of options are compared: bytes, pmi or none; default: pmi for next and heading, else bytes."""
    into: str = ""
    """For translation: the language translated into, from English and from each target."""
    metric: str = "chrf"
    """For translation: what is measured of each segment."""
    threshold: float | None = None
    """For translation: the value from which on a segment counts as right; default: the median from English."""
    device: str | None = None
    """cuda or cpu; default: cuda where there is one."""
    dtype: Dtype = "float32"
    """Of the weights; auto: as the model was saved."""
    out: Path = Path("categories")
    """New folder for record.json, categories.json, tasks.npz, and for translation plain.npz."""
    quiet: Switch = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.shots < 0 or (self.items is not None and self.items < 1):
            raise ConfigError(f"items is {self.items} and shots {self.shots}; at least 1 and 0")
        if REFERENCE in self.targets:
            raise ConfigError("English is what all others are compared with; leave en out of --targets")
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ConfigError(f"threshold is {self.threshold}, not a finite number")


def run(config: Config) -> dict[str, Any]:
    """Answer the items in English and in the targets, and label each by where the answer is right."""
    from dragoman.modeling import model_checksum, open_both

    items = open_items(config)
    task = tasking.task_of(items, config.normalise, config.metric, config.threshold)
    chance = task.chance(items.items[REFERENCE])
    model, codec = open_both(config.model, dtype=config.dtype, device=config.device)
    tasking.require_room(model, codec, items)
    out = claim_folder(config.out)
    answers = {g: tasking.answers_of(model, codec, items, task, g, config.quiet) for g in items.items}
    task = _with_threshold(task, answers[REFERENCE], items)
    points = {g: tasking.points_of(task, answers[g], items.items[g]) for g in items.items}
    found = summary({g: p == 1 for g, p in points.items()}, chance)
    model_sha256 = model_checksum(config.model)
    facts = {"task": items.name, "signature": task.signature(), "items": len(items), "items_sha256": items.checksum()}
    record = environment() | {"command": "categorize", "config": asdict(config), "model_sha256": model_sha256}
    record |= {**facts, "about": items.about, "chance": chance, **found}
    record["points"] = {g: p.tolist() for g, p in points.items()}
    labels = {g: dict(zip(items.keys(), labels_of(points, g), strict=True)) for g in items.items if g != REFERENCE}
    kept = {"format": FORMAT, **facts, "model_sha256": model_sha256, "advice": found["advice"], "labels": labels}
    write_json(out / "categories.json", kept)
    about = {"model": config.model, "model_sha256": model_sha256}
    traces = {"tasks.npz": tasking.english_routing, "plain.npz": tasking.plain_routing}
    for name, routing_of in traces.items():
        if (trace := routing_of(model, codec, items, about)) is not None:
            trace.save(out / name)
    write_json(out / "record.json", record)
    return record


def open_items(config: Config) -> TaskItems:
    """The items in English and in the targets."""
    if not config.targets and config.task in tasking.OF_CORPUS:
        raise ConfigError(f"the task {config.task} needs the languages to compare with English: --targets")
    targets = config.targets
    if not targets and Path(config.task).exists():
        targets = tuple(g for g in tasking.read_items(Path(config.task)).items if g != REFERENCE)
        if not targets:
            raise DataError(f"the task {config.task} has English items alone; give files of other languages too")
    settings: dict[str, Any] = {"corpus": config.corpus, "split": config.split, "number": config.items}
    settings |= {"into": config.into, "shots": config.shots, "chat": config.chat}
    return tasking.open_task(config.task, targets, **settings)


def _with_threshold(task: Task, english: Sequence[Any], items: TaskItems) -> Task:
    if not isinstance(task, ByMetric) or not np.isnan(task.threshold):
        return task
    values = [task.value(answer, item) for answer, item in zip(english, items.items[REFERENCE], strict=True)]
    return ByMetric(task.metric, float(np.median(values)))


# ---- labels and what they say --------------------------------------------------------------------------------------


def labels_of(points: Mapping[str, np.ndarray], target: str) -> list[str]:
    """cc, ci, ic or ii of every item; only a whole point is correct."""
    english, other = (["c" if p == 1 else "i" for p in points[g]] for g in (REFERENCE, target))
    return [a + b for a, b in zip(english, other, strict=True)]


def summary(right: Mapping[str, np.ndarray], chance: float) -> dict[str, Any]:
    """Accuracy, counts and shares with Wilson intervals, and advice by target.

    right: language -> whether each item's answer is right, bool [N].
    Source: Wilson 1927 for the interval; Deng et al. 2026 (RA-MoE, arXiv:2605.28306) for the labels, and for the share
    of ci as what predicts the gain.
    """
    result: dict[str, Any] = {"accuracy": {g: wilson(int(r.sum()), len(r)) for g, r in right.items()}}
    result |= {"counts": {}, "shares": {}, "p_value": {}, "advice": {}}
    for g in right:
        if g != REFERENCE:
            counted = Counter(labels_of({k: v.astype(float) for k, v in right.items()}, g))
            counts = {label: counted[label] for label in LABELS}
            result["counts"][g] = counts
            result["shares"][g] = {label: wilson(n, len(right[g])) for label, n in counts.items()}
            differ = counts["ci"] + counts["ic"]
            p = binomtest(counts["ci"], differ, 0.5, alternative="greater").pvalue if differ else 1.0
            result["p_value"][g] = float(p)
            result["advice"][g] = advice(result["accuracy"][REFERENCE], result["shares"][g], p, chance, g)
    return result


def wilson(count: int, of: int) -> dict[str, float]:
    """A share with its 95 % Wilson interval."""
    interval = binomtest(count, of).proportion_ci(0.95, method="wilson")
    return {"share": count / of, "low": float(interval.low), "high": float(interval.high)}


def advice(
    english: Mapping[str, float], shares: Mapping[str, Mapping[str, float]], p_value: float, chance: float, target: str
) -> list[str]:
    """Why aligning the target with English cannot help much, in sentences; empty where nothing speaks against it."""
    told, most = of_english(english, chance), f"{shares['ci']['high']:.0%}"
    if shares["ci"]["high"] < LITTLE:
        told.append(f"at most {most} of items are right in English and wrong in {target} (ci): little to gain")
    if shares["ii"]["low"] > 0.5:
        told.append(f"most items are wrong in both languages (ii {shares['ii']['share']:.0%}): English is no teacher")
    if p_value >= LEVEL:
        told.append(
            f"English is not measurably better than {target} (ci {shares['ci']['share']:.1%} against ic "
            f"{shares['ic']['share']:.1%}, p = {p_value:.2f}): what is ci may be so by luck; take more items"
        )
    return told


def of_english(english: Mapping[str, float], chance: float) -> list[str]:
    """That English has nothing to teach, where its share of right answers may be chance."""
    if english["low"] > chance:
        return []
    found = f"{_interval(english).strip()}, chance {chance:.0%}"
    return [f"English itself is not above chance ({found}): it has nothing to teach on this task"]


def show(record: dict[str, Any]) -> None:
    """Print accuracies, labels and advice."""
    print(f"{record['items']} items of {record['task']}, chance {record['chance']:.0%}; share and 95 % Wilson interval")
    if "groups" in (made := record["about"]):
        print(f"  {made['groups_of_one_page']} of {made['groups']} groups that the corpus gives are of one page")
    for g, a in record["accuracy"].items():
        print(f"  {g:8}{_interval(a)} right")
    for g, shares in record["shares"].items():
        print(f"  {g:8}" + "   ".join(f"{label} {_interval(shares[label])}" for label in LABELS))
        for sentence in record["advice"][g] or ["nothing speaks against aligning it with English"]:
            print(f"    {sentence}")
    print(f"labels, record and, where there are experts, English routing are in {record['config']['out']}")


def _interval(share: Mapping[str, float]) -> str:
    return f"{share['share']:6.1%} [{share['low']:.1%}, {share['high']:.1%}]"


def read_categories(path: Path) -> dict[str, Any]:
    """What `categorize` wrote, a folder or the file in it. DataError for anything else."""
    file = path / "categories.json" if path.is_dir() else path
    raw = read_json(file)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or KEPT - raw.keys() or not _labelled(raw):
        raise DataError(f"{file} holds no categories ({FORMAT}); make them with `dragoman categorize`")
    if raw["labels"].keys() != raw["advice"].keys():
        raise DataError(f"{file} is damaged: its labels and its advice are not of the same languages; make it anew")
    return raw | {"file": str(file)}


def _labelled(raw: Mapping[str, Any]) -> bool:
    """Whether labels are by language and key, and advice is sentences by language."""
    if not (isinstance(raw["advice"], dict) and isinstance(raw["labels"], dict)):
        return False
    told = [x if isinstance(x, list) else [None] for x in raw["advice"].values()]
    return all(isinstance(x, dict) for x in raw["labels"].values()) and all(isinstance(s, str) for x in told for s in x)


def labels_for(categories: Mapping[str, Any], target: str, items: TaskItems, model_sha256: str | None) -> list[str]:
    """The target's label of every item, in order. DataError for categories of other items or of another model."""
    file, labels = categories["file"], categories["labels"]
    if target not in labels:
        raise DataError(f"{file} has labels for {', '.join(labels)}, not for {target}; categorize {target} too")
    if None not in (model_sha256, categories["model_sha256"]) and categories["model_sha256"] != model_sha256:
        raise DataError(f"{file} is of another model; categorize the items with the one that is trained")
    if categories["items_sha256"] != items.checksum():
        raise DataError(
            f"{file} is of other items ({categories['task']}, {categories['items']} items) than the {len(items)} to "
            "train on; categorize the same task, corpus, split, number of items, shots and chat"
        )
    kept = labels[target]
    if odd := [key for key in items.keys() if kept.get(key) not in LABELS]:  # noqa: SIM118
        raise DataError(f"{file} has no label of {odd[0]!r} in {target}, or one that is none of {', '.join(LABELS)}")
    return [kept[key] for key in items.keys()]  # noqa: SIM118
