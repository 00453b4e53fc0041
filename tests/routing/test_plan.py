import json

import pytest

from dragoman.errors import DataError
from dragoman.routing.plan import ExpertPlan, PlannedExpert, differences
from dragoman.routing.sizes import Sizes


def a_plan(**changes):
    fields = {
        "planner": "ssft",
        "layers": {
            6: (PlannedExpert(1, "language", 0.03125), PlannedExpert(5, "shared", 0.2)),
            7: (
                PlannedExpert(0, "shared", 0.25),
                PlannedExpert(2, "language", 0.02),
                PlannedExpert(3, "language", 0.5),
            ),
        },
        "num_experts": {5: 8, 6: 8, 7: 4},
        "target": "ca",
        "parent": "es",
        "trace_sha256": "0123456789abcdef",
        "settings": {"alpha": {"6": 0.02}, "known": ["en", "es"]},
        "why": ("parent es: naïve “reason”", "layer 6: one expert"),
    }
    return ExpertPlan(**{**fields, **changes})


def written(tmp_path, **changes):
    """A hand-made plan file with these top-level values."""
    plan = {
        "format": "dragoman-plan/1",
        "planner": "by hand",
        "num_experts": {"6": 8, "7": 4},
        "experts": [{"layer": 6, "expert": 1, "role": "language"}],
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({k: v for k, v in {**plan, **changes}.items() if v is not None}))
    return path


def message(path):
    with pytest.raises(DataError) as e:
        ExpertPlan.load(path)
    return str(e.value)


def test_experts_size_and_share():
    plan = a_plan()
    assert plan.experts() == {6: (1, 5), 7: (0, 2, 3)}
    assert (plan.size, plan.share) == (5, 5 / 20)


def test_a_saved_plan_loads_equal(tmp_path):
    for plan in (
        a_plan(),
        a_plan(train_routers=False, target=None, parent=None, settings={}, why=(), trace_sha256=None),
    ):
        plan.save(tmp_path / "plan.json")
        assert ExpertPlan.load(tmp_path / "plan.json") == plan


def test_the_file_has_one_expert_a_line(tmp_path):
    a_plan().save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if '"expert"' in line]
    assert lines[0] == '  {"layer": 6, "expert": 1, "role": "language", "statistic": 0.03125},'
    assert [json.loads(line.strip().rstrip(","))["expert"] for line in lines] == [1, 5, 0, 2, 3]
    assert "naïve “reason”" in text, "readable, not escaped"


def test_a_plan_by_hand_needs_little(tmp_path):
    plan = ExpertPlan.load(written(tmp_path))
    assert plan.experts() == {6: (1,)}
    assert plan.layers[6][0].statistic is None
    assert plan.train_routers


def test_all_faults_of_the_experts_are_listed_at_once(tmp_path):
    rows = [
        {"layer": 6, "expert": -1, "role": "language"},
        {"layer": 6, "expert": 3, "role": "shared"},
        {"layer": 7, "expert": 4, "role": "shared"},
        {"layer": 8, "expert": 0, "role": "experts"},
        {"layer": 7, "expert": 1, "role": "all", "statistics": 0.1},
        {"layer": 7, "expert": True, "role": "all", "statistic": "high"},
        17,
    ]
    said = message(written(tmp_path, experts=rows))
    assert "expert line 1: expert -1 of layer 6 is not in 0-7" in said
    assert "line 2" not in said
    assert "expert line 3: expert 4 of layer 7 is not in 0-3" in said
    assert "expert line 4: layer 8 is none of the MoE layers 6, 7, role 'experts' is none of language, shared" in said
    assert "expert line 5: unknown key 'statistics' (nearest: 'statistic')" in said
    assert "expert line 6: expert True of layer 7 is not in 0-3, statistic 'high' is neither a number nor null" in said
    assert "expert line 7: 17 is no JSON object" in said
    assert said.endswith("mend it or make one with `dragoman plan`")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "dragoman-plan/9"}, "the format is 'dragoman-plan/9', not 'dragoman-plan/1'"),
        ({"format": None}, "the format is None"),
        ({"experts": []}, "it plans no expert"),
        ({"experts": None, "planner": None}, "'planner' is missing; 'experts' is missing"),
        ({"tarjet": "ca"}, "unknown key 'tarjet' (nearest: 'target')"),
        ({"target": 3, "train_routers": "yes"}, "'target' is 3, not str or null; 'train_routers' is 'yes', not bool"),
        (
            {"num_experts": {"6": 0, "x": 4}},
            "layer 'x' of 'num_experts' is not a number; 'num_experts' of layer 6 is 0",
        ),
        (
            {"experts": [{"layer": 6, "expert": 1, "role": "all"}, {"layer": 6, "expert": 1, "role": "shared"}]},
            "layer 6 names expert 1 more than once",
        ),
    ],
)
def test_faults_are_said(tmp_path, changes, expected):
    assert expected in message(written(tmp_path, **changes))


