"""Formats: identity changes no byte, brackets stand where a hand put them, and other programs read the result."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import polib
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from dragoman.errors import DataError
from dragoman.translation.documents import read_document
from dragoman.translation.formats import FORMATS, SKELETONS, Broken, Options, apply, line_of
from dragoman.translation.formats.base import Part
from dragoman.translation.protection import bare, mask, unmask
from tests.translation.bilingual import BILINGUAL, PO, SEGMENTED, TMX, XLIFF2
from tests.translation.documents import MARKED, OPTIONS, bracket, expected_of, options_of, source_of, translated
from tests.translation.faults import BAD_FILES, file_table, server_table


def edited(text, changes):
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize("path", MARKED, ids=lambda p: p.name)
def test_brackets_stand_where_a_hand_put_them(path):
    marked = path.read_text(encoding="utf-8")
    one_unit = re.sub(r"\{n, plural.*?\}\}", lambda m: bracket(re.sub("[«»]", "", m[0])), marked)
    found = translated(source_of(marked), path.suffix, bracket)
    assert found == expected_of(one_unit)
    crlf = translated(source_of(marked).replace("\n", "\r\n"), path.suffix, bracket)
    assert crlf == expected_of(one_unit).replace("\n", "\r\n"), "with other line ends the same"
    if path.suffix in SKELETONS:
        assert SKELETONS[path.suffix](found) == SKELETONS[path.suffix](source_of(marked))


@pytest.mark.parametrize("path", MARKED, ids=lambda p: p.name)
def test_identity_changes_no_byte(path):
    source = source_of(path.read_text(encoding="utf-8"))
    for text in (source, source.replace("\n", "\r\n")):
        assert translated(text, path.suffix, str) == text


@pytest.mark.parametrize(("suffix", "text", "changes"), BILINGUAL, ids=["po", "xliff1", "xliff2", "segmented", "tmx"])
def test_targets_stand_where_a_hand_put_them(suffix, text, changes):
    assert translated(text, suffix, bracket) == edited(text, changes)


@pytest.mark.parametrize("path", MARKED, ids=lambda p: p.name)
@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-8", b"")])
def test_bytes_keep_their_encoding_and_line_ends(path, encoding, mark, tmp_path):
    text = source_of(path.read_text(encoding="utf-8")).replace("\n", "\r\n")
    data = mark + text.encode(encoding)
    file = tmp_path / path.name
    file.write_bytes(data)
    document = read_document(file, options_of(path.suffix))
    assert document.places
    assert document.filled([]) == data
    new = translated(document.text, path.suffix, bracket)
    assert "\n" not in new.replace("\r\n", "") or path.suffix == ".json", "line ends as they were"


def test_a_memory_speaks_its_languages():
    """Another pair of the same file: right to left and without spaces; what is doubtful says so."""
    assert translated(TMX, ".tmx", bracket, Options("he", "en")) == TMX, "there it is translated already"
    new = translated(TMX, ".tmx", bracket, Options("ja", "he"), doubtful=True)
    prop = '<prop type="x-dragoman">doubtful</prop>'
    assert f'<seg>船</seg></tuv><tuv xml:lang="he">{prop}<seg>«船»</seg></tuv>' in new


def test_what_a_file_tells_translators():
    """Keys and contexts, and the notes of developers and translators."""

    def told(text, suffix):
        return [(place.context, place.notes, place.sense) for place in FORMATS[suffix].places(text, OPTIONS)]

    assert told(TMX, ".tmx") == [("", ("a button",), "")] + [("", (), "")] * 3
    assert told(PO, ".po")[0] == ("menu", ("Button of the menu",), "menu")
    assert told("# by Ann\n#. a key\n" + 'msgid "a"\nmsgstr ""\n', ".po") == [("", ("by Ann", "a key"), "")]
    assert told(SEGMENTED, ".xlf")[:2] == [("menu", ("a title",), "")] * 2
    assert told(XLIFF2.replace('<unit id="1">', '<unit id="1" name="b"><notes><note>n</note></notes>'), ".xlf") == [
        ("b", ("n",), "")
    ] * 2


def test_one_doubtful_segment_makes_its_target_doubtful():
    first, second, *_ = FORMATS[".xlf"].places(SEGMENTED, OPTIONS)
    edits = first.write(first.parts, True) + second.write(second.parts, False)
    assert apply(SEGMENTED, edits).count('state="needs-review-translation"') == 1
    assert 'state="translated"' not in apply(SEGMENTED, edits)


@pytest.mark.parametrize(
    ("source", "target", "variants", "expected"),
    [
        ("pt-PT", "pt-BR", {"pt-PT": "nau"}, {"pt-PT": "nau", "pt-BR": "«nau»"}),
        ("zh-Hans", "zh-Hant", {"zh-Hans": "船"}, {"zh-Hans": "船", "zh-Hant": "«船»"}),
        ("en", "zh-Hant", {"en": "ship", "zh-Hans": ""}, {"en": "ship", "zh-Hans": "", "zh-Hant": "«ship»"}),
        ("en", "ca", {"en-GB": "ship", "ca-ES": ""}, {"en-GB": "ship", "ca-ES": "«ship»"}),
        ("en-GB", "ca-ES", {"en": "ship", "ca": "nau"}, {"en": "ship", "ca": "nau"}),
        ("pt", "pt-BR", {"pt-BR": "", "pt-PT": "nau"}, {"pt-BR": "«nau»", "pt-PT": "nau"}),
        ("pt-PT", "pt", {"pt-PT": "nau"}, {"pt-PT": "nau", "pt": "«nau»"}),
        ("ca", "en", {"ca": "nau", "cab": "x"}, {"ca": "nau", "cab": "x", "en": "«nau»"}),
    ],
)
def test_variants_of_the_same_language_by_hand(source, target, variants, expected):
    tuvs = "".join(f'<tuv xml:lang="{tag}"><seg>{text}</seg></tuv>' for tag, text in variants.items())
    text = f'<tmx version="1.4"><header/><body><tu>{tuvs}</tu></body></tmx>'
    new = translated(text, ".tmx", bracket, Options(source, target))
    assert dict(re.findall(r'xml:lang="([\w-]+)"><seg>(.*?)</seg>', new)) == expected


def test_polib_reads_what_was_written():
    before, after = polib.pofile(PO), polib.pofile(translated(PO, ".po", lambda t: t, doubtful=True))
    assert [(e.msgctxt, e.msgid, e.obsolete) for e in before] == [(e.msgctxt, e.msgid, e.obsolete) for e in after]
    filled = {e.msgid: e for e in after}
    assert filled['Say "%d"\n'].msgstr == 'Say "%d"\n'
    assert filled["Sail to %s"].fuzzy, "doubtful"
    assert not filled["done"].fuzzy
    assert filled["one file"].msgstr_plural == {0: "one file", 1: "%d files"}


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="{}%&$\\<\x85\ufeff"))
ODD = ["a: b", "- a", "'a'", '"', "#a", "yes", "1", "a\\", "@a", "a --> b", "*a", "~"]
HARD = st.one_of(WORDS, st.sampled_from(ODD))


@settings(max_examples=60, deadline=None)
@given(HARD)
def test_any_translation_reads_back(words):
    """Whatever an engine answers, other programs find exactly that where the source stood."""
    text = f"x{words}x".strip()
    for new in (text, words.strip() + " x"):
        new = new.strip()
        assert json.loads(translated('{"a": "Open"}', ".json", lambda t, n=new: n)) == {"a": new}
        for style in ("a: Open", "a: 'Open'", 'a: "Open"', "[{a: Open}]"):
            found = yaml.safe_load(translated(style, ".yaml", lambda t, n=new: n))
            assert (found[0] if isinstance(found, list) else found) == {"a": new}
        po = translated('msgid "Open"\nmsgstr ""\n', ".po", lambda t, n=new: n)
        assert polib.pofile(po)[0].msgstr == new
        cells = translated("id,text\r\n1,Open\r\n", ".csv", lambda t, n=new: n)
        assert list(csv.reader(io.StringIO(cells, newline=""))) == [["id", "text"], ["1", new]]
        tmx = translated(TMX, ".tmx", lambda t, n=new: n + "".join(re.findall(r"\{\d\}", t)))
        assert etree.fromstring(tmx)[1][1][2][0].text == new
        xliff = translated(XLIFF2, ".xlf", lambda t, n=new: n + "".join(re.findall(r"\{\d\}", t)))
        root = etree.fromstring(xliff)
        assert next(root.iter("{*}target")).text == new


CELL = st.text(st.sampled_from("ab \"';,\t|\n\rשไ"), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=5),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_cells_are_those_of_the_csv_module(rows, delimiter, quoting):
    """Python's reader finds in the output what it found in the input, but for brackets around text that was chosen."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerows([("id", "text", "text 2"), *rows])
    new = translated(file.getvalue(), ".csv", bracket)

    def marked(cell):
        lines = re.split(r"(\s*\n\s*)", cell.strip())
        return cell if not any(map(str.isalpha, cell)) else cell.replace(cell.strip(), bracket("".join(lines)), 1)

    expected = [["id", "text", "text 2"], *([a, marked(b), marked(c)] for a, b, c in rows)]
    assert list(csv.reader(io.StringIO(new, newline=""), delimiter=delimiter)) == expected
    assert translated(file.getvalue(), ".csv", str) == file.getvalue()


