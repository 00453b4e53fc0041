"""One command, one file: `Config` (its flags), `run(config)` (what it does), `show(result)` (what it prints)."""

from typing import Annotated

from cyclopts import Parameter

Tags = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]
"""Several words after one flag."""
Numbers = Annotated[tuple[int, ...], Parameter(negative=(), consume_multiple=True)]
"""Several numbers after one flag."""
Switch = Annotated[bool, Parameter(negative=())]
"""A flag without a value."""
