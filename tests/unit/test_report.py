"""Events as lines: their words, their streams, what is held back, and what a stream that fails costs."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from support.machine import fcntl
from support.waiting import in_background

from tcpproxy import Event
from tcpproxy._core.worker import KINDS, REASONS, STATES
from tcpproxy.errors import describe
from tcpproxy.report.event import EventKind, Reason, Record, decode, is_new
from tcpproxy.report.fields import error_name, fields, timestamp
from tcpproxy.report.printer import BURST, CHANGES, Printer
from tcpproxy.report.ratelimit import RateLimit
from tcpproxy.report.sentences import sentence, sentences
from tcpproxy.report.sink import LoggingSink
from tcpproxy.tap.dump import Dump
from tcpproxy.text import clean
from tcpproxy.views import State

CLIENT, UPSTREAM = "192.0.2.1:50000", "[2001:db8::1]:80"
END = Event("end", "client-eof", 0, CLIENT, UPSTREAM, 12, 345, 1.23456, 0.0021)
FAILED = Event("failed", "connect-refused", 111, CLIENT, UPSTREAM, text="Connection refused (os error 111)")

LINES = {
    "listening": (Event("listening", text="127.0.0.1:80"), ["Listening on 127.0.0.1:80"], []),
    "new": (Event("new", client=CLIENT), [f"New connection from {CLIENT}"], []),
    "end": (
        END,
        [],
        [
            f"Transferred 12 bytes from proxy client {CLIENT} to upstream server",
            f"Transferred 345 bytes from upstream server to proxy client {CLIENT}",
            f"Closed {CLIENT} after 1.235 s, connected in 2.1 ms to {UPSTREAM}: client-eof",
        ],
    ),
    "end of one never connected": (
        Event("end", "shutdown", 0, CLIENT, duration=0.5),
        [],
        [
            f"Transferred 0 bytes from proxy client {CLIENT} to upstream server",
            f"Transferred 0 bytes from upstream server to proxy client {CLIENT}",
            f"Closed {CLIENT} after 0.500 s: shutdown",
        ],
    ),
    "failed": (
        FAILED,
        [],
        [f"Error establishing upstream connection: Connection refused (os error 111) ({UPSTREAM} for client {CLIENT})"],
    ),
    "failed without an address": (
        Event("failed", "dns", client=CLIENT),
        [],
        [f"Error establishing upstream connection: dns (upstream for client {CLIENT})"],
    ),
    "accept-error": (
        Event("accept-error", error=24, text="Too many open files (os error 24)"),
        [],
        ["Error accepting a connection: Too many open files (os error 24); trying again every 100 ms"],
    ),
    "limit": (Event("limit"), [], ["The limit of connections is reached; new ones wait"]),
    "warning": (Event("warning", text="beware"), [], ["warning: beware"]),
    "lost": (Event("lost", text="5 log records were dropped"), [], ["5 log records were dropped"]),
}


class Streams:
    """Two files that take what a printer writes; unlike pipes they can be read everywhere without waiting."""

    def __init__(self, folder: Path) -> None:
        names = [folder / "out", folder / "err"]
        binary = getattr(os, "O_BINARY", 0)  # Windows
        self.writing = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | binary) for name in names]
        self._files = [name.open("rb") for name in names]

    def printer(self, **options: Any) -> Printer:
        return Printer(stdout=self.writing[0], stderr=self.writing[1], **options)

    def taken(self) -> tuple[list[str], list[str]]:
        """The lines on stdout and on stderr since the last call."""
        out, err = (file.read().decode().splitlines() for file in self._files)
        return out, err

    def close(self) -> None:
        for file in self._files:
            file.close()
        for end in self.writing:
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[Streams]:
    with contextlib.closing(Streams(tmp_path)) as streams:
        yield streams


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- words ---


@pytest.mark.parametrize("name", LINES)
def test_lines(streams: Streams, name: str) -> None:
    """Row 102: in the original's words, each on its stream."""
    event, out, err = LINES[name]
    streams.printer(debug=True)(event)
    assert streams.taken() == (out, err)


