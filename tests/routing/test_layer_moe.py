"""LayerMoE: counts by hand, and likeness against all pairs of tokens."""

import numpy as np
import pytest
import torch

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.routing.layer_moe import experts_per_layer, mean_unit_vectors, similarity
from tests.models import dense, tiny


def test_counts_by_hand():
    # 1/S = 10, 5, 2.5, 2.5 of 20; of 8 experts 4, 2, 1, 1
    assert experts_per_layer([0.1, 0.2, 0.4, 0.4], 8) == [4, 2, 1, 1]
    assert experts_per_layer([0.1, 0.2, 0.4, 0.4], 9) == [5, 3, 2, 2]
    assert experts_per_layer([-0.3, 0.5], 10, least=0.5) == [5, 5]


PATHS = {
    "llama": "model.layers.{}.mlp",
    "bloom": "transformer.h.{}.mlp",
    "mpt": "transformer.blocks.{}.ffn",
    "apertus": "model.layers.{}.mlp",
}


@pytest.mark.parametrize("family", PATHS)
def test_likeness_is_that_of_all_pairs_of_tokens(family):
    model = tiny(family, intermediate_size=32)
    modules = [model.get_submodule(PATHS[family].format(i)) for i in range(3)]
    texts = {"new": [[1, 5, 9, 30]], "old": [[1, 40, 8], [1, 22, 11, 60]]}
    inputs = {g: [[], [], []] for g in texts}
    for g, segments in texts.items():
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
    found = similarity(mean_unit_vectors(model, texts), ["new"], ["old"])
    assert found == pytest.approx(wanted, abs=1e-6) and np.std(found) > 0


def test_bad_input_is_a_sentence():
    with pytest.raises(ConfigError, match="leaves none for some of 3 layers"):
        experts_per_layer([0.1, 0.2, 0.3], 2)
    with pytest.raises(ConfigError, match="compares new languages with old ones"):
        similarity({"en": np.ones((1, 2))}, ["ca"], ["en"])
    with pytest.raises(ModelError, match="OlmoeForCausalLM has experts already"):
        mean_unit_vectors(tiny("olmoe"), {"ca": [[1, 5]]})
    with pytest.raises(DataError, match="there is no text in ca to compare"):
        mean_unit_vectors(dense(), {"ca": [], "en": [[1, 5]]})
