"""ExpertNumbers: how many translation experts each layer of a dense model gets, and why. A person can edit it.

An `ExpertPlan` names experts that are there; a dense model has none yet. The file is JSON with one layer a line:

    "experts": {
     "0": 1,
     "1": 3,

One made by hand needs `format`, `planner` and `experts`; the rest may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dragoman.errors import DataError, ModelError
from dragoman.record import read_json, write_json
from dragoman.routing.plan import field_faults, layer_faults, page

FORMAT = "dragoman-numbers/1"
FIELDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "planner": (str,),
    "model_sha256": (str, type(None)),
    "settings": (dict,),
    "why": (list,),
    "width": (int, type(None)),
    "feed_forwards": (dict,),
    "statistic": (dict,),
    "experts": (dict,),
}
REQUIRED = ("format", "planner", "experts")
PLAIN = ("planner", "width", "model_sha256", "settings")
LAYERED = ("experts", "statistic", "feed_forwards")


@dataclass(frozen=True)
class ExpertNumbers:
    """What planners of dense models make and `dragoman mix convert` consumes."""

    planner: str
    experts: dict[int, int]
    """Model layer -> translation experts that it gets."""
    statistic: dict[int, float] = field(default_factory=dict)
    """Model layer -> what the rule measured there, as the likeness of languages."""
    width: int | None = None
    """Of the model; None: not known."""
    feed_forwards: dict[int, int] = field(default_factory=dict)
    """Model layer -> width of its feed-forward: the numbers fit no other model."""
    model_sha256: str | None = None
    """Checksum of the model that was measured; None where it was not on the disk."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Choices as resolved, in JSON types."""
    why: tuple[str, ...] = ()
    """The reasons in words."""

    def save(self, path: Path | str) -> None:
        """Write the numbers as JSON, whole or not at all."""
        given = {"format": FORMAT} | asdict(self)
        write_json(Path(path), {name: given[name] for name in FIELDS})

    @classmethod
    def load(cls, path: Path | str) -> ExpertNumbers:
        """Read what `save` or a person wrote; DataError lists everything that is wrong with it."""
        raw = read_json(Path(path))
        if faults := _faults(raw):
            raise DataError(
                f"{path} holds no usable numbers of translation experts: {'; '.join(faults)}; mend it or make one with "
                "`dragoman plan --planner layer_moe`"
            )
        given: dict[str, Any] = {n: raw[n] for n in PLAIN if n in raw}
        given |= {n: {int(layer): v for layer, v in raw[n].items()} for n in LAYERED if n in raw}
        return cls(why=tuple(raw.get("why", ())), **given)

    def require_fit(self, width: int, feed_forwards: Mapping[int, int]) -> None:
        """ModelError where they were made for a model of another shape, all layers named.

        width: of the model at hand; feed_forwards: model layer -> width of its feed-forward.
        """
        both = {*self.feed_forwards, *feed_forwards} if self.feed_forwards else ()  # by hand: nothing is known
        odd = [i for i in sorted(both) if self.feed_forwards.get(i) != feed_forwards.get(i)]
        wide = self.width not in (None, width)
        if odd or wide:
            theirs, ours = (
                ", ".join(
                    [f"a width of {size}"] * wide
                    + [f"{x[i]} neurons in layer {i}" if i in x else f"no feed-forward in layer {i}" for i in odd]
                )
                for size, x in ((self.width, self.feed_forwards), (width, feed_forwards))
            )
            raise ModelError(
                f"the numbers are of another model, which has {theirs}; this one has {ours}: make them of this model "
                "with `dragoman plan --planner layer_moe`"
            )
        if many := {i: n for i, n in self.experts.items() if n > feed_forwards.get(i, n)}:
            told = ", ".join(f"{n} in layer {i} of {feed_forwards[i]} neurons" for i, n in many.items())
            raise ModelError(f"the numbers ask for more experts than a layer has neurons ({told}); give less")

    def text(self) -> str:
        """The numbers for people: layer by layer, the settings and the reasons."""
        head = f"Plan {self.planner}: {sum(self.experts.values())} translation experts in {len(self.experts)} layers."
        measured = {layer: f" ({self.statistic[layer]:.4g})" for layer in self.statistic}
        rows = [f"{layer:>5}  {number}{measured.get(layer, '')}" for layer, number in sorted(self.experts.items())]
        table = ["layer  translation experts (statistic)", *rows]
        return page(head, table, self.settings, self.why, "model", self.model_sha256)


def _faults(raw: Any) -> list[str]:
    """Everything that is wrong with a file, in words."""
    if faults := field_faults(raw, FORMAT, FIELDS, REQUIRED):
        return faults
    faults = [] if raw["experts"] else ["'experts' names no layer"]
    faults += layer_faults("experts", raw["experts"]) + layer_faults("feed_forwards", raw.get("feed_forwards", {}))
    return faults + layer_faults("statistic", raw.get("statistic", {}), whole=False)
