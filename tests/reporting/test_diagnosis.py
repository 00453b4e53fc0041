"""The page of a diagnosis: whole, self-contained, with 2 and 60 languages, and with parts missing."""

import base64
import csv
import io
import re
from dataclasses import replace

import numpy as np
import pytest

from dragoman.corpora.languages import TABLE
from dragoman.reporting import diagnosis_html, write_diagnosis
from dragoman.routing.drift import half_distance
from tests.reporting.test_page import NAMES, Page, make_trace, routing_part

TAGS = {2: ("en", "de"), 14: tuple(NAMES), 60: tuple(dict.fromkeys([*NAMES, *TABLE]))[:60]}


def with_segments(trace):
    """Forty segments a language that sum to the trace's counts."""
    rng = np.random.default_rng(0)
    parts = {}
    for g, count_LE in zip(trace.languages, trace.chosen_GLE, strict=True):
        parts[g] = np.moveaxis(rng.multinomial(count_LE, np.full(40, 1 / 40)), -1, 0).astype(np.int32)
    overlap = {a: {b: round(rng.uniform(0, 0.5), 3) for b in trace.languages if b != a} for a in trace.languages}
    return replace(trace, segment_chosen_NLE=parts, about=trace.about | {"overlap": overlap, "parallel": True})


def made(number, **layout):
    trace = with_segments(make_trace(TAGS[number], **layout))
    cost = {g: {"tokens": 9, "bytes": 30, "per_byte": 0.3, "relative": 1.0 + i, "interval": [0.9 + i, 1.1 + i]}
            for i, g in enumerate(trace.languages)}  # fmt: skip
    layers = len(trace.layer_ids)
    noise_L = half_distance(trace.segment_chosen_NLE["en"], 0).mean(axis=0)
    routing = routing_part(trace) | {
        "reference": "en", "load_variation": [0.5] * layers, "dead_experts": [0] * layers,
        "tokens": dict(zip(trace.languages, trace.tokens_G.tolist(), strict=True)),
        "middle_band": {"first": 1, "last": 2, "valley": True}, "placebo_interval": [[0.0] * layers, [0.01] * layers],
        "relations": {"placebo": noise_L.tolist(), "measures": {"overlap": {
            "layers": {"all": {"pearson": {"r": 0.4, "p": 0.01}}}, "interval": [0.3, 0.5]}}},
        "sharing": {"gap": {"number": dict.fromkeys([*trace.languages, "shared"], 3), "placebo": {"en": 0.4}}},
    }  # fmt: skip
    delta = np.random.default_rng(1).normal(0, 0.2, trace.chosen_GLE.shape[1:]).tolist()
    record = {
        "command": "diagnose", "created": "2026-07-01T10:00:00+00:00",
        "config": {"model": "mini-moe", "split": "dev", "seed": 0}, "routing": routing, "tokenizer": cost,
        "corpus": {"name": "help", "known": ["en", "de", "fr"]}, "tasks": {"maths": {"delta": delta, "threshold": 0.3}},
    }  # fmt: skip
    return record, trace


@pytest.fixture(scope="module", params=[2, 60])
def page(request):
    record, trace = made(request.param, num_layers=4, num_experts=8)
    return request.param, diagnosis_html(record, trace)


def numbers(html):
    """CSV texts by their file name."""
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', html)
    return {name: base64.b64decode(data).decode() for name, data in links}


def test_page_is_whole_and_fetches_nothing(page):
    number, html = page
    found = Page(html)
    assert all(a.startswith(("#", "data:image/png", "data:text/csv")) for a in found.addresses)
    assert "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert len(found.ids) == len(set(found.ids)), "figures must not share ids"
    assert len(html.encode()) < 2_500_000
    assert found.opened.count("svg") == 11 + 2 * (number > 2), "a tree and a scatter need more than two languages"
    assert "None" not in found.text and "nan" not in found.text


def test_every_figure_has_its_numbers_and_its_sentence(page):
    number, html = page
    tables = numbers(html)
    assert len(tables) == html.count("<svg")
    for name, text in tables.items():
        rows = list(csv.reader(io.StringIO(text)))
        assert len(rows) > 1 and len({len(r) for r in rows}) == 1, name
    if number > 2:
        assert len(tables["overlap.csv"].splitlines()) == 1 + number * (number - 1) / 2
    captions = re.findall(r"<figcaption><p>(.*?)</p><p>(.*?)</p>", html)
    assert len(captions) == html.count("<svg")
    assert all(shows and says for shows, says in captions)


def test_numbers_of_the_csv_are_those_of_the_record():
    record, trace = made(2, num_layers=4, num_experts=8)
    rows = list(csv.DictReader(io.StringIO(numbers(diagnosis_html(record, trace))["divergence.csv"])))
    assert [r["layer"] for r in rows] == ["0", "1", "2", "3"]
    found = np.array([[float(r[k]) for r in rows] for k in ("value", "low", "high")])
    routing = record["routing"]
    expected = [routing["divergence"]["de"], *routing["divergence_interval"]["de"]]
    assert found == pytest.approx(np.array(expected), rel=1e-5)


def test_every_language_is_named(page):
    number, html = page
    text = Page(html).text
    assert all(TABLE[g][0] in text for g in TAGS[number])


def test_who_was_trained_on_is_said_only_where_it_is_known():
    record, trace = made(14, num_layers=3, num_experts=4)
    assert "dashed: not trained on" in diagnosis_html(record, trace)
    other = {**record, "config": record["config"] | {"model": "somebody/else"}}
    html = diagnosis_html(other, trace)
    assert "not trained on" not in html and "italic" not in html


@pytest.mark.parametrize("part", ["routing", "tokenizer", "tasks", "corpus", "config", "created"])
def test_parts_of_the_record_may_be_absent(part):
    record, trace = made(2, num_layers=2, num_experts=4)
    html = diagnosis_html({k: v for k, v in record.items() if k != part}, trace)
    assert "None" not in Page(html).text


@pytest.mark.parametrize("first", range(4))
def test_parts_of_the_routing_may_be_absent_or_none(first):
    record, trace = made(2, num_layers=2, num_experts=4)
    gone = [key for key in record["routing"] if key != "layer_ids"][first::4]
    absent = {k: v for k, v in record["routing"].items() if k not in gone}
    html = diagnosis_html({**record, "routing": absent}, trace)
    assert html == diagnosis_html({**record, "routing": absent | dict.fromkeys(gone)}, trace)
    assert "None" not in Page(html).text


def test_a_bare_trace_makes_a_page():
    trace = make_trace(("en", "ca"), num_layers=1, num_experts=4)
    page = Page(diagnosis_html({}, trace))
    assert page.opened.count("svg") == 1
    assert "the same text" not in page.text and "have different text" in page.text


def test_files_beside_the_page(tmp_path):
    record, trace = made(2, num_layers=3, num_experts=4)
    write_diagnosis(record, trace, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html == diagnosis_html(record, trace)
    for name, text in numbers(html).items():
        assert (tmp_path / "figures" / name).read_text(encoding="utf-8") == text
        svg = (tmp_path / "figures" / name).with_suffix(".svg").read_text(encoding="utf-8")
        assert svg.startswith("<svg") and "var(--" not in svg
