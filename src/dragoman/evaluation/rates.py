"""Rates: how often an answer is in the wrong language, the source over again, or more than a translation.

Each is a share of segments in percent, lower is better, and each judges only the segments that it can judge; what that
takes stands in its signature. Where there are none the rate has no value. A reference set has a rate above zero too:
read a system's beside the references' own.
"""

# Shape letters: S sums of a metric, R resamples.

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
from numpy.typing import ArrayLike

from dragoman.corpora.languages import TABLE, language, normalise_tag, script_of
from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import Metric, Rate, ratio

OVER_GENERATION = ("any", "commentary", "quotes", "repetition", "too_long", "too_short")
"""What `OverGeneration` can count. `any` is one of the first four kinds: an answer that is too short is not in it."""

QUOTES = {"“": "”", "„": "“”", "«": "»", "»": "«", '"': '"', "'": "'", "‘": "’", "「": "」", "『": "』", "`": "`"}
LEADS = (
    r"(sure|certainly|of course|okay|here(?:'s| is| are)|the (?:\w+ )?translation|translated? (?:text|into|to)|"
    r"(?:\w+ )?translation(?: in(?:to)? \w+)?|as an ai|i (?:can(?:no|')t|am unable|apologi[sz]e)|"
    r"übersetzung|traduction|traducción|traducció|tradução|traduzione|vertaling|překlad|překlady|prevod|перевод|μετάφραση|"
    r"çeviri|翻译|翻訳|译文|訳)\b[^:：.!\n]{0,60}[:：!]"
)
TRAILS = r"[\n(\[]\s*(?:note|translator'?s note|explanation|n\.b\.|anmerkung|remarque|nota|примечание|注|备注)\s*[:：]"
VOWEL = re.compile("VOWEL SIGN|THAI CHARACTER (SARA|MAI HAN-AKAT)")
LETTERS = {"Han": 3, "Hangul": 2}
"""Script -> how many letters one of its signs counts for; of every other script 1."""
LOOP = re.compile(r"(.{1,60}?)(?:\W{0,3}?\1){3,}", re.DOTALL)
LOOP_CHARACTERS = 8


@cache
def _identifier(labels: tuple[str, ...]) -> object:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    if labels:
        identifier.set_languages(labels)
    return identifier


def _label(tag: str) -> str:
    """py3langid's label of a language tag; DataError where it has none."""
    tag = normalise_tag(tag)
    known = _identifier(()).labels  # type: ignore[attr-defined]
    label = language(tag).langid or tag.split("-")[0]
    if label not in known:
        raise DataError(
            f"py3langid {version('py3langid')} knows {len(known)} languages, but not {tag} ({language(tag).name}); "
            "leave the off-target rate out for it"
        )
    return label


class OffTarget(Rate):
    """Share of answers that py3langid takes for another language than the target; in percent, lower is better.

    target: language tag of the answers.
    among: language tags that it may choose from (the target is always one). Empty: unrestricted, all 140 languages that
        it knows, and then near relatives of the target take some of its good sentences.
    min_letters: segments whose reference has fewer `letters` are not judged: identification of a few is a guess. An
        answer without a letter, where its reference has enough, is off target.

    So all systems are judged on the same segments, however short an answer is; an answer alone (`segment_sums` without
    a reference) is judged by its own letters, one each.

    Source: py3langid, a packaging of langid.py (Lui and Baldwin 2012, P12-3005).
    Differs: neither has a least length. A sign of Han counts three letters here: in the built-in corpus English has 2.9
    to 3.2 letters for each one of Chinese and Japanese, and 1.1 to 1.3 for each of kana. A block of Hangul is two or
    three letters, and counts two.

    Raises DataError for a tag that py3langid does not know, ConfigError where `among` names the target alone.
    """

    name = "off target"
    higher_is_better = False
    needs = ()
    chosen_by = ("references",)

    def __init__(self, target: str, among: Sequence[str] = (), min_letters: int = 20) -> None:
        self.target, self.min_letters = normalise_tag(target), min_letters
        self._wanted = _label(target)
        self._labels = tuple(sorted({self._wanted, *map(_label, among)})) if among else ()
        if len(self._labels) == 1:
            raise ConfigError(f"among names no language but {target}, so nothing is off target; add some, or none")

    def segment_sums(self, hypothesis: str, reference: str | None = None) -> list[float]:
        """[off target, judged]."""
        own = sum(map(str.isalpha, hypothesis))
        if (own if reference is None else letters(reference)) < self.min_letters:
            return [0, 0]
        if not own:
            return [1, 1]
        found, _ = _identifier(self._labels).classify(hypothesis)  # type: ignore[attr-defined]
        return [found != self._wanted, 1]

    def signature(self) -> str:
        among = "+".join(self._labels) if self._labels else "all"
        settings = f"target:{self.target}|label:{self._wanted}|among:{among}|min_letters:{self.min_letters}"
        settings += f"|letters:{','.join(f'{script} {n}' for script, n in LETTERS.items())}|judged_by:reference"
        return f"{settings}|identifier:py3langid|version:{version('py3langid')}"


