"""The training loop: schedule, losses, resuming, stopping."""

import contextlib
import json
import math
import resource

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import loop, sharding, training
from dragoman.methods.guard import Guard, Measured
from dragoman.methods.rows import Rows
from dragoman.methods.settings import WarmupStableDecay
from dragoman.methods.training import Config, train
from dragoman.modeling import moe_layers
from tests.models import tiny

ROWS = np.random.default_rng(0).integers(3, 64, (32, 16)).astype(np.int32)


def config(**changes):
    return Config(
        **({"steps": 8, "batch": 4, "micro_batch": 4, "warmup": 2, "decay": 4, "precision": "fp32"} | changes)
    )


def test_schedule_by_hand():
    shape = WarmupStableDecay(warmup=4, decay=4, steps=12)
    assert [shape(s) for s in (0, 1, 3, 4, 7)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert shape(8) == 1.0
    assert shape(9) == pytest.approx(1 - math.sqrt(1 / 4))
    assert shape(11) == pytest.approx(1 - math.sqrt(3 / 4))
    shape.decay_from = 5
    assert shape(6) == pytest.approx(0.5)


def test_training_lowers_the_loss_and_logs_every_step(tmp_path):
    log = train(tiny("olmoe"), ROWS[:4], config(steps=30, learning_rate=3e-3), folder=tmp_path)
    assert len(log.losses) == log.steps == 30
    assert log.losses[-1] < 0.8 * log.losses[0]
    assert log.tokens == 30 * 4 * 16


def test_training_in_bf16_leaves_the_model_computing_in_fp32(tmp_path):
    model = tiny("olmoe")
    train(model, ROWS, config(precision="bf16", learning_rate=0.0), folder=tmp_path)
    ids = torch.from_numpy(ROWS[:4].astype(np.int64))
    assert torch.equal(model(ids).logits, tiny("olmoe")(ids).logits)


@pytest.mark.parametrize("uneven", [False, True])
def test_micro_batches_change_nothing_but_memory(tmp_path, uneven):
    """Also where rows have unlike numbers of labels: each label counts once, in whatever pass it stands."""
    labels_NS = ROWS.astype(np.int64)
    if uneven:
        labels_NS[::3, :-2] = -100
    given = {"labels_NS": labels_NS, "layers": []}
    losses = [
        train(tiny("olmoe"), ROWS, config(micro_batch=m), folder=tmp_path / str(m), **given).losses for m in (4, 2, 1)
    ]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)


def test_the_logged_loss_is_the_models_own_cross_entropy(tmp_path):
    model = tiny("olmoe")
    ids = torch.from_numpy(ROWS[:4].astype(np.int64))
    expected = model(ids, labels=ids).loss.item()
    log = train(model, ROWS, config(balance=0.1, z_loss=0.1), layers=moe_layers(model), folder=tmp_path)
    assert log.losses[0] == pytest.approx(expected, rel=1e-5), "router losses must not be in it"


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "mixtral"])
def test_the_sorted_experts_give_the_same_losses_and_are_taken_off(tmp_path, family, monkeypatch):
    fast, plain = tiny(family), tiny(family)
    log = train(fast, ROWS, config(), folder=tmp_path / "fast")
    assert fast.config._experts_implementation == plain.config._experts_implementation == "grouped_mm"
    monkeypatch.setattr(training, "sorted_experts", lambda model: contextlib.nullcontext())
    expected = train(plain, ROWS, config(), folder=tmp_path / "plain")
    np.testing.assert_allclose(log.losses, expected.losses, rtol=1e-5)
    for name, weight in plain.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name), weight, rtol=1e-3, atol=2e-4)


def test_the_z_loss_alone_is_what_is_added(tmp_path):
    """Its gradient reaches the routers without a balance loss, whose scores are then not asked for."""
    states = []
    for z in (0.0, 1.0):
        model = tiny("olmoe")
        train(model, ROWS, config(z_loss=z), layers=moe_layers(model), folder=tmp_path / str(z))
        states.append(model.state_dict())
    assert any(not torch.equal(t, states[1][n]) for n, t in states[0].items())


def test_what_a_model_cannot_is_told_before_it_trains(tmp_path, monkeypatch):
    model = tiny("olmoe")
    monkeypatch.setattr(loop, "are_probabilities", lambda _: True)  # as transformers 5.0.0 records of some families
    with pytest.raises(ModelError, match=r"records probabilities of routers.*leave training\.z_loss out"):
        train(model, ROWS, config(z_loss=0.1), layers=moe_layers(model), folder=tmp_path)
    train(model, ROWS, config(balance=0.1, steps=1, warmup=0, decay=0), layers=moe_layers(model), folder=tmp_path / "b")
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="OlmoeForCausalLM has no gradient checkpointing; leave it out"):
        train(model, ROWS, config(gradient_checkpointing=True), folder=tmp_path / "c")


