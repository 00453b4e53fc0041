"""Items of published sets, read from small made files."""

import json
import re

import pytest

from dragoman.corpora.itemfiles import read_items
from dragoman.corpora.items import Item, task_items
from dragoman.errors import DataError


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def mmlu(question, answer=2):
    return {"question": question, "subject": "law", "choices": ["w", "x", "y", "z"], "answer": answer}


def test_mmlu_and_global_mmlu(tmp_path):
    plain = read_items(write(tmp_path / "a", en=[mmlu("Q?")], swh_Latn=[mmlu("S?")]))
    assert plain.judged == "options" and set(plain.items) == {"en", "sw"}
    item = plain.items["en"][0]
    assert item.prompt == "Q?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert (item.options, item.right, item.answer, item.document) == ((" A", " B", " C", " D"), 2, " C", item.key)
    row = {f"option_{c}": c for c in "abcd"} | {"question": "Q?", "answer": "D", "subject": "s"}
    rows = [row | {"sample_id": f"test/{n}"} for n in range(3)]
    other = read_items(write(tmp_path / "b", en=rows, yo=rows[::-1]))
    assert [i.key for i in other.items["yo"]] == ["test/0", "test/1", "test/2"], "put in the English order"
    assert other.items["en"][0].right == 3


def test_belebele(tmp_path):
    row = {"link": "u", "question_number": 1, "flores_passage": "P.", "question": "Q?", "correct_answer_num": "3"}
    row |= {f"mc_answer{n}": f"o{n}" for n in range(1, 5)}
    second = row | {"question_number": 2, "correct_answer_num": 1}
    made = read_items(write(tmp_path, eng_Latn=[row, second], cat_Latn=[second, row]))
    assert [i.key for i in made.items["ca"]] == ["u#1", "u#2"]
    assert made.items["en"][0].prompt == "P.\nQ?\n" and made.items["en"][0].answer == "o3"
    with pytest.raises(DataError, match=r"item 2 has no mc_answer2"):
        read_items(write(tmp_path, eng_Latn=[row, second | {"mc_answer2": None}]))
    with pytest.raises(DataError, match=r"item 1: mc_answer4 is empty; every option needs a text"):
        read_items(write(tmp_path, eng_Latn=[row | {"mc_answer4": " "}, second]))


def test_gsm8k_and_mgsm(tmp_path):
    english = {"question": "6 boxes of 7?", "answer": "6 * 7 = 42\n#### 42"}
    bengali = {"question": "৬ বাক্স?", "answer": "৬ * ৭ = ৪২", "answer_number": 42}
    made = read_items(write(tmp_path, en=[english], bn=[bengali]))
    assert made.judged == "number"
    assert made.items["en"][0] == Item(
        "line 1", "line 1", "Question: 6 boxes of 7?\nAnswer:", " 6 * 7 = 42\n#### 42", expected="42"
    )
    assert made.items["bn"][0].answer == " ৬ * ৭ = ৪২ #### 42" and made.items["bn"][0].expected == "42"
    with pytest.raises(DataError, match=r"line 1 has the answer 42 in English and 43 in bn"):
        read_items(write(tmp_path, bn=[bengali | {"answer_number": 43}]))
    for written in ("#### ४२", "#### 42.0", "#### 42,00"):
        read_items(write(tmp_path, bn=[{"question": "?", "answer": written}]))
    with pytest.raises(DataError, match=r"bn.jsonl: item 1: the answer is 'abc', which holds no number"):
        read_items(write(tmp_path, bn=[{"question": "?", "answer": "#### abc"}]))
    english["answer"] = "#### 1,234"
    for written in ("#### 1\u202f234", "#### 1\u00a0234", "#### 1.234"):
        read_items(write(tmp_path, en=[english], bn=[{"question": "?", "answer": written}]))
    with pytest.raises(DataError, match=r"the answer '1 234' has a space among its digits"):
        read_items(write(tmp_path, bn=[{"question": "?", "answer": "#### 1 234"}]))
    for written, number in (("18 dollars for 2 hours", "18"), ("50% (1/2)", "50%"), ("12 2-packs", "12")):
        told = [{"question": "?", "answer": f"#### {written}"}]
        assert read_items(write(tmp_path, en=told, bn=told)).items["en"][0].expected == number
    below = [{"question": "?", "answer": "#### - 5"}]
    assert read_items(write(tmp_path, en=below, bn=below)).items["en"][0].expected == "-5"


