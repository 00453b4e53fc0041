"""What it means that a term stands in a text: one notion, for glossaries and for term recall.

    prefix   case folded; every word of the term is met by a word that shares its beginning (70 % of the term's letters,
             3 at least) and has at most `ending` letters beyond the term's; words follow one another
    folded   case folded, whole words as they stand
    exact    whole words as they stand, in this case

`prefix` bridges endings ("Tabelle", "Tabellen"), not umlauts, prefixes or infixes ("Haus", "Häuser"), and takes some
longer words ("file", "filename"). How many letters an ending may have depends on the language (ENDINGS); no language is
analysed. In scripts without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan) a term is found wherever it stands.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from dragoman.corpora.languages import script_of
from dragoman.errors import DataError

MATCHES = ("prefix", "folded", "exact")
UNSPACED = {"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}
FIRST_UNSPACED = "\u0e00"
"""No such script has letters before Thai: a quick answer for most texts."""
BEFORE, BEHIND = re.compile(r"(?:[.#@$](?=\w))?"), re.compile(r"(?<=\w)[+#]+(?=[^\w+#]*\Z)")
"""Signs that belong to a name, as in .NET, C++ and C#; others, such as dots behind an entry of a menu, do not."""
BARE_END = r"(?!\w)(?![+#]+(?!\w|[+#]))"
"""Behind a term without such a sign: C is not in C++, but Ctrl is in Ctrl+C."""
ENDING = 4
"""Most letters that an inflected form may have beyond the term's length."""
ENDINGS = {
    "vi": 0, "id": 3, "ms": 3, "en": 3, "af": 3,
    "fi": 8, "et": 7, "hu": 8, "tr": 8, "az": 8, "kk": 8, "ky": 8, "uz": 8, "eu": 8, "ka": 6, "ko": 4,
}  # fmt: skip
"""The same by language, where it is not ENDING: few letters where words hardly inflect, many where suffixes pile up."""


def normalised(text: str, match: str) -> str:
    """As both sides of a comparison are written: NFC, and case folded but for exact matches."""
    text = unicodedata.normalize("NFC", text)
    return text if match == "exact" else text.casefold()


def ending_of(language: str) -> int:
    """Most letters of an ending in a language; ENDING where no language is named or it is not in the table."""
    return ENDINGS.get(language.split("-")[0], ENDING)


def match_of(term: str) -> str:
    """How a term is matched where `prefix` is asked for: one in capitals, such as IT, exactly."""
    return "exact" if term.isupper() and sum(map(str.isalpha, term)) > 1 else "prefix"


def is_unspaced(text: str) -> bool:
    """Whether it has a letter of a script that writes no spaces between words."""
    return max(text, default="") >= FIRST_UNSPACED and any(c.isalpha() and script_of(c) in UNSPACED for c in text)


@cache
def term_pattern(term: str, match: str, ending: int = ENDING) -> re.Pattern[str]:
    """Finds the term in a normalised text. Raises DataError for a term without a letter or digit."""
    text = normalised(term, match).strip()
    words = re.findall(r"\w+", text)
    if not words:
        raise DataError(f"the required term {term!r} has no letter or digit; take it out of the glossary")
    if is_unspaced(term):
        return re.compile(re.escape(text))
    before, behind = (re.escape(sign[0]) if sign else "" for sign in (BEFORE.match(text), BEHIND.search(text)))
    end = BARE_END if not behind else rf"{behind}(?![+#])"
    return re.compile(rf"(?<!\w){before}" + r"\W+".join(_word(word, match, ending) for word in words) + end)


def _word(word: str, match: str, ending: int) -> str:
    beginning = max(3, -(-7 * len(word) // 10))
    if match != "prefix" or len(word) < beginning or not word.isalpha():
        return re.escape(word)
    rest = len(word) - beginning
    return re.escape(word[:beginning]) + rf"\w{{0,{rest + ending}}}"
