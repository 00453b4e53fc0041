"""Which known language is nearest to a new one, by measured routing, with vocabulary overlap beside it.

Shape letter: G known languages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dragoman.errors import ConfigError
from dragoman.routing.stats import routing_similarity
from dragoman.routing.trace import RoutingTrace

Ranking = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ParentChoice:
    """The known language nearest to a target, by routing; vocabulary overlap stands beside it."""

    parent: str
    """First of the ranking by routing: the one that is used."""
    routing: Ranking
    """(language, 1 - JSD / ln 2), nearest first."""
    overlap: Ranking
    """(language, vocabulary overlap), nearest first; empty where none was given."""
    layers: tuple[int, ...]
    """Model layers the routing was compared in."""

    @property
    def agree(self) -> bool | None:
        """Whether both rankings put the same language first; None without overlap."""
        return self.overlap[0][0] == self.parent if self.overlap else None

    @property
    def why(self) -> tuple[str, ...]:
        """Both rankings in words, and whether they disagree."""
        layers = ", ".join(map(str, self.layers))
        where = f"routing similarity (1 - JSD / ln 2) in layers {layers}"
        lines = [f"{where}: {_ranked(self.routing)}"]
        if not self.overlap:
            return (*lines, "vocabulary overlap was not given, so the choice of the parent rests on routing alone")
        lines.append(f"vocabulary overlap: {_ranked(self.overlap)}")
        verdict = "agree" if self.agree else f"disagree: overlap would take {self.overlap[0][0]}, routing decides"
        return (*lines, f"on the nearest language routing ({self.parent}) and vocabulary overlap {verdict}")


def choose_parent(
    trace: RoutingTrace,
    target: str,
    known: Sequence[str],
    layers: Sequence[int],
    overlap: Mapping[str, float] | None = None,
) -> ParentChoice:
    """Rank the known languages by how alike they and the target are routed in `layers`; the first is the parent.

    Routing is compared in the layers that the plan will change: it is there that the parent's experts must serve the
    target. Vocabulary overlap ({language: value}) is reported, it never decides. Equal values keep the order of known.
    Raises ConfigError for languages or layers that the trace, or values that the overlap, does not hold.
    Source: Khandelwal et al. 2026 (SSFT, arXiv:2605.29714): a parent language for each target, with its overlap.
    Differs: their code names the parents by hand; here the routing that was measured decides.
    """
    if problems := parent_problems(trace, target, known, overlap):
        raise ConfigError("; ".join(problems))
    similarity_G = routing_similarity(trace.select([target, *known]), layers)[0, 1:]
    routing = _rank({g: float(s) for g, s in zip(known, similarity_G, strict=True)})
    by_overlap = _rank({g: overlap[g] for g in known}) if overlap else ()
    return ParentChoice(routing[0][0], routing, by_overlap, tuple(layers))


def parent_problems(
    trace: RoutingTrace, target: str, known: Sequence[str], overlap: Mapping[str, float] | None
) -> list[str]:
    """What is wrong with a choice of target and known languages, in words."""
    here = ", ".join(trace.languages)
    problems = target_problems(trace, target)
    if not known:
        problems.append("no known languages were given; name those that the model was trained on (known)")
    if missing := [g for g in known if g not in trace.languages]:
        problems.append(f"the trace holds no known language {', '.join(missing)}, only {here}; capture or omit them")
    if twice := sorted({g for g in known if list(known).count(g) > 1}):
        problems.append(f"known languages are named twice: {', '.join(twice)}; name each once")
    if target in known:
        problems.append(f"the target {target!r} is among the known languages; leave it out of them")
    if overlap and (missing := [g for g in known if g not in overlap]):
        problems.append(
            f"no vocabulary overlap is given for {', '.join(missing)}; give it for all that are known or none"
        )
    return problems


def target_problems(trace: RoutingTrace, target: str | None) -> list[str]:
    """What is wrong with a plan's target, in words."""
    if target is None or target in trace.languages:
        return []
    return [f"the trace holds no target {target!r}, only {', '.join(trace.languages)}; capture text of it first"]


def _rank(value_by_language: Mapping[str, float]) -> Ranking:
    return tuple(sorted(value_by_language.items(), key=lambda item: -item[1]))


def _ranked(ranking: Ranking) -> str:
    return ", ".join(f"{language} {value:.3f}" for language, value in ranking)
