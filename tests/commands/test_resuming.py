"""Configs of older versions, by hand."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dragoman.commands.resuming import claim, completed, no_checkpoint
from dragoman.errors import ConfigError


@dataclass(frozen=True)
class Part:
    steps: int = 5
    balance_every: int = 20


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    languages: dict = field(default_factory=lambda: {"en": 1.0})
    tags: tuple = ()
    folder: Path = Path("out")


def test_absent_settings_have_their_defaults():
    old = {"part": {"steps": 7}, "languages": {"es": 2.0}, "plan_sha256": "ab"}
    assert completed(old, Whole()) == {
        "part": {"steps": 7, "balance_every": 20},
        "languages": {"es": 2.0},  # what a user names is no field: nothing is added to it
        "tags": [],
        "folder": "out",
        "plan_sha256": "ab",
    }


def test_checkpoints_that_are_not_whole_are_named():
    assert str(no_checkpoint(Path("c"), [])) == "there is no checkpoint in c; start without --resume"
    assert "no whole checkpoint in c: checkpoint-3, checkpoint-6 lack" in str(
        no_checkpoint(Path("c"), [Path("c/checkpoint-3"), Path("c/checkpoint-6")])
    )


def test_a_run_goes_on_with_what_it_was_started_with(tmp_path):
    out, default = tmp_path / "a", Whole()
    started = {"part": {"steps": 7}, "languages": {"1": [1], "2": [3]}, "tags": []}  # without what may change
    assert claim(out, started, default, resume=True) is None
    assert claim(out, started, default, resume=True) is None, "nothing is done yet"
    other = {"part": {"steps": 5}, "languages": {"1": [1]}, "tags": None}
    said = r"part.steps: 7 -> 5; languages.2: \[3\] -> None; tags: \[\] -> None\); resume with the old settings"
    with pytest.raises(ConfigError, match=said):
        claim(out, other, default, resume=True)
    with pytest.raises(ConfigError, match=r"languages: {'1': \[1\], '2': \[3\]} -> None"):
        claim(out, started | {"languages": None}, default, resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        claim(out, started, default, resume=False)
    (out / "record.json").write_text('{"created": "then"}')
    assert claim(out, started, default, resume=True) == {"created": "then"}
