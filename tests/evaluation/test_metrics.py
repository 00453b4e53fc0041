import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF as SacreCHRF
from sacrebleu.metrics import TER as SacreTER

from dragoman.errors import ConfigError, DataError
from dragoman.evaluation.metrics import METRICS, BitsPerByte, Score, score, sums_per_segment

PAIRS = [("chrf", SacreCHRF()), ("chrf++", SacreCHRF(word_order=2)), ("bleu", SacreBLEU()), ("ter", SacreTER())]


@pytest.fixture(params=PAIRS, ids=[name for name, _ in PAIRS])
def pair(request):
    name, theirs = request.param
    return METRICS[name](), theirs


def test_chrf_by_hand():
    # "ab" for "abc": 1-grams 2 of 2 and 2 of 3, 2-grams 1 of 1 and 1 of 2, no 3-gram on the hypothesis side;
    # P = 1, R = (2/3 + 1/2) / 2 = 7/12, F2 = 5 * 7/12 / (4 + 7/12) = 7/11
    metric = METRICS["chrf"]()
    assert metric.segment_sums("ab", "abc")[:6] == [2, 3, 2, 1, 2, 1]
    assert float(metric.from_sums(metric.segment_sums("ab", "abc"))) == pytest.approx(700 / 11)


def test_bleu_by_hand():
    # 5 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 fours; 5 words for 6: exp(1 - 6/5)
    metric = METRICS["bleu"]()
    value = metric.from_sums(metric.segment_sums("a b c d f", "a b c d e f"))
    assert float(value) == pytest.approx(100 * np.exp(-0.2) * (1 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_corpus_score_equals_sacrebleu(pair, sentences):
    metric, theirs = pair
    for hypotheses in (sentences.careful, sentences.careless, sentences.references):
        expected = theirs.corpus_score(hypotheses, [sentences.references])
        ours = score(metric, sums_per_segment(metric, hypotheses, sentences.references))
        assert ours.value == expected.score if metric.name != "BLEU" else ours.value == pytest.approx(expected.score)
        assert (ours.name, ours.signature) == (expected.name, theirs.get_signature().format())


def test_chrf_equals_corpus_chrf_exactly(sentences):
    metric = METRICS["chrf"]()
    ours = score(metric, sums_per_segment(metric, sentences.careful, sentences.references)).value
    assert ours == sacrebleu.corpus_chrf(sentences.careful, [sentences.references]).score


def test_every_resample_equals_sacrebleu(pair, sentences):
    metric, theirs = pair
    sums_NS = sums_per_segment(metric, sentences.careless, sentences.references)
    drawn_RN = np.random.default_rng(0).integers(len(sums_NS), size=(200, 6))
    sums_RS = sums_NS[drawn_RN].sum(axis=1)
    expected = [theirs._compute_score_from_stats(list(sums_S)).score for sums_S in sums_RS]
    assert metric.from_sums(sums_RS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("hypothesis", "reference"), [("", "text"), ("x", "yy"), ("a", "a"), ("", ""), ("a b", "a c")])
def test_degenerate_segments_equal_sacrebleu(pair, hypothesis, reference):
    metric, theirs = pair
    expected = theirs.corpus_score([hypothesis], [[reference]]).score
    with np.errstate(all="raise"):
        ours = metric.from_sums(metric.segment_sums(hypothesis, reference))
    assert float(ours) == pytest.approx(expected, rel=1e-12)


def test_from_sums_drops_the_last_axis_only(pair, sentences):
    metric, _ = pair
    sums_NS = sums_per_segment(metric, sentences.careful, sentences.references)
    assert metric.from_sums(sums_NS[0]).shape == ()
    assert metric.from_sums(sums_NS.reshape(4, 10, -1)).shape == (4, 10)


def test_ter_by_hand():
    # "b a c" for "a b c d": one shift makes it "a b c", one insertion the rest: 2 edits on 4 words
    metric = METRICS["ter"]()
    assert metric.segment_sums("b a c", "a b c d") == [2, 4]
    assert float(metric.from_sums([2, 4])) == 50
    assert not metric.higher_is_better
    asian = METRICS["ter"](asian=True)
    assert asian.segment_sums("选择格", "选择单元格") == [2, 5]
    assert "|norm:yes|" in asian.signature() and "|asian:yes|" in asian.signature()


def test_every_metric_has_a_name_a_direction_and_a_signature():
    given = {"bits_per_byte": {"context": 8}, "off_target": {"target": "de"}}
    extras = {"unaligned_source", "unaligned_hypothesis", "embedding", "comet", "metricx"}
    made = {name: make(**given.get(name, {})) for name, make in METRICS.items() if name not in extras}
    assert len({metric.name for metric in made.values()}) == len(made)
    for metric in made.values():
        assert metric.higher_is_better in ((None,) if metric.name == "length ratio" else (True, False))
        assert set(metric.needs) <= {"references", "sources", "terms"}
        assert all(":" in part for part in metric.signature().split("|"))


def test_identical_text_has_full_score_and_foreign_text_none():
    for name in ("chrf", "chrf++", "bleu"):
        metric = METRICS[name]()
        assert float(metric.from_sums(metric.segment_sums("one two three four", "one two three four"))) == 100
        assert float(metric.from_sums(metric.segment_sums("xyz", "αβγ"))) == 0


def test_bits_per_byte_by_hand():
    # "né" is 3 bytes, "я" 2: 10 bits on 5 bytes
    metric = BitsPerByte(context=512)
    sums_NS = sums_per_segment(metric, [6.0, 4.0], ["né", "я"])
    assert sums_NS.tolist() == [[6, 3], [4, 2]]
    ours = score(metric, sums_NS)
    assert ours.value == 2.0
    assert ours.signature == "unit:utf-8-byte|special:excluded|context:512|stride:256|tokenizer:any"
    assert not metric.higher_is_better


def test_bits_per_byte_is_a_ratio_of_sums_not_a_mean_of_ratios():
    assert float(BitsPerByte(512).from_sums(np.array([[1.0, 1], [90, 9]]).sum(axis=0))) == 9.1


def test_a_score_prints_its_signature():
    assert str(Score("chrF2", 54.321, "nrefs:1|nc:6")) == "chrF2|nrefs:1|nc:6 = 54.3"
    assert str(Score("bits per byte", 1.23456, "unit:utf-8-byte")) == "bits per byte|unit:utf-8-byte = 1.235"


@pytest.mark.parametrize(("hypotheses", "references"), [(["a"], ["a", "b"]), ([], [])])
def test_unequal_or_no_segments_are_refused(hypotheses, references):
    counts = f"{len(hypotheses)} hypotheses and {len(references)} references"
    with pytest.raises(DataError, match=counts + ".*look for"):
        sums_per_segment(METRICS["chrf"](), hypotheses, references)


def test_a_tokenizer_that_would_need_a_download_is_refused():
    with pytest.raises(ConfigError, match=r"'flores200'.*13a, intl, zh, char, none"):
        METRICS["bleu"](tokenize="flores200")


def test_metrics_and_significance_need_no_torch():
    code = (
        "import sys, dragoman.evaluation.metrics, dragoman.evaluation.significance\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
