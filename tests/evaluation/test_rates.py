import numpy as np
import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.metrics import METRICS
from dragoman.evaluation.rates import OVER_GENERATION, Copies, LengthRatio, OffTarget, OverGeneration, letters

GERMAN = "Wählen Sie die Zellen aus, die formatiert werden sollen."
ENGLISH = "Select the cells that you want to format."
CATALAN = "Seleccioneu les cel·les que voleu formatar."


def test_off_target_by_hand():
    sums_NS = sums_per_segment(OffTarget("de"), [GERMAN, ENGLISH, CATALAN, "OK"], [GERMAN, GERMAN, GERMAN, "OK"])
    assert sums_NS.tolist() == [[0, 1], [1, 1], [1, 1], [0, 0]]
    ours = score(OffTarget("de"), sums_NS)
    assert ours.value == pytest.approx(200 / 3)
    assert ours.signature.startswith("target:de|label:de|among:all|min_letters:20|letters:Han 3,Hangul 2|")
    assert "|judged_by:reference|identifier:py3langid|version:" in ours.signature
    assert OffTarget.higher_is_better is False


def test_an_answer_does_not_choose_what_is_judged():
    """An untranslated answer is long enough to be judged, so its short right translation has to be judged too."""
    metric, reference = OffTarget("zh"), "选择要设置格式的单元格。"  # 11 signs of Han, as long as 33 letters
    answers = [reference, "选择单元格。", ENGLISH, "", "1 + 2"]
    assert [metric.segment_sums(answer, reference)[1] for answer in answers] == [1] * 5
    assert [metric.segment_sums(answer, reference)[0] for answer in answers[2:]] == [1] * 3
    assert metric.segment_sums(ENGLISH, "确定") == [0, 0]
    with pytest.raises(DataError, match="off target needs references"):
        sums_per_segment(metric, answers)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a é 1!", 2),
        ("e\u0301te\u0301", 3),  # accents apart
        ("日本のOK", 3 + 3 + 1 + 2),
        ("한국어", 6),
        ("हिन्दी", 3 + 2),  # and a virama
        ("กำลัง", 5),
        ("", 0),
    ],
)
def test_letters_by_hand(text, count):
    assert letters(text) == count


def test_segments_of_the_corpus_are_judged_alike_in_every_language():
    from dragoman.corpora.pack import load_pack

    texts = load_pack().select(["en", "zh", "ja"], "devtest", complete=True)
    judged = {g: sum(letters(t) >= 20 for t in column) / len(texts) for g, column in texts.columns.items()}
    assert min(judged.values()) > 0.9, judged


def test_off_target_asks_py3langid(sentences):
    theirs = LanguageIdentifier.from_model_file(MODEL_FILE)
    metric = OffTarget("ca", min_letters=0)
    ours = [metric.segment_sums(text)[0] for text in sentences.references]
    assert ours == [theirs.classify(text)[0] != "ca" for text in sentences.references]
    assert 0 < sum(ours) < len(ours)


def test_restricted_to_some_languages():
    restricted = OffTarget("de", among=["en", "nl"])
    assert "|among:de+en+nl|" in restricted.signature()
    assert restricted.segment_sums(ENGLISH) == [1, 1]
    assert restricted.segment_sums(GERMAN) == [0, 1]
    # Catalan is not among the choices, so it must be one of them, and the unrestricted metric is not changed by this
    assert OffTarget("ca").segment_sums(CATALAN) == [0, 1]


def test_a_regional_tag_is_its_language():
    assert OffTarget("pt-BR").segment_sums("Selecione as células que você deseja formatar.") == [0, 1]


def test_a_language_that_the_identifier_does_not_know():
    with pytest.raises(DataError, match=r"py3langid \S+ knows \d+ languages, but not ang \(Old English\); leave the"):
        OffTarget("ang")
    with pytest.raises(ConfigError, match="no language but de"):
        OffTarget("de", among=["de"])


