"""Figures: SVG that stands in a page, says every name, and is the same each time."""

import re
import xml.etree.ElementTree as ET
from functools import cache

import numpy as np
import pytest

from dragoman.routing import figures
from dragoman.routing.figures import Cast, Trade, label_positions, similar_together

TAGS = ("en", "de", "es", "ca")
CAST = Cast(
    known=("en", "de", "es"), target="ca", parent="es", names={"en": "English", "ca": "Catalan", "es": "Spanish"}
)
LAYERS = (0, 1, 2, 5)


def curves(tags=TAGS):
    rng = np.random.default_rng(0)
    return {g: rng.uniform(0.05, 0.6, len(LAYERS)).tolist() for g in tags}


def shares(num_languages=4, num_experts=8):
    return np.random.default_rng(1).dirichlet(np.ones(num_experts), num_languages)


DRAWN = {
    "divergence_curves": lambda: figures.divergence_curves(
        curves(), LAYERS, CAST, {"ca": ([0.1] * 4, [0.2] * 4)}, [0.01] * 4
    ),
    "divergence_map": lambda: figures.divergence_map(curves(), LAYERS, CAST),
    "entropy_curves": lambda: figures.entropy_curves(curves(), LAYERS, CAST),
    "specialisation_curve": lambda: figures.specialisation_curve([0.1, 0.2, 0.1, 0.3], LAYERS, ([0.0] * 4, [0.4] * 4)),
    "expert_map": lambda: figures.expert_map(shares(), TAGS, CAST, {"SSFT plan": [1, 5], "random plan": [2, 3]}),
    "quality_dots": lambda: figures.quality_dots(
        {"base": 2.4, "ssft": 1.8}, {"base": [2.3, 2.5]}, "bits per byte", {"ssft": "SSFT plan"}
    ),
    "frontier": lambda: figures.frontier(
        {"base": Trade((2.4, 2.3, 2.5), (0, 0, 0)), "ssft": Trade((1.8, 1.7, 1.9), (0.1, -0.1, 0.3))}, {}, "Catalan"
    ),
}


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@cache
def drawn(name):
    return DRAWN[name]()


@pytest.mark.parametrize("name", DRAWN)
def test_svg_for_a_page(name):
    svg = drawn(name)
    root = ET.fromstring(svg)
    assert root.get("viewBox").split()[:3] == ["0", "0", "380"]
    assert (root.get("width"), root.get("height")) == ("100%", None), "the page sets the size"
    assert "<metadata" not in svg
    assert not re.findall(r"\d{4}-\d\d-\d\dT", svg), "a date would differ each time"
    links = re.findall(r'(?:href|src)="([^"]*)"', svg)
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    ids = {e.get("id") for e in root.iter() if e.get("id")}
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) <= ids


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_numbers_give_the_same_bytes(name):
    assert DRAWN[name]() == drawn(name)


def test_ids_of_figures_in_one_page_differ():
    found = [set(re.findall(r'\bid="([^"]*)"', drawn(name))) for name in DRAWN]
    assert sum(map(len, found)) == len(set().union(*found))


def test_every_language_is_named_and_long_names_give_way_to_tags():
    cast = Cast(names={"en": "English", "pt-BR": "Brazilian Portuguese", "x": ""})
    written = texts(figures.divergence_map(curves(("en", "pt-BR", "x")), LAYERS, cast))
    assert {"English", "pt-BR", "x"} <= set(written)
    assert {"Catalan", "Spanish", "de"} <= set(texts(figures.divergence_curves(curves(), LAYERS, CAST)))
    assert {"0", "1", "2", "5", "model layer"} <= set(written), "the axis has model layers, not rows"


def test_names_are_neither_markup_nor_mathematics():
    cast = Cast(target="ca", names={"ca": "<script>", "de": "$x_1$"})
    svg = figures.divergence_curves(curves(), LAYERS, cast)
    assert {"<script>", "$x_1$"} <= set(texts(svg))
    assert "<script>" not in svg


def test_far_too_many_languages_keep_the_highlighted_names_and_distance():
    tags = [f"q{i}" for i in range(60)]
    cast = Cast(known=tags[:30], target="q7", parent="q3")
    svg = figures.divergence_curves(curves(tags), LAYERS, cast)
    named = [t for t in texts(svg) if t in tags]
    assert {"q7", "q3"} <= set(named)
    assert 15 <= len(named) <= 20
    assert sum(t in tags for t in texts(figures.divergence_map(curves(tags), LAYERS, cast))) == 60, "a row for each"


def test_two_languages_and_one_layer():
    assert "Catalan" in texts(figures.divergence_curves({"ca": [0.2]}, [3], CAST))
    assert "Catalan" in texts(figures.expert_map(shares(1, 2), ("ca",), CAST))
    assert "Catalan" in texts(figures.divergence_map({"ca": [0.0]}, [3], CAST)), "all zero has a scale too"


def test_label_positions_by_hand():
    assert label_positions(np.array([10.0, 50.0]), 12, 0, 100).tolist() == [10, 50], "room enough: unmoved"
    assert label_positions(np.array([50.0, 50.0]), 12, 0, 100).tolist() == [44, 56], "shared evenly"
    assert label_positions(np.array([99.0, 98.0]), 12, 0, 100).tolist() == [100, 88], "inside, in their order"


def test_label_positions_keep_order_gap_and_bounds():
    wanted_N = np.random.default_rng(2).uniform(0, 100, 8)
    placed_N = label_positions(wanted_N, 12, 0, 100)
    assert (np.argsort(placed_N) == np.argsort(wanted_N)).all()
    assert np.diff(np.sort(placed_N)).min() >= 12 - 1e-9
    assert placed_N.min() >= 0
    assert placed_N.max() <= 100


def test_similar_rows_stand_together():
    order = similar_together(np.array([[0.0, 0], [9, 9], [0, 1], [9, 8]]))
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1


def test_planned_experts_are_marked_above_their_columns():
    share_GE = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7], [0.6, 0.2, 0.1, 0.1]])
    svg = figures.expert_map(share_GE, ("en", "de", "ca"), CAST, {"SSFT plan": [3]})
    root = ET.fromstring(svg)
    ns = "{http://www.w3.org/2000/svg}"
    (label,) = (e for e in root.iter(ns + "text") if e.text == "3")
    marks = [e for g in root.iter(ns + "g") if "PathCollection" in g.get("id", "") for e in g.iter(ns + "use")]
    (mark,) = marks
    column = float(re.search(r"translate\(([\d.]+)", label.get("transform") or "").group(1))
    assert float(mark.get("x")) == pytest.approx(column, abs=6)


def test_the_users_matplotlib_settings_come_back():
    import matplotlib

    before = dict(matplotlib.rcParams)
    DRAWN["frontier"]()
    assert dict(matplotlib.rcParams) == before
