"""Directions of translation as a user writes them: en-de, en-all, all-en."""

from __future__ import annotations

from dragoman.corpora.languages import is_tag, normalise_tag
from dragoman.errors import ConfigError


def parse_directions(words: list[str], every: tuple[str, ...], columns: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """`en-de` -> {"en-de": ("en", "de")}; `all` stands for every language but the other one, where there is text.

    Raises ConfigError that names all words which are no direction.
    """
    found: dict[str, tuple[str, str]] = {}
    wrong = []
    for word in words:
        parts = word.split("-")
        cuts = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
        sides = [(_side(a, every, columns), _side(b, every, columns)) for a, b in cuts]
        pairs = [(s, t) for sources, targets in sides for s in sources for t in targets if s != t]
        found |= {f"{s}-{t}": (s, t) for s, t in pairs}
        if not pairs:
            wrong.append(word)
    if wrong:
        raise ConfigError(
            f"no directions are {', '.join(wrong)}; give source and target, such as en-de, en-all or all-en, from the "
            f"languages of the text: {', '.join(columns)}"
        )
    return found


def only_direction(words: list[str]) -> list[str]:
    """[source, target] of the one direction that two plain files need: `en-pt-BR` is en and pt-BR, as regions are
    written in capitals. Raises ConfigError for anything else."""
    parts = words[0].split("-") if len(words) == 1 else []
    cuts = [["-".join(parts[:i]), "-".join(parts[i:])] for i in range(1, len(parts))]
    cuts = [cut for cut in cuts if len(cuts) == 1 or all(map(is_tag, cut))]
    if len(cuts) != 1:
        raise ConfigError(
            f"two plain files need one direction, which names their languages, such as en-de or en-pt-BR; "
            f"given {'was ' + ', '.join(words) if words else 'were none'}"
        )
    return [normalise_tag(tag) for tag in cuts[0]]


def _side(tag: str, every: tuple[str, ...], columns: tuple[str, ...]) -> tuple[str, ...]:
    if tag == "all":
        return every
    return tuple(g for g in columns if g.lower() == tag.lower().replace("_", "-"))
