"""Trainings that are killed and go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "commands" / "kill_and_resume.py"


def killed(folder, *points, seconds=600):
    """What `kill_and_resume.py` found: each kill was one, and the run that went on ended as one left alone."""
    line = [sys.executable, SCRIPT, folder, *points]
    done = subprocess.run(line, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["kills"]) == len(points)
    for kill in found["kills"]:
        assert os.WIFSIGNALED(kill["killed"]) and os.WTERMSIG(kill["killed"]) == signal.SIGKILL, kill
        assert kill["resumed"] == 0 and kill["same"], kill
    return found
