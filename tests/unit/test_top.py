"""The live view without a terminal: its table and its frame at several sizes, keys, and the lines that it keeps."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from support.connections import ONE

from tcpproxy import Event, Stats
from tcpproxy.report.kept import KeptLines
from tcpproxy.views import State

pytest.importorskip("rich", reason="needs rich")
if sys.platform == "win32":
    pytest.skip("no live view here", allow_module_level=True)

from rich.console import Console

from tcpproxy.command.picture import MANY, SORTS, Picture
from tcpproxy.command.terminal import Terminal
from tcpproxy.command.top import HEADER, PLAIN, STATES, Painter, frame, page, sparkline, table

TWO = dataclasses.replace(
    ONE, id=1204, client="[2001:db8::1:2:3]:40001", upstream="", state="connecting", to_client=0, age=1.24
)
OVER = Event("end", "client-eof", client="192.168.100.200:50000", upstream="10.0.0.5:5432", id=1200, duration=0.5)
RATES = {17: (0.0, 12_900_000.0), 1204: (5.0, 0.0)}
STATS = Stats(**dict.fromkeys(Stats.__slots__[:-1], 0), accepted_by_worker=(0,))


def shown(width: int, what: object) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO(), highlight=False)
    console.print(what)
    return [line.rstrip() for line in console.export_text().splitlines()]


def picture(**values: object) -> Picture:
    return dataclasses.replace(Picture(("127.0.0.1:5432", "db.example:5432"), STATS, rates=RATES), **values)


def test_table_at_120_columns() -> None:
    heading, one, two, over = shown(120, table([ONE, TWO], RATES, [OVER], 120))
    assert heading == (
        "    # client                  upstream      state                   age   idle     ↑/s     ↓/s       ↑       ↓"
    )
    assert one == (
        "  #17 127.0.0.1:52714         10.0.0.5:5432 slow client 64.0 KiB  2h13m  250ms      0B 12.3MiB  1.3KiB  343MiB"
    )
    assert two == (
        "#1204 [2001:db8::1:2:3]:40001 -             connecting             1.2s  250ms      5B      0B  1.3KiB      0B"
    )
    assert over == (
        "#1200 192.168.100.200:50000   10.0.0.5:5432 client-eof            500ms                             0B      0B"
    )


def test_table_at_80_columns() -> None:
    """Without idle time and totals."""
    lines = shown(80, table([ONE, TWO], RATES, [OVER], 80))
    assert lines[0] == "    # client                  upstream      state          age     ↑/s     ↓/s"
    assert lines[1] == "  #17 127.0.0.1:52714         10.0.0.5:5432 slow client  2h13m      0B 12.3MiB"


def test_table_at_60_columns() -> None:
    """Without upstream, too; who is slow stays."""
    lines = shown(60, table([ONE, TWO], RATES, [OVER], 60))
    assert lines[0].split() == ["#", "client", "state", "age", "↑/s", "↓/s"]
    assert "slow client " in lines[1]
    assert "#1204 [2001:db8::1:2:3" in lines[2]
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("width", range(58, 160))
def test_table_in_its_width(width: int) -> None:
    """Columns go in their order; a number is never cut."""
    lines = shown(width, table([ONE, TWO], RATES, [OVER], width))
    heading = lines[0].split()
    assert ("idle" in heading) == ("↑" in heading) == (width >= 100)
    assert ("upstream" in heading) == (width >= 70)
    assert len(lines) == 4
    assert max(map(len, lines)) <= width
    assert all(text in lines[1] for text in ("#17", "127.0.0.1:52714", "slow client", "2h13m", "12.3MiB"))


def test_rows_of_markup() -> None:
    """An address in brackets is shown as it is, and so is what a log line has."""
    found = shown(60, frame(picture(connections=[TWO], lines=[("[red]x[/red] [::1]:80", False)]), 60, 20))
    assert any("[2001:db8" in line for line in found)
    assert any(line == "[red]x[/red] [::1]:80" for line in found)


def test_every_state_has_a_colour() -> None:
    assert set(STATES) == set(get_args(State)) - {"ended"}


@pytest.mark.parametrize(("columns", "lines"), [(60, 20), (80, 24), (120, 40), (30, 5), (200, 60)])
@pytest.mark.parametrize("count", [0, 3, 500])
@pytest.mark.parametrize("help", [False, True], ids=["", "help"])
def test_frame_fills_the_screen(columns: int, lines: int, count: int, help: bool) -> None:
    """Always so many lines, however many connections; the keys in the last one."""
    connections = [dataclasses.replace(ONE, id=number) for number in range(count)]
    found = picture(
        connections=connections,
        ended=[OVER] * count,
        lines=[("a line", True)] * count,
        help=help,
        history=[(1, 2)] * 60,
    )
    text = shown(columns, frame(found, columns, lines))
    assert max(map(len, text)) <= columns
    if lines >= 20:
        assert len(text) == lines
        assert text[-1].startswith("q stop  space pause")
        assert text[0].startswith("tcpproxy  127.0.0.1:5432 → db.example:5432")
        assert any("client-eof" in line for line in text) == (count > 0 and not help)
        assert any("slow client" in line for line in text) == (count > 0 and not help)
        assert any(line == "a line" for line in text) == (count > 0)


def test_frame_has_room_for_both() -> None:
    """However many connections live, a third of the room is for those that have ended."""
    connections = [dataclasses.replace(ONE, id=number) for number in range(500)]
    found = picture(connections=connections, ended=[OVER] * 50)
    text = shown(120, frame(found, 120, 40))
    room = 40 - HEADER - 1 - 6 - 1
    assert sum("client-eof" in line for line in text) == room // 3
    assert sum("slow client" in line for line in text) == page(found, 40) == room - room // 3
    assert text[-1].endswith(f"1-{room - room // 3} of 500")
    assert page(picture(), 40) == room


def test_header() -> None:
    stats = dataclasses.replace(STATS, active=3, accepted=1204, failed=2, refused=1)
    found = picture(stats=stats, up=7980.0, rate=(1000.0, 12_900_000.0), history=[(0, 1), (0, 4), (0, 8)], paused=True)
    text = shown(80, frame(found, 80, 24))
    assert text[0].endswith("up 2 h 13 min")
    assert text[1] == "3 open  1,204 accepted  2 failed  1 refused"
    assert text[4] == "paused"
    assert text[2] == "↑ to upstream     1000 B/s"
    assert text[3] == "↓ to clients    12.3 MiB/s  ▁▄█"


def test_too_many() -> None:
    """It says that it is drawn less often."""
    found = picture(connections=[ONE] * (MANY + 1))
    assert found.period == 5
    assert shown(60, frame(found, 60, 20))[4] == "over 2,000 connections: drawn every 5 s"
    found.paused = True
    assert shown(60, frame(found, 60, 20))[4] == "paused  over 2,000 connections: drawn every 5 s"
    assert picture(connections=[ONE] * MANY).period == 1


def test_signs_of_ascii() -> None:
    found = picture(connections=[ONE], history=[(1, 2), (2, 1)])
    text = shown(120, frame(found, 120, 24, PLAIN))
    assert "".join(text).isascii()
    assert text[HEADER].split()[-4:] == ["^/s", "v/s", "^", "v"]


@pytest.mark.parametrize(
    ("values", "room", "bars"),
    [
        ([], 10, ""),
        ([0, 0], 10, "  "),
        ([0, 1, 4, 8], 10, " ▁▄█"),
        ([0, 1e-9], 10, " █"),
        ([0, 0, 8, 8], 2, " █"),
        ([8] * 60, 25, "█" * 20),
        ([1], 0, "█"),
    ],
)
def test_sparkline(values: list[float], room: int, bars: str) -> None:
    assert sparkline(values, room, " ▁▂▃▄▅▆▇█") == bars


def test_painter(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the screen, in colours; without them if NO_COLOR says so."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = picture(connections=[ONE], lines=[("trouble", True)])
    screen = Painter().paint(found, 80, 24)
    assert screen.count(b"\n") == 23
    assert b"\x1b[31mtrouble" in screen
    monkeypatch.setenv("NO_COLOR", "1")
    assert b"\x1b[31m" not in Painter().paint(found, 80, 24)


def test_orders() -> None:
    found = picture(connections=[ONE, TWO], rates={17: (1.0, 1.0), 1204: (0.0, 3.0)})
    first = {}
    for found.order in SORTS:
        found.sort()
        first[found.order] = found.connections[0].id
    assert first == {"rate": 1204, "#": 17, "client": 17, "age": 17, "idle": 17, "bytes": 17, "waiting": 17}
    found.order, found.reverse = "rate", True
    found.sort()
    assert found.connections[0].id == 17


# --- the terminal ---


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("pieces", "keys"),
    [
        ([b"qsS ?"], ["q", "s", "S", " ", "?"]),
        ([b"\x1b[A\x1b[B\x1bOA"], ["up", "down", "up"]),
        ([b"\x1b[5~\x1b[6~\x1b[H\x1b[F\x1b[1~\x1bOF"], ["page up", "page down", "home", "end", "home", "end"]),
        ([b"\x1b", b"[", b"5", b"~q"], ["page up", "q"]),
        ([b"\x1b", b"q"], ["\x1b", "q"]),
        ([b"\x1b[1;5Aq"], ["", "q"]),
        ([b"\x1b[15~\xc3\xa4"], ["", "Ã", "¤"]),
        ([b"\x04\x1a"], ["\x04", "\x1a"]),
    ],
)
def test_keys(pipe: tuple[int, int], pieces: list[bytes], keys: list[str]) -> None:
    """Also those that come in pieces."""
    terminal = Terminal(screen=pipe[1], keyboard=pipe[0])
    found = []
    for piece in pieces:
        os.write(pipe[1], piece)
        found += terminal.keys()
    assert found == keys


def test_a_screen_that_takes_nothing(pipe: tuple[int, int]) -> None:
    """It is not waited for: the rest is kept, and written when there is room; the setting of the descriptor stays."""
    reader, writer = pipe
    terminal = Terminal(screen=writer, keyboard=reader)
    terminal.show(bytes(1_000_000))
    left = len(terminal.pending)
    assert 0 < left < 1_000_000
    assert os.get_blocking(writer)
    while terminal.pending:
        os.read(reader, 65536)
        terminal.flush()
    assert os.get_blocking(writer)


def test_leaving_a_screen_that_takes_nothing(pipe: tuple[int, int]) -> None:
    """It is given up after a moment."""
    terminal = Terminal(screen=pipe[1], keyboard=pipe[0])
    terminal.enter()
    terminal.show(bytes(1_000_000))
    terminal.leave()
    assert (terminal.entered, terminal.pending) == (False, b"")


# --- the lines ---


def failed(number: int) -> Event:
    return Event("failed", "connect-refused", 111, "127.0.0.1:1", "127.0.0.1:2", text="refused", id=number)


@pytest.fixture
def kept(pipe: tuple[int, int]) -> KeptLines:
    kept = KeptLines(stdout=pipe[1], stderr=pipe[1])
    kept._screen = True
    return kept


def test_kept_lines(kept: KeptLines, pipe: tuple[int, int]) -> None:
    """Nothing is written; trouble is told from the rest, and is what is to be repeated."""
    kept.many([Event("listening", text="127.0.0.1:1"), Event("new", client="127.0.0.1:1", id=1), failed(1)])
    kept(Event("warning", text="a\nb"))
    kept.print_lines(["a table"])
    error = "Error establishing upstream connection: refused (127.0.0.1:2 for client 127.0.0.1:1) #1"
    assert kept.lines() == [
        ("Listening on 127.0.0.1:1", False),
        ("New connection from 127.0.0.1:1 #1", False),
        (error, True),
        ("warning: a\\nb", True),
        ("a table", False),
    ]
    assert kept.release() == [error, "warning: a\\nb"]
    assert kept.release() == []
    kept(Event("warning", text="late"))
    assert os.read(pipe[0], 1000) == b"warning: late\n"


def test_trouble_that_is_old(kept: KeptLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are counted."""
    now = [0.0]
    monkeypatch.setattr("tcpproxy.report.kept.monotonic", lambda: now[0])
    kept(Event("warning", text="old"))
    kept(Event("warning", text="old"))
    now[0] = 61.0
    kept(Event("warning", text="new"))
    assert kept.release() == ["2 earlier lines about trouble are not repeated", "warning: new"]


def test_kept_lines_beside_a_file(pipe: tuple[int, int], tmp_path: Path) -> None:
    """A stderr that is no terminal has its lines as ever, and nothing is repeated."""
    with (tmp_path / "errors").open("w+") as file:
        kept = KeptLines(stdout=pipe[1], stderr=file.fileno(), debug=True)
        kept.many([Event("new", client="127.0.0.1:1", id=1), failed(1), Event("end", "idle", client="a", id=2)])
        file.seek(0)
        text = file.read()
    assert [line.split()[0] for line in text.splitlines()] == ["Error", "Transferred", "Transferred", "Closed"]
    assert len(kept.lines()) == 5
    assert kept.release() == []


def test_ended(kept: KeptLines) -> None:
    """The ends of connections are asked for, and make no line without -d."""
    assert {"end", "failed"} <= set(kept.kinds)
    kept.many([Event("end", "idle", id=7), failed(8), failed(0)])
    assert [text[:5] for text, _ in kept.lines()] == ["Error", "Error"]
