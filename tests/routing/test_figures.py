"""Figures: SVG that stands in a page, says every name, and is the same each time."""

import re
import xml.etree.ElementTree as ET
from functools import cache

import numpy as np
import pytest

from dragoman.routing import drawing, figures, maps, relations
from dragoman.routing.drawing import Cast, label_positions, standalone
from dragoman.routing.figures import Trade
from dragoman.routing.maps import similar_together

TAGS = ("en", "de", "es", "ca")
CAST = Cast(
    known=("en", "de", "es"), target="ca", parent="es", names={"en": "English", "ca": "Catalan", "es": "Spanish"}
)
LAYERS = (0, 1, 2, 5)


def curves(tags=TAGS):
    rng = np.random.default_rng(0)
    return {g: rng.uniform(0.05, 0.6, len(LAYERS)).tolist() for g in tags}


def distances(number):
    points = np.random.default_rng(3).uniform(size=(number, 2))
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def dots(tags=TAGS):
    relative = {g: 1.0 + i for i, g in enumerate(tags)}
    per_byte = {g: 0.2 + 0.01 * i for i, g in enumerate(tags)}
    return relations.tokenizer_dots(
        per_byte, relative, {g: (0.9 * v, 1.1 * v) for g, v in relative.items()}, "en", CAST
    )


def scatter(tags=TAGS):
    pairs = [(a, b) for i, a in enumerate(tags) for b in tags[i + 1 :]]
    x_P, y_P = np.random.default_rng(4).uniform(size=(2, len(pairs)))
    return relations.overlap_scatter(x_P, y_P, pairs, [i % 3 == 0 for i in range(len(pairs))])


DELTA_LE = np.array([[0.1, -0.1, 0.0], [0.5, -0.4, 0.0], [0.0, 0.05, -0.05], [0.35, -0.35, 0.0]])


def shares(num_languages=4, num_experts=8):
    return np.random.default_rng(1).dirichlet(np.ones(num_experts), num_languages)


DRAWN = {
    "divergence_curves": lambda: figures.divergence_curves(
        curves(), LAYERS, CAST, {"ca": ([0.1] * 4, [0.2] * 4)}, [0.01] * 4
    ),
    "divergence_map": lambda: maps.divergence_map(curves(), LAYERS, CAST),
    "entropy_curves": lambda: figures.entropy_curves(curves(), LAYERS, CAST),
    "specialisation_curve": lambda: figures.specialisation_curve([0.1, 0.2, 0.1, 0.3], LAYERS, ([0.0] * 4, [0.4] * 4)),
    "expert_map": lambda: maps.expert_map(shares(), TAGS, CAST, {"SSFT plan": [1, 5], "random plan": [2, 3]}),
    "language_dendrogram": lambda: relations.language_dendrogram(distances(4), TAGS, CAST, 0.01),
    "overlap_scatter": scatter,
    "tokenizer_dots": dots,
    "load_balance": lambda: figures.load_balance([0.5, 1.0, 0.2, 0.1], [0, 2, 0, 0], LAYERS, ([0.1] * 4, [1.1] * 4)),
    "contrast_depth": lambda: figures.contrast_depth(DELTA_LE, LAYERS, (3, 3, 3, 2), 0.3, [0.05] * 4),
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
    written = texts(maps.divergence_map(curves(("en", "pt-BR", "x")), LAYERS, cast))
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
    assert sum(t in tags for t in texts(maps.divergence_map(curves(tags), LAYERS, cast))) == 60, "a row for each"


def test_two_languages_and_one_layer():
    assert "Catalan" in texts(figures.divergence_curves({"ca": [0.2]}, [3], CAST))
    assert "Catalan" in texts(maps.expert_map(shares(1, 2), ("ca",), CAST))
    assert "Catalan" in texts(maps.divergence_map({"ca": [0.0]}, [3], CAST)), "all zero has a scale too"


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
    svg = maps.expert_map(share_GE, ("en", "de", "ca"), CAST, {"SSFT plan": [3]})
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


@pytest.mark.parametrize("number", [2, 60])
def test_every_language_has_a_row_of_its_own(number):
    tags = [f"q{i}" for i in range(number)]
    cast = Cast(known=tags[:1], target=tags[-1])
    tree = relations.language_dendrogram(distances(number), tags, cast, 0.01)
    cost = relations.tokenizer_dots(dict.fromkeys(tags, 0.2), {}, {}, tags[0], cast)
    for svg in (tree, cost, maps.expert_map(shares(number), tags, cast)):
        rows = {e.text: at(e)[1] for e in ET.fromstring(svg).iter(NS + "text") if e.text in tags}
        assert set(rows) == set(tags)
        assert np.diff(sorted(rows.values())).min() > 11, "type of 10 units must not run together"


NS = "{http://www.w3.org/2000/svg}"


def at(text):
    """Where a text stands, x and y."""
    moved = re.search(r"translate\(([\d.-]+)[ ,]+([\d.-]+)\)", text.get("transform") or "")
    return tuple(map(float, moved.groups())) if moved else (float(text.get("x")), float(text.get("y")))


def test_language_tree_is_average_linkage_by_hand():
    distance_GG = np.array([[0, 1, 4], [1, 0, 6], [4, 6, 0]], dtype=float)
    links = relations.language_tree(distance_GG)
    assert sorted(links[0, :2]) == [0, 1] and links[0, 2] == 1
    assert links[1, 2] == 5, "the mean of 4 and 6"


def test_neighbours_in_the_tree_stand_together():
    tags = ["a", "b", "c", "d"]
    at_1 = np.array([0.0, 9.0, 0.5, 9.5])
    svg = relations.language_dendrogram(abs(at_1[:, None] - at_1[None]), tags, Cast())
    heights = {e.text: at(e)[1] for e in ET.fromstring(svg).iter(NS + "text") if e.text in tags}
    order = sorted(heights, key=heights.get)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}


