"""Strategies: how a text is asked for, as data. Built in under `assets/strategies`, or a YAML file of one's own:

    template: scale            # a prompt of assets/prompts
    neighbours: 10             # pairs of the memory in the prompt
    drafts: [plain, adaptive]  # strategies that translate first; plain: what suits the engine
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from dragoman.corpora.languages import is_tag
from dragoman.errors import ConfigError
from dragoman.translation.request import TEMPLATES

STRATEGIES = {
    "zero_shot": "zero_shot.yaml",
    "instruct": "instruct.yaml",
    "few_shot": "few_shot.yaml",
    "adaptive": "adaptive.yaml",
    "adaptive_draft": "adaptive_draft.yaml",
    "scale": "scale.yaml",
    "scale_pivot": "scale_pivot.yaml",
    "scale_several": "scale_several.yaml",
    "pmp": "pmp.yaml",
    "post_edit_terms": "post_edit_terms.yaml",
}
PLAIN = "plain"
"""The strategy for drafts that suits the engine: zero_shot for a local model, instruct for a server."""
VIA = "via"
"""In place of a language: the one that the user names."""
EDIT = "post_edit_terms"
"""The template that says nothing without a draft."""
ESTIMATED = "scale"
"""The template that has room for the quality of a draft."""
Pick = Literal["similar", "drawn"]


@dataclass(frozen=True)
class Strategy:
    """What a request gets beside the text, and what becomes of the answer."""

    template: str
    """Prompt of the last step."""
    _: KW_ONLY
    neighbours: int = 0
    """Most pairs of the memory in the prompt."""
    pick: Pick = "similar"
    """similar: those most like the text; drawn: the same by lot for every text."""
    threshold: float = 0.5
    """Least likeness of a similar pair."""
    neighbour_drafts: bool = False
    """Pairs get drafts too, so that a model sees how far a draft may be trusted."""
    terms: int = 0
    """Most terms of the glossary in the prompt."""
    drafts: tuple[str, ...] = ()
    """Strategies that translate first."""
    drafts_in: str = ""
    """Language of the drafts, or `via`; default: the target language."""
    confidence: bool = False
    """Words of drafts bear their probabilities, where the engine has them."""
    quality: bool = False
    """The first draft bears its quality estimate, where there is one (extra `embedding`)."""
    auxiliary: str = ""
    """Language of a version of the text that is shown beside it, or `via`."""
    only_missing_terms: bool = False
    """A draft with all its terms is the answer; others are asked for the terms that they lack."""

    @property
    def improves(self) -> bool:
        """Whether its answer can be held against a draft."""
        return bool(self.drafts) and not self.drafts_in

    @property
    def needs_via(self) -> bool:
        return VIA in (self.drafts_in, self.auxiliary)

    @property
    def needs_memory(self) -> bool:
        return self.neighbours > 0

    @property
    def needs_glossary(self) -> bool:
        return self.only_missing_terms


def load(names: Iterable[str]) -> dict[str, Strategy]:
    """The strategies of these names or files, and those that they draft with.

    Raises ConfigError for unknown names, and for all that is wrong with a file in one message.
    """
    found: dict[str, Strategy] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found and name != PLAIN:
            found[name] = _checked(name, _read(name))
            waiting += found[name].drafts
    _require_ends(found)
    return found


def _read(name: str) -> Any:
    if name in STRATEGIES:
        text = (files("dragoman") / "assets" / "strategies" / STRATEGIES[name]).read_text(encoding="utf-8")
        return yaml.safe_load(text)
    if not name.endswith((".yaml", ".yml")):
        raise ConfigError(f"there is no strategy {name}; built in are {', '.join(STRATEGIES)}; or name a .yaml file")
    try:
        return yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"the strategy {name} cannot be read as YAML: {' '.join(str(e).split())}") from None


def _checked(name: str, raw: Any) -> Strategy:
    if not isinstance(raw, Mapping) or "template" not in raw:
        raise ConfigError(f"the strategy {name} must hold `key: value` lines, one of them `template`")
    wrong = list(_faults(raw))
    if wrong:
        raise ConfigError(f"the strategy {name}: {'; '.join(wrong)}")
    return Strategy(**{**raw, "drafts": tuple(raw.get("drafts", ()))})


def _faults(raw: Mapping[str, Any]) -> Iterable[str]:
    known = {f.name: f for f in fields(Strategy)}
    if unknown := sorted(set(map(str, raw)) - set(known)):
        yield f"unknown keys {', '.join(unknown)}; keys are {', '.join(known)}"
    if raw["template"] not in [*TEMPLATES]:
        yield f"template is one of {', '.join(TEMPLATES)}, not {raw['template']}"
    if raw.get("pick", "similar") not in get_args(Pick):
        yield f"pick is one of {', '.join(get_args(Pick))}, not {raw['pick']}"
    for key in ("neighbours", "terms"):
        if type(raw.get(key, 0)) is not int or raw.get(key, 0) < 0:
            yield f"{key} is a whole number from 0 on, not {raw[key]}"
    if not isinstance(raw.get("threshold", 0.5), int | float) or not 0 <= raw.get("threshold", 0.5) <= 1:
        yield f"threshold lies between 0 and 1, not {raw['threshold']}"
    for key in ("neighbour_drafts", "confidence", "quality", "only_missing_terms"):
        if not isinstance(raw.get(key, False), bool):
            yield f"{key} is true or false, not {raw[key]}"
    if not isinstance(raw.get("drafts", []), list) or not all(isinstance(d, str) for d in raw.get("drafts", [])):
        yield f"drafts is a list of strategies, not {raw['drafts']}"
    for key in ("drafts_in", "auxiliary"):
        if raw.get(key, VIA) != VIA and not is_tag(str(raw[key])):
            yield f"{key} is a language tag or {VIA}, not {raw[key]}"
    yield from _idle(raw)


def _idle(raw: Mapping[str, Any]) -> Iterable[str]:
    """Keys without what they need."""
    if raw["template"] == EDIT and not raw.get("drafts"):
        yield f"the template {EDIT} edits drafts; name strategies under drafts"
    if raw.get("quality") and (raw["template"] != ESTIMATED or raw.get("drafts_in")):
        yield f"quality would have no effect but with the template {ESTIMATED} and drafts in the target language"
    needs = {
        "drafts": ("drafts_in", "confidence", "quality", "neighbour_drafts", "only_missing_terms"),
        "neighbours": ("pick", "threshold", "neighbour_drafts"),
        "terms": ("only_missing_terms",),
    }
    for needed, keys in needs.items():
        without = [key for key in keys if key in raw and raw[key] is not False]
        if without and not raw.get(needed):
            yield f"{', '.join(without)} would have no effect without {needed}"
    if raw.get("pick") == "drawn" and "threshold" in raw:
        yield "threshold would have no effect on pairs by lot"


def _require_ends(found: Mapping[str, Strategy]) -> None:
    """ConfigError where a strategy drafts with itself, by whatever way round."""

    def reaches(name: str, seen: tuple[str, ...]) -> None:
        if name in seen:
            raise ConfigError(f"strategies draft with each other in a circle: {' -> '.join((*seen, name))}")
        for draft in found[name].drafts if name != PLAIN else ():
            reaches(draft, (*seen, name))

    for name in found:
        reaches(name, ())
