"""`dragoman adapt` on a toy: evaluation, guard, early stop, dry run, resuming after kills, bad input."""

import json

import pytest
import torch

import dragoman
from dragoman.commands import adapt, rehearsal, scoring
from dragoman.commands.forgetting import Evaluation, share_of
from dragoman.commands.pretrain import Vocabulary, train_tokenizer
from dragoman.commands.training_text import Text
from dragoman.errors import ConfigError, DataError, ModelError, UserError
from dragoman.methods import checkpoints, loop
from dragoman.modeling import TextCodec, open_both, save_model
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.killing import killed
from tests.models import tiny
from tests.texts import corpus, tokenizer


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a model, a corpus and a plan."""
    folder = tmp_path_factory.mktemp("toy")
    save_model(tiny("olmoe", vocab_size=400), TextCodec(tokenizer()), folder / "model")
    corpus().save(folder / "text.tsv")
    planned = (PlannedExpert(1, "language"), PlannedExpert(3, "language"))
    plan = ExpertPlan("test", {2: planned}, {0: 8, 1: 8, 2: 8}, target="ca", settings={"known": ["en", "es"]})
    plan.save(folder / "plan.json")
    return folder


def settings(toy, out, **changes):
    return {
        "model": str(toy / "model"),
        "corpus": str(toy / "text.tsv"),
        "target": "ca",
        "plan": toy / "plan.json",
        "precision": "fp32",
        "text": Text(segments=40, block=48, batch=4),
        "evaluation": Evaluation(segments=6),
        "out": out,
        "quiet": True,
    } | changes


def weights(folder):
    return dragoman.open_model(str(folder)).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_outcome_is_what_evaluation_measures(toy, tmp_path, capsys):
    """Oracle: the scoring of `dragoman evaluate` on the base and on the saved model."""
    record = dragoman.adapt(**settings(toy, tmp_path / "a"))
    found = record["outcome"]
    assert [e["step"] for e in record["log"]["evaluations"]] == [0, record["log"]["steps"]]
    bits = {}
    for name, folder in (("base", toy / "model"), ("adapted", tmp_path / "a" / "model")):
        model, codec = dragoman.open_model(str(folder)), dragoman.open_tokenizer(str(folder))
        sums = scoring.score_model(model, codec, corpus(), ("ca", "en", "es"), {}, split="dev", segments=6, quiet=True)
        bits[name] = scoring.values({name: sums}, "bits_per_byte", 0)["bits_per_byte"][name]
    assert found["bits_before"] == pytest.approx(bits["base"]["ca"], rel=1e-5)
    assert found["bits_after"] == pytest.approx(bits["adapted"]["ca"], rel=1e-5)
    losses = {g: bits["adapted"][g] / bits["base"][g] - 1 for g in ("en", "es")}
    assert found["worst"] == max(losses, key=losses.get)
    assert found["loss"] == pytest.approx(max(losses.values()), abs=1e-5)
    adapt.show(record)
    assert f"trained {100 * record['trained_share']:.2f} % of parameters" in capsys.readouterr().out.splitlines()[-1]


def test_routing_drift_is_zero_at_the_base_and_not_after(toy, tmp_path):
    record = dragoman.adapt(**settings(toy, tmp_path / "a", learning_rate=0.1))
    first, last = record["log"]["evaluations"]
    assert set(first["drift"].values()) == {0.0}
    assert first["loss"] == 0.0
    assert all(moved > 0 for moved in last["drift"].values())


def test_balance_is_in_the_log_without_being_asked_for(toy, tmp_path):
    entry = dragoman.adapt(**settings(toy, tmp_path / "a", evaluation=Evaluation(segments=0)))["log"]["balance"][-1]
    assert entry["layers"] == [0, 1, 2]
    assert all(busiest >= 1 and v >= 0 for busiest, v in zip(entry["max_load"], entry["variation"], strict=True))


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_the_guard_ends_training_that_loses_a_known_language(toy, tmp_path, action, capsys):
    every_step = Evaluation(segments=6, every=1)
    record = dragoman.adapt(
        **settings(toy, tmp_path / "a", learning_rate=0.5, guard="0.1%", guard_action=action, evaluation=every_step)
    )
    log = record["log"]
    assert log["steps"] < record["training"]["steps"]
    assert "lost" in log["stopped"]["why"] and "more than 0.10%" in log["stopped"]["why"]
    within = [e["step"] for e in log["evaluations"] if e["loss"] <= 0.001]
    assert log["kept_step"] == within[-1]
    if action == "rollback":
        assert log["stopped"]["weights_of"] == within[-1]
        assert record["outcome"]["loss"] <= 0.001
        assert same(weights(tmp_path / "a" / "model"), weights(toy / "model")) is (within[-1] == 0)
    else:
        assert "weights_of" not in log["stopped"]
        assert record["outcome"]["loss"] > 0.001
        assert not same(weights(tmp_path / "a" / "model"), weights(toy / "model"))
    adapt.show(record)
    assert f"stopped at step {log['stopped']['step']}" in capsys.readouterr().out


def test_a_guard_that_nothing_offends_changes_nothing(toy, tmp_path):
    plain = dragoman.adapt(**settings(toy, tmp_path / "a"))
    guarded = dragoman.adapt(**settings(toy, tmp_path / "b", guard="500%", guard_action="rollback"))
    assert guarded["log"]["losses"] == plain["log"]["losses"]
    assert guarded["log"]["stopped"] is None
    assert same(weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model"))


def test_early_stop_takes_the_best_weights(toy, tmp_path):
    """A rate so high that the target gets worse before the end."""
    patient = Evaluation(segments=6, every=1, patience=2)
    wild = {"method": "full", "plan": None, "learning_rate": 1.0}
    record = dragoman.adapt(**settings(toy, tmp_path / "a", **wild, evaluation=patient))
    bits = [e["bits"]["ca"] for e in record["log"]["evaluations"]]
    best = bits.index(min(bits))
    assert record["log"]["steps"] == best + 2 < record["training"]["steps"]
    assert record["log"]["stopped"]["weights_of"] == best
    assert record["outcome"]["bits_after"] == bits[best]
    assert same(weights(tmp_path / "a" / "model"), weights(toy / "model")) is (best == 0)


@pytest.mark.parametrize(
    ("rate", "changes", "kept", "stopped"),
    [
        (0.03, {"guard": "5%", "guard_action": "rollback", "evaluation": Evaluation(segments=6, every=1)}, 4, 5),
        (0.3, {"evaluation": Evaluation(segments=6, every=1, patience=1)}, 1, 2),
    ],
)
def test_the_weights_gone_back_to_are_those_of_the_kept_step(toy, tmp_path, rate, changes, kept, stopped):
    """Oracle: the checkpoint of that step, which was written before anything was put back."""
    wild = {"method": "full", "plan": None, "learning_rate": rate, "checkpoint_steps": 1}
    log = dragoman.adapt(**settings(toy, tmp_path / "a", **wild | changes))["log"]
    assert (log["stopped"]["weights_of"], log["steps"]) == (kept, stopped)
    assert same(weights(tmp_path / "a" / "model"), weights(tmp_path / "a" / "checkpoints" / f"checkpoint-{kept}"))
    assert not same(weights(tmp_path / "a" / "model"), weights(toy / "model"))


def test_new_vocabulary_is_measured_against_the_base_without_it(toy, tmp_path):
    english = TextCodec(train_tokenizer(Vocabulary(size=300, tags=("en",)), [corpus()], ("en",)))
    save_model(tiny("olmoe", vocab_size=300), english, tmp_path / "model")
    of_russian = {"model": str(tmp_path / "model"), "target": "ru", "text": Text(segments=40, block=256)}
    plain = dragoman.adapt(**settings(toy, tmp_path / "a", **of_russian))
    more = dragoman.adapt(**settings(toy, tmp_path / "b", **of_russian, vocabulary=8))
    model, codec = open_both(str(tmp_path / "b" / "model"))
    assert len(codec.tokenizer) == model.config.vocab_size == 308
    first = more["log"]["evaluations"][0]
    assert first["bits"] == plain["log"]["evaluations"][0]["bits"]
    assert more["tokens_by_source"]["corpus"] < plain["tokens_by_source"]["corpus"]
    assert more["outcome"]["bits_before"] == first["bits"]["ru"]


def test_a_dry_run_says_what_trains_and_writes_nothing(toy, tmp_path, capsys):
    record = dragoman.adapt(**settings(toy, tmp_path / "a", dry_run=True))
    assert not (tmp_path / "a").exists()
    names = [t["name"] for t in record["tensors"]]
    # layer 2: router 8 x 16; of two experts gate and up 2 x 8 x 16, down 16 x 8
    assert record["parameters"] == 8 * 16 + 2 * (2 * 8 * 16 + 16 * 8)
    assert len(names) == 3 and "model.layers.2.mlp.gate.weight" in names
    done = dragoman.adapt(**settings(toy, tmp_path / "b"))
    assert record["steps"] == done["log"]["steps"]
    adapt.show(record)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and "expected:" in printed


def test_a_dry_run_adds_up_its_time(toy, tmp_path, monkeypatch, capsys):
    """12 s for four updates of 5, 1, 3 and 2 s: 1 s before them, 2 s for each after the first. Then as many evaluations
    as the run makes, each as long as the one that was timed."""
    evaluation = Evaluation(segments=6, every=3)
    done = dragoman.adapt(**settings(toy, tmp_path / "a", evaluation=evaluation))
    log = checkpoints.Log(step_seconds=[5.0, 1.0, 3.0, 2.0], seconds=12.0)
    monkeypatch.setattr(rehearsal, "_few_updates", lambda *_: (log, {"seconds": 100.0, "mib": 1.0}))
    record = dragoman.adapt(**settings(toy, tmp_path / "b", evaluation=evaluation, dry_run=True))
    assert record["evaluations"] == len(done["log"]["evaluations"]) - 1 == 3
    assert record["step_seconds"] == 2 and record["evaluation_seconds"] > 0 and record["peak_memory_mb"] > 0
    assert record["seconds"] == pytest.approx(1 + 100 + 5 + 2 * 7 + 3 * record["evaluation_seconds"])
    adapt.show(record)
    told = f"expected: {record['seconds']:.0f} s of training with 3 evaluations of {record['evaluation_seconds']:.1f} s"
    assert f"{told}, and {record['peak_memory_mb']:,.0f} MB" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_run_that_broke_off_with_nothing_to_go_on_from_leaves_its_folder_free(toy, tmp_path, monkeypatch, fault):
    def breaks(*_, **__):
        raise fault

    with monkeypatch.context() as patch, pytest.raises(type(fault)):
        patch.setattr(loop.Loop, "training_step", breaks)
        dragoman.adapt(**settings(toy, tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    dragoman.adapt(**settings(toy, tmp_path / "a", micro_batch=1))


def linked(toy, folder):
    for name in ("model", "text.tsv", "plan.json"):
        (folder / name).symlink_to(toy / name)
    return folder


def test_killed_at_a_step_and_inside_a_save_it_resumes_to_the_bit(toy, tmp_path):
    found = killed(linked(toy, tmp_path), "step:5", "torch_save:3")
    assert found["steps"] >= 6, "the kills have to come before the end"


@pytest.mark.slow  # forty toy trainings
@pytest.mark.timeout(1200)
def test_killed_at_twenty_random_points_it_resumes_to_the_bit(toy, tmp_path):
    found = killed(linked(toy, tmp_path), *map(str, range(20)), seconds=1100)
    points = {kill["point"].split(":")[0] for kill in found["kills"]}
    assert "step" in points and points & {"save_file", "torch_save"}, "some inside a save, some not"


def test_a_finished_run_is_not_trained_again(toy, tmp_path):
    first = dragoman.adapt(**settings(toy, tmp_path / "a"))
    again = dragoman.adapt(**settings(toy, tmp_path / "a", resume=True))
    assert again["created"] == first["created"]
    less_memory = {"resume": True, "gradient_checkpointing": True, "device": "cpu"}
    assert dragoman.adapt(**settings(toy, tmp_path / "a", **less_memory))["created"] == first["created"]
    with pytest.raises(ConfigError, match=r"was another \(learning_rate: 0.01 -> 0.02\); resume with the old"):
        dragoman.adapt(**settings(toy, tmp_path / "a", resume=True, learning_rate=0.02))
    old = json.loads((tmp_path / "a" / "config.json").read_text())
    del old["trunk_dtype"], old["text"]["isolate"]  # of a version that had no such settings
    (tmp_path / "a" / "config.json").write_text(json.dumps(old))
    assert dragoman.adapt(**settings(toy, tmp_path / "a", resume=True))["created"] == first["created"]
    with pytest.raises(ConfigError, match=r"trunk_dtype: bf16 -> fp32"):
        dragoman.adapt(**settings(toy, tmp_path / "a", resume=True, trunk_cache=tmp_path / "t", trunk_dtype="fp32"))
    with pytest.raises(ConfigError, match="not empty"):
        dragoman.adapt(**settings(toy, tmp_path / "a"))


def test_divergence_says_at_which_step_and_leaves_the_last_good_state(toy, tmp_path):
    diverging = settings(toy, tmp_path / "a", learning_rate=1e6, method="full", plan=None, checkpoint_steps=1)
    with pytest.raises(ModelError, match=r"at step \d+.*last good state is .*checkpoint-\d+: lower the learning rate"):
        dragoman.adapt(**diverging | {"text": Text(segments=40, block=48, batch=2, epochs=2)})
    assert not (tmp_path / "a" / "model").exists()
    at_once = diverging | {"text": Text(segments=40, block=48, batch=20), "out": tmp_path / "b", "learning_rate": 1e30}
    with pytest.raises(ModelError, match="train anew"):
        dragoman.adapt(**at_once | {"checkpoint_steps": 0, "checkpoint_minutes": 99.0})
    assert not (tmp_path / "b").exists(), "nothing to go on from"


def test_a_language_from_files_alone_and_a_run_that_goes_on_with_them(toy, tmp_path):
    lines = [f"the house {n} is open and the garden {n % 7} too" for n in range(40)]
    (tmp_path / "oc.txt").write_text("\n".join(lines))
    text = {"segments": 0, "sources": {"oc": str(tmp_path / "oc.txt")}, "block": 48}
    run = {"target": "oc", "plan": None, "method": "lora", "text": text}
    record = dragoman.adapt(**settings(toy, tmp_path / "a", **run))
    assert record["tokens_by_source"]["oc"] > 0 and not record["outcome"]
    (tmp_path / "a" / "record.json").unlink()
    (tmp_path / "oc.txt").write_text("\n".join(lines[::-1]))
    with pytest.raises(ConfigError, match=r"was another \(text.sources.oc_sha256: "):
        dragoman.adapt(**settings(toy, tmp_path / "a", resume=True, **run))
    with pytest.raises(DataError, match="fewer than two dev segments of oc"):
        dragoman.adapt(**settings(toy, tmp_path / "b", guard="5%", **run))


def test_rows_that_are_longer_than_learnt_positions_are_refused(toy, tmp_path):
    save_model(tiny("gpt2", n_embd=16, n_head=2, n_layer=1, vocab_size=400), TextCodec(tokenizer()), tmp_path / "gpt2")
    long = {"model": str(tmp_path / "gpt2"), "plan": None, "method": "full", "text": Text(segments=8, block=96)}
    with pytest.raises(ConfigError, match="rows of 96 tokens do not fit the 64 positions of the model"):
        dragoman.adapt(**settings(toy, tmp_path / "a", **long))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**32}, "seed is 0 or more and less than 2"),
        ({"evaluation": Evaluation(known=("ca",))}, "evaluation.known names ca alone, which is the target"),
        ({"checkpoint_steps": -1}, "checkpoint_steps is 0 or more, not -1"),
        ({"guard_action": "rollback"}, "guard_action has no effect without --guard"),
        ({"guard": "1%", "evaluation": Evaluation(segments=0)}, "--guard has no effect without evaluation.segments"),
        ({"guard": "little"}, "--guard is a share such as 1% or 0.01, not 'little'"),
        ({"guard": "-1%"}, "is a share such as 1% or 0.01, from 0 on, not '-1%'"),
        ({"resume": True, "dry_run": True}, "--resume has no effect on a dry run"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"method": "mix_moe"}, "mix_moe trains in stages, on text of its own; use `dragoman mix train`"),
    ],
)
def test_settings_without_effect_are_refused(toy, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        dragoman.adapt(**settings(toy, tmp_path / "a", **changes))


def test_what_is_refused_while_training_leaves_no_folder(toy, tmp_path):
    for changes in ({"method": "full"}, {"method": "full", "plan": None, "learning_rate": 1e38}):
        with pytest.raises(UserError):
            dragoman.adapt(**settings(toy, tmp_path / "a", **changes))
    assert not (tmp_path / "a").exists()
    assert dragoman.adapt(**settings(toy, tmp_path / "a"))["log"]["steps"]


def test_evaluation_that_cannot_be_is_refused_where_it_was_asked_for(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"segments is 0, so nothing else"):
        Evaluation(segments=0, every=3)
    with pytest.raises(ConfigError, match="0 or more"):
        Evaluation(patience=-1)
    lines = (toy / "text.tsv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.tsv").write_text("\n".join(r for r in lines if "\tdev\t" not in r) + "\n", encoding="utf-8")
    nothing = settings(toy, tmp_path / "a", corpus=str(tmp_path / "train.tsv"))
    with pytest.raises(DataError, match="fewer than two dev segments of ca, en, es"):
        dragoman.adapt(**nothing, guard="1%")
    record = dragoman.adapt(**nothing)
    assert record["outcome"] is None and record["log"]["evaluations"] == []


def test_shares_by_hand():
    assert share_of("1%") == share_of("0.01") == share_of(" 1 %") == 0.01
    assert share_of("150%") == 1.5
    assert share_of("0") == share_of("0%") == 0
    for odd in ("-1%", "nan", "inf", "-inf%"):
        with pytest.raises(ConfigError, match=f"--guard is a share such as 1% or 0.01, from 0 on, not '{odd}'"):
            share_of(odd)
    with pytest.raises(ConfigError, match=r"--guard 5 would be 500 %; 5% is 0\.05"):
        share_of("5")


@pytest.mark.parametrize(("repeated", "told"), [(0, False), (1, False), (3, True)])
def test_dev_texts_that_are_trained_on_are_told(toy, tmp_path, capsys, repeated, told):
    """From one in twenty on."""
    table = corpus()
    train, dev = ([i for i, s in enumerate(table.splits) if s == split] for split in ("train", "dev"))
    for i, j in zip(dev[:repeated], train, strict=False):
        table.columns["ca"][i] = table.columns["ca"][j]
    table.save(tmp_path / "text.tsv")
    given = {"corpus": str(tmp_path / "text.tsv"), "evaluation": Evaluation(segments=30)}
    dragoman.adapt(**settings(toy, tmp_path / "out", dry_run=True, **given))
    said = f"{repeated} of 30 dev texts in ca are train texts too, word for word"
    assert (said in capsys.readouterr().err) == told


@pytest.mark.parametrize("kept", [0, 6])
def test_weights_of_the_base_are_not_told_as_a_success(kept, capsys):
    stopped = {"step": 12, "why": "en lost", "weights_of": kept}
    log = {"steps": 12, "seconds": 1.0, "losses": [2.0, 1.0], "stopped": stopped}
    told = {"log": log, "parameters": 5, "trained_share": 0.1, "config": {"out": "o", "save": "model"}}
    adapt.show(told)
    out = capsys.readouterr().out
    assert f"the weights are those of step {kept}" in out
    assert ("nothing was learnt: these are the weights of the base" in out) == (kept == 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guard": "5"}, "--guard 5 would be 500 %"),
        ({"vocabulary": -5}, "vocabulary is 0 or more new pieces, not -5"),
        ({}, "the method expert_tuning trains what a plan names"),
    ],
)
def test_mistakes_are_told_before_a_model_is_opened(given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        dragoman.adapt("no/such-model", target="ca", out=tmp_path / "out", **given)
