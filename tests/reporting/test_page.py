"""The report: a made-up record and trace with structure, its page and what its sentences say."""

import copy
import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest

from dragoman.reporting import findings, report_html, summary_text, write_report
from dragoman.routing.stats import divergence_from, entropy, language_specialisation, slot_share
from dragoman.routing.trace import RoutingTrace

NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "cs": "Czech", "ru": "Russian", "zh": "Chinese",
    "ca": "Catalan", "pt": "Portuguese", "nl": "Dutch", "sl": "Slovenian", "el": "Greek", "ja": "Japanese",
    "tr": "Turkish",
}  # fmt: skip
KNOWN = ["en", "de", "fr", "es", "cs", "ru", "zh"]
NEAR = {
    "en": 0, "de": 1, "nl": 1, "fr": 2, "es": 2, "ca": 2, "pt": 2, "cs": 3, "sl": 3, "ru": 4, "el": 4, "zh": 5, "ja": 5,
    "tr": 6,
}  # fmt: skip
BITS = {"base": 2.41, "ssft": 1.87, "random": 1.88, "last_layers": 1.79, "full": 1.62}
CHRF = {"base": 11.2, "ssft": 27.9, "random": 27.7, "last_layers": 28.1, "full": 30.4, "copy": 24.3}
SHARE = {"base": 0.0, "ssft": 0.021, "random": 0.021, "last_layers": 0.19, "full": 1.0}
DRIFT = {"ssft": 0.004, "random": 0.006, "last_layers": 0.021, "full": 0.14}
WHY = [
    "parent es: of the known languages the one routed most like ca",
    "layer 6: language experts of es: 2, by a gap of 0.02 of slots to the next known language; shared experts: 2",
    "layer 7: language experts of es: 3, by a gap of 0.02 of slots to the next known language; shared experts: 2",
]
PLANS = {
    "ssft": {"planner": "ssft", "experts": 9, "layers": {"6": [1, 4, 9, 30], "7": [0, 3, 11, 12, 27]}, "why": WHY},
    "random": {"planner": "random", "experts": 9, "layers": {"6": [2, 7, 9, 18], "7": [3, 8, 15, 20, 31]}, "why": []},
    "last_layers": {"planner": "layers", "experts": 64, "layers": {"6": list(range(32)), "7": list(range(32))}},
}


def make_trace(tags=tuple(NAMES), num_layers=8, num_experts=32, seed=0):
    """Related languages choose related experts, most so in the first and last layers."""
    rng = np.random.default_rng(seed)
    common_LE = rng.dirichlet(np.full(num_experts, 4.0), num_layers)
    groups = [rng.dirichlet(np.full(num_experts, 0.4), num_layers) for _ in range(7)]
    own_L1 = (0.15 + 0.5 * np.linspace(-1, 1, num_layers) ** 2)[:, None]
    chosen = []
    for i, tag in enumerate(tags):
        noise_LE = rng.dirichlet(np.full(num_experts, 2.0), num_layers)
        special_LE = 0.8 * groups[NEAR.get(tag, i % 7)] + 0.2 * noise_LE
        chosen.append([rng.multinomial(40_000, p) for p in (1 - own_L1) * common_LE + own_L1 * special_LE])
    chosen_GLE = np.array(chosen)
    return RoutingTrace(
        languages=tuple(tags),
        layer_ids=tuple(range(num_layers)),
        num_experts=(num_experts,) * num_layers,
        top_k=(4,) * num_layers,
        chosen_GLE=chosen_GLE,
        gate_mass_GLE=chosen_GLE * 0.2,
        router_mass_GLE=chosen_GLE * 0.1,
        tokens_G=np.full(len(tags), 10_000),
        about={"model_sha256": "0" * 64},
    )