SCRAPS = [
    *"ab *_`[]()<>!#-+1.|\\&;~$:\"'/{}%\n\r\t",
    *('[a](b "c d")', '![a](b "c")', '[r]: x "a b"\n', "[^a]: ", "::: a b\n"),
    *("[!NOTE]\n", '!!! a "b"\n', " {#a}", ": ", '<b title="a b">'),
    *("**", "[a](b)", "`x`", "\n\n", "> ", "- ", "| a | b |\n|---|---|\n| c |\n", "  \n", "[r]: x\n", "[r]", "1. "),
    *("<p>", "</p>", "<b>", "</b>", "<!--", "-->", "<code>", "</code>", "<script>", "<img alt='a b'>", "<i>", "</i>"),
    *("00:00:01,000 --> 00:00:02,000\n", "{n, plural, one {a} other {b}}"),
]


@pytest.mark.parametrize("suffix", [".md", ".html", ".txt", ".srt"])
@settings(max_examples=80, deadline=None)
@given(scraps=st.lists(st.sampled_from(SCRAPS), max_size=40))
def test_any_scraps_keep_their_bytes(suffix, scraps):
    """No document of these formats stops the program, and what translates to itself stays."""
    text = "".join(scraps)
    if suffix == ".srt":
        text = "1\n00:00:00,000 --> 00:00:00,500\n" + text
    edits, wrapped = [], 0
    for place in FORMATS[suffix].places(text, OPTIONS):
        masked = mask(place.parts)
        if any(map(str.isalpha, bare(masked.text))):
            parts, faults = unmask(masked, masked.text)
            assert faults == []
            assert place.write(parts, False) == []
            with contextlib.suppress(Broken):
                edits += place.write(unmask(masked, bracket(masked.text))[0], False)
                wrapped += 1
    assert apply(text, edits).count("«") == wrapped, "each once, also those within another's markup"


