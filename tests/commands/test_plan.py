"""`dragoman plan`, and plans in `show` and `compare`, on the trace of mini-moe that ships with the benchmarks."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import dragoman
from dragoman import cli, modeling
from dragoman.commands import compare, plan, show
from dragoman.errors import ConfigError, DataError, ModelError, UserError
from dragoman.modeling import model_path
from dragoman.routing.plan import ExpertPlan
from dragoman.routing.planners import NUMBER_PLANNERS, PLANNERS
from dragoman.routing.trace import RoutingTrace

TRACE = Path(__file__).resolve().parents[2] / "benchmarks" / "base" / "mini-moe-en-trace.npz"
"""Of a version that did not note the model's size."""
BUDGETS = ("ssft", "seft", "esft", "rise", "activation")


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """The same trace with the size of its model."""
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    plan.with_sizes(RoutingTrace.load(TRACE), "mini-moe").save(path)
    return path


@pytest.fixture
def made(tmp_path):
    numbers = itertools.count()

    def make(trace, planner, **settings):
        return dragoman.plan(trace, planner=planner, out=tmp_path / f"plan-{next(numbers)}.json", **settings)

    return make


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_of_each_planner(sized, made, name):
    found = made(sized, name, target="ca", budget="2.5%")
    assert 0.015 < found.trained_share <= 0.025
    assert found.settings["budget"] == 0.025 and found.why[-1].startswith("budget 2.5%: ")
    assert found.planner == name and found.target == "ca"
    more = made(sized, name, target="ca", budget="0.05")
    assert found.size <= more.size and more.trained_share <= 0.05
    if name != "rise":
        assert all(set(ids) <= set(more.experts()[layer]) for layer, ids in found.experts().items())


@pytest.mark.parametrize("name", BUDGETS)
def test_each_planner_by_its_defaults(tmp_path, made, name):
    """On an old trace, which loads as it always did."""
    found = made(TRACE, name, target="ca")
    assert found.size and found.trained_share is None
    assert {e.role for planned in found.layers.values() for e in planned} <= {"language", "shared", "used"}
    control = made(TRACE, "random", like=tmp_path / "plan-0.json")
    assert control.size == found.size and control.layers.keys() == found.layers.keys()


def test_the_model_gives_the_size(made):
    found = made(TRACE, "seft", target="ca", budget="1%", model="mini-moe")
    assert found.sizes.total == 13_031_616 and found.trained_share <= 0.01


def test_a_model_that_does_not_help(sized, made, tmp_path):
    with pytest.raises(ConfigError, match="the trace knows the size of its model, so model would have no effect"):
        made(sized, "all", model="mini-moe")
    config = json.loads((Path(model_path("mini-moe")) / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(DataError, match="is not the model of the trace"):
        made(TRACE, "all", model=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("planner", "settings", "expected"),
    [
        ("ssst", {}, f"there is no planner 'ssst'; planners are {', '.join((*PLANNERS, *NUMBER_PLANNERS))}"),
        ("ssft", {"target": "ca", "new": ("ca",), "corpus": "help"}, "corpus, new would have no effect on the planner"),
        ("random", {"segments": 3}, "segments would have no effect on the planner random"),
        ("seft", {"target": "ca", "shared": 2}, "shared would have no effect on the planner seft"),
        ("all", {"budget": "2%"}, "budget would have no effect on the planner all"),
        ("esft", {"target": "ca", "parent": "es"}, "parent would have no effect on the planner esft"),
        ("esft", {"target": "ca", "dtype": "bfloat16"}, "dtype would have no effect on the planner esft"),
        ("all", {"device": "cpu"}, "device would have no effect on the planner all"),
        ("esft", {}, "the planner esft needs the new language: --target, one of en, de"),
        ("esft", {"target": "ca", "budget": "much"}, "the budget is 'much', but it is a share of the parameters"),
        ("esft", {"target": "ca", "budget": "2"}, "the budget is 2, but it is a share of parameters, above 0 up to 1"),
        ("esft", {"target": "ca", "budget": "2%", "p": 0.2}, "both budget and p are given"),
        ("esft", {"target": "ca", "budget": "0.01%"}, "nothing fits a budget of 0.01% of 13,031,616 parameters"),
        ("rise", {"target": "xx"}, "the trace holds no target 'xx'"),
        ("random", {}, "copies layers and numbers from another plan"),
    ],
)
def test_settings_that_do_not_work(sized, made, planner, settings, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        made(sized, planner, **settings)


LAYER_MOE = {"new": ("ca",), "known": ("en",), "experts": 16}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"new": ()}, "the planner layer_moe needs --new, which it has no defaults for"),
        ({"new": (), "known": (), "experts": None}, "the planner layer_moe needs --new, --known, --experts"),
        ({"known": ("en", "ca")}, "compares new languages with known ones: ca is named more than once"),
        ({"target": "ca", "budget": "2%"}, "budget, target would have no effect on the planner layer_moe"),
        ({"model": "mini-dense", "layers": (1,)}, "layers, model would have no effect on the planner layer_moe"),
        ({"known": ("en", "xx"), "new": ("yy",)}, "no column yy, xx in corpus help"),
        ({"experts": 7}, "a budget of 7 experts leaves none for some of 8 layers; give more"),
        ({"segments": 0}, "segments is 0, but it has to be 1 or more"),
        ({"corpus": "nowhere.tsv"}, "nowhere.tsv"),
    ],
)
def test_settings_of_layer_moe_that_do_not_work(made, tmp_path, settings, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        made("mini-dense", "layer_moe", **LAYER_MOE | settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mini-moe", "OlmoeForCausalLM has experts already"),
        (TRACE, "is not a model folder: no config.json in it"),
        ("./nowhere", "'./nowhere' is not a model folder"),
    ],
)
def test_layer_moe_starts_from_a_dense_model(made, model, expected):
    with pytest.raises(ModelError, match=re.escape(expected)):
        made(model, "layer_moe", **LAYER_MOE)


