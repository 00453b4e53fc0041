"""Instructions that a program can check in an answer, by the names that IFEval gives them.

    ("length_constraints:number_words", {"relation": "at least", "num_words": 100})

Source: Zhou et al. 2023 (IFEval, arXiv:2311.07911): names, arguments and what they ask for; strict, as the answer is.
Differs: words are runs of letters, marks and digits in any script, with apostrophes and hyphens within, at which
the release parts them; Chinese and Japanese count character by character, Thai, Lao, Khmer and Burmese by what stands
between spaces. Keywords, asked for or forbidden, are found as words (the release finds the first kind within others,
too), in these scripts anywhere. Sentences end in . ! ? or such a mark of another script; the language of an answer is
py3langid's, and is not looked at where its case is asked for. Of paragraphs between *** empty ones do not count.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex as re

from dragoman.errors import DataError
from dragoman.evaluation.rates import OffTarget

ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}"
"""Scripts of which each character counts as a word."""
UNSPACED = re.compile(rf"[{ALONE}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]")
LETTER = r"[\p{L}\p{M}\p{N}]"
WORDS = re.compile(rf"[{ALONE}]|(?:(?![{ALONE}]){LETTER})+(?:['’-](?:(?![{ALONE}]){LETTER})+)*")
SENTENCE_ENDS = re.compile(r"[.!?؟۔।॥။።։]+(?=\s|$)|[。！？]+")
LISTS = ("keywords", "forbidden_words")
"""Arguments that are lists of texts; of the others those with a number are told by their names, the rest are texts."""
Check = Callable[..., bool]

Instruction = tuple[str, Mapping[str, Any]]
"""Name and arguments."""


def follows(answer: str, instructions: Sequence[Instruction]) -> bool:
    """Whether an answer does all that it is told. Raises DataError for what cannot be checked."""
    require_checks(instructions)
    return bool(answer.strip()) and all(CHECKS[name](answer, **arguments) for name, arguments in instructions)


def require_checks(instructions: Sequence[Instruction]) -> None:
    """DataError that names every instruction without a check, or every one whose arguments its check cannot take."""
    if unknown := sorted({name for name, _ in instructions} - set(CHECKS)):
        raise DataError(
            f"no check for the instructions {', '.join(unknown)}; leave those items out. There are {', '.join(CHECKS)}"
        )
    if faults := sorted({f"{name} ({fault})" for name, given in instructions if (fault := _fault(name, given))}):
        raise DataError(f"instructions without the arguments they need: {'; '.join(faults)}; mend the items")


def _fault(name: str, given: Mapping[str, Any]) -> str:
    """What is wrong with the arguments; with the right types the check is tried on a text, as it knows their values."""
    try:
        inspect.signature(CHECKS[name]).bind("", **given)
        if odd := [f"{n} is {wanted}" for n, value in given.items() if (wanted := _wanted(n, value))]:
            raise TypeError(", ".join(odd))
        CHECKS[name]("A text. ", **given)
    except (TypeError, ValueError, DataError) as e:
        return f"{json.dumps(given, ensure_ascii=False)}: {e}"
    return ""


def _wanted(name: str, value: Any) -> str:
    """What an argument is to be; empty where it is."""
    if name in LISTS:
        return "" if isinstance(value, list) and all(isinstance(x, str) for x in value) else "a list of texts"
    if name.startswith(("num_", "nth_")) or name.endswith("frequency"):
        return "" if type(value) is int and value >= 0 else "a whole number"
    return "" if isinstance(value, str) and value else "a text"


def _holds(count: int, relation: str, number: int) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"the relation {relation!r} is neither `at least` nor `less than`")
    return count >= number if relation == "at least" else count < number


def _number_words(answer: str, num_words: int, relation: str = "at least") -> bool:
    return _holds(len(WORDS.findall(answer)), relation, num_words)


def _number_sentences(answer: str, num_sentences: int, relation: str = "at least") -> bool:
    return _holds(len([s for s in SENTENCE_ENDS.split(answer) if s.strip()]), relation, num_sentences)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in re.split(r"\n?\s?\*\*\*\s?\n?", answer)]
    return len([part for part in parts if part]) == num_paragraphs


def _first_word(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
    part = parts[nth_paragraph - 1] if len(parts) == num_paragraphs >= nth_paragraph >= 1 else ""
    first, wanted = WORDS.search(part), first_word.casefold()
    if first is None or UNSPACED.match(first_word):
        return first is not None and part[first.start() :].casefold().startswith(wanted)
    return first[0].casefold() == wanted


def _has_word(answer: str, word: str) -> bool:
    """Whether it stands by itself: no letter before or behind, but where words have no spaces between them."""
    before = "" if UNSPACED.match(word) else f"(?<!{LETTER}|_)"
    behind = "" if UNSPACED.match(word[-1:]) else f"(?!{LETTER}|_)"
    return re.search(f"{before}{re.escape(word)}{behind}", answer, re.IGNORECASE) is not None


def _forbidden(answer: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_has_word(answer, word) for word in forbidden_words)


def _frequency(answer: str, keyword: str, frequency: int, relation: str = "at least") -> bool:
    return _holds(len(re.findall(re.escape(keyword), answer, re.IGNORECASE)), relation, frequency)


def _letters(answer: str, letter: str, let_frequency: int, let_relation: str = "at least") -> bool:
    return _holds(answer.casefold().count(letter.casefold()), let_relation, let_frequency)


def _json(answer: str) -> bool:
    text = re.sub(r"^```\w*\s*|\s*```$", "", answer.strip())
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _highlights(answer: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*", answer)
    return len([1 for pair in found if any(part.strip() for part in pair)]) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", answer)) >= num_sections


def _postscript(answer: str, postscript_marker: str) -> bool:
    """The marker anywhere, with a space behind its full stops or without."""
    marker = re.escape(postscript_marker.strip()).replace(r"\.", r"\.\s?")
    return re.search(marker, answer, re.IGNORECASE) is not None


def _ends(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def _capital_words(answer: str, capital_frequency: int, capital_relation: str = "at least") -> bool:
    capital = [w for w in WORDS.findall(answer) if w.isupper()]
    return _holds(len(capital), capital_relation, capital_frequency)


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    parts = parts[not parts[0] : len(parts) - (not parts[-1])]  # one before the first or behind the last
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def _language(answer: str, language: str) -> bool:
    return OffTarget(language, min_letters=1).segment_sums(answer) == [False, 1]


def _constrained(answer: str) -> bool:
    return any(text in answer for text in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


CHECKS: dict[str, Check] = {
    "punctuation:no_comma": lambda answer: not re.search("[,،、，]", answer),
    "length_constraints:number_words": _number_words,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "keywords:existence": lambda answer, keywords: all(_has_word(answer, word) for word in keywords),
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "detectable_format:json_format": _json,
    "detectable_format:title": lambda answer: re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", answer) is not None,
    "detectable_format:number_bullet_lists": lambda answer, num_bullets: (
        len(re.findall(r"^\s*(?:\*[^*\n]|-)", answer, re.MULTILINE)) == num_bullets
    ),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _constrained,
    "detectable_content:number_placeholders": lambda answer, num_placeholders: (
        len(re.findall(r"\[[^\[\]]+\]", answer)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "startend:end_checker": _ends,
    "startend:quotation": lambda answer: len(answer.strip()) > 1 and answer.strip()[0] == answer.strip()[-1] == '"',
    "change_case:english_capital": lambda answer: answer == answer.upper() != answer.lower(),
    "change_case:english_lowercase": lambda answer: answer == answer.lower() != answer.upper(),
    "change_case:capital_word_frequency": _capital_words,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "language:response_language": _language,
}
"""Instruction -> whether an answer follows it, given its arguments."""
