"""Translate the example documents with two models and keep what came out, with the summaries.

    python -m pip install xllamacpp
    python examples/make.py

Writes examples/translated/MODEL/: the documents, `record.json`, and `summary.txt` as the command printed it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import run

HERE = Path(__file__).parent
TO = "fr"
SERVED, LOCAL = "gemma3-270m", "mini-moe"


def translated(model: str, flags: Sequence[str]) -> None:
    """`dragoman translate documents` into a folder of the model's name; the journal is of no use to a reader."""
    out = Path("translated") / model
    shutil.rmtree(HERE / out, ignore_errors=True)
    words = ["translate", "documents", "--to", TO, "--model", model, "--out", str(out), "--quiet", *flags]
    print("dragoman", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "dragoman", *words], cwd=HERE, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout)
    (HERE / out / "summary.txt").write_text(done.stdout, encoding="utf-8")
    (HERE / out / "journal.sqlite").unlink()


def make(*, threads: int = 2) -> None:
    """Both models, one after the other; threads: of the local server."""
    server = [sys.executable, str(HERE / "llama_server.py"), SERVED, "--threads", str(threads)]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                sys.exit("the local server did not start; what it said stands above")
            translated(SERVED, ["--server", url, "--completions"])
        finally:
            process.kill()
    translated(LOCAL, [])


if __name__ == "__main__":
    run(make)