def test_a_file_that_is_no_plan(tmp_path):
    path = tmp_path / "plan.json"
    assert "does not exist" in message(path)
    path.write_text("[1, 2]")
    assert "holds no JSON object" in message(path)
    path.write_text('{"format": ')
    assert "not readable JSON" in message(path)


def test_the_text_shows_every_expert_and_every_reason():
    text = a_plan().text()
    assert text.startswith(
        "Plan ssft for ca, parent es: 5 of 20 experts (25.0%) in 2 of 3 layers; their routers train."
    )
    assert "    6  language  1 (0.03125)\n    6  shared    5 (0.2)\n    7  language  3 (0.5), 2 (0.02)" in text
    assert "  - parent es: naïve “reason”" in text
    assert '  known: ["en", "es"]' in text
    assert "trace 0123456789ab." in text


def test_the_text_of_complete_layers_is_short():
    layers = {2: tuple(PlannedExpert(i, "all") for i in (0, 1, 2, 3, 5, 7))}
    plan = ExpertPlan(planner="layers", layers=layers, num_experts={2: 8}, train_routers=False)
    assert "    2  all       0-3, 5, 7" in plan.text()
    assert "their routers stay frozen" in plan.text()


def test_a_long_text_wraps():
    layers = {2: tuple(PlannedExpert(i, "language", i / 1000) for i in range(60))}
    text = ExpertPlan(planner="ssft", layers=layers, num_experts={2: 64}).text()
    assert max(map(len, text.splitlines())) <= 110
    assert not [line for line in text.splitlines() if line.strip().startswith("(0")], "a number leaves its expert"


def test_differences_by_hand():
    other = a_plan(layers={6: (PlannedExpert(1, "all"), PlannedExpert(2, "all"))})
    found = differences(a_plan(), other)
    assert found.only_first == {6: (5,), 7: (0, 2, 3)}
    assert found.both == {6: (1,), 7: ()}
    assert found.only_second == {6: (2,), 7: ()}
    assert found.jaccard == 1 / 6
    assert "    6  1 | 5 | 2\n    7  - | 0, 2-3 | -" in found.text()
    assert differences(other, other).jaccard == 1


def test_plans_of_different_models_are_not_compared():
    with pytest.raises(DataError, match="different models"):
        differences(a_plan(), a_plan(num_experts={6: 8, 7: 4}))


def test_the_trained_share_follows_the_experts(tmp_path):
    sizes = Sizes(1000, {5: 10, 6: 20, 7: 30}, {5: 1, 6: 2, 7: 3})
    plan = a_plan(sizes=sizes)
    assert plan.trained_parameters == 2 * 20 + 3 * 30 + 2 + 3
    assert plan.trained_share == 0.135
    assert a_plan(sizes=sizes, train_routers=False).trained_parameters == 130
    assert "routers train. Trains 135 of 1,000 parameters (13.50%)." in " ".join(plan.text().split())
    assert a_plan().trained_share is None and a_plan().trained_parameters is None
    plan.save(tmp_path / "plan.json")
    assert ExpertPlan.load(tmp_path / "plan.json") == plan
    raw = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert raw["parameters"]["trained"] == 135 and raw["parameters"]["share"] == 0.135
    del raw["experts"][0]
    (tmp_path / "edited.json").write_text(json.dumps(raw))
    assert ExpertPlan.load(tmp_path / "edited.json").trained_parameters == 115, "not what the file says of itself"


def test_sizes_by_hand_are_checked(tmp_path):
    said = message(written(tmp_path, parameters={"total": 0, "expert": {"6": 1}, "router": {"6": 1, "7": "x"}}))
    assert "'total' of 'parameters' is 0, not a number above 0" in said
    assert "'expert' of 'parameters' does not give a whole number for each layer" in said
    assert "'router' of 'parameters' does not give" in said


def test_thresholds_are_kept_and_shown(tmp_path):
    layers = {6: (PlannedExpert(1, "language", 0.5, 0.25), PlannedExpert(2, "language", 0.3, 0.25))}
    plan = a_plan(layers=layers)
    plan.save(tmp_path / "plan.json")
    assert ExpertPlan.load(tmp_path / "plan.json") == plan
    line = '{"layer": 6, "expert": 1, "role": "language", "statistic": 0.5, "threshold": 0.25}'
    assert line in (tmp_path / "plan.json").read_text(encoding="utf-8")
    assert "    6  language  from 0.25: 1 (0.5), 2 (0.3)" in plan.text()
