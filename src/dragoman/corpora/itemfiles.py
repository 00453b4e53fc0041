"""Task items of published sets: a folder with one JSON-lines file a language, `en.jsonl`, `swh_Latn.jsonl` ...

What a file holds is told by the fields of its first line:

    MMLU, Global-MMLU   {"question": "...", "subject": "...", "choices": ["...", x4], "answer": 2}, or option_a to
                        option_d and "answer": "C"; "sample_id" names the item where it is there
    Belebele            {"link": "...", "question_number": 1, "flores_passage": "...", "question": "...",
                        "mc_answer1": "...", ..., "correct_answer_num": "1"}
    GSM8K, MGSM         {"question": "...", "answer": "6 * 7 = 42\\n#### 42"}, or "answer_number": 42
    any other           {"prompt": "...", "answer": "..."}, held against a generated answer; "id" names the item
    IFEval              {"key": 1000, "prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
                        and "response" where there is an answer to train on

Items without a name of their own are named by their line, so such files have to be parallel line by line; their right
answers have to be the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from dragoman.corpora.codes import by_tag
from dragoman.corpora.items import Item, TaskItems, task_items
from dragoman.corpora.numbers import number_in, same_number
from dragoman.corpora.reading import HALF, read_lines
from dragoman.errors import DataError

LETTERS = "ABCD"
ANSWER = re.compile(r"####\s*(?P<number>(?:[-−]\s*)?\S+(?:[\u00a0\u202f]\d{3}(?!\d))*)(?P<apart> \d{3}(?!\d))?")
"""Of a solution of GSM8K; apart: what stands behind a plain space as if it were of the number."""
BELEBELE = ("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4")
SHAPES_IN_WORDS = (
    "MMLU, Global-MMLU, Belebele, GSM8K, MGSM, IFEval or lines with prompt and answer, one .jsonl file a language in a "
    "folder"
)

Row = Mapping[str, Any]


def read_items(path: Path) -> TaskItems:
    """The items of a folder. Raises DataError that names file and line, or says how languages differ."""
    files = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    if not files:
        raise DataError(f"there are no task items at {path}; give {SHAPES_IN_WORDS}")
    found, shapes = {}, {}
    for tag, file in by_tag([(f.name.split(".")[0], f) for f in files]).items():
        rows = [_object(file, n, line) for n, line in enumerate(read_lines(file), 1) if line.strip()]
        shapes[tag] = _shape(file, rows[0])
        found[tag] = list(_items(file, rows, SHAPES[shapes[tag]]))
    judged = {SHAPES[shape].judged for shape in shapes.values()}
    if len(judged) > 1:
        raise DataError(f"the files of {path} are of several kinds: {shapes}; keep one task a folder")
    made = task_items(path.name, judged.pop(), found, about={"shapes": shapes})
    _require_same_answers(path, made)
    return made


class Shape(NamedTuple):
    """A kind of file."""

    judged: str
    fields: tuple[str, ...]
    """What tells it, and what every line must have."""
    item: Callable[[Row, int], Item]
    """(row, line number) -> item. ValueError says what is wrong."""


def _shape(file: Path, row: Row) -> str:
    for name, shape in SHAPES.items():
        if all(field in row for field in shape.fields):
            return name
    raise DataError(f"cannot tell what {file} holds: its first line has {', '.join(row)}; items are {SHAPES_IN_WORDS}")


def _object(file: Path, line: int, text: str) -> Row:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise DataError(f"{file}: line {line} is no JSON object; items are {SHAPES_IN_WORDS}")
    if HALF.search(json.dumps(row, ensure_ascii=False)):
        raise DataError(f"{file}: line {line} has half a character (a lone \\ud800 to \\udfff); mend it")
    return row


def _items(file: Path, rows: list[Row], shape: Shape) -> Iterator[Item]:
    for n, row in enumerate(rows, 1):
        if absent := [name for name in shape.fields if row.get(name) is None]:
            raise DataError(f"{file}: item {n} has no {', '.join(absent)}")
        try:
            yield shape.item(row, n)
        except (ValueError, TypeError) as e:
            raise DataError(f"{file}: item {n}: {e}") from None


# One function a kind of file


def _lettered(row: Row, line: int, choices: list[str], answer: Any) -> Item:
    """A question with its options listed, answered by a letter."""
    letter = answer.strip().upper() if isinstance(answer, str) else ""
    right = LETTERS.find(letter) if len(letter) == 1 else answer
    if len(choices) != len(LETTERS) or type(right) is not int or not 0 <= right < len(LETTERS):
        raise ValueError(f"four options and one of them as answer are needed, not {len(choices)} and {answer!r}")
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    options = tuple(f" {letter}" for letter in LETTERS)
    key = str(row.get("sample_id") or f"line {line}")
    return Item(key, key, f"{row['question']}\n{listed}Answer:", options[right], options, right)


def _mmlu(row: Row, line: int) -> Item:
    if not isinstance(row["choices"], list):
        raise ValueError(f"choices are a list of four options, not {row['choices']!r}")
    return _lettered(row, line, list(row["choices"]), row["answer"])


def _global_mmlu(row: Row, line: int) -> Item:
    return _lettered(row, line, [str(row[f"option_{letter.lower()}"]) for letter in LETTERS], row["answer"])


def _belebele(row: Row, line: int) -> Item:
    options = tuple(str(row[name]) for name in BELEBELE)
    answer = str(row["correct_answer_num"]).removesuffix(".0")
    if answer not in ("1", "2", "3", "4"):
        raise ValueError(f"the answer is {answer!r}; it is a number from 1 to 4")
    if empty := [name for name, option in zip(BELEBELE, options, strict=True) if not option.strip()]:
        raise ValueError(f"{', '.join(empty)} is empty; every option needs a text")
    right, page = int(answer) - 1, str(row["link"])
    prompt = f"{row['flores_passage']}\n{row['question']}\n"
    return Item(f"{page}#{row['question_number']}", page, prompt, options[right], options, right)


def _gsm(row: Row, line: int) -> Item:
    """The solution is taught as it is; the number behind #### is expected."""
    solution = str(row.get("answer") or "")
    marked = ANSWER.search(solution)
    number = row.get("answer_number") if row.get("answer_number") is not None else marked and marked["number"]
    if number is None:
        raise ValueError("there is neither #### with a number in the answer nor an answer_number")
    number = re.sub(r"(?<=[-−])\s+(?=\d)", "", str(number))
    if number_in(number) is None:
        raise ValueError(f"the answer is {number!r}, which holds no number")
    if marked and marked["apart"]:
        raise ValueError(f"the answer {number + marked['apart']!r} has a space among its digits; write it without")
    taught = f" {solution}" if solution and marked else f" {solution} #### {number}".replace("  ", " ")
    return Item(f"line {line}", f"line {line}", f"Question: {row['question']}\nAnswer:", taught, expected=number)


