"""From the command line: categorise, profile, train with RA-MoE and beside it, steer, evaluate on the task."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import dragoman
from dragoman import cli
from dragoman.commands import categorize
from dragoman.corpora.ntext import NText
from dragoman.corpora.quizzes import next_sentence
from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.modeling import TextCodec, save_model
from dragoman.routing.plan import ExpertPlan, PlannedExpert
from dragoman.routing.trace import RoutingTrace
from tests.models import dense, tiny
from tests.texts import WORDS, corpus, tokenizer


def two_sentences() -> NText:
    """The toy corpus with a second sentence in every row."""
    toy = corpus()
    columns = {
        g: [f"{cell}. {' '.join(words[(i + j) % 10] for j in range(3 + i % 3))} {i}." for i, cell in enumerate(cells)]
        for (g, cells), words in zip(toy.columns.items(), WORDS.values(), strict=True)
    }
    return replace(toy, columns=columns)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("align")
    codec = TextCodec(tokenizer())
    save_model(tiny("olmoe", vocab_size=len(codec.tokenizer), num_experts=8), codec, folder / "model")
    save_model(dense(vocab_size=len(codec.tokenizer)), codec, folder / "dense")
    two_sentences().save(folder / "text.tsv.gz")
    return folder


def run(*words):
    return cli.run([*map(str, words), *(["--quiet"] if words[0] not in ("steer", "plan") else [])])


@pytest.fixture(scope="module")
def categorized(place):
    """The folder that the first command writes."""
    run("categorize", place / "model", "--targets", "ca", "--corpus", place / "text.tsv.gz", "--out", place / "cat")
    return place / "cat"


@pytest.fixture(scope="module")
def plan(place, categorized):
    """Profile: the English items against the general corpus."""
    text = ["--corpus", place / "text.tsv.gz", "--split", "dev"]
    run("diagnose", place / "model", *text, "--languages", "en", "ca", "--out", place / "diagnosis")
    run("plan", place / "diagnosis" / "trace.npz", "--planner", "task", "--tasks", categorized / "tasks.npz",
        "--middle", 1, 2, "--tau", 0.001, "--out", place / "plan.json")  # fmt: skip
    return place / "plan.json"


def train(place, plan, out, method, *flags):
    beside = ["--plan", plan] if method == "ra_moe" else []
    run("align", place / "model", "--target", "ca", "--corpus", place / "text.tsv.gz", "--method", method, *beside,
        "--categories", place / "cat", "--epochs", 2, "--batch", 8, "--references", place / "references",
        *flags, "--out", place / out)  # fmt: skip
    return json.loads((place / out / "record.json").read_text())


def test_categories_are_those_of_whole_likelihoods(place, categorized):
    """Oracle: the options of every item scored one by one as complete texts."""
    import torch

    record = json.loads((categorized / "record.json").read_text())
    kept = json.loads((categorized / "categories.json").read_text())
    model, codec = dragoman.open_model(str(place / "model")), dragoman.open_tokenizer(str(place / "model"))
    items = next_sentence(two_sentences(), ["en", "ca"], "train")

    def right(item):
        costs = []
        for option in item.options:
            prompt, answer = codec.encode([item.prompt, option])
            ids = torch.tensor([[codec.start_id, *prompt, *answer]], device=model.device)
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)
            bits = -sum(log_p[len(prompt) + i, token].item() for i, token in enumerate(answer))
            start = torch.tensor([[codec.start_id, prompt[-1], *answer]], device=model.device)
            with torch.no_grad():
                log_p = model(start).logits[0].log_softmax(-1)
            costs.append(bits + sum(log_p[1 + i, token].item() for i, token in enumerate(answer)))
        return int(np.argmin(costs)) == item.right

    both = list(zip(items.items["en"], items.items["ca"], strict=True))[:12]
    expected = {a.key: "ic"[right(a)] + "ic"[right(b)] for a, b in both}
    assert {key: kept["labels"]["ca"][key] for key in expected} == expected
    assert record["counts"]["ca"] == {x: list(kept["labels"]["ca"].values()).count(x) for x in ("cc", "ci", "ic", "ii")}
    assert record["counts"]["ca"]["ci"] > 0
    assert record["chance"] == 0.25 and record["items"] == len(items) == sum(record["counts"]["ca"].values())
    profile = RoutingTrace.load(categorized / "tasks.npz")
    first = items.items["en"][0]
    assert profile.languages == ("next",) and len(profile.segment_chosen_NLE["next"]) == len(items)
    tokens = sum(map(len, codec.encode([first.prompt, first.answer])))
    assert profile.segment_chosen_NLE["next"][0].sum(-1).tolist() == [2 * tokens] * 3, "two experts a token"


def test_methods_train_on_the_same_rows_and_the_record_says_how(place, categorized, plan):
    records = {m: train(place, plan, m, m) for m in ("sft", "ra_moe", "sara")}
    ci = Counter(json.loads((categorized / "categories.json").read_text())["labels"]["ca"].values())
    assert records["sft"]["aligned"] == 0
    assert records["ra_moe"]["aligned"] == ci["ci"]
    assert records["sara"]["aligned"] == ci["ci"] + ci["cc"]
    assert records["ra_moe"]["log"]["losses"][0] == pytest.approx(records["sft"]["log"]["losses"][0], rel=1e-6)
    assert records["ra_moe"]["parameters"] == records["sft"]["parameters"] == 3 * 8 * 16, "the routers"
    assert records["sara"]["trained_share"] == 1.0
    assert records["ra_moe"]["method"]["weight"] == 0.5
    assert records["ra_moe"]["log"]["steps"] == -(-2 * records["ra_moe"]["items"] // 8)
    assert any("English" in sentence for sentence in records["ra_moe"]["advice"]), "a random model is at chance"
    assert len(list((place / "references").glob("*.npz"))) == 2, "one of the plan's layers, one of SARA's band"


def test_other_methods_and_router_alignment(place, plan):
    tuned = train(place, plan, "full", "full")
    assert tuned["aligned"] == 0 and tuned["trained_share"] == 1.0
    text = ["--task", "text", "--items", 12, "--learning-rate", 1e-4, "--balance", 0.01]
    run("align", place / "model", "--target", "ca", "--corpus", place / "text.tsv.gz", "--method", "router_alignment",
        *text, "--epochs", 1, "--out", place / "parallel")  # fmt: skip
    record = json.loads((place / "parallel" / "record.json").read_text())
    assert record["aligned"] == record["items"] == 12
    assert 0 < record["trained_share"] < 1


def test_evaluation_on_the_task_with_steering_and_controls(place, plan):
    for name, flags in {"task": [1], "lot": [1, "--control", "random"], "off": [0]}.items():
        run("steer", plan, "--strength", *flags, "--out", place / f"{name}.json")
    rules = [dragoman.steer(plan, rule=rule, out=place / f"{rule}.json") for rule in ("soft", "hard", "shared")]
    assert [how.strength for how in rules] == [0.5, 1, 0.022], "what the papers take"
    model = str(place / "model")
    files = [place / f"{name}.json" for name in ("task", "lot", "off")]
    run("evaluate", model, "--task", "next", "--languages", "en", "ca", "--corpus", place / "text.tsv.gz", "--segments",
        20, "--steer", *files, "--out", place / "evaluation")  # fmt: skip
    record = json.loads((place / "evaluation" / "record.json").read_text())
    found = record["task_accuracy"]
    assert list(found) == [f"{model}+task", f"{model}+lot", f"{model}+off", model]
    assert found[f"{model}+off"] == found[model], "no strength, no change"
    assert record["steering"] == {str(file): json.loads(file.read_text()) for file in files}
    assert set(found[model]) == {"en", "ca"} and record["task"]["items"] == 20
    assert [c["b"] for c in record["comparisons"] if c["language"] == "ca"] == list(found)[1:]
    assert "bits_per_byte" not in record
    sums = json.loads((place / "evaluation" / "segments.json").read_text())["sums"]
    assert np.mean(sums[model]["task_accuracy"]["ca"], axis=0)[0] * 100 == pytest.approx(found[model]["ca"])
    compared = dragoman.compare(str(place / "evaluation"), str(place / "evaluation"), out=place / "compared")
    assert {n["metric"] for n in compared["numbers"]} == {"task_accuracy"}
    assert all(n["comparable"] for n in compared["numbers"]) and not compared["untested"]


def test_steering_moves_translations_too(place, plan, tmp_path):
    run("steer", plan, "--rule", "hard", "--strength", -1, "--out", tmp_path / "hard.json")
    model = str(place / "model")
    settings = ["--directions", "en-ca", "--corpus", place / "text.tsv.gz", "--segments", 6, "--metrics", "chrf"]
    run("evaluate", model, *settings, "--steer", tmp_path / "hard.json", "--out", tmp_path / "e")
    record = json.loads((tmp_path / "e" / "record.json").read_text())
    outputs = json.loads((tmp_path / "e" / "segments.json").read_text())["outputs"]
    assert outputs[f"{model}+hard"]["en-ca"] != outputs[model]["en-ca"]
    bits = record["bits_per_byte"]
    assert bits[f"{model}+hard"]["ca"] != bits[model]["ca"]


def test_translation_items_are_right_from_the_median_of_english_on(place, tmp_path):
    run("categorize", place / "model", "--task", "translation", "--targets", "ca", "--into", "de", "--items", 20,
        "--corpus", place / "text.tsv.gz", "--out", tmp_path / "t")  # fmt: skip
    record = json.loads((tmp_path / "t" / "record.json").read_text())
    assert record["accuracy"]["en"]["share"] >= 0.5
    assert "judged:translation|threshold:" in record["signature"] and "chrF" in record["signature"]
    run("align", place / "model", "--task", "translation", "--target", "ca", "--into", "de", "--items", 20, "--method",
        "sara", "--categories", tmp_path / "t", "--corpus", place / "text.tsv.gz", "--epochs", 1,
        "--references", tmp_path, "--out", tmp_path / "a")  # fmt: skip
    counts = record["counts"]["ca"]
    trained = json.loads((tmp_path / "a" / "record.json").read_text())
    assert trained["aligned"] == counts["cc"] + counts["ci"]
    plain, asked = (RoutingTrace.load(tmp_path / "t" / f"{name}.npz") for name in ("plain", "tasks"))
    assert plain.languages == ("plain",) and len(plain.segment_chosen_NLE["plain"]) == 2 * record["items"]
    assert asked.tokens_G.sum() - plain.tokens_G.sum() == 2 * record["items"], "the same text, but for the template"
    run("plan", tmp_path / "t" / "plain.npz", "--planner", "task", "--tasks", tmp_path / "t" / "tasks.npz", "--general",
        "plain", "--middle", 1, 2, "--tau", 0.001, "--out", tmp_path / "plan.json")  # fmt: skip
    assert ExpertPlan.load(tmp_path / "plan.json").settings["general"] == "plain"


def test_items_of_files_are_answered_by_text(place, tmp_path):
    """Instructions that a babbling model happens to follow, and one that it does not."""
    rows = [{"key": n, "prompt": "Write.", "kwargs": [{}], "instruction_id_list": [name]}
            for n, name in enumerate(["punctuation:no_comma", "detectable_format:title"])]  # fmt: skip
    for tag in ("en", "ca"):
        (tmp_path / f"{tag}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    run("categorize", place / "model", "--task", tmp_path, "--out", tmp_path / "c")
    labels = json.loads((tmp_path / "c" / "categories.json").read_text())["labels"]
    assert labels["ca"]["1"] == "ii" and labels["ca"]["0"] == "cc"
    run("evaluate", place / "model", "--task", tmp_path, "--out", tmp_path / "e")
    found = json.loads((tmp_path / "e" / "record.json").read_text())["task_accuracy"]
    assert found[str(place / "model")] == {"ca": 50.0, "en": 50.0}
    with pytest.raises(ConfigError, match="split dev would have no effect on the items in"):
        run("categorize", place / "model", "--task", tmp_path, "--split", "dev", "--out", tmp_path / "d")
    with pytest.raises(DataError, match=r"2 of 2 items .* have no answer to train on, as 0"):
        run("align", place / "model", "--task", tmp_path, "--target", "ca", "--method", "sft", "--out", tmp_path / "d")


# What the labels say


def test_wilson_by_hand():
    # Brown, Cai and DasGupta 2001: (p + z^2/2n -+ z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n)
    n, k, z = 50, 5, 1.959964
    p = k / n
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    found = categorize.wilson(k, n)
    assert found["low"] == pytest.approx((centre - half) / (1 + z * z / n), rel=1e-5)
    assert found["high"] == pytest.approx((centre + half) / (1 + z * z / n), rel=1e-5)


def labelled(cc, ci, ic, ii):
    english = np.array([True] * (cc + ci) + [False] * (ic + ii))
    return {"en": english, "ca": np.array([True] * cc + [False] * ci + [True] * ic + [False] * ii)}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((300, 150, 30, 120), []),
        ((560, 20, 2, 18), ["at most 5% of items are right in English and wrong in ca"]),
        ((250, 150, 20, 700), ["most items are wrong in both"]),
        ((60, 90, 90, 360), ["not above chance (25.0% [21.7%, 28.6%], chance 25%)", "ii 60%", "not measurably better"]),
    ],
)
def test_advice(counts, said):
    found = categorize.summary(labelled(*counts), 0.25)
    assert found["counts"]["ca"] == dict(zip(("cc", "ci", "ic", "ii"), counts, strict=True))
    assert len(found["advice"]["ca"]) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found["advice"]["ca"], strict=True))


# Messages


@pytest.fixture
def settings(place, tmp_path):
    """What every mistaken command has in common; nothing is to be written into `out`."""
    yield {"corpus": str(place / "text.tsv.gz"), "out": tmp_path / "x", "quiet": True}
    assert not (tmp_path / "x").exists()


def test_mistakes_with_tasks(place, settings):
    model = str(place / "model")
    with pytest.raises(ConfigError, match="no task 'nxt'; tasks are next, heading, translation, text, or a folder"):
        dragoman.categorize(model, task="nxt", **settings)
    with pytest.raises(ConfigError, match="needs the languages to compare with English: --targets"):
        dragoman.categorize(model, **settings)
    with pytest.raises(ConfigError, match="name another one as into, not none"):
        dragoman.categorize(model, task="translation", targets=("ca",), **settings)
    with pytest.raises(ConfigError, match="options are not normalised by 'letters'; choose from none, bytes, pmi"):
        dragoman.categorize(model, targets=("ca",), normalise="letters", **settings)
    with pytest.raises(ConfigError, match="normalise pmi has no effect on the task translation"):
        dragoman.categorize(model, task="translation", targets=("ca",), into="de", normalise="pmi", **settings)
    with pytest.raises(ConfigError, match="items is 0 and shots -1; at least 1 and 0"):
        dragoman.categorize(model, targets=("ca",), items=0, shots=-1, **settings)
    with pytest.raises(ConfigError, match="into has no effect on the task next"):
        dragoman.categorize(model, targets=("ca",), into="de", **settings)
    for idle in ({"threshold": 3.0}, {"metric": "ter"}):
        with pytest.raises(ConfigError, match="threshold and metric have no effect"):
            dragoman.categorize(model, targets=("ca",), **idle, **settings)
    for name in ("nosuch", "off_target", "length_ratio", "task_accuracy", "bits_per_byte"):
        with pytest.raises(ConfigError, match=f"{name} does not judge a translation by its reference; take"):
            dragoman.categorize(model, task="translation", targets=("ca",), into="de", metric=name, **settings)
    with pytest.raises(ConfigError, match="threshold is nan, not a finite number"):
        dragoman.categorize(model, targets=("ca",), threshold=float("nan"), **settings)
    with pytest.raises(ConfigError, match="next has groups of 4 items that share their options; ask for 4 or more"):
        dragoman.categorize(model, targets=("ca",), items=3, **settings)
    with pytest.raises(DataError, match=r"do not fit into the model's context of 64 tokens \(\d+ of \d+ in en, as "):
        dragoman.categorize(model, targets=("ca",), shots=3, **settings)
    with pytest.raises(ConfigError, match="the task text has no answers to judge"):
        dragoman.categorize(model, task="text", targets=("ca",), **settings)


def test_mistakes_with_evaluations(place, plan, settings):
    model = str(place / "model")
    with pytest.raises(ConfigError, match="translation is no task to evaluate on; for translations give --directions"):
        dragoman.evaluate(model, task="translation", **settings)
    with pytest.raises(ConfigError, match="--normalise, --shots and --chat are of a task; give --task too"):
        dragoman.evaluate(model, shots=1, **settings)
    with pytest.raises(DataError, match="no steering file"):
        dragoman.evaluate(model, task="next", languages=("ca",), steer=(str(plan),), **settings)
    with pytest.raises(ConfigError, match="--task, --steer would have no effect on hypotheses"):
        dragoman.evaluate(hypotheses=("a",), references="b", target="ca", task="next", steer=("c",))


def test_mistakes_with_methods(place, categorized, plan, settings):
    model = str(place / "model")

    def align(method="ra_moe", **changes):
        dragoman.align(model, **({"target": "ca", "method": method, "plan": plan} | settings | changes))

    with pytest.raises(ConfigError, match="there is no method 'ramoe'"):
        align("ramoe")
    with pytest.raises(ConfigError, match="--match, --weight would have no effect on the method sft"):
        align("sft", plan=None, weight=1.0, match="mass")
    with pytest.raises(ConfigError, match="match is one of both, mass, allocation, not 'masses'"):
        align(match="masses")
    with pytest.raises(ConfigError, match="the weight of the alignment is inf, not a number above 0"):
        align(weight=float("inf"))
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"with the learning rate {rate} nothing trains"):
            align(learning_rate=rate)
    with pytest.raises(ConfigError, match=r"learning_rate is 0 or more, not inf; balance is 0 or more, not -1"):
        align(categories=categorized, learning_rate=float("inf"), balance=-1.0)
    with pytest.raises(ConfigError, match="the middle band 1 to 7 does not fit"):
        align(categories=categorized, band=(1, 7))
    with pytest.raises(ConfigError, match=r"trains on parallel items of a task; use `dragoman align`"):
        dragoman.adapt(model, target="ca", method="ra_moe", **settings)
    with pytest.raises(ConfigError, match="seed has no effect without a control"):
        dragoman.steer(plan, seed=1)
    with pytest.raises(ConfigError, match="seed is -1, at least 0"):
        dragoman.steer(plan, control="random", seed=-1)
    with pytest.raises(ConfigError, match="seed is -1, at least 0"):
        align(seed=-1)
    with pytest.raises(ConfigError, match="align is one of ci, all, not 'right'"):
        align(align="right")
    with pytest.raises(ModelError, match="no Mixture-of-Experts layers"):
        dragoman.align(str(place / "dense"), target="ca", method="sara", align="all", **settings)


def test_mistakes_with_categories_and_plans(place, categorized, plan, settings, tmp_path):
    kept = json.loads((categorized / "categories.json").read_text())
    made = ExpertPlan("t", {2: (PlannedExpert(1, "shared"),)}, {2: 16})
    made.save(tmp_path / "plan.json")

    def align(**changes):
        beside = {"target": "ca", "plan": plan, "categories": categorized}
        dragoman.align(str(place / "model"), **(beside | settings | changes))

    def changed(**changes):
        (tmp_path / "changed.json").write_text(json.dumps(kept | changes))
        return tmp_path / "changed.json"

    with pytest.raises(ConfigError, match=r"run `dragoman categorize`"):
        align(categories=None)
    with pytest.raises(DataError, match=r"is of other items \(next, \d+ items\) than the \d+ to train on"):
        align(split="dev")
    with pytest.raises(DataError, match="has labels for ca, not for es"):
        align(target="es")
    with pytest.raises(DataError, match=r"changed\.json is of another model"):
        align(categories=changed(model_sha256="0"))
    none = {"ca": dict.fromkeys(kept["labels"]["ca"], "ii")}
    with pytest.raises(DataError, match=r"wrong in the target language \(ci\), so there .* \(--align all\)"):
        align(categories=changed(labels=none))
    with pytest.raises(DataError, match="holds no categories"):
        align(categories=plan)
    for damage in ({"labels": None}, {"advice": {"ca": None}}, {"advice": {"ca": "a"}}, {"advice": {"ca": [1]}}):
        with pytest.raises(DataError, match="holds no categories"):
            align(categories=changed(**damage))
    with pytest.raises(DataError, match="its labels and its advice are not of the same languages"):
        align(categories=changed(advice={}))
    with pytest.raises(DataError, match=r"has no label of .* in ca, or one that is none of cc, ci, ic, ii"):
        align(categories=changed(labels={"ca": {}}))
    with pytest.raises(ModelError, match="the plan is of another model"):
        align(plan=tmp_path / "plan.json")


def test_what_speaks_against_alignment_is_said_before_training(place, plan, categorized, tmp_path, capsys):
    dragoman.align(str(place / "model"), target="ca", plan=plan, categories=categorized, epochs=1, out=tmp_path / "y",
                   corpus=str(place / "text.tsv.gz"), references=tmp_path)  # fmt: skip
    assert "before training: English itself is not above chance" in capsys.readouterr().err


def test_what_is_not_known_is_said_before_training(place, plan, tmp_path, capsys):
    """No categories: English is asked; and a plan of other weights of the same shape. `quiet` does not hide it."""
    made = json.loads(plan.read_text()) | {"model_sha256": "0" * 64}
    (tmp_path / "other.json").write_text(json.dumps(made))
    text = {"target": "ca", "corpus": str(place / "text.tsv.gz")}
    common = {**text, "epochs": 1, "items": 16, "references": tmp_path, "quiet": True}
    dragoman.align(str(place / "model"), plan=tmp_path / "other.json", align="all", out=tmp_path / "y", **common)
    said = capsys.readouterr().err
    assert "before training: English itself is not above chance (" in said and "chance 25%" in said
    assert "before training: the plan was made from other weights than those of this model" in said
    dragoman.align(str(place / "model"), task="text", method="sft", out=tmp_path / "z", **common)
    assert "before training" not in capsys.readouterr().err
    dragoman.steer(tmp_path / "other.json", out=tmp_path / "s.json")
    settings = {"corpus": str(place / "text.tsv.gz"), "quiet": True, "out": tmp_path / "e", "segments": 4}
    steer = (str(tmp_path / "s.json"),)
    dragoman.evaluate(str(place / "model"), task="next", languages=("ca",), steer=steer, **settings)
    assert "s.json was made from other weights than those of this model" in capsys.readouterr().err


def test_steering_of_another_model_is_refused(place, plan, tmp_path):
    dragoman.steer(plan, out=tmp_path / "s.json")
    (tmp_path / "s.json").write_text((tmp_path / "s.json").read_text().replace('"2": 8', '"2": 16'))
    settings = {"corpus": str(place / "text.tsv.gz"), "quiet": True, "out": tmp_path / "e"}
    with pytest.raises(ModelError, match="the plan is of another model"):
        dragoman.evaluate(
            str(place / "model"), task="next", languages=("ca",), steer=(str(tmp_path / "s.json"),), **settings
        )
