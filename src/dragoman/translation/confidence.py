"""How sure a model is of each word of a translation.

    confidence(word) = mean over the pieces t of the word of p(t | prompt, pieces before)

Source: SCALE 2023 (arXiv:2309.17061) and its code: arithmetic mean, words as they stand between spaces.
Differs: a finished text is read again in one pass in place of collecting scores while decoding; so any text can be
scored, and where a tokenizer would cut it otherwise than it was generated, it is scored as it is cut. Where no spaces
are written a whole stretch is one word.

Shape letters: B texts, S positions, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from dragoman.errors import ModelError
from dragoman.modeling import TextCodec


@torch.inference_mode()
def word_confidences(
    model: PreTrainedModel, codec: TextCodec, prompts: Sequence[Sequence[int]], texts: Sequence[str], batch: int
) -> list[tuple[float, ...]]:
    """One number a word, for each text behind its prompt."""
    if not codec.tokenizer.is_fast:
        raise ModelError("confidences of words need a fast tokenizer; take a strategy without `confidence`")
    how = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    read = codec.tokenizer(list(texts), **how)
    answers = [list(ids) for ids in read["input_ids"]]
    order = sorted(range(len(texts)), key=lambda i: -len(prompts[i]) - len(answers[i]))
    found: dict[int, tuple[float, ...]] = {}
    for at in range(0, len(order), batch):
        chosen = order[at : at + batch]
        chances = _piece_chances(model, [prompts[i] for i in chosen], [answers[i] for i in chosen], codec.pad_id)
        for i, pieces in zip(chosen, chances, strict=True):
            found[i] = by_word(texts[i], read["offset_mapping"][i], pieces)
    return [found[i] for i in range(len(texts))]


def by_word(text: str, spans: Sequence[tuple[int, int]], chances: Sequence[float]) -> tuple[float, ...]:
    """Mean of the chances of the pieces that a word is made of; 0 where no piece has a part of it.

    spans: where each piece stands in the text.
    """
    means: list[float] = []
    for word in re.finditer(r"\S+", text):
        own = [p for (a, b), p in zip(spans, chances, strict=True) if a < word.end() and b > word.start()]
        means.append(sum(own) / max(len(own), 1))
    return tuple(means)


def _piece_chances(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int
) -> list[list[float]]:
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids_BS = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=model.device)
    mask_BS = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS).logits
    found = []
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        chances_SV = logits_BSV[b, places].float().softmax(dim=-1)
        found.append(chances_SV.gather(1, torch.tensor(answer, device=model.device)[:, None])[:, 0].tolist())
    return found
