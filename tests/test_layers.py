"""The house rules that a program can check: who imports whom, what stays lazy, how long things may get.

The import rule: a layer imports only layers to its left, and names in one layer are siblings that do not know each
other, so that `commands` is the only place where they meet.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "dragoman"

LAYERS = (
    ("errors",),
    ("record",),
    ("corpora", "modeling"),
    ("routing",),
    ("methods", "translation", "evaluation"),
    ("reporting",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
VERBS = {
    "tour",
    "inspect",
    "diagnose",
    "compare",
    "plan",
    "adapt",
    "categorize",
    "align",
    "steer",
    "evaluate",
    "translate",
    "export",
    "serve",
    "pretrain",
    "show",
}
TORCH_FREE = (
    "dragoman.cli",
    "dragoman.corpora.packages",
    "dragoman.corpora.mix",
    "dragoman.corpora.testsets",
    "dragoman.corpora.choices",
    "dragoman.corpora.items",
    "dragoman.corpora.itemfiles",
    "dragoman.corpora.quizzes",
    "dragoman.routing.trace",
    "dragoman.routing.stats",
    "dragoman.routing.sharing",
    "dragoman.routing.bands",
    "dragoman.routing.contrast",
    "dragoman.routing.coactivation",
    "dragoman.routing.correlation",
    "dragoman.routing.description",
    "dragoman.routing.planners",
    "dragoman.routing.controls",
    "dragoman.routing.figures",
    "dragoman.evaluation.metrics",
    "dragoman.evaluation.tasks",
    "dragoman.evaluation.significance",
    "dragoman.reporting",
    "dragoman.reporting.tables",
    "dragoman.commands.evaluate",
    "dragoman.commands.categorize",
    "dragoman.commands.align",
    "dragoman.commands.steer",
    "dragoman.commands.translate",
    "dragoman.commands.memory",
)
MAX_BODY, MAX_FILE = 40, 400

MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = MODULES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))


def layer_of(dotted):
    """`dragoman.routing.plan` -> `routing`; the package itself is its `__init__`."""
    return [*dotted.split("."), "__init__"][1]


def imports(tree, module):
    """Dotted names of dragoman's modules that a syntax tree imports, in functions too and through import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dragoman")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level] + ([node.module] if node.module else []))
            origin = base if node.level else node.module
            if origin == "dragoman":
                yield from (f"dragoman.{a.name}" if a.name in RANK else "dragoman" for a in node.names)
            elif origin.startswith("dragoman."):
                yield origin
        elif isinstance(node, ast.Call):
            yield from dynamic(node)


def dynamic(call):
    """The start of a name such as `dragoman.commands.` that is passed to import_module, f-strings included."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("import_module", "__import__") and call.args:
        text = next((n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)), "")
        if str(text).split(".")[0] == "dragoman":
            yield str(text).rstrip(".")


def violations(source, module):
    """Imports of a module's source that break the rule, in words."""
    own = layer_of(module)
    for name in imports(ast.parse(source), module):
        other = layer_of(name)
        if other not in RANK:
            yield f"{module} imports {name}, which is in no layer"
        elif other != own and RANK[other] >= RANK[own]:
            yield f"{module} ({own}) imports {name} ({other}), which is not to its left"


def dotted(path):
    """`src/dragoman/routing/plan.py` -> `dragoman.routing.plan`; of a package, the name of its `__init__`."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def test_every_module_belongs_to_a_layer():
    unknown = [str(p.relative_to(ROOT)) for p in MODULES if layer_of(dotted(p)) not in RANK]
    assert not unknown, f"new rooms need a place in the import rule: {unknown}"


def test_layers_import_only_to_their_left():
    found = [v for path in MODULES for v in violations(path.read_text(encoding="utf-8"), dotted(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("dragoman.routing.stats", "from dragoman.corpora.ntext import NText", False),
        ("dragoman.routing.stats", "from dragoman.routing.trace import RoutingTrace", False),
        ("dragoman.routing.stats", "def f():\n    import dragoman.methods.full", True),
        ("dragoman.corpora.mix", "from dragoman import modeling", True),
        ("dragoman.corpora.mix", "from dragoman import errors", False),
        ("dragoman.corpora.mix", "from dragoman import diagnose", True),
        ("dragoman.corpora.mix", "from ..modeling import open_model", True),
        ("dragoman.corpora.mix", "from . import ntext", False),
        ("dragoman.methods.full", "from dragoman.evaluation import metrics", True),
        ("dragoman.record", "import importlib\nimportlib.import_module('dragoman.cli')", True),
        ("dragoman.record", "import importlib\nimportlib.import_module(f'dragoman.commands.{name}')", True),
        ("dragoman.cli", "import importlib\nimportlib.import_module(f'dragoman.commands.{name}')", False),
        ("dragoman.cli", "import dragoman.helpers", True),
        ("dragoman.__init__", "from dragoman.commands import diagnose", False),
    ],
)
def test_the_rule_sees(module, source, broken):
    assert bool(list(violations(source, module))) is broken


def loaded(statements):
    """Which of torch and transformers a fresh interpreter has loaded after the statements."""
    code = f"{statements}\nimport sys; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_dragoman_loads_neither_torch_nor_transformers():
    assert loaded("import dragoman") == []


def test_what_comes_after_capture_works_without_torch():
    assert loaded("import " + ", ".join(TORCH_FREE)) == []
    assert "torch" in loaded("import dragoman.modeling"), "otherwise this check sees nothing"


def test_no_module_bears_the_name_of_a_verb():
    from dragoman.cli import COMMANDS

    modules = {p.stem for p in PACKAGE.iterdir()}
    assert not modules & (VERBS | set(COMMANDS)), "it would hide the public function of that name"


def test_no_module_is_called_utils():
    assert not [p for p in CODE if p.stem in ("utils", "util", "helpers", "misc", "common")]


def body_lines(function):
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def functions(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_no_function_body_over_the_limit():
    long = [
        f"{path.relative_to(ROOT)}:{f.lineno} {f.name}: {body_lines(f)} lines"
        for path in CODE
        for f in functions(path)
        if body_lines(f) > MAX_BODY
    ]
    assert not long, f"bodies have at most {MAX_BODY} lines:\n" + "\n".join(long)


def test_no_file_over_the_limit():
    lines = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in CODE}
    long = {name: n for name, n in lines.items() if n > MAX_FILE}
    assert not long, f"files have at most {MAX_FILE} lines: {long}"


def test_body_lines_by_hand():
    def measured(source):
        return body_lines(ast.parse(source).body[0])

    assert measured('def f():\n    """One\n    two."""\n    a = 1\n\n    return a\n') == 3
    assert measured('def f():\n    """Only this."""\n') == 0
    assert measured("def f(a,\n      b):\n    return (\n        a\n    )\n") == 3


def test_tracked_files_stay_small():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so there are no tracked files to weigh")
    sizes = {name: (ROOT / name).stat().st_size for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    largest = sorted(sizes, key=sizes.get)[-3:]
    assert sum(sizes.values()) < 58e6, f"{sum(sizes.values()) / 1e6:.1f} MB tracked, 58 allowed; largest: {largest}"
