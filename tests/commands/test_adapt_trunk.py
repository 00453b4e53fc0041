"""`dragoman adapt --trunk-cache`: every epoch has the same rows, and they are read from the cache."""

import json

import numpy as np
import pytest

from dragoman.commands import adapt
from dragoman.commands.forgetting import Evaluation
from dragoman.corpora.pack import open_corpus
from dragoman.errors import ConfigError
from dragoman.modeling import moe_layers, open_both
from dragoman.routing.plan import ExpertPlan, PlannedExpert

TEXT = adapt.Text(segments=12, epochs=3, block=96, batch=4)


def test_every_epoch_has_the_same_rows_in_an_order_of_its_own():
    _, codec = open_both("mini-moe")
    rows = adapt.training_rows(codec, open_corpus("help"), "ca", TEXT, 0, same=True)
    epochs = np.split(rows.tokens_NS, 3)
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({tuple(sorted(map(bytes, epoch))) for epoch in epochs}) == 1
    assert rows.labels_NS.shape == rows.tokens_NS.shape
    labelled = rows.labels_NS >= 0
    assert np.array_equal(rows.labels_NS[labelled], rows.tokens_NS[labelled]), "labels went with their rows"


def test_adapting_on_a_cache(tmp_path):
    model, codec = open_both("mini-moe")
    last = moe_layers(model)[-1]
    plan = ExpertPlan(
        planner="test",
        target="ca",
        layers={last.layer_id: (PlannedExpert(0, "language"), PlannedExpert(1, "language"))},
        num_experts={x.layer_id: x.num_experts for x in moe_layers(model)},
        train_routers=True,
        trace_sha256="0" * 64,
    )
    plan.save(tmp_path / "plan.json")
    given = {"target": "ca", "plan": tmp_path / "plan.json", "text": TEXT, "quiet": True, "precision": "fp32"}
    given["evaluation"] = Evaluation(segments=0)
    with_it = adapt.run(
        adapt.Config("mini-moe", **given, out=tmp_path / "a", trunk_cache=tmp_path / "trunk", trunk_dtype="fp32")
    )
    dry = adapt.run(adapt.Config("mini-moe", **given, out=tmp_path / "b", trunk_cache=tmp_path / "no", dry_run=True))
    size = (tmp_path / "trunk" / "activations.bin").stat().st_size
    assert dry["trunk_cache"]["mib"] * 2**20 == pytest.approx(size / 2, rel=1e-6), "in bf16 half of fp32"
    assert not (tmp_path / "no").exists()
    about = json.loads((tmp_path / "trunk" / "trunk.json").read_text())
    rows = adapt.training_rows(codec, open_corpus("help"), "ca", TEXT, 0, same=True)
    assert about["shape"][:2] == [len(rows.tokens_NS) // 3, 96], "what comes three times is kept once"
    assert about["cut"] == last.layer_id
    assert with_it["trunk_difference"] < 1e-4
    assert with_it["log"]["losses"][-1] < with_it["log"]["losses"][0]


def test_dtype_without_a_cache_is_refused():
    with pytest.raises(ConfigError, match="trunk_dtype has no effect without --trunk-cache"):
        adapt.Config("mini-moe", target="ca", trunk_dtype="fp32")
