"""The queue: runs every question's list in the background, one core a worker, and can be killed at any time.

    dragoman data fetch help --out data
    nohup python benchmarks/experiments/run.py --workers 2 > runs/experiments.log 2>&1 &   # start, and go on
    kill $(cat runs/experiments/queue.pid)                                               # stop
    python benchmarks/experiments/run.py --dry-run                                       # what is left

A question is run whole before the next one: what it prepares, every arm at every rate on dev, then the sealed test
split is opened (results/opened.json: when, at which commit, with which claim, lists, rates), then the arms with their
seeds. What has a record is skipped, and no record is ever written twice; a run that fails leaves its error in its
record, and `--again` tries those once more under another name. A run that was killed leaves nothing and is run again.

It is no command of dragoman: it runs a repository's own lists, and their results belong beside them. What a list and a
record hold is in docs/experiments.md.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from cyclopts import App

from dragoman import cli
from dragoman.commands import experiments
from dragoman.commands.experimenting import attempt_path, execute, open_question, write_failure
from dragoman.commands.experiments import Question, Run
from dragoman.errors import ConfigError, UserError

HERE = Path(__file__).resolve().parent
WORK = Path("runs/experiments")
ONE_CORE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
PRELOADED = ["torch", "transformers.trainer", "peft"]
"""What takes most runs seconds to import: imported once, in the process that they are forked from. Nothing of dragoman:
a run has the code that is there when it starts, as its record says by its commit."""
app = App()


@app.default
def queue(
    folder: Path = HERE,
    work: Path = WORK,
    workers: int = 2,
    again: bool = False,
    dry_run: bool = False,
    only: Sequence[str] = (),
) -> None:
    """Run whatever has no record yet, question by question; only: some of them, out of turn."""
    questions = picked(experiments.questions(folder), only)
    if dry_run:
        for question in questions:
            print(f"{question.name}: {_left(question)}")
        return
    os.environ |= ONE_CORE
    multiprocessing.set_forkserver_preload(PRELOADED)
    with _only_queue(work) as lock:
        for question in questions:
            _run_question(question, Pool(work, workers, lock), again)


def picked(questions: list[Question], only: Sequence[str]) -> list[Question]:
    """All of them, or those named, in their order. ConfigError for names of none."""
    names = [q.name for q in questions]
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(f"there is no question {', '.join(unknown)}; there are {', '.join(names)}")
    return [q for q in questions if not only or q.name in only]


def _left(question: Question) -> str:
    """Runs of each kind that have no record, in words."""
    found = {kind: question.runs(kind) for kind in experiments.RUNS}
    left = {kind: sum(r.name not in question.records for r in runs) for kind, runs in found.items()}
    return ", ".join(f"{left[kind]} of {len(runs)} {kind} runs left" for kind, runs in found.items())


def _run_question(question: Question, pool: Pool, again: bool) -> None:
    """Kind after kind; a question whose preparation has failed stays sealed."""
    for kind in experiments.RUNS:
        if kind == "final" and question.studies:
            open_question(question, pool.work)
        _run_all(question, kind, pool, again)
        failed = [r.name for r in question.runs(kind) if kind in experiments.PREPARING and not question.ended(r)]
        if failed:
            print(f"{question.name} ends here: {', '.join(failed)} failed", flush=True)
            return


# Workers


@dataclass
class Pool:
    """Runs in processes of their own, each pinned to a core."""

    work: Path
    workers: int
    lock: int
    """Descriptor of the queue's lock: it stays held as long as any run lives."""
    running: dict[ForkServerProcess, tuple[Run, int]] = field(default_factory=dict)

    def start(self, question: Question, run: Run) -> None:
        """Start a run on the core that the fewest runs have."""
        core = freest(sorted(os.sched_getaffinity(0)), [core for _, core in self.running.values()])
        log = self.work / f"{question.name}--{run.name}.log"
        what = question.folder, run.name, self.work, log, core, DupFd(self.lock)
        process = multiprocessing.get_context("forkserver").Process(target=one, args=what)
        process.start()
        self.running[process] = run, core

    def wait(self, question: Question) -> None:
        """Wait until a run ends; one that died without a record gets the record of a failure."""
        wait([process.sentinel for process in self.running])
        for process in [p for p in self.running if p.exitcode is not None]:
            run, _ = self.running.pop(process)
            if process.exitcode:
                write_failure(question, run, f"the process ended with status {process.exitcode}", self.work)
            status = process.exitcode or question.status(run)
            print(f"{time.strftime('%H:%M:%S')} {question.name} {run.name}: {status}", flush=True)

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.join()


def one(folder: Path, name: str, work: Path, log: Path, core: int, lock: Any) -> None:
    """One run, in this process: on a core, with a log, and holding the queue's lock until it ends."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    lock.detach()
    os.sched_setaffinity(0, {core})
    question = Question(folder)
    run = next(r for kind in experiments.RUNS for r in question.runs(kind) if r.name == name)
    execute(question, run, work, attempt_path(question, run), cli.run)


def freest(cores: Sequence[int], taken: Sequence[int]) -> int:
    """The first of the cores that the fewest runs have; taken: the core of each run."""
    return min(cores, key=taken.count)


def _run_all(question: Question, kind: str, pool: Pool, again: bool) -> None:
    question.__dict__.pop("records", None)  # those of the kind before are there by now
    waiting = _waiting(question, kind, pool.work, again)
    try:
        while waiting or pool.running:
            while waiting and len(pool.running) < pool.workers:
                pool.start(question, waiting.pop(0))
            pool.wait(question)
    finally:
        pool.stop()
        question.__dict__.pop("records", None)


def _waiting(question: Question, kind: str, work: Path, again: bool) -> list[Run]:
    """Runs of a kind without a record; failed ones too, if asked, and what later runs need and is not on this disk."""
    if all(r.name in question.records for k in experiments.RUNS for r in question.runs(k)) and not again:
        return []
    if kind == "rate" and question.opened:
        return []
    runs = question.runs(kind)
    absent = [r for r in runs if kind in experiments.PREPARING and not (work / question.name / r.name).is_dir()]
    failed = [r for r in runs if again and not question.ended(r)]
    return [r for r in runs if r.name not in question.records or r in absent + failed]


@contextmanager
def _only_queue(work: Path) -> Iterator[int]:
    """One queue a folder: the lock is gone when the queue and every run that it started are."""
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with open(work / "queue.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"a queue, or a run that it left, is still at work in {work}; wait or stop it") from None
        for left in work.glob("*/*.running"):
            shutil.rmtree(left)
        (work / "queue.pid").write_text(f"{os.getpid()}\n")
        yield file.fileno()


if __name__ == "__main__":
    try:
        app()
    except UserError as e:
        sys.exit(f"run.py: {e}")
