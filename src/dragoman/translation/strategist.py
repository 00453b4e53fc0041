"""An engine that asks by strategies: it fills requests from memory, glossary and drafts, and judges what it gets back.

To a job it is an engine whose templates are the names of strategies. Where a strategy improves a draft, the two are
held against each other:

    won        the answer lacks fewer terms than the draft, or as many and its quality estimate is higher
    lost       it lacks more, or its estimate is lower, or it has lost marks
    unchanged  the same text, or as many terms and the same estimate; also where no answer came
    unjudged   another text, and nothing to judge it by

An answer that has lost marks is never taken; nor is, after `only_missing_terms`, one that has not won; with
`accept_if_better` no other answer than one that has won is. The draft stands then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from dragoman.translation.glossary import Glossary, Term
from dragoman.translation.job import Engine
from dragoman.translation.memory import Match, Memory
from dragoman.translation.memory_files import HeldOut
from dragoman.translation.protection import MARK, bare
from dragoman.translation.request import Answer, Draft, Neighbour, Request, Version
from dragoman.translation.strategies import PLAIN, VIA, Strategy

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
        full = [self._filled(request, strategy, alone) for request in requests]
        if strategy.auxiliary:
            full = self._with_auxiliary(full, self._language(strategy.auxiliary, ""))
        if not strategy.drafts:
            yield from engine.answers(full, strategy.template)
            return
        full = self._with_neighbour_drafts(full, strategy)
        drafted, silent = self._with_drafts(full, strategy, alone)
        yield from silent.items()
        yield from self._improved(drafted, name, engine)

    def _filled(self, request: Request, strategy: Strategy, alone: bool) -> Request:
        text, glossary = bare(request.source), self.aids.glossary
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
        kept = [match for match in found if not (alone and match.source == text)]
        for match in reversed(kept[: strategy.neighbours]):
            yield Neighbour(match.source, match.target, match.similarity)

    def _leaks(self, match: Match) -> bool:
        leaks = self.aids.held_out is not None and self.aids.held_out.leaks(match.source, match.target)
        self.shown["kept_out"] += leaks
        return leaks

    def _language(self, named: str, default: str) -> str:
        return self.aids.via if named == VIA else named or default

    def _with_auxiliary(self, requests: Sequence[Request], language: str) -> list[Request]:
        """The version of the memory where it has one, else one that the engine writes first."""
        memory, found = self.aids.memory, dict[int, str]()
        for i, request in enumerate(requests):
            known = memory.exact(request.source, request.source_lang, language) if memory else None
            if known is not None and not (self.aids.held_out and self.aids.held_out.leaks(request.source, known)):
                found[i] = known
        unknown = [i for i in range(len(requests)) if i not in found]
        asked = [replace(bared(requests[i]), target_lang=language) for i in unknown]
        for n, answer in self._asked(asked, self._plain, self._drafter):
            if answer.text is not None:
                found[unknown[n]] = answer.text
        return [
            replace(request, auxiliary=(Version(found[i], language),)) if i in found else request
            for i, request in enumerate(requests)
        ]

    def _with_drafts(
        self, requests: Sequence[Request], strategy: Strategy, alone: bool
    ) -> tuple[dict[int, Request], dict[int, Answer]]:
        """Requests with drafts, and the answer of those of which every draft failed."""
        drafts: list[list[Draft]] = [[] for _ in requests]
        faults: dict[int, Answer] = {}
        for name in strategy.drafts:
            for i, draft in self._drafted(requests, strategy, name, alone):
                if isinstance(draft, Draft):
                    drafts[i].append(draft)
                else:
                    faults[i] = draft
        full = {i: replace(r, drafts=tuple(d)) for i, (r, d) in enumerate(zip(requests, drafts, strict=True)) if d}
        return full, {i: answer for i, answer in faults.items() if i not in full}

    def _drafted(
        self, requests: Sequence[Request], strategy: Strategy, name: str, alone: bool
    ) -> Iterator[tuple[int, Draft | Answer]]:
        engine = self._drafter if name == PLAIN else self.engine
        name = self._plain if name == PLAIN else name
        asked = [replace(bared(r), target_lang=self._language(strategy.drafts_in, r.target_lang)) for r in requests]
        found = dict(self._asked(asked, name, engine, alone))
        texts = {i: answer.text for i, answer in found.items() if answer.text is not None}
        sure: dict[int, tuple[float, ...]] = {}
        if strategy.confidence and isinstance(engine, Confident) and texts:
            template = self._strategies[name].template
            known = engine.confidences([asked[i] for i in texts], template, list(texts.values()))
            sure = dict(zip(texts, known, strict=True))
        for i, answer in found.items():
            yield i, Draft(texts[i], asked[i].target_lang, sure.get(i, ())) if i in texts else answer

    def _with_neighbour_drafts(self, requests: Sequence[Request], strategy: Strategy) -> list[Request]:
        """Drafts of the neighbours, each made once. They are made without sight of their own translation."""
        if not strategy.neighbour_drafts:
            return list(requests)
        rows: dict[tuple[str, str, str], list[Draft]] = {
            (n.source, r.source_lang, self._language(strategy.drafts_in, r.target_lang)): []
            for r in requests
            for n in r.neighbours
        }
        for name in strategy.drafts:
            new = [key for key in rows if (name, *key) not in self._drafts]
            asked = [Request(*key) for key in new]
            for i, draft in self._drafted(asked, strategy, name, alone=True) if asked else ():
                self._drafts[name, *new[i]] = draft if isinstance(draft, Draft) else None
            for key, drafts in rows.items():
                drafts += [draft for draft in [self._drafts[name, *key]] if draft]
        return [self._with_rows(request, strategy, rows) for request in requests]

    def _with_rows(
        self, request: Request, strategy: Strategy, rows: Mapping[tuple[str, str, str], Sequence[Draft]]
    ) -> Request:
        languages = (request.source_lang, self._language(strategy.drafts_in, request.target_lang))
        drafted = (replace(n, drafts=tuple(rows[n.source, *languages])) for n in request.neighbours)
        return replace(request, neighbours=tuple(drafted))

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
        if marks(text) != marks(request.source) == marks(draft):
            return "broken"
        fewer = len(self._lacking(request, draft)) - len(self._lacking(request, text))
        if strategy.only_missing_terms and not fewer:
            gain = min(gain, 0.0)  # asked for terms, it has not won with other words
        if fewer or gain:
            return "won" if (fewer or gain) > 0 else "lost"
        return "unchanged" if self.aids.quality else "unjudged"

    def _lacking(self, request: Request, text: str) -> list[Term]:
        return self.aids.glossary.missing(bare(request.source), bare(text)) if self.aids.glossary else []


def bared(request: Request) -> Request:
    """The request without what a strategy adds."""
    return replace(request, neighbours=(), terms=(), drafts=(), auxiliary=(), quality=None)


def marks(text: str) -> Counter[str]:
    """How often each mark is in a text."""
    return Counter(MARK.findall(text))
