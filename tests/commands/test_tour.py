"""The tour and the single commands, end to end on a toy model and toy text."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dragoman
from dragoman.commands import tour
from dragoman.commands.adapt import Text
from dragoman.commands.tour import ARMS
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import TextCodec, copy_tag, save_model
from tests.models import dense, tiny
from tests.texts import corpus, tokenizer

KNOWN = ("en", "es", "de", "ru")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a toy model and a toy corpus."""
    folder = tmp_path_factory.mktemp("toy")
    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer), num_experts=16), codec, folder / "model")
    save_model(dense(vocab_size=len(codec.tokenizer)), codec, folder / "dense")
    corpus().save(folder / "text.tsv.gz")
    return folder


def settings(place, out, **changes):
    return {
        "model": str(place / "model"),
        "corpus": str(place / "text.tsv.gz"),
        "known": KNOWN,
        "segments": 12,
        "text": Text(segments=16, block=64, batch=4),
        "out": out,
        "quiet": True,
    } | changes


@pytest.fixture(scope="module")
def finished(place):
    """(folder, record) of a tour that nothing disturbed."""
    return place / "tour", dragoman.tour(**settings(place, place / "tour"))


def numbers(record):
    return {k: record[k] for k in ("bits_per_byte", "chrf", "comparisons", "forgetting", "trained_share", "routing")}


def test_the_record_holds_what_it_promises(finished):
    folder, _ = finished
    on_disk = json.loads((folder / "record.json").read_text())
    systems = ["base", *ARMS]
    assert list(on_disk["bits_per_byte"]) == systems
    assert all(set(row) == set(corpus().languages) for row in on_disk["bits_per_byte"].values())
    assert set(on_disk["chrf"]) == {*systems, "copy"}
    assert all(set(row) == {"ca"} for row in on_disk["chrf"].values())
    assert on_disk["trained_share"]["full"] == 1.0
    assert on_disk["trained_share"]["ssft"] == on_disk["trained_share"]["random"]
    assert 0 < on_disk["trained_share"]["ssft"] < on_disk["trained_share"]["last_layers"] < 1
    assert on_disk["seconds"] > 0
    assert on_disk["peak_memory_mb"] > 0
    pairs = {(c["a"], c["b"]) for c in on_disk["comparisons"] if c["metric"] == "bits_per_byte"}
    assert len(pairs) == 5 * 4 / 2, "every two systems"
    assert set(on_disk["forgetting"]["full"]) == set(KNOWN)
    assert all(c["language"] == "ca" for c in on_disk["comparisons"])
    assert on_disk["trained_on_known"] is False, "only of the built-in model it is known"
    assert "trained on" not in (folder / "report.html").read_text()


def test_three_documents_show_nothing(finished):
    folder, record = finished
    assert {c["units"] for by in record["forgetting"].values() for c in by.values()} == {3}
    assert {c["units"] for c in record["comparisons"]} == {3}
    page = (folder / "report.html").read_text()
    assert "3 documents are too few to judge" in page and "improves" not in page and " better</td>" not in page


def test_every_arm_learnt_on_the_same_tokens(finished):
    _, record = finished
    assert len({(t["steps"], t["tokens"]) for t in record["training"].values()}) == 1
    first = [t["losses"][0] for t in record["training"].values()]
    assert len(set(first)) == 1, "all arms start at the base, on the same first batch"


def test_forgetting_is_the_difference_of_the_table(finished):
    _, record = finished
    for arm, by_language in record["forgetting"].items():
        for g, change in by_language.items():
            expected = record["bits_per_byte"][arm][g] - record["bits_per_byte"]["base"][g]
            assert change["difference"] == pytest.approx(expected, abs=1e-12)
            assert change["low"] <= change["difference"] <= change["high"]


def test_bits_per_byte_against_a_loop(finished, place):
    """The base's number again, token by token, from the saved model."""
    import torch

    _, record = finished
    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    copy_tag(model, codec, record["parent"]["chosen"], "ca")  # part of every arm; a tag takes part in each softmax
    texts = corpus().texts("ca", "devtest")[:12]
    bits = 0.0
    for text in texts:
        (ids,) = codec.encode([text])
        with torch.no_grad():
            row_BS = torch.tensor([[codec.start_id, *ids]], device=model.device)
            log_p = model(row_BS).logits[0].double().log_softmax(-1)
        bits -= sum(log_p[i, t].item() for i, t in enumerate(ids)) / np.log(2)
    expected = bits / sum(len(t.encode()) for t in texts)
    assert record["bits_per_byte"]["base"]["ca"] == pytest.approx(expected, rel=1e-5)


