"""Run command lines, given as a JSON file, one after the other: what torchrun starts in test_sharding.py."""

import json
import sys
from pathlib import Path

import torch

from dragoman.cli import run
from dragoman.methods import sharding

if __name__ == "__main__":
    torch.set_num_threads(1)
    with sharding.joined():
        for line in json.loads(Path(sys.argv[1]).read_text()):
            run(line)
            sharding.wait()
