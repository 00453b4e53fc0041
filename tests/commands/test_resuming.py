"""Configs of older versions, by hand."""

from dataclasses import dataclass, field
from pathlib import Path

from dragoman.commands.resuming import completed, no_checkpoint


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
