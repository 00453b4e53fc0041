"""Configs of older versions, by hand."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dragoman.commands.resuming import claim, completed, no_checkpoint, stamp
from dragoman.errors import ConfigError


@dataclass(frozen=True)
class Part:
    steps: int = 5
    balance_every: int = 20
    checkpoint_steps: int = 0


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    languages: dict = field(default_factory=lambda: {"en": 1.0})
    tags: tuple = ()
    folder: Path = Path("out")


def test_absent_settings_have_their_defaults():
    old = {"part": {"steps": 7}, "languages": {"es": 2.0}, "plan_sha256": "ab"}
    assert completed(old, Whole()) == {
        "part": {"steps": 7, "balance_every": 20, "checkpoint_steps": 0},
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


def test_what_differs_is_told_by_its_full_name(tmp_path):
    started = Whole(part=Part(steps=7, checkpoint_steps=3), languages={"en": 1.0, "es": 2.0})
    assert stamp(started)["part"] == {"steps": 7, "balance_every": 20}, "how often to write changes no loss"
    assert claim(tmp_path / "a", True, stamp(started), Whole()) is None
    assert claim(tmp_path / "a", True, stamp(started), Whole()) is None, "nothing is done yet"
    said = r"part.steps: 7 -> 5; languages.es: 2.0 -> None; tags: \[\] -> \['de'\]\); resume with the old settings"
    with pytest.raises(ConfigError, match=said):
        claim(tmp_path / "a", True, stamp(Whole(tags=("de",))), Whole())
    with pytest.raises(ConfigError, match="is not empty"):
        claim(tmp_path / "a", False, stamp(started), Whole())
    (tmp_path / "a" / "record.json").write_text('{"created": "then"}')
    assert claim(tmp_path / "a", True, stamp(started), Whole()) == {"created": "then"}
