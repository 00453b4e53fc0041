"""One request, one renderer: what an engine is asked, and the prompt that says so. Templates are data.

A template is a YAML file under `assets/prompts`: `text`, Jinja over the fields of a request and the languages' English
names, and `chat: true` where it is an instruction, which goes through a model's chat template. What a request lacks is
not rendered. `sample` makes a training sample of the same text, so that a model is asked at use what it was taught.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from dragoman.corpora.languages import language
from dragoman.translation.protection import MARK

TEMPLATES = {
    "zero_shot": "zero_shot.yaml",
    "instruct": "instruct.yaml",
    "adaptive": "adaptive.yaml",
    "scale": "scale.yaml",
    "pmp": "pmp.yaml",
    "post_edit_terms": "post_edit_terms.yaml",
}


@dataclass(frozen=True)
class Pair:
    """A segment or a term with its translation."""

    source: str
    target: str


@dataclass(frozen=True)
class Version:
    """The text in another language."""

    text: str
    language: str


@dataclass(frozen=True)
class Draft(Version):
    """A translation, into the target language or a pivot, that somebody made before, to be improved."""

    confidence: tuple[float, ...] = ()
    """Of each word, 0..1; empty where the engine gives no probabilities."""

    @property
    def marked(self) -> str:
        """`Since(0.77) its(0.39)`, or the text alone."""
        words = self.text.split()
        if len(words) != len(self.confidence):
            return self.text
        return " ".join(f"{word}({p:.2f})" for word, p in zip(words, self.confidence, strict=True))


@dataclass(frozen=True)
class Neighbour(Pair):
    """A segment that is translated already."""

    similarity: float = 0.0
    """To the text that is asked for, 0..1."""
    drafts: tuple[Draft, ...] = ()


@dataclass(frozen=True)
class Request:
    """One text to translate, one line."""

    source: str
    source_lang: str
    target_lang: str
    context: str = ""
    """Where the text stands: a key, the name of a unit, the number of a cue."""
    neighbours: tuple[Neighbour, ...] = ()
    """Similar segments that are translated, the most similar last."""
    terms: tuple[Pair, ...] = ()
    drafts: tuple[Draft, ...] = ()
    auxiliary: tuple[Version, ...] = ()
    notes: tuple[str, ...] = ()
    """What else a translator should know: comments of PO, notes of XLIFF and TMX."""
    quality: float | None = None
    """Estimate of the first draft, 0..1, where a strategy shows it."""

    @property
    def marks(self) -> bool:
        """Whether it has marks such as {1} to keep."""
        return bool(MARK.search(self.source))


@dataclass(frozen=True)
class Answer:
    """A translation, or why there is none."""

    text: str | None
    """Half a character in it (a lone surrogate, which nothing can write) becomes U+FFFD."""
    fault: str = ""
    too_long: bool = False
    """The text does not fit the context; parts of it may."""
    passing: bool = False
    """The fault is the engine's, not the text's: worth asking again another day."""

    def __post_init__(self) -> None:
        if self.text is not None and not self.text.isascii():
            whole = self.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            object.__setattr__(self, "text", whole)


FIELDS = (
    "source",
    "context",
    "neighbours",
    "terms",
    "drafts",
    "auxiliary",
    "notes",
    "quality",
    "marks",
)


def render(request: Request, template: str) -> str:
    """The prompt."""
    names = {"source_name": language(request.source_lang).name, "target_name": language(request.target_lang).name}
    fields: dict[str, Any] = {name: getattr(request, name) for name in FIELDS}
    confident = any(draft.confidence for draft in request.drafts)
    return _text(template).render(**fields, **names, confident=confident, name_of=lambda tag: language(tag).name)


def sample(request: Request, template: str, translation: str) -> tuple[str, str]:
    """A training sample: the prompt, and what is learnt behind it."""
    return render(request, template), f" {translation}"


def is_instruction(template: str) -> bool:
    """Whether the template is for a model's chat template."""
    return bool(_read(template).get("chat", False))


@cache
def _text(name: str) -> Any:
    return SandboxedEnvironment(undefined=StrictUndefined).from_string(_read(name)["text"])


@cache
def _read(name: str) -> Mapping[str, Any]:
    raw = (files("dragoman") / "assets" / "prompts" / TEMPLATES[name]).read_text(encoding="utf-8")
    return yaml.safe_load(raw)