def letters(text: str) -> int:
    """Letters of a text and its vowel signs, which Indic scripts and Thai write as marks, by the weight of LETTERS."""
    text = unicodedata.normalize("NFC", text)
    return sum(LETTERS.get(script_of(c), 1) for c in text if c.isalpha() or VOWEL.search(unicodedata.name(c, "")))


class Copies(Rate):
    """Share of answers that repeat the source; in percent, lower is better.

    Two texts are the same where their letters and digits are, in order, case folded. Segments whose reference repeats
    the source too (names, commands) and sources without a letter are not judged.
    """

    name = "copies of the source"
    higher_is_better = False
    needs = ("sources", "references")

    def segment_sums(self, hypothesis: str, source: str, reference: str) -> list[float]:
        """[copies, judged]."""
        original = bare(source)
        if not any(map(str.isalpha, original)) or bare(reference) == original:
            return [0, 0]
        return [bare(hypothesis) == original, 1]

    def signature(self) -> str:
        return "same:letters+digits|case:folded|unicode:NFKC|spared:reference=source"


def bare(text: str) -> str:
    """The letters and digits of a text in order, case folded, in Unicode form NFKC."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


class OverGeneration(Rate):
    """Share of answers with more (or less) than a translation; in percent, lower is better.

    kind: one of OVER_GENERATION, which of the faults the value counts; `any` of the first four by default.
        commentary   begins like "Here is the translation:" or a language name and a colon, ends in a note, or has more
                     lines than the source; not where the source does so too
        quotes       stands in quotation marks while the source does not
        repetition   a piece of up to 60 characters with a letter, 4 or more times in a row (up to 3 characters that are
                     no letters between), 8 characters in all, while the source has no such loop
        too_long     more than `most` times as many characters as the reference, and 10 more
        too_short    less than `least` times as many and 10 fewer, or nothing at all

    Patterns of commentary are in English and a word each in a dozen languages: what they find is there, what they do
    not find may be. Raises ConfigError for an unknown kind.
    """

    higher_is_better = False
    needs = ("sources", "references")
    SLACK = 10

    def __init__(self, kind: str = "any", least: float = 0.5, most: float = 2.0) -> None:
        if kind not in OVER_GENERATION:
            raise ConfigError(f"over-generation has no kind {kind!r}; choose from {', '.join(OVER_GENERATION)}")
        self.least, self.most, self.kind = least, most, kind
        self.counted = OVER_GENERATION.index(kind)
        self.name = "over-generation" + ("" if kind == "any" else f" ({kind.replace('_', ' ')})")

    def segment_sums(self, hypothesis: str, source: str, reference: str) -> list[float]:
        """[any, commentary, quotes, repetition, too long, too short, segments]."""
        length, expected = len(hypothesis.strip()), len(reference.strip())
        faults = [
            (_comments(hypothesis) and not _comments(source)) or _lines(hypothesis) > max(1, _lines(source)),
            _quoted(hypothesis) and not _quoted(source),
            _loops(hypothesis) and not _loops(source),
            length > self.most * expected and length > expected + self.SLACK,
        ]
        short = length == 0 < expected or (length < self.least * expected and length < expected - self.SLACK)
        return [any(faults), *faults, short, 1]

    def signature(self) -> str:
        return (
            f"kind:{self.kind}|loop:4x60,{LOOP_CHARACTERS}|length:{self.least}..{self.most}of reference"
            f"|slack:{self.SLACK}|patterns:1"
        )


@cache
def _leads() -> re.Pattern[str]:
    names = "|".join(re.escape(row[0].lower()) for row in TABLE.values())
    label = rf"(?:{names})(?:\s*\([^()]*\))?|source|target|output|answer"  # a name may bear script and region
    return re.compile(rf"\W*(?:{LEADS}|(?:{label})\s*[:：])", re.IGNORECASE)


def _comments(text: str) -> bool:
    return bool(_leads().match(text) or re.search(TRAILS, text, re.IGNORECASE))


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and text[-1] in QUOTES.get(text[0], "") and text[0] not in text[1:-1]


def _loops(text: str) -> bool:
    """Whether a piece with a letter comes four times in a row."""
    found = LOOP.finditer(text.casefold())
    return any(any(map(str.isalpha, m[1])) and len(m[0]) >= LOOP_CHARACTERS for m in found)


class LengthRatio(Metric):
    """Characters of the answers per character of the references, 1 where both are as long.

    A mean over directions hides what this shows: outputs into one language that run on.
    """

    name = "length ratio"
    higher_is_better = None

    def segment_sums(self, hypothesis: str, reference: str) -> list[float]:
        """[characters of the hypothesis, of the reference]."""
        return [len(hypothesis.strip()), len(reference.strip())]

    def from_sums(self, sums: ArrayLike) -> np.ndarray:
        sums = np.asarray(sums, dtype=np.float64)
        return ratio(sums[..., 0], sums[..., 1])

    def signature(self) -> str:
        return "unit:character|of:reference"
