"""The stages of Mix-MoE and MoE-LPR: what trains, what keeps its bits, what is refused; losses by hand."""

import copy
import math

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from dragoman.errors import ConfigError, ModelError
from dragoman.methods import mix_moe, moe_lpr
from dragoman.modeling import moe_layers, tap_routers, upcycle
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import set_settings, settings_of
from tests.models import tiny

IDS = torch.randint(3, 64, (8, 24), generator=torch.Generator().manual_seed(1))


def converted(family="llama", **changes):
    sizes = {"intermediate_size": 32} | ({"ffn_dim": 32} if family == "opt" else {})
    return to_mix_moe(tiny(family, **sizes | changes), Conversion())


def train(model, steps=3):
    """Updates with weight decay, which moves what only seems frozen."""
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not [n for n in own if ".act_fn." in n], "the activation is that of both groups"
    optimizer = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()


def moved(before, model):
    """{(name, row)} of everything that changed a bit; row None for tensors without experts."""
    found = set()
    for name, now in model.state_dict().items():
        if ".experts." in name and ".act_fn." not in name:
            found |= {
                (name[name.index("experts.") :], e) for e in range(4) if not torch.equal(now[e], before[name][e])
            }
        elif not torch.equal(now, before[name]):
            found.add(("router" if ".router." in name else name, None))
    return found


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "mpt", "apertus"])
def test_each_stage_trains_its_group_and_routers_and_nothing_else(family):
    model = converted(family)
    start, dense = copy.deepcopy(model.state_dict()), model(IDS).logits
    mix_moe.apply(model, mix_moe.Config(stage=1))
    assert torch.equal(model(IDS).logits, dense), "stage 1 starts at what was converted"
    train(model)
    trained = model(IDS).logits
    mix_moe.merge(model)
    assert torch.equal(model(IDS).logits, trained) and settings_of(model).stage == 1
    stacks = {n for n, _ in moe_layers(model)[0].experts.named_parameters(recurse=False)}
    assert moved(start, model) == {(f"experts.{n}", e) for n in stacks for e in (0, 1)} | {("router", None)}
    routers = [n for n in start if n.endswith(".router.weight")]
    assert len(routers) == 3
    for name in routers:  # of masked rows weight decay alone would make others
        before, now = start[name], model.state_dict()[name]
        assert torch.equal(now[2:], before[2:]) and not torch.equal(now[:2], before[:2])
        assert before[2:].any()

    between = copy.deepcopy(model.state_dict())
    mix_moe.apply(model, mix_moe.Config(stage=2))
    train(model)
    mix_moe.merge(model)
    assert settings_of(model).stage == 2 and not settings_of(model).masked
    assert moved(between, model) == {(f"experts.{n}", e) for n in stacks for e in (2, 3)} | {("router", None)}


def test_masked_rows_come_back_with_the_weights_of_a_checkpoint():
    model, begun = converted(), converted()
    start = copy.deepcopy(model.state_dict())
    for one in (model, begun):
        mix_moe.apply(one, mix_moe.Config(stage=1))
    assert not [n for n in model.state_dict() if "masked" in n], "a checkpoint does not hold them"
    train(model)
    begun.load_state_dict(model.state_dict(), strict=True)
    for one in (model, begun):
        mix_moe.merge(one)
        for layer in moe_layers(one):
            assert "masked_MX" not in vars(layer.router)
        for name in (n for n in start if n.endswith(".router.weight")):
            assert torch.equal(one.state_dict()[name][2:], start[name][2:])


def test_stages_in_the_wrong_order_are_sentences():
    model = converted()
    with pytest.raises(ModelError, match=r"stage 2 goes on from a model that stage 1 has trained.*run stage 1"):
        mix_moe.apply(model, mix_moe.Config(stage=2))
    set_settings(model, stage=2)
    with pytest.raises(ModelError, match="stage 1 was given a model that stage 2 has trained"):
        mix_moe.apply(model, mix_moe.Config(stage=1))
    with pytest.raises(ConfigError, match="stages 1 and 2, not 3"):
        mix_moe.Config(stage=3)
    with pytest.raises(ModelError, match="OlmoeForCausalLM is no Mix-MoE model"):
        mix_moe.apply(tiny("olmoe"), mix_moe.Config())
    with pytest.raises(ConfigError, match="a plan has no effect"):
        mix_moe.apply(model, mix_moe.Config(), mix_moe.group_plan(model, settings_of(model), 1))


