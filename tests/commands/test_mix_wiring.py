"""What `dragoman mix train` hands to training: the loss of MoE-LPR, and labels on translations alone."""

import pytest

from dragoman.commands.mix import run_stage
from dragoman.errors import DataError
from dragoman.methods import training
from dragoman.modeling import TextCodec
from tests.commands.test_mix_resuming import STEPS, folder, settings  # noqa: F401 (fixture)
from tests.texts import tokenizer


def test_the_loss_of_moe_lpr_trains_with_its_weight_and_mode(folder, tmp_path):  # noqa: F811
    def extra(name, **changes):
        return run_stage(settings(folder, "moe_lpr-2", tmp_path / name, **changes))["log"]["extra_losses"]

    usual, twice, released = extra("a", lpr=0.1), extra("b", lpr=0.2), extra("c", lpr_mode="released")
    assert len(usual) == len(twice) == len(released) == STEPS["steps"]
    assert usual[0] > 0 and twice[0] == pytest.approx(2 * usual[0])
    assert released[0] != pytest.approx(usual[0], rel=1e-5)


def test_labels_of_parallel_text_reach_the_training(folder, tmp_path, monkeypatch):  # noqa: F811
    caught = {}

    def catch(model, tokens_NS, config, **given):
        caught.update(given, tokens_NS=tokens_NS)
        raise DataError("caught")

    monkeypatch.setattr(training, "train", catch)
    with pytest.raises(DataError, match="caught"):
        run_stage(settings(folder, "mix_moe-2", tmp_path / "a", languages=(), replay=0.0))
    codec = TextCodec(tokenizer())
    silent = {codec.start_id, codec.pad_id}
    tokens, wanted, answers = caught["tokens_NS"].tolist(), [], 0
    for row in tokens:
        in_answer = False
        for token in row:
            in_answer = in_answer and token not in silent
            wanted.append(token if in_answer else -100)
            answers += token == codec.end_id
            in_answer = in_answer or token == codec.tag_id("de")
    assert caught["labels_NS"].flatten().tolist() == wanted
    assert answers >= len(tokens) and caught["pad_id"] == codec.pad_id
