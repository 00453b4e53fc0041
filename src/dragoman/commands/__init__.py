"""One command, one file: `Config` (its flags), `run(config)` (what it does), `show(result)` (what it prints)."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from dragoman.errors import ConfigError

Tags = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
"""Several words after one flag."""
Numbers = Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=True)]
"""Several numbers after one flag."""
Parts = Annotated[tuple[float, ...], Parameter(negative=(), consume_multiple=True)]
"""Several shares after one flag."""
Paths = Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)]
"""Several files after one flag."""
Switch = Annotated[bool, Parameter(negative=())]
"""A flag without a value."""


def require_sample(segments: int, seed: int) -> None:
    """ConfigError where resampling could not work with these settings."""
    if segments < 2 or seed < 0:
        raise ConfigError(f"segments is at least 2 and seed at least 0, not {segments} and {seed}")