TIME = 1795894200.123456
START = '{"time": "2026-11-28T19:30:00.123456Z", "level": '
"""Of a record at TIME."""

ALL = {
    "id": 17,
    "client": CLIENT,
    "upstream": UPSTREAM,
    "outgoing": "192.0.2.9:40000",
    "to_upstream": 12,
    "to_client": 0,
    "duration": 1.23456,
    "connect_time": 0.0021,
    "reason": "client-eof",
    "error": "",
    "text": "",
    "target": "db.example:80",
}
"""Every field of an end."""

GOLDEN = {
    "listening": (
        Event("listening", text="127.0.0.1:80"),
        '"info", "kind": "listening", "listener": "127.0.0.1:80", "target": "db.example:80", "pid": 1}',
    ),
    "new": (
        Event("new", client=CLIENT, id=17),
        f'"info", "kind": "new", "id": 17, "client": "{CLIENT}", "target": "db.example:80"}}',
    ),
    "connected": (
        Event("connected", "", 0, CLIENT, UPSTREAM, 0, 0, 0.0021, 0.0021, id=17, outgoing="192.0.2.9:40000"),
        f'"info", "kind": "connected", "id": 17, "client": "{CLIENT}", "upstream": "{UPSTREAM}", '
        '"outgoing": "192.0.2.9:40000", "connect_time": 0.0021, "target": "db.example:80"}',
    ),
    "end": (
        END._replace(to_client=0, id=17, outgoing="192.0.2.9:40000"),
        '"info", "kind": "end", ' + json.dumps(ALL).removeprefix("{"),
    ),
    "failed": (
        FAILED._replace(id=17),
        '"warning", "kind": "failed", '
        + json.dumps(
            ALL
            | {"outgoing": "", "to_upstream": 0, "duration": 0.0, "connect_time": 0.0}
            | {"reason": "connect-refused", "error": "ECONNREFUSED", "text": "Connection refused (os error 111)"}
        ).removeprefix("{"),
    ),
    "limit": (Event("limit"), '"warning", "kind": "limit"}'),
    "accept-error": (
        Event("accept-error", error=errno.EMFILE, text="Too many open files (os error 24)"),
        '"warning", "kind": "accept-error", "error": "EMFILE", "text": "Too many open files (os error 24)"}',
    ),
    "warning": (Event("warning", text="beware"), '"warning", "kind": "warning", "text": "beware"}'),
    "stopping": (Event("stopping", text="waiting"), '"info", "kind": "stopping", "text": "waiting"}'),
    "lost": (
        Event("lost", text="5 lost", lost=5, target="db.example:80"),
        '"warning", "kind": "lost", "lost": 5, "text": "5 lost", "target": "db.example:80"}',
    ),
}


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("name", GOLDEN)
def test_json_lines(streams: Streams, name: str, debug: bool) -> None:
    """Row 102: one object a line, all on stdout, whatever their kind; all fields of an end are there."""
    event, line = GOLDEN[name]
    if event.error and name == "failed":
        event = event._replace(error=errno.ECONNREFUSED)
    streams.printer(debug=debug, json=True, about={"pid": 1})(event._replace(time=TIME, target="db.example:80"))
    assert streams.taken() == ([START + line], [])


def test_time_of_a_json_line_without_one(streams: Streams) -> None:
    before = time.time()
    streams.printer(json=True)(Event("warning", text="beware"))
    said = datetime.datetime.fromisoformat(json.loads(streams.taken()[0][0])["time"])
    assert said.tzinfo == datetime.UTC
    assert before - 0.001 <= said.timestamp() <= time.time() + 0.001


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (TIME, "2026-11-28T19:30:00.123456Z"),
        (1795894200.9999996, "2026-11-28T19:30:01.000000Z"),
        (1835740799.000001, "2028-03-03T23:59:59.000001Z"),
    ],
)
def test_timestamps(seconds: float, text: str) -> None:
    assert timestamp(seconds) == text


def test_names_of_errors() -> None:
    """The same on every platform; a number that has no name stays one."""
    assert error_name(0) == ""
    assert error_name(errno.ECONNREFUSED) == "ECONNREFUSED"
    assert error_name(99999) == "99999"


