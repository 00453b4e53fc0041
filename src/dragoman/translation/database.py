"""What SQLite cannot do with a file of ours, in a sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from dragoman.errors import DataError


class InFile(Protocol):
    """Something that lives in a database."""

    @property
    def path(self) -> Path | str: ...

    @property
    def way_out(self) -> str:
        """What a user can do where the database is damaged."""


S = TypeVar("S", bound=InFile)
P = ParamSpec("P")
R = TypeVar("R")


def told(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method, with a DataError in place of SQLite's: no room, a damaged file."""

    @wraps(method)
    def wrapped(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a fault of ours
        except sqlite3.Error as e:
            raise DataError(f"{self.path} cannot be read or written: {e}; free space, or {self.way_out}") from None

    return wrapped
