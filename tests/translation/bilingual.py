"""Bilingual documents, and what a hand changed in them: (before, after), with brackets around every translation."""

import re

PO = r"""# translators
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"

#. Button of the menu
#, c-format
msgctxt "menu"
msgid "Sail to %s"
msgstr ""

#, fuzzy, c-format
#| msgid "old"
msgid "Say \"%d\"\n"
msgstr "old"

msgid "one file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

msgid "half"
msgid_plural "halves"
msgstr[0] "mig"
msgstr[1] ""

msgid "done"
msgstr "fet"

msgid "12"
msgstr ""

#~ msgid "gone"
#~ msgstr "perdut"
"""
PO_MARKED = [
    ('msgid "Sail to %s"\nmsgstr ""', 'msgid "Sail to %s"\nmsgstr "«Sail to %s»"'),
    ("#, fuzzy, c-format", "#, c-format"),
    ('msgstr "old"', r'msgstr "«Say \"%d\"»\n"'),
    ('msgid "one file"', '#, fuzzy\nmsgid "one file"'),
    ('msgstr[0] ""\nmsgstr[1] ""', 'msgstr[0] "«one file»"\nmsgstr[1] "«%d files»"'),
    ('msgid "half"', '#, fuzzy\nmsgid "half"'),
    ('"mig"\nmsgstr[1] ""', '"mig"\nmsgstr[1] "«halves»"'),
]
XLIFF = """<?xml version="1.0" encoding="utf-8"?>
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
<file original="a" source-language="en" datatype="plaintext"><body>
  <trans-unit id="1">
    <source>Open <g id="1">it</g> &amp; <x id="2"/> now</source>
    <note>a button</note>
  </trans-unit>
  <trans-unit id="2"><source>No <ph id="1">&lt;br/></ph>more</source><target state="new"/></trans-unit>
  <trans-unit id="3" translate="no"><source>Acme</source></trans-unit>
  <trans-unit id="4"><source>Done</source><target state="translated">Fet</target></trans-unit>
  <trans-unit id="5"><source>12</source></trans-unit>
  <trans-unit id="6"><source><![CDATA[Go <b> & stop]]></source></trans-unit>
  <trans-unit id="7"><source>By <mrk mtype="protected">Acme</mrk></source><target><x id="1"/></target></trans-unit>
</body></file></xliff>
"""
XLIFF_MARKED = [
    ('source-language="en" datatype="plaintext"', 'source-language="en" datatype="plaintext" target-language="ca"'),
    (
        " now</source>\n",
        ' now</source>\n    <target state="translated">«Open <g id="1">it</g> &amp; <x id="2"/> now»</target>\n',
    ),
    ('<target state="new"/>', '<target state="translated">«No <ph id="1">&lt;br/></ph>more»</target>'),
    ("& stop]]></source>", '& stop]]></source><target state="translated">«Go &lt;b&gt; &amp; stop»</target>'),
    ('<target><x id="1"/></target>', '<target state="translated">«By <mrk mtype="protected">Acme</mrk>»</target>'),
]
SEGMENTED = """<xliff version="1.2"><file original="a" source-language="en" target-language="ca"><body>
  <trans-unit id="1" resname="menu"><source>One. Two.</source>
    <seg-source><g id="1">[1:One <x id="2"/>.] [2:Two.]</g></seg-source>
    <note>a title</note>
  </trans-unit>
  <trans-unit id="2"><source>Three. Four. Five.</source>
    <seg-source>[1:Three.] [2:Four.] [3:Five.]</seg-source>
    <target state="x-mine">[1:Tres.] <mrk mtype="seg" mid="2"/></target>
  </trans-unit>
  <trans-unit id="3"><source>Six.</source><seg-source>[1:Six.]</seg-source><target/></trans-unit>
  <trans-unit id="4"><source>7.</source><seg-source>[1:7.]</seg-source></trans-unit>
  <trans-unit id="5"><source>Eight.</source><seg-source>[1:Eight.]</seg-source><target>Vuit.</target></trans-unit>
</body></file></xliff>
"""
SEGMENTED = re.sub(r"\[(\d):(.*?)\]", r'<mrk mtype="seg" mid="\1">\2</mrk>', SEGMENTED)
SEGMENTED_MARKED = [
    (
        "Two.</mrk></g></seg-source>",
        'Two.</mrk></g></seg-source><target state="translated"><g id="1"><mrk mtype="seg" mid="1">«One <x id="2"/>.»'
        '</mrk> <mrk mtype="seg" mid="2">«Two.»</mrk></g></target>',
    ),
    ('<target state="x-mine">', '<target state="translated">'),
    (
        '<mrk mtype="seg" mid="2"/></target>',
        '<mrk mtype="seg" mid="2">«Four.»</mrk><mrk mtype="seg" mid="3">«Five.»</mrk></target>',
    ),
    ("<target/>", '<target state="translated"><mrk mtype="seg" mid="1">«Six.»</mrk></target>'),
]
XLIFF2 = """<xliff version="2.0" xmlns="urn:oasis:names:tc:xliff:document:2.0" srcLang="en" trgLang="ca"><file id="f">
<unit id="1"><segment state="initial"><source>Open <pc id="1">it</pc><ph id="2"/></source></segment>
<ignorable><source> </source></ignorable><segment id="b"><source>שלום</source><target>Hola</target></segment></unit>
</file></xliff>
"""
XLIFF2_MARKED = [
    ('state="initial"', 'state="translated"'),
    ("</source></segment>\n", '</source><target>«Open <pc id="1">it</pc><ph id="2"/>»</target></segment>\n'),
]
TMX = """<?xml version="1.0"?>
<tmx version="1.4"><header srclang="*all*" datatype="plaintext"/><body>
  <tu tuid="1"><note>a button</note>
    <tuv xml:lang="EN-us"><seg>Open <hi>it</hi> &amp; <ph x="1">&lt;br/></ph>go</seg></tuv>
    <tuv xml:lang="de"><seg>Los</seg></tuv>
  </tu>
  <tu><tuv xml:lang="he"><seg>שלום</seg></tuv><tuv xml:lang="en"><seg>Hello</seg></tuv></tu>
  <tu><tuv xml:lang="en"><seg>Empty</seg></tuv><tuv xml:lang="ca"><seg/></tuv></tu>
  <tu><tuv xml:lang="en"><seg>Done</seg></tuv><tuv xml:lang="ca-ES"><seg>Fet</seg></tuv></tu>
  <tu><tuv xml:lang="en"><seg>12</seg></tuv></tu>
  <tu><tuv xml:lang="ja"><seg>船</seg></tuv></tu>
</body></tmx>
"""
TMX_MARKED = [
    (
        "<seg>Los</seg></tuv>",
        "<seg>Los</seg></tuv>\n    "
        '<tuv xml:lang="ca"><seg>«Open <hi>it</hi> &amp; <ph x="1">&lt;br/></ph>go»</seg></tuv>',
    ),
    ("<seg>Hello</seg></tuv>", '<seg>Hello</seg></tuv><tuv xml:lang="ca"><seg>«Hello»</seg></tuv>'),
    ("<seg/>", "<seg>«Empty»</seg>"),
]
BILINGUAL = [
    (".po", PO, PO_MARKED),
    (".xlf", XLIFF, XLIFF_MARKED),
    (".xlf", XLIFF2, XLIFF2_MARKED),
    (".xlf", SEGMENTED, SEGMENTED_MARKED),
    (".tmx", TMX, TMX_MARKED),
]
