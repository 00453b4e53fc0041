"""What is trained on: samples of the corpus and of files, their labels, shares and places."""

import json

import numpy as np
import pytest

from dragoman.commands.training_text import Text, training_rows
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import TextCodec
from tests.texts import corpus, tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "save the file"},
    {"role": "assistant", "content": "deseu el fitxer"},
    {"role": "user", "content": "now"},
    {"role": "assistant", "content": "ara"},
]


@pytest.fixture
def codec():
    import copy

    with_chat = copy.deepcopy(tokenizer())
    with_chat.chat_template = TEMPLATE
    return TextCodec(with_chat)


def spoken(codec, ids, said):
    return codec.tokenizer.decode([i for i, flag in zip(ids, said, strict=True) if flag])


def test_only_what_the_assistant_says_is_learnt(codec):
    ids, said = codec.conversation(TALK)
    assert spoken(codec, ids, said) == "deseu el fitxer</s>ara</s>"
    assert codec.tokenizer.decode(ids) == "".join(f"[{m['role']}]{m['content']}</s>" for m in TALK)


def test_templates_that_are_missing_or_rewrite_turns_are_refused(codec):
    with pytest.raises(ModelError, match="need a chat template"):
        TextCodec(tokenizer()).conversation(TALK)
    codec.tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    with pytest.raises(ModelError, match="writes turn 2 otherwise when more follow"):
        codec.conversation(TALK)


def rows(codec, text, seed=0):
    return training_rows(codec, corpus(), "ca", text, seed)


def learnt(codec, made):
    labels = made.labels_NS[made.labels_NS >= 0]
    return codec.tokenizer.decode(labels.tolist())


def test_conversations_of_a_file_train_their_answers_alone(codec, tmp_path):
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"messages": TALK}) + "\n\n" + json.dumps({"text": "bon dia"}) + "\n", encoding="utf-8")
    made = rows(codec, Text(segments=0, sources={"talk": file}, block=96))
    assert made.samples == 2
    assert sorted(learnt(codec, made).replace("<s>", "").split("</s>")[:-1]) == ["ara", "bon dia", "deseu el fitxer"]
    everything = rows(codec, Text(segments=0, sources={"talk": file}, block=96, completions=False))
    assert "save the file" in learnt(codec, everything)


def test_a_corpus_alone_is_read_in_the_same_order_as_ever(codec):
    """Oracle: the loop that this replaces."""
    text = Text(segments=20, block=64, epochs=2)
    rng = np.random.default_rng(3)
    table = corpus().select(split="train", complete=("en", "ca"))
    chosen = table.take(sorted(rng.permutation(len(table))[:20].tolist()))
    mono = [[codec.start_id, *ids, codec.end_id] for ids in codec.encode(chosen.columns["ca"])]
    both = codec.pairs(chosen.columns["en"], chosen.columns["ca"], "en", "ca", {"en": "English", "ca": "Catalan"})
    samples = [*mono, *(ids for ids, _ in both)]
    expected = [t for _ in range(2) for i in rng.permutation(len(samples)) for t in samples[i]]
    made = rows(codec, text, seed=3)
    assert made.tokens_NS[made.tokens_NS != codec.pad_id].tolist() == [t for t in expected if t != codec.pad_id]


def test_temperature_evens_out_the_shares_of_sources(codec, tmp_path):
    (tmp_path / "small.txt").write_text("bon dia a tothom\n" * 4, encoding="utf-8")
    (tmp_path / "large.txt").write_text("deseu el fitxer amb un altre nom\n" * 64, encoding="utf-8")
    sources = {name: tmp_path / f"{name}.txt" for name in ("small", "large")}
    shares = {}
    for temperature in (1.0, 2.0):
        made = rows(codec, Text(segments=0, sources=sources, temperature=temperature, block=64))
        shares[temperature] = made.tokens["small"] / sum(made.tokens.values())
        real = made.tokens_NS != codec.pad_id
        assert real.sum() >= 0.95 * sum(made.tokens.values())
    texts = {4: "bon dia a tothom", 64: "deseu el fitxer amb un altre nom"}
    small, large = (n * (len(codec.encode([text])[0]) + 2) for n, text in texts.items())
    assert shares[1.0] == pytest.approx(small / (small + large))
    assert shares[2.0] == pytest.approx(small**0.5 / (small**0.5 + large**0.5), abs=0.02)


def test_places_begin_anew_with_each_sample(codec):
    made = rows(codec, Text(segments=20, block=64, isolate=True))
    starts = (made.positions_NS == 0).sum()
    assert starts == made.samples
    assert ((made.positions_NS == -1) == (made.tokens_NS == codec.pad_id)).all()
    assert (made.tokens_NS[made.positions_NS == 0] == codec.start_id).all()
    assert rows(codec, Text(segments=20, block=64)).positions_NS is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"talk.jsonl:1 is not JSON"),
        ('{"words": 3}', r'talk.jsonl:1 has neither "text" nor "messages"'),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "with an answer"),
        ('{"messages": [{"role": "assistant"}]}', "with an answer"),
    ],
)
def test_lines_that_are_no_sample_are_named(codec, tmp_path, line, message):
    file = tmp_path / "talk.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        rows(codec, Text(segments=0, sources={"talk": file}))


def test_impossible_texts_are_refused(codec, tmp_path):
    with pytest.raises(ConfigError, match=r"segments is 0, at least 1.*temperature of 2 has no effect"):
        Text(segments=0, temperature=2)
    with pytest.raises(ConfigError, match="'corpus' is the corpus itself"):
        Text(sources={"corpus": tmp_path})
    (tmp_path / "long.txt").write_text("deseu el fitxer " * 40, encoding="utf-8")
    with pytest.raises(DataError, match="no sample of long fits into 32 tokens"):
        rows(codec, Text(sources={"long": tmp_path / "long.txt"}, block=32))
