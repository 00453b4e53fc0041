"""Deltas on disk: what they hold, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dragoman.errors import ConfigError, DataError, ModelError
from dragoman.methods import METHODS
from dragoman.methods.delta import Delta, is_delta, remove, trained_delta
from dragoman.modeling import model_checksum, state_checksum
from tests.methods.contract import batch, toy_plan, trained
from tests.models import tiny


@pytest.fixture
def made(tmp_path):
    """A folder and the model that it was made of."""
    model = tiny("olmoe")
    plan, method, sha256 = toy_plan(model), METHODS["expert_tuning"], state_checksum(model)
    settings = method.Config(routers=False)
    trained(method, model, settings, plan, batch())
    delta = trained_delta(model, "expert_tuning", settings, plan, base="mini-moe", base_sha256=sha256, tag=("es", "pt"))
    delta.save(tmp_path / "delta")
    return tmp_path / "delta", model


def rewritten(folder, **changes):
    about = json.loads((folder / "delta.json").read_text())
    (folder / "delta.json").write_text(json.dumps(about | changes))


def test_the_folder_has_all_that_is_needed_and_no_more(made):
    folder, _ = made
    read = Delta.load(folder)
    assert {p.name for p in folder.iterdir()} == {"delta.json", "delta.safetensors", "plan.json"}
    assert (read.method, read.base, read.dtype, read.tag) == ("expert_tuning", "mini-moe", "float32", ("es", "pt"))
    assert read.settings == METHODS["expert_tuning"].Config(routers=False) and read.plan == toy_plan(tiny("olmoe"))
    # 2 layers x 2 experts x (gate, up, down: 3 x 8 x 16)
    assert sum(t.numel() for t in read.weights.values()) == 2 * 2 * 3 * 8 * 16
    assert is_delta(str(folder)) and not is_delta(str(folder.parent)) and not is_delta("mini-moe")
    assert model_checksum(str(folder)) is not None


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("sft", {"train": "full"}),
        ("ra_moe", {"band": (1, 2), "match": "mass", "train": "full"}),
        ("ra_moe", {"train": "lora", "rank": 2}),
        ("sara", {"band": (0, 1), "train": "routers"}),
        ("router_alignment", {"band": (0, 1), "source": "base"}),
    ],
)
def test_methods_that_align_come_back_with_their_settings(name, chosen, tmp_path):
    """The contract has their defaults; here are the settings that decide what trains, and a band, a list in JSON."""
    if chosen.get("train") == "lora":
        pytest.importorskip("peft")
    model, method = tiny("olmoe"), METHODS[name]
    plan, settings = toy_plan(model) if method.NEEDS_PLAN else None, method.Config(**chosen)
    sha256 = state_checksum(model)
    trained(method, model, settings, plan, batch())
    trained_delta(model, name, settings, plan, base="toy", base_sha256=sha256).save(tmp_path / "delta")
    read, again = Delta.load(tmp_path / "delta"), tiny("olmoe")
    assert read.settings == settings and read.plan == plan
    read.put_on(again)
    assert torch.equal(again(batch()).logits, model(batch()).logits)
    remove(again, method, tiny("olmoe").state_dict())
    assert torch.equal(again(batch()).logits, tiny("olmoe")(batch()).logits)


def test_what_was_changed_changes_the_checksum(made):
    folder, _ = made
    before = model_checksum(str(folder))
    rewritten(folder, base="other")
    assert model_checksum(str(folder)) != before


def test_removing_gives_the_base_and_can_be_done_twice(made):
    _, model = made
    base = tiny("olmoe").state_dict()
    for _ in range(2):
        remove(model, METHODS["expert_tuning"], base)
        assert torch.equal(model(batch()).logits, tiny("olmoe")(batch()).logits)


def test_foreign_and_damaged_deltas_are_refused(made):
    folder, _ = made
    weights = load_file(folder / "delta.safetensors")
    renamed = {n.replace("down_proj", "sideways"): t for n, t in weights.items()}
    save_file(renamed, folder / "delta.safetensors")
    rewritten(folder, tag=None)
    with pytest.raises(ModelError, match=r"disagree about .*sideways.*another version"):
        Delta.load(folder).put_on(tiny("olmoe"))
    with pytest.raises(ModelError, match=r"trained on mini-moe with weights \w{12}, this base has \w{12}"):
        Delta.load(folder).put_on(tiny("olmoe", seed=1))
    (folder / "delta.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"delta\.safetensors cannot be read"):
        Delta.load(folder)
    rewritten(folder, method="prayer")
    with pytest.raises(ConfigError, match="'prayer'; methods here are full, lora"):
        Delta.load(folder)
    rewritten(folder, more=1)
    with pytest.raises(DataError, match="is no delta of the format"):
        Delta.load(folder)


def test_settings_of_another_version_are_refused(made):
    folder, _ = made
    rewritten(folder, settings={"routers": False, "temperature": 2})
    with pytest.raises(ConfigError, match="temperature would have no effect on the method expert_tuning"):
        Delta.load(folder)


def test_a_full_disk_leaves_nothing(tmp_path, made, monkeypatch):
    from safetensors import SafetensorError

    from dragoman.methods import delta

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    read = Delta.load(made[0])
    monkeypatch.setattr(delta, "save_file", full)
    with pytest.raises(ConfigError, match=r"No space left.*free space"):
        read.save(tmp_path / "second")
    assert {p.name for p in tmp_path.iterdir()} == {"delta"}
