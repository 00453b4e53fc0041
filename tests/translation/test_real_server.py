"""The engine on a server against llama.cpp, in a process of its own, with models from Python packages."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from dragoman.translation.remote import RemoteEngine
from dragoman.translation.request import Request

SCRIPT = Path(__file__).parents[2] / "examples" / "llama_server.py"
TEXTS = ["The house is red.", "Open the door.", "Where is the station?", "Good morning!"]
pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"),
]


@pytest.fixture(params=["smollm2", "gemma3-270m"])
def served(request):
    """Name and address."""
    command = [sys.executable, str(SCRIPT), request.param, "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield request.param, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_real_server_answers_every_request(served):
    """The base model completes, and does translate into French; the one that chats in English at least answers."""
    name, url = served
    completes = name == "gemma3-270m"
    engine = RemoteEngine(url, name, concurrency=4, completions=completes, timeout=120)
    requests = [Request(text, "en", "fr") for text in TEXTS]
    answers = dict(engine.answers(requests, "zero_shot" if completes else "instruct"))
    texts = [answers[i].text for i in range(len(TEXTS))]
    assert all(texts)
    if completes:
        assert not any("\n" in text for text in texts)
        assert "maison" in texts[0].lower()