def test_numbers_of_connections(streams: Streams) -> None:
    """With -d a line about a connection ends with its number; without it the words are the original's."""
    events = [
        Event("new", client=CLIENT, id=17),
        FAILED._replace(id=18),
        Event("failed", "limit", client=CLIENT, id=19),
        END._replace(id=17, outgoing="192.0.2.9:40000"),
    ]
    streams.printer().many(events[:3])
    assert not any("#" in line for lines in streams.taken() for line in lines)
    streams.printer(debug=True).many(events)
    out, err = streams.taken()
    assert out == [f"New connection from {CLIENT} #17"]
    assert [line.rpartition(" ")[2] for line in err] == ["#18", "#19", "#17", "#17", "#17"]
    assert err[-1].endswith(f", connected in 2.1 ms from 192.0.2.9:40000 to {UPSTREAM}: client-eof #17")


def test_numbers_beside_a_dump(streams: Streams) -> None:
    """It names a connection by nothing else."""
    streams.printer(dump=Dump()).many([Event("new", client=CLIENT, id=17), FAILED._replace(id=18)])
    (new,), (failed,) = streams.taken()
    assert [new[-4:], failed[-4:]] == [" #17", " #18"]


@pytest.mark.parametrize(("options", "wants"), [({}, False), ({"debug": True}, True), ({"json": True}, True)])
def test_who_wants_the_outgoing_address(options: dict[str, bool], wants: bool) -> None:
    """It costs a system call per connection: only what prints it asks for it."""
    assert Printer(**options).wants_outgoing == wants


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_logger_wants_the_outgoing_address(caplog: pytest.LogCaptureFixture, level: int) -> None:
    with caplog.at_level(level, "tcpproxy"):
        assert LoggingSink().wants_outgoing == (level == logging.DEBUG)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({}, {"new"}),
        ({"debug": True}, {"new", "end", "fault"}),
        ({"quiet": True}, set()),
        ({"quiet": True, "debug": True}, {"end", "fault"}),
        ({"json": True}, {"new", "connected", "end", "fault"}),
        ({"json": True, "quiet": True}, {"end", "fault"}),
    ],
)
def test_kinds_that_have_a_line(options: dict[str, bool], kinds: set[str]) -> None:
    """Trouble always has one."""
    trouble = {"failed", "accept-error", "limit", "upstream-down", "upstream-up"}
    assert set(Printer(**options).kinds) == trouble | kinds


def test_names_of_the_core() -> None:
    """The types list the kinds, reasons and states that the core exports; the proxy itself adds some kinds."""
    assert get_args(EventKind)[: len(KINDS)] == KINDS
    assert get_args(Reason) == REASONS
    assert get_args(State) == (*STATES, "ended")


def test_kinds_and_reasons_in_order() -> None:
    """Their names are in the order of the core's numbers."""
    source = Path(__file__).parents[2] / "tcpproxy/_core/events.pxd"
    if not source.exists():
        pytest.skip("no source tree here")
    found: dict[str, list[str]] = {"EVENT": [], "REASON": []}
    for prefix, name in re.findall(r"^    (EVENT|REASON)_(\w+)", source.read_text(), re.MULTILINE):
        found[prefix].append(name.lower())
    long_names = {"accept_limit": "limit", "refused": "connect-refused", "none": ""}
    assert [long_names.get(name, name).replace("_", "-") for name in found["EVENT"]] == list(KINDS)
    assert [long_names.get(name, name).replace("_", "-") for name in found["REASON"]] == list(REASONS)