def test_prompts_and_filler_carry_no_loss(tmp_path):
    labels = ROWS.astype(np.int64).copy()
    labels[:, :10] = -100
    model = tiny("olmoe")
    ids = torch.from_numpy(ROWS[:4].astype(np.int64))
    expected = model(ids, labels=torch.from_numpy(labels[:4])).loss.item()
    log = train(model, ROWS, config(), labels_NS=labels, pad_id=0, folder=tmp_path)
    assert log.losses[0] == pytest.approx(expected, rel=1e-5)


def test_only_trailing_filler_is_masked():
    """The pad token may be the end token, which also stands inside rows and, where it has a label, at their end."""
    tokens = np.array([[5, 2, 6, 2, 2, 2]])
    for labels, mask in (([-100, 2, 6], [1, 1, 1, 0, 0, 0]), ([-100, 2, 6, 2], [1, 1, 1, 1, 0, 0])):
        labels_NS = np.array([labels + [-100] * (6 - len(labels))])
        assert Rows(tokens, labels_NS, pad_id=2, needed=1)[0]["attention_mask"].tolist() == mask


def test_balance_loss_evens_the_load(tmp_path):
    """With the balance loss alone dominating, the most loaded expert of the worst layer gets less."""

    def worst(model):
        from dragoman.routing.capture import capture

        counts = capture(model, {"en": ROWS.tolist()}, start_id=1).chosen_GLE[0]
        return (counts.max(-1) / counts.mean(-1)).max()

    model = tiny("olmoe")
    before = worst(model)
    train(model, ROWS, config(steps=40, balance=10.0, learning_rate=1e-2), layers=moe_layers(model), folder=tmp_path)
    assert worst(model) < 0.8 * before


@pytest.fixture
def save_at(monkeypatch):
    """Checkpoints after these steps."""

    def choose(*steps):
        on_step_end = loop.Watch.on_step_end

        def then_save(self, args, state, control, **_):
            on_step_end(self, args, state, control)
            control.should_save = state.global_step in steps

        monkeypatch.setattr(loop.Watch, "on_step_end", then_save)

    return choose


def test_a_resumed_run_repeats_the_losses_of_an_undisturbed_one(tmp_path, save_at):
    straight = train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "a")
    save_at(2, 4, 5)
    train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "b")
    kept = training.checkpoints(tmp_path / "b")
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-5"], "the last two stay"
    resumed = train(tiny("olmoe", seed=9), ROWS, config(), folder=tmp_path / "b", resume=kept[-1])
    assert resumed.losses == straight.losses
    assert (resumed.steps, resumed.tokens) == (straight.steps, straight.tokens)


def test_a_run_can_be_made_longer_from_where_its_rate_began_to_decay(tmp_path, save_at):
    longer = train(tiny("olmoe"), ROWS, config(steps=12), folder=tmp_path / "a")
    save_at(2, 4, 6, 7, 8)
    train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "b")  # decays from step 4
    kept = training.checkpoints(tmp_path / "b")
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-7", "checkpoint-8"]
    log = train(tiny("olmoe"), ROWS, config(steps=12), folder=tmp_path / "b", resume=kept[0], extended=True)
    assert log.losses == longer.losses
    assert [path.name for path in training.checkpoints(tmp_path / "b")] == ["checkpoint-7", "checkpoint-8"]


@pytest.mark.parametrize("spoil", ["missing", "short"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path, save_at, spoil):
    save_at(2, 4)
    straight = train(tiny("olmoe"), ROWS, config(), folder=tmp_path)
    whole, broken = training.checkpoints(tmp_path)
    file = broken / "optimizer.pt"
    file.unlink() if spoil == "missing" else file.write_bytes(file.read_bytes()[:100])
    assert training.checkpoints(tmp_path) == [whole]
    resumed = train(tiny("olmoe", seed=9), ROWS, config(), folder=tmp_path, resume=whole)
    assert resumed.losses == straight.losses
    assert training.checkpoints(tmp_path) == [whole, broken], "and the broken one is written anew"


def test_a_checkpoint_of_the_last_step_is_the_trained_model(tmp_path):
    trained = tiny("olmoe")
    log = train(trained, ROWS, config(checkpoint_steps=4), folder=tmp_path)
    resumed = tiny("olmoe", seed=9)
    last = training.checkpoints(tmp_path)[-1]
    assert train(resumed, ROWS, config(checkpoint_steps=4), folder=tmp_path, resume=last).losses == log.losses
    assert all(torch.equal(p, resumed.get_parameter(n)) for n, p in trained.named_parameters())


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    model = tiny("olmoe")
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    train(model, ROWS, config(checkpoint_steps=4), folder=tmp_path)
    model.model.norm.requires_grad_(True)
    with pytest.raises(ModelError, match="holds other parameters than train now"):
        train(model, ROWS, config(), folder=tmp_path, resume=training.checkpoints(tmp_path)[0])


def test_a_full_disk_at_a_checkpoint_leaves_the_former_one(tmp_path, save_at, monkeypatch):
    save_at(2, 4)
    straight = train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "a")
    files = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = loop.Loop._save_optimizer_and_scheduler

    def on_a_full_disk(self, folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if self.state.global_step == 4 else files[1], files[1]))
        save(self, folder)

    monkeypatch.setattr(loop.Loop, "_save_optimizer_and_scheduler", on_a_full_disk)
    try:
        with pytest.raises(ConfigError, match=r"checkpoint-4 could not be written .*is the disk full\?"):
            train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, files)
        monkeypatch.undo()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoint-2"]
    resumed = train(tiny("olmoe"), ROWS, config(), folder=tmp_path / "b", resume=tmp_path / "b" / "checkpoint-2")
    assert resumed.losses == straight.losses


