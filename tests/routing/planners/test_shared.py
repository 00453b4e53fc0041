"""Shared: experts that two languages both use."""

import numpy as np
import pytest

from dragoman.errors import ConfigError
from dragoman.routing.planners import SharedConfig, shared_plan
from dragoman.routing.sharing import Counted, FractionConfig, find


def plan(trace, *between, **settings):
    return shared_plan(trace, SharedConfig(between=between, **settings))


def test_by_hand(trace):
    # the two most used, layer 2: en .40 .30 - -, ru .40 - - .30; layer 3: en .50 .30 -, ru - .40 .40
    made = plan(trace, "en", "ru", keep=2)
    assert made.experts() == {2: (0,), 3: (1,)}, "by default layers 10/48 to 39/48 of the depth: 2 and 3 of 1 to 3"
    assert [e.statistic for x in made.layers.values() for e in x] == [0.5, round(3 / 7, 6)]
    assert {(e.role, e.threshold) for x in made.layers.values() for e in x} == {("shared", 0.7)}
    turned = plan(trace, "ru", "en", keep=2)
    assert [e.statistic for e in turned.layers[3]] == [round(4 / 7, 6)], "the first language's share"
    assert plan(trace, "en", "ru", keep=2, below=0.55).experts() == {2: (0,)}, "ru has 4/7 of expert 1 of layer 3"
    assert plan(trace, "en", "ca", layers=(1,), keep=1, below=0.9).experts() == {1: (0,)}, "ca .97 of 1.22"
    assert not made.train_routers
    assert made.why[0].startswith("2 of the 6 experts that en or ru use most in layers 2 to 3 are used by both")


def test_it_is_the_rule_fraction_where_a_third_language_has_nothing_to_say(trace):
    """With three languages of which two are the same, an expert is shared where `fraction` finds it so."""
    rows = [trace.index(g) for g in ("en", "ru", "en")]
    counted = Counted(trace.chosen_GLE[rows], np.array(trace.num_experts), np.array(trace.top_k))
    found_LE = find("fraction", counted, FractionConfig(keep=2, shared=1.0)).shared_LE
    made = plan(trace, "en", "ru", keep=2, below=1.0, layers=(1, 2, 3))
    assert {(layer, e) for layer, ids in made.experts().items() for e in ids} == {
        (trace.layer_ids[row], int(e)) for row, e in np.argwhere(found_LE)
    }


def test_faults(trace):
    with pytest.raises(ConfigError, match=r"takes two languages, not en.*below is 0\.5.*keep is 0"):
        plan(trace, "en", "en", below=0.5, keep=0)
    with pytest.raises(ConfigError, match=r"holds no zh, only en, es, ru, ca, uk; name others \(between\)"):
        shared_plan(trace, SharedConfig())
    with pytest.raises(ConfigError, match=r"selects no expert in layers 2; raise keep or below"):
        plan(trace, "es", "uk", layers=(2,), keep=1, below=0.501)  # uk has .41 of .81
