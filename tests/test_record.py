"""Records and files that are written whole or not at all."""

import errno
import os

import numpy as np
import pytest

from dragoman.errors import ConfigError, DataError
from dragoman.record import atomic_write, claim_folder, environment, read_json, sha256, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    file = tmp_path / "a.json"
    with (
        pytest.raises(ConfigError, match=r"cannot write .*a.json: No space left on device; free space"),
        atomic_write(file) as partial,
    ):
        partial.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_a_really_full_disk(tmp_path):
    """/dev/full refuses every byte, as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(ConfigError, match="No space left"), atomic_write(tmp_path / "x") as partial:
        os.symlink("/dev/full", partial)
        partial.write_text("text")
    assert os.listdir(tmp_path) == []


def test_a_place_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write .*Not a directory|cannot write .*File exists"):
        write_json(tmp_path / "file" / "a.json", {})


def test_folders_are_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("1")
    with atomic_write(folder) as partial:
        partial.mkdir()
        (partial / "new").write_text("2")
    assert os.listdir(folder) == ["new"]


def test_json_round_trip_of_arrays_and_sets(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.arange(3), "y": {"b", "a"}, "z": tmp_path, "f": 0.1 + 0.2})
    back = read_json(tmp_path / "a.json")
    assert back == {"x": [0, 1, 2], "y": ["a", "b"], "z": str(tmp_path), "f": 0.1 + 0.2}


def test_bad_json_names_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a.json is not readable JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_checksum_against_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256(b"abc") == sha256("a", "bc") == sha256(tmp_path / "abc") == known


def test_output_folders(tmp_path):
    assert claim_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="not empty"):
        claim_folder(tmp_path / "full")
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(tmp_path / "full" / "x")
    with pytest.raises(ConfigError, match="cannot make the output folder"):
        claim_folder(tmp_path / "full" / "x" / "y")


def test_environment_tells_versions_and_machine():
    found = environment()
    assert {"torch", "transformers", "python"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    assert found["peak_memory_mb"] > 10
