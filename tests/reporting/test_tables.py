"""Tables of a small record, in every form."""

import csv
import io

import pytest
from lxml import etree, html

from dragoman.reporting.tables import COLUMNS, FORMS, render, tables_of, write_table

RECORD = {
    "metrics": {
        "chrf": {"title": "chrF2", "higher_is_better": True},
        "length_ratio": {"title": "length ratio", "higher_is_better": None},
    },
    "signatures": {"chrf": "nrefs:1|case:mixed", "length_ratio": "unit:character"},
    "chrf": {"a_b": {"en-de": 31.26, "de-en": 20.0}, "copy": {"en-de": 10.04, "de-en": 10.0}, "x": {"en-de": 1.0}},
    "chrf_interval": {
        "a_b": {"en-de": [30.0, 32.04], "de-en": [19.0, 21.0]},
        "copy": {"en-de": [9.0, 11.0], "de-en": [9.0, 11.0]},
        "x": {"en-de": [0.5, 1.5]},
    },
    "length_ratio": {"a_b": {"en-de": 1.0472}},
    "length_ratio_interval": {"a_b": {"en-de": [1.0, 1.1]}},
    "means": {"chrf": {"over": ["en-de", "de-en"], "of": {"a_b": 25.63, "copy": 10.02, "x": 1.0}}, "length_ratio": {}},
    "comparisons": [
        {
            "metric": "chrf",
            "language": "en-de",
            "a": "a_b",
            "b": "copy",
            "difference": 21.22,
            "low": 20.0,
            "high": 22.0,
            "p_value": 0.0005,
            "p_holm": 0.001,
            "verdict": "better",
            "detectable": 1.43,
            "unit": "document",
            "units": 31,
            "beyond_noise": True,
        }
    ],
    "warnings": ["50 % & more"],
    "left_out": {"comet": "needs folder"},
}


def test_tables_by_hand():
    values, differences, ratio = tables_of(RECORD)
    assert values.title == "chrF2, higher is better"
    assert values.head == ["", "a_b", "copy", "x"]
    assert values.rows[0] == ["en-de", "31.3 [30.0, 32.0]", "10.0 [9.0, 11.0]", "1.0 [0.5, 1.5]"]
    assert values.rows[1][-1] == "–"
    assert values.rows[2] == ["mean of 2", "25.6", "10.0", "1.0"]
    assert "nrefs:1|case:mixed" in values.note
    cells = ["en-de", "a_b - copy", "+21.2 [+20.0, +22.0]", "0.0005", "0.0010", "better", "1.4", "31 documents"]
    assert differences.rows == [cells]
    assert ratio.rows == [["en-de", "1.047 [1.000, 1.100]"]]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_every_value_and_writes_by_suffix(form, tmp_path):
    content = render(RECORD, form)
    for part in ("31.2", "20.0") if form == "csv" else ("31.3", "[19.0, 21.0]", "25.6", "1.047"):
        assert part in content
    write_table(RECORD, tmp_path / f"t.{form}")
    assert (tmp_path / f"t.{form}").read_text(encoding="utf-8") == content


def test_text_is_aligned():
    lines = render(RECORD, "txt").splitlines()
    head = next(line for line in lines if "copy" in line)
    row = next(line for line in lines if line.startswith("en-de"))
    assert head.index("copy") == row.index("10.0 [")
    assert "Mind: 50 % & more." in lines
    assert "Left out: comet: needs folder." in lines


def test_markdown_rows_have_one_width():
    table = [line for line in render(RECORD, "md").splitlines() if line.startswith("|")][:5]
    assert [line.count("|") for line in table] == [5] * 5
    assert table[1] == "| --- | --- | --- | --- |"


def test_latex_escapes_and_is_balanced():
    tex = render(RECORD, "tex")
    assert r"a\_b" in tex
    assert "a_b" not in tex
    assert r"95 \% intervals" in tex
    assert tex.count(r"\begin{") == tex.count(r"\end{") == 6
    rows = [line for line in tex.splitlines() if line.startswith("en-de")]
    assert all(line.endswith(r" \\") for line in rows)
    assert rows[0].count(" & ") == 3


def test_html_is_well_formed_and_escapes():
    page = render(RECORD | {"warnings": ["a < b"]}, "html")
    tree = html.document_fromstring(page)
    assert [len(r.findall("td")) for r in tree.findall(".//tbody/tr")] == [4, 4, 4, 8, 2]
    assert "a &lt; b" in page
    assert not tree.xpath("//script | //link | //img")
    assert etree.tostring(tree)


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(render(RECORD, "csv"))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 5 + 1 + 1
    assert (rows[0]["system"], rows[0]["label"], float(rows[0]["value"])) == ("a_b", "en-de", 31.26)
    difference = rows[-1]
    assert (difference["against"], float(difference["value"]), difference["verdict"]) == ("copy", 21.22, "better")
    assert rows[0]["against"] == ""


def test_what_lies_between_0_and_1_has_three_decimals():
    one = {"a": {"en-de": 0.8432}}, {"a": {"en-de": [0.8394, 0.8468]}}
    record = RECORD | {"metrics": {n: {"title": n, "higher_is_better": True} for n in ("comet", "embedding")}}
    for name in record["metrics"]:
        record |= {name: one[0], f"{name}_interval": one[1]}
        record |= {"signatures": RECORD["signatures"] | record["signatures"] | {name: "k:v"}}
        record |= {"means": record["means"] | {name: {}}}
    for form in ("txt", "md", "tex", "html"):
        assert render(record, form).count("0.843 [0.839, 0.847]") == 2


def test_a_rate_tells_of_how_many_and_is_none_of_none():
    judged = {"chrf_judged": {"a_b": {"en-de": 7, "de-en": 300}, "copy": {"en-de": 0, "de-en": 0}, "x": {"en-de": 9}}}
    values = {"chrf": RECORD["chrf"] | {"copy": {}}}
    table = tables_of(RECORD | judged | values | {"means": {"chrf": {}, "length_ratio": {}}})[0]
    assert table.rows[0][1:] == ["31.3 [30.0, 32.0] (n 7)", "– (n 0)", "1.0 [0.5, 1.5] (n 9)"]
    assert table.rows[1][1:] == ["20.0 [19.0, 21.0] (n 300)", "– (n 0)", "–"]
    assert "n: segments judged" in table.note
    rows = list(csv.DictReader(io.StringIO(render(RECORD | judged | values, "csv"))))
    assert [row["judged"] for row in rows[:3]] == ["7", "300", "9"]
    none = [(row["system"], row["label"], row["value"]) for row in rows if row["judged"] == "0"]
    assert none == [("copy", "en-de", ""), ("copy", "de-en", "")]


def test_a_system_with_other_settings_is_told():
    other = RECORD | {"signatures_of": {"a_b": {"chrf": "nrefs:1|case:mixed"}, "x": {"chrf": "nrefs:1|case:lower"}}}
    assert tables_of(other)[0].note == "95 % intervals; nrefs:1|case:mixed; x: nrefs:1|case:lower"
    rows = list(csv.DictReader(io.StringIO(render(other, "csv"))))
    assert {r["system"]: r["signature"] for r in rows if not r["against"]}["x"] == "nrefs:1|case:lower"
    other["signatures_of"]["copy"] = {"chrf": "nrefs:1|case:lower"}
    *_, difference = csv.DictReader(io.StringIO(render(other, "csv")))
    assert difference["signature"] == "nrefs:1|case:mixed against nrefs:1|case:lower"
