"""The frontier figure: places by hand, the same bytes again."""

import re

from dragoman.reporting.frontier import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Point, frontier, ticks


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


def test_many_targets_stand_in_rows_of_four():
    svg = frontier({f"t{k}": [Point("a", (1, 0, 2), (1, 0, 2))] for k in range(6)}, "loss", "gain")
    corners = [tuple(map(int, c)) for c in re.findall(r'<rect x="(\d+)" y="(\d+)"', svg)]
    assert len({x for x, _ in corners}) == 4 and [y for _, y in corners] == [TOP] * 4 + [TOP + HEIGHT + BOTTOM] * 2
    circles = [tuple(map(float, c)) for c in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert circles[4] == (circles[0][0], circles[0][1] + HEIGHT + BOTTOM)
    width, height = (int(n) for n in re.search(r'width="(\d+)" height="(\d+)"', svg).groups())
    assert all(x + WIDTH <= width and y + HEIGHT + BOTTOM <= height for x, y in corners)
    assert all(f">t{k}<" in svg for k in range(6))
