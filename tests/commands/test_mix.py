"""`dragoman mix`: convert, both stages, and the neighbour, on toy text with a tiny model; rows and shares by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dragoman import cli
from dragoman.commands.mix import run_stage, train
from dragoman.commands.mixing_text import Train, stage_rows
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import loop, training
from dragoman.modeling import TextCodec, model_checksum, moe_layers, open_model, save_model
from dragoman.modeling.mix_moe import settings_of
from dragoman.routing.planners.layer_moe import experts_per_layer
from tests.models import tiny
from tests.texts import corpus, tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "mix-moe"
STEPS = training.Config(steps=3, batch=4, micro_batch=4, warmup=1, decay=1, balance=0.01, precision="fp32")


EVEN, MORE = replace(STEPS, balance=0.0), replace(STEPS, balance=0.02)


def small(layers=3, **changes):
    codec = TextCodec(tokenizer())
    shape = {"intermediate_size": 32, "max_position_embeddings": 128, "num_hidden_layers": layers} | changes
    return tiny("llama", vocab_size=len(codec.tokenizer), **shape), codec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model, toy text, and what was converted by the command line."""
    folder = tmp_path_factory.mktemp("mix")
    save_model(*small(), folder / "dense")
    corpus().save(folder / "toy.tsv.gz")
    words = ["mix", "convert", str(folder / "dense"), "--out", str(folder / "mix"), "--slices", "balanced"]
    cli.run([*words, "--corpus", str(folder / "toy.tsv.gz"), "--segments", "8"])
    return folder


def settings(folder, **changes):
    rest = {"corpus": str(folder / "toy.tsv.gz"), "block": 64, "training": STEPS, "segments": 6, "quiet": True}
    return Train(**(rest | changes))


def test_convert_records_that_the_logits_stay(folder):
    record = json.loads((folder / "mix" / "record.json").read_text())
    assert record["logit_difference"] <= 1e-4 * record["largest_logit"]
    assert record["classes"] == ["LlamaForCausalLM", "MixMoELlamaForCausalLM"]
    assert record["sample"]["segments"] == 8


def test_half_precision_stays_from_the_dense_model_to_the_trained_one(folder, tmp_path):
    cli.run(["mix", "convert", str(folder / "dense"), "--dtype", "bfloat16", "--out", str(tmp_path / "half")])
    kept = {p.dtype for p in open_model(str(tmp_path / "half"), dtype="auto").parameters()}
    assert kept == {torch.bfloat16}
    run_stage(settings(folder, model=str(tmp_path / "half"), stage=1, languages=("en",), dtype="auto", device="cpu",
                       out=tmp_path / "trained"))  # fmt: skip
    trained = open_model(str(tmp_path / "trained" / "model"), dtype="auto")
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}


def test_it_is_inspected_and_diagnosed_as_any_mixture(folder, tmp_path):
    text = ["--corpus", str(folder / "toy.tsv.gz"), "--split", "train", "--segments", "40", "--quiet"]
    cli.run(["inspect", str(folder / "mix")])
    cli.run(["diagnose", str(folder / "mix"), *text, "--languages", "en", "de", "--out", str(tmp_path / "seen")])
    record = json.loads((tmp_path / "seen" / "record.json").read_text())
    assert record["routing"]["layer_ids"] == [0, 1, 2]


