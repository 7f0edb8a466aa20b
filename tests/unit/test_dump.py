"""The bytes that pass as text: as hexdump -C shows them, as text that cannot drive a terminal, as fields of JSON."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpproxy.report.color import wants_color
from tcpproxy.tap.dump import JSON_KINDS, Dump, Piece, fields, header, hex_lines, text_lines
from tcpproxy.text import timestamp

NOON = 1_795_894_200_123_456_789
"""2026-11-28T19:30:00.123456789Z."""

STARTUP = b"\0\0\0S\0\3\0\0user\0postgres\0database\0postgres\0application_name\0psql\0client_encoding\0UTF8\0\0"

needs_hexdump = pytest.mark.skipif(not shutil.which("hexdump"), reason="needs hexdump")


def data(content: bytes, offset: int = 0, side: int = 0, size: int | None = None) -> Piece:
    return Piece("data", 17, side, NOON, offset, len(content) if size is None else size, content)


# --- hex ---


def test_a_piece_in_hex() -> None:
    """The whole of it: direction, time, number, length and offsets, then the lines of hexdump."""
    assert Dump()(data(STARTUP)) == (
        "> 2026-11-28T19:30:00.123456Z #17 length=84 from=0 to=83\n"
        "00000000  00 00 00 53 00 03 00 00  75 73 65 72 00 70 6f 73  |...S....user.pos|\n"
        "00000010  74 67 72 65 73 00 64 61  74 61 62 61 73 65 00 70  |tgres.database.p|\n"
        "00000020  6f 73 74 67 72 65 73 00  61 70 70 6c 69 63 61 74  |ostgres.applicat|\n"
        "00000030  69 6f 6e 5f 6e 61 6d 65  00 70 73 71 6c 00 63 6c  |ion_name.psql.cl|\n"
        "00000040  69 65 6e 74 5f 65 6e 63  6f 64 69 6e 67 00 55 54  |ient_encoding.UT|\n"
        "00000050  46 38 00 00                                       |F8..|\n"
    )


def test_offsets_go_on() -> None:
    """A read that begins in the middle of a line begins a new one at its own offset, as Wireshark shows a stream."""
    assert Dump()(data(b"R\0\0\0\x08\0\0\0\0", offset=83, side=1)) == (
        "< 2026-11-28T19:30:00.123456Z #17 length=9 from=83 to=91\n"
        "00000053  52 00 00 00 08 00 00 00  00                       |R........|\n"
    )


def test_equal_lines() -> None:
    """As hexdump has it: a star for lines that are as the one before, and then the offset behind the last byte."""
    assert hex_lines(bytes(64), 0) == (
        "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|\n*\n00000040\n"
    )
    assert hex_lines(bytes(40), 0).splitlines()[1:] == [
        "*",
        "00000020  00 00 00 00 00 00 00 00                           |........|",
    ]


def test_width() -> None:
    """A terminal of 80 columns shows it."""
    assert {len(line) for line in hex_lines(bytes(range(256)), 0).splitlines()} == {78}


def test_behind_4_gib() -> None:
    assert hex_lines(b"a", 1 << 32).startswith("100000000  61 ")


def hexdump(path: Path, content: bytes, offset: int) -> str:
    """What hexdump -C says of these bytes of a file; the offset behind the last one only if a star is before it."""
    with path.open("wb") as file:
        file.truncate(offset)  # a hole
        file.seek(offset)
        file.write(content)
    argv = ["hexdump", "-C", "-s", str(offset), str(path)]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=30, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    lines = done.stdout.splitlines(keepends=True)
    return "".join(lines if lines[-2:-1] == ["*\n"] else lines[:-1])


def runs() -> st.SearchStrategy[bytes]:
    """Bytes with runs of equal ones, as files have them."""
    run = st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(1, 50))
    return st.lists(st.one_of(st.binary(min_size=1, max_size=40), run), min_size=1, max_size=12).map(b"".join)


@needs_hexdump
@settings(max_examples=100, deadline=None)
@given(content=runs(), offset=st.one_of(st.integers(0, 100), st.integers(0, 1 << 33)))
def test_as_hexdump(tmp_path_factory: pytest.TempPathFactory, content: bytes, offset: int) -> None:
    """Every line, at every offset."""
    assert hex_lines(content, offset) == hexdump(tmp_path_factory.getbasetemp() / "content", content, offset)


@needs_hexdump
def test_every_byte_as_hexdump(tmp_path: Path) -> None:
    for content in (bytes(range(256)), bytes(range(255, -1, -1)), os.urandom(61440)):
        assert hex_lines(content, 7) == hexdump(tmp_path / "content", content, 7)


# --- a part of a read, and what is no read ---


@pytest.mark.parametrize("text", [False, True])
def test_the_rest_is_counted(text: bool) -> None:
    lines = Dump(text=text)(data(b"a" * 4096, size=61440)).splitlines()
    assert lines[0].endswith(" length=61440 from=0 to=61439")
    assert lines[-1] == "… 57,344 more bytes"


@pytest.mark.parametrize(
    ("piece", "line"),
    [
        (Piece("fin", 17, 0, NOON, 83, 0, b""), "> #17 end of stream after 83 bytes"),
        (Piece("fin", 17, 1, NOON, 1234567, 0, b""), "< #17 end of stream after 1,234,567 bytes"),
        (Piece("rst", 17, 1, NOON, 0, 0, b""), "< #17 reset after 0 bytes"),
        (Piece("gap", 17, 0, NOON, 83, 12345, b""), "> #17 12,345 bytes not shown (output is slow)"),
        (Piece("end", 17, 0, NOON, 0, 0, b"client-eof"), "= #17 over: client-eof"),
        (
            Piece("lost", 0, 0, NOON, 1234, 56789, b""),
            "= the ends of 1,234 connections and 56,789 bytes not shown (output is slow)",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Piece) else "",
)
def test_lines_of_other_pieces(piece: Piece, line: str) -> None:
    assert Dump()(piece) == Dump(text=True)(piece) == f"{line}\n"


def test_time_is_utc_and_cut_to_microseconds() -> None:
    assert timestamp(NOON) == "2026-11-28T19:30:00.123456Z"
    assert timestamp(999) == "1970-01-01T00:00:00.000000Z"
    assert header(1, "0.5", 3, 10, 1) == "< 0.5 #3 length=1 from=10 to=10"


# --- text ---


def test_a_piece_as_text() -> None:
    assert Dump(text=True)(data(b"GET / HTTP/1.1\r\nHost: b\xc3\xbccher.example\r\n\r\n")) == (
        "> 2026-11-28T19:30:00.123456Z #17 length=41 from=0 to=40\n"
        "  GET / HTTP/1.1\\r\n"
        "  Host: bücher.example\\r\n"
        "  \\r\n"
    )


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"one\ntwo", "  one\n  two\n"),
        (b"one\ntwo\n", "  one\n  two\n"),
        (b"\n", "  \n"),
        (b"\n\n", "  \n  \n"),
        (b"a\tb", "  a\\tb\n"),
        (b"some \x1b[31mred\x1b[0m words", "  some \\x1b[31mred\\x1b[0m words\n"),
        ("\u4e2d\u6587, \U0001f600".encode(), "  \u4e2d\u6587, \U0001f600\n"),
        (b"cut in a letter: \xe4\xb8", "  cut in a letter: \\xe4\\xb8\n"),
        (b"a stray \xff and an overlong \xc0\xaf", "  a stray \\xff and an overlong \\xc0\\xaf\n"),
        (b"a surrogate \xed\xa0\x80", "  a surrogate \\xed\\xa0\\x80\n"),
        ("C1: \x9b2J".encode(), "  C1: \\x9b2J\n"),
        ("turned \u202egnp.exe\u2066".encode(), "  turned \\u202egnp.exe\\u2066\n"),
        ("lines \u2028 and \u2029 and \x85".encode(), "  lines \\u2028 and \\u2029 and \\x85\n"),
    ],
)
def test_text_lines(content: bytes, lines: str) -> None:
    """UTF-8 where it is valid and printable, all else escaped."""
    assert text_lines(content) == lines


@pytest.mark.parametrize("content", [bytes(100), bytes(range(256)), b"\x16\x03\x01\x02\0\x01\0\x01", b"abc\0\x01\x02"])
def test_mostly_no_text(content: bytes) -> None:
    """Binary data comes in hex, as with -x."""
    assert text_lines(content) == ""
    assert Dump(text=True)(data(content)) == Dump()(data(content))


def test_a_read_of_several_kinds() -> None:
    """Numbers and strings: text as long as there is more of it."""
    assert "  \\x00\\x00\\x00S\\x00\\x03\\x00\\x00user\\x00postgres" in Dump(text=True)(data(STARTUP))


CONTROLS = [number for number in range(0x110000) if unicodedata.category(chr(number)) in ("Cc", "Cf", "Zl", "Zp")]


@pytest.mark.parametrize("text", [False, True])
def test_no_control_character_reaches_the_terminal(text: bool) -> None:
    """Each of them: C0, DEL, C1, those that turn the reading round, those that separate lines."""
    assert {0x1B, 0x7F, 0x9B, 0x202E, 0x2066, 0x2028} <= {*CONTROLS}
    for number in CONTROLS:
        content = f"some words before {chr(number)} and some behind".encode()
        shown = Dump(text=text)(data(content))
        assert shown.replace("\n", "").isprintable(), hex(number)
        assert shown.count("\n") == len(shown.splitlines())


@settings(deadline=None)
@given(content=st.one_of(st.binary(), st.text().map(str.encode), runs()), text=st.booleans(), size=st.integers(0, 9))
def test_whatever_a_peer_sends(content: bytes, text: bool, size: int) -> None:
    """Only printable characters; only the header begins like one; each line is recognized as one of the dump."""
    piece = data(content or b"x", size=len(content or b"x") + size)
    first, *rest = Dump(text=text)(piece).removesuffix("\n").split("\n")
    assert first.startswith("> 2026-11-28T19:30:00.123456Z #17 length=")
    assert all(line.isprintable() for line in [first, *rest])
    assert all(line.startswith(("  ", "*", "… ", *"0123456789abcdef")) for line in rest)


@given(content=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Zs", "Zl", "Zp"]), min_size=1))
def test_printable_text_is_as_it_was(content: str) -> None:
    assert text_lines(content.encode()) == f"  {content}\n"


# --- color ---


@pytest.mark.parametrize("text", [False, True])
def test_only_first_lines_are_colored(text: bool) -> None:
    for side, color in enumerate(("\x1b[36m", "\x1b[33m")):
        plain, colored = (Dump(text=text, color=on)(data(b"hello", side=side)) for on in (False, True))
        first, _, rest = plain.partition("\n")
        assert colored == f"{color}{first}\x1b[0m\n{rest}"
    fin = Piece("fin", 17, 1, NOON, 83, 0, b"")
    assert Dump(color=True)(fin) == "\x1b[33m< #17 end of stream after 83 bytes\x1b[0m\n"
    assert "\x1b" not in Dump(color=True)(Piece("end", 17, 0, NOON, 0, 0, b"idle"))


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_when_to_color(stack: contextlib.ExitStack) -> None:
    """Asked for, or on a terminal that has them where nobody says no."""
    terminal, other = os.openpty()
    pipe, writer = os.pipe()
    for end in (terminal, other, pipe, writer):
        stack.callback(os.close, end)
    xterm = {"TERM": "xterm"}
    assert wants_color("auto", other, xterm)
    assert wants_color("auto", other, {**xterm, "NO_COLOR": ""})
    assert not wants_color("auto", other, {**xterm, "NO_COLOR": "0"})
    assert not wants_color("auto", other, {"TERM": "dumb"})
    assert not wants_color("auto", writer, xterm)
    for stream in (other, writer):
        assert wants_color("always", stream, {"TERM": "dumb", "NO_COLOR": "1"})
        assert not wants_color("never", stream, xterm)


# --- JSON ---


def test_fields() -> None:
    content = bytes(range(256))
    told = fields(data(content, offset=3, side=1, size=1000))
    assert base64.b64decode(told.pop("data"), validate=True) == content  # type: ignore[arg-type]
    assert told == {"id": 17, "direction": "to_client", "offset": 3, "size": 1000}
    gap = fields(Piece("gap", 17, 0, NOON, 3, 1000, b""))
    assert gap == {"id": 17, "direction": "to_upstream", "offset": 3, "size": 1000}
    for kind in ("fin", "rst"):
        assert fields(Piece(kind, 17, 0, NOON, 3, 0, b"")) == {"id": 17, "direction": "to_upstream", "offset": 3}
    assert set(JSON_KINDS) == {"data", "fin", "rst", "gap"}