def test_time_limit_brings_the_decay_forward(tmp_path, monkeypatch):
    clock = iter(range(0, 10_000, 30))  # every look at the clock is half a minute later
    monkeypatch.setattr(sharding.time, "monotonic", lambda: float(next(clock)))
    log = train(tiny("olmoe"), ROWS, config(steps=500, minutes=5.0, decay=4), folder=tmp_path)
    assert log.steps < 20


def test_a_loss_that_is_not_finite_stops_with_step_and_advice(tmp_path):
    model = tiny("olmoe")
    model.get_input_embeddings().weight.data[5] = float("nan")
    rows = ROWS.copy()
    rows[rows == 5] = 6
    rows[13, 3] = 5  # in the fourth batch
    with pytest.raises(ModelError, match=r"became nan at step 4, rows 12 to 15 of .*train anew in another folder"):
        train(model, rows, config(), folder=tmp_path)


def test_a_routers_or_methods_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    values = iter([0.0, 0.0, float("inf")])
    with pytest.raises(ModelError, match=r"a loss of routers or of a method became inf at step 3, rows 8 to 11"):
        train(tiny("olmoe"), ROWS, config(), folder=tmp_path, extra_loss=lambda *_: torch.tensor(next(values)))


def test_a_last_update_that_breaks_the_weights_is_told_and_its_checkpoint_goes(tmp_path):
    """No loss comes after it that would tell."""
    model, seen = tiny("olmoe"), []
    norm = model.model.norm.weight
    norm.register_hook(lambda grad: seen.append(grad) or grad * (float("nan") if len(seen) == 8 else 1))
    with pytest.raises(ModelError, match=r"not finite after step 8, .* the last good state is .*checkpoint-6"):
        train(model, ROWS, config(checkpoint_steps=2), folder=tmp_path)
    assert not (tmp_path / "checkpoint-8").exists()


@pytest.mark.parametrize("every", [1, 5])
def test_losses_that_climb_far_stop_the_training(tmp_path, every):
    """What is called good is kept, and is good, however many checkpoints were written since."""
    settings = config(steps=60, learning_rate=4.0, checkpoint_steps=every, warmup=40)
    with pytest.raises(ModelError, match=r"training diverged: at step \d+ .*the last good state is .*") as error:
        train(tiny("olmoe"), ROWS[:4], settings, folder=tmp_path)
    *_, last = training.checkpoints(tmp_path)
    assert f"the last good state is {last}:" in str(error.value)
    model, ids = type(tiny("olmoe")).from_pretrained(last), torch.from_numpy(ROWS[:4]).long()
    before = tiny("olmoe")(ids, labels=ids).loss
    assert model(ids, labels=ids).loss < before + settings.diverged


def test_a_checkpoint_that_gives_no_finite_loss_is_not_the_last_good_state(tmp_path):
    """At this rate the second update makes weights that are no numbers, after a loss that is one."""
    with pytest.raises(ModelError, match=r"became nan at step 3, .*the last good state is .*checkpoint-1:"):
        train(tiny("olmoe"), ROWS, config(learning_rate=1e6, checkpoint_steps=1, warmup=3, diverged=0), folder=tmp_path)
    assert [path.name for path in training.checkpoints(tmp_path)] == ["checkpoint-1"]
    assert all(p.isfinite().all() for p in type(tiny("olmoe")).from_pretrained(tmp_path / "checkpoint-1").parameters())


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    models = [tiny("olmoe"), tiny("olmoe")]
    logs = [
        train(m, ROWS, config(gradient_checkpointing=on), layers=moe_layers(m), folder=tmp_path / str(on))
        for m, on in zip(models, (True, False), strict=True)
    ]
    np.testing.assert_allclose(logs[0].losses, logs[1].losses, rtol=1e-6)
    assert not models[0].is_gradient_checkpointing


