"""Judging answers: numbers in many scripts, exact matches, instructions, thresholds, options."""

import pytest

from dragoman.corpora.items import Item
from dragoman.corpora.numbers import number_in
from dragoman.errors import DataError
from dragoman.evaluation.base import score
from dragoman.evaluation.instructions import CHECKS, follows, require_checks
from dragoman.evaluation.metrics import METRICS
from dragoman.evaluation.tasks import TASKS, ByLikelihood, ByMetric, TaskAccuracy

ITEM = Item("1", "d", "p", "a", options=("x", "y", "z", "w"), right=1)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 7 = 42\n#### 42", 42),
        ("#### 1,234 and 7", 1234),
        ("The answer is $18.00.", 18),
        ("Das sind 1.234,50 €", 1234.5),
        ("12,50", 12.5),
        ("1.234", 1234),
        ("0.125", 0.125),
        ("3.14159", 3.14159),
        ("#### 18.0000", 18),
        ("1,234.5678", 1234.5678),
        ("1.234.567,8901", 1234567.8901),
        ("1,234,567", 1234567),
        ("१,००,००० रुपये", 100000),
        ("12,34,567.5", 1234567.5),
        ("1,00", 1),
        ("-3", -3),
        ("10 - 3", 3),
        ("5-3", 3),
        ("−7 Grad", -7),
        ("উত্তর ৪২", 42),
        ("الجواب ١٬٢٣٤", 1234),
        ("答案是１８。", 18),
        ("2024 12", 12),
        ("none", None),
        ("#### none but 5", 5),
    ],
)
def test_numbers(text, number):
    assert number_in(text) == number


def test_number_answers():
    task = TASKS["number"]()
    item = Item("1", "d", "p", "a", expected="1,234")
    assert [task.points(t, item) for t in ("so 1234", "so 1 234 5", "", "1233")] == [1, 0, 0, 0]
    with pytest.raises(DataError, match="item 1 expects 'x', which holds no number"):
        task.points("1", Item("1", "d", "p", "a", expected="x"))


def test_an_exact_answer_may_be_a_mark():
    task, item = TASKS["exact"](), Item("1", "d", "p", "a", expected="?")
    assert [task.points(answer, item) for answer in ("?", " ?\n", "", "!", ".")] == [1, 1, 0, 0, 0]


def test_exact_answers():
    task, item = TASKS["exact"](), Item("1", "d", "p", "a", expected="The House")
    assert [task.points(t, item) for t in ("the  house.", "\n«The house»\nmore", "a house", "")] == [1, 1, 0, 0]


def test_options_share_a_tie_and_chance_is_one_in_four():
    task = ByLikelihood("none")
    assert task.points([(3, 1), (2, 1), (4, 1), (5, 1)], ITEM) == 1
    assert task.points([(2, 1), (2, 1), (4, 1), (5, 1)], ITEM) == 0.5
    assert task.chance([ITEM, ITEM]) == 0.25
    per_byte = ByLikelihood()
    assert per_byte.points([(3, 1), (8, 4), (9, 3), (9, 1)], ITEM) == 1


def test_a_translation_is_right_from_a_threshold_on():
    item = Item("1", "d", "p", "a", expected="open the file now")
    value = score(METRICS["chrf"](), METRICS["chrf"]().all_sums(["open the file"], [item.expected])).value
    for threshold, expected in ((value, 1), (value + 0.01, 0)):
        assert ByMetric(METRICS["chrf"](), threshold).points("open the file", item) == expected
    lower = METRICS["ter"]()
    assert ByMetric(lower, 0).points(item.expected, item) == 1
    assert ByMetric(lower, 0).points("no such thing", item) == 0


