"""One command, one file: `Config` (its flags), `run(config)` (what it does), `show(result)` (what it prints)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dragoman.corpora.ntext import SPLITS, NText
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
Dtype = Literal["float32", "bfloat16", "auto"]
"""Of a model's weights; auto: as they were saved."""


def require_sample(segments: int, seed: int) -> None:
    """ConfigError where resampling could not work with these settings."""
    if segments < 2 or seed < 0:
        raise ConfigError(f"segments is at least 2 and seed at least 0, not {segments} and {seed}")


def another_split(
    corpus: NText, languages: Sequence[str], split: str, complete: bool = False, among: Sequence[str] = SPLITS[:3]
) -> str:
    """The way out where a split has too little text: the one with most rows in the languages, or what a file needs.

    complete: rows need text in all of the languages, not in any of them; among: the splits that may be named.
    """
    there = {s: corpus.select(languages, s, complete=complete) for s in among if s != split}
    rows = {s: sum(any(cells) for cells in zip(*text.columns.values(), strict=True)) for s, text in there.items()}
    fullest = max(rows, key=lambda s: rows[s])
    if rows[fullest] < 2:
        if "train" in among:
            return "give more rows"
        return (
            "no row of the file is held out for measuring; give more rows, add a column `split` with dev or devtest, "
            "or take a file that nothing was trained on as --test-set"
        )
    return (
        f"take --split {fullest}, which has {rows[fullest]} rows of them, or give more rows; a file without a column "
        "`split` has its rows shared out by document"
    )
