"""YAML: values that are strings, all or those whose key fits a pattern; each stays in its style of quoting.

A plain value that its translation would turn into something else (a number, a mapping) gets quotes. Anchors are
translated once, where they stand. Tags such as `!include` are left alone with what they tag.
"""

from __future__ import annotations

import json
import re
from functools import partial

import yaml

from dragoman.translation.formats.base import Edit, Options, Part, Place, encoded, has_letters, merged, unreadable
from dragoman.translation.formats.json_values import chosen

STRING = "tag:yaml.org,2002:str"
ANCHOR = re.compile(r"(?:[&!]\S*\s+)+")
"""Anchor and tag before a value."""


def places(text: str, options: Options) -> list[Place]:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as e:
        raise unreadable("YAML", e) from None
    found: list[Place] = []
    seen: set[int] = set()
    for document in documents:
        _walk(text, document, "", options, found, seen)
    return sorted(found, key=lambda place: place.at)


def _walk(text: str, node: yaml.Node | None, path: str, options: Options, found: list[Place], seen: set[int]) -> None:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            _walk(text, value, _under(path, str(key.value)), options, found, seen)
    elif isinstance(node, yaml.SequenceNode):
        for n, value in enumerate(node.value):
            _walk(text, value, _under(path, str(n)), options, found, seen)
    elif isinstance(node, yaml.ScalarNode) and node.tag == STRING and chosen(path, options.keys):
        value = node.value.encode("utf-16-le", "surrogatepass").decode(
            "utf-16-le", "surrogatepass"
        )  # two halves of one
        if not has_letters([Part(value)]):
            return
        start, end = node.start_mark.index, node.end_mark.index
        anchor = ANCHOR.match(text, start, end)
        start = anchor.end() if anchor else start
        source = (Part(value.rstrip("\n") if node.style in ("|", ">") else value),)
        write = partial(_write, text, start, end, node.style, source)
        found.append(Place(start, source, write, path))


def _under(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _write(text: str, start: int, end: int, style: str | None, source, translated, doubtful) -> list[Edit]:
    if merged(translated) == source:
        return []
    new, raw = encoded(translated, str), text[start:end]
    if style in ("|", ">"):
        return [Edit(start, end, _block(raw, source[0].text, new, style))]
    if style == "'" and "\n" not in new and new.isprintable():
        return [Edit(start, end, "'" + new.replace("'", "''") + "'")]
    plain = style is None and _stays_plain(text, start, end, new)
    return [Edit(start, end, new if plain else json.dumps(new, ensure_ascii=False))]


def _stays_plain(text: str, start: int, end: int, new: str) -> bool:
    """Whether the value without quotes reads as the same string, in a list in brackets too."""
    try:
        return yaml.safe_load(f"[{{k: {new}}}]") == [{"k": new}] and yaml.safe_load(f"k: {new}\n") == {"k": new}
    except yaml.YAMLError:
        return False


def _block(raw: str, old: str, new: str, style: str) -> str:
    """A block scalar with its header, indent and last line ends.

    In a folded one, line ends of the text are one more in the file; a text with lines that begin with a space, or with
    an empty one first, is written as a literal one.
    """
    header, body = re.match(r"([^\r\n]*(?:\r\n|\r|\n))(.*)", raw, re.DOTALL).groups()  # type: ignore[union-attr]
    indent = re.search(r"^[ \t]*(?=[^\s])", body, re.MULTILINE)
    own = re.search(r"^ *(?=[^\s])", old, re.MULTILINE)  # with a number in the header, spaces may be the text's
    mark = "\r\n" if "\r\n" in header else header[-1]
    tail = re.search(r"\s*\Z", body)
    assert indent and own and tail
    left = indent[0][: len(indent[0]) - len(own[0])]
    if style == ">" and not re.search(r"\A\n|^[ \t]", new, re.MULTILINE):
        new = re.sub(r"\n+", lambda ends: ends[0] + "\n", new)
    elif style == ">":
        header = "|" + header[1:]
    lines = new.split("\n")
    return header + mark.join(left + line if line else "" for line in lines) + tail[0]