def test_scatter_of_all_pairs_of_sixty_stays_small():
    tags = [f"q{i}" for i in range(60)]
    svg = scatter(tags)
    assert len(svg) < 250_000
    assert len([t for t in texts(svg) if "–" in (t or "")]) >= 2, "some pairs are named"


def test_one_pair_makes_no_line_but_a_dot():
    assert "en–de" in texts(relations.overlap_scatter([0.3], [0.9], [("en", "de")], [True]))


def test_only_experts_past_the_threshold_are_named():
    written = texts(DRAWN["contrast_depth"]())
    root = ET.fromstring(DRAWN["contrast_depth"]())
    marks = [e for g in root.iter(NS + "g") if "PathCollection" in g.get("id", "") for e in g.iter(NS + "use")]
    assert len(marks) == 4, "0.5, -0.4, 0.35, -0.35 of the real experts"
    assert written.count("0") + written.count("1") >= 4, "the ids of the four, beside ticks"


def test_free_places_leave_out_what_has_no_room():
    from matplotlib.figure import Figure

    axes = Figure(figsize=(380 / 72, 3)).add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 380)
    axes.set_ylim(0, 200)
    crowd = [(190, 100)] * 40
    drawing.free_places(axes, crowd, [f"label {i}" for i in range(40)], crowd, 200)
    boxes = [np.array(t.get_position()) for t in axes.texts]
    assert 3 <= len(boxes) <= 12
    gaps = [abs(a - b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert all(gap[0] > 40 or gap[1] > 7.9 for gap in gaps), "no text on another"


def test_few_languages_all_have_their_intervals_many_only_the_highlighted():
    def bands(number):
        tags = [f"q{i}" for i in range(number)]
        limits = {g: ([0.1] * 4, [0.2] * 4) for g in tags}
        root = ET.fromstring(figures.divergence_curves(curves(tags), LAYERS, Cast(target="q0"), limits))
        return sum("FillBetween" in g.get("id", "") for g in root.iter(NS + "g"))

    assert bands(3) == 3
    assert bands(60) == 1


def test_without_knowledge_of_the_training_no_language_is_drawn_as_unseen():
    assert Cast().line("ca")["linestyle"] == "-"
    assert Cast(known=("en",)).line("ca")["linestyle"] != "-"
    dashes = [str(CAST.line(g)["linestyle"]) for g in ("ca", "es", "pt")]
    assert len(set(dashes)) == 3, "target, parent and unseen differ without their colours"
    svg = maps.divergence_map(curves(), LAYERS, Cast())
    assert "italic" not in svg
    assert "italic" in maps.divergence_map(curves(), LAYERS, Cast(known=("en",)))


def test_standalone_has_plain_colours():
    svg = drawn("load_balance")
    assert "var(--" in svg
    assert "var(--" not in standalone(svg)
    assert drawing.INK in standalone(svg)
