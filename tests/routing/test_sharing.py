import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.routing import planners, sharing
from dragoman.routing.sharing import Counted

RULE_NAMES = list(sharing.RULES)


def counted(count_GLE, top_k=1, num_experts=None, reference=0):
    count_GLE = np.array(count_GLE)
    layers, width = count_GLE.shape[1:]
    return Counted(count_GLE, np.array(num_experts or [width] * layers), np.full(layers, top_k), reference)


def ids(chosen_LE):
    return [np.flatnonzero(row).tolist() for row in chosen_LE]


def drawn(languages=4, layers=8, experts=16, seed=0, tokens=2000):
    rng = np.random.default_rng(seed)
    share_GLE = rng.dirichlet(np.full(experts, 0.5), size=(languages, layers))
    return rng.multinomial(tokens, share_GLE)


# ---- each rule by hand


def test_gap_by_hand():
    table = counted([[[70, 20, 10, 0]], [[10, 25, 65, 0]], [[10, 20, 70, 0]]])
    found = sharing.find("gap", table, sharing.GapConfig(alpha=0.05, shared=1))
    # expert 0: .7 leads .1; expert 1: .25 leads .2 by just alpha; expert 2: .7 leads .65 by just alpha
    assert [ids(x) for x in found.exclusive_GLE] == [[[0]], [[1]], [[2]]]
    assert ids(found.shared_LE) == [[2]]  # means .3, .217, .483
    strict = sharing.find("gap", table, sharing.GapConfig(alpha=0.06, shared=1))
    assert [ids(x) for x in strict.exclusive_GLE] == [[[0]], [[]], [[]]]


def test_fraction_by_hand():
    table = counted([[[60, 30, 10, 0]], [[5, 35, 60, 0]], [[15, 35, 50, 0]]])
    found = sharing.find("fraction", table, sharing.FractionConfig(keep=2))
    # kept: .6 .3 | .35 .6 | .35 .5; fractions of expert 0: 1; of 1: .3, .35, .35; of 2: 0, .545, .455
    assert [ids(x) for x in found.exclusive_GLE] == [[[0]], [[2]], [[2]]]
    assert ids(found.shared_LE) == [[1]]
    with pytest.raises(DataError, match="'fraction' needs 3 languages or more, 2 given"):
        sharing.find("fraction", counted(table.count_GLE[:2]))


def test_specificity_by_hand():
    # three layers are zones of one each, and each zone gets one of three experts
    a = [[90, 10], [50, 50], [20, 80]]
    b = [[70, 30], [50, 50], [40, 60]]
    table = counted([a, b])
    found = sharing.find("specificity", table, sharing.SpecificityConfig(experts=3, alpha=0))
    # alpha 0: shallow S of a: .9/.8, .1/.2; of b: .7/.8, .3/.2; deep of a: .2/.3, .8/.7; of b: .4/.3, .6/.7
    assert [ids(x) for x in found.exclusive_GLE] == [[[0], [], [1]], [[1], [], [0]]]
    assert ids(found.shared_LE) == [[], [0], []], "of equal values the smaller id"
    weighted = sharing.find("specificity", table, sharing.SpecificityConfig(experts=3, alpha=10))
    # b shallow: .875 (1 + 7) > 1.5 (1 + 3), usage outweighs; deep: 1.33 (1 + 4) > .857 (1 + 6)
    assert ids(weighted.exclusive_GLE[1]) == [[0], [], [0]]


def test_specificity_takes_its_number_in_the_published_zones():
    table = counted(drawn(layers=48, experts=128, tokens=20000), top_k=8)
    found = sharing.find("specificity", table)
    assert sharing._zones(48) == (slice(0, 18), slice(18, 30), slice(30, 48))
    per_zone = [[int(x[z].sum()) for z in sharing._zones(48)] for x in found.exclusive_GLE]
    assert all(zone == per_zone[0] for zone in per_zone)
    # 128 x (.35, .25, .40) = 44.8, 32, 51.2; the one left goes to the zone with most room, the shallow
    assert per_zone[0] == [45, 0, 51]
    assert found.shared_LE[18:30].sum() == found.shared_LE.sum() == 32


def test_a_full_zone_spills_to_the_one_with_most_room():
    table = counted(drawn(layers=8, experts=4))
    found = sharing.find("specificity", table, sharing.SpecificityConfig(experts=30))
    # room 12, 8, 12; budget 10.5, 7.5, 12: 10 + 7 + 12 and one more for the shallow
    assert [int(found.exclusive_GLE[0][z].sum()) for z in sharing._zones(8)] == [11, 0, 12]
    assert found.shared_LE.sum() == 7


