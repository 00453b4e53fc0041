"""An engine that asks by strategies: it fills requests from memory, glossary and drafts, and judges what it gets back.

To a job it is an engine whose templates are the names of strategies. Where a strategy improves a draft, the two are
held against each other:

    won        it has all marks and the draft has not; else it lacks fewer terms than the draft, or as many and its
               quality estimate is higher
    lost       it lacks more, or its estimate is lower, or it has lost marks
    unchanged  the same text, or as many terms and the same estimate; also where no answer came
    unjudged   another text, and nothing to judge it by

An answer that has lost marks is never taken; nor is, after `only_missing_terms`, one that has not won; with
`accept_if_better` no other answer than one that has won is. The draft stands then.

Where a draft or another version fails for a reason that passes, its text has no answer now: asked without it, it would
be answered with less, and for good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

from dragoman.translation.glossary import Glossary, Term
from dragoman.translation.job import Engine
from dragoman.translation.memory import Match, Memory
from dragoman.translation.memory_files import HeldOut
from dragoman.translation.protection import MARK, bare
from dragoman.translation.request import Answer, Draft, Neighbour, Request, Version
from dragoman.translation.strategies import PLAIN, VIA, Strategy

Key = tuple[str, str, str]
"""Text of a neighbour, its language, and that of its drafts."""
Quality = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(sources, translations) -> an estimate of each, higher is better; both without marks."""


@runtime_checkable
class Confident(Protocol):
    """An engine that knows probabilities."""

    def confidences(
        self, requests: Sequence[Request], template: str, texts: Sequence[str]
    ) -> list[tuple[float, ...]]:
        """Of each word of each text as an answer to its request."""


@dataclass(frozen=True)
class Aids:
    """What requests are filled from, and what answers are judged by."""

    memory: Memory | None = None
    glossary: Glossary | None = None
    held_out: HeldOut | None = None
    via: str = ""
    """Language for strategies that name none."""
    quality: Quality | None = None
    accept_if_better: bool = False


