"""Packing without attention across documents: a document is read as if it were alone."""

import numpy as np
import pytest
import torch

from dragoman.corpora.mix import pad, positions
from dragoman.errors import ModelError
from dragoman.methods.rows import Rows
from dragoman.methods.training import Config, train
from dragoman.modeling import isolates
from tests.models import FAMILIES, tiny

DOCUMENTS = [[1, 9, 8, 7, 2], [1, 20, 21, 2], [1, 33, 34, 35, 36, 37, 2], [1, 5, 2]]
BLOCK = 12


def batch(documents=DOCUMENTS):
    lengths = [len(d) for d in documents]
    tokens_NS, labels_NS = pad([(d, 0) for d in documents], BLOCK, pad_id=0)
    places_NS = positions(lengths, BLOCK)
    return Rows(tokens_NS, labels_NS, 0, len(tokens_NS), places_NS), tokens_NS, places_NS


def read(model, rows):
    items = [rows[i] for i in range(len(rows))]
    inputs = {k: torch.stack([item[k] for item in items]) for k in ("input_ids", "position_ids")}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits  # with a cache positions tell nothing


def test_two_rows_are_packed_as_the_test_expects():
    _, tokens_NS, places_NS = batch()
    assert tokens_NS.tolist() == [[1, 9, 8, 7, 2, 1, 20, 21, 2, 0, 0, 0], [1, 33, 34, 35, 36, 37, 2, 1, 5, 2, 0, 0]]
    assert places_NS[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, -1, -1, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_document_is_read_as_if_alone(family):
    """Oracle: the document by itself. And what a token of one document is moves no logit of another."""
    model = tiny(family)
    rows, _, places_NS = batch()
    packed_BSV = read(model, rows)
    starts = [(b, s) for b, s in zip(*np.nonzero(places_NS == 0), strict=True)]
    for (b, s), document in zip(starts, DOCUMENTS, strict=True):
        with torch.no_grad():
            alone_SV = model(torch.tensor([document])).logits[0]
        torch.testing.assert_close(packed_BSV[b, s : s + len(document)], alone_SV, rtol=1e-4, atol=1e-5)
    other, _, _ = batch([[1, 50, 51, 52, 2], *DOCUMENTS[1:]])
    moved_BSV = read(model, other)
    assert not torch.equal(moved_BSV[0, 1:5], packed_BSV[0, 1:5])
    torch.testing.assert_close(moved_BSV[0, 5:], packed_BSV[0, 5:], rtol=1e-5, atol=1e-6)


def test_the_loss_leaves_out_what_stands_before_nothing(tmp_path):
    """Oracle: the cross-entropy of the documents alone, each token once."""
    model = tiny("olmoe")
    _, tokens_NS, places_NS = batch()
    labels_NS = pad([(d, 0) for d in DOCUMENTS], BLOCK, pad_id=0)[1]
    nats, count = 0.0, 0
    for document in DOCUMENTS:
        ids = torch.tensor([document])
        nats += model(ids, labels=ids).loss.item() * (len(document) - 1)
        count += len(document) - 1
    settings = Config(steps=1, batch=2, micro_batch=2, warmup=0, decay=0, precision="fp32")
    log = train(
        model, tokens_NS, settings, labels_NS=labels_NS, positions_NS=places_NS, pad_id=0, folder=tmp_path
    )
    assert log.losses[0] == pytest.approx(nats / count, rel=1e-5)


def test_a_class_that_ignores_positions_is_refused(tmp_path):
    """gpt_oss builds its mask without them (transformers 5.23)."""
    model = tiny("gpt_oss")
    settings = Config(steps=1, batch=2, micro_batch=2, warmup=0, decay=0, precision="fp32")
    _, tokens_NS, places_NS = batch()
    if isolates(model):
        pytest.skip("this version of transformers passes them on")
    with pytest.raises(ModelError, match="GptOssForCausalLM lets tokens attend to other documents"):
        train(model, tokens_NS, settings, labels_NS=tokens_NS.astype(np.int64), positions_NS=places_NS, folder=tmp_path)