def test_lines_are_counted_whatever_ends_them():
    for end in ("\n", "\r\n", "\r"):
        assert line_of(f"a{end}b{end}c", len(f"a{end}b{end}")) == 3


def test_what_scraps_have_found():
    table = "| a | b |\n|---|---|\n| c | d |\n"
    assert translated(table, ".md", bracket) == "| «a» | «b» |\n|---|---|\n| «c» | «d» |\n"
    cue = "00:00:01,000 --> 00:00:02,000\n"
    assert translated(f"1\n{cue}One\n2\n{cue}Two\n", ".srt", bracket) == f"1\n{cue}«One»\n2\n{cue}«Two»\n"


def test_placeholders_alone_are_no_segments(tmp_path):
    (tmp_path / "a.txt").write_text("{name}\n%s\nOpen {name}\n")
    assert len(read_document(tmp_path / "a.txt", OPTIONS).places) == 1


def test_a_translation_that_would_be_other_markup_is_refused():
    (place,) = FORMATS[".md"].places("Sail north.\n", OPTIONS)
    for text in ("# Title", "- item", "1. item", "a *new* word", "a [link](x)", "`code`"):
        with pytest.raises(Broken):
            place.write([Part(text)], False)
    assert place.write([Part("2 * 3")], False)


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: f"{bad.what} ({bad.name})")
def test_bad_files_are_told_in_a_sentence(tmp_path, bad):
    (tmp_path / bad.name).write_bytes(bad.data)
    with pytest.raises(DataError, match=re.escape(bad.message)) as e:
        read_document(tmp_path / bad.name, Options("en", "ca", keys=bad.keys))
    assert bad.name in str(e.value)


def test_the_tables_of_faults_are_those_of_the_tests():
    page = (Path(__file__).parents[2] / "docs" / "translating-faults.md").read_text(encoding="utf-8")
    for table in (server_table(), file_table()):
        assert table in page, f"docs/translating-faults.md should have\n{table}"


