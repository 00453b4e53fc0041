"""Every rule by which text from packages is kept or dropped, in one place; each drop is counted.

Order: cells (limits, untranslated, script), rows (no English, nothing beside it, the same English twice), then rows of
dev, devtest and test whose English is nearly that of a training row.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

from tqdm import tqdm

from dragoman.corpora.languages import language, script_shares
from dragoman.corpora.ntext import NText

Index = dict[int, list[tuple[int, int, int]]]
"""5-gram -> (number of 5-grams, position of this one, row) of the training texts that have it in their prefix."""

LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Rules:
    """Limits of the rules; the defaults are those of every table this project makes."""

    min_letters: int = 2
    """Cells with fewer letters are dropped (numbers, operators, single keys)."""
    max_characters: int = 1000
    """Longer cells are dropped (tables and lists run together)."""
    min_script: float = 0.3
    """Least share of a cell's letters in the tag's script; software text is full of Latin names."""
    min_script_latin: float = 0.7
    """The same for languages in Latin script, where little else is expected."""
    max_english_words: float = 0.7
    """A cell with at least this share of its words (3 or more) from the row's English goes to the language check."""
    near_duplicate: float = 0.8
    """Jaccard similarity of character 5-grams from which two English segments count as the same."""
    english_alone: bool = False
    """Keep rows of train that have no translation, as English text for language modelling."""


DEFAULT_RULES = Rules()


def clean(text: NText, rules: Rules = DEFAULT_RULES, quiet: bool = True) -> tuple[NText, dict[str, Any]]:
    """The text without what the rules drop, and a report: rule -> count (cells by language, rows by split)."""
    report: dict[str, Any] = {"rules": asdict(rules), "rows_before": len(text)}
    english = text.columns["en"]
    columns: dict[str, list[str | None]] = {}
    dropped: dict[str, Counter[str]] = {}
    for tag in tqdm(text.languages, desc="clean", disable=quiet, leave=False):
        dropped[tag] = Counter()
        cells = zip(text.columns[tag], english, strict=True)
        columns[tag] = [_kept(cell, tag, reference, rules, dropped[tag]) for cell, reference in cells]
    text = replace(text, columns=columns)
    report["cells_dropped"] = {tag: dict(counts) for tag, counts in dropped.items()}
    text = _drop_rows(text, rules, report)
    doubles = near_duplicates(text.columns["en"], text.splits, rules.near_duplicate, quiet)  # type: ignore[arg-type]
    report["near_duplicates_of_train"] = dict(Counter(text.splits[i] for i in doubles))
    text = text.take(sorted(set(range(len(text))) - doubles))
    report["rows_after"] = dict(Counter(text.splits))
    return text, report


def _kept(cell: str | None, tag: str, english: str | None, rules: Rules, dropped: Counter[str]) -> str | None:
    if cell is None:
        return None
    if fault := cell_fault(cell, tag, english, rules):
        dropped[fault] += 1
        return None
    return cell


def cell_fault(cell: str, tag: str, english: str | None, rules: Rules) -> str:
    """Name of the first rule that a cell breaks, "" if none."""
    if len(cell) > rules.max_characters:
        return "too_long"
    if sum(1 for _ in islice(LETTER.finditer(cell), rules.min_letters)) < rules.min_letters:
        return "too_short"
    if tag != "en" and english is not None and cell.casefold() == english.casefold():
        return "equals_english"
    if _script_fault(cell, tag, rules):
        return "other_script"
    return "is_english" if tag != "en" and english and _is_english(cell, tag, english, rules) else ""


def _script_fault(cell: str, tag: str, rules: Rules) -> bool:
    expected = language(tag).scripts
    if not expected or (expected == ("Latin",) and cell.isascii()):
        return False
    shares = script_shares([cell])
    least = rules.min_script_latin if expected == ("Latin",) else rules.min_script
    return sum(shares.get(script, 0.0) for script in expected) < least


def _is_english(cell: str, tag: str, english: str, rules: Rules) -> bool:
    """Whether a cell was left in (an older) English: most words are the English row's, and py3langid agrees.

    Only `English or the tagged language?` is asked: near languages (cs and sk, pt and gl) cannot be confused by that.
    """
    words = words_of(cell)
    common = len(set(words) & set(words_of(english)))
    label = language(tag).langid
    if len(words) < 3 or common < rules.max_english_words * len(set(words)) or not label:
        return False
    return english_score(cell, label) > 0


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