def test_a_plan_of_numbers_is_no_plan_of_experts(made, tmp_path):
    found = made("mini-dense", "layer_moe", **LAYER_MOE, segments=2)
    assert sum(found.experts.values()) in range(16, 24) and found.settings["corpus"] == "help"
    with pytest.raises(DataError, match=r"the format is 'dragoman-numbers/1', not 'dragoman-plan/1'"):
        ExpertPlan.load(tmp_path / "plan-0.json")
    with pytest.raises(ConfigError, match=r"plan-0.json exists; choose another file"):
        dragoman.plan("mini-dense", planner="layer_moe", **LAYER_MOE, out=tmp_path / "plan-0.json")


def test_a_dense_model_is_opened_as_asked(made, monkeypatch):
    seen, original = [], modeling.open_both

    def open_both(name, **settings):
        seen.append(settings)
        return original(name, **settings)

    monkeypatch.setattr(modeling, "open_both", open_both)
    half = made("mini-dense", "layer_moe", **LAYER_MOE, segments=2, dtype="bfloat16", device="cpu")
    plain = made("mini-dense", "layer_moe", **LAYER_MOE, segments=2)
    assert seen == [{"dtype": "bfloat16", "device": "cpu"}, {"dtype": "float32", "device": None}]
    assert half.settings["dtype"] == "bfloat16" and "dtype" not in plain.settings
    with pytest.raises(ConfigError, match="dtype is float32, bfloat16, auto, not 'half'"):
        made("mini-dense", "layer_moe", **LAYER_MOE, dtype="half")


def test_languages_that_are_known_by_default_are_told(made, tmp_path):
    """Of any model but the built-in one, whose other languages are rightly unknown."""
    trace = RoutingTrace.load(TRACE).select(["en", "zh", "ja", "tr", "ca"])
    trace.save(tmp_path / "other.npz")
    replace(trace, about=trace.about | {"model": "mini-moe"}).save(tmp_path / "own.npz")
    trace.select(["en", "zh", "ca"]).save(tmp_path / "whole.npz")
    said = (
        "known languages by default: those that mini-moe knows (en, zh); the trace also has ja, tr: name yours with "
        "--known"
    )
    for planner in ("ssft", "rise"):
        assert made(tmp_path / "other.npz", planner, target="ca").why[0] == said
        named = made(tmp_path / "other.npz", planner, target="ca", known=("en", "ja"))
        silent = [made(tmp_path / name, planner, target="ca") for name in ("own.npz", "whole.npz")]
        assert not [reason for found in (named, *silent) for reason in found.why if "by default" in reason]
        assert silent[0].settings["known"] == ["en", "zh"]
    trace.select(["en", "ja", "ca"]).save(tmp_path / "few.npz")
    with pytest.raises(ConfigError, match=r"the trace has en, ja, ca; say which of them the model knows \(--known\)"):
        made(tmp_path / "few.npz", "rise", target="ca")
    assert made(tmp_path / "few.npz", "rise", target="ca", known="en").size
    trace.select(["en", "ca"]).save(tmp_path / "two.npz")
    assert made(tmp_path / "two.npz", "rise", target="ca").settings["known"] == ["en"], "there is no other"


def test_a_budget_needs_the_size(made):
    with pytest.raises(ConfigError, match=r"does not say how large its model is.*`dragoman plan --model`"):
        made(TRACE, "esft", target="ca", budget="2%")


def test_flags(tmp_path, sized, capsys):
    """Budgets in percent, routers on and off, several plans to be disjoint from."""
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    rule = ["--planner", "seft", "--target", "ca", "--budget", "2%", "--no-train-routers"]
    cli.run(["plan", str(sized), *rule, "--out", str(first)])
    assert "stay frozen" in capsys.readouterr().out
    control = ["plan", str(sized), "--planner", "random", "--like", str(first)]
    cli.run([*control, "--disjoint", str(first), "--seed", "1", "--out", str(second)])
    cli.run([*control, "--disjoint", str(first), str(second), "--out", str(tmp_path / "c.json")])
    plans = [ExpertPlan.load(tmp_path / f"{name}.json") for name in "abc"]
    taken = [(layer, i) for p in plans for layer, ids in p.experts().items() for i in ids]
    assert len(set(taken)) == len(taken) == 3 * plans[0].size
    assert not any(p.train_routers for p in plans)


def test_plans_are_shown_and_compared(tmp_path, sized, capsys):
    for name, budget in (("a", "1%"), ("b", "3%")):
        dragoman.plan(sized, planner="activation", target="ca", budget=budget, out=tmp_path / f"{name}.json")
    show.show(tmp_path / "a.json")
    assert "Plan activation for ca: 3 of 256 experts (1.2%)" in capsys.readouterr().out
    record = dragoman.compare(tmp_path / "a.json", tmp_path / "b.json", out=tmp_path / "out")
    compare.show(record)
    printed = capsys.readouterr().out
    assert "activation, 3 experts (1.2%), 0.85% of the parameters train" in printed
    assert "Jaccard 0.300 over all planned experts" in printed, "3 of 10"
    assert "budget: 0.01 | 0.03" in printed and "target" not in printed, "what is equal is not shown"
    show.show(tmp_path / "out" / "record.json")
    assert capsys.readouterr().out == printed, "the record alone gives the same"
    with pytest.raises(DataError, match=r"two of a kind are compared, but .*a.json is a plan and .* is a trace"):
        dragoman.compare(tmp_path / "a.json", sized, out=tmp_path / "out2")
