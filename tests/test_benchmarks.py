"""Benchmarks that go on where they were stopped: only with the settings that the results there were made with."""

import json
from pathlib import Path

import pytest

from dragoman.errors import ConfigError
from dragoman.record import write_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """Scripts import each other by the name of their file."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_a_run_goes_on_with_its_own_settings_alone(scripts, tmp_path):
    from going_on import require_settings

    settings = {"rates": (0.001, 0.003), "items": None}
    require_settings(tmp_path, settings)
    write_json(tmp_path / "a" / "record.json", {})
    require_settings(tmp_path, settings)
    with pytest.raises(ConfigError, match=r"has results of rates \[0.001, 0.003\], not \[0.001\]; items None, not 64"):
        require_settings(tmp_path, {"rates": (0.001,), "items": 64})
    require_settings(tmp_path, settings)  # a refusal leaves what was there
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ConfigError, match=r"has results, and no settings.json says of what"):
        require_settings(tmp_path, settings)


def test_alignment_after_a_trial_is_no_trial(scripts, tmp_path):
    """What a trial on 64 items left is not published as the result of all items."""
    import alignment_run

    trial = {"items": 64, "epochs": 1, "rates": (0.001,)}
    for name in ("tune/categories", "categories", "diagnosis", *alignment_run.METHODS, "quality", "steering"):
        write_json(tmp_path / "work" / name / "record.json", {"of": "a trial"})
    with pytest.raises(ConfigError, match=r"no settings.json says of what"):
        alignment_run.alignment_run(work=tmp_path / "work", records=tmp_path / "records")
    given = {"model": "mini-moe", "model_sha256": alignment_run.model_checksum("mini-moe"), "task": "next"}
    given |= {"target": "ca", "tune": 400}
    (tmp_path / "work" / "settings.json").write_text(json.dumps(given | trial))
    with pytest.raises(ConfigError, match=r"items 64, not None; epochs 1, not 3; rates \[0.001\], not \[3e-05"):
        alignment_run.alignment_run(work=tmp_path / "work", records=tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_alignment_does_a_step_again_that_was_interrupted(scripts, tmp_path, monkeypatch):
    """By hand: the folder of a rate, 0.001, has a dot in its name, and no record yet."""
    import alignment_run

    ran: list[list[str]] = []
    monkeypatch.setattr(alignment_run.cli, "run", ran.append)
    for out in (tmp_path / "ra_moe-0.001", tmp_path / "plain"):
        (out / "model").mkdir(parents=True)
        alignment_run.step(out, "align", "mini-moe")
        assert not out.exists(), "what was left is removed"
        write_json(out / "record.json", {})
        alignment_run.step(out, "align", "mini-moe")
    assert len(ran) == 2


def test_mix_run_keeps_to_its_plan_and_to_the_rates_of_it(scripts, tmp_path):
    import mix_run

    work, plan = tmp_path / "work", mix_run.Plan(text=8, pairs=8, review=2, short=2, rates=(0.001,))
    write_json(work / "settings.json", {"base": "mini-dense", "text": 8})
    write_json(work / "seed-0" / "mix" / "record.json", {})
    with pytest.raises(ConfigError, match=r"text 8, not 200; "):
        mix_run.run_all("mini-dense", work=work, out=tmp_path / "out")
    measured = {"0.003": 1.5, "0.001": 1.0, "0.0003": 2.0}
    write_json(tmp_path / "rates" / "rates.json", measured)
    (stage, _) = mix_run.arms(plan, 10)["full"]
    assert mix_run.best_rate(stage, Path("none"), tmp_path / "rates", 0, plan) == measured, "nothing is trained again"


def test_mix_run_balances_the_stages_that_have_a_balance(scripts):
    import mix_run

    plan = mix_run.Plan(text=8, pairs=8, review=2, short=2, rates=(0.001,))
    every = [stage for stages in mix_run.arms(plan, 10).values() for stage in stages]
    asked = {s.label: mix_run.settings(s, Path("m"), Path("o"), 0, 0.1, s.steps).training.balance for s in every}
    assert {label for label, weight in asked.items() if weight} == {
        "mix_moe, text", "mix_moe, pairs", "moe_lpr, text", "moe_lpr, pairs"
    }  # fmt: skip


def test_mix_run_writes_what_is_there_before_the_base_is_scored(scripts):
    """The first arm is done before the one that scores the base."""
    from mix_run import MEANS, table

    interval = {"value": 1.5, "low": 1.0, "high": 2.0}
    scores = {n: {"en-de": 1.5} for n in ("bits_per_byte", "chrf")}
    scores |= {f"{n}_interval": {"en-de": [1.0, 2.0]} for n in ("bits_per_byte", "chrf")}
    first = scores | {"means": {name: {"value": interval} for name in MEANS}}
    early = table({0: {"mix_moe, text": first}})
    assert early.count("| mix_moe, text |") == 3, "its means, its languages, its directions"
    over = {"difference": -0.25, "low": -0.5, "high": 0.0}
    later = scores | {"means": {name: {"value": interval, "over base": over} for name in MEANS}}
    whole = table({0: {"base": first, "mix_moe, text": later}})
    assert whole.count("| mix_moe, text |") == 4 and "-0.250 [-0.500, +0.000]" in whole


def test_mix_run_goes_beyond_a_grid_whose_best_rate_is_at_its_end(scripts):
    from mix_run import wanted_rates

    grid = (3e-4, 1e-3, 3e-3)
    assert wanted_rates(grid, {1e-3: 1.0}) == [3e-4, 3e-3]
    assert wanted_rates(grid, {3e-4: 2.0, 1e-3: 1.0, 3e-3: 1.5}) == []
    assert wanted_rates(grid, {3e-4: 2.0, 1e-3: 1.0, 3e-3: 0.5}) == [0.009]
    assert wanted_rates(grid, {3e-4: 2.0, 1e-3: 1.0, 3e-3: 0.5, 9e-3: 0.4}) == [0.03]
    assert wanted_rates(grid, {3e-4: 0.5, 1e-3: 1.0, 3e-3: 1.5}) == [9e-5]
    assert wanted_rates((1e-3,), {1e-3: 1.0}) == [], "one rate has no step"


def test_text_read_is_counted_without_filler(monkeypatch):
    """Stated shares of filler by hand; without them from the choices of the last logged updates."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "experiments")
    from mixing import text_read

    lines = ["mix convert x --out {out}/mix", "mix train x --out {out}/one --stage 1", "mix train x --out {out}/two"]
    log = {"tokens": 600, "steps": 30}
    stated = {name: {"log": log, "filler_share": share} for name, share in (("one", 0.0), ("two", 0.25))}
    assert text_read({"lines": lines, "records": stated}) == 600 + 450
    # steps 21 to 30 of 20 tokens each, two choices a token: 300 of 400 slots are text
    counted = {"log": log | {"balance": [{"step": 20, "slots": [1]}, {"step": 30, "slots": [300]}]}}
    assert text_read({"lines": lines, "records": stated | {"two": counted}}) == 600 + 450
    assert text_read({"lines": lines, "records": stated | {"two": {"log": log | {"balance": []}}}}) is None