def test_letters_that_an_encoding_lacks(tmp_path):
    """Entities where there are some, else a sentence."""
    (tmp_path / "a.html").write_bytes('<meta charset="iso-8859-1"><p>é</p>'.encode("latin-1"))
    document = read_document(tmp_path / "a.html", OPTIONS)
    assert document.filled(document.places[0].write([Part("шü")], False)).endswith(b"<p>&#1096;\xfc</p>")
    head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=iso-8859-1"\n\n'
    (tmp_path / "a.po").write_bytes((head + 'msgid "a"\nmsgstr ""\n').encode("latin-1"))
    document = read_document(tmp_path / "a.po", OPTIONS)
    with pytest.raises(DataError, match="iso-8859-1, which has no 'ш'"):
        document.filled(document.places[0].write([Part("ш")], False))


@pytest.mark.parametrize(
    "text",
    [
        'A picture: <img alt="' + "word " * 40 + '" src="https://example.org/a.png"> here.',
        "See [the note](http://example.org/page and " + '"word" and ' * 40 + "so on.",
        "[a](" * 200 + '"' * 200,
        r"\(" * 2000 + "x",
        "$$\n" + "a\n" * 5000,
    ],
    ids=["attributes", "an open link", "many links", "many formulas", "open maths"],
)
@pytest.mark.timeout(60)
def test_no_text_hangs_the_reader(text):
    """Expressions that try every way to read it would take years."""
    assert translated(text, ".md", str) == text


def test_tags_with_addresses_are_pairs():
    text = 'See <a href="https://example.org/x">it</a>, <https://x.org/a> or <a@b.org>.'
    (place,) = FORMATS[".md"].places(text, OPTIONS)
    assert [part.kind for part in place.parts if part.kind != "text"] == ["open", "close", "alone", "alone"]
    assert unmask(mask(place.parts), "{2}it{1} {3} {4}")[1], "nested as before"


@pytest.mark.parametrize("front", ["---\ntitle: a\n---\n", "---\n---\n", "+++\ntitle = 'a'\n+++\n", "---\na: b\n...\n"])
def test_front_matter_ends_where_it_ends(front):
    assert translated(f"{front}\n# Title\n\n---\n\nMore\n", ".md", bracket) == f"{front}\n# «Title»\n\n---\n\n«More»\n"


@pytest.mark.parametrize("shown", ['`<meta charset="iso-8859-1">`', "`<?xml encoding='nowhere'?>`"])
@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.yaml"])
def test_an_encoding_that_is_only_shown_is_not_the_files(shown, name, tmp_path):
    (tmp_path / name).write_text(f"a: Größe {shown}\n", encoding="utf-8")
    document = read_document(tmp_path / name, OPTIONS)
    assert document.encoding == "utf-8" and "Größe" in "".join(p.text for p in document.places[0].parts)


@pytest.mark.parametrize(
    "text",
    [
        'a: >-\n  one\n  two\n\n\n  three\n',
        "a: >\n  para two\n\n    indented code\n    more code\n\n  end\n",
        "a: >+\n\n  one\n\n  two\n\n",
        "a: |\n  one\n\n\n  two\n",
    ],
)  # fmt: skip
def test_line_ends_of_folded_values_stay(text):
    new = translated(text, ".yaml", lambda t: t.upper().replace("{N}", "{n}"))
    assert yaml.safe_load(new)["a"] == yaml.safe_load(text)["a"].upper()


def test_halves_of_a_character_are_joined():
    new = translated('a: "Sail \\ud83d\\ude00"\n', ".yaml", bracket)
    assert yaml.safe_load(new) == {"a": "«Sail \U0001f600»"}


def test_flags_and_escapes_of_po(tmp_path):
    """Keywords may stand apart from their strings, flags on several lines; a character is written back as it was."""
    text = (
        '#, c-format\n#, fuzzy\nmsgid  "Open %d"\nmsgstr "x"\n\n#, fuzzy\n#, c-format\nmsgid\t"one file"\n'
        'msgid_plural "%d files"\nmsgstr[0] ""\n\n  msgid   "one boat"\n  msgid_plural "%d boats"\n  msgstr[0] ""\n\n'
        'msgid "Go \\033[1m\\x41"\nmsgstr ""\n'
    )
    new = translated(text, ".po", bracket)
    assert new.startswith('#, c-format\n#\nmsgid  "Open %d"\nmsgstr "«Open %d»"\n')
    assert '#, fuzzy\n#, c-format\nmsgid\t"one file"' in new and '\n  #, fuzzy\nmsgid   "one boat"' in new
    assert r'msgstr "«Go \033[1mA»"' in new
    (tmp_path / "a.po").write_text(new)
    assert [entry.msgid for entry in polib.pofile(str(tmp_path / "a.po"))][:3] == ["Open %d", "one file", "one boat"]


