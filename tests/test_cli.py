"""The command line: config files, flags, and errors that end in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the manual"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_too_little_memory_is_one_sentence_with_ways_out(monkeypatch, capsys, error):
    monkeypatch.setattr(plan, "run", lambda config: (_ for _ in ()).throw(error))
    assert "there is not enough memory (" in (said := failure(capsys, "plan", "t.npz")) and "--micro-batch" in said


def test_other_faults_of_ours_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(plan, "run", lambda config: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["plan", "t.npz"])


def test_flags_win_over_the_config_file_in_any_order(seen, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("alpha: 0.5\ntarget: ca\nlayers: [1, 2]\n")
    run("plan", "t.npz", "--alpha", "0.1", "--config", file)
    run("plan", "--config", file, "--alpha", "0.1", "t.npz")
    run("plan", f"--config={file}", "t.npz", "--layers", "7")
    assert [c.alpha for c in seen] == [0.1, 0.1, 0.5]
    assert [c.target for c in seen] == ["ca"] * 3
    assert [c.layers for c in seen] == [(1, 2), (1, 2), (7,)]


def test_norwegian_in_the_config_file_is_no_boolean(seen, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("target: no\nknown: [en, no]\ntrace: t.npz\n")
    run("plan", "--config", file)
    assert (seen[0].target, seen[0].known) == ("no", ("en", "no"))


@pytest.mark.parametrize(("word", "value"), [("true", True), ("yes", True), ("False", False), ("no", False)])
def test_booleans_of_the_config_file(seen, tmp_path, word, value):
    file = tmp_path / "plan.yaml"
    file.write_text(f"trace: t.npz\ntrain_routers: {word}\n")
    run("plan", "--config", file)
    assert seen[0].train_routers is value


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


@pytest.fixture
def trained(monkeypatch):
    """(command, config) of what `adapt`, `mix train` and `align` would run."""
    from dragoman.commands import adapt, align, mix

    ran = []
    monkeypatch.setattr(adapt, "run", lambda config: ran.append(("adapt", config)))
    monkeypatch.setattr(align, "run", lambda config: ran.append(("align", config)))
    monkeypatch.setattr(mix, "run_stage", lambda config: ran.append(("mix train", config)))
    for module in (adapt, align):
        monkeypatch.setattr(module, "show", lambda result: None)
    monkeypatch.setenv("RANK", "1")  # mix train prints nothing then
    return ran


def test_adapt_hands_methods_on_to_the_command_that_trains_by_them(trained, tmp_path):
    stage, item = ["--stage", "1", "--languages", "en", "--out", "o"], ["--target", "ca", "--task", "heading"]
    run("adapt", "m", "--method", "mix_moe", *stage)
    run("adapt", "m", *stage, "--method=moe_lpr")
    run("mix", "train", "m", *stage, "--method=moe_lpr")
    run("adapt", "--method", "sara", "m", *item)
    run("adapt", "m", "--target", "ca", "--method", "lora")
    assert [name for name, _ in trained] == ["mix train", "mix train", "mix train", "align", "adapt"]
    assert [c.method for _, c in trained] == ["mix_moe", "moe_lpr", "moe_lpr", "sara", "lora"]
    assert trained[1] == trained[2] and trained[1][1].languages == ("en",)
    assert (trained[3][1].model, trained[3][1].task) == ("m", "heading")


def test_adapt_finds_the_method_in_the_config_file_and_flags_win(trained, tmp_path):
    file = tmp_path / "stage.yaml"
    file.write_text("method: mix_moe\nmodel: m\nstage: 1\nlanguages: [en]\nout: o\ntraining: {steps: 90}\n")
    run("adapt", "--config", file, "--training.batch", "32", "--out", "p")
    run("adapt", f"--config={file}", "--method", "moe_lpr")
    (name, one), (other, two) = trained
    assert (name, other) == ("mix train", "mix train") and (one.method, two.method) == ("mix_moe", "moe_lpr")
    assert (one.model, one.stage, str(one.out)) == ("m", 1, "p")
    assert (one.training.steps, one.training.batch, one.training.balance) == (90, 32, 0.01)
    file.write_text("method: ra_moe\nmodel: m\ntarget: ca\n")
    run("adapt", "--config", file, "--task", "heading")
    run("adapt", "--config", file, "--method", "full")
    assert [(name, c.method) for name, c in trained[2:]] == [("align", "ra_moe"), ("adapt", "full")]


def test_mistakes_in_a_file_that_is_handed_on_are_told(capsys, tmp_path):
    file = tmp_path / "stage.yaml"
    file.write_text("method: mix_moe\nmodel: m\nout: o\nlangauges: [en]\n")
    err = failure(capsys, "adapt", "--config", file)
    assert all(part in err for part in ("[langauges]", "languages", "`adapt --method mix_moe` takes the flags of")), err
    file.write_text("method: mix_moe\nmodel: m\nout: o\ntraining: 3\n")
    assert "a line `learning_rate: VALUE` under `training:`" in failure(capsys, "adapt", "--config", file)
    file.write_text("method: [mix_moe]\nmodel: m\ntarget: ca\n")
    assert "[method]" in failure(capsys, "adapt", "--config", file)


def test_the_recipes_of_mix_moe_are_these_flags(trained):
    recipes = Path(__file__).resolve().parents[1] / "examples" / "mix-moe"
    tags = ["en", "de", "fr", "es", "cs", "ru", "zh"]
    run("adapt", "--config", recipes / "stage-1.yaml")
    scored = ["--score", "en-all", "all-en", "--out", "mix-1"]
    run("mix", "train", "mix", "--stage", "1", "--languages", *tags, *scored)
    run("adapt", "--config", recipes / "stage-2.yaml")
    both = ["--directions", "en-all", "all-en", "--out", "mix-2"]
    run("mix", "train", "mix-1/model", "--stage", "2", "--languages", *tags, *both)
    assert trained[0] == trained[1] and trained[2] == trained[3]


def test_the_table_of_methods_that_are_handed_on_is_whole():
    from dragoman.commands.mixing_text import STAGED
    from dragoman.methods import METHODS
    from dragoman.methods.base import LossMethod

    aligned = [name for name, method in METHODS.items() if isinstance(method, LossMethod)]
    wanted = dict.fromkeys(STAGED, ("mix", "train")) | dict.fromkeys(aligned, ("align",))
    assert aligned and wanted == cli.HANDED_ON


def test_the_help_of_adapt_names_what_it_hands_on(capsys):
    run("adapt", "--help")
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(method in told and " ".join(words) in told for method, words in cli.HANDED_ON.items())
    run("adapt", "--method", "mix_moe", "--help")
    assert "--lpr-mode" in capsys.readouterr().out, "the flags of that method"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["adapt", "m", "--method", "mix_moe"], ["--out requires", "`adapt --method mix_moe` takes the flags of"]),
        (["adapt", "m", "--method", "sara", "--target", "ca", "--aling", "x"], ["--align", "of `dragoman align`. See"]),
        (["adapt", "m", "--method", "MIX-MOE"], ["there is no method 'MIX-MOE'; did you mean mix_moe?"]),
        (["adapt", "m", "--target", "ca", "--text", "3"], ["text is a group of settings", "--text.source VALUE"]),
        (["mix", "train", "m", "--training=3"], ["training is a group of settings", "--training.learning-rate VALUE"]),
        (["adapt", "m", "--method"], ["--method requires an argument. See --help"]),
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
