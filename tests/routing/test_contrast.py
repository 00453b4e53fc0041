import numpy as np
import pytest

from dragoman.errors import DataError
from dragoman.routing import contrast


def drawn(share_LE, texts, seed, tokens=30):
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(tokens, p_E, size=texts) for p_E in share_LE], axis=1)


def test_frequency_is_the_mean_over_texts_not_over_tokens():
    # two experts a token; text 0 has 2 tokens, text 1 has 20
    count_NLE = np.array([[[2, 2, 0]], [[0, 20, 20]]])
    assert contrast.expert_frequency(count_NLE, 2).tolist() == [[0.5, 1, 0.5]]
    assert contrast.expert_frequency(count_NLE, (2,)).sum() == 2
    with pytest.raises(DataError, match="for text 1 in any layer"):
        contrast.expert_frequency(np.array([[[1, 1]], [[0, 0]]]), 1)


def test_delta_by_hand():
    text_NLE, general_NLE = np.array([[[4, 0]], [[1, 3]]]), np.array([[[1, 1]]])
    assert contrast.contrast(text_NLE, general_NLE, 1).tolist() == [[0.625 - 0.5, 0.375 - 0.5]]


def test_the_interval_holds_the_truth_and_the_placebo_does_not_see_it():
    general_LE, task_LE = np.array([[0.4, 0.3, 0.2, 0.1]]), np.array([[0.1, 0.3, 0.2, 0.4]])
    truth_LE = task_LE - general_LE
    held = 0
    for seed in range(20):
        text_NLE, general_NLE = drawn(task_LE, 40, seed), drawn(general_LE, 60, 1000 + seed)
        found = contrast.contrast_with_interval(text_NLE, general_NLE, 1, seed=seed)
        assert found.delta.value == pytest.approx(contrast.contrast(text_NLE, general_NLE, 1))
        assert np.flatnonzero(found.specialised(0.2)).tolist() == [3]
        assert abs(found.placebo_SLE).max() < 0.15 < abs(found.delta.value).max()
        held += int(((found.delta.low <= truth_LE) & (truth_LE <= found.delta.high)).mean() > 0.7)
    assert held >= 18
    assert "|segments:40,60|" in found.delta.signature


def test_documents_are_resampled_as_wholes():
    base_LE = np.array([[0.5, 0.5]])
    kinds = np.repeat(np.random.default_rng(0).uniform(0.2, 0.8, 12), 5)
    text_NLE = np.concatenate([drawn(np.array([[p, 1 - p]]), 1, i) for i, p in enumerate(kinds)])
    documents = np.repeat(np.arange(12), 5).tolist()
    general_NLE = drawn(base_LE, 60, 99)
    by_text = contrast.contrast_with_interval(text_NLE, general_NLE, 1, seed=0)
    by_document = contrast.contrast_with_interval(text_NLE, general_NLE, 1, seed=0, documents=documents)
    assert by_document.delta.value == pytest.approx(by_text.delta.value)
    width, wide = (d.delta.high - d.delta.low for d in (by_text, by_document))
    assert (wide > 1.5 * width).all()
    assert "|documents:12,60|" in by_document.delta.signature


def test_documents_of_unequal_size_keep_the_mean_over_texts():
    text_NLE = drawn(np.array([[0.3, 0.7]]), 20, 0)
    general_NLE = drawn(np.array([[0.5, 0.5]]), 20, 1)
    found = contrast.contrast_with_interval(text_NLE, general_NLE, 1, seed=0, documents=[0] * 15 + [1] * 5)
    assert found.delta.value == pytest.approx(contrast.contrast(text_NLE, general_NLE, 1))


def test_too_few_texts_are_refused_with_how_many_are_needed():
    some_NLE = drawn(np.array([[0.5, 0.5]]), 19, 0)
    with pytest.raises(DataError, match="needs 20 texts or more on both sides, there are 19 in the text set, 5 in gen"):
        contrast.contrast_with_interval(some_NLE, some_NLE[:5], 1, seed=0)