def test_variants_of_a_language_are_not_each_other_in_xliff():
    head = '<xliff version="1.2"><file source-language="en-US" target-language="{}"><body>'
    unit = '<trans-unit id="1"><source>Hi</source></trans-unit></body></file></xliff>'
    for there, asked in (("zh-Hans", "zh-Hant"), ("pt-BR", "pt-PT")):
        with pytest.raises(DataError, match=f"target language is {there}, not {asked}"):
            translated(head.format(there) + unit, ".xlf", bracket, Options("en", asked))
    assert "«Hi»" in translated(head.format("pt-BR") + unit, ".xlf", bracket, Options("en", "pt"))


def test_alternatives_of_xliff_are_not_the_units_own():
    inner = "<alt-trans><source>Hello</source><target/></alt-trans></trans-unit></body></file></xliff>"
    head = '<xliff version="1.2"><file source-language="en" target-language="ca"><body><trans-unit id="1">'
    done = f"{head}<source>Hello there</source><target>Hola</target>{inner}"
    assert translated(done, ".xlf", bracket) == done
    new = translated(f"{head}<source>Hello there</source>{inner}", ".xlf", bracket)
    assert '<source>Hello there</source><target state="translated">«Hello there»</target><alt-trans>' in new


@pytest.mark.parametrize(("text", "new"), [
    ("text\nOne, two\nThree\n", "text\n«One, two»\n«Three»\n"),
    ('text\n"One, two"\nThree\n', 'text\n"«One, two»"\n«Three»\n'),
])  # fmt: skip
def test_tables_of_one_column(text, new):
    assert translated(text, ".tsv", bracket, Options("en", "ca", keys=("text",))) == new
    with_comma = translated('text\nOne\n"a, b"\n', ".csv", lambda t: f"{t}, {t}", Options("en", "ca", keys=("text",)))
    assert list(csv.reader(io.StringIO(with_comma))) == [["text"], ["One, One"], ["a, b, a, b"]]


def test_chosen_keys_and_wrapped_lines():
    text = '{"a": {"title": "One", "id": "x"}, "b": [{"title": "Two"}]}'
    new = translated(text, ".json", bracket, Options("en", "ca", keys=("*.title",)))
    assert new == '{"a": {"title": "«One»", "id": "x"}, "b": [{"title": "«Two»"}]}'
    wrapped = Options("en", "ca", wrapped=True)
    assert translated("One\ntwo\n\nThree\n", ".txt", bracket, wrapped) == "«One two»\n\n«Three»\n"


def test_empty_lines_within_a_cue():
    """They end it in VTT; in SubRip its text goes on up to the next number."""
    text = "1\n00:00:01.000 --> 00:00:02.000\nOne in\n1984\n\n\nMore\n\n2\n00:00:03.000 --> 00:00:04.000\nin 1985\n"
    for source in (text, text.replace("\n", "\r\n")):
        expected = source.replace("One in", "«One in").replace("1984", "1984»").replace("More", "«More»")
        assert translated(source, ".srt", bracket) == expected.replace("in 1985", "«in 1985»")
    notes = f"WEBVTT\n\n{text}".replace("More", "NOTE more")
    assert "NOTE more\n" in translated(notes, ".vtt", bracket)


def test_subtitles_keep_their_number_of_lines():
    cue = "1\n00:00:01,000 --> 00:00:02,000\nWe sail\nat dawn.\n\n"
    assert translated(cue, ".srt", lambda t: "Salpem a trenc d'alba.") == cue.replace(
        "We sail\nat dawn.", "Salpem a\ntrenc d'alba."
    )


def test_attributes_keep_their_quotation_marks():
    text = """<p title='All topics'>Go</p><img alt="A dog">"""
    found = translated(text, ".html", lambda t: f"L'{t}\"")
    assert found == """<p title='L&#39;All topics&quot;'>L'Go&quot;</p><img alt="L'A dog&quot;">"""


@pytest.mark.parametrize("inside", ["Acme</div>", "Acme\n\n</DIV>", "<div>Acme</div>\n\nAcme\n\n</div>"])
def test_what_stays_ends_where_its_end_tag_is(inside):
    never = '<p translate="no">Acme\n\nmore\n\n<pre>x</pre>\n\n<div translate="no">\n\nmore\n\n```\n</div>\n```\n'
    for text in (f'<div translate="no">\n\n{inside}\n\nmore', never):
        assert translated(text, ".md", str.upper) == text.replace("more", "MORE")