def test_decoded_record() -> None:
    """What the core counted, and the system's or the look-up's words."""
    record: Record = (
        "failed",
        "connect-refused",
        errno.ECONNREFUSED,
        17,
        CLIENT,
        UPSTREAM,
        "192.0.2.9:40000",
        1,
        2,
        0.5,
        0.25,
        1e9,
        0,
        "192.0.2.8:9",
        "",
        0,
    )
    text = f"{describe(errno.ECONNREFUSED)} (os error {errno.ECONNREFUSED})"
    expected = Event("failed", "connect-refused", errno.ECONNREFUSED, CLIENT, UPSTREAM, 1, 2, 0.5, 0.25, text, 17)
    expected = expected._replace(outgoing="192.0.2.9:40000", time=1e9, target="db:80", via="192.0.2.8:9")
    assert decode(record, "db:80", "unrelated") == expected
    dns: Record = ("failed", "dns", 0, 1, CLIENT, "", "", 0, 0, 0.5, 0.0, 1e9, 0, "", "", 0)
    assert decode(dns, "db:80", "no such host").text == "failed to lookup address information: no such host"
    assert decode(dns, "db:80", "").text == "failed to lookup address information: no answer in time"
    assert decode(("end", "idle", 0, 1, CLIENT, "", "", 0, 0, 0.5, 0.1, 1e9, 0, "", "", 0), "db:80", "").text == ""
    assert decode(("limit", "", 0, 0, "", "", "", 0, 0, 0.0, 0.0, 1e9, 0, "", "", 0), "db:80", "").target == ""


# --- injection ---


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain text, 100 % [::1]:80 \u00fc \u4e2d", "plain text, 100 % [::1]:80 \u00fc \u4e2d"),
        ("a\nb\r\nc", "a\\nb\\r\\nc"),
        ("a\tb\0c", "a\\tb\\x00c"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x7f\x9b2J", "\\x7f\\x9b2J"),
        ("a\u2028b\u2029c\x85d", "a\\u2028b\\u2029c\\x85d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
        ("", ""),
    ],
)
def test_clean(text: str, cleaned: str) -> None:
    """Row 102: nothing begins a line, moves a cursor or turns the reading round."""
    assert clean(text) == cleaned
    assert clean(text).isprintable()


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("kind", ["listening", "new", "end", "failed", "accept-error", "warning", "lost"])
def test_one_line_whatever_it_says(streams: Streams, kind: str, as_json: bool) -> None:
    """Row 102."""
    evil = "x\nListening on 127.0.0.1:1\r\x1b[2J\u2028\udcff"
    streams.printer(json=as_json)(Event(kind, "idle", 0, evil, evil, text=evil))
    lines = [line for stream in streams.taken() for line in stream]
    assert len(lines) == (3 if kind == "end" and not as_json else 1)
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("Listening on 127.0.0.1:1") for line in lines)


# --- floods ---


def test_flood_lets_a_burst_through_each_second() -> None:
    """Row 103."""
    clock = Clock()
    limit = RateLimit(clock)
    assert [limit.admit("a", 3) for _ in range(5)] == [True] * 3 + [False] * 2
    clock.now += 0.999
    assert not limit.admit("a", 3)
    assert limit.take_suppressed() == {}
    clock.now += 0.001
    assert limit.take_suppressed() == {"a": 3}
    assert [limit.admit("a", 3) for _ in range(5)] == [True] * 3 + [False] * 2


def test_flood_tells_each_count_once() -> None:
    """Row 103."""
    clock = Clock()
    limit = RateLimit(clock)
    for _ in range(10):
        limit.admit("a", 1)
    assert limit.pending
    clock.now += 60
    assert limit.pending
    assert limit.take_suppressed() == {"a": 9}
    assert not limit.pending
    assert limit.take_suppressed() == {}


def test_flood_of_one_kind_holds_back_no_other() -> None:
    """Row 103."""
    clock = Clock()
    limit = RateLimit(clock)
    for _ in range(10):
        limit.admit("a", 2)
    assert limit.admit("b", 2)
    clock.now += 0.5
    assert limit.admit("c", 1)
    assert not limit.admit("c", 1)
    clock.now += 0.5
    assert limit.take_suppressed() == {"a": 8}
    assert limit.pending, "c is not over yet"
    clock.now += 0.5
    assert limit.take_suppressed() == {"c": 1}


def test_no_flood_nothing_to_tell() -> None:
    """Row 103."""
    clock = Clock()
    limit = RateLimit(clock)
    for _ in range(100):
        assert limit.admit("a", 1)
        assert not limit.pending
        clock.now += 1
        assert limit.take_suppressed() == {}


