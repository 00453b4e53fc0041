"""Claims: what the records of a question say about each, by bootstrap over seeds and documents.

`claims.yaml` of a question has the columns of its table, the axes of its figure and its claims:

    columns: [target_bits, worst_loss]
    figure: {x: worst_loss, y: gain, list: primary}
    claims:
      - {id, paper, source, ours, a: list/arm, b: list/arm, measure, margin: 0, targets: [...], seeds: [...], family}
      - {id, paper, source, ours, a: list/arm, effect: name, better: higher, family}   # that a script measured
      - {id, paper, source, ours, a: [lists/arm], b: [lists/arm], measure, predictor: ci, family}  # predictions.py
      - {id, paper, source, ours, untestable: why}

`margin` 0.05 asks whether a is better than 1.05 times b (0.95 times where more is better, as a margin of -0.05): does a
compete with b? p-values are adjusted by Holm over the claims of a family (default: primary).
"""

# Shape letters: U documents, S sums of a metric, R resamples, B blocks of sums, K runs, G languages.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dragoman.commands import predictions
from dragoman.commands.experimenting import base_run, read_by, require_same_read, same_documents
from dragoman.commands.experiments import Question, Run, Study, common_runs, final_runs, read_yaml
from dragoman.commands.measures import formula
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation import significance

RESAMPLES = 2000
ABOUT = ("id", "paper", "source", "ours")
CHOICES = ("family", "a", "b", "measure", "margin", "targets", "seeds", "effect", "better", "predictor", "untestable")
KEYS = ABOUT + CHOICES
VERDICTS = ("holds", "does not show", "contradicts", "cannot be tested here", "open")

Join = Callable[..., np.ndarray]
"""Values [R, G] of an arm, and of the base where the measure reads it -> [R]."""


@dataclass(frozen=True)
class Measure:
    """One number of a run: values of a metric in some languages or directions, joined."""

    title: str
    better: str
    """lower or higher."""
    metric: str
    labels: str
    """target, into (from English into the target), known, english or every."""
    join: Join
    digits: int = 2
    over_base: bool = False
    """Does it read the values of the base too?"""


def _mean(values_RG: np.ndarray) -> np.ndarray:
    return values_RG.mean(axis=1)


def _gain(values_RG: np.ndarray, base_RG: np.ndarray) -> np.ndarray:
    return 100 * (1 - values_RG / base_RG).mean(axis=1)


def _worst_loss(values_RG: np.ndarray, base_RG: np.ndarray) -> np.ndarray:
    return 100 * (values_RG / base_RG - 1).max(axis=1)


def _mean_loss(values_RG: np.ndarray, base_RG: np.ndarray) -> np.ndarray:
    return 100 * (values_RG / base_RG - 1).mean(axis=1)


MEASURES = {
    "target_bits": Measure("target, bits per byte", "lower", "bits_per_byte", "target", _mean, 3),
    "gain": Measure("gain of the target, %", "higher", "bits_per_byte", "target", _gain, over_base=True),
    "target_chrf": Measure("chrF into the target", "higher", "chrf", "into", _mean, 1),
    "worst_loss": Measure("worst known loss, %", "lower", "bits_per_byte", "known", _worst_loss, over_base=True),
    "mean_loss": Measure("mean known loss, %", "lower", "bits_per_byte", "known", _mean_loss, over_base=True),
    "known_bits": Measure("known, bits per byte", "lower", "bits_per_byte", "known", _mean, 3),
    "english_bits": Measure("English, bits per byte", "lower", "bits_per_byte", "english", _mean, 3),
    "chrf": Measure("chrF, all directions", "higher", "chrf", "every", _mean, 1),
    "target_accuracy": Measure("accuracy, %", "higher", "task_accuracy", "target", _mean, 1),
    "accuracy": Measure("accuracy, all languages, %", "higher", "task_accuracy", "every", _mean, 1),
}
"""Name in claims.yaml -> measure."""


