"""New vocabulary: entries that save tokens, rows that are means of their pieces."""

import pytest
import torch

from dragoman.errors import ConfigError
from dragoman.modeling import TextCodec, extended, grow, new_pieces
from tests.models import tiny
from tests.texts import corpus, tokenizer

SCRIPT = ["ქართული ენა", "ქართული ფაილი", "შეინახეთ ფაილი", "გახსენით ფაილი ახლა"] * 5


def test_new_entries_save_tokens_and_keep_the_text():
    before = TextCodec(tokenizer())
    pieces = new_pieces(before, SCRIPT, 12)
    after = extended(before, pieces)
    assert len(pieces) == len(set(pieces)) == 12
    assert len(after.tokenizer) == len(before.tokenizer) + 12
    was, now = (sum(map(len, c.encode(SCRIPT))) for c in (before, after))
    assert now < 0.5 * was
    assert [after.decode(ids) for ids in after.encode(SCRIPT)] == SCRIPT
    known = corpus().texts("en")
    assert after.encode(known) == before.encode(known), "other languages are read as before"


@pytest.mark.parametrize("tied", [False, True])
def test_rows_start_as_means_of_their_pieces_and_old_ones_stay(tied):
    before = TextCodec(tokenizer())
    after = extended(before, new_pieces(before, SCRIPT, 12))
    model = tiny("olmoe", vocab_size=len(before.tokenizer), tie_word_embeddings=tied)
    old = [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    grow(model, before, after)
    for was, layer in zip(old, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(layer.weight[: len(was)], was)
        for row in range(len(before.tokenizer), len(after.tokenizer)):
            pieces = before.encode([after.tokenizer.convert_ids_to_tokens(row)])[0]
            assert len(pieces) > 1
            torch.testing.assert_close(layer.weight[row], was[pieces].mean(0))
    assert model.config.vocab_size == len(after.tokenizer)


def test_a_heads_bias_starts_as_its_rows_do():
    before = TextCodec(tokenizer())
    after = extended(before, new_pieces(before, SCRIPT, 2))
    model = tiny("phi", vocab_size=len(before.tokenizer))
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.bias.copy_(torch.arange(len(head.bias)))
    grow(model, before, after)
    row = len(before.tokenizer)
    pieces = before.encode([after.tokenizer.convert_ids_to_tokens(row)])[0]
    assert model.get_output_embeddings().bias[row].item() == pytest.approx(sum(pieces) / len(pieces))


def test_a_codec_of_the_same_vocabulary_changes_nothing():
    model, codec = tiny("olmoe", vocab_size=400), TextCodec(tokenizer())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    grow(model, codec, codec)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_more_entries_than_the_text_has_are_refused():
    with pytest.raises(ConfigError, match=r"pieces that are several tokens now, 500 new entries were asked for"):
        new_pieces(TextCodec(tokenizer()), SCRIPT, 500)