def with_clock(printer: Printer) -> Clock:
    clock = Clock()
    printer._rate_limit = RateLimit(clock)
    return clock


def test_printer_holds_back_a_flood_and_says_so(streams: Streams) -> None:
    """Row 103: failed connections; later, in one line, how many there were more."""
    printer = streams.printer()
    clock = with_clock(printer)
    for _ in range(100):
        printer(FAILED)
    assert len(streams.taken()[1]) == BURST
    assert printer.flush_suppressed(), "it has to be called again: there is something left to say"
    assert streams.taken() == ([], [])
    clock.now += 1
    assert not printer.flush_suppressed()
    assert streams.taken() == ([], [f"{100 - BURST} more lines of the kind failed (connect-refused) were not shown"])


def test_json_counts_a_flood_in_fields(streams: Streams) -> None:
    """Row 103: kind, reason and number need no reading of a sentence."""
    printer = streams.printer(json=True)
    clock = with_clock(printer)
    for _ in range(100):
        printer(FAILED)
    assert len(streams.taken()[0]) == BURST
    clock.now += 1
    printer.flush_suppressed()
    (line,) = streams.taken()[0]
    told = json.loads(line)
    assert (told["kind"], told["reason"], told["lost"]) == ("lost", "connect-refused", 100 - BURST)


def test_printer_counts_each_reason(streams: Streams) -> None:
    """Row 103."""
    printer = streams.printer()
    with_clock(printer)
    for reason in "dns", "connect-refused", "unreachable":
        for _ in range(BURST + 5):
            printer(FAILED._replace(reason=reason))
    assert len(streams.taken()[1]) == 3 * BURST


def test_count_comes_before_the_next_line(streams: Streams) -> None:
    """Row 103: lines stay in order."""
    printer = streams.printer()
    clock = with_clock(printer)
    for _ in range(BURST + 1):
        printer(FAILED)
    streams.taken()
    clock.now += 1
    printer(Event("warning", text="later"))
    assert streams.taken()[1] == [
        "1 more lines of the kind failed (connect-refused) were not shown",
        "warning: later",
    ]


@pytest.mark.parametrize("kind", ["accept-error", "limit"])
def test_trouble_with_accepting_is_one_line_a_second(streams: Streams, kind: str) -> None:
    """Rows 53, 103."""
    printer = streams.printer()
    clock = with_clock(printer)
    for _ in range(30):  # 3 seconds
        printer(Event(kind, error=24, text="Too many open files"))
        clock.now += 0.1
    lines = [line for line in streams.taken()[1] if "not shown" not in line]
    assert 3 <= len(lines) <= 4


def test_connections_are_never_held_back(streams: Streams) -> None:
    """A new connection has its line, however many there are."""
    printer = streams.printer(debug=True)
    with_clock(printer)
    for _ in range(100):
        printer(Event("new", client=CLIENT))
        printer(END)
    out, err = streams.taken()
    assert (len(out), len(err)) == (100, 300)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("several", [False, True], ids=["", "several"])
def test_newcomers_read_like_other_events(streams: Streams, as_json: bool, debug: bool, several: bool) -> None:
    """New connections take a short way of their own, to the same lines."""
    printer = streams.printer(json=as_json, debug=debug, several=several)
    records: list[Record] = [
        ("new", "", 0, number, f"192.0.2.1:{number}", "", "", 0, 0, 0.0, 0.0, 1e9, 0, "", "", target)
        for number, target in ((50000, 0), (50001, 1))
    ]
    assert all(map(is_new, records))
    targets = ["db:80", "web:80"]
    printer.print_new(records, targets)
    printer.many([decode(record, targets[record[-1]], "") for record in records])
    out, err = streams.taken()
    assert err == []
    assert len(out) == 4
    assert out[:2] == out[2:]
    assert as_json or several == out[0].startswith("New connection from 192.0.2.1:50000 -> db:80")


# --- streams that fail ---