@dataclass(frozen=True)
class Panel:
    """Sums of every run of an arm, in blocks that a measure joins, targets side by side."""

    sums_KUS: list[np.ndarray]
    """[U, B * S] of each run; zeros where a target has nothing of a document."""
    documents: list[str]
    """U, of any target."""
    of_targets: tuple[tuple[str, ...], ...]
    """Those of each."""
    measure: Measure
    labels: tuple[tuple[str, ...], ...]
    """Languages or directions of each target."""
    seeds: tuple[int, ...]
    """Of each run."""
    arm: str
    """Its question and list/arm."""
    read: dict[str, dict[str, str]]
    """Name of a run, or of a base that it is measured from -> what it read, `read_by`."""

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        """Summed sums [R, B * S] -> scores [R]: the measure of each target, and their mean."""
        sides = 1 + self.measure.over_base
        counts = [len(labels) for labels in self.labels]
        blocks = sides * sum(counts)
        sums_RBS = np.atleast_2d(sums).reshape(-1, blocks, sums.shape[-1] // blocks)
        values_RB = formula(self.measure.metric)(sums_RBS.reshape(-1, sums_RBS.shape[-1])).reshape(-1, blocks)
        scores, start = [], 0
        for n in counts:
            of_target_RB = values_RB[:, start : start + sides * n]
            scores.append(self.measure.join(*np.split(of_target_RB, sides, axis=1)))
            start += sides * n
        mean_R = np.mean(scores, axis=0)
        return mean_R if sums.ndim > 1 else mean_R[0]


def panel(
    question: Question, arm: str, name: str, targets: Sequence[str] = (), seeds: Sequence[int] = ()
) -> Panel | list[str]:
    """The runs of `list/arm` on the targets, or the names of those without a result.

    Raises ConfigError for a base that is not there, DataError where runs read or were scored on other text.
    """
    listed, _, arm_name = arm.partition("/")
    study = question.studies[listed]
    chosen = list(targets or study.targets)
    kept = _seeds(listed, study, arm_name, seeds)
    runs = [r for r in final_runs(listed, study) if r.arm == arm_name and r.target in chosen and r.seed in kept]
    measure = MEASURES[name]
    bases = {g: base_run(question, listed, g) for g in chosen} if measure.over_base else {}
    if missing := [r.name for r in dict.fromkeys([*runs, *bases.values()]) if not question.ended(r)]:
        return missing
    read = {r.name: read_by(question, r) for r in [*runs, *bases.values()]}
    require_same_read(f"{question.name}, {arm},", read)
    labels = {g: labels_of(question, study, measure, next(r for r in runs if r.target == g)) for g in chosen}
    sides = {r: [r, bases[r.target]] if bases else [r] for r in runs}
    of_one = {g: [s for r in runs if r.target == g for s in sides[r]] for g in chosen}
    of_target = {g: same_documents(question, scored, measure.metric) for g, scored in of_one.items()}
    documents = sorted({name for names in of_target.values() for name in names})
    place = {g: np.searchsorted(documents, names) for g, names in of_target.items()}

    def placed(run: Run) -> np.ndarray:
        sums_US = _blocks(question, sides[run], measure, labels[run.target])
        whole_US = np.zeros((len(documents), sums_US.shape[1]))
        whole_US[place[run.target]] = sums_US
        return whole_US

    by_seed = [[next(r for r in runs if (r.target, r.seed) == (g, s)) for g in chosen] for s in kept]
    sums_KUS = [np.concatenate([placed(r) for r in of_seed], axis=1) for of_seed in by_seed]
    spoken, told = tuple(map(tuple, labels.values())), f"{question.name}, {arm}"
    return Panel(sums_KUS, documents, tuple(of_target.values()), measure, spoken, tuple(kept), told, read)


def _seeds(listed: str, study: Study, arm: str, asked: Sequence[int]) -> list[int]:
    """Those of an arm's seeds that are asked for, in order; an arm of seed 0 alone, trained by nobody, has that."""
    its = sorted({r.seed for r in final_runs(listed, study) if r.arm == arm})
    return its if not asked or its == [0] else [s for s in its if s in asked]


def labels_of(question: Question, study: Study, measure: Measure, run: Run) -> list[str]:
    """The languages or directions of an ended run that a measure joins."""
    record = question.ended(run)
    assert record
    of_run = {"target": [run.target], "into": [f"{study.known[0]}-{run.target}"], "english": [study.known[0]]}
    of_run |= {"known": list(study.known), "every": list(record.get("sums", {}).get(measure.metric, {}))}
    return of_run[measure.labels]


def _blocks(question: Question, runs: Sequence[Run], measure: Measure, labels: Sequence[str]) -> np.ndarray:
    """Sums [U, G * S] of each of the runs, side by side."""
    sums = []
    for r in runs:
        record = question.ended(r)
        assert record
        there = record.get("sums", {}).get(measure.metric, {})
        if absent := [g for g in labels if g not in there] or ([] if labels else [measure.metric]):
            raise DataError(f"the record of {r.name} has no {measure.metric} of {', '.join(absent)}")
        sums += [np.array(there[g], dtype=np.float64) for g in labels]
    return np.concatenate(sums, axis=1)


# Reading


def read_claims(question: Question) -> dict[str, Any]:
    """What claims.yaml says, every claim with its family. ConfigError for all that is wrong in it."""
    path = question.folder / "claims.yaml"
    if not path.is_file():
        return {"columns": [], "claims": []}
    given = read_yaml(path, "file of claims")
    shapes = {"columns": (list, "list"), "claims": (list, "list"), "figure": (dict, "mapping")}
    faults = [f"{name} is no key of it" for name in given if name not in shapes]
    faults += [f"{name} is missing" for name in ("columns", "claims") if name not in given]
    faults += [f"{k} is no {s}" for k, (kind, s) in shapes.items() if k in given and not isinstance(given[k], kind)]
    if not faults:
        faults += [f"columns {_no_measure(name)}" for name in given["columns"] if str(name) not in MEASURES]
        faults += _figure_faults(question, given["figure"]) if "figure" in given else []
        faults += [f"a claim is not a mapping: {c}" for c in given["claims"] if not isinstance(c, dict)]
        claims = [c for c in given["claims"] if isinstance(c, dict)]
        faults += [f"{c.get('id', '?')} {fault}" for c in claims for fault in _claim_faults(question, c)]
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}; docs/experiments.md says what claims are")
    return given | {"claims": [{"family": "primary"} | c for c in given["claims"]]}


