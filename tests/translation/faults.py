"""What can go wrong with servers and with files: tests run every row, and docs/translating-faults.md shows them."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerFault:
    word: str
    """In the text that is asked for: the test's server then does it."""
    does: str
    message: str
    """Reason of a segment whose every try met with it."""
    passes: bool = True
    """The next run asks again; else the next step does."""


SERVER_FAULTS = (
    ServerFault("500", "answers with status 500", "status 500"),
    ServerFault("429", "answers with status 429 and `Retry-After: 7`", "status 429"),
    ServerFault("stall", "takes the request and is silent", "ReadTimeout"),
    ServerFault("cut", "closes within an answer", "RemoteProtocolError"),
    ServerFault("stream", "cuts a stream of chunks", "RemoteProtocolError"),
    ServerFault("drop", "closes without an answer", "RemoteProtocolError"),
    ServerFault("garbage", "answers with bytes that are no JSON", "not of the OpenAI form"),
    ServerFault("shape", "answers with no choice", "not of the OpenAI form"),
    ServerFault("two", "answers with two choices", "not of the OpenAI form"),
    ServerFault("index", "answers with another choice than was asked for", "not of the OpenAI form"),
    ServerFault("error", "answers with an error under status 200", "not of the OpenAI form"),
    ServerFault("null", "answers with null in place of text", "empty", passes=False),
    ServerFault("parts", "answers with a list in place of text", "not of the OpenAI form"),
    ServerFault("empty", "answers with white space", "empty", passes=False),
)


@dataclass(frozen=True)
class BadFile:
    what: str
    name: str
    data: bytes
    message: str
    """Part of what is told."""
    keys: tuple[str, ...] = ()


TMX = b'<tmx version="1.4"><body><tu><tuv xml:lang="de"><seg>x</seg></tuv></tu></body></tmx>'
BAD_FILES = (
    BadFile("XML that is not well-formed", "a.xlf", b"<xliff><file>", "not well-formed XML"),
    BadFile("an entity bomb", "a.xlf", b'<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><a>&c;</a>', "bombs"),
    BadFile("an external DTD", "a.xlf", b'<!DOCTYPE xliff SYSTEM "http://x.org/x.dtd"><xliff/>', "it has a DTD"),
    BadFile("an external DTD", "a.tmx", b'<!DOCTYPE tmx SYSTEM "tmx14.dtd"><tmx/>', "it has a DTD"),
    BadFile("another format in XML", "a.xlf", b"<tmx/>", "not <xliff>"),
    BadFile("another format in XML", "a.tmx", b"<xliff/>", "not <tmx>"),
    BadFile("another source language", "a.xlf", b'<xliff><file source-language="de"/></xliff>', "is de, not en"),
    BadFile("no unit in the source language", "a.tmx", TMX, "no unit is in en, only in de"),
    BadFile("JSON that is not well-formed", "a.json", b'{"a": ', "not well-formed JSON"),
    BadFile("JSON nested without end", "a.json", b"[" * 100_000, "not well-formed JSON"),
    BadFile("YAML that is not well-formed", "a.yaml", b"a: [1", "not well-formed YAML"),
    BadFile("lines that are not PO", "a.po", b"msgid Open\n", "not a PO file at lines 1"),
    BadFile("subtitles without a time", "a.srt", b"Open\n", "no subtitles"),
    BadFile("CSV, no columns chosen", "a.csv", b"id,text\n1,a\n", "Name them with --keys; it has id, text"),
    BadFile("CSV without that column", "a.csv", b"id,word\n1,a\n", "no column is named text; it has id", ("text",)),
    BadFile("CSV with ragged rows", "a.csv", b"id,text\n1,a,b\n2\n", "other numbers stand at lines 2, 3", ("text",)),
    BadFile("CSV with open quotation marks", "a.csv", b'id,text\n1,"a\n2,b\n', "marks at line 2", ("text",)),
    BadFile("another encoding than UTF-8", "a.md", "é".encode("latin-1"), "not in the encoding utf-8 at byte 0"),
    BadFile("an encoding that nobody knows", "a.html", b'<meta charset="nowhere">', "not in the encoding nowhere"),
    BadFile("no text at all", "a.txt", b"a\0b", "has NUL characters"),
    BadFile("half a character", "a.json", b'{"a": "Open \\ud83d"}', "(a lone \\ud800 to \\udfff) at lines 1"),
    BadFile("a format that is not known", "a.doc", b"", "in none of the formats"),
)


def server_table():
    """The table of servers' faults in Markdown."""
    rows = [f"| {f.does} | {f.message} |" for f in SERVER_FAULTS]
    return "\n".join(["| the server | reason, where it stays so |", "|:-----------|:-------------------------|", *rows])


def file_table():
    """The table of bad files in Markdown."""
    rows = [f"| {f.what} | `{f.name[1:]}` | … {f.message} … |" for f in BAD_FILES]
    return "\n".join(["| the file holds | ending | what is told |", "|:------|:-----|:-----|", *rows])


def damaged(path):
    """Every page behind the first is noise."""
    data = path.read_bytes()
    assert len(data) > 8192
    path.write_bytes(data[:4096] + random.Random(0).randbytes(len(data) - 4096))
