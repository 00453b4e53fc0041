"""`dragoman pretrain` on toy text: a model from nothing, further training, resuming, leaks."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

import dragoman
from dragoman import cli
from dragoman.commands import pretrain
from dragoman.commands.pretrain import Vocabulary
from dragoman.corpora.mix import Mix
from dragoman.corpora.ntext import load
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import training
from dragoman.methods.checkpoints import seal
from dragoman.record import write_json
from tests.killing import killed
from tests.models import FAMILIES, SHARED
from tests.texts import corpus

SHAPE = {k: v for k, v in (SHARED | FAMILIES["olmoe"]).items() if not k.endswith("token_id") and k != "vocab_size"}

GPT2 = {"n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 1}
GIVEN = {"shape": {}, "vocabulary": Vocabulary()}
"""What has no effect beside given weights."""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return corpus().save(tmp_path_factory.mktemp("data") / "text.tsv.gz")


def settings(table, out, **changes):
    return {
        "out": out,
        "data": (table,),
        "shape": SHAPE,
        "vocabulary": Vocabulary(size=350, tags=("en", "es", "ca")),
        "mix": Mix(languages={"en": 1.0, "es": 1.0}, parallel=0.5),
        "held_out_languages": ("ca",),
        "block": 32,
        "training": training.Config(steps=6, batch=4, micro_batch=4, warmup=2, decay=2, balance=0.01, precision="fp32"),
        "quiet": True,
    } | changes


@pytest.fixture(scope="module")
def base(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    return folder, dragoman.pretrain(**settings(table, folder))


def test_a_model_from_nothing_opens_and_knows_its_tags(base):
    folder, record = base
    model, codec = dragoman.open_model(str(folder / "model")), dragoman.open_tokenizer(str(folder / "model"))
    assert len(codec.tokenizer) == model.config.vocab_size == 350
    assert codec.tag_id("ca") is not None
    assert codec.tag_id("de") is None
    assert len(dragoman.moe_layers(model)) == 3
    assert record["training"]["tokens"] == 6 * 4 * 32
    assert json.loads((folder / "record.json").read_text())["config"]["mix"]["parallel"] == 0.5


def test_further_training_starts_at_the_given_weights(base, table, tmp_path):
    folder, record = base
    more = dragoman.pretrain(**settings(table, tmp_path / "more", start=str(folder / "model"), **GIVEN))
    assert more["training"]["losses"][0] < record["training"]["losses"][0]


def test_only_seen_languages_teach_the_tokenizer(base):
    folder, _ = base
    codec = dragoman.open_tokenizer(str(folder / "model"))
    per_byte = {
        g: sum(map(len, codec.encode(corpus().texts(g)))) / sum(len(t.encode()) for t in corpus().texts(g))
        for g in ("en", "es", "ru")
    }
    assert per_byte["ru"] > 2 * per_byte["en"]
    assert per_byte["es"] < 1.5 * per_byte["en"]


def test_a_planted_leak_is_refused_before_anything_is_written(table, tmp_path):
    held = corpus()
    train = held.splits.index("train")
    splits = list(held.splits)
    for i, document in enumerate(held.documents):
        if document == held.documents[train]:
            splits[i] = "devtest"
    other = replace(held, splits=tuple(splits)).save(tmp_path / "held.tsv.gz")
    with pytest.raises(DataError, match=rf"1 held-out documents in toy: {held.documents[train]}"):
        dragoman.pretrain(**settings(table, tmp_path / "run", held_out=other))
    with pytest.raises(DataError, match="held-out languages in the mix: es"):
        dragoman.pretrain(**settings(table, tmp_path / "run", held_out_languages=("es", "ca")))
    learnt = Vocabulary(size=350, tags=("en",), languages=("en", "ca"))
    with pytest.raises(DataError, match="held-out languages in the mix: ca"):
        dragoman.pretrain(**settings(table, tmp_path / "run", vocabulary=learnt))
    i, columns = held.splits.index("devtest"), {g: list(c) for g, c in held.columns.items()}
    columns["en"][train] = columns["en"][i]
    sealed = tuple("test" if split == "devtest" else split for split in held.splits)
    leaky = replace(held, columns=columns, splits=sealed).save(tmp_path / "leaky.tsv.gz")
    with pytest.raises(DataError, match="1 held-out segments in toy"):
        dragoman.pretrain(**settings(leaky, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"mix\.tables names tou; the tables are toy"):
        dragoman.pretrain(**settings(table, tmp_path / "run", mix=Mix(languages={"en": 1.0}, tables={"tou": 0.5})))
    assert not (tmp_path / "run").exists()


def test_a_short_run_encodes_what_it_reads_and_sees_the_same_text(table, tmp_path, base, monkeypatch):
    from dragoman.modeling import TextCodec, open_tokenizer

    encoded = []
    plain = TextCodec.encode
    monkeypatch.setattr(TextCodec, "encode", lambda self, texts: encoded.extend(texts) or plain(self, texts))
    tables, codec = [load(table)], open_tokenizer(str(base[0] / "model"))
    few, all_of_them = ([], [])
    two = training.Config(steps=2, batch=1, micro_batch=1, warmup=1, decay=1)
    for limit, kept in ((4, few), (1e9, all_of_them)):
        monkeypatch.setattr(pretrain, "TOKEN", limit)
        encoded.clear()
        config = pretrain.Config(**settings(table, tmp_path / "run", training=two))
        kept += [len(set(encoded)), pretrain._rows(config, tables, codec).tolist(), len(set(encoded))]
    assert few[1] == all_of_them[1], "the same blocks"
    train = {t for g in ("en", "es") for t in tables[0].texts(g, "train")}
    assert few[2] < all_of_them[2] == len(train)


def test_resuming_needs_a_checkpoint_and_the_same_config(table, tmp_path, base):
    folder, _ = base
    with pytest.raises(ConfigError, match=r"not empty.*--resume"):
        dragoman.pretrain(**settings(table, folder))
    with pytest.raises(ConfigError, match="no checkpoint"):
        dragoman.pretrain(**settings(table, folder, resume=True))
    made = folder / "checkpoints" / "checkpoint-3"
    write_json(made / "log.json", {"steps": 3, "decay_from": 2})
    seal(made)
    with pytest.raises(ConfigError, match="block: 32 -> 16"):
        dragoman.pretrain(**settings(table, folder, resume=True, block=16))
    longer = replace(settings(table, folder)["training"], steps=1000)
    with pytest.raises(ConfigError, match=r"every checkpoint in .* is from the decay"):
        dragoman.pretrain(**settings(table, folder, resume=True, training=longer))
    write_json(made / "log.json", {"steps": 3, "decay_from": 900})
    seal(made)
    shorter = replace(longer, steps=4, decay=2)
    with pytest.raises(ConfigError, match=r"or from after update 2, where the new one would begin"):
        dragoman.pretrain(**settings(table, folder, resume=True, training=shorter))
    stamp = json.loads((folder / "config.json").read_text())
    for name in ("tables", "tokenizer"):
        write_json(folder / "config.json", stamp | {"read": stamp["read"] | {name: "another"}})
        with pytest.raises(ConfigError, match=f"read other {name} than are there now, so it cannot go on"):
            dragoman.pretrain(**settings(table, folder, resume=True))
    write_json(folder / "config.json", stamp)
    (made / "files.json").unlink()
    with pytest.raises(ConfigError, match=r"no whole checkpoint in .*: checkpoint-3 lack files.*older versions wrote"):
        dragoman.pretrain(**settings(table, folder, resume=True))
    shutil.rmtree(made.parent)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"start": "m", "tokenizer": "t"}, ConfigError, "shape and tokenizer and vocabulary would have no eff"),
        ({"start": "m", "architecture": "llama"} | GIVEN, ConfigError, "architecture would have no effect"),
        ({"tokenizer": "t"}, ConfigError, "vocabulary would have no effect beside tokenizer t: leave out one"),
        ({"vocabulary": Vocabulary(languages=("en", "sv"))}, ConfigError, "vocabulary.languages names sv; the tables"),
        ({"dtype": "bf16"}, ConfigError, "dtype is float32, bfloat16, float16, not 'bf16'"),
        ({"block": 1}, ConfigError, "block is 1, at least 8"),
        ({"architecture": "gpt2", "shape": GPT2, "block": 256}, ConfigError, "rows of 256 tokens do not fit the 64 "),
        ({"device": "gpu"}, ConfigError, "the device 'gpu' cannot be used"),
        ({"shape": SHAPE | {"num_experts_per_token": 4}}, ModelError, r"\(did you mean num_experts_per_tok\?\)"),
        ({"shape": {"rope_theta": 5.0, "qq": 1}}, ModelError, "a config of type 'olmoe' has no qq$"),
        ({"architecture": "t5", "shape": {}}, ModelError, "cannot make a model of type 't5'"),
        ({"held_out_languages": ("ES",)}, DataError, "held-out languages in the mix: es"),
        ({"mix": Mix(languages={"en": 1.0, "pt_BR": 1.0})}, ConfigError, "mix.languages names pt_BR; the tables have"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(table, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        dragoman.pretrain(**settings(table, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_test_set_without_splits_is_held_out_whole(table, tmp_path):
    """A table that knows no splits would have most of its rows in train."""
    text = corpus()
    train = text.columns["en"][text.splits.index("train")]
    rows = [f"unseen {i}\tno visto {i}" for i in range(40)]
    (tmp_path / "held.tsv").write_text("\n".join(["en\tes", rows[0], f"{train}\tno visto", *rows[1:]]) + "\n")
    with pytest.raises(DataError, match="1 held-out segments in toy"):
        dragoman.pretrain(**settings(table, tmp_path / "run", held_out=tmp_path / "held.tsv"))


def test_a_language_that_we_have_no_name_for_is_in_pairs(tmp_path):
    text = corpus()
    columns = {"hsb" if g == "es" else g: cells for g, cells in text.columns.items()}
    other = replace(text, languages=tuple(columns), columns=columns).save(tmp_path / "text.tsv.gz")
    mix = Mix(languages={"en": 1.0, "hsb": 1.0}, parallel=0.5)
    given = {"mix": mix, "vocabulary": Vocabulary(size=350, tags=("en",))}
    assert dragoman.pretrain(**settings(other, tmp_path / "run", **given))["training"]["steps"] == 6


def test_several_tables_after_one_flag_are_all_in_the_record(table, tmp_path, monkeypatch):
    """Two tables may bear one name."""
    (tmp_path / "b").mkdir()
    other = corpus(rows=90).save(tmp_path / "b" / table.name)
    recipe = {"shape": SHAPE, "block": 32, "vocabulary": {"size": 350, "tags": ["en"]}}
    recipe["training"] = {"steps": 1, "batch": 4, "micro_batch": 4, "warmup": 0, "decay": 0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--config", tmp_path / "recipe.yaml", "--data", table, other, "--out", tmp_path / "run", "--quiet"]
    cli.run(["pretrain", *map(str, words)])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["tables"] == {str(path): load(path).about["checksum"] for path in (table, other)}
    assert len(set(record["tables"].values())) == 2


def test_how_often_checkpoints_are_written_is_no_other_length(table, tmp_path, base):
    """The last one is gone on from, in the decay too."""
    folder, _ = base
    made = folder / "checkpoints" / "checkpoint-5"
    write_json(made / "log.json", {"steps": 5, "decay_from": 2})
    seal(made)
    oftener = replace(settings(table, folder)["training"], checkpoint_steps=7)
    config = pretrain.Config(**settings(table, folder, resume=True, training=oftener))
    stamp = json.loads((folder / "config.json").read_text())
    assert pretrain._resumable(config, stamp["read"]) == (made, False)
    folder.rename(folder.with_name("moved"))
    elsewhere = replace(config, out=folder.with_name("moved"), device="cpu", dtype="float32")
    found, extended = pretrain._resumable(elsewhere, stamp["read"])
    assert (found, extended) == (folder.with_name("moved") / "checkpoints" / "checkpoint-5", False)
    folder.with_name("moved").rename(folder)
    write_json(folder / "config.json", stamp)
    shutil.rmtree(made.parent)


def test_a_folder_where_nothing_was_trained_may_be_started_in_again(table, tmp_path):
    config = pretrain.Config(**settings(table, tmp_path / "run"))
    for _ in range(2):
        assert pretrain._resumable(config, {"tables": [], "tokenizer": "", "start": None}) == (None, False)
    (tmp_path / "run" / "checkpoints" / ".unfinished").mkdir(parents=True)  # killed in its first checkpoint
    assert pretrain._resumable(config, {"tables": [], "tokenizer": "", "start": None}) == (None, False)
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(ConfigError, match="is not empty"):
        pretrain._resumable(config, {"tables": [], "tokenizer": "", "start": None})


def test_a_finished_run_goes_on_for_longer(table, tmp_path, base):
    _, record = base
    short = replace(training.Config(**record["config"]["training"]), checkpoint_minutes=1e-9)  # after every step
    longer = replace(short, steps=9)
    dragoman.pretrain(**settings(table, tmp_path / "a", training=short))
    resumed = dragoman.pretrain(**settings(table, tmp_path / "a", training=longer, resume=True))
    straight = dragoman.pretrain(**settings(table, tmp_path / "b", training=longer))
    assert resumed["training"]["losses"] == straight["training"]["losses"]
    assert resumed["training"]["tokens"] == 9 * 4 * 32


@pytest.mark.parametrize("changes", [{"steps": 9}, {"steps": 9, "decay": 0}])
def test_a_longer_run_that_was_killed_goes_on_with_its_own_schedule(table, tmp_path, base, changes, monkeypatch):
    """Also where it had written no checkpoint yet, so that the last one knows the old schedule alone."""
    short = replace(training.Config(**base[1]["config"]["training"]), checkpoint_minutes=1e-9)  # after every step
    longer = replace(short, **changes)
    dragoman.pretrain(**settings(table, tmp_path / "a", training=short))

    def ends(*_, **__):
        raise KeyboardInterrupt

    again = settings(table, tmp_path / "a", training=longer, resume=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "_rows", ends)
        dragoman.pretrain(**again)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Loop, "training_step", ends)
        dragoman.pretrain(**again)
    resumed = dragoman.pretrain(**again)
    straight = dragoman.pretrain(**settings(table, tmp_path / "b", training=longer))
    assert resumed["training"]["losses"] == straight["training"]["losses"]
    assert resumed["training"]["decay_from"] == straight["training"]["decay_from"]


@pytest.mark.parametrize(
    "how", [{}, pytest.param({"precision": "bf16", "compile": True}, marks=pytest.mark.slow)], ids=["fp32", "compiled"]
)
def test_killed_at_a_step_and_inside_a_save_it_resumes_to_the_bit(table, tmp_path, how):
    steps = {"steps": 6, "batch": 4, "micro_batch": 4, "warmup": 2, "decay": 2, "balance": 0.01, "checkpoint_steps": 2}
    recipe = {
        "data": [str(table)],
        "shape": SHAPE,
        "vocabulary": {"size": 350, "tags": ["en", "es", "ca"]},
        "mix": {"languages": {"en": 1.0, "es": 1.0}, "parallel": 0.5},
        "block": 64,
        "training": steps | {"precision": "fp32"} | how,
        "quiet": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "words.json").write_text(json.dumps(["pretrain", "--config", str(tmp_path / "recipe.yaml")]))
    assert killed(tmp_path, "step:5", "torch_save:5")["steps"] == 6


def test_a_checkpoint_is_a_model_to_open_and_to_start_from(table, tmp_path, base):
    often = replace(training.Config(**base[1]["config"]["training"]), checkpoint_steps=2)
    dragoman.pretrain(**settings(table, tmp_path / "a", training=often))
    checkpoint = str(tmp_path / "a" / "checkpoints" / "checkpoint-4")
    model, codec = dragoman.open_model(checkpoint), dragoman.open_tokenizer(checkpoint)
    assert len(codec.tokenizer) == model.config.vocab_size
    slower = replace(often, learning_rate=1e-4)
    given = {"start": checkpoint, **GIVEN, "training": slower}
    record = dragoman.pretrain(**settings(table, tmp_path / "b", **given))
    assert record["start_sha256"] == dragoman.modeling.model_checksum(checkpoint)
