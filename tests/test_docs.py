"""What the documents say is true: commands parse, paths and links exist, code compiles, examples give what they show.

Nothing here runs a command: each `dragoman ...` line goes through the parser of the command line, flags, config file
and the checks of the config dataclass included.
"""

import doctest
import re
import shlex
from itertools import pairwise
from pathlib import Path

import cyclopts
import pytest

from dragoman import cli
from dragoman.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted(page for at in ("*.md", "examples/*.md", "docs/**/*.md", "benchmarks/**/*.md") for page in ROOT.glob(at))
HISTORY = {ROOT / "docs" / "LOG.md", ROOT / "CHANGELOG.md"}
"""Pages that may name files that are gone by now."""
ROOMS = ("src", "tests", "docs", "benchmarks", "examples", ".ci")
FENCE = re.compile(r"^(?P<tick>```+)(?P<kind>[a-z]*)[^\n]*\n(?P<body>.*?)^(?P=tick)\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*([^)\s]+)[^)]*\)|<img[^>]*\ssrc=\"([^\"]+)\"")


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, *kinds):
    """Bodies of the page's fenced blocks of these kinds."""
    return [m["body"] for m in FENCE.finditer(text_of(page)) if m["kind"] in kinds]


def prose(page):
    """The page without its fenced blocks."""
    return FENCE.sub("", text_of(page))


def shell_lines(text):
    """Single commands of a shell block, as words: continued lines joined, comments and prompts gone, && and ; split."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = next((i for i, w in enumerate(words) if w in ("&&", ";", "|", ">")), len(words))
            if words[:end]:
                yield words[:end]
            words = words[end + 1 :]


def commands(program):
    """(page, words after the program) of every sh block, and of the comments at the top of every recipe."""
    found = [(p, line) for p in PAGES for block in blocks(p, "sh", "bash") for line in shell_lines(block)]
    for recipe in sorted(r for room in ("benchmarks", "examples") for r in ROOT.glob(f"{room}/**/*.yaml")):
        comments = [line.lstrip("# ") for line in text_of(recipe).splitlines() if re.match(r"# +dragoman ", line)]
        found += [(recipe, line) for line in shell_lines("\n".join(comments))]
    return [pytest.param(line[1:], id=f"{p.name}: {' '.join(line)}") for p, line in found if line[0] == program]


@pytest.fixture
def parse(monkeypatch):
    """The command line up to the point where the command would run; in the repository root, where configs lie."""

    def only_parse(app, tokens, **settings):
        return app.parse_args(tokens, exit_on_error=False, print_error=False)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cyclopts.App, "__call__", only_parse)
    return cli.run


def test_the_readme_shows_commands():
    assert [line for block in blocks(README, "sh") for line in shell_lines(block) if line[0] == "dragoman"]


@pytest.mark.parametrize("words", commands("dragoman"))
def test_commands_parse(parse, words):
    assert parse(words) is not None


@pytest.mark.parametrize("words", [["tourr"], ["tour", "--no-such-flag", "1"], ["pretrain", "--config", "absent.yaml"]])
def test_wrong_commands_do_not_parse(parse, words):
    with pytest.raises((UserError, cyclopts.CycloptsError)):
        parse(words)


@pytest.mark.parametrize("words", commands("make"))
def test_make_targets_exist(words):
    targets = set(re.findall(r"^([a-z][a-z-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert {w for w in words if "=" not in w} <= targets


def test_cli_reference_is_generated():
    assert text_of(ROOT / "docs" / "cli.md") == cli.cli_markdown(), "run `make docs` and commit docs/cli.md"


def tree_entries(block):
    """Paths of a directory tree, one a line and two or more columns deeper inside; a folder ends in a slash."""
    folders = []
    for line in block.splitlines():
        bare = re.sub("[│├└─]", " ", line)
        if not (name := bare.split(maxsplit=1)[0] if bare.strip() else ""):
            continue
        indent = len(bare) - len(bare.lstrip())
        folders = [(i, f) for i, f in folders if i < indent]
        path = "".join(f for _, f in folders) + name
        if name.endswith("/"):
            folders.append((indent, name))
        yield path


def test_the_readme_tree_is_true():
    trees = [b for b in blocks(README, "", "text") if re.search(r"^\W*src/", b, re.MULTILINE)]
    assert trees, "README.md has no tree: a fenced block of paths, one a line, that begins with src/"
    absent = [path for tree in trees for path in tree_entries(tree) if not (ROOT / path).exists()]
    assert not absent, f"README's tree names what is not there: {absent}"


def test_tree_entries_by_hand():
    tree = "src/dragoman/   the package\n  cli.py        commands\n  routing/\n    plan.py\n├── docs/\n"
    expected = ["src/dragoman/", "src/dragoman/cli.py", "src/dragoman/routing/", "src/dragoman/routing/plan.py"]
    assert list(tree_entries(tree))[:4] == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_resolve(page):
    targets = [a or b for a, b in LINK.findall(prose(page))]
    local = [t for t in targets if not re.match(r"[a-z]+:", t)]
    broken = [t for t in local if not resolves(page, t)]
    assert not broken, f"{page.name} links to what is not there: {broken}"


def resolves(page, target):
    path, _, anchor = target.partition("#")
    there = (page.parent / path).resolve() if path else page
    if not there.exists() or not anchor or there.suffix != ".md":
        return there.exists()
    headings = re.findall(r"^#+ +(.*)$", prose(there), re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_paths_exist(page):
    named = re.findall(r"`([^`\s]+)`", prose(page)) + re.findall(r"Records?: (\S+?)[.,;]?(?:\s|$)", prose(page))
    rooms = ("benchmarks",) if page in HISTORY else ROOMS
    paths = {n for n in named if n.startswith(tuple(f"{room}/" for room in rooms)) and "<" not in n}
    absent = sorted(n for n in paths if not list(ROOT.glob(n.rstrip("/"))))
    assert not absent, f"{page.name} names what is not there: {absent}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile(page):
    faults = []
    for number, block in enumerate(blocks(page, "python", "py"), 1):
        try:
            compile(block, f"{page.name}, python block {number}", "exec")
        except SyntaxError as e:
            faults.append(str(e))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_interactive_examples_give_what_they_show(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = "\n".join(blocks(page, "pycon"))
    examples = doctest.DocTestParser().get_doctest(shown, {}, page.name, str(page), 0)
    failures = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(examples, out=failures.append)
    assert not failures, "".join(failures)


def test_the_log_is_dated_and_newest_first():
    titles = re.findall(r"^## (.*)$", prose(ROOT / "docs" / "LOG.md"), re.MULTILINE)
    days = [re.match(r"(\d{4}-\d\d-\d\d): \S", title) for title in titles]
    assert titles, "docs/LOG.md has no entry"
    assert all(days), f"a title is `YYYY-MM-DD: what`: {[t for t, d in zip(titles, days, strict=True) if not d]}"
    assert all(a[1] >= b[1] for a, b in pairwise(days)), "newest entries stand first"
