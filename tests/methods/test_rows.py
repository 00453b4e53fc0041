"""A pass computes no filler at the end of its rows and no logit without a label, and training is what it was."""

import numpy as np
import pytest
import torch

from dragoman.methods import training
from dragoman.methods.rows import Rows, cut_to_need
from dragoman.modeling import moe_layers
from tests.models import tiny

PAD = 0
TOKENS = np.array([[1, 5, 9, 2, 0, 0, 0, 0], [1, 7, 0, 8, 2, 0, 0, 0], [1, 4, 6, 2, 0, 0, 0, 0]], dtype=np.int32)
LABELS = np.array([[-100, -100, 9, 2] + [-100] * 4, [-100] * 3 + [8, 2] + [-100] * 3, [-100, 4, 6, 2] + [-100] * 4])


def test_by_hand():
    rows = Rows(TOKENS, LABELS, PAD, 3)
    found = cut_to_need([rows[0], rows[1]])
    assert found["input_ids"].tolist() == [[1, 5, 9, 2, 0], [1, 7, 0, 8, 2]], "padding inside a row stays"
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert found["labels"].tolist() == [[-100, -100, 9, 2, -100], [-100, -100, -100, 8, 2]]
    assert found["labelled"].tolist() == [1, 2, 7, 8], "where the next token has a label"
    assert found["row"].tolist() == [0, 1]
    assert set(cut_to_need([Rows(TOKENS, None, PAD, 3)[0]])) == {"input_ids", "labels", "row"}, "every token counts"


def test_the_end_token_is_learnt_where_it_is_the_pad_token():
    """The longest row of a pass keeps its last label."""
    tokens = np.array([[1, 5, 9, 7, 2, 2, 2], [1, 5, 2, 2, 2, 2, 2]], dtype=np.int32)
    labels = np.array([[-100, -100, 9, 7, 2, -100, -100], [-100, 5, 2] + [-100] * 4])
    rows = Rows(tokens, labels, 2, 2)
    found = cut_to_need([rows[0], rows[1]])
    assert found["labels"].tolist() == [[-100, -100, 9, 7, 2], [-100, 5, 2, -100, -100]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_documents_that_are_kept_apart_lose_their_filler_too():
    places = np.array([[0, 1, 0, 1, -1, -1, -1, -1]] * 3)
    found = cut_to_need([Rows(TOKENS, LABELS, PAD, 3, places)[n] for n in (0, 2)])
    assert found["position_ids"].tolist() == [[0, 1, 0, 1]] * 2
    assert found["labelled"].tolist() == [2, 4, 6], "nothing tells the first token of a document"


@pytest.mark.parametrize("micro_batch", [3, 1])
def test_training_is_that_of_whole_rows(micro_batch, tmp_path, monkeypatch):
    widths, heads = [], []

    def trained(folder):
        model = tiny("olmoe")
        model.model.layers[0].register_forward_hook(lambda _m, _given, out: widths.append(out.shape[1]))
        model.lm_head.register_forward_hook(lambda _m, _given, out: heads.append(out.shape[:2]))
        shape = {"steps": 3, "batch": 3, "micro_batch": micro_batch, "warmup": 1, "decay": 0, "precision": "fp32"}
        config = training.Config(**shape, learning_rate=1e-3, balance=0.01, z_loss=0.001)
        log = training.train(
            model, TOKENS, config, layers=moe_layers(model), labels_NS=LABELS, pad_id=PAD, folder=tmp_path / folder
        )
        return log.losses, {n: p.detach() for n, p in model.named_parameters()}, log.balance

    cut = trained("cut")
    assert widths == ([5] * 3 if micro_batch == 3 else [4, 5, 4] * 3)
    assert heads == ([(1, 7)] * 3 if micro_batch == 3 else [(1, 2), (1, 2), (1, 3)] * 3)
    monkeypatch.setattr(training, "_collator", lambda *_: None)
    whole = trained("whole")
    assert set(widths[len(cut[0]) * 3 // micro_batch :]) == {8}
    assert cut[0] == pytest.approx(whole[0], abs=1e-5)
    for name, weight in whole[1].items():
        torch.testing.assert_close(cut[1][name], weight, rtol=1e-4, atol=2e-5, msg=name)
    assert cut[2] == whole[2], "experts are counted over the same tokens"
