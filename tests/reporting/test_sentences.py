"""What the sentences say of records made by hand: gains, harm, noise, agreement and its opposite."""

import numpy as np
import pytest

from dragoman.reporting import findings
from dragoman.reporting import sentences as say
from dragoman.routing.planners import SsftConfig, ssft
from dragoman.routing.trace import RoutingTrace


def comparison(metric, a, b, difference, noise, p_holm):
    limits = {"low": difference - noise, "high": difference + noise}
    return {"metric": metric, "language": "ca", "a": a, "b": b, "difference": difference, "p_value": p_holm / 10,
            "p_holm": p_holm, **limits}  # fmt: skip


def small(**comparisons):
    """A record with the given comparisons: name "a_b" -> (difference, noise, Holm p), bits per byte."""
    rows = [comparison("bits_per_byte", *pair.split("_"), *numbers) for pair, numbers in comparisons.items()]
    names = {"ca": {"name": "Catalan"}, "es": {"name": "Spanish"}}
    return {
        "target": "ca", "known": ["en"], "corpus": {"languages": names},
        "bits_per_byte": {"base": {"ca": 2.0}, "ssft": {"ca": 1.5}, "random": {"ca": 1.6}}, "comparisons": rows,
    }  # fmt: skip


def test_gain_by_hand():
    said = say.gain(small(ssft_base=(-0.5, 0.1, 0.004)))
    assert said == (
        "Tuning the experts that SSFT chose improves Catalan, a language the model was not trained on, "
        "from 2.000 to 1.500 bits per byte (difference −0.500 [−0.600, −0.400], Holm p = 0.004)."
    )
    assert say.gain(small(base_ssft=(0.5, 0.1, 0.004))) == said, "the order in which two systems were compared"
    assert "not trained on" not in say.gain({**small(ssft_base=(-0.5, 0.1, 0.004)), "known": []})


def test_gain_that_is_harm_or_noise():
    assert "makes Catalan" in say.gain(small(ssft_base=(0.5, 0.1, 0.004)))
    assert "worse" in say.gain(small(ssft_base=(0.5, 0.1, 0.004)))
    assert "no more than noise" in say.gain(small(ssft_base=(-0.5, 0.6, 0.3)))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((-0.10, 0.05, 0.01), "drawn at random do worse in this one draw"),
        ((0.001, 0.05, 0.9), "drawn at random do as well"),
        ((-0.10, 0.05, 0.06), "no evidence that choosing them by routing helps"),
        ((-0.10, 0.15, 0.01), "no evidence that choosing them by routing helps"),
        ((0.10, 0.05, 0.01), "drawn at random do better in this one draw"),
    ],
)
def test_control_is_honest(numbers, words):
    record = small(ssft_random=numbers)
    assert words in say.control(record)
    assert words in say.headline(record)


def test_best_system_with_doubt():
    sure, unsure = (small(ssft_random=(-0.1, noise, p)) for noise, p in ((0.05, 0.01), (0.2, 0.6)))
    assert say.best(sure) == "SSFT plan reaches the lowest value, 1.500."
    assert "though not beyond noise below random plan" in say.best(unsure)


@pytest.mark.parametrize(
    ("ssft", "noise", "p_holm", "words"),
    [
        (30.0, 2, 0.01, "is 30.0, above the 24.0 of copying the source."),
        (
            30.0,
            9,
            0.50,
            "above the 24.0 of copying the source, a difference within noise; it does not beat handing back",
        ),
        (12.0, 2, 0.01, "is 12.0, below the 24.0 of copying the source; it does not beat handing back"),
    ],
)
def test_chrf_beside_copying(ssft, noise, p_holm, words):
    record = small()
    record["chrf"] = {"ssft": {"ca": ssft}, "copy": {"ca": 24.0}}
    record["comparisons"] = [comparison("chrf", "ssft", "copy", ssft - 24, noise, p_holm)]
    assert words in say.headline(record)


