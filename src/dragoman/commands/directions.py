"""Directions of translation as a user writes them: en-de, en-all, all-en."""

from __future__ import annotations

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


def _side(tag: str, every: tuple[str, ...], columns: tuple[str, ...]) -> tuple[str, ...]:
    if tag == "all":
        return every
    return tuple(g for g in columns if g.lower() == tag.lower().replace("_", "-"))
