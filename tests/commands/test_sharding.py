"""`torchrun ... dragoman adapt`: two real processes train what one does, and each goes on where the other was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dragoman.cli import run
from dragoman.commands.adapt import Config
from dragoman.errors import ConfigError
from dragoman.methods import sharding
from dragoman.methods.sharding import rows_each
from dragoman.modeling import TextCodec, open_model, save_model, why_not_spread
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import tiny
from tests.texts import corpus, tokenizer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
METHODS = {"expert_tuning": ["--learning-rate", "0.02"], "full": ["--method", "full", "--learning-rate", "0.002"]}


GUARD = ["--guard", "0.1%", "--guard-action", "rollback", "--evaluation.every", "1"]
FLAGS = METHODS | {"guarded": ["--method", "full", "--learning-rate", "0.5", *GUARD]}
FLAGS |= {"tags": [*METHODS["expert_tuning"], "--embeddings", "tags"]}
SPREADS = not why_not_spread(tiny("olmoe"), 2)
"""Whether this version of transformers can spread experts."""
PLANNED = {1: (1, 3), 2: (1, 6)}
"""Layer -> experts; where they are spread, the second process has none of layer 1."""


def command(folder, name, out, *more, batch=4):
    """A run with two checkpoints; the second one is of its last step but some.

    On the CPU: two processes are refused where there is one GPU.
    """
    line = ["adapt", str(folder / "model"), "--corpus", str(folder / "text.tsv"), "--target", "ca"]
    line += ["--precision", "fp32", "--device", "cpu"]
    line += ["--text.segments", "40", "--text.block", "48", "--text.batch", str(batch)]
    line += ["--evaluation.segments", "6", "--checkpoint-steps", "3", "--out", str(out), "--quiet", *FLAGS[name]]
    return line + (["--plan", str(folder / "plan.json")] if name in ("expert_tuning", "tags") else []) + list(more)


def mixing(folder, stage, out, passes=1):
    """A stage of `dragoman mix train`: stage 2 goes on from what one process trained in stage 1."""
    of = {1: ["mix", "--stage", "1"], 2: ["mix-1-one/model", "--stage", "2", "--directions", "en-es"]}[stage]
    line = ["mix", "train", str(folder / of[0]), *of[1:], "--corpus", str(folder / "text.tsv"), "--device", "cpu"]
    line += ["--languages", "en", "es"] if stage == 1 else []
    line += ["--training.steps", "4", "--training.batch", "4", "--training.micro-batch", str(4 // passes)]
    line += ["--training.warmup", "1", "--training.decay", "2", "--training.precision", "fp32"]
    line += ["--training.learning-rate", "0.01"]
    return [*line, "--block", "64", "--segments", "6", "--quiet", "--out", str(out)]


def half_way(run_folder, copy_of):
    """A run that was killed after its first checkpoint."""
    shutil.copytree(run_folder, copy_of)
    for path in (copy_of / "record.json", copy_of / "model"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = sorted((copy_of / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1]
    shutil.rmtree(last)
    return copy_of


def losses(folder):
    return json.loads((folder / "record.json").read_text())["log"]["losses"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of every run by one process and by two, and what the two printed."""
    folder = tmp_path_factory.mktemp("shared-out")
    save_model(tiny("olmoe", vocab_size=400), TextCodec(tokenizer()), folder / "model")
    corpus().save(folder / "text.tsv")
    planned = {i: tuple(PlannedExpert(e, "language") for e in experts) for i, experts in PLANNED.items()}
    plan = ExpertPlan("test", planned, dict.fromkeys(range(3), 8), target="ca", train_routers=True)
    plan.save(folder / "plan.json")
    lines = []
    for name in METHODS:
        run(command(folder, name, folder / f"{name}-one"))
        stopped = half_way(folder / f"{name}-one", folder / f"{name}-one-then-two")
        lines.append(command(folder, name, folder / f"{name}-two"))
        lines.append(command(folder, name, stopped, "--resume"))
    for name in METHODS if SPREADS else ():
        lines.append(command(folder, name, folder / f"{name}-spread", "--expert-parallel"))
        stopped = half_way(folder / f"{name}-one", folder / f"{name}-one-then-spread")
        lines.append(command(folder, name, stopped, "--resume", "--expert-parallel"))
    lines.append(command(folder, "guarded", folder / "guarded"))
    run(command(folder, "tags", folder / "tags-one"))
    lines.append(command(folder, "tags", folder / "tags-two"))
    save_model(tiny("llama", vocab_size=400, max_position_embeddings=128), TextCodec(tokenizer()), folder / "dense")
    run(["mix", "convert", str(folder / "dense"), "--out", str(folder / "mix")])
    for stage in (1, 2):
        # in two passes: sums in the order of two processes, as rounding may flip the choice of an expert
        run(mixing(folder, stage, folder / f"mix-{stage}-one", passes=2))
        lines.append(mixing(folder, stage, folder / f"mix-{stage}-two"))
    (folder / "lines.json").write_text(json.dumps(lines))
    script = str(Path(__file__).with_name("sharded.py"))
    done = subprocess.run([*TORCHRUN, script, str(folder / "lines.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_what_one_does(runs, name):
    folder, printed = runs
    alone = losses(folder / f"{name}-one")
    np.testing.assert_allclose(losses(folder / f"{name}-two"), alone, rtol=1e-4)
    np.testing.assert_allclose(losses(folder / f"{name}-one-then-two"), alone, rtol=1e-4)
    assert min(alone[-5:]) < alone[0] - 0.05, "otherwise nothing trained"
    one, two = (json.loads((folder / f"{name}-{n}" / "record.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["log"]["balance"][0]["slots"] == two["log"]["balance"][0]["slots"]
    assert two["outcome"]["bits_after"] == pytest.approx(one["outcome"]["bits_after"], rel=1e-4)
    assert printed.count(f"the model in {folder / f'{name}-two'}") == 1, "one process prints"


@pytest.mark.parametrize("name", METHODS)
def test_one_process_goes_on_from_the_checkpoint_of_two(runs, name):
    folder, _ = runs
    stopped = half_way(folder / f"{name}-two", folder / f"{name}-two-then-one")
    run(command(folder, name, stopped, "--resume"))
    np.testing.assert_allclose(losses(stopped), losses(folder / f"{name}-one"), rtol=1e-4)
    paths = [str(folder / f"{name}-{n}" / "model") for n in ("two-then-one", "one")]
    ours, alone = (open_model(path, device="cpu").state_dict() for path in paths)
    assert all(np.allclose(ours[n], alone[n], atol=1e-4) for n in alone)


@pytest.mark.skipif(not SPREADS, reason="this version of transformers does not spread experts")
@pytest.mark.parametrize("name", METHODS)
def test_spread_experts_train_what_one_process_does(runs, name):
    folder, _ = runs
    alone = losses(folder / f"{name}-one")
    np.testing.assert_allclose(losses(folder / f"{name}-spread"), alone, rtol=1e-5)
    np.testing.assert_allclose(losses(folder / f"{name}-one-then-spread"), alone, rtol=1e-5)
    one, spread = (json.loads((folder / f"{name}-{n}" / "record.json").read_text()) for n in ("one", "spread"))
    assert one["log"]["balance"] == spread["log"]["balance"]
    assert spread["outcome"]["bits_after"] == pytest.approx(one["outcome"]["bits_after"], rel=1e-5)
    ours, theirs = (open_model(str(folder / f"{name}-{n}" / "model")).state_dict() for n in ("spread", "one"))
    assert all(np.allclose(ours[n], theirs[n], atol=1e-4) for n in theirs)


@pytest.mark.skipif(not SPREADS, reason="this version of transformers does not spread experts")
@pytest.mark.parametrize("name", METHODS)
def test_one_process_goes_on_from_a_checkpoint_of_spread_experts(runs, name):
    folder, _ = runs
    stopped = half_way(folder / f"{name}-spread", folder / f"{name}-spread-then-one")
    run(command(folder, name, stopped, "--resume"))
    np.testing.assert_allclose(losses(stopped), losses(folder / f"{name}-one"), rtol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_train_a_stage_of_mix_moe_as_one_does(runs, stage):
    folder, printed = runs
    alone, ours = (losses(folder / f"mix-{stage}-{n}") for n in ("one", "two"))
    np.testing.assert_allclose(ours, alone, rtol=1e-4)
    assert alone[-1] < alone[0] - 0.05, "otherwise nothing trained"
    one, two = (json.loads((folder / f"mix-{stage}-{n}" / "record.json").read_text()) for n in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    after = [r["results"]["bits_per_byte"]["after"] for r in (one, two)]
    assert after[1] == pytest.approx(after[0], rel=1e-4)
    assert printed.count(f"the model is in {folder / f'mix-{stage}-two'}") == 1, "one process prints"


def test_two_processes_go_back_to_the_base(runs):
    folder, _ = runs
    log = json.loads((folder / "guarded" / "record.json").read_text())["log"]
    assert log["stopped"]["weights_of"] == log["kept_step"] == 0
    base, ours = (open_model(str(folder / n)).state_dict() for n in ("model", "guarded/model"))
    assert all((base[n] == ours[n]).all() for n in base)


@pytest.mark.parametrize("run_name", ["two", *(["spread"] if SPREADS else [])])
def test_planned_rows_alone_move_in_two_processes(runs, run_name):
    folder, _ = runs
    base, tuned = (open_model(str(folder / n)).state_dict() for n in ("model", f"expert_tuning-{run_name}/model"))
    changed = {n for n in base if not (base[n] == tuned[n]).all()}
    own = ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
    assert changed == {f"model.layers.{i}.mlp.{n}" for i in (1, 2) for n in own}
    for i, planned in PLANNED.items():
        for n in (f"model.layers.{i}.mlp.{part}" for part in own[:2]):
            assert [e for e in range(8) if not (base[n][e] == tuned[n][e]).all()] == list(planned)


def test_the_row_of_a_tag_trains_in_two_processes(runs):
    folder, _ = runs
    np.testing.assert_allclose(losses(folder / "tags-two"), losses(folder / "tags-one"), rtol=1e-4)
    base, tuned = (open_model(str(folder / n)).state_dict() for n in ("model", "tags-two/model"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = [row for row in range(400) if not (base[name][row] == tuned[name][row]).all()]
        assert changed == [TextCodec(tokenizer()).own_tag_id("ca")]


def test_a_mistake_of_the_first_process_is_told_by_all(runs):
    """Not by a traceback of those who wait, and before anything is written."""
    folder, _ = runs
    taken = command(folder, "full", folder / "full-one")
    uneven = command(folder, "full", folder / "uneven", batch=3)
    for line, said in ((taken, "is not empty"), (uneven, "cannot be shared out to 2 processes")):
        (folder / "mistake.json").write_text(json.dumps([line]))
        script = str(Path(__file__).with_name("sharded.py"))
        done = subprocess.run(
            [*TORCHRUN, script, str(folder / "mistake.json")], capture_output=True, text=True, check=False
        )
        told = [line for line in done.stderr.splitlines() if "ConfigError: " in line]
        assert told and all(said in line for line in told), done.stderr[-2000:]
        assert "DistBackendError" not in done.stderr and "RuntimeError" not in done.stderr
    assert not (folder / "uneven").exists()


def test_rows_that_cannot_be_shared_out(monkeypatch):
    monkeypatch.setattr(sharding, "active", lambda: True)
    monkeypatch.setattr(sharding.distributed, "get_world_size", lambda: 2)
    assert [rows_each(8, 8), rows_each(8, 2)] == [4, 2]
    with pytest.raises(ConfigError, match="a batch of 5 rows cannot be shared out to 2 processes in passes of 2"):
        rows_each(5, 5)


@pytest.mark.parametrize(("more", "said"), [({"dry_run": True}, "--dry-run"), ({"trunk_cache": Path("t")}, "--trunk")])
def test_what_is_for_one_process_is_refused_by_several(monkeypatch, more, said):
    from dragoman.commands import adapt

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=f"{said}.* is for one process, and torchrun started several"):
        adapt.run(Config("mini-moe", target="ca", **more))


def test_experts_are_not_spread_in_one_process():
    from dragoman.commands import adapt

    with pytest.raises(ConfigError, match="for several processes, and here is one; start it with torchrun"):
        adapt.run(Config("mini-moe", target="ca", expert_parallel=True))
