"""Stages of a tour, kept in its folder, and what a tour that is started again compares itself with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.commands.resuming import CONFIG_FILE, changes, completed
from dragoman.corpora.ntext import NText
from dragoman.errors import ConfigError
from dragoman.record import claim_folder, peak_memory_mb, read_json, sha256, versions, write_json

if TYPE_CHECKING:
    from dragoman.commands.tour import Config

SOURCES = "text.sources."
"""Start of the names under which a stamp has the checksums of further text."""


class Stages:
    """Results of stages, kept as JSON in out/stages; made when missing, read when there."""

    def __init__(self, config: Config, corpus: NText):
        self.folder, self.quiet = config.out / "stages", config.quiet
        self.seconds: dict[str, float] = {}
        self.made = 0.0
        self.peak = 0.0
        stamp = _stamp(config, corpus)
        if (self.folder / CONFIG_FILE).is_file():
            self._require_same(read_json(self.folder / CONFIG_FILE), stamp, type(config)())
        else:
            claim_folder(config.out)
            write_json(self.folder / CONFIG_FILE, stamp)
        self.finished = (config.out / "record.json").is_file() and (config.out / "report.html").is_file()

    def _require_same(self, before: dict[str, Any], now: dict[str, Any], default: Config) -> None:
        """ConfigError for other settings or text. Older versions wrote fewer settings, and no checksums of sources."""
        known = {k: v for k, v in now.items() if k in before or not k.startswith(SOURCES)}
        if changed := changes(completed(before, default), known, default):
            raise ConfigError(
                f"the tour in {self.folder.parent} was started with other settings ({'; '.join(changed.values())}); "
                "choose another --out, or remove that folder"
            )

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """The stage's result, as it reads back from JSON, so that a resumed tour sees what a first one does."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            if not self.quiet:
                print(f"{name} ...", flush=True)
            started = time.monotonic()
            result = make()
            seconds = time.monotonic() - started
            self.made += seconds
            write_json(path, {"result": result, "seconds": round(seconds, 2), "peak_memory_mb": peak_memory_mb()})
        done = read_json(path)
        self.seconds[name], self.peak = done["seconds"], max(self.peak, done["peak_memory_mb"])
        return done["result"]

    @property
    def total(self) -> float:
        """Seconds of all stages, also of those from before an interruption."""
        return sum(self.seconds.values())


def _stamp(config: Config, corpus: NText) -> dict[str, Any]:
    """Settings and what they read, as JSON gives it back."""
    from dragoman.modeling import model_checksum

    read: dict[str, Any] = {"corpus_sha256": corpus.checksum(), "model_sha256": model_checksum(config.model)}
    read |= {f"{SOURCES}{name}_sha256": sha256(Path(path)) for name, path in config.text.sources.items()}
    given = {k: v for k, v in asdict(config).items() if k not in ("out", "quiet")}
    return json.loads(json.dumps(given, default=str)) | read | {"versions": versions()}
