"""COMET and MetricX on tiny random weights: shape, batching, formula, refusals. Agreement with the originals is not
tested: it would take their weights."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import MT5Config, MT5ForConditionalGeneration, PreTrainedTokenizerFast, XLMRobertaConfig

from dragoman.errors import ModelError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.neural import Comet, MetricX
from dragoman.modeling import estimators

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "source", "candidate", "reference", ":"]
SETTINGS = {"class_identifier": "regression_metric", "layer": "mix", "layer_norm": False, "pool": "avg",
            "layer_transformation": "softmax", "hidden_sizes": [12, 6], "activations": "Tanh",
            "final_activation": None, "nr_frozen_epochs": 0.3}  # fmt: skip
SOURCES = ["a b c", "d", "e f g h i j k", "a"]
ANSWERS = ["b a", "c d e f g", "a a a a", "k"]
REFERENCES = ["b b", "d d d", "a b", "e f g h"]


def tokenizer(folder, ends):
    """A vocabulary of WORDS; `ends` is how a text is wrapped."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(WordLevel({w: i for i, w in enumerate([*specials, *WORDS])}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single=ends, special_tokens=[(s, i) for i, s in enumerate(specials)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)


def comet_folder(folder, **changed):
    settings = SETTINGS | changed
    config = XLMRobertaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
                              intermediate_size=24, max_position_embeddings=14, pad_token_id=1)  # fmt: skip
    config.save_pretrained(folder)
    tokenizer(folder, "<s> $A </s>")
    from transformers import XLMRobertaModel

    torch.manual_seed(0)
    made = estimators.CometEstimator(XLMRobertaModel(config, add_pooling_layer=False), settings)
    for name, parameter in made.named_parameters():
        if "LayerNorm" not in name and "gamma" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    extra = {"encoder.model.embeddings.position_ids": torch.zeros(1, 14)}  # older checkpoints have it
    save_file({k: v.contiguous().clone() for k, v in made.state_dict().items()} | extra, folder / "model.safetensors")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(settings))
    return folder


VARIANTS = {
    "plain": {},
    "normed, sparsemax": {"layer_norm": True, "layer_transformation": "sparsemax"},
    "one layer, cls": {"layer": 2, "pool": "cls", "final_activation": "Sigmoid"},
    "without reference": {"class_identifier": "referenceless_regression_metric"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def comet(request, tmp_path_factory):
    return Comet(comet_folder(tmp_path_factory.mktemp("comet"), **request.param), batch_tokens=24)


def test_batched_equals_single(comet):
    sums_N2 = sums_per_segment(comet, ANSWERS, REFERENCES, sources=SOURCES)
    assert sums_N2.shape == (4, 2) and (sums_N2[:, 1] == 1).all()
    columns = {"sources": SOURCES, "references": REFERENCES}
    single = [comet.segment_sums(ANSWERS[n], *(columns[c][n] for c in comet.needs))[0] for n in range(4)]
    assert sums_N2[:, 0] == pytest.approx(single, abs=1e-5)
    assert np.ptp(sums_N2[:, 0]) > 1e-3, "scores that do not differ would hide faults"
    order = [2, 0, 3, 1]
    turned = sums_per_segment(comet, *([c[n] for n in order] for c in (ANSWERS, REFERENCES)),
                              sources=[SOURCES[n] for n in order])  # fmt: skip
    assert turned[:, 0] == pytest.approx(sums_N2[order, 0], abs=1e-5)
    assert score(comet, sums_N2).value == pytest.approx(sums_N2[:, 0].mean())


def test_every_input_counts(comet):
    base = sums_per_segment(comet, ANSWERS[:1], REFERENCES[:1], sources=SOURCES[:1])[0, 0]
    other = {
        "hypotheses": sums_per_segment(comet, ["k k"], REFERENCES[:1], sources=SOURCES[:1])[0, 0],
        "sources": sums_per_segment(comet, ANSWERS[:1], REFERENCES[:1], sources=["k k"])[0, 0],
        "references": sums_per_segment(comet, ANSWERS[:1], ["k k"], sources=SOURCES[:1])[0, 0],
    }
    changed = {name for name, value in other.items() if abs(value - base) > 1e-5}
    assert changed == {"hypotheses", *comet.needs}


def test_comet_equals_the_formula_written_out(tmp_path):
    metric = Comet(comet_folder(tmp_path, layer_norm=True))
    weights = metric._model.state_dict()
    encoder = metric._model.encoder["model"]
    ids = {"h": [0, 5, 4, 2], "s": [0, 4, 5, 6, 2], "r": [0, 5, 5, 2]}
    share = torch.cat([weights[f"layerwise_attention.scalar_parameters.{n}"] for n in range(4)]).softmax(0)
    vector = {}
    with torch.no_grad():
        for name, row in ids.items():
            layers = encoder(torch.tensor([row]), output_hidden_states=True).hidden_states
            normed = [(h[0] - h.mean()) / (h.var(unbiased=False) + 1e-12).sqrt() for h in layers]
            mixed = weights["layerwise_attention.gamma"] * sum(w * h for w, h in zip(share, normed, strict=True))
            vector[name] = mixed.mean(dim=0)
        h, s, r = vector["h"], vector["s"], vector["r"]
        x = torch.cat([h, r, h * r, (h - r).abs(), h * s, (h - s).abs()])
        for layer in (0, 3):  # activations and dropout stand between
            x = torch.tanh(weights[f"estimator.ff.{layer}.weight"] @ x + weights[f"estimator.ff.{layer}.bias"])
        expected = weights["estimator.ff.6.weight"] @ x + weights["estimator.ff.6.bias"]
    assert metric.segment_sums("b a", "a b c", "b b")[0] == pytest.approx(expected.item(), abs=1e-5)


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    # by hand: (1, 0.5, -1): support of two, threshold 0.25; and (3, 0): all on the first
    assert estimators.sparsemax(torch.tensor([1.0, -1.0, 0.5])).tolist() == pytest.approx([0.75, 0, 0.25])
    assert estimators.sparsemax(torch.tensor([3.0, 0.0])).tolist() == [1, 0]
    weight, point = torch.randn(6, generator=torch.Generator().manual_seed(0)), None
    point = estimators.sparsemax(weight)
    assert point.sum().item() == pytest.approx(1) and (point >= 0).all()
    others = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(6), 2000)).float()
    assert (weight - point).norm() <= (weight - others).norm(dim=1).min()