class Strategist:
    """plain: strategy for drafts that suits the engine. drafter: another engine for drafts of the strategy `plain`."""

    def __init__(
        self, engine: Engine, strategies: Mapping[str, Strategy], aids: Aids, plain: str, drafter: Engine | None = None
    ) -> None:
        self.engine, self.aids = engine, aids
        self._strategies, self._plain, self._drafter = strategies, plain, drafter or engine
        self.tallies: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Strategy -> won, lost, unchanged, unjudged."""
        self.shown: Counter[str] = Counter()
        """neighbours and terms in prompts, and pairs that the leakage guard kept out."""
        self._drafts: dict[tuple[str, str, str, str], Draft | None] = {}
        self._drawn: dict[tuple[str, str, int], list[Match]] = {}

    @property
    def batch(self) -> int:
        return self.engine.batch

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        """The answer of a strategy to each request."""
        yield from self._asked(requests, template, self.engine)

    def _asked(
        self, requests: Sequence[Request], name: str, engine: Engine, alone: bool = False
    ) -> Iterator[tuple[int, Answer]]:
        """alone: the text itself is in the memory and may not be its own neighbour."""
        strategy = self._strategies[name]
        full = {i: self._filled(request, strategy, alone) for i, request in enumerate(requests)}
        for aid in (self._with_auxiliary, self._with_neighbour_drafts, partial(self._with_drafts, alone=alone)):
            full, silent = aid(full, strategy)
            yield from silent.items()
        if strategy.drafts:
            yield from self._improved(full, name, engine)
        elif full:
            order = list(full)
            yield from ((order[n], answer) for n, answer in engine.answers(list(full.values()), strategy.template))

    def _all_asked(
        self, requests: Mapping[int, Request], name: str, engine: Engine, alone: bool = False
    ) -> dict[int, Answer]:
        order = list(requests)
        return {order[n]: answer for n, answer in self._asked(list(requests.values()), name, engine, alone)}

    def _filled(self, request: Request, strategy: Strategy, alone: bool) -> Request:
        text, glossary = bare(request.source), self._glossary(request)
        terms = glossary.found(text) if glossary and strategy.terms and not strategy.only_missing_terms else []
        pairs = tuple(dict.fromkeys(term.pair for term in terms))[: strategy.terms]
        neighbours = tuple(self._neighbours(request, strategy, text, alone))
        self.shown.update(terms=len(pairs), neighbours=len(neighbours))
        return replace(request, terms=pairs, neighbours=neighbours)

    def _neighbours(self, request: Request, strategy: Strategy, text: str, alone: bool) -> Iterator[Neighbour]:
        """The most similar last. Some more are looked at, since the guard may take some out."""
        memory = self.aids.memory
        if not strategy.neighbours or memory is None:
            return
        languages, many = (request.source_lang, request.target_lang), 2 * strategy.neighbours + 8
        if strategy.pick == "drawn":
            if (*languages, many) not in self._drawn:
                self._drawn[*languages, many] = [m for m in memory.drawn(*languages, many) if not self._leaks(m)]
            found = self._drawn[*languages, many]
        else:
            found = [m for m in memory.search(text, *languages, many, strategy.threshold) if not self._leaks(m)]
        kept = [match for match in found if not (alone and match.source == request.source)]
        for match in reversed(kept[: strategy.neighbours]):
            yield Neighbour(match.source, match.target, match.similarity)

    def _leaks(self, match: Match) -> bool:
        leaks = self.aids.held_out is not None and self.aids.held_out.leaks(match.source, match.target)
        self.shown["kept_out"] += leaks
        return leaks

    def _language(self, named: str, default: str) -> str:
        return self.aids.via if named == VIA else named or default

    def _glossary(self, request: Request) -> Glossary | None:
        """The glossary where it is of the request's languages: a pivot's are others."""
        glossary = self.aids.glossary
        return glossary if glossary and glossary.languages == (request.source_lang, request.target_lang) else None

    def _with_auxiliary(
        self, requests: Mapping[int, Request], strategy: Strategy
    ) -> tuple[dict[int, Request], dict[int, Answer]]:
        """The version of the memory where it has one, else one that the engine writes first."""
        if not strategy.auxiliary:
            return dict(requests), {}
        language, memory, found = self._language(strategy.auxiliary, ""), self.aids.memory, dict[int, str]()
        for i, request in requests.items():
            known = memory.exact(request.source, request.source_lang, language) if memory else None
            if known is not None and not (self.aids.held_out and self.aids.held_out.leaks(request.source, known)):
                found[i] = known
        unknown = {i: replace(bared(r), target_lang=language) for i, r in requests.items() if i not in found}
        answers = self._all_asked(unknown, self._plain, self._drafter)
        found |= {i: answer.text for i, answer in answers.items() if answer.text is not None}
        versions = {i: (Version(text, language),) for i, text in found.items()}
        later = {i: answer for i, answer in answers.items() if answer.passing}
        return {i: replace(r, auxiliary=versions.get(i, ())) for i, r in requests.items() if i not in later}, later

    def _with_drafts(
        self, requests: Mapping[int, Request], strategy: Strategy, alone: bool
    ) -> tuple[dict[int, Request], dict[int, Answer]]:
        """Requests with drafts, and the answer of those of which every draft failed, or one for now."""
        drafts: dict[int, list[Draft]] = {i: [] for i in requests}
        faults: dict[int, Answer] = {}
        for name in strategy.drafts:
            todo = {i: r for i, r in requests.items() if i not in faults or not faults[i].passing}
            for i, draft in self._drafted(todo, strategy, name, alone):
                if isinstance(draft, Draft):
                    drafts[i].append(draft)
                else:
                    faults[i] = draft
        silent = {i: answer for i, answer in faults.items() if answer.passing or not drafts[i]}
        return {i: replace(r, drafts=tuple(drafts[i])) for i, r in requests.items() if i not in silent}, silent

    def _drafted(
        self, requests: Mapping[int, Request], strategy: Strategy, name: str, alone: bool
    ) -> Iterator[tuple[int, Draft | Answer]]:
        engine = self._drafter if name == PLAIN else self.engine
        name = self._plain if name == PLAIN else name
        into = {i: self._language(strategy.drafts_in, r.target_lang) for i, r in requests.items()}
        asked = {i: replace(bared(r), target_lang=into[i]) for i, r in requests.items()}
        found = self._all_asked(asked, name, engine, alone)
        texts = {i: answer.text for i, answer in found.items() if answer.text is not None}
        sure: dict[int, tuple[float, ...]] = {}
        if strategy.confidence and isinstance(engine, Confident) and texts:
            template = self._strategies[name].template
            known = engine.confidences([asked[i] for i in texts], template, list(texts.values()))
            sure = dict(zip(texts, known, strict=True))
        for i, answer in found.items():
            yield i, Draft(texts[i], asked[i].target_lang, sure.get(i, ())) if i in texts else answer

    def _with_neighbour_drafts(
        self, requests: Mapping[int, Request], strategy: Strategy
    ) -> tuple[dict[int, Request], dict[int, Answer]]:
        """Drafts of the neighbours, each made once. They are made without sight of their own translation."""
        if not strategy.neighbour_drafts:
            return dict(requests), {}
        keys = {i: self._keys(request, strategy) for i, request in requests.items()}
        rows: dict[Key, list[Draft]] = {key: [] for own in keys.values() for key in own}
        later: dict[Key, Answer] = {}
        for name in strategy.drafts:
            new = [key for key in rows if (name, *key) not in self._drafts and key not in later]
            for n, draft in self._drafted({n: Request(*k) for n, k in enumerate(new)}, strategy, name, alone=True):
                if isinstance(draft, Answer) and draft.passing:
                    later[new[n]] = draft
                else:
                    self._drafts[name, *new[n]] = draft if isinstance(draft, Draft) else None
            for key, drafts in rows.items():
                drafts += [draft for draft in [self._drafts.get((name, *key))] if draft]
        silent = {i: later[key] for i, own in keys.items() for key in own if key in later}
        pairs = {i: zip(r.neighbours, keys[i], strict=True) for i, r in requests.items() if i not in silent}
        shown = {i: tuple(replace(n, drafts=tuple(rows[key])) for n, key in own) for i, own in pairs.items()}
        return {i: replace(requests[i], neighbours=own) for i, own in shown.items()}, silent

    def _keys(self, request: Request, strategy: Strategy) -> list[Key]:
        language = self._language(strategy.drafts_in, request.target_lang)
        return [(neighbour.source, request.source_lang, language) for neighbour in request.neighbours]

    def _improved(self, drafted: Mapping[int, Request], name: str, engine: Engine) -> Iterator[tuple[int, Answer]]:
        strategy = self._strategies[name]
        unsaid = self._with_missing_terms(drafted, strategy) if strategy.only_missing_terms else dict(drafted)
        yield from ((i, Answer(request.drafts[0].text)) for i, request in drafted.items() if i not in unsaid)
        unsaid = self._with_quality(unsaid) if strategy.quality else unsaid
        order = list(unsaid)
        answers = {order[n]: a for n, a in engine.answers(list(unsaid.values()), strategy.template)} if order else {}
        if not strategy.improves:
            yield from answers.items()
            return
        verdicts = self._verdicts(unsaid, answers, strategy)
        self.tallies[name].update("lost" if v == "broken" else v for v in verdicts.values())
        self.tallies[name]["unchanged"] += len(drafted) - len(unsaid)
        for i, answer in answers.items():
            yield i, Answer(unsaid[i].drafts[0].text) if self._keeps_draft(verdicts[i], strategy, answer) else answer

    def _with_missing_terms(self, drafted: Mapping[int, Request], strategy: Strategy) -> dict[int, Request]:
        """The requests whose draft lacks terms, with these."""
        lacking = {i: self._lacking(request, request.drafts[0].text) for i, request in drafted.items()}
        pairs = {i: tuple(term.pair for term in terms[: strategy.terms]) for i, terms in lacking.items() if terms}
        return {i: replace(drafted[i], terms=own) for i, own in pairs.items()}

    def _with_quality(self, requests: Mapping[int, Request]) -> dict[int, Request]:
        if not self.aids.quality or not requests:
            return dict(requests)
        drafts = [bare(r.drafts[0].text) for r in requests.values()]
        known = self.aids.quality([bare(r.source) for r in requests.values()], drafts)
        return {i: replace(r, quality=q) for (i, r), q in zip(requests.items(), known, strict=True)}

    def _keeps_draft(self, verdict: str, strategy: Strategy, answer: Answer) -> bool:
        if answer.text is None:
            return not answer.passing
        if verdict == "broken":
            return True
        return verdict != "won" and (strategy.only_missing_terms or self.aids.accept_if_better)

    def _verdicts(
        self, requests: Mapping[int, Request], answers: Mapping[int, Answer], strategy: Strategy
    ) -> dict[int, str]:
        texts = {i: a.text for i, a in answers.items() if a.text is not None}
        drafts = {i: requests[i].drafts[0].text for i in texts}
        changed = [i for i in texts if texts[i] != drafts[i]]
        gains = dict.fromkeys(changed, 0.0)
        if self.aids.quality and changed:
            sources = [bare(requests[i].source) for i in changed]
            new, old = (self.aids.quality(sources, [bare(t[i]) for i in changed]) for t in (texts, drafts))
            gains = {i: a - b for i, a, b in zip(changed, new, old, strict=True)}
        judged = {i: self._verdict(requests[i], drafts[i], texts[i], gain, strategy) for i, gain in gains.items()}
        return {i: judged.get(i, "unchanged") for i in answers}

    def _verdict(self, request: Request, draft: str, text: str, gain: float, strategy: Strategy) -> str:
        kept, had = (marks(some) == marks(request.source) for some in (text, draft))
        if kept != had:
            return "won" if kept else "broken"
        fewer = len(self._lacking(request, draft)) - len(self._lacking(request, text))
        if strategy.only_missing_terms and not fewer:
            gain = min(gain, 0.0)  # asked for terms, it has not won with other words
        if fewer or gain:
            return "won" if (fewer or gain) > 0 else "lost"
        return "unchanged" if self.aids.quality else "unjudged"

    def _lacking(self, request: Request, text: str) -> list[Term]:
        glossary = self._glossary(request)
        return glossary.missing(bare(request.source), bare(text)) if glossary else []


def bared(request: Request) -> Request:
    """The request without what a strategy adds."""
    return replace(request, neighbours=(), terms=(), drafts=(), auxiliary=(), quality=None)


def marks(text: str) -> Counter[str]:
    """How often each mark is in a text."""
    return Counter(MARK.findall(text))
