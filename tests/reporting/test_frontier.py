"""The frontier figure: places by hand, the same bytes again."""

import re

from dragoman.reporting.frontier import HEIGHT, LEFT, TOP, WIDTH, Point, frontier, ticks


def test_ticks_by_hand():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.03, 0.21) == [0, 0.05, 0.1, 0.15, 0.2]
    assert ticks(-7, 48) == [0, 20, 40]


def test_points_stand_where_their_values_are():
    panels = {"ca": [Point("a", (0, 0, 0), (0, 0, 0)), Point("b <", (10, 8, 12), (50, 40, 100))]}
    svg = frontier(panels, "loss", "gain")
    places = [tuple(map(float, p)) for p in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    low, high = -0.06 * 12, 1.06 * 12
    assert places[0] == (round(LEFT + WIDTH * -low / (high - low), 1), round(TOP + HEIGHT * (1 - 0.06 / 1.12), 1))
    assert places[1][0] == round(LEFT + WIDTH * (10 - low) / (high - low), 1)
    assert places[1][1] == round(TOP + HEIGHT * (1 - 0.56 / 1.12), 1)
    assert "b &lt;" in svg and svg == frontier(panels, "loss", "gain")
