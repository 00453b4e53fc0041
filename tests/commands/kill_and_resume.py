"""Run by tests: train a toy model straight, then killed at given or random points and resumed; prints what came out.

    python kill_and_resume.py FOLDER POINTS...

What is run are the words of a command line in FOLDER/words.json, or else the adaptation below. A point is the name of
an event and its number, such as save_file:1, or a number that draws one by chance. An event is a step, or a write of a
checkpoint; a write is cut off half-way before the kill.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch

import dragoman
from dragoman import cli
from dragoman.commands.forgetting import Evaluation
from dragoman.commands.training_text import Text
from dragoman.methods import checkpoints, loop
from dragoman.record import sha256

FOLDER = Path(sys.argv[1])
WORDS = FOLDER / "words.json"
SETTINGS = {
    "model": str(FOLDER / "model"),
    "corpus": str(FOLDER / "text.tsv"),
    "target": "ca",
    "plan": FOLDER / "plan.json",
    "learning_rate": 0.05,
    "precision": "fp32",
    "text": Text(segments=40, block=48, batch=4),
    "evaluation": Evaluation(every=3, segments=3, known=("en",)),
    "guard": "50%",
    "guard_action": "rollback",
    "checkpoint_steps": 2,
    "quiet": True,
}


class Events:
    """Counts events, and ends the process at one of them."""

    def __init__(self, point):
        self.point, self.seen, self.order = point, {}, []

    def __call__(self, name, half_done=lambda: None):
        self.seen[name] = self.seen.get(name, 0) + 1
        self.order.append(f"{name}:{self.seen[name]}")
        if self.order[-1] == self.point:
            half_done()
            os.kill(os.getpid(), signal.SIGKILL)

    def writing(self, name, write):
        """The function, whose file is cut in half where this is the point."""

        def told(content, path, *rest, **more):
            def half_done():
                write(content, path, *rest, **more)
                os.truncate(path, os.path.getsize(path) // 2)

            self(name, half_done)
            return write(content, path, *rest, **more)

        return told

    def before(self, name, call):
        """The function, or the end before it."""

        def told(*args, **kwargs):
            self(name)
            return call(*args, **kwargs)

        return told


def watched(point):
    events = Events(point)
    loop.save_file = events.writing("save_file", safetensors.torch.save_file)
    torch.save = events.writing("torch_save", torch.save)
    loop.seal = events.before("seal", loop.seal)
    loop.os.replace = events.before("replace", os.replace)
    checkpoints.shutil.rmtree = events.before("rmtree", checkpoints.shutil.rmtree)
    loop.Watch.on_step_end = events.before("step", loop.Watch.on_step_end)
    return events


def child(out, point=None, resume=False):
    """Train in a process of its own; how it ended."""
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    torch.set_num_threads(1)
    events = watched(point)
    if WORDS.exists():
        cli.run([*json.loads(WORDS.read_text()), "--out", str(out), *(["--resume"] if resume else [])])
    else:
        dragoman.adapt(**SETTINGS, out=out, resume=resume)
    (FOLDER / "events.json").write_text(json.dumps(events.order))
    os._exit(0)


def result(out):
    record = json.loads((out / "record.json").read_text())
    log = record.get("log") or record["training"]  # of pretrain
    return {
        "losses": log["losses"],
        "evaluations": log["evaluations"],
        "stopped": log["stopped"],
        "model": sha256(out / "model" / "model.safetensors"),
    }


def main():
    assert child(FOLDER / "straight") == 0
    straight, events = result(FOLDER / "straight"), json.loads((FOLDER / "events.json").read_text())
    found = []
    for i, given in enumerate(sys.argv[2:]):
        point = random.Random(int(given)).choice(events) if given.isdigit() else given
        out = FOLDER / f"killed{i}"
        status = child(out, point)
        resumed = child(out, resume=True)
        found.append({"point": point, "killed": status, "resumed": resumed, "same": result(out) == straight})
    print(json.dumps({"steps": len(straight["losses"]), "events": events, "kills": found}))


main()