def test_parent_agreement_and_disagreement():
    record = small() | {"parent": {"chosen": "es", "by": "routing", "by_routing": {"es": 0.9, "fr": 0.8}}}
    assert say.parent(record) == (
        "Spanish is the parent, the known language whose routing is most like that of Catalan "
        "(similarity 0.900; fr 0.800)."
    )
    record["parent"]["by_overlap"] = {"es": 0.3, "fr": 0.2}
    assert "Vocabulary overlap agrees (0.300; fr 0.200)." in say.parent(record)
    record["parent"]["by_overlap"] = {"es": 0.1, "fr": 0.2}
    assert "disagrees: it would choose fr (0.200 against 0.100)." in say.parent(record)
    record["parent"] |= {"by": "setting", "chosen": "fr"}
    assert "fr is the parent as set by hand; routing would choose Spanish" in say.parent(record)


def planned(counts):
    """An SSFT plan of the real planner for two known languages; counts: {language: [L][E]}."""
    chosen_GLE = np.array(list(counts.values()), dtype=np.int64)
    num_layers, num_experts = chosen_GLE.shape[1:]
    layers = tuple(range(num_layers))
    trace = RoutingTrace(tuple(counts), layers, (num_experts,) * num_layers, (1,) * num_layers, chosen_GLE,
                         chosen_GLE * 0.5, chosen_GLE * 0.5, chosen_GLE[:, 0].sum(axis=-1))  # fmt: skip
    plan = ssft(trace, SsftConfig(target="ca", known=("en", "es"), parent="es", alpha=0.2, shared=1))
    layers = {str(layer): list(ids) for layer, ids in plan.experts().items()}
    return {"planner": "ssft", "experts": plan.size, "layers": layers, "why": list(plan.why)}


def test_language_experts_are_read_from_the_planners_own_words():
    with_one = planned({"en": [[60, 20, 20, 0]], "es": [[10, 20, 20, 50]], "ca": [[20, 20, 20, 40]]})
    without = planned({"en": [[30, 30, 20, 20]], "es": [[25, 25, 25, 25]], "ca": [[20, 20, 20, 40]]})
    assert say.language_experts(with_one["why"]) == 1
    assert say.language_experts(without["why"]) == 0
    assert say.language_experts(()) is None
    parent = {"parent": {"chosen": "es", "by": "setting"}, "plans": {"ssft": without}}
    said = "The rule found no language expert of Spanish, so the SSFT plan holds shared experts alone."
    assert said in say.headline(small() | parent)
    assert say.no_language_expert(small() | parent | {"plans": {"ssft": with_one}}) == ""
    assert "0 language experts of the parent and 1 shared" in say.plans(small() | parent)


def test_plans_say_what_the_lot_drew_too():
    counted = (
        "layer {}: language experts of es: {}, by a gap of 0.02 of slots to the next known language; shared experts: 2"
    )
    ssft_plan = {"experts": 9, "layers": {"6": [1, 4, 9, 30], "7": [0, 3, 11, 12, 27]}}
    ssft_plan["why"] = ["parent es: as set", counted.format(6, 2), counted.format(7, 3)]
    lot = {"experts": 9, "layers": {"6": [2, 7, 9, 18], "7": [3, 8, 15, 20, 31]}}
    record = {"plans": {"ssft": ssft_plan, "random": lot}, "model": {"num_experts": [32] * 8}}
    assert say.plans(record) == (
        "The SSFT plan changes 9 of 256 experts, in layers 6 and 7: 5 language experts of the parent and 4 shared. "
        "The random plan has as many in the same layers; 2 of them are the same."
    )


def test_routing_sentences_by_hand():
    routing = {
        "layer_ids": [0, 4], "divergence": {"ca": [0.1, 0.5], "fr": [0.1, 0.2]}, "placebo": [0.2, 0.2],
        "entropy": {"ca": [0.0, np.log(4)], "en": [0.0, 0.0]}, "specialisation": [0.5, 0.25],
    }  # fmt: skip
    record = {"target": "ca", "known": ["fr"], "routing": routing}
    assert findings.divergence(record) == (
        "ca is nearest in layer 0 (0.10) and farthest in layer 4 (0.50), above the noise floor in 1 of 2 layers; "
        "averaged over layers, fr is nearest (0.15) and ca is farthest (0.30)."
    )
    assert "0.15 for the 1 other" in findings.seen_and_unseen(record)
    assert findings.spread(record).startswith(
        "ca spreads over 1.0 to 4.0 experts; averaged over layers, en uses the fewest (1.0)"
    )
    assert "layer 0, where an expert tells 50%" in findings.specialisation(record)
    said = say.experts(record, [0.5, 0.25, 0.25, 0.0], {"ssft": [0, 3]}, 4)
    assert "expert 0 of layer 4 is the busiest (50% of slots)" in said
    assert "SSFT plan 50% (even use would give its 2 experts 50%)" in said