def test_reader_gone(streams: Streams) -> None:
    """Row 101: lines are counted, the other stream goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    printer = Printer(debug=True, stdout=writer, stderr=streams.writing[1])
    for _ in range(3):
        printer(Event("new", client=CLIENT))
    assert printer.unwritten == 3
    printer(END)
    assert printer.unwritten == 3
    assert len(streams.taken()[1]) == 3
    os.close(writer)


def test_closed_stream(streams: Streams) -> None:
    """Row 101: every line of an event counts."""
    os.close(streams.writing[1])
    printer = streams.printer(debug=True)
    printer(END)
    assert printer.unwritten == 3
    printer(Event("new", client=CLIENT))
    assert printer.unwritten == 3
    assert streams.taken()[0] == [f"New connection from {CLIENT}"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk() -> None:
    """Row 101."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        printer = Printer(stdout=full, stderr=full)
        printer(Event("new", client=CLIENT))
        printer(FAILED)
        assert printer.unwritten == 2
    finally:
        os.close(full)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes of a fixed size")
def test_full_pipe_that_does_not_block(stack: contextlib.ExitStack) -> None:
    """Row 101: a stream that somebody made non-blocking is as slow as one that blocks; every line is there."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    printer = Printer(stdout=writer)

    def write() -> None:
        for _ in range(1000):
            printer(Event("new", client=CLIENT))
        os.close(writer)

    with in_background(write):
        read = b"".join(iter(lambda: os.read(reader, 100), b""))
    assert printer.unwritten == 0
    assert read.decode() == f"New connection from {CLIENT}\n" * 1000


# --- in a program ---


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (Event("listening", text="127.0.0.1:80"), logging.INFO),
        (Event("new", client=CLIENT), logging.DEBUG),
        (END, logging.DEBUG),
        (FAILED, logging.WARNING),
        (Event("warning", text="beware"), logging.WARNING),
        (Event("accept-error", error=24, text="Too many open files"), logging.WARNING),
        (Event("limit"), logging.WARNING),
        (Event("lost", text="5 log records"), logging.WARNING),
    ],
)
def test_default_sink(caplog: pytest.LogCaptureFixture, event: Event, level: int) -> None:
    """The logger `tcpproxy`: the command's sentence, and the fields of its JSON as attributes."""
    with caplog.at_level(logging.DEBUG, "tcpproxy"):
        LoggingSink()(event)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tcpproxy", level)
    extra = {name: value for name, value in vars(record).items() if name.startswith("tcpproxy_")}
    said = {"kind": event.kind, **fields(event)}
    assert extra == {f"tcpproxy_{name}": value for name, value in said.items()}
    if event.kind != "end":
        assert record.getMessage() == sentences(event, numbered=True, several=False)[0]


def test_default_sink_in_words(caplog: pytest.LogCaptureFixture) -> None:
    """The end of a connection is one sentence, with all that the command's three lines say."""
    with caplog.at_level(logging.DEBUG, "tcpproxy"):
        sink = LoggingSink()
        sink(Event("new", client=CLIENT, id=17))
        sink(Event("connected", client=CLIENT, upstream=UPSTREAM, connect_time=0.0021, id=17, outgoing="192.0.2.9:1"))
        sink(END._replace(id=17))
    assert [record.getMessage() for record in caplog.records] == [
        f"New connection from {CLIENT} #17",
        f"Connected {CLIENT} to {UPSTREAM} from 192.0.2.9:1 in 2.1 ms #17",
        f"Closed {CLIENT} after 1.235 s, connected in 2.1 ms to {UPSTREAM}, "
        "12 bytes to upstream, 345 to the client: client-eof #17",
    ]


