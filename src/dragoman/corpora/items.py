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
from typing import Any, TypeVar

from dragoman.corpora.languages import nearest
from dragoman.errors import DataError
from dragoman.record import sha256

T = TypeVar("T")
REFERENCE = "en"


@dataclass(frozen=True)
class Item:
    """One question in one language."""

    key: str
    """The same in every language."""
    document: str
    """What its items share, such as the passage that several questions are of; its key where it stands alone."""
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
    normalise: str = "bytes"
    """For `options`, how their likelihoods are compared where nothing else is asked for."""
    chat: bool = False
    """Prompts are what a user says in the model's chat template, and answers what the assistant says."""
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.items.values())))

    def keys(self) -> list[str]:
        """Keys of the items, in order."""
        return [item.key for item in next(iter(self.items.values()))]

    def part(self, which: slice) -> TaskItems:
        """Some of the items, the same in every language."""
        return replace(self, items={g: x[which] for g, x in self.items.items()})

    def spread(self, number: int | None) -> TaskItems:
        """At most so many of the items, evenly over all of them: published files are sorted, MMLU's by subject."""
        return replace(self, items={g: spread(x, number) for g, x in self.items.items()})

    def require(self, languages: Sequence[str]) -> None:
        """DataError that names every language without items."""
        if absent := [g for g in dict.fromkeys(languages) if g not in self.items]:
            hints = "; ".join(f"{g}: {nearest(g, tuple(self.items))}" for g in absent)
            there = ", ".join(self.items)
            raise DataError(f"the task {self.name} has no items in {', '.join(absent)} ({hints}); it has {there}")

    def after(self, examples: TaskItems) -> TaskItems:
        """Every prompt behind the same examples in its language, prompt and answer each.

        Raises DataError where an example has no answer to show.
        """
        if empty := [i.key for x in examples.items.values() for i in x if not i.answer]:
            raise DataError(f"the example {empty[0]} of the task {self.name} has no answer to show; leave out shots")
        shown = {g: "".join(f"{i.prompt}{i.answer}\n\n" for i in examples.items[g]) for g in self.items}
        told = {g: [replace(i, prompt=shown[g] + i.prompt) for i in x] for g, x in self.items.items()}
        return replace(self, items=told, about=self.about | {"examples": examples.keys()})

    def in_chat(self) -> TaskItems:
        """For a chat template: prompts without spaces at their ends, answers and options without a space before."""
        bare = {
            g: [
                replace(
                    i, prompt=i.prompt.strip(), answer=i.answer.lstrip(), options=tuple(o.lstrip() for o in i.options)
                )
                for i in x
            ]
            for g, x in self.items.items()
        }
        return replace(self, items=bare, chat=True)

    def checksum(self) -> str:
        """SHA-256 of all items, and whether they are put into a chat template."""
        items = {g: [asdict(i) for i in x] for g, x in sorted(self.items.items())}
        return sha256(json.dumps(items, sort_keys=True), *["chat"] * self.chat)


def task_items(name: str, judged: str, items: Mapping[str, Sequence[Item]], **beside: Any) -> TaskItems:
    """Items that are the same in every language, in the order of the English ones; `beside` are other fields.

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
    return TaskItems(name, judged, ordered, **beside)


def _fault(tag: str, keys: Sequence[str], wanted: Sequence[str]) -> str | None:
    if twice := sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []:
        return f"{tag} has {twice[0]!r} more than once"
    theirs, ours = set(keys), set(wanted)
    missing, extra = [k for k in wanted if k not in theirs], [k for k in keys if k not in ours]
    if not missing and not extra:
        return None
    parts = [f"{len(keys)} items where English has {len(wanted)}" if len(keys) != len(wanted) else "other ids"]
    parts += [f"lacks {missing[0]!r}"] if missing else []
    parts += [f"has {extra[0]!r} beside"] if extra else []
    return f"{tag} has {', '.join(parts)}"


def spread(rows: Sequence[T], number: int | None) -> list[T]:
    """At most so many of the rows, evenly over all of them, in their order; None: all."""
    if number is None or number >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // number] for i in range(number)]
