"""The journal of a job: whose it is, what it claims, and what is told where it cannot be used."""

import sqlite3

import pytest

from dragoman.errors import ConfigError, DataError, UserError
from dragoman.translation.journal import Attempt, Journal
from tests.translation.faults import damaged


def test_a_journal_of_another_job_is_refused(tmp_path):
    journal = Journal(tmp_path / "j", {"model": "a", "to": "ca"})
    journal.add("u", "zero_shot", Attempt("x", ()))
    journal.close()
    with pytest.raises(ConfigError, match="another job: model differ"):
        Journal(tmp_path / "j", {"model": "b", "to": "ca"})
    (tmp_path / "k").write_bytes(b"no database, but long enough to be looked at " * 40)
    with pytest.raises(ConfigError, match="cannot be used as a journal"):
        Journal(tmp_path / "k", {})
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere/j"):
        with pytest.raises(ConfigError, match=f"{path} cannot be used as a journal: unable to open"):
            Journal(path, {})


def test_a_journal_without_answers_gives_way(tmp_path):
    """A command with a mistake in it leaves no folder that nobody can use; one that runs keeps its own."""
    first = Journal(tmp_path / "j", {"model": "mini-mo"})
    first.claim(["u"], "zero_shot", 1)
    with pytest.raises(ConfigError, match="another job: model differ"):
        Journal(tmp_path / "j", {"model": "mini-moe"})
    first.close()
    second = Journal(tmp_path / "j", {"model": "mini-moe"})
    assert second.claim(["u"], "zero_shot", 1) == {"u"}
    with pytest.raises(ConfigError, match="another job: model differ"):
        Journal(tmp_path / "j", {"model": "mini-mo"})
    second.close()
    assert [p.name for p in tmp_path.iterdir()] == ["j"], "no locks stay behind"


def test_a_damaged_journal_is_told(tmp_path):
    journal = Journal(tmp_path / "j", {"a": 1})
    for n in range(200):
        journal.add(str(n), "zero_shot", Attempt("x" * 99, ()))
    journal.close()
    damaged(tmp_path / "j")
    with pytest.raises(UserError, match=r"j cannot be (used|read).*(malformed|damaged).*remove it"):
        journal = Journal(tmp_path / "j", {"a": 1})
        journal.attempts()


def test_a_full_disk_is_told(tmp_path):
    journal = Journal(tmp_path / "j", {"a": 1})
    (pages,) = journal._base.execute("pragma page_count").fetchone()
    journal._base.execute(f"pragma max_page_count = {pages + 2}")
    with pytest.raises(DataError, match="j cannot be read or written: database or disk is full; free space, or"):
        for n in range(200):
            journal.add(str(n), "zero_shot", Attempt("x" * 99, ()))
    assert 0 < len(journal.attempts()) < 200, "what was written stays"
    journal.close()


def test_what_one_process_claims_the_other_leaves(tmp_path):
    first, second = (Journal(tmp_path / "j", {"a": 1}) for _ in range(2))
    assert first.claim(["u", "v", "w"], "zero_shot", 2) == {"u", "v"}
    assert second.claim(["u", "v", "w"], "zero_shot", 2) == {"w"}
    assert second.claim(["u"], "instruct", 2) == {"u"}, "another step is another question"
    first.add("u", "zero_shot", Attempt("x", ()))
    assert second.news() == {("u", "zero_shot"): Attempt("x", ())}
    assert second.news() == {}
    first.release()
    assert second.claim(["u", "v"], "zero_shot", 2) == {"v"}, "what is answered is not asked again"
    second.close()
    assert first.claim(["v", "w"], "zero_shot", 9) == {"v", "w"}, "nobody holds what an ended process claimed"
    assert first.attempts() == {("u", "zero_shot"): Attempt("x", ())}
    with pytest.raises(sqlite3.IntegrityError):
        first.add("u", "zero_shot", Attempt("y", ()))
    first.close()
    assert [p.name for p in tmp_path.iterdir()] == ["j"], "no locks stay behind"
