"""Alignment of routing: the divergence against a naive oracle, the term in training, the reference, what trains."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import METHODS, alignment, reference, training
from dragoman.methods.alignment import Pairs, allocation_term, coarse, jensen_shannon, kl, mass_term
from dragoman.modeling import Routed, moe_layers, tap_routers, upstream_parameters
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from tests.models import FAMILIES, tiny

ENGLISH = [([1, 5, 9, 7, 3, 2], 4), ([1, 8, 9, 4, 2], 3), ([1, 6, 6, 30, 31, 2], 3)]
TARGET = [([1, 15, 19, 17, 13, 40, 2], 5), ([1, 18, 19, 2], 2), ([1, 16, 33, 2], 2)]
LABELS = ("ci", "cc", "ci")
PAD, WIDTH = 0, 8


def pairs(**changes) -> Pairs:
    return Pairs(**({"target": TARGET, "english": ENGLISH, "pad_id": PAD, "width": WIDTH, "labels": LABELS} | changes))


def rows() -> np.ndarray:
    return np.array([ids + [PAD] * (WIDTH - len(ids)) for ids, _ in TARGET], dtype=np.int32)


def labels() -> np.ndarray:
    return np.array([[-100] * n + ids[n:] + [-100] * (WIDTH - len(ids)) for ids, n in TARGET])


def plan_of(model, experts=(1, 4, 6)) -> ExpertPlan:
    """Task experts in the last two MoE layers."""
    layers = moe_layers(model)
    return ExpertPlan(
        planner="test",
        layers={x.layer_id: tuple(PlannedExpert(e, "shared") for e in experts) for x in layers[-2:]},
        num_experts={x.layer_id: x.num_experts for x in layers},
    )


def distributions(size, seed):
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(8), size))


# The divergence


def naive_kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def naive_coarse(q, task):
    return [q[e] for e in task] + [sum(x for e, x in enumerate(q) if e not in task)]


def test_divergence_by_hand():
    # task expert 1 of 3 has mass 1/2 in English and 1/4 here: 1/2 ln 2 + 1/2 ln(2/3)
    p, q, task = torch.tensor([[0.3, 0.5, 0.2]]), torch.tensor([[0.7, 0.25, 0.05]]), torch.tensor([False, True, False])
    torch.testing.assert_close(coarse(p, task), torch.tensor([[0.0, 0.5, 0.0, 0.5]]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl(coarse(p, task), coarse(q, task)).item() == pytest.approx(expected, rel=1e-6)
    assert mass_term(p, q, task).item() == pytest.approx(expected, rel=1e-6)
    assert allocation_term(p, q, task).item() == pytest.approx(0, abs=1e-7), "one expert has nothing to allocate"


@pytest.mark.parametrize("task", [(2,), (0, 3, 7), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_total_mass_and_allocation_add_up_to_the_divergence(task):
    """The chain rule, each side against a naive oracle."""
    p, q, task_E = distributions(20, 0), distributions(20, 1), torch.zeros(8, dtype=torch.bool)
    task_E[list(task)] = True
    whole = kl(coarse(p, task_E), coarse(q, task_E))
    mass, allocation = (term(p, q, task_E) for term in (mass_term, allocation_term))
    torch.testing.assert_close(mass + allocation, whole, rtol=1e-9, atol=1e-9)
    for row, (a, b) in enumerate(zip(p.tolist(), q.tolist(), strict=True)):
        assert whole[row].item() == pytest.approx(naive_kl(naive_coarse(a, task), naive_coarse(b, task)), abs=1e-9)
        m_a, m_b = (sum(x[e] for e in task) for x in (a, b))
        by_mass = naive_kl([m_a, 1 - m_a], [m_b, 1 - m_b]) if len(task) < 8 else 0.0
        assert mass[row].item() == pytest.approx(by_mass, abs=1e-9)
        spread = naive_kl([a[e] / m_a for e in task], [b[e] / m_b for e in task])
        assert allocation[row].item() == pytest.approx(m_a * spread, abs=1e-9)


def test_jensen_shannon_is_that_of_scipy():
    p, q = distributions(20, 0), distributions(20, 1)
    expected = [jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy(), strict=True)]
    np.testing.assert_allclose(jensen_shannon(p, q).numpy(), expected, rtol=1e-9)


def test_layers_of_unlike_width_and_recorded_probabilities_are_read_one_by_one():
    logits = [torch.randn(6, width, generator=torch.Generator().manual_seed(width)) for width in (4, 8)]
    counted = torch.tensor([[False, True, True], [True, True, False]])
    recorded = Routed(logits[1].softmax(-1), torch.zeros(6, 2), torch.zeros(6, 2))  # as some versions record
    routed = [Routed(x, torch.zeros(6, 2), torch.zeros(6, 2)) for x in logits]
    found = alignment.sequence_means([*routed, recorded], ["softmax"] * 3, counted)
    for row, x in enumerate([logits[0], logits[1], logits[1]]):
        share = x.softmax(-1).view(2, 3, -1)
        wanted = torch.stack([share[0, 1:].mean(0), share[1, :2].mean(0)])
        torch.testing.assert_close(found[:, row, : x.shape[-1]], wanted)
        assert not found[:, row, x.shape[-1] :].any()


def test_which_tokens_count():
    every = (alignment.counted_tokens(TARGET[:1], s, 8)[0].tolist() for s in ("both", "prompt", "answer"))
    both, prompt, answer = every
    assert both == [False, True, True, True, True, True, True, False]
    assert prompt == [False, True, True, True, True, False, False, False]
    assert answer == [False, False, False, False, False, True, True, False]
    with pytest.raises(DataError, match="1 of 1 items have no token in their prompt, such as item 0"):
        alignment.counted_tokens([([1, 5, 2], 1)], "prompt", 8)


# The term


def naive_share(model, ids, begin, end, family):
    """Mean distribution of one unpadded text in each MoE layer, straight from the recorded logits."""
    recorded = []

    def keep(layer):
        def hook(module, inputs, out):
            recorded.append(out if isinstance(out, torch.Tensor) else out[layer.logits_at])

        return hook

    hooks = [x.router.register_forward_hook(keep(x)) for x in moe_layers(model)]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    shares = []
    for logits in recorded:
        logits = logits.reshape(-1, 8)[begin:end].double()
        score = logits.sigmoid() if family == "deepseek_v3" else logits.exp()
        shares.append((score / score.sum(-1, keepdim=True)).mean(0).tolist())
    return shares


def naive_loss(base, model, family, task, chosen, match="both"):
    """Mean over all three items of the divergence of the chosen ones, mean over the last two layers."""
    total = 0.0
    for n in chosen:
        english = naive_share(base, ENGLISH[n][0], 1, None, family)[-2:]
        trained = naive_share(model, TARGET[n][0], 1, None, family)[-2:]
        for p, q in zip(english, trained, strict=True):
            c_p, c_q = naive_coarse(p, task), naive_coarse(q, task)
            mass = naive_kl([1 - c_p[-1], c_p[-1]], [1 - c_q[-1], c_q[-1]])
            total += {"both": naive_kl(c_p, c_q), "mass": mass, "allocation": naive_kl(c_p, c_q) - mass}[match] / 2
    return total / len(TARGET)


def term_of(loss, model):
    """The loss on all three rows, as the training loop computes it."""
    ids, row_B = torch.from_numpy(rows().astype(np.int64)), torch.arange(3)
    mask = (ids != PAD).long()
    with tap_routers(model, moe_layers(model)) as routed:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        return loss({"input_ids": ids, "attention_mask": mask}, row_B, routed)


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("match", ["both", "mass", "allocation"])
def test_the_term_equals_a_naive_loop_over_unpadded_items(family, match, tmp_path):
    base, model, method = tiny(family), tiny(family, seed=1), METHODS["ra_moe"]
    config = method.Config(weight=2.0, match=match)
    loss = method.extra_loss(base, config, plan_of(base), pairs(), tmp_path)
    expected = 2.0 * naive_loss(base, model, family, (1, 4, 6), [0, 2], match)
    assert term_of(loss, model).item() == pytest.approx(expected, rel=1e-4)


def test_items_and_band_choose_what_is_aligned(tmp_path):
    base, model, method = tiny("olmoe"), tiny("olmoe", seed=1), METHODS["ra_moe"]

    def value(**settings):
        loss = method.extra_loss(base, method.Config(**settings), plan_of(base), pairs(), tmp_path)
        return term_of(loss, model).item()

    expected = naive_loss(base, model, "olmoe", (1, 4, 6), [0, 1, 2])
    assert value(items="all", weight=1.0) == pytest.approx(expected, rel=1e-4)
    one = [value(band=(layer, layer)) for layer in (1, 2)]
    assert value() == pytest.approx(sum(one) / 2, rel=1e-5)
    assert value(sequence="answer") != pytest.approx(value(sequence="prompt"), rel=1e-3)


def test_sara_is_the_jensen_shannon_divergence_over_all_experts(tmp_path):
    base, model, method = tiny("olmoe"), tiny("olmoe", seed=1), METHODS["sara"]
    loss = method.extra_loss(base, method.Config(weight=1.5, band=(1, 2)), None, pairs(), tmp_path)
    expected = 0.0
    for n in range(3):  # all are right in English
        english, trained = (naive_share(m, x[n][0], 1, None, "olmoe") for m, x in ((base, ENGLISH), (model, TARGET)))
        expected += sum(jensenshannon(p, q) ** 2 for p, q in zip(english[1:], trained[1:], strict=True)) / 2
    assert term_of(loss, model).item() == pytest.approx(1.5 * expected / 3, rel=1e-4)


def test_router_alignment_lets_gradients_into_both_sides(tmp_path):
    """Oracle: the same divergence from two plain passes, by autograd."""
    model, method = tiny("olmoe"), METHODS["router_alignment"]
    twin = copy.deepcopy(model)
    value = {}
    for source in ("trained", "base"):
        config = method.Config(weight=0.1, source=source, band=(1, 2), train="full")
        model.zero_grad()
        loss = term_of(method.extra_loss(model, config, None, pairs(labels=()), tmp_path), model)
        loss.backward()
        value[source] = loss.item(), moe_layers(model)[1].router.weight.grad.clone()
    total = 0.0
    for n in range(3):
        sides = []
        for ids, _ in (ENGLISH[n], TARGET[n]):
            logits = twin(torch.tensor([ids]), output_router_logits=True).router_logits
            sides.append([x.softmax(-1)[1:].mean(0) for x in logits[1:]])
        total = total + sum((p * (p / q).log()).sum() for p, q in zip(*sides, strict=True)) / 2
    (200 * 0.1 * total / 3).backward()
    assert value["trained"][0] == pytest.approx(value["base"][0], rel=1e-4)
    assert value["trained"][0] == pytest.approx(20 * total.item() / 3, rel=1e-4)
    expected = moe_layers(twin)[1].router.weight.grad
    torch.testing.assert_close(value["trained"][1], expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(value["base"][1], expected, rtol=1e-3, atol=1e-5), "otherwise this sees nothing"


def test_nothing_pulls_where_the_routing_is_that_of_english(tmp_path):
    """Same items on both sides: the divergence is zero, and so is its gradient."""
    model, method = tiny("olmoe"), METHODS["ra_moe"]
    loss = term_of(method.extra_loss(model, method.Config(), plan_of(model), pairs(english=TARGET), tmp_path), model)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(x.router.weight.grad.abs().max().item() for x in moe_layers(model)) < 1e-5


def test_training_with_the_term_brings_routing_nearer_than_without(tmp_path):
    shape = {"steps": 30, "batch": 3, "micro_batch": 3, "warmup": 1, "decay": 5}
    settings = training.Config(**shape, learning_rate=1e-2, precision="fp32")
    ra_moe = METHODS["ra_moe"]
    distance, logs = {}, {}
    for name in ("sft", "ra_moe"):
        model, base, method = tiny("olmoe"), tiny("olmoe"), METHODS[name]
        probe = ra_moe.extra_loss(base, ra_moe.Config(weight=1.0), plan_of(base), pairs(), tmp_path)
        loss, config, plan = None, method.Config(), None
        if name == "ra_moe":
            config, plan = method.Config(weight=20.0), plan_of(model)
            loss = method.extra_loss(model, config, plan, pairs(), tmp_path)
        method.apply(model, config, plan)
        logs[name] = training.train(
            model,
            rows(),
            settings,
            layers=loss.layers if loss else (),
            extra_loss=loss,
            labels_NS=labels(),
            pad_id=PAD,
            folder=tmp_path / name,
        )
        distance[name] = term_of(probe, model).item()
    assert distance["ra_moe"] < 0.3 * distance["sft"]
    assert logs["ra_moe"].losses[0] == pytest.approx(logs["sft"].losses[0], rel=1e-6), "the log is cross-entropy alone"


# The kept reference


def test_the_reference_is_computed_once_and_checked(tmp_path, monkeypatch):
    model = tiny("olmoe")
    layers = moe_layers(model)

    def read(samples=ENGLISH, m=model):
        routed = layers if m is model else moe_layers(m)
        return reference.base_routing(m, routed, samples, "both", pad_id=0, folder=tmp_path)

    first = read()
    for n, (ids, _) in enumerate(ENGLISH):
        np.testing.assert_allclose(first[n], naive_share(model, ids, 1, None, "olmoe"), rtol=1e-4)
    monkeypatch.setattr(reference, "hidden_states", None)
    np.testing.assert_array_equal(read(), first)
    with pytest.raises(TypeError):
        read(ENGLISH[:2])
    with pytest.raises(TypeError):
        read(m=tiny("olmoe", seed=1))
    with pytest.raises(TypeError):  # the same weights, read otherwise
        read(m=tiny("olmoe", norm_topk_prob=not model.config.norm_topk_prob))
    (kept,) = tmp_path.glob("*.npz")
    data = kept.read_bytes()
    for damaged in (data[: len(data) // 4] + b"?" + data[len(data) // 4 + 1 :], b""):
        kept.write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged: its checksum does not fit; remove it"):
            read()


# What trains


def trains(name, **settings):
    model = tiny("olmoe")
    METHODS[name].apply(model, METHODS[name].Config(**settings), plan_of(model) if name == "ra_moe" else None)
    return {n for n, p in model.named_parameters() if p.requires_grad}, model


def test_what_trains_by_hand():
    routers = {f"model.layers.{i}.mlp.gate.weight" for i in range(3)}
    assert trains("ra_moe")[0] == trains("sft")[0] == routers
    names, model = trains("sara")
    assert names == {n for n, _ in model.named_parameters()}
    upstream, model = trains("router_alignment", band=(0, 1))
    assert "model.layers.1.mlp.gate.weight" in upstream and "model.layers.0.mlp.experts.down_proj" in upstream
    assert "model.embed_tokens.weight" in upstream and "model.layers.1.self_attn.q_proj.weight" in upstream
    left = {n for n, _ in model.named_parameters()} - upstream
    assert {"model.layers.1.mlp.experts.down_proj", "model.norm.weight", "lm_head.weight"} <= left
    assert all(n.startswith(("model.layers.1.mlp.experts", "model.layers.2", "model.norm", "lm_head")) for n in left)


@pytest.mark.parametrize("family", FAMILIES)
def test_upstream_is_what_the_routers_logits_depend_on(family):
    """Oracle: autograd. Norms of the layer may stand behind the router and count all the same."""
    model = tiny(family)
    layer = moe_layers(model)[-2]
    with tap_routers(model, moe_layers(model)) as seen:
        model(torch.arange(3, 63).view(3, 20))
    seen[-2].logits_TE.square().sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    upstream = set(map(id, upstream_parameters(model, layer)))
    named = {n for n, p in model.named_parameters() if id(p) in upstream}
    assert reached <= named
    assert all("norm" in n for n in named - reached)
    assert len(named) < len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sft", {}), ("ra_moe", {"train": "lora"}), ("sara", {}), ("router_alignment", {}), ("sara", {"train": "lora"})],
)
def test_training_changes_what_the_method_says_and_nothing_else(name, settings):
    pytest.importorskip("peft")
    model, method, ids = tiny("qwen2_moe"), METHODS[name], torch.arange(3, 63).view(3, 20)
    before, plan = copy.deepcopy(model.state_dict()), plan_of(model) if name == "ra_moe" else None
    said = method.changes(model, method.Config(**settings), plan)
    method.apply(model, method.Config(**settings), plan)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    method.merge(model)
    assert {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])} == set(said)


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_lora_starts_at_the_base_trains_and_merges(family):
    pytest.importorskip("peft")
    model, method = tiny(family), METHODS["sft"]
    plain, ids = copy.deepcopy(model), torch.arange(3, 63).view(3, 20)
    method.apply(model, method.Config(train="lora", rank=4), None)
    assert torch.equal(model(ids).logits, plain(ids).logits)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[-2] for n in own if "lora" not in n} == {"gate"}
    assert any("lora_B" in n and "attn" in n for n in own)
    optimizer = torch.optim.AdamW(own.values(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    trained = model(ids).logits
    assert not torch.allclose(trained, plain(ids).logits, atol=1e-3)
    method.merge(model)
    torch.testing.assert_close(model(ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(type(a) is type(b) for a, b in zip(model.modules(), plain.modules(), strict=True))
    assert not hasattr(model, "peft_config")


# Messages


def test_errors(tmp_path):
    model, method = tiny("olmoe"), METHODS["ra_moe"]
    plan = plan_of(model)

    def loss(settings=None, plan=plan, **changes):
        return method.extra_loss(model, method.Config(**(settings or {})), plan, pairs(**changes), tmp_path)

    with pytest.raises(ConfigError, match="`dragoman plan`"):
        loss(plan=None)
    with pytest.raises(DataError, match=r"none of the 3 training items .* \(ci\), so there is nothing to align"):
        loss(labels=("cc", "ii", "ic"))
    with pytest.raises(ConfigError, match=r"run `dragoman categorize`"):
        loss(labels=())
    with pytest.raises(ConfigError, match=r"band 2 to 9 does not fit; give two of the MoE layers 0, 1, 2"):
        loss({"band": (2, 9)})
    with pytest.raises(ConfigError, match=r"names no expert in the band 0 to 0, its layers are 1, 2"):
        loss({"band": (0, 0)})
    with pytest.raises(ModelError, match=r"the plan is of another model, which has .*16 experts in layer 2"):
        loss(plan=ExpertPlan("test", {2: (PlannedExpert(1, "shared"),)}, {2: 16}))
    with pytest.raises(ConfigError, match="weight of the alignment is 0"):
        method.Config(weight=0)
    with pytest.raises(ConfigError, match="rank 4 has no effect where routers trains"):
        method.Config(rank=4)
    for name in ("sara", "router_alignment", "sft"):
        with pytest.raises(ConfigError, match="plan"):
            METHODS[name].apply(model, METHODS[name].Config(), plan)
