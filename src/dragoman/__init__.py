"""dragoman: see how a Mixture-of-Experts language model routes each language, adapt it, and prove what that changed.

Every command is also a function here with the same arguments: `dragoman.diagnose("mini-moe", out="run")`. Names load
on first use, so importing the package costs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

VERBS = (
    "tour",
    "inspect",
    "diagnose",
    "compare",
    "plan",
    "adapt",
    "categorize",
    "align",
    "steer",
    "export",
    "evaluate",
    "translate",
    "report",
    "pretrain",
)
"""Functions that build a command's config from their arguments and return its record."""

NAMES = {
    "UserError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "ModelError": "errors",
    "NText": "corpora.ntext",
    "load": "corpora.ntext",
    "fetch": "corpora.packages",
    "open_model": "modeling",
    "open_tokenizer": "modeling",
    "moe_layers": "modeling",
    "upcycle": "modeling",
    "register": "modeling.mix_moe",
    "capture": "routing.capture",
    "RoutingTrace": "routing.trace",
    "ExpertPlan": "routing.plan",
    "ExpertNumbers": "routing.expert_numbers",
    "PLANNERS": "routing.planners",
    "METHODS": "methods",
    "open_delta": "methods.delta",
    "METRICS": "evaluation.metrics",
}
"""Public name -> module that holds it."""

__all__ = [*VERBS, *NAMES]


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return _verb(name)
    if name in NAMES:
        return getattr(importlib.import_module(f"dragoman.{NAMES[name]}"), name)
    raise AttributeError(f"module 'dragoman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _verb(name: str) -> Any:
    module = importlib.import_module(f"dragoman.commands.{name}")

    def verb(*args: Any, **settings: Any) -> Any:
        from dragoman.commands.calling import made

        return module.run(made(module.Config, name, args, settings))

    verb.__name__, verb.__doc__ = name, f"{module.run.__doc__}\n\nArguments: those of `{module.__name__}.Config`."
    return verb
