"""What stands in a segment of a TMX beside its text."""

from dragoman.corpora.testsets import open_test_set
from tests.corpora.test_testsets import TMX, write


def test_entities_of_a_tmx_are_not_read_from_files(tmp_path):
    secret = write(tmp_path / "secret.txt", "secret")
    bomb = TMX.replace('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', f'<!DOCTYPE tmx [<!ENTITY x SYSTEM "{secret}">]>')
    text = open_test_set(write(tmp_path / "m.tmx", bomb.replace("Yes &amp; no", "Yes &x; no")))
    assert "secret" not in str(text.columns)
    assert text.columns["en"][1] == "Yes &x; no", "what is not resolved is seen"


def test_text_behind_a_comment_in_a_tmx_stays(tmp_path):
    marked = TMX.replace("Press the red key.", "Press <!-- which? -->the <?pi x?>red <ph>{}</ph>key.")
    (tmp_path / "M.TMX").write_text(marked)
    assert open_test_set(tmp_path / "M.TMX").columns["en"][0] == "Press the red key."
