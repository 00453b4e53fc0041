"""Record: everything needed to believe a number and to repeat it.

A record is plain JSON with documented fields. The functions beside it make what it holds: checksums, versions, the
machine. Files are written whole or not at all (`atomic_write`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dragoman.errors import ConfigError, DataError

FORMAT = "dragoman-record/1"
PACKAGES = ("dragoman", "torch", "transformers", "tokenizers", "numpy", "scipy", "sacrebleu")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (file or folder); it takes the name `path` if the block succeeds.

    Raises ConfigError where the place cannot be written or the disk fills up; what stood at `path` before survives.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    except OSError as e:
        reason = e.strerror or e
        raise ConfigError(f"cannot write {path}: {reason}; free space or choose another place") from e
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with suppress(OSError):  # where the place itself cannot be had, there is nothing to remove
                partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with stable formatting, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON, compressed where the name ends in .gz; DataError names the file and the place of the fault."""
    packed = path.suffix == ".gz"
    try:
        data = path.read_bytes()
        return json.loads((gzip.decompress(data) if packed else data).decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error, ValueError) as e:
        raise DataError(f"{path} is not readable {'gzip-compressed ' if packed else ''}JSON: {e}") from None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (Path, set, frozenset)):
        return str(value) if isinstance(value, Path) else sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")


def sha256(*parts: bytes | str | Path) -> str:
    """Checksum of bytes, strings and files, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with open(part, "rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
        else:
            digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a number can depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine in words: processor, cores, memory, system, and a GPU where torch is loaded and sees one."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory_gb, 1),
        "system": f"{platform.system()} {platform.machine()}",
    } | _gpu()


def _gpu() -> dict[str, str]:
    torch = sys.modules.get("torch")
    return {"gpu": torch.cuda.get_device_name()} if torch and torch.cuda.is_available() else {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """Commit of the source tree that is running, with `+` where it has changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", __file__):
        return None
    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def peak_memory_mb() -> float:
    """Largest resident size that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def environment() -> dict[str, Any]:
    """The part of every record that does not depend on the command."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def cache_folder() -> Path:
    """Where packages and fetched models are kept: `$XDG_CACHE_HOME/dragoman`, by default `~/.cache/dragoman`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dragoman"


def require_free(folder: Path) -> None:
    """ConfigError where an output folder is a file or holds something already."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output {folder} is a file; choose a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"the output folder {folder} is not empty; choose another with --out, or remove it first")


def claim_folder(folder: Path) -> Path:
    """Make an output folder; ConfigError where it holds something already or cannot be written."""
    require_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"cannot make the output folder {folder}: {e.strerror}; choose another with --out") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"the output folder {folder} is not writable; choose another with --out")
    return folder
