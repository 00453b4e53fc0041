"""Confidence of words, and the prompts of models with language tags."""

import pytest
import torch

from dragoman.translation.confidence import by_word, word_confidences
from dragoman.translation.request import Draft, Neighbour, Pair, Request, Version


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
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1]
            chances.append(float(logits_V.softmax(-1)[token]))
            ids.append(token)
        spans = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert means == pytest.approx(by_word(text, spans, chances), abs=1e-4)
        assert len(means) == len(text.split())


def test_prompts_with_tags(opened):
    from dragoman.translation.local import LocalEngine

    model, codec = opened
    engine = LocalEngine(model, codec, batch=2)

    def shown(request):
        return codec.tokenizer.decode(engine.prompt(request, "zero_shot")).replace(" ", "")

    start, end = (codec.tokenizer.decode([i]) for i in (codec.start_id, codec.end_id))
    plain = Request("Open", "en", "de")
    assert shown(plain) == f"{start}<en>Open<de>"
    full = Request(
        "Open",
        "en",
        "de",
        neighbours=(Neighbour("Close", "Schließen", drafts=(Draft("Zu", "de"),)),),
        terms=(Pair("file", "Datei"),),
        auxiliary=(Version("Obre", "ca"),) if codec.tag_id("ca") is not None else (),
        drafts=(Draft("Auf", "de"),),
    )
    auxiliary = "<ca>Obre" if full.auxiliary else ""
    assert shown(full) == (
        f"{start}<en>Close<de>Zu<de>Schließen{end}{start}<en>file<de>Datei{end}{start}<en>Open{auxiliary}<de>Auf<de>"
    )
    many = Request("Open", "en", "de", neighbours=tuple(Neighbour(f"{i} file" * 20, "x") for i in range(80)))
    prompt = engine._fitting(many, "zero_shot", 1024)
    assert 800 < len(prompt) < 1024
    assert "79file" in codec.tokenizer.decode(prompt).replace(" ", ""), "the most similar stays"
