"""Where documents come from and go to: folders are mirrored, no output is where it should not be; encodings."""

from pathlib import Path

import pytest

from dragoman.errors import ConfigError
from dragoman.translation.documents import read_document
from dragoman.translation.formats import Options
from dragoman.translation.formats.base import Part
from dragoman.translation.inputs import inputs


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("One\n")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_are_mirrored(here):
    made(here, "docs/a.md", "docs/deep/b.PO", "docs/.git/c.txt", "docs/image.png", "docs/out/a.md", "notes.txt")
    found = [(str(f.path), str(f.name)) for f in inputs(("docs", "notes.txt"), Path("docs/out"))]
    assert found == [("docs/a.md", "a.md"), ("docs/deep/b.PO", "deep/b.PO"), ("notes.txt", "notes.txt")]


def test_all_that_cannot_be_written_is_told_at_once(here):
    made(here, "x/a.txt", "y/a.txt", "x/own.txt", "record.json", "out/own.txt", "x/deep/b.txt", "elsewhere/b.txt")
    (here / "out/deep").symlink_to(here / "elsewhere")
    with pytest.raises(ConfigError) as e:
        inputs(("x", "y", "record.json", "out/own.txt"), Path("out"))
    told = ("out/a.txt (two", "out/record.json (the job's", "out/deep/b.txt (a link, or outside", "out/own.txt (its")
    assert all(some in str(e.value) for some in told)
    (here / "out/deep").unlink()
    (here / "out/a.txt").symlink_to(here / "elsewhere/b.txt")
    with pytest.raises(ConfigError, match=r"out/a\.txt \(a link"):
        inputs(("x/a.txt",), Path("out"))


def test_no_output_is_the_source_of_another_file(here):
    made(here, "x/deep/a.txt", "out/deep/a.txt")
    with pytest.raises(ConfigError, match=r"cannot write out/deep/a\.txt \(another's source\);"):
        inputs(("x", "out/deep/a.txt"), Path("out"))
    assert len(inputs(("x", "out/deep/a.txt"), Path("o"))) == 2


def test_a_folder_without_documents_is_told(here):
    made(here, "docs/image.png")
    with pytest.raises(ConfigError, match="no file in docs is of a format that is known"):
        inputs(("docs",), Path("out"))


def test_the_command_writes_into_folders(here, monkeypatch):
    from dragoman.commands import translate
    from dragoman.translation.request import Answer

    class Shouter:
        batch = 2

        def answers(self, requests, template):
            yield from ((i, Answer(r.source.upper())) for i, r in enumerate(requests))

    monkeypatch.setattr(translate, "_engine", lambda config: Shouter())
    made(here, "docs/a.txt", "docs/deep/b.txt")
    record = translate.run(translate.Config(("docs",), to="de", quiet=True, steps=("zero_shot",)))
    assert (here / "translation/deep/b.txt").read_text() == "ONE\n"
    assert record["counts"] == {"segments": 2, "translated": 1, "reused": 1, "kept": 0, "doubtful": 0, "failed": 0}
    with pytest.raises(ConfigError, match=r"docs/a\.txt \(its source\), .*b\.txt \(its source\)"):
        translate.run(translate.Config(("docs",), to="de", out=here / "docs"))


def test_latin_1_of_html_is_that_of_browsers(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<meta charset=iso-8859-1><p>It\x92s")
    options = Options("en", "ca")
    document = read_document(tmp_path / "a.html", options)
    assert document.places[0].parts == (Part("It\u2019s"),) and document.filled([]).endswith(b"It\x92s")
    (tmp_path / "a.html").write_bytes(b"<meta charset=iso-8859-1><p>It\xe9s")
    assert read_document(tmp_path / "a.html", options).encoding == "iso-8859-1", "so that others read it, too"