def test_costs_by_hand():
    change = {"en": {"difference": 0.2, "low": 0.1, "high": 0.3}, "de": {"difference": -0.1, "low": -0.2, "high": 0.1}}
    record = {"forgetting": {"full": change, "ssft": {"en": {"difference": 0.0, "low": -0.1, "high": 0.1}}}}
    assert say.beyond_noise(record) == (
        "Of 2 known languages, changed beyond their own 95% interval: "
        "full fine-tuning 1 worse, 0 better; SSFT plan 0 worse, 0 better."
    )
    assert say.trade(record) == (
        "Mean change on the known languages: SSFT plan 0.000 (at most 0.000, en), full fine-tuning +0.050 "
        "(at most +0.200, en)."
    )


def test_quality_names_the_beaten_and_the_even():
    record = small(ssft_base=(-0.5, 0.1, 0.01), random_ssft=(0.1, 0.2, 0.5))
    assert say.quality(record, "bits_per_byte") == (
        "SSFT plan has the lowest bits per byte (1.500); better beyond noise than before tuning; "
        "no difference shown to random plan."
    )


def test_numbers():
    assert say.number(-0.0001) == "0.000"
    assert say.number(-1.5, 1) == "−1.5"
    assert say.number(0.25, 2, sign=True) == "+0.25"
    assert (say.p_text(0.0005), say.p_text(0.0123), say.percent(0.021), say.percent(1.0)) == (
        "< 0.001",
        "0.012",
        "2.1%",
        "100%",
    )
    assert say.listed(["a"]) == "a"
    assert say.listed(["a", "b", "c"]) == "a, b and c"


def on_units(units, record):
    """The record with as many documents behind every comparison."""
    rows = [c | {"units": units} for c in record["comparisons"]]
    return record | {"comparisons": rows}


def test_nothing_is_claimed_of_so_few_documents_that_no_test_could_show_it():
    """An exact test of 5 documents gives 2 / 2^5 at least, whatever the bootstrap says; of 6 it can go below 0.05."""
    record = small(ssft_base=(-0.5, 0.1, 0.004), ssft_random=(-0.1, 0.05, 0.01))
    few, enough = on_units(5, record), on_units(6, record)
    assert say.gain(few) == (
        "Tuning the experts that SSFT chose changed Catalan, a language the model was not trained on, from 2.000 to "
        "1.500 bits per byte (difference −0.500 [−0.600, −0.400], Holm p = 0.004), which 5 documents are too few to "
        "judge."
    )
    assert say.gain(enough) == say.gain(record) and "improves" in say.gain(enough)
    assert [say.better(c) for c in few["comparisons"]] == [None, None]
    assert [say.better(c) for c in enough["comparisons"]] == ["ssft", "ssft"]
    assert "no evidence" in say.control(few) and "do worse" in say.control(enough)
    assert "though not beyond noise" in say.best(few) and "though" not in say.best(enough)
    assert "better beyond noise" not in say.quality(few, "bits_per_byte")
    assert "better beyond noise than random plan and before" in say.quality(enough, "bits_per_byte")


def test_changes_on_too_few_documents_are_not_counted():
    changed = {"difference": 0.2, "low": 0.1, "high": 0.3}
    record = {"forgetting": {"full": {"en": changed | {"units": 5}, "de": changed | {"units": 6}, "fr": changed}}}
    assert say.beyond_noise(record) == (
        "Of 3 known languages, changed beyond their own 95% interval: full fine-tuning 2 worse, 0 better. "
        "In en documents are too few to judge any change."
    )