def test_contrast_by_hand():
    table = counted([[[6, 2, 0, 0]], [[2, 2, 4, 0]], [[6, 1, 1, 0]]], top_k=2, reference=2)
    found = sharing.find("contrast", table, sharing.ContrastConfig(tau=0.24))
    # shares of tokens: 1.5 .5 0 | .5 .5 1 | 1.5 .25 .25; against the third: 0 .25 -.25 | -1 .25 .75
    assert [ids(x) for x in found.exclusive_GLE] == [[[1]], [[1, 2]], [[]]]
    assert not found.shared_LE.any()


# ---- what all rules keep


@pytest.mark.parametrize("name", RULE_NAMES)
def test_padding_is_never_selected_and_the_order_of_languages_does_not_matter(name):
    count_GLE = drawn()
    plain = sharing.find(name, counted(count_GLE))
    padded = counted(np.pad(count_GLE, [(0, 0), (0, 0), (0, 3)]), num_experts=[16] * 8)
    wide = sharing.find(name, padded)
    assert (wide.exclusive_GLE[..., :16] == plain.exclusive_GLE).all() and not wide.exclusive_GLE[..., 16:].any()
    assert (wide.shared_LE[:, :16] == plain.shared_LE).all() and not wide.shared_LE[:, 16:].any()
    assert plain.exclusive_GLE.any(), "otherwise nothing is checked"
    turned = sharing.find(name, counted(count_GLE[::-1], reference=3))
    assert (turned.exclusive_GLE[::-1] == plain.exclusive_GLE).all()


@pytest.mark.parametrize("name", RULE_NAMES)
def test_languages_routed_alike_have_no_experts_of_their_own(name):
    one_LE = drawn(languages=1)[0]
    found = sharing.find(name, counted(np.stack([one_LE] * 3)))
    if name == "specificity":
        assert (found.exclusive_GLE == found.exclusive_GLE[0]).all(), "it finds its number, the same for all"
    else:
        assert not found.exclusive_GLE.any()


@pytest.mark.parametrize("name", RULE_NAMES)
def test_unused_experts_and_a_single_layer_are_no_trouble(name):
    count_GLE = drawn(layers=1)
    count_GLE[:, :, 3] = 0
    with np.errstate(all="raise"):
        found = sharing.find(name, counted(count_GLE))
    assert not found.exclusive_GLE[:, :, 3].any() and not found.shared_LE[:, 3].any()


def test_gap_selects_what_the_planner_plans(make_trace):
    count_GLE = drawn(languages=4, layers=3)
    names = ("en", "de", "fr", "es")
    trace = make_trace(dict(zip((*names, "ca"), [*count_GLE, count_GLE[0]], strict=True)))
    found = sharing.find("gap", counted(count_GLE))
    for row, parent in enumerate(names):
        config = planners.SsftConfig(target="ca", known=names, parent=parent, layers=(0, 1, 2))
        plan = planners.ssft(trace, config)
        either_LE = found.exclusive_GLE[row] | found.shared_LE
        assert plan.experts() == {layer: tuple(e) for layer, e in enumerate(ids(either_LE))}


def test_a_rule_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"no rule 'gapp'.*rules are gap, fraction, specificity, contrast"):
        sharing.find("gapp", counted(drawn()))
    with pytest.raises(DataError, match="'gap' needs 2 languages or more, 1 given"):
        sharing.find("gap", counted(drawn(languages=1)))


# ---- placebo


@pytest.mark.parametrize("name", RULE_NAMES)
def test_halves_of_much_text_differ_less_than_of_little(name):
    rng = np.random.default_rng(1)
    share_GLE = rng.dirichlet(np.full(16, 0.5), size=(4, 8))
    few, many = (
        sharing.found_in_halves(
            name,
            counted(rng.multinomial(20 * n, share_GLE)),
            1,
            np.stack([rng.multinomial(20, share_GLE[1]) for _ in range(n)]),
            seed=0,
        ).mean()
        for n in (8, 4000)
    )
    assert few > 0 and many < few / 3


def test_the_placebo_of_equal_halves_is_nothing():
    count_GLE = drawn(languages=3)
    halves_NLE = np.stack([count_GLE[1]] * 2)
    for name in RULE_NAMES:
        assert sharing.found_in_halves(name, counted(count_GLE), 1, halves_NLE, seed=0, splits=3).tolist() == [0, 0, 0]


def test_the_placebo_keeps_the_reference_where_it_is():
    # against the reference (row 2) the halves of row 0 differ in expert 0 alone; against row 1 in none
    count_GLE = np.array([[[5, 5, 0]], [[5, 5, 0]], [[0, 0, 10]]])
    halves_NLE = np.array([[[10, 0, 0]], [[0, 10, 0]]])
    found = sharing.found_in_halves("contrast", counted(count_GLE, reference=2), 0, halves_NLE, seed=0, splits=1)
    assert found.tolist() == [1]  # each half has one expert that the other has not
