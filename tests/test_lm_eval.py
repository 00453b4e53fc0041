"""lm-evaluation-harness runs on a model folder that dragoman wrote: a tiny local task, without a network.

pip install lm-eval        # then: pytest -m slow tests/test_lm_eval.py
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import dragoman
from dragoman.modeling import TextCodec, save_model
from tests.models import tiny
from tests.texts import tokenizer

TASK = """task: toy
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: ""
target_delimiter: ""
doc_to_target: 0
doc_to_choice: "{{{{[right, wrong]}}}}"
metric_list:
  - metric: acc
metadata:
  version: 1
"""
PAIRS = [
    ("open the file", "file the open open"),
    ("save it now", "now now save"),
    ("and another name", "name name and"),
]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_agrees_with_our_likelihoods(tmp_path):
    from dragoman.evaluation.likelihood import text_bits

    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer)), codec, tmp_path / "model")
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps({"right": r, "wrong": w}) + "\n" for r, w in PAIRS))
    (tmp_path / "toy.yaml").write_text(TASK.format(data=tmp_path / "toy.jsonl"))
    words = ["--model", "hf", "--model_args", f"pretrained={tmp_path / 'model'},add_bos_token=True", "--tasks", "toy"]
    words += [
        "--include_path",
        str(tmp_path),
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path / "out"),
        "--log_samples",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words], capture_output=True, text=True, env=os.environ | offline, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("samples_toy_*.jsonl")
    theirs = [[float(answer[0][0]) for answer in json.loads(line)["resps"]] for line in file.read_text().splitlines()]
    model = dragoman.open_model(str(tmp_path / "model"))
    flat = codec.encode([text for pair in PAIRS for text in pair])
    ours = -text_bits(model, flat, start_id=codec.start_id, context=64).reshape(-1, 2) * np.log(2)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
