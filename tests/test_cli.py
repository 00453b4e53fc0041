"""The command line: config files, flags, and errors that end in one sentence."""

import subprocess
import sys

import pytest

from dragoman import cli
from dragoman.commands import plan, show
from dragoman.errors import DataError


@pytest.fixture
def seen(monkeypatch):
    """Configs that `dragoman plan` is run with."""
    configs = []
    monkeypatch.setattr(plan, "run", lambda config: configs.append(config))
    monkeypatch.setattr(plan, "show", lambda result: None)
    return configs


def run(*words):
    cli.run([str(w) for w in words])


def failure(capsys, *words):
    """What the program prints to standard error, and that it exits with 2."""
    with pytest.raises(SystemExit) as e:
        cli.main([str(w) for w in words])
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") == 1, "one sentence"
    return err


def test_flags_win_over_the_config_file_in_any_order(seen, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("alpha: 0.5\ntarget: ca\nlayers: [1, 2]\n")
    run("plan", "t.npz", "--alpha", "0.1", "--config", file)
    run("plan", "--config", file, "--alpha", "0.1", "t.npz")
    run("plan", f"--config={file}", "t.npz", "--layers", "7")
    assert [c.alpha for c in seen] == [0.1, 0.1, 0.5]
    assert [c.target for c in seen] == ["ca"] * 3
    assert [c.layers for c in seen] == [(1, 2), (1, 2), (7,)]


def test_the_main_argument_can_stand_in_the_config_file(seen, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("trace: t.npz\nknown: [en, de]\n")
    run("plan", "--config", file)
    assert str(seen[0].trace) == "t.npz"
    assert seen[0].known == ("en", "de")


def test_nested_settings_by_file_and_flag(monkeypatch, tmp_path):
    from dragoman.commands import tour

    configs = []
    monkeypatch.setattr(tour, "run", lambda config: configs.append(config))
    monkeypatch.setattr(tour, "show", lambda result: None)
    file = tmp_path / "tour.yaml"
    file.write_text("text:\n  segments: 7\n  epochs: 2\nlearning_rates: {full: 0.5}\n")
    run("tour", "--config", file, "--text.epochs", "3")
    assert (configs[0].text.segments, configs[0].text.epochs) == (7, 3)
    assert configs[0].learning_rates.full == 0.5


def test_a_key_may_be_called_like_a_command(monkeypatch, tmp_path):
    from dragoman.commands import adapt

    configs = []
    monkeypatch.setattr(adapt, "run", lambda config: configs.append(config))
    monkeypatch.setattr(adapt, "show", lambda result: None)
    (tmp_path / "adapt.yaml").write_text("plan: p.json\ntarget: ca\n")
    run("adapt", "mini-moe", "--config", tmp_path / "adapt.yaml")
    assert str(configs[0].plan) == "p.json"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["plan", "t.npz", "--alhpa", "1"], ["--alhpa", "--alpha"]),
        (["paln", "t.npz"], ["paln", "plan"]),
        (["plan", "t.npz", "--alpha", "much"], ["alpha", "much"]),
        (["plan"], ["--trace"]),
        (["plan", "a.npz", "b.npz"], ["b.npz"]),
        (["plan", "t.npz", "--config", "/nowhere.yaml"], ["/nowhere.yaml does not exist"]),
        (["plan", "t.npz", "--config"], ["--config takes one YAML file"]),
        (["plan", "/nowhere.npz", "--target", "ca"], ["/nowhere.npz", "dragoman diagnose"]),
        (["diagnose", "./nowhere"], ["./nowhere", "no config.json"]),
        (["data", "fetch", "hlep"], ["hlep", "help"]),
        (["show", "nothing.json"], ["nothing.json is not a file"]),
    ],
)
def test_mistakes_end_in_one_sentence(capsys, words, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    err = failure(capsys, *words)
    assert all(part in err for part in parts), err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("alhpa: 1\n", ["alhpa", "did you mean", "alpha"]),
        ("- 1\n- 2\n", ["key: value", "list"]),
        ("a: [1\n", ["cannot be read as YAML"]),
        ("alpha: much\n", ["alpha", "much"]),
    ],
)
def test_mistakes_in_the_config_file_are_told(capsys, tmp_path, text, parts):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    err = failure(capsys, "plan", "t.npz", "--config", file)
    assert all(part.lower() in err.lower() for part in parts), err


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="neither a plan nor a record"):
        show.show(show.run(show.Config(tmp_path / "x.json")))


def test_version_and_help_work_as_a_program():
    done = subprocess.run([sys.executable, "-m", "dragoman", "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().count(".") >= 2
    done = subprocess.run([sys.executable, "-m", "dragoman", "--help"], capture_output=True, text=True, timeout=60)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert done.returncode == 0


def test_help_does_not_load_torch():
    code = "import sys\nfrom dragoman import cli\ncli.run(['tour', '--help'])\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--learning-rates.ssft" in done.stdout
