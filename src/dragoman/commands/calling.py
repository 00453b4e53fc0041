"""Commands as functions: what a caller gives, in the types of a command's settings."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dragoman.errors import ConfigError

C = TypeVar("C")


def made(kind: type[C], name: str, args: Sequence[Any], settings: Mapping[str, Any]) -> C:
    """The settings of the command `name`: paths may be strings, one word may stand for a list of one, a mapping for
    nested settings.

    Raises ConfigError for settings that there are not, and words that a setting does not take.
    """
    try:
        given = inspect.signature(kind).bind(*args, **settings).arguments
    except TypeError as e:
        known = ", ".join(n for n in inspect.signature(kind).parameters if n != "_")
        raise ConfigError(f"{name}: {e}; its settings are {known}") from None
    hints = get_type_hints(kind)
    return kind(**{key: _fitted(value, hints[key], f"{name}: {key}") for key, value in given.items()})


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The value in a type that it can be taken for; as it is where there is none."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        inner = get_args(kind)
        if kind is Path and isinstance(value, str) and str not in kinds:  # ./model is not the Hub's model
            return Path(value)
        if get_origin(kind) is tuple and inner[1:] == (...,):
            several = (value,) if isinstance(value, (str, Path, int, float)) else value
            return tuple(_fitted(one, inner[0], where) for one in several) if several is not None else value
        if get_origin(kind) is Literal and isinstance(value, str) and value not in inner:
            raise ConfigError(f"{where} is {', '.join(map(str, inner))}, not {value!r}")
        if get_origin(kind) is dict and isinstance(value, Mapping):
            return {key: _fitted(one, inner[1], f"{where}.{key}") for key, one in value.items()}
        if is_dataclass(kind) and isinstance(value, Mapping):
            return made(kind, where, (), value)  # type: ignore[arg-type]
    return value