def test_copies_by_hand():
    sources = ["Open the file.", "Open the file.", "LibreOffice", "12 + 3"]
    references = ["Öffnen Sie die Datei.", "Öffnen Sie die Datei.", "LibreOffice", "12 + 3"]
    hypotheses = ["open the  file!", "Öffnen Sie die Datei.", "LibreOffice", "12 + 3"]
    sums_NS = sums_per_segment(Copies(), hypotheses, references, sources=sources)
    assert sums_NS.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert score(Copies(), sums_NS).value == 50


KINDS = {
    "commentary": [
        "Here is the translation: Wählen Sie die Zellen aus.",
        "Sure! Wählen Sie die Zellen aus.",
        "German (Austria): Wählen Sie die Zellen aus.",
        "Übersetzung: Wählen Sie die Zellen aus.",
        "译文：Wählen Sie die Zellen aus.",
        "Wählen Sie die Zellen aus. (Note: formal)",
        "Wählen Sie die Zellen aus.\n\nSelect the cells.",
    ],
    "quotes": ['"Wählen Sie die Zellen aus."', "„Wählen Sie die Zellen aus.“", "«Wählen Sie die Zellen aus.»"],
    "repetition": [
        "Zellen aus Zellen aus Zellen aus Zellen aus",
        "Wähle, wähle, wähle, wähle, wähle",
        "啊啊啊啊啊啊啊啊啊",
    ],
    "too_long": ["Wählen Sie die Zellen aus und dann noch viele andere Dinge, die hier gar nicht stehen."],
    "too_short": ["", "Wählen"],
}


@pytest.mark.parametrize(("kind", "answer"), [(k, a) for k, answers in KINDS.items() for a in answers])
def test_each_kind_is_seen_and_only_it(kind, answer):
    source, reference = "Select the cells.", "Wählen Sie die Zellen aus."
    sums = OverGeneration().segment_sums(answer, source, reference)
    found = {k for k, s in zip(OVER_GENERATION[1:], sums[1:-1], strict=True) if s}
    assert kind in found
    assert found - {"too_long", "too_short"} == {kind} - {"too_long", "too_short"}
    assert sums[0] == (kind != "too_short") and sums[-1] == 1


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("Select the cells.", "Wählen Sie die Zellen aus."),
        ("Note: save first. Example: 1000000000000", "Hinweis: erst speichern. Beispiel: 1000000000000"),
        ('"Yes"', "„Ja“"),
        ("ha ha ha ha ha", "ha ha ha ha ha"),
        ("Line one\nLine two", "Zeile eins\nZeile zwei"),
        ("Chapter ........ 5", "Kapitel ........ 5"),
        ("English: a language", "Englisch: eine Sprache"),
        ('"One" and "two"', '"Eins" und "zwei"'),
    ],
)
def test_good_translations_are_not_flagged(source, answer):
    assert OverGeneration().segment_sums(answer, source, answer)[:-1] == [0] * 6


def test_the_value_is_of_the_kind_that_was_asked_for():
    sums_S = np.array([5, 1, 2, 3, 4, 6, 10])
    values = {kind: float(OverGeneration(kind).from_sums(sums_S)) for kind in OVER_GENERATION}
    assert values == {"any": 50, "commentary": 10, "quotes": 20, "repetition": 30, "too_long": 40, "too_short": 60}
    assert OverGeneration("too_long").name == "over-generation (too long)"
    assert OverGeneration().signature() != OverGeneration(most=3.0).signature()
    with pytest.raises(ConfigError, match="no kind 'chatter'; choose from any, commentary"):
        OverGeneration("chatter")


def test_length_ratio_by_hand():
    sums_NS = sums_per_segment(LengthRatio(), ["abcd", "ab"], ["abc", "a"])
    assert score(LengthRatio(), sums_NS).value == 1.5
    assert LengthRatio().higher_is_better is None


def test_rates_of_nothing_judged_are_zero():
    for name in ("copies", "numbers"):
        assert float(METRICS[name]().from_sums(np.zeros(4))) == 0
        assert METRICS[name]().judged(np.zeros(4)) == 0, "so that nobody takes the 0 for a value"
    assert METRICS["copies"]().judged(np.array([1, 3])) == 3
    assert METRICS["chrf"]().judged(np.zeros(4)) is None