def test_of_long_texts_the_beginning_is_read_and_told(comet):
    limit, more = "a b " * 5, "a b " * 5 + "k k"  # 12 positions with both ends
    against = [["a"] * 3 for _ in comet.needs]
    sums_N2 = comet.all_sums([limit, more, "a"], *against)
    assert sums_N2[1] == pytest.approx(sums_N2[0]) and abs(sums_N2[2] - sums_N2[0]).max() > 1e-4
    assert comet.cut([limit, more, "a"], *against) == [1]
    assert comet.cut([limit, limit, "a"], ["a", "a", more], *against[1:]) == [2], "a source counts too"


def test_comet_folders_that_do_not_fit(tmp_path):
    with pytest.raises(
        ModelError, match=r"no COMET weights in .*absent: config.json, hparams.yaml, model.safetensors not"
    ):
        Comet(tmp_path / "absent")
    folder = comet_folder(tmp_path)
    (folder / "hparams.yaml").write_text(
        yaml.safe_dump(SETTINGS | {"class_identifier": "unified_metric", "pool": "max"})
    )
    with pytest.raises(
        ModelError, match=r"asks for pool max, class_identifier unified_metric, which is not built here"
    ):
        Comet(folder)
    (folder / "hparams.yaml").write_text(yaml.safe_dump(SETTINGS | {"hidden_sizes": [12, 7]}))
    with pytest.raises(
        ModelError, match=r"3 tensors are missing, unknown or of another shape, first estimator.ff.3.bias"
    ):
        Comet(folder)


def test_signature_names_weights_and_settings(tmp_path):
    signature = Comet(comet_folder(tmp_path)).signature()
    for part in (
        "kind:regression_metric",
        "weights:",
        "truncation:end",
        "layer:mix,softmax,norm False",
        "pool:avg",
    ):
        assert part in signature


@pytest.fixture(scope="module")
def metricx_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metricx")
    torch.manual_seed(0)
    config = MT5Config(vocab_size=250112, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=1, num_heads=2,
                       pad_token_id=1, eos_token_id=2, decoder_start_token_id=0)  # fmt: skip
    model = MT5ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(folder)
    tokenizer(folder, "$A </s>")
    return folder


def test_metricx_batched_equals_single(metricx_folder):
    metric = MetricX(metricx_folder, batch_tokens=30)
    sums_N2 = sums_per_segment(metric, ANSWERS, REFERENCES, sources=SOURCES)
    single = [metric.segment_sums(*row)[0] for row in zip(ANSWERS, SOURCES, REFERENCES, strict=True)]
    assert sums_N2[:, 0] == pytest.approx(single, abs=1e-4)
    assert (sums_N2[:, 0] >= 0).all() and (sums_N2[:, 0] <= 25).all() and np.ptp(sums_N2[:, 0]) > 1e-3
    assert not metric.higher_is_better and metric.name == "MetricX"


def test_metricx_reads_one_logit_without_the_end_token(metricx_folder):
    metric = MetricX(metricx_folder, reference=False)
    words = {w: i + 4 for i, w in enumerate(WORDS)}
    row = [words[w] for w in ["source", ":", "a", "b", "c", "candidate", ":", "b", "a"]]
    model = MT5ForConditionalGeneration.from_pretrained(metricx_folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([[0]])).logits
    expected = logits[0, 0, 250089].clamp(0, 25).item()
    assert metric.segment_sums("b a", "a b c")[0] == pytest.approx(expected, abs=1e-4)
    assert (metric.name, metric.needs) == ("MetricX-QE", ("sources",))
    assert "shown:source|" in metric.signature()


def test_metricx_reads_the_beginning_of_a_long_input(metricx_folder):
    """By hand: `source : a b c candidate :` are 7 tokens, and the end token, which is taken away, is the 8th."""
    metric = MetricX(metricx_folder, reference=False, max_tokens=8)
    whole = MetricX(metricx_folder, reference=False)
    assert metric.segment_sums("b a", "a b c") == pytest.approx(whole.segment_sums("", "a b c"), abs=1e-4)
    assert metric.cut(["b a", ""], ["a b c", "a b c"]) == [0] and whole.cut(["b a"], ["a b c"]) == []


def test_metricx_refusals(metricx_folder, tmp_path):
    with pytest.raises(ModelError, match=r"no MetricX weights in .*: config.json, \*.safetensors not found"):
        MetricX(tmp_path)
    small = MT5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
    MT5ForConditionalGeneration(small).save_pretrained(tmp_path)
    tokenizer(tmp_path, "$A </s>")
    with pytest.raises(ModelError, match="vocabulary of 64, but MetricX reads the logit of token 250089"):
        MetricX(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks weights of mT5, first encoder.block.1"):
        MetricX(tmp_path)
