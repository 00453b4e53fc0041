"""What scoring makes of the sums of segments."""

import numpy as np
import pytest

from dragoman.commands import scoring
from dragoman.evaluation import significance

BITS = {
    # bits and bytes of each segment; es lacks one of the three documents
    "bits_per_byte": {"en": [[8.0, 4.0], [4.0, 4.0], [6.0, 6.0]], "es": [[3.0, 1.0], [2.0, 2.0]]},
    "documents": {"bits_per_byte": {"en": ["a", "b", "a"], "es": ["c", "a"]}},
}


def test_a_mean_of_labels_draws_a_document_in_all_its_languages():
    sums_US, documents, mean = scoring.mean_of_labels(BITS, "bits_per_byte", ["en", "es"])
    assert documents == ["a", "b", "c"]
    np.testing.assert_array_equal(sums_US, [[14, 10, 2, 2], [4, 4, 0, 0], [0, 0, 3, 1]])
    assert mean(sums_US.sum(0)[None]) == pytest.approx([(18 / 14 + 5 / 3) / 2])
    assert mean(np.stack([sums_US[[0, 0, 2]].sum(0), sums_US.sum(0)]))[0] == pytest.approx((28 / 20 + 7 / 5) / 2)
    alone, _, of_one = scoring.mean_of_labels(BITS, "bits_per_byte", ["en"])
    whole = significance.interval(alone, of_one, seed=3)
    assert whole.value == pytest.approx(18 / 14) and whole.units == 2