def _no_measure(name: object) -> str:
    return f"names {name!r}, and measures are {', '.join(MEASURES)}"


def _figure_faults(question: Question, axes: Mapping[str, Any]) -> list[str]:
    of = {axis: axes.get(axis) for axis in ("x", "y")}
    faults = [f"figure {_no_measure(name)} (axis {axis})" for axis, name in of.items() if str(name) not in MEASURES]
    study = question.studies.get(str(axes.get("list")))
    if study is None or "base" not in study.arms:
        faults.append(f"figure names the list {axes.get('list')}, and there is no such list with an arm base")
    return faults


def _claim_faults(question: Question, claim: Mapping[str, Any]) -> list[str]:
    """What is wrong with a claim; what its arms have is looked at where they are there."""
    faults = [f"has no {key}" for key in ABOUT if key not in claim]
    faults += [f"has {key}, which is no key of a claim" for key in claim if key not in KEYS]
    if "untestable" in claim:
        return faults
    if "measure" not in claim and "effect" not in claim:
        return [*faults, "has no measure, effect or reason why it is untestable"]
    sides = ("a",) if "effect" in claim else ("a", "b")
    faults += [f"has no {side}" for side in sides if side not in claim]
    named = [name for side in sides if side in claim for name in predictions.names(claim, side)]
    arms = {str(name): _arm(question, name) for name in named}
    faults += [f"names {name}, and there is no such list and arm" for name, arm in arms.items() if not arm]
    if "measure" in claim and str(claim["measure"]) not in MEASURES:
        faults.append(_no_measure(claim["measure"]))
    known = {name: arm for name, arm in arms.items() if arm}
    if "predictor" in claim and "a" in claim and "b" in claim:
        return faults + predictions.faults(question, claim)
    return faults + (_effect_faults(known) if "effect" in claim else _choice_faults(claim, known))