def test_the_saved_model_is_the_adapted_one(finished, place):
    folder, record = finished
    again = dragoman.evaluate(
        str(folder / "model-ssft"),
        corpus=str(place / "text.tsv.gz"),
        languages=("ca", "en"),
        directions=("en-ca",),
        metrics=("chrf",),
        segments=12,
        out=place / "again",
        quiet=True,
    )
    for g in ("ca", "en"):
        assert again["bits_per_byte"][str(folder / "model-ssft")][g] == record["bits_per_byte"]["ssft"][g]
    assert again["chrf"]["copy"]["en-ca"] == record["chrf"]["copy"]["ca"]
    assert again["chrf"][str(folder / "model-ssft")]["en-ca"] == record["chrf"]["ssft"]["ca"]


def test_same_seed_same_numbers_and_another_seed_others(finished, place):
    _, record = finished
    same = dragoman.tour(**settings(place, place / "same"))
    assert json.dumps(numbers(same)) == json.dumps(numbers(record))
    other = dragoman.tour(**settings(place, place / "other", seed=1))
    assert other["bits_per_byte"]["ssft"] != record["bits_per_byte"]["ssft"]


@pytest.mark.parametrize("stage", ["routing", "random", "report"])
def test_a_killed_tour_goes_on_and_gives_the_same_numbers(finished, place, stage, monkeypatch, tmp_path):
    _, record = finished

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        if stage == "routing":
            patched.setattr(tour.diagnose, "describe", die)
        elif stage == "random":
            train = tour.adapt.train_arm
            calls = iter([train, die])
            patched.setattr(tour.adapt, "train_arm", lambda *a, **k: next(calls)(*a, **k))
        else:
            patched.setattr(tour, "_record", die)
        with pytest.raises(Killed):
            dragoman.tour(**settings(place, tmp_path / "t"))
    assert not (tmp_path / "t" / "record.json").exists()
    if stage == "report":
        monkeypatch.setattr(tour.adapt, "train_arm", die)  # nothing may be trained again
    resumed = dragoman.tour(**settings(place, tmp_path / "t"))
    assert json.dumps(numbers(resumed)) == json.dumps(numbers(record))


def test_a_finished_tour_is_not_run_again(finished, place, monkeypatch, capsys):
    folder, record = finished
    monkeypatch.setattr(tour, "_score", None)
    assert dragoman.tour(**settings(place, folder))["created"] == record["created"]
    assert "finished before" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(finished, place):
    folder, _ = finished
    with pytest.raises(ConfigError, match=r"seed: 0 -> 3.*choose another --out"):
        dragoman.tour(**settings(place, folder, seed=3))


def test_a_tour_of_an_older_version_is_opened_again(finished, place, tmp_path):
    """Which wrote fewer settings."""
    folder, record = finished
    shutil.copytree(folder, tmp_path / "t")
    path = tmp_path / "t" / "stages" / "config.json"
    stamp = json.loads(path.read_text())
    del stamp["text"]["sources"], stamp["text"]["isolate"]
    path.write_text(json.dumps(stamp))
    assert dragoman.tour(**settings(place, tmp_path / "t"))["created"] == record["created"]
    path.write_text(json.dumps(stamp | {"text": stamp["text"] | {"isolate": True}}))
    with pytest.raises(ConfigError, match=r"text\.isolate: True -> False"):
        dragoman.tour(**settings(place, tmp_path / "t"))