def test_quantised_weights_are_read_and_not_trained(tmp_path):
    """torch's own dynamic int8 of all linear layers."""
    from torch.ao.quantization import quantize_dynamic

    from dragoman.routing.capture import capture

    model = quantize_dynamic(tiny("olmoe"), {torch.nn.Linear}, dtype=torch.qint8)
    trace = capture(model, {"en": ROWS.tolist()}, start_id=1)
    assert trace.chosen_GLE.sum() == ROWS.size * 2 * 3
    with pytest.raises(ModelError, match=r"quantised \(Linear.*\), they cannot be trained; open the original"):
        train(model, ROWS, config(), folder=tmp_path)


def test_weights_in_float16_are_not_trained(tmp_path):
    model = tiny("olmoe").half()
    with pytest.raises(ModelError, match=r"weights in float16 cannot be trained .* --dtype bfloat16, or in float32"):
        train(model, ROWS, config(), folder=tmp_path)
    assert all(torch.equal(p, q.half()) for p, q in zip(model.parameters(), tiny("olmoe").parameters(), strict=True))


def test_the_config_is_left_as_it_was(tmp_path):
    """Also in checkpoints: a model that was saved without a cache would generate slowly."""
    model = tiny("olmoe")
    before = model.config.to_dict()
    train(model, ROWS, config(), folder=tmp_path / "a")
    assert model.config.to_dict() == before and before["use_cache"]
    train(model, ROWS, config(checkpoint_steps=4), folder=tmp_path / "b")
    saved = json.loads((training.checkpoints(tmp_path / "b")[0] / "config.json").read_text())
    assert saved.get("use_cache", True)


def test_trackers_that_are_not_there_and_several_processes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="report_to names abacus, installed are"):
        train(tiny("olmoe"), ROWS, config(report_to=("abacus",)), folder=tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"start it without torchrun \(adapt, pretrain and mix train share it out\)"):
        train(tiny("olmoe"), ROWS, config(), folder=tmp_path)


def test_trackers_get_losses_and_evaluations(tmp_path, monkeypatch):
    """The route to a tracker, up to the place where TensorBoard or W&B would be called."""
    from transformers import TrainerCallback, integrations

    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append(logs)

    monkeypatch.setattr(training, "get_available_reporting_integrations", lambda: ["mine"])
    monkeypatch.setitem(integrations.integration_utils.INTEGRATION_TO_CALLBACK, "mine", Tracker)
    base = Measured({"ca": 2.0, "en": 1.0})
    guard = Guard(measure=lambda: Measured({"ca": 1.5, "en": 1.0}), base=base, target="ca", every=4)
    log = train(tiny("olmoe"), ROWS, config(report_to=("mine",)), folder=tmp_path, guard=guard)
    assert [x["loss"] for x in seen if "loss" in x] == pytest.approx(log.losses, abs=1e-3)
    assert [x["eval/bits_per_byte/ca"] for x in seen if "eval/bits_per_byte/ca" in x] == [1.5, 1.5]


def test_impossible_settings_are_all_named():
    with pytest.raises(ConfigError, match=r"micro_batch is 0, at least 1; warmup is -1, at least 0; seed is -1"):
        config(micro_batch=0, seed=-1, warmup=-1)
    with pytest.raises(ConfigError, match=r"no multiple.*do not fit.*precision"):
        Config(batch=5, micro_batch=2, steps=3, warmup=2, decay=4, precision="fp8")
    with pytest.raises(ConfigError, match=r"learning_rate is 0 or more, not nan; clip .* -1; balance .* inf"):
        Config(learning_rate=float("nan"), clip=-1, balance=float("inf"))


def test_an_extra_loss_trains_and_knows_its_rows_and_routers(tmp_path):
    """A loss that pulls every logit of the first router to zero, on a model whose text teaches nothing else."""
    model = tiny("olmoe")
    seen = []

    def extra(inputs, row_B, routed):
        seen.append((row_B.tolist(), inputs["input_ids"].tolist(), len(routed)))
        return 100 * routed[0].logits_TE.square().mean()

    layers = moe_layers(model)
    before = layers[0].router.weight.detach().norm()
    log = train(model, ROWS[:6], config(learning_rate=1e-2), folder=tmp_path, layers=layers, extra_loss=extra)
    assert len(log.extra_losses) == log.steps and log.extra_losses[-1] < log.extra_losses[0]
    assert layers[0].router.weight.norm() < 0.9 * before
    assert [rows for rows, _, _ in seen[:3]] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]
    assert all(ids == ROWS[rows].tolist() and n == len(layers) for rows, ids, n in seen)
