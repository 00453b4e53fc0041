"""The engine Apertium: a program of the same name stands in for it, and where it is installed the real one."""

import shutil
import subprocess

import pytest

from dragoman.errors import ConfigError, ModelError
from dragoman.translation.apertium import ApertiumEngine
from dragoman.translation.request import Request

PROGRAM = """#!/bin/sh
if [ "$1" = -l ]; then echo "  eng-spa"; echo "  en-gl"; exit; fi
[ "$2" = en-gl ] && { echo "no such dictionary" >&2; exit 3; }
while IFS= read -r line; do
  case "$line" in *silent*) line= ;; *apart*) line=$(printf 'A\\n\\nPART') ;; esac
  printf '%s\\n' "$line" | tr a-z A-Z
done
"""
needs_pair = pytest.mark.skipif(
    shutil.which("apertium") is None
    or "eng-spa" not in subprocess.run(["apertium", "-l"], capture_output=True, text=True).stdout.split(),
    reason="the Debian packages apertium and apertium-eng-spa are not installed",
)


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "apertium").write_text(PROGRAM)
    (tmp_path / "apertium").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def ask(engine, *texts, to="es"):
    answers = dict(engine.answers([Request(text, "en", to) for text in texts], "zero_shot"))
    assert sorted(answers) == list(range(len(texts)))
    return [answers[i] for i in range(len(texts))]


@pytest.mark.parametrize("tags", [("en", "es"), ("en-GB", "es-MX")])
def test_the_direction_is_found_and_lines_come_back(program, tags):
    engine = ApertiumEngine(*tags)
    assert engine.modes == {tags: "eng-spa"}
    one, silent, two = ask(engine, "Open {1}it{2}.", "silent", "שלום now")
    assert (one.text, two.text) == ("OPEN {1}IT{2}.", "שלום NOW")
    assert silent.text is None and "no text" in silent.fault
    assert [a.text for a in ask(engine, "One", "apart", "Two")] == ["ONE", "A PART", "TWO"]
    assert ask(engine) == []


def test_what_is_not_installed_is_told(program, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no eng-cat among its installed directions \(eng-spa, en-gl\)"):
        ApertiumEngine("en", "ca")
    with pytest.raises(ModelError, match="status 3: no such dictionary"):
        ask(ApertiumEngine("en", "gl"), "One", to="gl")
    with pytest.raises(ConfigError, match="no eng-cat among its installed directions"):
        ask(ApertiumEngine("en", "es"), "One", to="ca")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="apertium is not installed: apt install"):
        ApertiumEngine("en", "es")


def test_each_request_is_asked_in_its_direction(program, tmp_path):
    (tmp_path / "apertium").write_text(PROGRAM.replace("tr a-z A-Z", 'sed "s/^./$2: &/"').replace("exit 3", "true"))
    requests = [Request("One", "en", "es"), Request("Two", "en", "gl"), Request("Three", "en", "es")]
    answers = dict(ApertiumEngine("en", "es").answers(requests, "zero_shot"))
    assert [answers[i].text for i in range(3)] == ["eng-spa: One", "en-gl: Two", "eng-spa: Three"]


@needs_pair
def test_the_real_one_keeps_marks_and_lines():
    engine = ApertiumEngine("en", "es")
    texts = ["The house is red", "Save {1}all{2} to {3}.", "Where is the book? It is here."]
    house, save, book = [answer.text for answer in ask(engine, *texts)]
    assert house == "La casa es roja"
    assert [save.count(f"{{{n}}}") for n in (1, 2, 3)] == [1, 1, 1]
    assert "libro" in book
