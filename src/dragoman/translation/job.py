"""A job: documents in, translations and an account of every segment out; the journal carries it over interruptions.

Each distinct text is a unit and is translated once. The steps are tried in order until one gives a translation without
faults:

    a strategy    the whole text with its marks (zero_shot, adaptive, ...; see strategies.py)
    by_sentence   sentence by sentence; for texts that do not fit the context
    by_piece      what stands between the marks, each on its own, so that no mark can be lost

Lost or broken pieces are fatal: such an answer is never used. Doubts (the checks that the caller gives) are not: where
every step leaves some, the answer with the fewest is used and named in the summary. Without any answer the source stays
and the segment counts as failed. A step that fails for a reason that passes (a server's) is not written down, and the
text gets no further step in this run: the next run asks this step again, so no better one is missed for good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sentencex

from dragoman.record import sha256
from dragoman.translation.documents import Document, misfits
from dragoman.translation.formats import Broken, Edit, Place, lines_of
from dragoman.translation.journal import Attempt, Journal
from dragoman.translation.protection import Masked, bare, marked, mask, stretches, unmarked, unmask
from dragoman.translation.request import Answer, Request

PARTS = ("by_sentence", "by_piece")
"""Steps that ask as the first of the others does; these bear the name of a strategy."""
POLL = 0.2
"""Seconds between two looks at what other processes have answered."""
TOO_LONG = "does not fit the context"
Checks = Mapping[str, Callable[[str, str], bool]]
"""Name of a doubt -> whether (source, translation), both without marks, give rise to it."""


class Engine(Protocol):
    """What translates."""

    @property
    def batch(self) -> int:
        """Requests that it likes to have at once."""

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        """The answer to each request by its index, as they come; template: name of a strategy, or of a prompt for an
        engine that is not wrapped in a `Strategist`. Raises UserError where nothing can go on."""


@dataclass(frozen=True)
class Unit:
    """A distinct text."""

    key: str
    masked: Masked
    context: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """What became of one segment."""

    file: str
    line: int
    state: str
    """translated, reused, kept (it had a translation), doubtful or failed."""
    reasons: tuple[str, ...]
    source: str


def unit_of(place: Place) -> Unit:
    """The unit of a place: places with the same text, pieces, sense and notes share it.

    Where it stands is no part of it: numbers of cues and keys of lists shift, and a text is translated once a job.
    """
    masked = mask(place.parts)
    pieces = [f"{part.kind}:{part.text}" for part in masked.pieces]
    told = [masked.text, *pieces, *([f"sense:{place.sense}"] if place.sense else [])]
    told += [f"note:{note}" for note in place.notes]  # none: the key of journals that were written without notes
    return Unit(sha256("\0".join(told)), masked, place.context, place.notes)


def units_of(documents: Sequence[Document]) -> dict[str, Unit]:
    """Everything to translate, in order."""
    found: dict[str, Unit] = {}
    for place in (place for document in documents for place in document.places if not place.done):
        unit = unit_of(place)
        found.setdefault(unit.key, unit)
    return found


def remembered(units: Mapping[str, Unit], known: Callable[[str], str | None], checks: Checks) -> dict[str, Attempt]:
    """Attempts at the units whose text a memory has, as it stands or with marks. known: text -> its translation."""
    found = {}
    for key, unit in units.items():
        answer = _known(unit.masked, known)
        if answer is None or unmask(unit.masked, answer)[1]:
            continue
        source, text = bare(unit.masked.text), bare(answer)
        found[key] = Attempt(answer, tuple(name for name, doubts in checks.items() if doubts(source, text)))
    return found


def _known(masked: Masked, known: Callable[[str], str | None]) -> str | None:
    """A translation with marks. Of one of the text as it stands, the pieces are found again, or it is not used."""
    found = known(unmarked(masked, masked.text))
    answer = None if found is None else marked(masked, found)
    return answer if answer is not None or not masked.pieces else known(masked.text)


def run(
    units: Mapping[str, Unit],
    engine: Engine,
    journal: Journal,
    languages: tuple[str, str],
    steps: Sequence[str],
    checks: Checks,
    progress: Callable[[int], Any],
) -> dict[str, Attempt]:
    """The best attempt at each unit; what the journal holds is not asked again, nor what other processes claim."""
    known = journal.attempts()
    first = next(step for step in steps if step not in PARTS)
    for step in steps:
        todo = [u for u in units.values() if _open(u, known, steps) and (u.key, step) not in known]
        todo = [u for u in todo if _applies(u, step, known, steps)]
        todo.sort(key=lambda unit: -len(unit.masked.text))  # batches of like lengths; what needs most memory first
        while todo := [u for u in todo if (u.key, step) not in known]:
            mine = journal.claim([u.key for u in todo], step, engine.batch)
            batch = [u for u in todo if u.key in mine]
            for unit, attempt in _attempts(batch, step, first, engine, languages, checks):
                if not attempt.passing:
                    journal.add(unit.key, step, attempt)
                known[unit.key, step] = attempt
                progress(not attempt.faults)
            journal.release()
            if not batch:  # another process asks for all that is left
                time.sleep(POLL)
            others = {asked: a for asked, a in journal.news().items() if asked not in known or known[asked].passing}
            known |= others
            progress(sum(not a.faults for (key, _), a in others.items() if key in units))
    return {key: _best([known[key, step] for step in steps if (key, step) in known]) for key in units}


def _open(unit: Unit, known: Mapping[tuple[str, str], Attempt], steps: Sequence[str]) -> bool:
    """Whether a text wants a further step: none has given a faultless answer, and none is to be asked again later."""
    tried = [known[unit.key, step] for step in steps if (unit.key, step) in known]
    return not any(a.passing or (a.answer is not None and not a.faults) for a in tried)


def _applies(unit: Unit, step: str, known: Mapping[tuple[str, str], Attempt], steps: Sequence[str]) -> bool:
    """Pieces are needed to go by piece, and a text that was too long to go by sentence."""
    if step == "by_piece":
        return len(stretches(unit.masked.text)) > 1
    tried = [known[unit.key, s] for s in steps if (unit.key, s) in known]
    return step != "by_sentence" or any(TOO_LONG in attempt.faults for attempt in tried)


def _attempts(
    units: Sequence[Unit], step: str, first: str, engine: Engine, languages: tuple[str, str], checks: Checks
) -> Iterator[tuple[Unit, Attempt]]:
    """Attempts as soon as all chunks of a unit are answered."""
    chunks = [_chunks(unit.masked.text, step, languages[0]) for unit in units]
    wanted = [(n, c) for n, row in enumerate(chunks) for c, text in enumerate(row) if _speaks(text)]
    told = [(chunks[n][c].strip(), units[n]) for n, c in wanted]
    requests = [Request(text, *languages, context=unit.context, notes=unit.notes) for text, unit in told]
    missing = Counter(n for n, _ in wanted)
    answered: list[dict[int, Answer]] = [{} for _ in units]
    for i, answer in engine.answers(requests, first if step in PARTS else step):
        n, c = wanted[i]
        answered[n][c] = answer
        missing[n] -= 1
        if not missing[n]:
            yield units[n], _judged(units[n], chunks[n], answered[n], checks)
    assert not any(missing.values()), "an engine answers every request"


def _chunks(text: str, step: str, source: str) -> list[str]:
    if step == "by_piece":
        return stretches(text)
    return list(sentencex.segment(source.split("-")[0], text)) if step == "by_sentence" else [text]


def _speaks(chunk: str) -> bool:
    return any(map(str.isalpha, bare(chunk)))


def _judged(unit: Unit, chunks: Sequence[str], answers: Mapping[int, Answer], checks: Checks) -> Attempt:
    if faults := sorted({TOO_LONG if a.too_long else a.fault for a in answers.values() if a.text is None}):
        return Attempt(None, tuple(faults), any(a.passing for a in answers.values()))
    texts = [_around(chunk, answers[c].text or "") if c in answers else chunk for c, chunk in enumerate(chunks)]
    answer = "".join(texts)
    _, faults = unmask(unit.masked, answer)
    if faults:
        return Attempt(None, tuple(faults))
    source, found = bare(unit.masked.text), bare(answer)
    return Attempt(answer, tuple(name for name, doubts in checks.items() if doubts(source, found)))


def _around(chunk: str, answer: str) -> str:
    """The answer with the white space of its chunk."""
    start, end = len(chunk) - len(chunk.lstrip()), len(chunk.rstrip())
    return chunk[:start] + answer.strip() + chunk[end:]


def _best(attempts: Sequence[Attempt]) -> Attempt:
    """The first with the fewest doubts; without an answer, the faults of all."""
    answered = [a for a in attempts if a.answer is not None]
    if answered:
        return min(answered, key=lambda a: len(a.faults))
    return Attempt(None, tuple(dict.fromkeys(f for a in attempts for f in a.faults)))


def fill(document: Document, name: str, best: Mapping[str, Attempt], seen: set[str]) -> tuple[list[Edit], list[Line]]:
    """Edits of a document, and a line for each of its segments. seen: units of documents before, added to."""
    placed, line_at = [_placed(place, best, seen) for place in document.places], lines_of(document.text)
    for n in misfits(document, [edits for _, _, edits in placed]):
        placed[n] = ("failed", ("it would change the markup around it",), [])
    lines = []
    for place, (state, reasons, _) in zip(document.places, placed, strict=True):
        source = "".join(part.text for part in place.parts)
        lines.append(Line(name, line_at(place.at), state, reasons, source))
    return [edit for _, _, edits in placed for edit in edits], lines


def _placed(place: Place, best: Mapping[str, Attempt], seen: set[str]) -> tuple[str, tuple[str, ...], list[Edit]]:
    if place.done:
        return "kept", (), []
    unit = unit_of(place)
    attempt, again = best[unit.key], unit.key in seen
    seen.add(unit.key)
    if attempt.answer is None:
        return "failed", attempt.faults, []
    parts, faults = unmask(unit.masked, attempt.answer)
    assert not faults, "the journal holds answers that passed"
    try:
        edits = place.write(parts, bool(attempt.faults))
    except Broken as e:
        return "failed", (str(e),), []
    state = "doubtful" if attempt.faults else "reused" if again else "translated"
    return state, attempt.faults, edits
