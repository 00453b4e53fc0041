"""Confidence of words."""

import pytest
import torch

from dragoman.translation.confidence import by_word, word_confidences


def test_means_by_hand():
    """`Since its launch,` in pieces Sin|ce| its| launch|,"""
    spans = [(0, 3), (3, 5), (5, 9), (9, 16), (16, 17)]
    assert by_word("Since its launch,", spans, [0.9, 0.5, 0.39, 0.8, 0.6]) == pytest.approx((0.7, 0.39, 0.7))
    assert by_word("a b", [(0, 3)], [0.5]) == (0.5, 0.5), "one piece over two words"
    assert by_word("", [], []) == ()


@pytest.fixture(scope="module")
def opened():
    from dragoman.modeling import open_both

    return open_both("mini-moe")


def test_against_one_token_at_a_time(opened):
    model, codec = opened
    prompts = codec.prompts(["Save the file.", "Close"], "en", "de", {})
    texts = ["Speichern Sie die Datei.", "Schließen"]
    found = word_confidences(model, codec, prompts, texts, batch=2)
    for prompt, text, means in zip(prompts, texts, found, strict=True):
        ids, chances = list(prompt), []
        for token in codec.encode([text])[0]:
            with torch.inference_mode():
                logits_V = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, -1]
            chances.append(float(logits_V.softmax(-1)[token]))
            ids.append(token)
        spans = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert means == pytest.approx(by_word(text, spans, chances), abs=1e-4)
        assert len(means) == len(text.split())