@pytest.mark.parametrize("taken", ["client", "id", "kind", "error"])
def test_default_sink_beside_attributes_of_the_program(caplog: pytest.LogCaptureFixture, taken: str) -> None:
    """A program whose records have attributes of these names loses no line."""
    make = logging.getLogRecordFactory()

    def factory(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        setattr(record, taken, "the program's own")
        return record

    logging.setLogRecordFactory(factory)
    try:
        LoggingSink()(FAILED)
    finally:
        logging.setLogRecordFactory(make)
    assert len(caplog.records) == 1


def test_default_sink_keeps_lines_clean(caplog: pytest.LogCaptureFixture) -> None:
    """Row 102."""
    LoggingSink()(Event("warning", text="a\nb %s \x1b[2J"))
    assert caplog.records[0].getMessage().isprintable()
    assert caplog.records[0].tcpproxy_text.isprintable()  # type: ignore[attr-defined]


def test_default_sink_survives_its_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 101: a handler that raises is the program's trouble, not the proxy's."""

    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError(record.getMessage())

    logger = logging.getLogger("tcpproxy")
    handled: list[Callable[[logging.LogRecord], bool]] = [broken]
    monkeypatch.setattr(logger, "filters", handled)
    LoggingSink()(Event("warning", text="beware"))


def test_a_failure_without_an_address_names_the_target(streams: Streams) -> None:
    streams.printer()(Event("failed", "dns", client=CLIENT, text="no such host", target="db.example:5432"))
    expected = f"Error establishing upstream connection: no such host (db.example:5432 for client {CLIENT})"
    assert streams.taken() == ([], [expected])


def test_with_several_forwards_a_listener_names_its_target(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    event = Event("listening", text="127.0.0.1:80", target="db.example:5432")
    streams.printer()(event)
    streams.printer(several=True)(event)
    lines = ["Listening on 127.0.0.1:80", "Listening on 127.0.0.1:80 -> db.example:5432"]
    assert streams.taken()[0] == lines
    with caplog.at_level(logging.INFO, "tcpproxy"):
        LoggingSink()(event)
        LoggingSink(several=True)(event)
    assert [record.getMessage() for record in caplog.records] == lines


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Event("new", client=CLIENT), "New connection from {who}"),
        (Event("new", client=CLIENT, via="10.0.0.2:1"), f"New connection from {CLIENT} via 10.0.0.2:1 -> db:5432"),
        (END, f"Closed {{who}} after 1.235 s, connected in 2.1 ms to {UPSTREAM}: client-eof"),
        (FAILED, f"{LINES['failed'][2][0].removesuffix(f'{CLIENT})')}{{who}})"),
        (Event("failed", "denied", client=CLIENT), "Refused {who}: its address is not allowed"),
        (Event("failed", "limit", client=CLIENT), "Refused {who}: its source has as many connections as it may"),
        (Event("failed", "proxy-header", client=CLIENT, text="x"), "Refused {who}: no valid PROXY header: x"),
    ],
)
def test_with_several_forwards_a_connection_names_its_target(streams: Streams, event: Event, expected: str) -> None:
    """So does its line in the log of a program, and the short way of new connections."""
    event = event._replace(target="db:5432")
    streams.printer(several=True, debug=event.kind == "end")(event)
    out, err = streams.taken()
    assert (out + err)[-1] == expected.format(who=f"{CLIENT} -> db:5432")
    assert " -> db:5432" in sentence(event, several=True)
    assert " -> " not in sentence(event)
    streams.printer()(event)
    assert not [line for lines in streams.taken() for line in lines if " -> " in line]


def test_changes_of_a_target_that_alternates(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few a second, of each target; then how many were left out, and what is true at the end."""
    clock = Clock()
    monkeypatch.setattr(RateLimit.__init__, "__defaults__", (clock,))
    printer, other = streams.printer(), streams.printer(json=True)
    down, up = (Event(kind, target="db1:80", upstream="db2:80") for kind in ("upstream-down", "upstream-up"))  # type: ignore[arg-type]
    for _ in range(20):
        for each in (printer, other):
            each.many([down, up])
    printer(down._replace(target="db3:80"))
    assert len(streams.taken()[1]) == CHANGES + 1
    clock.now += 1
    assert printer.flush_suppressed() is other.flush_suppressed() is False
    out, err = streams.taken()
    left = 40 - CHANGES
    text = f"{left} more changes of upstream db1:80 were not shown; it answers now"
    assert err == [text]
    told = json.loads(out[0])
    assert {**told, "time": ""} == {
        **{"time": "", "level": "warning", "kind": "lost", "lost": left, "text": text, "target": "db1:80"}
    }
    printer.many([down, up, down, up, down])
    printer.flush_suppressed(final=True)
    assert streams.taken()[1][-1].endswith("changes of upstream db1:80 were not shown; it does not answer now")