def test_text_longer_than_the_context_is_cut_or_refused(tmp_path):
    """Learned positions have an end; the dense model, its neighbour and the number of experts alike."""
    codec = TextCodec(tokenizer())
    model = tiny("opt", vocab_size=len(codec.tokenizer), max_position_embeddings=12)
    save_model(model, codec, tmp_path / "opt")
    corpus().save(tmp_path / "toy.tsv")
    text = ["--corpus", str(tmp_path / "toy.tsv"), "--segments", "4"]
    cli.run(["mix", "convert", str(tmp_path / "opt"), "--slices", "balanced", *text, "--out", str(tmp_path / "mix")])
    cli.run(["plan", str(tmp_path / "opt"), "--planner", "layer_moe", "--new", "es", "--known", "en", "--experts", "7",
             *text, "--out", str(tmp_path / "n.json")])  # fmt: skip
    long = Train(str(tmp_path / "mix"), out=tmp_path / "out", stage=1, languages=("en",), block=64, training=STEPS,
                 corpus=str(tmp_path / "toy.tsv"), segments=6, score=(), quiet=True)  # fmt: skip
    with pytest.raises(ConfigError, match=r"block is 64, and the model's context 12 tokens; give a smaller --block"):
        run_stage(long)
    assert not (tmp_path / "out").exists()


def test_flags_for_sample_text_need_balanced_slices(folder, tmp_path):
    words = ["mix", "convert", str(folder / "dense"), "--out", str(tmp_path / "no"), "--language", "de"]
    with pytest.raises(ConfigError, match="--language would have no effect without --slices balanced"):
        cli.run(words)
    assert not (tmp_path / "no").exists()


def planned(folder, out, *more):
    """Numbers of translation experts for the toy's dense model."""
    words = ["plan", str(folder / "dense"), "--planner", "layer_moe", "--new", "es", "--known", "en", "--experts", "7"]
    cli.run([*words, "--corpus", str(folder / "toy.tsv.gz"), "--segments", "8", "--out", str(out), *more])
    return json.loads(out.read_text())


