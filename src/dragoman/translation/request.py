"""One request, one renderer: what an engine is asked, and the prompt that says so. Templates are data.

A template is a YAML file under `assets/prompts` with one key, `text`: Jinja over the fields of a request and the
languages' English names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from dragoman.corpora.languages import language

TEMPLATES = {"zero_shot": "zero_shot.yaml", "instruct": "instruct.yaml"}


@dataclass(frozen=True)
class Pair:
    """A segment or a term with its translation."""

    source: str
    target: str


@dataclass(frozen=True)
class Request:
    """One text to translate, one line."""

    source: str
    source_lang: str
    target_lang: str
    context: str = ""
    """Where the text stands: a key, a comment."""
    neighbours: tuple[Pair, ...] = ()
    """Similar segments that are translated, the most similar last."""
    terms: tuple[Pair, ...] = ()

    @property
    def marks(self) -> bool:
        """Whether it has marks such as {1} to keep."""
        return "{1}" in self.source


@dataclass(frozen=True)
class Answer:
    """A translation, or why there is none."""

    text: str | None
    fault: str = ""
    too_long: bool = False
    """The text does not fit the context; parts of it may."""
    passing: bool = False
    """The fault is the engine's, not the text's: worth asking again another day."""


def render(request: Request, template: str) -> str:
    """The prompt."""
    names = {"source_name": language(request.source_lang).name, "target_name": language(request.target_lang).name}
    fields = {name: getattr(request, name) for name in ("source", "context", "neighbours", "terms", "marks")}
    return _template(template).render(**fields, **names)


@cache
def _template(name: str):
    text = (files("dragoman") / "assets" / "prompts" / TEMPLATES[name]).read_text(encoding="utf-8")
    return SandboxedEnvironment(undefined=StrictUndefined).from_string(yaml.safe_load(text)["text"])
