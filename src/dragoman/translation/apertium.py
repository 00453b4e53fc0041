"""The engine Apertium: rules and dictionaries for pairs of languages, good between near relatives, and fast.

It runs as a program: `apt install apertium apertium-eng-spa`. It takes no prompts, so all templates ask the same, and
knows no probabilities, so there are no confidences. Words that it does not know stay as they are. Marks such as {1}
pass through it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from dragoman.errors import ConfigError, ModelError
from dragoman.translation.request import Answer, Request

CODES = {
    "af": "afr", "an": "arg", "be": "bel", "bg": "bul", "br": "bre", "bs": "hbs", "ca": "cat", "da": "dan", "en": "eng",
    "eo": "epo", "es": "spa", "eu": "eus", "fr": "fra", "gl": "glg", "hi": "hin", "hr": "hbs", "id": "ind", "is": "isl",
    "it": "ita", "kk": "kaz", "mk": "mkd", "ms": "zlm", "mt": "mlt", "nb": "nob", "nl": "nld", "nn": "nno", "oc": "oci",
    "pl": "pol", "pt": "por", "ro": "ron", "ru": "rus", "sc": "srd", "sl": "slv", "sr": "hbs", "sv": "swe", "tt": "tat",
    "uk": "ukr", "ur": "urd", "zh": "zho",
}  # fmt: skip
"""Its codes have three letters, older pairs two; other languages of BCP-47 have the same three there as here."""


class ApertiumEngine:
    """source, target: language tags. Raises ConfigError where the program or the pair is not installed.

    Requests in other directions are asked in theirs, or raise the same error.
    """

    def __init__(self, source: str, target: str, *, batch: int = 64, timeout: float = 300.0) -> None:
        self.batch, self.timeout = batch, timeout
        self.modes = {(source, target): _mode(source, target)}
        self._environment = os.environ | {"LC_ALL": "C.UTF-8"}

    def answers(self, requests: Sequence[Request], template: str) -> Iterator[tuple[int, Answer]]:
        directions: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            directions[request.source_lang, request.target_lang].append(i)
        for languages, chosen in directions.items():
            mode = self.modes.get(languages) or self.modes.setdefault(languages, _mode(*languages))
            texts = [requests[i].source for i in chosen]
            found = self._translated(texts, mode)
            if len(found) != len(texts):  # a text that it took apart, so each by itself
                found = [" ".join(self._translated([text], mode)) for text in texts]
            for i, text in zip(chosen, found, strict=True):
                yield i, Answer(text) if text else Answer(None, "apertium gave no text")

    def _translated(self, texts: Sequence[str], mode: str) -> list[str]:
        """One translation a text; an empty line between two texts keeps it from reading them as one sentence."""
        asked = "".join(f"{' '.join(text.split())}\n\n" for text in texts)
        settings: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "timeout": self.timeout}
        try:
            done = subprocess.run(["apertium", "-u", mode], input=asked, env=self._environment, **settings)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise ModelError(f"apertium does not answer ({type(e).__name__}); the same command goes on later") from None
        if done.returncode:
            said = " ".join(done.stderr.split())[:200]
            raise ModelError(f"apertium {mode} ended with status {done.returncode}: {said}; install it again")
        return [line.strip() for line in re.split(r"\n\n", done.stdout.removesuffix("\n\n"))]


def _mode(source: str, target: str) -> str:
    """Its name for the direction."""
    if shutil.which("apertium") is None:
        raise ConfigError("the program apertium is not installed: apt install apertium, and a pair: apertium-eng-spa")
    listed = subprocess.run(["apertium", "-l"], capture_output=True, text=True).stdout.split()
    sides = [(tag, CODES.get(tag, tag)) for tag in (source.split("-")[0], target.split("-")[0])]
    wanted = [f"{a}-{b}" for a in sides[0] for b in sides[1]]
    found = next((mode for mode in wanted if mode in listed), None)
    if found is None:
        raise ConfigError(
            f"apertium has no {wanted[-1]} among its installed directions ({', '.join(listed) or 'none'}); see what "
            "there is with: apt search ^apertium-"
        )
    return found