def test_layer_moe_plans_numbers_that_a_conversion_takes_and_both_stages_train(folder, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    plan = planned(folder, numbers)
    wanted = experts_per_layer(list(plan["statistic"].values()), 7)
    assert list(plan["experts"].values()) == wanted and len(wanted) == 3
    assert plan["model_sha256"] == model_checksum(str(folder / "dense"))
    assert {"model": str(folder / "dense"), "segments": 8}.items() <= plan["settings"].items()
    printed = capsys.readouterr().out
    assert f"Plan layer_moe: {sum(wanted)} translation experts in 3 layers." in printed
    cli.run(["show", str(numbers)])
    assert capsys.readouterr().out == printed
    plan["experts"] = {"0": 1, "1": 3, "2": 2}  # as unlike as a toy's are not
    numbers.write_text(json.dumps(plan))
    cli.run(["mix", "convert", str(folder / "dense"), "--numbers", str(numbers), "--out", str(tmp_path / "mix")])
    assert capsys.readouterr().err == "", "of these weights"
    assert json.loads((tmp_path / "mix" / "record.json").read_text())["numbers"]["experts"] == plan["experts"]
    one = settings(folder, model=str(tmp_path / "mix"), stage=1, out=tmp_path / "one", languages=("en", "es"))
    train(one)
    told = capsys.readouterr().out
    assert "  mass on translation experts: mean (lowest to highest)\n    text alone: 0.000 (" in told
    assert "text of a language less that of en: +0.000 (es); 0 of 1 with Holm p < 0.05" in told
    given = {"model": str(tmp_path / "one" / "model"), "out": tmp_path / "two", "directions": ("en-es",)}
    run_stage(replace(one, stage=2, languages=(), **given))
    before, after = (open_model(str(tmp_path / stage / "model")) for stage in ("one", "two"))
    for layer, trained, number in zip(moe_layers(before), moe_layers(after), (1, 3, 2), strict=True):
        assert layer.num_experts == 2 + number
        moved = [not torch.equal(a, b) for a, b in zip(layer.experts.down_proj, trained.experts.down_proj, strict=True)]
        assert moved[:2] == [False, False] and any(moved[2:]), "language-model experts stay"


def test_numbers_are_for_one_model(folder, tmp_path, capsys):
    numbers, convert = tmp_path / "numbers.json", ["mix", "convert", "--numbers", str(tmp_path / "numbers.json")]
    planned(folder, numbers)
    capsys.readouterr()
    for name, changes in (("other", {"seed": 1}), ("wide", {"intermediate_size": 64}), ("deep", {"layers": 4})):
        save_model(*small(**changes), tmp_path / name)
    cli.run([*convert, str(tmp_path / "other"), "--out", str(tmp_path / "mix")])
    err = capsys.readouterr().err
    assert err.startswith("dragoman: the plan of numbers was made from other weights") and err.count("\n") == 1
    with pytest.raises(ModelError, match=r"another model, .* 32 neurons in layer 0, .*; this one has 64 neurons"):
        cli.run([*convert, str(tmp_path / "wide"), "--out", str(tmp_path / "no")])
    with pytest.raises(ModelError, match="no feed-forward in layer 3; this one has 32 neurons in layer 3: make them"):
        cli.run([*convert, str(tmp_path / "deep"), "--out", str(tmp_path / "no")])
    with pytest.raises(ConfigError, match=r"layers \[0, 1, 2\], and layers \[0, 1\] are converted"):
        cli.run([*convert, str(folder / "dense"), "--layers", "0", "1", "--out", str(tmp_path / "no")])
    many = json.loads(numbers.read_text())
    numbers.write_text(json.dumps(many | {"experts": {**many["experts"], "1": 33}}))
    with pytest.raises(ModelError, match=r"more experts than a layer has neurons \(33 in layer 1 of 32 neurons\)"):
        cli.run([*convert, str(folder / "dense"), "--out", str(tmp_path / "no")])
    with pytest.raises(ConfigError, match="the seed is 0 or more, and less than 2 to the power of 63"):
        cli.run(["mix", "convert", str(folder / "dense"), "--seed", str(2**63), "--out", str(tmp_path / "no")])
    numbers.write_text('{"translation": {"0": 1}}')
    with pytest.raises(DataError, match=r"the format is None, .* make one with `dragoman plan --planner layer_moe`"):
        cli.run([*convert, str(folder / "dense"), "--out", str(tmp_path / "no")])
    assert not (tmp_path / "no").exists()


def test_two_stages_and_what_is_recorded(folder, tmp_path, capsys):
    one = run_stage(settings(folder, model=str(folder / "mix"), stage=1, languages=("en", "de"), out=tmp_path / "one"))
    assert set(one["results"]["bits_per_byte"]["after"]) == {"en", "de"}
    assert all(kind["value"] == 0 for kind in one["shares"]["kinds"]["text"].values()), "masked experts get nothing"
    assert settings_of(open_model(str(tmp_path / "one" / "model"))).stage == 1
    two = settings(
        folder, model=str(tmp_path / "one" / "model"), stage=2, directions=("en-de", "de-en"), out=tmp_path / "two"
    )
    record = run_stage(replace(two, languages=("ru",), replay=0.3))
    assert set(record["results"]["chrf"]["after"]) == {"en-de", "de-en"}
    assert set(record["results"]["bits_per_byte"]["after"]) == {"ru", "en", "de"}
    assert_shares(record["shares"])
    assert_shares(record["shares_before"])
    assert record["shares_before"] != record["shares"], "what stage 2 starts from"
    segments = json.loads((tmp_path / "two" / "segments.json").read_text())
    assert segments["sums"].keys() == {"before", "after"} and len(segments["outputs"]["after"]["en-de"]) == 6
    assert json.loads((tmp_path / "two" / "record.json").read_text())["shares"]["layers"] == [0, 1, 2]
    cli.run(["show", str(tmp_path / "two" / "record.json")])
    told = capsys.readouterr().out
    assert f"mix_moe, stage 2: {record['parameters']:,} parameters trained for" in told and "chrf " in told
    assert "<svg" in (tmp_path / "two" / "shares.svg").read_text()
    before, after = (open_model(str(tmp_path / s / "model")).state_dict() for s in ("one", "two"))
    for name in (n for n in before if ".router." not in n):
        rows = slice(2) if ".experts." in name else slice(None)
        assert torch.equal(before[name][rows], after[name][rows]), f"{name} is frozen in stage 2"


def test_the_recipes_train_both_stages_as_the_flags_do(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mix").symlink_to(folder / "mix")
    less = ["--corpus", str(folder / "toy.tsv.gz"), "--languages", "en", "de", "--block", "64", "--segments", "6"]
    steps = {"steps": 3, "batch": 4, "micro-batch": 4, "warmup": 1, "decay": 1}
    less += [word for name, value in steps.items() for word in (f"--training.{name}", str(value))] + ["--quiet"]
    for recipe in ("stage-1", "stage-2"):
        cli.run(["adapt", "--config", str(RECIPES / f"{recipe}.yaml"), *less])
    words = ["mix", "train", "mix-1/model", "--stage", "2", "--directions", "en-de", "de-en", "--out", "same", *less]
    cli.run(words)
    found, wanted = (json.loads(Path(out, "record.json").read_text()) for out in ("mix-2", "same"))
    assert found["log"]["losses"] == wanted["log"]["losses"] and found["results"] == wanted["results"]
    assert found["read"] == ["en-de", "de-en"] and settings_of(open_model("mix-2/model")).stage == 2


def assert_shares(shares):
    """All kinds, contrasts and placebos are there."""
    kinds, found = shares["kinds"], shares["contrasts"]
    assert {kind: set(x) for kind, x in kinds.items()} == {
        "text": {"ru", "en", "de"},
        "source": {"en-de", "de-en"},
        "translation": {"en-de", "de-en"},
    }
    assert all(0 < x["value"] < 1 and len(x["by_layer"]) == 3 for kind in kinds.values() for x in kind.values())
    assert all(x["found"] == x["segments"] == 6 for x in kinds["source"].values())
    assert {family: len(rows) for family, rows in found.items()} == {
        "source": 2, "translation": 2, "languages": 2, "directions": 4
    }  # fmt: skip
    assert all(x["paired"] and x["p_holm"] >= x["p_value"] for rows in found.values() for x in rows)
    assert set(shares["placebo"]) == {"ru", "en", "de"} and shares["left_out"] == {} and shares["same_rows"]
    assert all(x["mean"] > 0 and x["splits"] == 200 for x in shares["placebo"].values())
    for x in shares["placebo"].values():
        assert x["p95"] == pytest.approx(x["mean"]) and x["units"] == 2, "there is one parting of two"


def test_moe_lpr_on_the_same_text(folder, tmp_path):
    cli.run(["models", "upcycle", str(folder / "dense"), "--out", str(tmp_path / "up")])
    common = {"method": "moe_lpr", "languages": ("en", "ca")}
    run_stage(settings(folder, model=str(tmp_path / "up"), stage=1, out=tmp_path / "one", **common))
    common |= {"old": ("en",), "training": EVEN}
    last = run_stage(settings(folder, model=str(tmp_path / "one/model"), stage=2, out=tmp_path / "two", **common))
    assert last["parameters"] == 3 * 4 * 16, "three routers of four experts"
    assert open_model(str(tmp_path / "two/model")).config.model_type == "mixtral"


def test_lora_of_as_many_parameters_as_are_given(folder, tmp_path):
    dense, common = str(folder / "dense"), {"method": "lora", "languages": ("en", "de"), "training": EVEN}
    # rank 1: in each of 3 layers attention has 4 maps of 16 + 16, the feed-forward 3 of 16 + 32
    each = 3 * (4 * 32 + 3 * 48)
    record = run_stage(
        settings(folder, model=dense, out=tmp_path / "lora", parameters=3 * each + 5, only_after=True, **common)
    )
    assert record["parameters"] == 3 * each and record["method"]["rank"] == 3 and record["method"]["alpha"] == 6
    assert record["results"]["bits_per_byte"].keys() == {"after"}
    assert type(open_model(str(tmp_path / "lora/model"))).__name__ == "LlamaForCausalLM"
    with pytest.raises(ConfigError, match=f"rank 1 trains {each:,} parameters here"):
        run_stage(settings(folder, model=dense, out=tmp_path / "no", parameters=each - 1, **common))


def test_all_stands_for_the_languages_given_and_what_is_scored_can_differ(folder, tmp_path):
    given = {"languages": ("en", "de", "ru"), "directions": ("en-all",), "score": ("all-en",), "only_after": True}
    asked = {"model": str(folder / "dense"), "method": "full", "training": EVEN, "out": tmp_path / "full"}
    record = run_stage(settings(folder, **(asked | given)))
    assert set(record["results"]["chrf"]["after"]) == {"de-en", "ru-en"}
    assert record["samples_too_long"] == 0 and set(record["results"]["bits_per_byte"]["after"]) == {"en", "de", "ru"}
    assert record["read"] == ["en-de", "en-ru"]


def test_rows_of_parallel_text_have_labels_on_translations_alone(folder):
    _, codec = small()
    config = settings(folder, model="x", stage=2, directions=("en-de",), out=folder / "no")
    rows = stage_rows(config, codec, corpus(), {"en-de": ("en", "de")})
    assert rows.tokens_NS.shape == (12, 64)
    row, labels = rows.tokens_NS[0].tolist(), rows.labels_NS[0].tolist()
    end = row.index(codec.end_id)
    silent = row[: end + 1].index(codec.tag_id("de")) + 1
    assert labels[:silent] == [-100] * silent and labels[silent : end + 1] == row[silent : end + 1]


def test_replay_has_its_share_of_tokens(folder):
    _, codec = small()
    steps = replace(STEPS, steps=40, warmup=1)
    config = settings(
        folder,
        model="x",
        stage=2,
        directions=("en-de",),
        languages=("ru",),
        replay=0.4,
        out=folder / "no",
        training=steps,
    )
    rows = stage_rows(config, codec, corpus(), {"en-de": ("en", "de")})
    prompts = ((rows.labels_NS == -100) & (rows.tokens_NS != codec.pad_id)).sum()
    samples = codec.pairs(corpus().texts("en", "train"), corpus().texts("de", "train"), "en", "de", {})
    paired = prompts * sum(len(ids) for ids, _ in samples) / sum(silent for _, silent in samples)
    assert 1 - paired / (rows.tokens_NS != codec.pad_id).sum() == pytest.approx(0.4, abs=0.05)


def test_rows_of_old_and_new_languages_take_turns(folder):
    _, codec = small()
    given = {"method": "moe_lpr", "languages": ("ca", "en", "ru"), "old": ("en", "ru"), "training": EVEN}
    config = settings(folder, model="x", stage=2, out=folder / "no", **given)
    rows = stage_rows(config, codec, corpus(), {})
    assert rows.old_N == [False, True, True] * 4
    assert "fitxer" in codec.decode(rows.tokens_NS[0]) + codec.decode(rows.tokens_NS[3])
    assert "the" in codec.decode(rows.tokens_NS[1]) and "файл" in codec.decode(rows.tokens_NS[2])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stage": 1, "directions": ("en-de",)}, "stage 1 .* monolingual text, and was given the directions en-de"),
        ({"stage": 2, "languages": ("en",)}, "stage 2 trains translation experts on parallel text; give --directions"),
        ({"stage": 1}, "there is no text"),
        ({"stage": 1, "languages": ("en",), "replay": 0.1}, "replay has no effect"),
        ({"stage": 1, "languages": ("en",), "segments": 3}, "segments is 3, at least 4"),
        ({"languages": ("en",)}, "mix_moe has the stages 1 and 2, not None"),
        ({"languages": ("en",), "method": "lora", "stage": 1, "training": EVEN}, "lora has no stages"),
        ({"stage": 1, "languages": ("en",), "rank": 3}, "on lora alone"),
        ({"languages": ("en",), "method": "lora", "rank": 3, "parameters": 9, "training": EVEN}, "say the same"),
        ({"stage": 1, "languages": ("en",), "old": ("en",)}, "stage 2 of moe_lpr alone"),
        ({"stage": 2, "languages": ("en",), "method": "moe_lpr"}, "needs old languages"),
        ({"languages": ("en",), "method": "full", "training": MORE}, "full trains without a load balance: leave"),
        ({"stage": 1, "languages": ("en",), "method": "moe_lpr", "lpr": 0.2}, "old, lpr and lpr_mode have"),
        (
            {"stage": 2, "languages": ("en",), "method": "moe_lpr", "old": ("en",), "training": MORE},
            "moe_lpr trains without a load balance in stage 2: leave training.balance out",
        ),
        ({"stage": 1, "languages": ("en",), "training": replace(STEPS, learning_rate=0.0)}, "the learning rate 0"),
        ({"languages": ("en",), "method": "magic"}, "there are mix_moe, moe_lpr, full, lora"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Train("x", out="y", **changes)


def test_stage_two_without_stage_one_leaves_no_folder(folder, tmp_path):
    with pytest.raises(ModelError, match="stage 2 goes on from a model that stage 1 has trained"):
        run_stage(settings(folder, model=str(folder / "mix"), stage=2, directions=("en-de",), out=tmp_path / "two"))
    assert not (tmp_path / "two").exists()


def test_what_cannot_be_scored_is_said_before_anything_trains(folder, tmp_path):
    one = settings(folder, model=str(folder / "mix"), stage=1, languages=("en", "de"), out=tmp_path / "one")
    with pytest.raises(DataError, match=r"^the selection names the split 'devtset'; splits are [a-z, ]*$"):
        run_stage(replace(one, only_after=True, split="devtset"))
    corpus().save(tmp_path / "few.tsv")
    rows = (tmp_path / "few.tsv").read_text().splitlines(keepends=True)
    split = rows[0].rstrip("\n").split("\t").index("split")
    held = [n for n, row in enumerate(rows) if row.rstrip("\n").split("\t")[split] == "devtest"]
    (tmp_path / "few.tsv").write_text("".join(row for n, row in enumerate(rows) if n not in held[3:]))
    with pytest.raises(DataError, match=r"4 segments or more of split devtest, .* en \(3\), de \(3\); give more rows"):
        run_stage(replace(one, corpus=str(tmp_path / "few.tsv")))
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("method", ["mix_moe", "lora"])
def test_a_killed_stage_goes_on_to_the_bit(method, folder, tmp_path, monkeypatch):
    start = {"mix_moe": {"model": str(folder / "mix"), "stage": 1}, "lora": {"model": str(folder / "dense")}}[method]
    steps = replace(STEPS if method == "mix_moe" else EVEN, steps=6, checkpoint_steps=2)
    whole = settings(folder, method=method, languages=("en",), out=tmp_path / "whole", **start | {"training": steps})
    wanted = run_stage(whole)
    cut, save = replace(whole, out=tmp_path / "cut"), loop.Loop._seal

    def die(loop, staged, folder):
        save(loop, staged, folder)
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "_seal", die)
    with pytest.raises(KeyboardInterrupt):
        run_stage(cut)
    monkeypatch.setattr(loop.Loop, "_seal", save)
    with pytest.raises(ConfigError, match=r"was another \(training.learning_rate: .* -> 0.5\); resume with the old"):
        run_stage(replace(cut, resume=True, training=replace(steps, learning_rate=0.5)))
    record = run_stage(replace(cut, resume=True))
    assert record["log"]["losses"] == wanted["log"]["losses"] and record["results"] == wanted["results"]
    assert run_stage(replace(cut, resume=True))["created"] == record["created"], "what is done is not done again"
