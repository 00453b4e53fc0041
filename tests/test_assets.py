"""The shipped bases are what the documents say: shape, size, vocabulary; weights and tokenizer belong together."""

import math
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import dragoman
from benchmarks import base_quality
from dragoman.corpora.pack import KNOWN, UNSEEN, load_pack
from dragoman.errors import ModelError
from dragoman.evaluation.likelihood import text_bits
from dragoman.modeling import model_checksum, model_path
from dragoman.modeling.opening import BUILT_IN
from dragoman.record import read_json

ROOT = Path(__file__).resolve().parents[1]
RECORDS = {"mini-moe": ("mini-moe-en", "mini-moe", "mini-moe-more"), "mini-dense": ("mini-dense",)}
"""Base -> records of its trainings, in `benchmarks/base`."""
QUALITY = {"mini-moe": "quality.json", "mini-dense": "mini-dense-quality.json"}
BYTES = {"mini-moe": 27e6, "mini-dense": 10e6}


@pytest.fixture(scope="module", params=RECORDS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pack():
    return load_pack()


@pytest.fixture(scope="module")
def base(name):
    return dragoman.open_model(name), dragoman.open_tokenizer(name)


def test_every_built_in_base_is_tested_here():
    assert set(RECORDS) == set(BUILT_IN)


def test_shape_and_size_of_the_dense_base():
    model = dragoman.open_model("mini-dense")
    assert type(model).__name__ == "LlamaForCausalLM"
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        dragoman.moe_layers(model)
    assert 4e6 < sum(p.numel() for p in model.parameters()) < 5e6


def test_both_bases_read_text_alike(pack):
    texts = [t for g in KNOWN for t in pack.texts(g, "dev")[:3]]
    ours, dense = (dragoman.open_tokenizer(name).encode(texts) for name in RECORDS)
    assert ours == dense


def test_shape_and_size_of_the_moe_base():
    model = dragoman.open_model("mini-moe")
    assert type(model).__name__ == "OlmoeForCausalLM"
    layers = dragoman.moe_layers(model)
    assert len(layers) == 8
    assert {(x.num_experts, x.top_k) for x in layers} == {(32, 4)}
    assert 12e6 < sum(p.numel() for p in model.parameters()) < 16e6


def test_weights_are_bf16_safetensors_stored_once(name):
    weights = Path(model_path(name)) / "model.safetensors"
    with safe_open(weights, "pt") as f:
        assert {f.get_slice(n).get_dtype() for n in f.keys()} == {"BF16"}  # noqa: SIM118
    assert weights.stat().st_size < BYTES[name]


def test_vocabulary_was_learnt_on_the_known_languages_alone(base, pack):
    _, codec = base
    assert 11_000 < len(codec.tokenizer) < 13_000
    tags = [codec.tag_id(g) for g in (*KNOWN, *UNSEEN)]
    assert len({t for t in tags if t is not None}) == 14
    assert codec.decode(tags) == "", "tags are special tokens, which never show in a translation"
    bytes_per_token = {
        g: sum(len(t.encode()) for t in texts) / sum(map(len, codec.encode(texts)))
        for g in (*KNOWN, *UNSEEN)
        if (texts := pack.texts(g, "dev")[:50])
    }
    assert min(bytes_per_token[g] for g in KNOWN) > 4
    assert max(bytes_per_token[g] for g in UNSEEN) < 3.5


def test_it_has_learnt_its_languages(base, pack):
    """A tokenizer of another training, or weights out of order, would cost more than random bytes of these texts."""
    model, codec = base
    rate = {}
    for g in KNOWN:
        texts = pack.texts(g, "dev")[:12]
        bits = text_bits(model, codec.encode(texts), start_id=codec.start_id, context=512)
        rate[g] = bits.sum() / sum(len(t.encode()) for t in texts)
    assert max(rate.values()) < 2.5, rate
    assert np.mean(list(rate.values())) < 2.0, rate


def test_the_model_card_has_the_numbers_of_the_records(name):
    card = (Path(model_path(name)) / "README.md").read_text()
    folder = ROOT / "benchmarks" / "base"
    quality = read_json(folder / QUALITY[name])
    assert base_quality.markdown(quality) in card
    assert quality["model_sha256"] == model_checksum(name), "the record is of other weights"
    for record in RECORDS[name]:
        assert f"{read_json(folder / f'{record}.json')['training']['tokens'] / 1e6:.1f} M tokens" in card


def test_the_ngram_model_by_its_recursion():
    """Byte by byte, with counts in dictionaries."""
    train, test, order = b"abracadabra, a cadaver; abba", "abrab\u00e4 cad\u00e4".encode(), 5
    after = defaultdict(Counter)
    for n in range(order):
        for i in range(n, len(train)):
            after[train[i - n : i]][train[i]] += 1

    def p(i, n):
        shorter = p(i, n - 1) if n else 1 / 256
        seen = after.get(test[i - n : i])
        return (seen[test[i]] + len(seen) * shorter) / (seen.total() + len(seen)) if seen else shorter

    expected = -sum(math.log2(p(i, min(order - 1, i))) for i in range(len(test)))
    assert base_quality.ngram_bits(train, test) == pytest.approx(expected)
    assert base_quality.ngram_bits(b"", test) == 8 * len(test)
    assert base_quality.ngram_bits(train, b"a") < 8 > base_quality.ngram_bits(b"ab", b"a")


def test_the_repository_stays_small():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so tracked files are not known")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {n: (ROOT / n).stat().st_size for n in names.split("\0") if n and (ROOT / n).exists()}
    assert sum(sizes.values()) < 58e6
    assert sum(s for n, s in sizes.items() if "/assets/pack/" in n) < 8e6
