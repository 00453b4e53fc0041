"""YAML files of users: configs and lists of experiments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML whose booleans are true and false alone, as in YAML 1.2: `target: no` is Norwegian."""

    yaml_implicit_resolvers = {  # noqa: RUF012, yaml's own name
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read(path: Path) -> Any:
    """What a file says. OSError, ValueError or yaml.YAMLError where it cannot be read."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