def _arm(question: Question, name: object) -> list[Run]:
    """The final runs of `list/arm`; none where it is not there."""
    listed, _, arm = str(name).partition("/")
    study = question.studies.get(listed)
    return [r for r in final_runs(listed, study) if r.arm == arm] if study else []


def _effect_faults(arms: Mapping[str, Sequence[Run]]) -> list[str]:
    return [f"takes an effect of {name}, which has {len(r)} runs, not one" for name, r in arms.items() if len(r) > 1]


def _choice_faults(claim: Mapping[str, Any], arms: Mapping[str, Sequence[Run]]) -> list[str]:
    """Targets and seeds that an arm has not, and targets that are not the same."""
    faults = [f"has {key} that are no list" for key in ("targets", "seeds") if not isinstance(claim.get(key, []), list)]
    if not isinstance(claim.get("margin", 0.0), (int, float)):
        faults.append(f"has the margin {claim['margin']}, which is no number")
    if faults:
        return faults
    for name, runs in arms.items():
        targets, seeds = {r.target for r in runs}, {r.seed for r in runs}
        faults += [f"names the target {g}, which {name} has not" for g in claim.get("targets", ()) if g not in targets]
        asked = () if seeds == {0} else claim.get("seeds", ())
        faults += [f"names the seed {s}, which {name} has not" for s in asked if s not in seeds]
    if not claim.get("targets") and len({frozenset(r.target for r in runs) for runs in arms.values()}) > 1:
        faults.append(f"compares {' and '.join(arms)}, which have other targets; name those that both have")
    return faults


# Comparisons


def require_comparable(a: Panel, b: Panel) -> None:
    """DataError for arms that were scored in other languages, on other documents, or did not read the same."""
    if [sorted(labels) for labels in a.labels] != [sorted(labels) for labels in b.labels]:
        told = [f"{p.arm} in {' '.join(dict.fromkeys(g for labels in p.labels for g in labels))}" for p in (a, b)]
        raise DataError(f"arms that were scored in other languages are not compared: {' and '.join(told)}")
    if a.of_targets != b.of_targets:
        raise DataError(f"arms that were scored on other documents are not compared: {a.arm} and {b.arm}")
    require_same_read(f"{a.arm} against {b.arm}", {**a.read, **b.read})


def compared(a: Panel, b: Panel, margin: float) -> dict[str, Any]:
    """a minus (1 + margin) times b, over runs and documents; over documents alone where neither has two runs.

    Runs are drawn in pairs where both arms have the same seeds.
    """
    given: dict[str, Any] = {"documents": a.documents, "resamples": RESAMPLES}
    require_comparable(a, b)
    runs = len(a.sums_KUS), len(b.sums_KUS)
    found: significance.Comparison
    if max(runs) == 1:
        if margin:
            raise ConfigError("a margin needs two runs or more of an arm")
        found = significance.paired_bootstrap(a.sums_KUS[0], b.sums_KUS[0], a, **given)
    else:
        same = a.seeds == b.seeds
        found = significance.hierarchical_bootstrap(a.sums_KUS, b.sums_KUS, a, same_seeds=same, margin=margin, **given)
    values = [[float(p(sums_US.sum(axis=0))) for sums_US in p.sums_KUS] for p in (a, b)]
    kept: dict[str, Any] = {k: getattr(found, k) for k in ("difference", "low", "high", "p_value", "units")}
    kept |= {"values": values, "by_seed": a.seeds == b.seeds or min(runs) == 1}
    return kept | {"a": float(np.mean(values[0])), "b": float(np.mean(values[1])), "runs": list(runs)}