def test_balance_counts_eligible_experts():
    """Even routing over the two eligible of four experts is a balance of one, as over all four."""
    from dragoman.methods.losses import balance_loss

    model = converted()
    with torch.no_grad(), tap_routers(model, moe_layers(model)) as seen:
        model(IDS)
    even = balance_loss(seen[0].logits_TE, seen[0].indices_TK, torch.ones(8 * 24, dtype=torch.bool))
    assert float(even) == pytest.approx(1)


# MoE-LPR


def upcycled(stage=0):
    model = upcycle(tiny("llama"), 4, 2, seed=0)
    model.config.moe_lpr_stage = stage
    return model


def test_lpr_trains_new_experts_and_routers_then_routers_alone():
    model = upcycled()
    start = copy.deepcopy(model.state_dict())
    moe_lpr.apply(model, moe_lpr.Config(stage=1))
    train(model)
    moe_lpr.merge(model)
    changed = {(n.split(".mlp.")[-1], e) for n, e in moved(start, model)}
    stacks = {(f"experts.{n}", e) for n in ("gate_up_proj", "down_proj") for e in (1, 2, 3)}
    assert changed == stacks | {("gate.weight", None)}
    assert type(model).__name__ == "MixtralForCausalLM"

    between = copy.deepcopy(model.state_dict())
    moe_lpr.apply(model, moe_lpr.Config(stage=2))
    train(model)
    moe_lpr.merge(model)
    assert {n.split(".mlp.")[-1] for n, _ in moved(between, model)} == {"gate.weight"}


def test_lpr_loss_by_hand_and_as_released():
    logits = torch.tensor([[math.log(3.0), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]])
    old = torch.tensor([True, True, False])
    # expert 0 has a half of the first token and a quarter of the second
    assert float(moe_lpr.lpr_loss(logits, old)) == pytest.approx((math.log(2) + math.log(4)) / 2)
    sure = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    assert float(moe_lpr.lpr_loss(sure, old[:1])) == pytest.approx(0, abs=1e-6)
    # softmax of (1, 0, 0, 0): the least that the released loss can be
    assert float(moe_lpr.lpr_loss(sure, old[:1], "released")) == pytest.approx(math.log(1 + 3 / math.e))
    assert float(moe_lpr.lpr_loss(logits, ~old & old)) == 0.0
    for mode in ("logits", "released"):  # some versions of transformers record probabilities
        found = moe_lpr.lpr_loss(logits.softmax(-1), old, mode)
        assert float(found) == pytest.approx(float(moe_lpr.lpr_loss(logits, old, mode)))
    zeros = torch.zeros(2, 4, requires_grad=True)
    moe_lpr.lpr_loss(zeros, old[:2]).backward()
    assert zeros.grad.isfinite().all()