def routing_part(trace):
    divergence = {g: d_L.tolist() for g, d_L in divergence_from(trace).items()}
    entropy_GL = entropy(slot_share(trace.chosen_GLE))
    special_L = language_specialisation(trace.chosen_GLE)
    return {
        "layer_ids": list(trace.layer_ids),
        "divergence": divergence,
        "divergence_interval": {g: [[0.93 * d for d in d_L], [1.07 * d for d in d_L]] for g, d_L in divergence.items()},
        "placebo": [0.011] * len(trace.layer_ids),
        "entropy": {g: entropy_GL[i].tolist() for i, g in enumerate(trace.languages)},
        "specialisation": special_L.tolist(),
        "specialisation_interval": [(special_L * 0.95).tolist(), (special_L * 1.05).tolist()],
    }


def comparison(metric, a, b, difference, noise, p_holm):
    limits = {"low": difference - noise, "high": difference + noise}
    return {"metric": metric, "language": "ca", "a": a, "b": b, "difference": difference, "p_value": p_holm / 10,
            "p_holm": p_holm, **limits}  # fmt: skip


def compare_all(metric, values, noise):
    pairs = [(a, b, values[a] - values[b]) for a, b in combinations(values, 2)]
    return [comparison(metric, a, b, d, noise, 0.005 if abs(d) > noise else 0.8) for a, b, d in pairs]


def made_by(tags):
    """What the numbers rest on: model, corpus, machine, command."""
    segments = {"train": 8153, "dev": 300, "devtest": 300}
    return {
        "format": "dragoman-record/1", "created": "2026-07-01T10:00:00+00:00", "commit": "c374869aa001",
        "versions": {"python": "3.11.9", "dragoman": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"processor": "Example CPU @ 2.60GHz", "cores": 2, "memory_gb": 7.8, "system": "Linux x86_64"},
        "command": "tour", "config": {"target": "ca", "seed": 0, "steps": 300}, "seed": 0,
        "repeat": "dragoman tour --target ca --seed 0",
        "model": {
            "name": "mini-moe", "class": "OlmoeForCausalLM", "sha256": "ab" * 32, "total": 14_321_664,
            "parameters": {"routed experts": 9_437_184, "router": 65_536, "attention": 2_097_152},
            "moe_layers": 8, "num_experts": [32] * 8, "top_k": [4] * 8,
        },
        "corpus": {
            "name": "help", "licence": "MPL-2.0", "checksum": "cd" * 32,
            "languages": {g: {"name": NAMES.get(g, g), "known": g in KNOWN, "segments": segments} for g in tags},
        },
        "known": KNOWN, "target": "ca",
    }  # fmt: skip