def english_score(text: str, label: str) -> float:
    """Log-odds of English against the language with this py3langid label."""
    scores = dict(_identifier().rank(text))
    return scores["en"] - scores[label]


def _drop_rows(text: NText, rules: Rules, report: dict[str, Any]) -> NText:
    filled = [sum(cell is not None for cell in row) for row in zip(*text.columns.values(), strict=True)]
    english = text.columns["en"]
    fewest = {split: 1 if rules.english_alone and split == "train" else 2 for split in set(text.splits)}
    alone = {i for i, n in enumerate(filled) if english[i] is None or n < fewest[text.splits[i]]}
    best: dict[str, int] = {}
    for i, cell in enumerate(english):
        if i not in alone and cell is not None and filled[i] > filled[best.setdefault(cell, i)]:
            best[cell] = i
    report["rows_without_english_or_translation"] = len(alone)
    report["rows_with_repeated_english"] = len(text) - len(alone) - len(best)
    return text.take(sorted(best.values()))


def canonical(text: str) -> str:
    """The form in which near-duplicates are compared: lower-case, each number 0, no punctuation."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", re.sub(r"\d+", "0", text.lower())).split())


def near_duplicates(
    texts: Sequence[str], splits: Sequence[str], threshold: float = 0.8, quiet: bool = True
) -> set[int]:
    """Rows outside train whose text is a near-duplicate of some training text.

    Near: the same canonical form, or Jaccard similarity of the sets of character 5-grams >= threshold. Exact, by prefix
    filtering: number 5-grams by rarity; two sets with Jaccard >= t share one of the first |x| - ceil(t |x|) + 1 of
    each. The positions of the first one they share bound how many more they can share.

    Source: Xiao, Wang, Lin and Yu 2008 (Efficient similarity joins for near duplicate detection, PPJoin), sec. 3 and 4.
    Differs: no suffix filter; only held-out texts look for training texts, never two of the same side.
    """
    forms = [canonical(text) for text in texts]
    train = {form for form, split in zip(forms, splits, strict=True) if split == "train"}
    held = {form for form, split in zip(forms, splits, strict=True) if split != "train"} - train
    frequency = Counter(gram for form in (*train, *held) for gram in shingles(form))
    rarest_first = sorted(frequency.items(), key=lambda item: (item[1], item[0]))
    number = {gram: i for i, (gram, _) in enumerate(rarest_first)}
    known = sorted(sorted(number[gram] for gram in shingles(form)) for form in train)
    index = _prefix_index(known, threshold)
    near = set(train)
    for form in tqdm(held, desc="near-duplicates", disable=quiet, leave=False):
        if _has_neighbour(sorted(number[gram] for gram in shingles(form)), known, index, threshold):
            near.add(form)
    return {i for i, form in enumerate(forms) if splits[i] != "train" and form in near}


def shingles(form: str, size: int = 5) -> set[str]:
    """Character 5-grams; a shorter text is its own only one."""
    return {form[i : i + size] for i in range(max(1, len(form) - size + 1))}


def _prefix_length(size: int, threshold: float) -> int:
    return size - _ceil(threshold * size) + 1


def _ceil(x: float) -> int:
    """Smallest integer not below x, forgiving rounding error."""
    return math.ceil(x - 1e-9)


def _prefix_index(known: Sequence[Sequence[int]], threshold: float) -> Index:
    """Postings by size, so that texts of another length need not be looked at."""
    index: Index = defaultdict(list)
    for row in sorted(range(len(known)), key=lambda row: len(known[row])):
        grams = known[row]
        for position, gram in enumerate(grams[: _prefix_length(len(grams), threshold)]):
            index[gram].append((len(grams), position, row))
    return index


def _has_neighbour(grams: Sequence[int], known: Sequence[Sequence[int]], index: Index, threshold: float) -> bool:
    own, n = set(grams), len(grams)
    low, high = (_ceil(threshold * n),), (math.floor(n / threshold + 1e-9) + 1,)
    seen: set[int] = set()
    for i, gram in enumerate(grams[: _prefix_length(n, threshold)]):
        postings = index.get(gram, [])
        for m, j, row in postings[bisect_left(postings, low) : bisect_left(postings, high)]:
            if row not in seen:
                seen.add(row)
                least = _ceil(threshold * (n + m) / (1 + threshold))
                if min(n - i, m - j) >= least and len(own.intersection(known[row])) >= least:
                    return True
    return False
