import json
from dataclasses import replace

import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.record import write_json
from dragoman.routing import bands, correlation, sharing, stats
from dragoman.routing.description import describe
from dragoman.routing.sample import sample_of
from dragoman.routing.tables import tables

LANGUAGES = ("en", "de", "fr", "es", "ru")
DOCUMENTS = [n // 3 for n in range(36)]


def drawn_trace(make_trace, languages=LANGUAGES, layers=5, experts=8, segments=36, seed=0, tokens=20, parallel=True):
    """Top-2 counts; languages part at both ends of the depth."""
    rng = np.random.default_rng(seed)
    common_LE = rng.dirichlet(np.full(experts, 2), size=layers)
    mix_L = np.abs(np.linspace(-1, 1, layers)) ** 2 * 0.8
    counts, parts = {}, {}
    for g in languages:
        own_LE = rng.dirichlet(np.full(experts, 0.3), size=layers)
        share_LE = (1 - mix_L[:, None]) * common_LE + mix_L[:, None] * own_LE
        parts[g] = np.stack([rng.multinomial(2 * tokens, p_E, size=segments) for p_E in share_LE], axis=1)
        counts[g] = parts[g].sum(axis=0)
    overlap = {a: {b: 0.1 + 0.05 * abs(hash_of(a) - hash_of(b)) for b in languages if b != a} for a in languages}
    about = {"model_sha256": "m", "parallel": parallel, "overlap": overlap}
    about |= {"documents": dict.fromkeys(languages, DOCUMENTS[:segments])}
    return make_trace(counts, top_k=2, segments=parts, about=about)


def hash_of(tag):
    return sum(map(ord, tag)) % 7


@pytest.fixture
def trace(make_trace):
    return drawn_trace(make_trace)


def test_every_figure_stands_in_its_interval_and_above_its_placebo(trace):
    found = describe(trace, "en", seed=0)
    for g in LANGUAGES[1:]:
        low_L, high_L = found["divergence_interval"][g]
        assert found["divergence"][g] == pytest.approx(stats.divergence_from(trace)[g])
        assert (low_L <= high_L).all() and (found["divergence"][g] <= high_L).all()
        assert found["divergence"][g][0] > 3 * found["placebo"][0], "ends of the depth are apart"
    ends = [0, -1]  # where noise is most of a value, the basic interval lies below it
    low_L, high_L = (limit_L[ends] for limit_L in found["specialisation_interval"])
    assert ((low_L <= found["specialisation"][ends]) & (found["specialisation"][ends] <= high_L)).all()
    assert found["specialisation"][0] > 3 * found["specialisation_placebo"][0]
    for name in ("entropy", "consistency"):
        assert set(found[name]) == set(found[f"{name}_interval"]) == set(LANGUAGES)
        low_L, high_L = found[f"{name}_interval"]["de"]
        assert ((low_L <= found[name]["de"]) & (found[name]["de"] <= high_L)).all()
        assert found[f"{name}_placebo"].shape == (5,) and (found[f"{name}_placebo"] >= 0).all()
    low_L, high_L = found["load_variation_interval"]
    assert ((low_L <= found["load_variation"]) & (found["load_variation"] <= high_L)).all()


def test_the_mean_over_sequences_has_its_own_placebo(trace):
    found = describe(trace, "en", seed=0)["sequence_divergence"]
    segments = trace.segment_chosen_NLE
    expected_L = stats.sequence_divergence(segments["fr"], segments["en"], trace.num_experts).mean(axis=0)
    assert found["mean"]["fr"] == pytest.approx(expected_L)
    assert found["placebo"][2] > 0 and found["mean"]["fr"][0] > found["placebo"][0]


def test_text_that_is_not_parallel_gets_intervals_of_its_own_and_nothing_pairwise(make_trace):
    trace = drawn_trace(make_trace, parallel=False)
    shorter = {**trace.segment_chosen_NLE, "de": trace.segment_chosen_NLE["de"][:30]}
    documents = {**trace.about["documents"], "de": DOCUMENTS[:30]}
    chosen_GLE = np.stack([shorter[g].sum(axis=0) for g in LANGUAGES])
    about = trace.about | {"documents": documents}
    trace = replace(trace, segment_chosen_NLE=shorter, chosen_GLE=chosen_GLE, about=about)
    found = describe(trace, "en", seed=0)
    assert found["sequence_divergence"] is None
    assert set(found["divergence_interval"]) == set(LANGUAGES[1:])
    assert found["sample"]["number"]["de"] == 10 and found["sample"]["number"]["en"] == 12
    assert found["relations"]["measures"]["family"]["reliability"] is None
    with pytest.raises(DataError, match=r"per sequence compares segment i .* not parallel \(segments: en 36, de 30"):
        stats.sequence_divergence_from(trace)


def test_less_text_of_the_same_routing_is_not_above_the_placebo(make_trace):
    """Two languages of one distribution, 300 segments and 20: what is above the placebo is noise."""
    above, far, near = [], [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        share_LE = rng.dirichlet(np.full(8, 2), size=5)
        parts = {
            g: np.stack([rng.multinomial(40, p_E, size=n) for p_E in share_LE], axis=1)
            for g, n in (("en", 300), ("de", 20))
        }
        counts = {g: n.sum(axis=0) for g, n in parts.items()}
        found = describe(make_trace(counts, top_k=2, segments=parts, about={"parallel": False}), "en", seed=seed)
        above.append(found["divergence"]["de"] > found["placebo_interval"][1])
        far.append(found["relations"]["distance"]["all"][0, 1])
        near.append(found["relations"]["placebo"].mean())
    assert np.mean(above) < 0.2
    assert np.mean(far) < np.mean(near), "the distance of languages has the same placebo"


def test_documents_are_resampled_where_there_are_enough(trace):
    assert sample_of(trace, "en", 0).unit == "documents"
    assert sample_of(trace, "en", 0, "segments").unit == "segments"
    few = replace(trace, about=trace.about | {"documents": {g: [n // 9 for n in range(36)] for g in LANGUAGES}})
    assert sample_of(few, "en", 0).unit == "segments", "four documents are no sample"
    assert [len(u) for u in sample_of(few, "en", 0, "documents").units] == [4] * 5
    grown = replace(trace, segment_chosen_NLE={g: np.repeat(n, 2, 0) for g, n in trace.segment_chosen_NLE.items()})
    assert sample_of(grown, "en", 0).unit == "segments", "names that do not fit the segments are not used"
    with pytest.raises(DataError, match="names two or more for every language"):
        sample_of(grown, "en", 0, "documents")
    with pytest.raises(DataError, match="no language 'xx'"):
        sample_of(trace, "xx", 0)


def test_a_trace_without_segments_is_described_without_intervals(trace):
    found = describe(replace(trace, segment_chosen_NLE={}), "en", seed=0)
    assert found["divergence_interval"] == {} and found["placebo"] is None and found["consistency"] is None
    assert set(found["divergence"]) == set(LANGUAGES[1:])
    assert found["middle_band"]["interval"] is None
    assert "interval" not in found["sharing"]["gap"]


def test_one_language_alone_is_described(make_trace):
    found = describe(drawn_trace(make_trace, languages=("en",)), "en", seed=0)
    assert found["divergence"] == {} and found["specialisation"] is None and found["middle_band"] is None
    assert found["relations"] is None and found["sharing"] == {}
    assert found["entropy"]["en"].shape == (5,)


def test_the_band_is_found_with_an_interval_or_set(trace):
    found = describe(trace, "en", seed=0)["middle_band"]
    by_rule = bands.middle_band(np.array(list(stats.divergence_from(trace).values())), trace.layer_ids)
    assert (found["first"], found["last"]) == (by_rule.first, by_rule.last)
    (low_first, low_last), (high_first, high_last) = found["interval"]
    assert low_first <= found["first"] <= high_first and low_last <= found["last"] <= high_last
    assert describe(trace, "en", seed=0, middle=(1, 2))["middle_band"]["how"] == "as set"
    with pytest.raises(ConfigError, match="band 1 to 9 does not fit"):
        describe(trace, "en", seed=0, middle=(1, 9))


def test_rules_are_there_with_how_often_they_select_again(trace):
    found = describe(trace, "en", seed=0)["sharing"]
    assert set(found) == set(sharing.RULES)
    gap = found["gap"]
    for name in (*LANGUAGES, "shared"):
        assert len(gap["experts"][name]) == gap["number"][name]
        assert gap["again"][name] is None or 0 < gap["again"][name] <= 1
    assert set(gap["placebo"]) == set(LANGUAGES)
    counted = sharing.Counted(trace.chosen_GLE, np.array(trace.num_experts), np.array(trace.top_k))
    mine_LE = sharing.find("gap", counted).exclusive_GLE[1]
    assert gap["experts"]["de"] == np.argwhere(mine_LE).tolist()


def test_relations_are_those_of_the_test_itself(trace):
    found = describe(trace, "en", seed=0)
    distance_LGG = correlation.routing_distance(trace.chosen_GLE)
    overlap_GG = correlation.overlap_distance(trace.about["overlap"], LANGUAGES)
    tested = correlation.mantel(distance_LGG.mean(axis=0), overlap_GG)
    measure = found["relations"]["measures"]["overlap"]
    assert measure["layers"]["all"]["pearson"]["r"] == pytest.approx(float(tested.r))
    assert found["overlap_correlation"] == measure["layers"]["all"]["pearson"]
    assert measure["by_layer"]["r"].shape == (5,)
    assert measure["interval"][0] <= tested.r <= measure["interval"][1]
    assert 0 < measure["reliability"] <= 1
    assert found["relations"]["left_out"] == {"weighted_overlap": "not measured when the trace was made"}
    assert set(found["relations"]["partial"]) == {"overlap_given_family", "family_given_overlap"}


def test_measures_that_cannot_be_had_say_why(make_trace):
    trace = drawn_trace(make_trace, languages=("en", "de", "nl", "qqq", "sv"))
    left_out = describe(trace, "en", seed=0)["relations"]["left_out"]
    assert left_out["family"] == "all pairs of languages are alike in it"
    few = describe(trace.select(["en", "de", "qqq"]), "en", seed=0)["relations"]
    assert few["left_out"]["overlap"] == "3 languages, 4 are needed"
    assert few["left_out"]["family"] == "2 languages, 4 are needed"
    assert few["measures"] == {} and few["partial"] is None


def test_a_collapsed_layer_leaves_the_others_their_statistics(make_trace):
    trace = drawn_trace(make_trace, languages=("en", "de", "fr", "ru", "zh"))
    for counts in (trace.chosen_GLE, *trace.segment_chosen_NLE.values()):
        counts[:, -1] = 0
        counts[:, -1, :2] = counts[:, 0].sum(axis=-1, keepdims=True) // 2
    by_layer = describe(trace, "en", seed=0)["relations"]["measures"]["family"]["by_layer"]
    assert [r is None for r in by_layer["r"]] == [p is None for p in by_layer["p"]] == [False] * 4 + [True]
    for counts in (trace.chosen_GLE, *trace.segment_chosen_NLE.values()):
        counts[:] = counts[:, -1:]
    relations = describe(trace, "en", seed=0)["relations"]
    assert relations["left_out"]["family"] == "all pairs of languages are routed alike" and not relations["measures"]


def test_words_alone_have_no_consistency_and_one_pair_of_tokens_is_enough(make_trace):
    trace = drawn_trace(make_trace, languages=("en", "de"))
    for counts_NLE in trace.segment_chosen_NLE.values():
        counts_NLE[:-1] = 0
        counts_NLE[:-1, :, :2] = 1  # one token of top-2
    found = describe(trace, "en", seed=0, unit="segments")
    assert all(np.isfinite(found["consistency"][g]).all() for g in ("en", "de"))
    assert np.isfinite(found["consistency_interval"]["en"]).all()
    for counts_NLE in trace.segment_chosen_NLE.values():
        counts_NLE[-1] = counts_NLE[0]
    assert describe(trace, "en", seed=0, unit="segments")["consistency"] is None


def test_co_activation_is_described_where_it_was_captured(trace):
    assert describe(trace, "en", seed=0)["pairing"] is None
    drawn = np.random.default_rng(0).integers(1, 50, (5, 5, 8, 8))
    pairs_GLEE = drawn + drawn.swapaxes(2, 3)

    object.__setattr__(trace, "pairs_GLEE", pairs_GLEE)  # a field of traces that were asked for pairs
    found = describe(trace, "en", seed=0)["pairing"]
    assert set(found["share"]) == set(found["placebo"]) == set(LANGUAGES)
    assert (found["share"]["de"] > found["placebo"]["de"]).all()


def test_the_same_seed_gives_the_same_record_as_json(trace, tmp_path):
    for name in ("a", "b"):
        write_json(tmp_path / name, describe(trace, "en", seed=3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text())["sample"]["unit"] == "documents"
    assert "NaN" not in (tmp_path / "a").read_text()


def test_tables_have_a_row_for_every_number(trace):
    found = tables(describe(trace, "en", seed=0), {"overlap": trace.about["overlap"]})
    assert len(found["entropy"].rows) == len(found["token-consistency"].rows) == 5 * 5
    assert len(found["sequence-divergence"].rows) == 4 * 5
    assert found["entropy"].head == ("language", "layer", "value", "low", "high", "placebo")
    assert len(found["language-pairs"].rows) == 10
    row = found["language-pairs"].rows[0]
    assert row[:2] == ("en", "de") and row[-1] == trace.about["overlap"]["en"]["de"]
    assert len(found["correlations"].rows) == 2 * 2 * 2 + 2
    assert len(found["exclusive-counts"].rows) == 4 * 6
    for table in found.values():
        assert all(len(row) == len(table.head) for row in table.rows)
    bare = tables(describe(replace(trace, segment_chosen_NLE={}), "en", seed=0), {})
    assert bare["entropy"].head == ("language", "layer", "value") and "token-consistency" not in bare