def make_record(trace, bits=BITS, chrf=CHRF):
    rng = np.random.default_rng(1)
    tags = list(trace.languages)
    drifts = {s: {g: drift * rng.normal(1, 0.4) for g in KNOWN} for s, drift in DRIFT.items()}
    quality = {s: {g: 1.1 + 0.05 * i + drifts.get(s, {}).get(g, 0) for i, g in enumerate(tags)} for s in bits}
    quality = {s: values | {"ca": bits[s]} for s, values in quality.items()}
    return made_by(tags) | {
        "parent": {
            "chosen": "es", "by": "routing", "by_routing": {"es": 0.962, "fr": 0.951, "de": 0.9, "en": 0.88},
            "by_overlap": {"es": 0.31, "fr": 0.27, "en": 0.22, "de": 0.2}, "agree": True,
        },
        "routing": routing_part(trace), "plans": copy.deepcopy(PLANS),
        "signatures": {"bits_per_byte": "unit:utf-8-byte|context:512", "chrf": "nc:6|nw:0|space:no"},
        "bits_per_byte": quality,
        "bits_per_byte_interval": {s: {g: [v - 0.03, v + 0.03] for g, v in q.items()} for s, q in quality.items()},
        "chrf": {s: {"ca": v} for s, v in chrf.items()},
        "chrf_interval": {s: {"ca": [v - 0.8, v + 0.8]} for s, v in chrf.items()},
        "comparisons": compare_all("bits_per_byte", bits, 0.02) + compare_all("chrf", chrf, 0.9),
        "forgetting": {
            s: {g: {"difference": d, "low": d - 0.005, "high": d + 0.005} for g, d in by_language.items()}
            for s, by_language in drifts.items()
        },
        "trained_share": SHARE,
        "training": {
            s: {"learning_rate": 3e-4, "steps": 300, "tokens": 614_400, "seconds": 61.5, "losses": [3.0, 2.5, 2.2]}
            for s in DRIFT
        },
        "examples": [
            {"source": "Click the button to open the dialog.", "reference": "Feu clic al botó per a obrir el diàleg.",
             "outputs": {"base": "Haga clic en el botón.", "ssft": "Feu clic al botó per obrir el diàleg.",
                         "full": "Feu clic al botó per a obrir el diàleg."}},
            {"source": "The function returns 0 if A < B & C > D.", "reference": "La funció retorna 0 si A < B & C > D.",
             "outputs": {"base": "La función devuelve 0.", "ssft": "La funció retorna 0 si A < B."}},
        ],
        "step_seconds": {"diagnose": 41.2, "plan": 0.3, "adapt ssft": 61.5, "adapt full": 75.1, "evaluate": 118.0},
        "seconds": 431.7, "peak_memory_mb": 2310.4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trace():
    return make_trace()


@pytest.fixture
def record(trace):
    return make_record(trace)


class Page(HTMLParser):
    """Checks nesting; keeps what a reader sees, addresses, ids, and the tags opened."""

    VOID = ("meta", "br", "image", "use")

    def __init__(self, html):
        super().__init__()
        self.open, self.opened, self.addresses, self.ids, self.words = [], [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "poster")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def html(trace):
    return report_html(make_record(trace), trace)


def test_page_is_whole_and_fetches_nothing(html):
    page = Page(html)
    assert page.opened.count("svg") == 8
    assert "script" not in page.opened
    assert "link" not in page.opened
    assert all(a.startswith(("#", "data:image/png", "data:text/csv;charset=utf-8;base64,")) for a in page.addresses)
    bare = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert "http" not in bare
    assert "@import" not in bare
    assert len(page.ids) == len(set(page.ids)), "figures must not share ids"
    assert len(html.encode()) < 1_500_000


def test_page_names_every_language_system_and_fact(html):
    text = Page(html).text
    for word in (*NAMES.values(), *NAMES, *BITS, "copy of the source", "complete last layers"):
        assert word in text, word
    for fact in (
        "dragoman tour --target ca --seed 0", "MPL-2.0", "unit:utf-8-byte|context:512", "Example CPU", "14,321,664",
        "2,310 MB", "7 min 12 s", "torch 2.13.0", "8 layers, 32 experts each, 4 chosen per token",
    ):  # fmt: skip
        assert fact in text, fact
    assert "1.870 [1.840, 1.900]" in text, "value and interval of SSFT"
    assert "La función devuelve 0." in text
    assert "A < B & C > D" in text


def test_same_input_same_bytes_written_whole(tmp_path, trace, html):
    write_report(make_record(trace), trace, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_text_of_users_is_escaped(trace):
    record = make_record(trace)
    record["corpus"]["languages"]["ca"]["name"] = "<script>alert(1)</script>"
    record["examples"][0]["outputs"]["ssft"] = "<img src=x onerror=alert(1)>"
    record["config"]["out"] = "</code><b>"
    html = report_html(record, trace)
    page = Page(html)
    assert "script" not in page.opened
    assert "img" not in page.opened
    assert "b" not in page.opened
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize(
    "missing", [("routing", "plans", "examples"), ("chrf", "examples"), ("bits_per_byte", "target")]
)
def test_what_is_missing_is_left_out(missing):
    trace = make_trace(("en", "es", "ca"), num_layers=2, num_experts=4)
    record = {k: v for k, v in make_record(trace).items() if k not in missing}
    html = report_html(record, trace)
    Page(html)
    assert "None" not in html
    assert "nan" not in summary_text(record)


def test_every_optional_field_may_be_missing_from_the_sentences(record):
    for field in record:
        assert summary_text({k: v for k, v in record.items() if k != field}), field


def test_an_empty_record_makes_a_page_of_the_trace_alone():
    trace = make_trace(("en", "ca"), num_layers=1, num_experts=4)
    page = Page(report_html({}, trace))
    assert page.opened.count("svg") == 1
    assert page.opened.count("section") == 1
    assert summary_text({}).count("\n") == 0


def test_summary_is_a_table_and_the_headline(record):
    text = summary_text(record)
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("SSFT plan"))
    assert row.split()[2:] == ["2.1%", "1.870", "[1.840,", "1.900]", "27.9", "[27.1,", "28.7]", "+0.004"]
    assert "no evidence that choosing them by routing" in " ".join(text.split())


def test_arrays_of_a_run_and_lists_of_a_file_give_the_same_page(html, trace):
    record = make_record(trace)
    routing = record["routing"]
    for key in ("divergence", "entropy"):
        routing[key] = {g: np.array(v) for g, v in routing[key].items()}
    for key in ("placebo", "specialisation"):
        routing[key] = np.array(routing[key])
    routing["divergence_interval"] = {g: [np.array(x) for x in v] for g, v in routing["divergence_interval"].items()}
    routing["layer_ids"] = tuple(routing["layer_ids"])
    record["plans"]["ssft"]["layers"] = {int(k): tuple(v) for k, v in record["plans"]["ssft"]["layers"].items()}
    record["plans"]["random"]["layers"] = {int(k): tuple(v) for k, v in record["plans"]["random"]["layers"].items()}
    assert report_html(record, trace) == html


def test_who_was_trained_on_is_said_only_where_it_is_known(html, trace, record):
    """Of the built-in model, as in records of older versions; of others the user named what they know."""
    assert report_html({**record, "trained_on_known": True}, trace) == html
    told = ("7 languages", "Catalan, a language", "blue:", "dashed: not", "italic: not", "for the 6 other languages")
    trained = ("trained on 7 languages", "a language the model was not trained on", "blue: trained on")
    assert all(words in html for words in (*told, *trained))
    other = record | {"trained_on_known": False, "model": record["model"] | {"name": "somebody/else"}}
    page = report_html(other, trace)
    assert "trained on" not in page and "unseen" not in page
    for words in (
        "7 languages named as known", "a language not named as known", "blue: named as known; grey, dashed: not named",
        "italic: not named as known", "for the 6 other languages named as known",
    ):  # fmt: skip
        assert words in page, words
    assert "trained on" not in summary_text(other)


def test_text_that_is_not_parallel_is_told(html, trace, record):
    record["routing"]["sample"] = {"parallel": False}
    assert findings.OTHER_TEXT in Page(report_html(record, trace)).text
    assert findings.OTHER_TEXT not in Page(html).text
    record["routing"]["sample"] = {"parallel": True}
    assert report_html(record, trace) == html


def test_nothing_is_marked_where_documents_are_too_few_to_judge(html, trace, record):
    marked = '<td class="mark">'
    assert marked in html
    record["comparisons"] = [c | {"unit": "document", "units": 5} for c in record["comparisons"]]
    record["forgetting"] = {s: {g: c | {"units": 5} for g, c in by.items()} for s, by in record["forgetting"].items()}
    page = report_html(record, trace)
    text = Page(page).text
    assert marked not in page and "SSFT plan better" not in text and "improves" not in text
    assert "Paired bootstrap over 5 documents (too few to judge any difference), two-sided" in text
    assert "SSFT plan better" in Page(html).text