def _exact(row: Row, line: int) -> Item:
    key, answer = str(row.get("id") or f"line {line}"), str(row["answer"])
    return Item(key, key, f"{row['prompt']}\n", answer, expected=answer)


def _ifeval(row: Row, line: int) -> Item:
    names, arguments = list(row["instruction_id_list"]), list(row["kwargs"])
    if len(names) != len(arguments) or not names:
        raise ValueError(f"{len(names)} instructions and {len(arguments)} sets of arguments; one for each is needed")
    if odd := [given for given in arguments if not isinstance(given, (dict, NoneType))]:
        raise ValueError(f"kwargs has {odd[0]!r} where the arguments of an instruction are an object, or null")
    kept = [{k: _whole(v) for k, v in (given or {}).items() if v is not None} for given in arguments]
    pairs = tuple(zip(map(str, names), kept, strict=True))
    key = str(row["key"])
    return Item(key, key, f"{row['prompt']}\n", str(row.get("response") or ""), instructions=pairs)


def _whole(value: Any) -> Any:
    """2 for 2.0, as tables with empty cells have it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


SHAPES: dict[str, Shape] = {
    "mmlu": Shape("options", ("question", "choices", "answer"), _mmlu),
    "global-mmlu": Shape("options", ("question", *(f"option_{c}" for c in "abcd"), "answer"), _global_mmlu),
    "belebele": Shape(
        "options",
        (*("link", "question_number", "flores_passage", "question", "correct_answer_num"), *BELEBELE),
        _belebele,
    ),
    "ifeval": Shape("instructions", ("key", "prompt", "instruction_id_list", "kwargs"), _ifeval),
    "mgsm": Shape("number", ("question", "answer_number"), _gsm),
    "gsm8k": Shape("number", ("question", "answer"), _gsm),
    "exact": Shape("exact", ("prompt", "answer"), _exact),
}


def _require_same_answers(path: Path, made: TaskItems) -> None:
    """Lines are parallel only where numbers, or letters, are the same: a line that was lost shows here."""
    for tag, items in made.items.items():
        for item, english in zip(items, made.items["en"], strict=True):
            same = made.judged != "number" or same_number(number_in(item.expected), number_in(english.expected))
            asked, wanted = ([name for name, _ in x.instructions] for x in (item, english))
            if asked != wanted:
                raise DataError(
                    f"{path}: {item.key} has the instructions {', '.join(wanted)} in English and {', '.join(asked)} in "
                    f"{tag}; items of one id are to be the same in all languages"
                )
            if not same or item.right != english.right:
                there, here = (x.expected or x.answer.strip() for x in (english, item))
                raise DataError(
                    f"{path}: {item.key} has the answer {there} in English and {here} in {tag}; the files have to hold "
                    "the same questions, with options in the same order, under the same ids or line by line"
                )