FOLLOWED = {
    "punctuation:no_comma": ({}, "One; two.", "One, two."),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, "it's a house", "a house"),
    "length_constraints:number_sentences": ({"relation": "less than", "num_sentences": 2}, "One.", "One. Two!"),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "a\n***\nb", "a\nb"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "a\n\nSo it is", "so\n\na"),
    "keywords:existence": ({"keywords": ["file", "open"]}, "Open the File", "open the profile"),
    "keywords:forbidden_words": ({"forbidden_words": ["file"]}, "profile", "a file."),
    "keywords:frequency": ({"keyword": "a", "frequency": 2, "relation": "at least"}, "a A", "a"),
    "keywords:letter_frequency": (
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "one", "eye"),
    "detectable_format:json_format": ({}, '```json\n{"a": 1}\n```', "a: 1"),
    "detectable_format:title": ({}, "<<A title>>\ntext", "<< >>"),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n-b", "* a\n** b"),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*a* **b**", "*a*"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2}, "Part 1\na\nPart 2\nb", "Part 1"),
    "detectable_format:constrained_response": ({}, "My answer is no.", "no"),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "[a] [b]", "[a]"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "x **p. s.** y", "x PS y"),
    "startend:end_checker": ({"end_phrase": "The end."}, "Well. the end.", "The end. No."),
    "startend:quotation": ({}, '"a"', '"a'),
    "change_case:english_capital": ({}, "ALL 3", "All"),
    "change_case:english_lowercase": ({}, "all 3", "All"),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"}, "A BIG one", "A big one"),
    "combination:two_responses": ({}, "******a******b", "a************b"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Do it"}, "Do it\nok", "ok Do it"),
    "language:response_language": (
        {"language": "de"}, "Das ist ein kurzer Satz in deutscher Sprache.", "This is a short English sentence."),
}  # fmt: skip


SPOKEN = [
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "किताब है", "मुझे किताब पसंद है"),
    ("length_constraints:number_words", {"num_words": 4}, "我学中文", "我学习"),
    ("length_constraints:number_sentences", {"num_sentences": 2}, "यह पहला है। यह दूसरा है।", "यह पहला है।"),
    ("length_constraints:number_sentences", {"num_sentences": 2}, "هل هو هنا؟ نعم.", "نعم."),
    ("keywords:existence", {"keywords": ["学习"]}, "我们每天都学习中文。", "我们每天都看书。"),
    ("keywords:forbidden_words", {"forbidden_words": ["学习"]}, "我们每天都看书。", "我们每天都学习中文。"),
    ("keywords:forbidden_words", {"forbidden_words": ["कि"]}, "किताब है", "उसने कहा कि हाँ"),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "C and C+", "in C++, too"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "我们"},
        "你好。\n\n「我们」走。",
        "我们走。\n\n你好。",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), SPOKEN)
def test_instructions_in_other_scripts(name, arguments, good, bad):
    assert follows(good, [(name, arguments)])
    assert not follows(bad, [(name, arguments)])


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("keywords:existence", {"keywords": ["foo", 1]}, "keywords is a list of texts"),
        ("keywords:existence", {"keywords": "foo"}, "keywords is a list of texts"),
        ("length_constraints:number_paragraphs", {"num_paragraphs": "2"}, "num_paragraphs is a whole number"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": 5},
            "first_word is a text",
        ),
        ("language:response_language", {"language": "xx-klingon"}, "xx-klingon"),
    ],
)
def test_arguments_of_another_type_are_told_before_any_answer(name, arguments, told):
    with pytest.raises(DataError, match=told):
        require_checks([(name, arguments)])


@pytest.mark.parametrize("name", CHECKS)
def test_instructions(name):
    arguments, good, bad = FOLLOWED[name]
    assert CHECKS[name](good, **arguments)
    assert not CHECKS[name](bad, **arguments)


def test_all_instructions_have_to_be_followed():
    both = (("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert follows('"a"', both)
    assert not follows('"a, b"', both)
    assert not follows("  ", (("punctuation:no_comma", {}),)), "an empty answer follows nothing"
    with pytest.raises(DataError, match="no check for the instructions length:lines; leave those items out"):
        require_checks([("length:lines", {})])
    lacking = [("length_constraints:number_paragraphs", {}), ("keywords:forbidden_words", {"forbidden_words": 3})]
    with pytest.raises(DataError, match=r"need: keywords:forbidden_words .*number_paragraphs \({}: missing"):
        require_checks(lacking)
    require_checks([(name, arguments) for name, (arguments, _, _) in FOLLOWED.items()])
    with pytest.raises(DataError, match="relation 'around'"):
        follows("a", (("length_constraints:number_words", {"relation": "around", "num_words": 1}),))


def test_task_accuracy_is_the_mean_of_points():
    metric = TaskAccuracy(ByLikelihood())
    assert score(metric, metric.all_sums([1.0, 0.0, 0.5, 1.0])).value == 62.5
    assert "judged:options|normalised:bytes" in metric.signature()