def judged(question: Question) -> list[dict[str, Any]]:
    """Every claim of a question with its effect and verdict; without a result those whose runs are missing."""
    found = [claim | _effect(question, claim) for claim in read_claims(question)["claims"]]
    for family in {c["family"] for c in found}:
        tested = [c for c in found if "p_value" in c and c["family"] == family]
        for c, p in zip(tested, significance.holm([c["p_value"] for c in tested]), strict=True):
            c["p_holm"] = float(p)
    waiting = {c["family"] for c in found if "missing" in c}
    return [c | {"verdict": verdict(c, c["family"] in waiting)} for c in found]


def _effect(question: Question, claim: Mapping[str, Any]) -> dict[str, Any]:
    if "untestable" in claim:
        return {}
    if "effect" in claim:
        return _measured(question, claim)
    if "predictor" in claim:
        return _predicted(question, claim)
    ours = question.studies[claim["a"].partition("/")[0]]
    which = claim.get("targets") or tuple(ours.targets), claim.get("seeds", ())  # of both arms in the same order
    panels = [panel(question, claim[side], claim["measure"], *which) for side in ("a", "b")]
    if missing := [name for p in panels if isinstance(p, list) for name in p]:
        return {"missing": list(dict.fromkeys(missing))}
    a, b = (p for p in panels if isinstance(p, Panel))
    return compared(a, b, claim.get("margin", 0.0)) | {"better": MEASURES[claim["measure"]].better}


def _predicted(question: Question, claim: Mapping[str, Any]) -> dict[str, Any]:
    """The slope of the gain on a share that was there before, over the targets of all lists."""
    missing: list[str] = []
    points: list[tuple[float, float, float, int]] = []
    for k, (a, b) in enumerate(zip(predictions.names(claim, "a"), predictions.names(claim, "b"), strict=True)):
        listed = str(a).partition("/")[0]
        (prepared,) = common_runs(listed, question.studies[listed])
        record = question.ended(prepared)
        missing += [] if record else [prepared.name]
        for g in question.studies[listed].targets:
            panels = [panel(question, name, claim["measure"], [g]) for name in (a, b)]
            missing += [name for p in panels if isinstance(p, list) for name in p]
            pair = [p for p in panels if isinstance(p, Panel)]
            if record and not missing:
                require_comparable(*pair)
                means = [np.mean([p(sums.sum(axis=0)) for sums in p.sums_KUS]) for p in pair]
                points.append((float(means[0] - means[1]), *predictions.before(record, claim["predictor"], g), k))
    if missing:
        return {"missing": list(dict.fromkeys(missing))}
    gain, share, accuracy, lists = zip(*points, strict=True)
    found = predictions.slope(np.array(gain), np.array(share), np.array(accuracy), lists)
    return found | {"better": MEASURES[claim["measure"]].better}


def _measured(question: Question, claim: Mapping[str, Any]) -> dict[str, Any]:
    """An effect that a script of the run has put into its record: difference, low, high, p_value, units."""
    (run,) = _arm(question, claim["a"])
    if not (record := question.ended(run)):
        return {"missing": [run.name]}
    effects = record.get("effects", {})
    found = {k: claim[k] for k in ("better",) if k in claim} | effects.get(claim["effect"], {})
    if lacking := [k for k in ("difference", "p_value", "better") if k not in found]:
        raise DataError(
            f"{claim['id']} asks for {', '.join(lacking)} of the effect {claim['effect']}, which the record of "
            f"{run.name} has not; its effects are {', '.join(effects) or 'none'}"
        )
    return found


def verdict(claim: Mapping[str, Any], waiting: bool) -> str:
    """One of VERDICTS. A claim is open until all of its family are tested, for Holm needs them all.

    With units that are too few to judge it shows nothing; what predicts a gain has an exact test of its own.
    """
    if "untestable" in claim:
        return "cannot be tested here"
    if waiting or "p_value" not in claim:
        return "open"
    resampled = "units" in claim and "predictor" not in claim
    if claim["p_holm"] >= significance.LEVEL or (resampled and significance.too_few_to_judge(claim["units"])):
        return "does not show"
    return "holds" if (claim["difference"] < 0) == (claim["better"] == "lower") else "contradicts"
