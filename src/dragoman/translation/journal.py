"""The journal of a job: one SQLite file in the output folder, to which answers are only ever added.

One row per text and step. A row is there or it is not, so a job that is killed goes on behind its last row; a job that
is running holds the file, so that a second process is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError

SCHEMA = """
create table if not exists job (name text primary key, value text not null);
create table if not exists attempts (
  unit text not null, step text not null, answer text, faults text not null, primary key (unit, step)
);
"""


@dataclass(frozen=True)
class Attempt:
    """What a step made of a text."""

    answer: str | None
    """Masked translation; None where there is none that could be used."""
    faults: tuple[str, ...]
    """What is wrong with it; none where it passed."""
    passing: bool = False
    """It failed for a reason that passes, so it is not written down."""


class Journal:
    """Answers by unit and step.

    job: what the answers depend on (languages, model, steps); a journal of another job is refused with a ConfigError
    that names what differs, one that another process holds, too.
    """

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self._base = sqlite3.connect(path, timeout=0.5, isolation_level=None)
        try:
            self._base.execute("pragma locking_mode = exclusive")
            self._base.execute("begin exclusive")
            for statement in SCHEMA.split(";\n"):
                self._base.execute(statement)
            self._base.execute("commit")
        except sqlite3.Error as e:
            self._base.close()
            raise ConfigError(_refusal(path, e)) from None
        self._claim(path, {name: json.dumps(value, default=str) for name, value in job.items()})

    def _claim(self, path: Path, job: Mapping[str, str]) -> None:
        before = dict(self._base.execute("select name, value from job"))
        if before and before != job:
            names = sorted(n for n in {*before, *job} if before.get(n) != job.get(n))
            self.close()
            raise ConfigError(
                f"{path.parent} holds another job: {', '.join(names)} differ; choose another folder with --out"
            )
        self._base.executemany("insert or ignore into job values (?, ?)", job.items())

    def attempts(self) -> dict[tuple[str, str], Attempt]:
        """Everything that was answered, by unit and step."""
        rows = self._base.execute("select unit, step, answer, faults from attempts")
        return {(unit, step): Attempt(answer, tuple(json.loads(faults))) for unit, step, answer, faults in rows}

    def add(self, unit: str, step: str, attempt: Attempt) -> None:
        """Write one row, on the disk when this returns."""
        row = (unit, step, attempt.answer, json.dumps(attempt.faults, ensure_ascii=False))
        self._base.execute("insert into attempts values (?, ?, ?, ?)", row)

    def close(self) -> None:
        self._base.close()


def _refusal(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"another process is at work on {path.parent}; wait for it, or choose another folder with --out"
    return f"{path} cannot be used as a journal: {error}; choose another folder with --out, or remove it"
