"""Rows of the embeddings that train alone: gradients and bits."""

import copy

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError
from dragoman.methods import METHODS, base, expert_tuning, tag_rows, training
from dragoman.modeling import plain_head
from tests.architectures import build
from tests.methods.contract import batch, changed_rows, toy_plan, trained
from tests.models import tiny

MODELS = {
    "untied": lambda: tiny("olmoe"),
    "tied": lambda: tiny("olmoe", tie_word_embeddings=True),
    "scaled": lambda: build("gemma4_text"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_whole_embeddings(kind):
    """Oracle: the same rows of the gradients of a plain model; 6 and 9 occur in the batch, 63 need not."""
    plain, ids = MODELS[kind](), batch()
    model = copy.deepcopy(plain)
    model.requires_grad_(False)
    tag_rows.apply(model, (6, 9, 63))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    for m in (model, plain):
        m(ids, labels=ids).loss.backward()
    table, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    for mine, theirs in ((model.get_input_embeddings(), table), (model.get_output_embeddings(), head)):
        torch.testing.assert_close(mine.tuned.tuned_PD.grad, theirs.weight.grad[[6, 9, 63]], rtol=1e-4, atol=1e-6)
    tied = table.weight is head.weight
    assert tied == (kind != "untied")
    assert len([p for p in model.parameters() if p.requires_grad]) == (1 if tied else 2)


@pytest.mark.parametrize("kind", MODELS)
def test_a_copy_reads_its_own_weights(kind):
    """Those of the model that it was copied from go where several processes share its training."""
    model, ids = MODELS[kind](), batch()
    tag_rows.apply(model, (6, 9))
    with torch.no_grad():
        model.get_input_embeddings().tuned.tuned_PD.add_(0.1)
        logits = model(ids).logits
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)
        assert torch.equal(copied(ids).logits, logits)
    assert plain_head(copied) is None, "the loss goes through the head's own forward"


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("embeddings", ["tags", "all"])
def test_expert_tuning_with_embeddings_changes_what_it_says(kind, embeddings):
    model, ids = MODELS[kind](), batch()
    plain, plan, method = copy.deepcopy(model), toy_plan(model), METHODS["expert_tuning"]
    settings = method.Config(embeddings=embeddings, tag_rows=(6, 9) if embeddings == "tags" else ())
    may_change = method.changes(model, settings, plan)
    trained(method, model, settings, plan, ids)
    logits = model(ids).logits
    method.merge(model)
    assert torch.equal(model(ids).logits, logits)
    changed = changed_rows(plain.state_dict(), model.state_dict())
    assert changed.keys() == may_change.keys()
    rows = (6, 9) if embeddings == "tags" else tuple(range(64))  # weight decay moves those that the batch has not
    assert [changed[name] for name in ("model.embed_tokens.weight", "lm_head.weight")] == [rows, rows]
    assert all(type(a) is type(b) for a, b in zip(model.modules(), plain.modules(), strict=True))
    assert not any(hasattr(m, "tuned") for m in model.modules())


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_rows_learn_from_the_head_where_the_loss_is_computed_in_chunks(tmp_path, kind):
    """Oracle: whole embeddings, whose other rows have no part in the loss of one update without decay of weights."""
    found, settings = [], {"steps": 1, "batch": 2, "micro_batch": 2, "warmup": 0, "decay": 0, "weight_decay": 0.0}
    for rows in ((6, 9), ()):
        model = MODELS[kind]()
        model.requires_grad_(False)
        if rows:
            tag_rows.apply(model, rows)
        for m in (model.get_input_embeddings(), model.get_output_embeddings()):
            m.weight.requires_grad_(not rows)
        config = training.Config(**settings, precision="fp32", learning_rate=0.01, clip=1e9)
        training.train(model, batch().numpy().astype(np.int32), config, folder=tmp_path / str(len(rows)))
        if rows:
            tag_rows.merge(model)
        found.append([m.weight[[6, 9]] for m in (model.get_input_embeddings(), model.get_output_embeddings())])
    start = MODELS[kind]().get_output_embeddings().weight[[6, 9]]
    assert not torch.allclose(found[0][1], start, atol=1e-4)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_trained_share_counts_the_rows():
    model = tiny("olmoe")
    METHODS["expert_tuning"].apply(model, expert_tuning.Config(embeddings="tags", tag_rows=(6,)), toy_plan(model))
    # as in the contract's test, and a row of 16 in the embeddings and in the head
    assert base.trained(model, 1).parameters == 2 * 2 * 3 * 8 * 16 + 2 * 8 * 16 + 2 * 16


def test_rows_that_are_not_there_are_refused():
    for rows in ((), (64,), (-1,)):
        with pytest.raises(ConfigError, match="there are 64 rows, from 0"):
            tag_rows.apply(tiny("olmoe"), rows)
    with pytest.raises(ConfigError, match="none, tags or all, not 'some'"):
        expert_tuning.Config(embeddings="some")
    with pytest.raises(ConfigError, match="tag_rows would have no effect"):
        expert_tuning.Config(tag_rows=(3,))