def test_lpr_loss_sees_old_rows_and_no_filler():
    loss = moe_lpr.extra_loss(moe_lpr.Config(stage=2, lpr=2.0), [False, True, False])
    from dragoman.modeling import Routed

    logits = torch.zeros(2 * 3, 4)
    logits[0:3] = torch.tensor([0.0, 9.0, 0.0, 0.0])  # row 0 of the text is new
    logits[5] = torch.tensor([0.0, 9.0, 0.0, 0.0])  # filler of row 1
    inputs = {"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    routed = [Routed(logits, torch.zeros(6, 2), torch.zeros(6, 2))] * 2
    # two old tokens where a third of five is expected
    assert float(loss(inputs, torch.tensor([0, 1]), routed)) == pytest.approx(2 * 2 * math.log(4) / (5 / 3))


def test_lpr_loss_of_an_update_is_the_same_in_any_passes():
    from dragoman.modeling import Routed

    loss = moe_lpr.extra_loss(moe_lpr.Config(stage=2, lpr=1.0), [True, False, False, True, False, False])
    logits_BSE = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))

    def in_passes(size):
        rows = [range(i, i + size) for i in range(0, 6, size)]
        found = [
            loss(
                {"input_ids": torch.zeros(size, 3)},
                torch.tensor(list(some)),
                [Routed(logits_BSE[list(some)].flatten(0, 1), torch.zeros(3 * size, 2), torch.zeros(3 * size, 2))],
            )
            for some in rows
        ]
        return float(torch.stack(found).mean())

    old_T = torch.tensor([True, False, False, True, False, False]).repeat_interleave(3)
    whole = float(moe_lpr.lpr_loss(logits_BSE.flatten(0, 1), old_T))
    assert [in_passes(size) for size in (1, 2, 3, 6)] == pytest.approx([whole] * 4)


def test_lpr_pulls_old_text_to_the_first_expert():
    model = upcycled(stage=1)
    moe_lpr.apply(model, moe_lpr.Config(stage=2))
    layers, loss = moe_layers(model), moe_lpr.extra_loss(moe_lpr.Config(stage=2), [True] * 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    found = []
    for _ in range(15):
        with tap_routers(model, layers) as seen:
            model(IDS)
        found.append(loss({"input_ids": IDS}, torch.arange(8), seen))
        optimizer.zero_grad()
        found[-1].backward()
        optimizer.step()
    assert found[-1] < 0.5 * found[0]
    assert nn.functional.softmax(seen[0].logits_TE, -1)[:, 0].mean() > 0.5


def test_lpr_settings_are_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="modes logits and released"):
        moe_lpr.Config(mode="twice")
    with pytest.raises(ConfigError, match=r"loss is -5, but it has to be above 0"):
        moe_lpr.Config(lpr=-5)
    with pytest.raises(ConfigError, match="a plan has no effect"):
        moe_lpr.apply(upcycled(), moe_lpr.Config(), moe_lpr.new_experts(upcycled()))
    with pytest.raises(ModelError, match=r"this OlmoeForCausalLM was not made by `dragoman models upcycle`"):
        moe_lpr.apply(tiny("olmoe"), moe_lpr.Config())
    with pytest.raises(ModelError, match=r"this MixtralForCausalLM was only upcycled; run stage 1"):
        moe_lpr.apply(upcycled(), moe_lpr.Config(stage=2))
    with pytest.raises(ModelError, match="given a model that stage 2 has trained"):
        moe_lpr.apply(upcycled(stage=2), moe_lpr.Config())


def test_lpr_keeps_in_the_saved_model_what_was_trained(tmp_path):
    model = upcycled()
    moe_lpr.apply(model, moe_lpr.Config(stage=1))
    moe_lpr.merge(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "MixtralForCausalLM"
    moe_lpr.apply(again, moe_lpr.Config(stage=2))


# Two processes


def losses(model, ids, steps=3):
    """Of three updates of stage 2."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def of_stage_two():
    """With routers that have a say: between equal logits rounding would choose."""
    model = converted()
    generator = torch.Generator().manual_seed(3)
    for layer in moe_layers(model):
        layer.router.weight.data.normal_(std=0.5, generator=generator)
    set_settings(model, stage=1)
    mix_moe.apply(model, mix_moe.Config(stage=2))
    return model


def train_on_a_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = of_stage_two()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = losses(model, IDS[4 * rank : 4 * rank + 4])
    distributed.all_reduce(found)
    if rank == 0:
        torch.save(found / 2, folder / "losses.pt")
    distributed.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
def test_two_sharded_processes_train_like_one(tmp_path):
    multiprocessing.spawn(train_on_a_rank, (tmp_path,), nprocs=2)
    alone = losses(of_stage_two(), IDS)
    torch.testing.assert_close(torch.load(tmp_path / "losses.pt"), alone, rtol=1e-4, atol=0)
    assert alone[2] < alone[0] - 1e-3, "otherwise nothing trained"
