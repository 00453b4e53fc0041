"""LayerMoE: counts by hand, and likeness against all pairs of tokens."""

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.routing.expert_numbers import ExpertNumbers
from dragoman.routing.planners import LayerMoeConfig, layer_moe_numbers
from dragoman.routing.planners.layer_moe import experts_per_layer, mean_unit_vectors, similarity
from tests.models import dense, tiny

TEXTS = {"new": [[1, 5, 9, 30]], "old": [[1, 40, 8], [1, 22, 11, 60]]}


def test_counts_by_hand():
    # 1/S = 10, 5, 2.5, 2.5 of 20; of 8 experts 4, 2, 1, 1
    assert experts_per_layer([0.1, 0.2, 0.4, 0.4], 8) == [4, 2, 1, 1]
    assert experts_per_layer([0.1, 0.2, 0.4, 0.4], 9) == [5, 3, 2, 2]
    assert experts_per_layer([-0.3, 0.5], 10, least=0.5) == [5, 5]


PATHS = {
    "llama": ("model.layers.{}.mlp", 32),
    "bloom": ("transformer.h.{}.mlp", 64),
    "mpt": ("transformer.blocks.{}.ffn", 64),
    "apertus": ("model.layers.{}.mlp", 32),
}
"""Family -> path of its feed-forwards, and their width: four times the model's where no other can be asked for."""


@pytest.mark.parametrize("family", PATHS)
def test_likeness_is_that_of_all_pairs_of_tokens(family):
    model = tiny(family, intermediate_size=32)
    path, width = PATHS[family]
    modules = [model.get_submodule(path.format(i)) for i in range(3)]
    inputs = {g: [[], [], []] for g in TEXTS}
    for g, segments in TEXTS.items():
        hooks = [
            module.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0][0, 1:]))
            for module, seen in zip(modules, inputs[g], strict=True)
        ]
        for ids in segments:
            with torch.no_grad():
                model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
    cosine = torch.nn.functional.cosine_similarity
    wanted = []
    for i in range(3):
        new, old = torch.cat(inputs["new"][i]), torch.cat(inputs["old"][i])
        pairs = [cosine(a[:, None], b[None], dim=-1).mean() for a, b in ((new, new), (new, old))]
        wanted.append(float(sum(pairs) / 2))
    found = similarity(mean_unit_vectors(model, TEXTS), ["new"], ["old"])
    assert found == pytest.approx(wanted, abs=1e-6) and np.std(found) > 0
    plan = layer_moe_numbers(model, TEXTS, LayerMoeConfig(new=("new",), known=("old",), experts=9))
    assert list(plan.statistic.values()) == pytest.approx(wanted, abs=1e-6)
    assert plan.experts == dict(enumerate(experts_per_layer(wanted, 9)))
    assert (plan.width, plan.feed_forwards) == (16, dict.fromkeys(range(3), width)), "the shape of the model"
    low = int(np.argmin(wanted))
    assert f"least alike in layer {low} ({wanted[low]:.3f})" in plan.why[1]


def test_the_plan_survives_its_file(tmp_path):
    plan = layer_moe_numbers(dense(), TEXTS, LayerMoeConfig(new=("new",), known=("old",), experts=3))
    plan.save(tmp_path / "numbers.json")
    assert ExpertNumbers.load(tmp_path / "numbers.json") == plan
    assert plan.planner == "layer_moe" and plan.settings == {"new": ["new"], "known": ["old"], "experts": 3}


def test_bad_input_is_a_sentence():
    with pytest.raises(ConfigError, match="leaves none for some of 3 layers"):
        experts_per_layer([0.1, 0.2, 0.3], 2)
    with pytest.raises(ConfigError, match="with known ones: no new language is given; en is named more than once"):
        LayerMoeConfig(new=(), known=("en", "en"), experts=9)
    with pytest.raises(ConfigError, match="known ones: ru, en is named more than once"):
        LayerMoeConfig(new=("ru", "en"), known=("en", "ru"), experts=9)
    with pytest.raises(ModelError, match="OlmoeForCausalLM has experts already"):
        mean_unit_vectors(tiny("olmoe"), {"ca": [[1, 5]]})
    with pytest.raises(DataError, match="there is no text in ca to compare"):
        mean_unit_vectors(dense(), {"ca": [], "en": [[1, 5]]})


def test_nothing_is_read_for_a_plan_that_cannot_be():
    config = LayerMoeConfig(new=("ca",), known=("en",), experts=9)
    with pytest.raises(ModelError, match="OlmoeForCausalLM has experts already"):
        layer_moe_numbers(tiny("olmoe"), {"ca": [[1, 5]], "en": [[1, 6]]}, config)
    with pytest.raises(DataError, match="there is no text in en to compare"):
        layer_moe_numbers(dense(), {"ca": [[1, 5]]}, config)
    with pytest.raises(ConfigError, match="a budget of 2 experts leaves none for some of 3 layers"):
        layer_moe_numbers(dense(), {}, LayerMoeConfig(new=("ca",), known=("en",), experts=2))
