"""More vocabulary for a language that the tokenizer cuts into too many pieces, such as one in a new script.

New entries are strings that are matched before the tokenizer's own pieces. Their rows of the embedding, and of the
head, start as the mean of the rows of the pieces that they replace.

Source: ours.

Shape letters: V vocabulary, D model width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

from dragoman.errors import ConfigError
from dragoman.modeling.codec import TextCodec

SPARE = 100
"""Entries of the trial tokenizer for parts of letters, which are no strings."""


def new_pieces(codec: TextCodec, texts: Sequence[str], count: int) -> list[str]:
    """The `count` strings that save most tokens in these texts, found by training the same kind of tokenizer on them.

    Raises ConfigError where there are fewer that save any.
    """
    size = len(codec.tokenizer.all_special_ids) + 256 + 4 * count + SPARE
    learnt = codec.tokenizer.train_new_from_iterator(texts, vocab_size=size, show_progress=False)
    whole = {learnt.decode([i]) for i in range(len(learnt)) if i not in learnt.all_special_ids}
    words = [s for s in sorted(whole) if any(map(str.isalpha, s)) and "\N{REPLACEMENT CHARACTER}" not in s]
    text = "\n".join(texts)
    saved = {s: text.count(s) * (len(ids) - 1) for s, ids in zip(words, codec.encode(words), strict=True)}
    useful = sorted((piece for piece in saved if saved[piece] > 0), key=lambda piece: (-saved[piece], piece))
    if len(useful) < count:
        raise ConfigError(
            f"the text has {len(useful)} pieces that are several tokens now, {count} new entries were asked for; ask "
            "for fewer, or give more text"
        )
    return useful[:count]


def extended(codec: TextCodec, pieces: Sequence[str]) -> TextCodec:
    """The codec with these pieces as entries of their own; the given one stays as it is."""
    tokenizer = copy.deepcopy(codec.tokenizer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    return TextCodec(tokenizer)


def grow(model: PreTrainedModel, before: TextCodec, after: TextCodec) -> None:
    """Give the model rows for what `after` has and `before` has not, each the mean of its pieces, in place."""
    known, there = before.tokenizer.get_vocab(), after.tokenizer.get_vocab()
    fresh = [(piece, row) for piece, row in there.items() if piece not in known]
    old_VD: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    if len(after.tokenizer) > len(old_VD):
        model.resize_token_embeddings(len(after.tokenizer), mean_resizing=False)
    pieces = before.encode([piece for piece, _ in fresh])
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight_VD: torch.Tensor = layer.weight  # type: ignore[assignment]
            for (_, row), ids in zip(fresh, pieces, strict=True):
                weight_VD[row] = weight_VD[ids].mean(0)
                bias_V: torch.Tensor | None = getattr(layer, "bias", None)  # of a head
                if bias_V is not None:
                    bias_V[row] = bias_V[ids].mean(0)
