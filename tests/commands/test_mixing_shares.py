"""Which tokens of prompts and translations are compared with which, on a toy whose router looks at the token alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dragoman.commands import scoring
from dragoman.commands.mixing_shares import Direction, Part, Reader, contrasts, rows_of, source_spans, span_of, told
from dragoman.commands.mixing_text import Train
from dragoman.commands.pretrain import Vocabulary, train_tokenizer
from dragoman.modeling import TextCodec, moe_layers
from dragoman.modeling.mix_conversion import Conversion, to_mix_moe
from dragoman.modeling.mix_moe import set_settings
from dragoman.routing.group_shares import contrast, summed, token_mass
from tests.models import tiny
from tests.texts import corpus, tokenizer

PLAIN = {"en": "English", "de": "German"}


def toy(token_alone):
    """With translation experts and random routers; where attention adds nothing, all depends on the token alone."""
    codec = TextCodec(tokenizer())
    dense = tiny("llama", vocab_size=len(codec.tokenizer), intermediate_size=32, max_position_embeddings=128)
    made = to_mix_moe(dense, Conversion())
    torch.manual_seed(0)
    for layer in moe_layers(made):
        torch.nn.init.normal_(layer.router.weight)
    for name, weight in made.named_parameters():
        if name.endswith("o_proj.weight"):
            torch.nn.init.constant_(weight, 0) if token_alone else torch.nn.init.normal_(weight)
    set_settings(made, masked=False)
    return made, codec


def read(token_alone, context=128):
    made, codec = toy(token_alone)
    reader = Reader(made, codec, 2, context)
    table = scoring.parallel(corpus(), "en", "de", "train", 20)
    return reader, reader.direction(table, "en-de"), table


def part(values, keys="abcd"):
    sums_NL2 = np.stack([np.array(values, float), np.full(len(values), 10.0)], -1)[:, None]
    return Part(sums_NL2, tuple(keys), ("one",) * len(values))


def test_a_run_is_found_behind_the_head():
    assert span_of([[7, 8]], [1, 5, 7, 8, 6], 2) == (2, 4)
    assert span_of([[7, 9]], [1, 5, 7, 8, 6], 2) is None, "not found"
    assert span_of([[7]], [1, 7, 5, 7, 6, 7], 2) == (3, 4), "repeated: the first one behind the head"
    assert span_of([[7], [4, 7]], [1, 5, 4, 7, 6, 7], 2) == (2, 4), "of two forms the earlier run"
    assert span_of([[6, 7]], [1, 5, 7, 8, 6], 2) is None, "no run leaves the prompt"
    assert span_of([[]], [1, 5, 7], 2) is None, "nothing is no run"


def test_spans_of_prompts_with_tags_are_all_but_start_and_tags():
    codec = TextCodec(tokenizer())
    texts = corpus().texts("en")[:5]
    prompts = codec.prompts(texts, "en", "de", PLAIN)
    found = source_spans(codec, texts, prompts, codec.prompts([""], "en", "de", PLAIN)[0])
    assert found == [(2, len(ids) - 1) for ids in prompts]


def test_spans_of_plain_prompts_are_the_text_even_where_it_is_a_name_of_the_template():
    codec = TextCodec(train_tokenizer(Vocabulary(size=400, tags=("ca",)), [corpus()], ("en", "de")))
    assert codec.tag_id("en") is None
    texts = [*corpus().texts("en")[:3], "English", "German"]
    prompts = codec.prompts(texts, "en", "de", PLAIN)
    found = source_spans(codec, texts, prompts, codec.prompts([""], "en", "de", PLAIN)[0])
    for text, ids, span in zip(texts, prompts, found, strict=True):
        assert codec.decode(ids[slice(*span)]).strip() == text
        assert codec.decode(ids[: span[0]]).strip() == "English:"


def joining_codec():
    """As of Llama 3 and Qwen: a full stop and the end of the line after it are one token."""
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    core, special = Tokenizer(models.BPE()), ["<s>", "</s>", "<pad>"]
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(words), "isolated"), whole])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=whole.alphabet(), show_progress=False
    )
    core.train_from_iterator([f"English: {text}.\nGerman:" for text in corpus().texts("en")], trainer)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
    return TextCodec(PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names))


def test_spans_of_texts_whose_full_stop_joins_the_end_of_the_line_are_the_others():
    codec = joining_codec()
    assert [len(ids) for ids in codec.encode([".\n"])] == [1]
    texts = [*(f"{text}." for text in corpus().texts("en")[:5]), corpus().texts("en")[5], "German."]
    prompts = codec.prompts(texts, "en", "de", PLAIN)
    spans = source_spans(codec, texts, prompts, codec.prompts([""], "en", "de", PLAIN)[0])
    assert None not in spans
    for text, ids, span in zip(texts, prompts, spans, strict=True):
        assert codec.decode(ids[slice(*span)]).strip() == text.removesuffix(".")
        assert codec.decode(ids[: span[0]]).strip() == "English:"


def test_tags_alone_make_no_difference_of_prompts():
    reader, found, table = read(token_alone=True)
    assert found.found == found.segments == 20 and found.source.unit == "document"
    for a, b in ((found.source, found.source_alone), (found.translation, found.translation_alone)):
        assert np.allclose(a.sums_NL2, b.sums_NL2, atol=1e-4)
        tested = contrast(a.by_unit, b.by_unit, paired=True, seed=0)
        assert abs(tested["difference"]) < 1e-6 and tested["p_value"] == 1
    prompts = reader.codec.prompts(scoring.cells(table, "en"), "en", "de", PLAIN)
    whole = summed(token_mass(reader.model, prompts, 2), [(1, len(ids)) for ids in prompts])
    alone = found.source_alone.sums_NL2.sum((0, 1))
    assert abs(whole[..., 0].sum() / whole[..., 1].sum() - alone[0] / alone[1]) > 0.005, "as counting tags would"


def test_what_stands_before_a_text_makes_a_difference_where_the_router_sees_it():
    _, found, _ = read(token_alone=False)
    for a, b in ((found.source, found.source_alone), (found.translation, found.translation_alone)):
        assert (a.sums_NL2[..., 1] == b.sums_NL2[..., 1]).all(), "the same tokens"
        assert np.abs(a.sums_NL2 - b.sums_NL2)[..., 0].max() > 0.01


def test_translations_are_counted_without_prompt_and_end():
    reader, found, table = read(token_alone=True)
    tokens = sum(map(len, reader.codec.encode(scoring.cells(table, "de"))))
    assert found.translation.sums_NL2[:, 0, 1].sum() == tokens


def test_segments_whose_source_is_not_found_are_left_out(monkeypatch):
    def found_in_most(*given):
        return [span if n % 4 else None for n, span in enumerate(source_spans(*given))]

    monkeypatch.setattr("dragoman.commands.mixing_shares.source_spans", found_in_most)
    reader, found, table = read(token_alone=True)
    kept = [n for n in range(20) if n % 4]
    assert (found.found, found.segments) == (15, 20)
    assert found.source.rows == found.source_alone.rows == tuple(table.keys[n] for n in kept)
    texts = reader.codec.encode([scoring.cells(table, "en")[n] for n in kept])
    assert found.source.sums_NL2[:, 0, 1].tolist() == [len(ids) for ids in texts]
    assert np.allclose(found.source.sums_NL2, found.source_alone.sums_NL2, atol=1e-4)
    assert found.translation.rows == found.translation_alone.rows == table.keys


def test_where_no_source_is_found_none_is_compared(monkeypatch):
    monkeypatch.setattr("dragoman.commands.mixing_shares.span_of", lambda *_: None)
    _, found, table = read(token_alone=True)
    assert found.found == 0 and found.source is found.source_alone is None and found.translation.rows == table.keys
    families = contrasts({}, {"en-de": found}, {"en-de": ("en", "de")}, seed=0)
    assert families["source"] == [] and [x["a"] for x in families["translation"]] == ["en-de"]


def test_what_does_not_fit_is_left_out_and_said():
    reader, found, table = read(token_alone=True)
    lengths = [len(ids) for ids, _ in reader.codec.pairs(*(scoring.cells(table, g) for g in PLAIN), "en", "de", PLAIN)]
    context = sorted(lengths)[9]
    reader, found, _ = read(token_alone=True, context=context)
    assert found.segments == sum(n <= context for n in lengths) == 20 - reader.left_out["en-de"]
    assert read(token_alone=True, context=3)[1] is None


def test_families_of_contrasts_by_hand():
    texts = {"de": part([4, 4, 4, 4]), "en": part([1, 2, 3, 4]), "ru": part([1, 1, 1], "xyz")}
    pairs = {
        "en-de": Direction(part([2, 3, 4, 5]), part([1, 2, 3, 4]), part([9, 9, 9, 9]), part([4, 4, 4, 4]), 4, 4),
        "de-ru": Direction(part([4, 4, 4, 4]), part([4, 4, 4, 4]), part([1, 2, 1, 2]), part([1, 1, 2, 2]), 3, 4),
    }
    found = contrasts(texts, pairs, {"en-de": ("en", "de"), "de-ru": ("de", "ru")}, seed=0)
    said = {
        family: [(x["a"], x["b"], round(x["difference"], 9), x["paired"]) for x in rows]
        for family, rows in found.items()
    }
    assert said == {
        "source": [("en-de", "en, the same text", 0.1, True), ("de-ru", "de, the same text", 0, True)],
        "translation": [("en-de", "de, the same text", 0.5, True), ("de-ru", "ru, the same text", 0, True)],
        "languages": [("de", "en", 0.15, True), ("ru", "en", -0.15, False)],
        "directions": [
            ("en-de", "mean of the others", -0.05, True),
            ("de-ru", "mean of the others", 0.05, True),
            ("en-de", "mean of the others", 0.75, True),
            ("de-ru", "mean of the others", -0.75, True),
        ],
    }
    p, adjusted = ([x[name] for x in found["source"]] for name in ("p_value", "p_holm"))
    assert p == [1 / 2001, 1] and adjusted == [2 / 2001, 1], "Holm: the smaller of two counts twice"
    assert [x["p_holm"] for x in found["directions"]][2:] == pytest.approx([4 / 2001] * 2)


def test_parts_are_paired_on_the_rows_that_both_have_where_these_are_half_of_them():
    texts = {"en": part([1, 2, 3, 4]), "de": part([9, 3, 4, 5], "xbcd"), "ru": part([5, 5, 5, 5], "xyzd")}
    de, ru = contrasts(texts, {}, {}, seed=0)["languages"]
    assert de["paired"] and de["units"] == 3 and [de["difference"], de["low"]] == pytest.approx([0.1, 0.1])
    assert not ru["paired"] and ru["units"] == 4 and ru["difference"] == pytest.approx(0.25)


def test_units_are_documents_where_there_are_several():
    found = Part(part([1, 2, 3, 4]).sums_NL2, tuple("abcd"), tuple("xxyy"))
    assert found.unit == "document" and found.by_unit[:, 0].tolist() == [[3, 20], [7, 20]]
    assert part([1, 2]).unit == "segment" and part([1, 2]).by_unit.shape == (2, 1, 2)
    assert found.only({"a", "d"}).documents == ("x", "y") and found.only({"a", "d"}).rows == ("a", "d")


def test_rows_are_those_that_all_languages_have_where_there_are_enough():
    text, pairs = corpus(), {"en-de": ("en", "de")}
    gaps = {**text.columns, "ru": [None if i % 20 < 17 else t for i, t in enumerate(text.columns["ru"])]}
    config = Train("x", stage=2, out="y", directions=("en-de",), segments=4)
    rows, tables = rows_of(config, replace(text, columns=gaps), ["en", "de", "ru"], pairs)
    assert rows["en"].keys == rows["ru"].keys == tables["en-de"].keys and len(rows["en"]) == 4
    assert tables["en-de"].languages == ("en", "de")
    wanted = replace(config, segments=60)
    rows, tables = rows_of(wanted, replace(text, columns=gaps), ["en", "de", "ru"], pairs)
    assert len(rows["ru"]) < len(rows["en"]) == len(tables["en-de"]) == 30


def test_one_language_or_direction_has_nothing_beside_it():
    one = Direction(*[part([1, 2, 3, 4])] * 4, 4, 4)
    found = contrasts({"de": part([1, 2], "ab")}, {"de-en": one}, {"de-en": ("de", "en")}, seed=0)
    assert found["languages"] == found["directions"] == [] and len(found["source"]) == 1


def test_told_in_lines():
    row = {"a": "en-de", "b": "mean of the others", "difference": 0.1, "p_holm": 0.01}
    record = {
        "kinds": {
            "text": {"en": {"value": 0.2}, "de": {"value": 0.4}},
            "source": {"en-de": {"value": 0.5, "found": 3, "segments": 4}},
            "translation": {"de-en": {"value": 0.1}},
        },
        "placebo": {"en": {"p95": 0.02}},
        "contrasts": {
            "source": [row],
            "translation": [],
            "languages": [row | {"a": "de", "b": "en", "difference": -0.2, "p_holm": 0.5}],
            "directions": [row | {"tokens": "source"}, row | {"tokens": "translation"}],
        },
        "left_out": {"en-de": 2},
    }
    assert told(record) == [
        "mass on translation experts: mean (lowest to highest)",
        "  text alone: 0.300 (en 0.200 to de 0.400)",
        "  source in prompts: 0.500 (en-de)",
        "  translations: 0.100 (de-en)",
        "  source less the same text alone: +0.100 (en-de); 1 of 1 with Holm p < 0.05",
        "  text of a language less that of en: -0.200 (de); 0 of 1 with Holm p < 0.05",
        "  direction less the mean of the others, source in prompts: +0.100 (en-de); 1 of 1 with Holm p < 0.05",
        "  direction less the mean of the others, translations: +0.100 (en-de); 1 of 1 with Holm p < 0.05",
        "  halves of one text (placebo), 95th percentile: 0.020 (en)",
        "source texts whose tokens are not in their prompts: en-de 1 of 4, de-en (all, or all but one)",
        "left out as too long: en-de 2",
    ]
