"""Packages small enough to write by hand: .deb and .tgz files, .mo catalogues, help pages, lists, declarations."""

import io
import struct
import tarfile
from types import SimpleNamespace

import pytest


def tar(files, mode):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def deb(files):
    """An ar archive of three members, the first of odd length (so that padding counts)."""
    members = {"debian-binary": b"2.0", "control.tar.xz": tar({}, "w:xz"), "data.tar.xz": tar(files, "w:xz")}
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def mo(messages):
    """A gettext catalogue in the little-endian layout of the GNU manual: header, two tables, strings ended by NUL."""
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", **messages}
    pairs = sorted((k.encode(), v.encode()) for k, v in messages.items())
    n = len(pairs)
    at, tables, strings = 28 + 16 * n, [b"", b""], b""
    for side in (0, 1):
        for pair in pairs:
            tables[side] += struct.pack("<2I", len(pair[side]), at + len(strings))
            strings += pair[side] + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 0) + tables[0] + tables[1] + strings


def page(language, *blocks):
    body = "\n".join(blocks)
    return (
        f'<!DOCTYPE html><html lang="{language}"><head><meta charset="utf-8"></head><body>{body}</body></html>'.encode()
    )


def help_deb(language, pages):
    root = f"./usr/share/libreoffice/help/{language}/text"
    return deb({f"{root}/{name}.html": data for name, data in pages.items()} | {f"{root}/x.js": b"no page"})


ENGLISH = """\
Package: game
Description-md5: d943033bedada21853d2ae54a2578a7b
Description-en: strategy game
 A game about
 ancient war.
 .
  * first point
  * second point
 .
 The last paragraph.

Package: other
Description-md5: 00000000000000000000000000000000
Description-en: only a summary
"""
CHINESE = """\
Package: game
Description-md5: d943033bedada21853d2ae54a2578a7b
Description-zh_CN: 策略游戏
 一款关于古代
 战争的 game。
 .
  * 一
 .
 最后一段。

Package: other
Description-md5: 00000000000000000000000000000000
Description-zh_CN: 摘要
 多出的一段。
"""


def declaration(tag, preamble, first):
    paragraphs = "".join(f"<li><p>{text}</p></li>" for text in first)
    return f'<html lang="{tag}"><body><header><p>{preamble}</p></header><article data-number="1">{paragraphs}</article>'


@pytest.fixture
def made():
    """The makers of this file, which test modules cannot import."""
    return SimpleNamespace(**{name: value for name, value in globals().items() if name != "made"})
