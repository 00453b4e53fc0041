"""Items of a task, parallel over languages: the same questions, in the same order, in each of them.

One item of the built-in task `next`, in English:

    prompt   Click the arrow next to the icon.
    options  [" A toolbar opens.", " The dialog closes.", " Select a range.", " Press Enter."], right 0
    answer   " A toolbar opens."
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dragoman.corpora.languages import nearest
from dragoman.errors import DataError
from dragoman.record import sha256

REFERENCE = "en"


@dataclass(frozen=True)
class Item:
    """One question in one language."""

    key: str
    """The same in every language."""
    document: str
    """What its items share: the page of a passage, the subject of a question."""
    prompt: str
    answer: str
    """What training teaches: the right option or a worked solution; empty where there is none."""
    options: tuple[str, ...] = ()
    """Texts that may go on from the prompt, for tasks that are judged by likelihood."""
    right: int = 0
    """Number of the right option, from 0."""
    expected: str = ""
    """What a generated answer is held against: a number, a text, a reference translation."""
    instructions: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Name and arguments of what a generated answer must do."""


@dataclass(frozen=True)
class TaskItems:
    """A task's items by language. `task_items` makes one and checks it."""

    name: str
    judged: str
    """How answers are judged: options, number, exact, instructions, translation; or text, which nothing judges."""
    items: dict[str, list[Item]]
    into: str = ""
    """For `translation`, the language that all prompts are translated into."""
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.items.values())))

    def keys(self) -> list[str]:
        """Keys of the items, in order."""
        return [item.key for item in next(iter(self.items.values()))]

    def first(self, number: int) -> TaskItems:
        """The first so many items, in every language."""
        return replace(self, items={g: x[:number] for g, x in self.items.items()})

    def require(self, languages: Sequence[str]) -> None:
        """DataError that names every language without items."""
        if absent := [g for g in dict.fromkeys(languages) if g not in self.items]:
            hints = "; ".join(f"{g}: {nearest(g, tuple(self.items))}" for g in absent)
            there = ", ".join(self.items)
            raise DataError(f"the task {self.name} has no items in {', '.join(absent)} ({hints}); it has {there}")

    def checksum(self) -> str:
        """SHA-256 of all items."""
        return sha256(json.dumps({g: [asdict(i) for i in x] for g, x in sorted(self.items.items())}, sort_keys=True))


def task_items(
    name: str, judged: str, items: Mapping[str, Sequence[Item]], into: str = "", about: dict[str, Any] | None = None
) -> TaskItems:
    """Items that are the same in every language, in the order of the English ones.

    Raises DataError where English is missing, a key stands twice, or languages differ in number or keys of items.
    """
    if REFERENCE not in items:
        there = ", ".join(items) or "none"
        raise DataError(f"the task {name} has no English items, which all others are held against; it has {there}")
    wanted = [item.key for item in items[REFERENCE]]
    if not wanted:
        raise DataError(f"the task {name} has no items; give more text or another file")
    faults = [fault for g, x in items.items() if (fault := _fault(g, [i.key for i in x], wanted))]
    if faults:
        raise DataError(f"the items of the task {name} are not parallel: {'; '.join(faults)}")
    place = {key: n for n, key in enumerate(wanted)}
    ordered = {g: sorted(x, key=lambda item: place[item.key]) for g, x in items.items()}
    return TaskItems(name, judged, ordered, into, about or {})


def _fault(tag: str, keys: Sequence[str], wanted: Sequence[str]) -> str | None:
    if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
        return f"{tag} has {twice[0]!r} more than once"
    missing, extra = [k for k in wanted if k not in set(keys)], [k for k in keys if k not in set(wanted)]
    if not missing and not extra:
        return None
    parts = [f"{len(keys)} items where English has {len(wanted)}" if len(keys) != len(wanted) else "other ids"]
    parts += [f"lacks {missing[0]!r}"] if missing else []
    parts += [f"has {extra[0]!r} beside"] if extra else []
    return f"{tag} has {', '.join(parts)}"
