"""The journal of a job: one SQLite file in the output folder, to which answers are only ever added.

One row per text and step. A row is there or it is not, so a job that is killed goes on behind its last row.

Several processes may work on one job: each claims the texts that it asks next, and sees what the others have answered.
A claim holds as long as its process lives: that process has a lock on a file of its own, which the system drops when
it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError
from dragoman.translation.database import told

SCHEMA = """
create table if not exists job (name text primary key, value text not null);
create table if not exists attempts (
  unit text not null, step text not null, answer text, faults text not null, primary key (unit, step)
);
create table if not exists claims (
  unit text not null, step text not null, owner text not null, primary key (unit, step)
);
"""
LATER = ("reading",)
"""Of a job, what journals did not say at first: it is taken for what it is now."""
PATIENCE = 30.0
"""Seconds to wait for another process to write."""
CLAIM = """
insert or ignore into claims select ?1, ?2, ?3
where not exists (select 1 from attempts where unit = ?1 and step = ?2)
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
    that names what differs.
    """

    way_out = "remove it: what it holds is asked again"

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self.path, self._owner, self._read = path, uuid.uuid4().hex, 0
        try:
            with ExitStack() as opened:
                base = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
                self._base = opened.enter_context(closing(base))
                self._lock = os.open(self._lock_of(self._owner), os.O_CREAT | os.O_RDWR)
                opened.callback(self._unlock)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                with self._writing():
                    for statement in SCHEMA.split(";\n"):
                        self._base.execute(statement)
                    self._begin({name: json.dumps(value, default=str) for name, value in job.items()})
                opened.pop_all()
        except (sqlite3.Error, OSError) as e:
            raise ConfigError(
                f"{path} cannot be used as a journal: {e}; choose another folder with --out, or remove it"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that no other process writes into."""
        with self._base:
            self._base.execute("begin immediate")
            yield

    def _begin(self, job: Mapping[str, str]) -> None:
        """A job that has no answer and that no other process works on gives way: it was a mistake, or is no loss."""
        before = dict(self._base.execute("select name, value from job"))
        before = {n: job[n] for n in LATER if before and n in job} | before
        if before and before != job:
            (answered,) = self._base.execute("select exists (select 1 from attempts)").fetchone()
            if answered or any(self._lives(owner) for owner in self._others()):
                names = sorted(n for n in {*before, *job} if before.get(n) != job.get(n))
                raise ConfigError(
                    f"{self.path.parent} holds another job: {', '.join(names)} differ; choose another folder with --out"
                )
            self._base.execute("delete from job")
        self._base.executemany("insert or ignore into job values (?, ?)", job.items())

    @told
    def attempts(self) -> dict[tuple[str, str], Attempt]:
        """Everything that was answered, by unit and step."""
        self._read = 0
        return self.news()

    @told
    def news(self) -> dict[tuple[str, str], Attempt]:
        """What was answered since the last call."""
        query = "select rowid, unit, step, answer, faults from attempts where rowid > ? order by rowid"
        rows = self._base.execute(query, (self._read,)).fetchall()
        self._read = rows[-1][0] if rows else self._read
        return {(unit, step): Attempt(answer, tuple(json.loads(faults))) for _, unit, step, answer, faults in rows}

    @told
    def claim(self, units: Sequence[str], step: str, most: int) -> set[str]:
        """At most so many of the units that have no answer and no other living process asks for: now this one does."""
        mine: set[str] = set()
        with self._writing():
            for (owner,) in self._base.execute("select distinct owner from claims").fetchall():
                if owner != self._owner and not self._lives(owner):
                    self._base.execute("delete from claims where owner = ?", (owner,))
            for unit in units:
                if len(mine) == most:
                    break
                if self._base.execute(CLAIM, (unit, step, self._owner)).rowcount:
                    mine.add(unit)
        return mine

    @told
    def add(self, unit: str, step: str, attempt: Attempt) -> None:
        """Write one row, on the disk when this returns."""
        row = (unit, step, attempt.answer, json.dumps(attempt.faults, ensure_ascii=False))
        self._base.execute("insert into attempts values (?, ?, ?, ?)", row)

    @told
    def release(self) -> None:
        """Give up this process's claims."""
        self._base.execute("delete from claims where owner = ?", (self._owner,))

    def close(self) -> None:
        """Others may take what is not answered."""
        self._unlock()
        self._base.close()

    def _unlock(self) -> None:
        self._lock_of(self._owner).unlink(missing_ok=True)
        os.close(self._lock)

    def _lock_of(self, owner: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{owner}")

    def _others(self) -> list[str]:
        """Owners with a lock file, alive or not."""
        names = [path.name.rpartition(".")[2] for path in self.path.parent.glob(f".{self.path.name}.*")]
        return [owner for owner in names if owner != self._owner]

    def _lives(self, owner: str) -> bool:
        """Whether the process that goes by this name runs; the file of one that does not is removed."""
        try:
            lock = os.open(self._lock_of(owner), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        self._lock_of(owner).unlink(missing_ok=True)
        return False
