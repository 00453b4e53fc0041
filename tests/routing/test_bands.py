import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.routing import bands


def curve(*values):
    return np.array([values], dtype=float)


def test_the_window_is_odd_and_about_a_fifth():
    assert [bands.window_of(n) for n in (3, 8, 16, 24, 32, 48)] == [1, 1, 3, 5, 7, 9]


def test_smoothing_by_hand():
    assert bands.smoothed(np.array([3.0, 0, 6, 3]), 3).tolist() == [1.5, 3, 3, 4.5]
    assert bands.smoothed(np.array([3.0, 0, 6]), 1).tolist() == [3, 0, 6]


def test_band_by_hand():
    # minimum .1 in layer 3; a third of the way is .2 to the left (edge .4) and .3 to the right (edge .7)
    found = bands.middle_band(curve(0.4, 0.21, 0.2, 0.1, 0.29, 0.31, 0.7), range(7), fraction=1 / 3 + 1e-9)
    assert (found.first, found.last, found.rows, found.valley) == (2, 4, (2, 3, 4), True)


def test_a_low_layer_beyond_a_high_one_is_outside():
    found = bands.middle_band(curve(0.9, 0.1, 0.8, 0.0, 0.9), range(5))
    assert found.rows == (3,)


def test_the_band_is_of_the_mean_over_languages_and_in_model_layers():
    found = bands.middle_band(np.array([[1.0, 0, 0, 0, 1], [1, 1, 0, 0, 1]]), (2, 5, 6, 8, 11))
    assert (found.first, found.last, found.rows) == (6, 8, (2, 3))


def test_a_curve_that_only_falls_has_no_valley():
    found = bands.middle_band(curve(0.9, 0.6, 0.3, 0.1), range(4))
    assert (found.first, found.last, found.valley) == (2, 3, False)
    flat = bands.middle_band(curve(0.2, 0.2, 0.2), range(3))
    assert (flat.first, flat.last, flat.valley) == (0, 2, False)


def test_noise_about_a_valley_moves_the_band_little():
    x = np.linspace(-1, 1, 48)
    clean = bands.middle_band((0.05 + 0.3 * x**4)[None], range(48))
    rng = np.random.default_rng(0)
    for _ in range(20):
        noisy = bands.middle_band((0.05 + 0.3 * x**4 + rng.normal(0, 0.03, 48))[None], range(48))
        assert abs(noisy.first - clean.first) <= 3 and abs(noisy.last - clean.last) <= 3


def test_two_layers_have_no_middle():
    with pytest.raises(DataError, match="2 MoE layers have no middle"):
        bands.middle_band(curve(0.1, 0.2), range(2))


def test_a_band_can_be_set():
    found = bands.given_band(5, 8, (2, 5, 5, 8, 11))
    assert (found.rows, found.how, found.valley) == ((1, 2, 3), "as set", True)
    for wrong in ((8, 5), (5, 7), (0, 8)):
        with pytest.raises(ConfigError, match=f"band {wrong[0]} to {wrong[1]} does not fit.* 2, 5, 8, 11, the lower"):
            bands.given_band(*wrong, (2, 5, 5, 8, 11))
