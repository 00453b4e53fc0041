"""What commands share that run a task: options by pmi, examples before prompts, chat templates."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dragoman
from dragoman.commands import evaluate, tasking
from dragoman.commands.align import in_english
from dragoman.corpora.pack import load_pack
from dragoman.corpora.quizzes import next_sentence
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import TextCodec, moe_layers, save_model, tap_routers
from tests.commands.test_align import two_sentences
from tests.models import tiny
from tests.texts import tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasking")
    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer), num_experts=8), codec, folder / "model")
    two_sentences().save(folder / "text.tsv.gz")
    return folder


def test_options_by_pmi_against_the_last_token_of_the_prompt(place):
    """Oracle: text likelihoods of the option behind the prompt and behind its last token, one by one."""
    from dragoman.evaluation.likelihood import text_bits

    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    items = next_sentence(two_sentences(), ["en", "ca"], "train").part(slice(6))
    task = tasking.task_of(items)
    found = tasking.answers_of(model, codec, items, task, "ca")
    for item, answer in zip(items.items["ca"], found, strict=True):
        (prompt,), options = codec.encode([item.prompt]), codec.encode(item.options)
        for (bits, against), option in zip(answer, options, strict=True):
            rows, given = [[*prompt, *option], [*prompt[-1:], *option]], [len(prompt), 1]
            expected = text_bits(model, rows, start_id=codec.start_id, context=64, given=given)
            assert (bits, against) == pytest.approx(tuple(expected), rel=1e-4)
    assert "normalised:pmi" in task.signature() and "normalised:bytes" in tasking.task_of(items, "bytes").signature()


@pytest.mark.parametrize(("split", "groups", "of_all"), [("train", 181, 62), ("dev", 33, 12), ("devtest", 16, 1)])
def test_headings_of_the_built_in_corpus_are_of_one_page(split, groups, of_all, monkeypatch, tmp_path):
    """Also where `evaluate` has opened the corpus already, and with examples; not of a file that is named as it is.

    The numbers of groups, in English and Catalan and in all languages, are those of docs/alignment.md.
    """
    settings = {"corpus": "help", "split": split, "shots": 1}
    made = tasking.open_task("heading", ["ca"], **settings)
    assert made.about["groups"] == made.about["groups_of_one_page"] == groups and made.about["corpus"] == "help-pages"
    assert all(len({item.document for item in made.items["ca"][i : i + 4]}) == 1 for i in range(0, len(made), 4))
    every = tasking.open_task("heading", load_pack().languages, corpus="help", split=split)
    assert every.about["groups"] == every.about["groups_of_one_page"] == of_all
    config = evaluate.Config(model="m", out="o", task="heading", languages=("ca",), split=split, segments=8, shots=1)
    opened = tasking.open_items(config, load_pack())
    assert opened is not None and opened.items == made.part(slice(8)).items
    monkeypatch.chdir(tmp_path)
    two_sentences().save("help.tsv")
    Path("help.tsv").rename("help")
    with pytest.raises(DataError, match="help"):
        tasking.open_task("heading", ["ca"], **settings)


def test_examples_come_from_other_items(place, tmp_path):
    corpus = str(place / "text.tsv.gz")
    plain, shown = (tasking.open_task("next", ["ca"], corpus=corpus, split="train", shots=n) for n in (0, 2))
    examples = plain.part(slice(0, 8, 4))
    assert shown.keys() == plain.keys()[8:], "no item of a group that an example comes from"
    for g in ("en", "ca"):
        head = "".join(f"{item.prompt}{item.answer}\n\n" for item in examples.items[g])
        assert [i.prompt for i in shown.items[g]] == [head + i.prompt for i in plain.items[g][8:]]
    on_dev = tasking.open_task("next", ["ca"], corpus=corpus, split="dev", shots=2)
    assert on_dev.items["ca"][0].prompt.startswith(examples.items["ca"][0].prompt)
    assert not set(on_dev.keys()) & set(examples.keys())

    def write(folder, numbers):
        folder.mkdir(exist_ok=True)
        rows = [json.dumps({"question": f"{n} + 1?", "answer_number": n + 1}) for n in numbers]
        for tag in ("en", "ca"):
            (folder / f"{tag}.jsonl").write_text("\n".join(rows) + "\n")

    for folder, numbers in ((tmp_path, range(3)), (tmp_path / "examples", (0, 7, 8))):
        write(folder, numbers)
        write(tmp_path, range(0 if folder == tmp_path else 1, 3))
        settings = {"corpus": "help", "split": None}
        made = tasking.open_task(str(tmp_path), ["ca"], **settings, shots=1)
        assert len(made) == 2
        assert made.items["ca"][-1].prompt == "Question: 0 + 1?\nAnswer: #### 1\n\nQuestion: 2 + 1?\nAnswer:"
    with pytest.raises(DataError, match="has 3 examples for 4 shots, and 2 items are left; take fewer shots"):
        tasking.open_task(str(tmp_path), ["ca"], **settings, shots=4)
    write(tmp_path / "examples", (7, 2))
    with pytest.raises(DataError, match=r"1 examples in .* are items of the task, as line 2; an example is no item"):
        tasking.open_task(str(tmp_path), ["ca"], **settings, shots=1)
    for tag in ("en", "ca"):
        (tmp_path / "examples" / f"{tag}.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    with pytest.raises(DataError, match="examples has items that are judged by exact, and those of the task number"):
        tasking.open_task(str(tmp_path), ["ca"], **settings, shots=1)
    with pytest.raises(ConfigError, match="shots and chat have no effect on the task text"):
        tasking.open_task("text", ["ca"], corpus=corpus, split="train", shots=1)


def test_an_answer_in_a_chat_ends_as_the_template_ends_a_turn(place):
    codec = dragoman.open_tokenizer(str(place / "model"))
    items = tasking.open_task("next", ["ca"], corpus=str(place / "text.tsv.gz"), split="train", chat=True)
    turn = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} over {{ m['role'] }}.\n{% endfor %}"
    codec.tokenizer.chat_template = turn + "{% if add_generation_prompt %}assistant :{% endif %}"
    item = items.items["ca"][0]
    lines = [f"user : {item.prompt} over user.\nassistant :", item.answer, "over assistant."]
    asked, answer, end = codec.encode(lines)
    assert tasking.samples_of(codec, items, "ca")[0] == ([*asked, *answer, *end], len(asked))
    assert tasking.samples_of(codec, items, "ca", answered=False)[0] == (asked, len(asked))


def test_prompts_in_the_chat_template(place, tmp_path):
    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    corpus = str(place / "text.tsv.gz")
    plain, chat = (tasking.open_task("next", ["ca"], corpus=corpus, split="train", chat=c) for c in (False, True))
    assert plain.checksum() != chat.checksum()
    with pytest.raises(ModelError, match="the model has no chat template; ask in plain text"):
        tasking.samples_of(codec, chat, "ca")
    said = "{% for m in messages %}user : {{ m['content'] }}\n{% endfor %}"
    codec.tokenizer.chat_template = said + "{% if add_generation_prompt %}answer :{% endif %}"
    item = chat.items["ca"][0]
    expected, answer = codec.encode([f"user : {item.prompt}\nanswer :", item.answer])
    ids, silent = tasking.samples_of(codec, chat, "ca")[0]
    assert (ids, silent) == ([*expected, *answer, codec.end_id], len(expected))
    assert item.answer == plain.items["ca"][0].answer.lstrip() and item.options[item.right] == item.answer
    few = chat.part(slice(4))
    assert tasking.answers_of(model, codec, few, tasking.task_of(few), "ca") != tasking.answers_of(
        model, codec, plain.part(slice(4)), tasking.task_of(few), "ca"
    )
    routing = tasking.english_routing(model, codec, few, {})
    rows = [ids for ids, _ in tasking.samples_of(codec, few, "en")]
    with torch.no_grad(), tap_routers(model, moe_layers(model)) as seen:
        model(torch.tensor([rows[0]]))
    for layer, routed in enumerate(seen):
        chosen_E = torch.bincount(routed.indices_TK[1:-1].flatten(), minlength=8).numpy()
        np.testing.assert_array_equal(routing.segment_chosen_NLE["next"][0][layer], chosen_E)


def test_numbers_and_exact_answers_are_what_the_model_goes_on_with(place, tmp_path):
    """Oracle: `generate` of transformers, one prompt at a time."""
    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    rows = [{"question": f"the house {n}?", "answer_number": n} for n in range(3)]
    for tag in ("en", "ca"):
        (tmp_path / f"{tag}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    made = tasking.open_task(str(tmp_path), ["ca"], corpus="help", split=None)
    for judged, most in (("number", tasking.MAX_NEW), ("exact", 20)):
        items = replace(made, judged=judged)
        found = tasking.answers_of(model, codec, items, tasking.task_of(items), "ca")
        for item, answer in zip(items.items["ca"], found, strict=True):
            ids = [codec.start_id, *codec.encode([item.prompt])[0]]
            length = min(len(ids) + most + (2 * len(ids) if judged == "exact" else 0), 64)
            stops = {"eos_token_id": codec.end_id, "pad_token_id": codec.pad_id}
            out = model.generate(torch.tensor([ids]), max_length=length, do_sample=False, **stops)
            text = codec.decode(out[0, len(ids) :].tolist())
            expected = " ".join(text.split("\n")[0].split()) if judged == "exact" else text.split("\nQuestion:")[0]
            assert answer == expected and len(answer) > 3
        right = [replace(item, expected=answer) for item, answer in zip(items.items["ca"], found, strict=True)]
        if judged == "exact":
            assert tasking.points_of(tasking.task_of(items), found, right).tolist() == [1, 1, 1]
        assert tasking.points_of(tasking.task_of(items), ["no"] * 3, items.items["ca"]).tolist() == [0, 0, 0]


def test_generated_answers_are_kept_with_the_keys_of_their_items(place, tmp_path):
    rows = [{"question": f"the house {n}?", "answer_number": n} for n in range(3)]
    (tmp_path / "t").mkdir()
    for tag in ("en", "ca"):
        (tmp_path / "t" / f"{tag}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    name, settings = str(place / "model"), {"languages": ("ca",), "quiet": True}
    record = dragoman.evaluate(name, task=str(tmp_path / "t"), out=tmp_path / "out", **settings)
    kept = json.loads((tmp_path / "out" / record["segments"]["file"]).read_text())
    items = tasking.open_task(str(tmp_path / "t"), ["ca"], corpus="help", split=None)
    model, codec = dragoman.open_model(name), dragoman.open_tokenizer(name)
    assert kept["outputs"][name]["ca"] == tasking.answers_of(model, codec, items, tasking.task_of(items), "ca")
    assert kept["keys"]["task_accuracy"]["ca"] == [item.key for item in items.items["ca"]]


def test_english_is_asked_where_items_fit(place):
    """What is said before training leaves out an item with a long option, and says nothing where none fits."""
    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    items = next_sentence(two_sentences(), ["en"], "train").part(slice(8))
    first, *others = items.items["en"]
    long = replace(first, options=(" ".join(first.options * 20), *first.options[1:]))
    mixed = replace(items, items={"en": [long, *others]})
    with pytest.raises(DataError, match=r"context of 64 tokens \(1 of 8 in en, as "):
        tasking.require_room(model, codec, mixed)
    assert in_english(model, codec, mixed, np.arange(8)) == in_english(model, codec, items, np.arange(1, 8)) != []
    assert in_english(model, codec, mixed, np.arange(1)) == []