def test_ifeval(tmp_path):
    row = {"key": 7, "prompt": "Write.", "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
           "kwargs": [{"keywords": ["a"], "num_words": None}, {}]}  # fmt: skip
    made = read_items(write(tmp_path, en=[row], de=[row | {"prompt": "Schreib.", "response": "ja"}]))
    assert made.judged == "instructions"
    expected = (("keywords:existence", {"keywords": ["a"]}), ("punctuation:no_comma", {}))
    assert made.items["en"][0] == Item("7", "7", "Write.\n", "", instructions=expected)
    assert made.items["de"][0].answer == "ja"
    with pytest.raises(DataError, match=r"item 1: kwargs has 'a' where the arguments of an instruction are an object"):
        read_items(write(tmp_path, en=[row | {"kwargs": ["a", None]}]))


def test_prompts_with_answers(tmp_path):
    rows = [{"id": n, "prompt": f"p{n}", "answer": "a"} for n in (1, 2)]
    made = read_items(write(tmp_path, en=rows, ca=rows[::-1]))
    assert made.judged == "exact"
    assert made.items["ca"][0] == Item("1", "1", "p1\n", "a", expected="a")


def test_bad_files_are_told(tmp_path):
    def message(name, **files):
        with pytest.raises(DataError) as e:
            read_items(write(tmp_path / name, **files))
        return str(e.value)

    assert "no English items, which all others are held against; it has de, fr" in message(
        "a", de=[mmlu("x")], fr=[mmlu("y")]
    )
    assert "de has 1 items where English has 2, lacks 'line 2'" in message("b", en=[mmlu("x")] * 2, de=[mmlu("y")])
    ids = [mmlu("x") | {"sample_id": i} for i in ("p", "q")]
    other = [ids[0], mmlu("x") | {"sample_id": "r"}]
    assert "de has other ids, lacks 'q', has 'r' beside" in message("c", en=ids, de=other)
    assert "en has 'p' more than once" in message("d", en=[ids[0], ids[0]])
    assert "line 2 is no JSON object" in message("e", en=[mmlu("x"), "{"])
    assert "line 1 has half a character" in message("e2", en=['{"question": "\\ud83d"}'])
    assert "item 2 has no choices" in message("f", en=[mmlu("x"), {"question": "?", "answer": 1}])
    assert "four options and one of them as answer are needed, not 4 and 9" in message("g", en=[mmlu("x", 9)])
    for n, odd in enumerate(("BC", "", True, 2.0)):
        assert f"not 4 and {odd!r}" in message(f"g{n}", en=[mmlu("x", odd)])
    assert "cannot tell what" in message("h", en=[{"text": "x"}])
    gsm = {"question": "?", "answer": "no number"}
    assert "item 1: there is neither ####" in message("i", en=[gsm])
    gsm["answer"] = "#### 1"
    assert "several kinds: {'de': 'gsm8k', 'en': 'mmlu'}" in message("j", en=[mmlu("x")], de=[gsm])
    assert "line 1 has the answer C in English and D in de" in message("k", en=[mmlu("x")], de=[mmlu("x", 3)])
    ours, theirs = ([mmlu("x", n) | {"sample_id": "p"}] for n in (2, 3))
    assert "p has the answer C in English and D in de" in message("k2", en=ours, de=theirs)
    asked = {"key": 7, "prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    other = asked | {"instruction_id_list": ["detectable_format:json_format"]}
    said = message("k3", en=[asked], de=[other])
    assert "7 has the instructions punctuation:no_comma in English and detectable_format:json_format in de" in said
    assert "choices are a list of four options, not 'wxyz'" in message("k4", en=[mmlu("x") | {"choices": "wxyz"}])
    twice = message("l", en=[mmlu("x")], eng_Latn=[mmlu("y")], de=[mmlu("z")])
    assert re.search(r"files are of one language \(en: \S+/en.jsonl, \S+/eng_Latn.jsonl\); keep one of each", twice)
    with pytest.raises(DataError, match="there are no task items at"):
        read_items(tmp_path / "absent")


def test_no_items_and_absent_languages():
    with pytest.raises(DataError, match="the task t has no items; give more text"):
        task_items("t", "options", {"en": []})
    with pytest.raises(DataError, match="the task t has no items in ca"):
        task_items("t", "options", {"en": [Item("1", "d", "p", "a")]}).require(["en", "ca"])


def test_a_part_of_a_sorted_file_is_of_all_of_it(tmp_path):
    made = read_items(write(tmp_path, en=[mmlu(f"Q{n}?") for n in range(10)]))
    assert [i.key for i in made.spread(4).items["en"]] == ["line 1", "line 3", "line 6", "line 8"]
    assert made.spread(10).items == made.spread(99).items == made.spread(None).items == made.items