def test_a_tour_with_further_text_goes_on_while_that_is_the_same(place, tmp_path, monkeypatch):
    notes, lines = tmp_path / "notes.txt", "obriu el fitxer ara\n" * 8
    notes.write_text(lines)
    text = Text(segments=16, block=64, batch=4, sources={"notes": notes})
    given = settings(place, tmp_path / "t", text=text)
    with monkeypatch.context() as patched:
        patched.setattr(tour.diagnose, "describe", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            dragoman.tour(**given)
    notes.write_text(lines + "deseu-lo\n")
    with pytest.raises(ConfigError, match=r"text.sources.notes_sha256: \w+ -> \w+"):
        dragoman.tour(**given)
    notes.write_text(lines)
    record = dragoman.tour(**given)
    assert shlex.split(record["repeat"]).count("--text.sources.notes") == 1
    assert dragoman.tour(**given)["created"] == record["created"], "a finished one is opened again"
    path = tmp_path / "t" / "stages" / "config.json"
    stamp = {k: v for k, v in json.loads(path.read_text()).items() if k != "text.sources.notes_sha256"}
    path.write_text(json.dumps(stamp))
    assert dragoman.tour(**given)["created"] == record["created"], "older versions wrote no checksum"


def test_a_folder_of_somebody_else_is_refused(place, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        dragoman.tour(**settings(place, tmp_path))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": "xx"}, DataError, "no column xx"),
        ({"target": "es"}, ConfigError, "the target es is among the known"),
        ({"known": ("en",)}, ConfigError, "two languages or more"),
        ({"corpus": "/nowhere.tsv"}, DataError, "/nowhere.tsv"),
        ({"model": "./nowhere"}, ModelError, "no config.json"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(place, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        dragoman.tour(**settings(place, tmp_path / "t", **changes))
    assert not (tmp_path / "t").exists()


def test_a_dense_model_is_told_so(place, tmp_path):
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        dragoman.tour(**settings(place, tmp_path / "t", model=str(place / "dense")))
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        dragoman.diagnose(str(place / "dense"), corpus=str(place / "text.tsv.gz"), out=tmp_path / "d", quiet=True)
    assert not (tmp_path / "d" / "trace.npz").exists()


def test_the_command_that_repeats_a_tour_gives_its_config(monkeypatch, tmp_path):
    from dragoman import cli

    configs = []
    monkeypatch.setattr(tour, "run", lambda config: configs.append(config))
    monkeypatch.setattr(tour, "show", lambda result: None)
    wanted = tour.Config(
        corpus="my text.tsv",
        known=("en", "es"),
        text=Text(segments=7, parallel=False, sources={"notes": Path("my notes.txt"), "more": Path("m.jsonl")}),
        learning_rates=tour.LearningRates(full=0.5),
        out=tmp_path / "a b",
        seed=3,
    )
    cli.run(shlex.split(tour._repeat(wanted))[1:])
    assert configs == [wanted]


def test_text_that_is_not_parallel_is_not_compared_pairwise(place, tmp_path):
    table = corpus()
    columns = {
        g: [t if i % 5 == k else None for i, t in enumerate(table.columns[g])] for k, g in enumerate(table.languages)
    }
    replace(table, columns=columns).save(tmp_path / "text.tsv.gz")
    record = dragoman.diagnose(
        str(place / "model"), corpus=str(tmp_path / "text.tsv.gz"), split="train", out=tmp_path / "d", quiet=True
    )
    assert record["routing"]["sample"]["parallel"] is False
    assert record["routing"]["sequence_divergence"] is None
    assert set(record["routing"]["divergence_interval"]) == set(table.languages) - {"en"}, "resampled apart"


def test_a_tour_tells_that_the_text_is_not_parallel(finished, place, tmp_path, capsys):
    """Each row lacks one of the five languages."""
    table = corpus()
    columns = {
        g: [t if i % 5 != k else None for i, t in enumerate(table.columns[g])] for k, g in enumerate(table.languages)
    }
    replace(table, columns=columns).save(tmp_path / "text.tsv.gz")
    record = dragoman.tour(**settings(place, tmp_path / "t", corpus=str(tmp_path / "text.tsv.gz")))
    assert record["routing"]["sample"]["parallel"] is False
    assert "too few rows of dev are complete in en, es, de, ru, ca, so" in capsys.readouterr().err
    told = "differences of topic look like differences of language"
    assert told in (tmp_path / "t" / "report.html").read_text()
    assert told not in (finished[0] / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"batch": 0}}, "batch is 0, at least 1"),
        ({"text": {"source": "ca"}}, "source and target are both ca"),
        ({"segments": 1}, "segments is at least 2"),
        ({"seed": -1}, "seed at least 0"),
        ({"known": ("en", "en")}, "each once"),
        ({"seed": 2**32}, r"less than 2 \*\* 32, not 4294967296"),
        ({"learning_rates": tour.LearningRates(full=0)}, "with the learning rate 0 nothing trains"),
        ({"text": {"sources": {"notes": Path("/nowhere.txt")}}}, "cannot read /nowhere.txt"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(place, tmp_path, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        if isinstance(changes.get("text"), dict):
            changes = changes | {"text": Text(**changes["text"])}
        dragoman.tour(**settings(place, tmp_path / "t", **changes))
    assert not (tmp_path / "t").exists()


def test_single_commands_lead_to_the_same_adapted_model(finished, place, tmp_path):
    """diagnose, plan and adapt by hand are what the tour does."""
    folder, record = finished
    toy = {"corpus": str(place / "text.tsv.gz"), "quiet": True}
    languages = tuple(record["corpus"]["languages"])
    dragoman.diagnose(str(place / "model"), languages=languages, segments=12, out=tmp_path / "d", **toy)
    plan = dragoman.plan(tmp_path / "d" / "trace.npz", target="ca", known=KNOWN, out=tmp_path / "plan.json")
    assert plan.experts() == dragoman.ExpertPlan.load(folder / "plan-ssft.json").experts()
    adapted = dragoman.adapt(
        str(place / "model"),
        target="ca",
        plan=tmp_path / "plan.json",
        text=Text(segments=16, block=64, batch=4),
        out=tmp_path / "a",
        **toy,
    )
    assert [round(x, 4) for x in adapted["log"]["losses"]] == record["training"]["ssft"]["losses"]
