"""-x and -A: every byte that passes is shown, or counted in its place; and no byte waits for the output."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from networks import Closed
from support.command import Command
from support.machine import needs_proc, resident
from support.peers import Echo, Upstream, connect, reset
from support.streams import MIB, echoes, is_over, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, at_best, eventually, in_background

Start = Callable[..., Command]

HEADER = re.compile(r"([><]) \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z #(\d+) length=(\d+) from=(\d+) to=(\d+)")
GAP = re.compile(r"([><]) #(\d+) ([\d,]+) bytes not shown \(output is slow\)")
MORE = re.compile(r"… ([\d,]+) more bytes")
LOST = re.compile(r"= the ends of ([\d,]+) connections and ([\d,]+) bytes not shown \(output is slow\)")

Stream = tuple[int, str]
"""Number of a connection and sign of a direction."""


def number(text: str) -> int:
    return int(text.replace(",", ""))


class Shown:
    """What the lines of a dump say, checked: reads follow each other without a hole that is not told."""

    def __init__(self, lines: list[str]) -> None:
        self.bytes: dict[Stream, bytearray] = defaultdict(bytearray)
        self.reached: dict[Stream, int] = defaultdict(int)
        self.gaps: dict[Stream, int] = defaultdict(int)
        self.lost = self.lost_ends = 0
        self.ended: list[int] = []
        self.others: list[str] = []
        stream: Stream = (0, "")
        for line in lines:
            if match := HEADER.fullmatch(line):
                stream = (int(match[2]), match[1])
                size, start, end = map(int, match.group(3, 4, 5))
                assert start == self.reached[stream], f"{line} comes behind {self.reached[stream]} bytes"
                assert end == start + size - 1
                self.reached[stream] += size
            elif re.match(r"[0-9a-f]{8}  ", line):
                self.bytes[stream] += bytes.fromhex(line[10:58])
            elif match := GAP.fullmatch(line):
                stream = (int(match[2]), match[1])
                self.gaps[stream] += number(match[3])
                self.reached[stream] += number(match[3])
            elif match := LOST.fullmatch(line):
                self.lost_ends += number(match[1])
                self.lost += number(match[2])
            elif match := re.match(r"= #(\d+) over: ", line):
                self.ended.append(int(match[1]))
                self.others.append(line)
            elif not MORE.fullmatch(line):
                self.others.append(line)


@pytest.fixture(params=["1", "2"], ids=["1worker", "2workers"])
def workers(request: pytest.FixtureRequest) -> str:
    return f"--workers={request.param}"


def over(process: Command, count: int = 1) -> list[str]:
    """Its lines, once so many connections are over."""
    eventually(lambda: sum(line.startswith("= ") for line in process.stdout) >= count, TIMEOUT, "no end is shown")
    return process.stdout.copy()


# --- what is shown ---


@pytest.mark.parametrize("zero_copy", ["auto", "off", "always"])
def test_every_byte(command: Start, echo: Echo, stack: contextlib.ExitStack, workers: str, zero_copy: str) -> None:
    """Of each connection and direction, also of such that would move inside the kernel; in the order of the stream."""
    process = command("-x", "--dump-limit=off", workers, f"--zero-copy={zero_copy}", echo.name)
    sent = [payload(size, size) for size in (1, 15, 16, 17, 100_000, 300_000)]

    def exchange(data: bytes) -> None:
        with connect(process.address) as client, in_background(send_and_shut, client, data):
            assert read_all(client) == data

    for data in sent:
        stack.enter_context(in_background(exchange, data))
    shown = Shown(over(process, len(sent)))
    if not any(shown.gaps.values()):  # a machine so busy that the log thread is late
        ids = range(1, len(sent) + 1)
        for sign in "><":
            assert sorted(bytes(shown.bytes[id, sign]) for id in ids) == sorted(sent)
    assert sorted(shown.ended) == sorted(range(1, len(sent) + 1))
    assert process.complaints == []


def test_lines_in_order(command: Start, upstream: Upstream, workers: str) -> None:
    """Both directions of a connection, from its start to its end."""
    process = command("-x", workers, upstream.name)
    with connect(process.address) as client, upstream.accept() as server:
        name = "{}:{}".format(*client.getsockname())
        client.sendall(b"hello")
        assert read_exactly(server, 5) == b"hello"
        server.sendall(b"\0\x01\x02world")
        read_exactly(client, 8)
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == b""
        server.sendall(b"bye")
        server.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"bye"
    lines = [re.sub(r"T[\d:.]+Z", "T", re.sub(r"\d{4}-\d\d-\d\d", "D", line)) for line in over(process)]
    assert lines[1:] == [
        f"New connection from {name} #1",
        "> DT #1 length=5 from=0 to=4",
        "00000000  68 65 6c 6c 6f                                    |hello|",
        "< DT #1 length=8 from=0 to=7",
        "00000000  00 01 02 77 6f 72 6c 64                           |...world|",
        "> #1 end of stream after 5 bytes",
        "< DT #1 length=3 from=8 to=10",
        "00000008  62 79 65                                          |bye|",
        "< #1 end of stream after 11 bytes",
        "= #1 over: client-eof",
    ]
    assert process.complaints == []


def test_as_text(command: Start, echo: Echo) -> None:
    """What would drive a terminal is escaped; -q leaves out the line for the connection, and no more."""
    process = command("-A", "-q", "--dump-limit=24", echo.name)
    with connect(process.address) as client:
        assert echoes(client, "ring \x07, ü, \x1b[2J\r\nand much more".encode())
    lines = over(process)
    assert lines[2:5] == ["  ring \\x07, ü, \\x1b[2J\\r", "  and mu", "… 7 more bytes"]
    assert not any(line.startswith("New connection") for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("client_resets", [False, True])
def test_a_reset(command: Start, upstream: Upstream, client_resets: bool) -> None:
    process = command("-x", upstream.name)
    with connect(process.address) as client, upstream.accept() as server:
        client.sendall(b"hello")
        read_exactly(server, 5)
        reset(client if client_resets else server)
        assert is_over(server if client_resets else client)
    lines = over(process)
    assert f"{'>' if client_resets else '<'} #1 reset after {5 if client_resets else 0} bytes" in lines
    assert lines[-1] == f"= #1 over: {'client' if client_resets else 'upstream'}-reset"


def test_a_connection_that_fails(command: Start, closed: Closed) -> None:
    process = command("-x", closed.name)
    with contextlib.suppress(ConnectionResetError), connect(process.address) as client:  # it may be reset in connect()
        assert is_over(client)
    assert over(process)[-1] == "= #1 over: connect-refused"


def test_the_end_comes_last(command: Start, echo: Echo, workers: str) -> None:
    """Its lines with -d, on another stream, come behind all that passed."""
    reader, writer = os.pipe()
    with os.fdopen(reader, encoding="utf-8") as output, os.fdopen(writer, "wb"):
        process = command("-x", "-d", workers, echo.name, stdout=writer, stderr=writer)
        address = output.readline().removeprefix("Listening on ").strip().rsplit(":", 1)
        for turn in range(1, 51):
            with connect((address[0], int(address[1]))) as client:
                assert echoes(client, payload(100))
            lines = [output.readline()]
            while not lines[-1].startswith("Closed "):
                lines.append(output.readline())
            assert lines[0].startswith("New connection from ")
            assert lines[-4] == f"< #{turn} end of stream after 100 bytes\n", lines
            assert sum(bool(HEADER.match(line)) for line in lines[:-4]) == 2
            assert not any(line.startswith("= ") for line in lines)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_json(command: Start, upstream: Upstream, workers: str) -> None:
    """Records with base64 and offsets; reads, ends of streams and resets."""
    process = command("-x", "--log-format=json", "--dump-limit=off", workers, upstream.name)
    eventually(lambda: process.stdout)
    port = int(re.findall(r":(\d+)\"", process.stdout[0])[0])
    data = payload(200_000)
    with connect(("127.0.0.1", port)) as client, upstream.accept() as server:
        with in_background(send_and_shut, client, data):
            assert read_all(server) == data
        server.sendall(b"bye")
        read_exactly(client, 3)
        reset(server)
        assert is_over(client)
    eventually(lambda: any('"reset"' in line for line in process.stdout))
    records = [json.loads(line) for line in process.stdout]
    got: dict[str, bytes] = {"to_upstream": b"", "to_client": b""}
    for record in records:
        if record["kind"] == "data":
            assert record["offset"] == len(got[record["direction"]])
            assert record["id"] == 1
            part = base64.b64decode(record["data"], validate=True)
            assert len(part) == record["size"]
            got[record["direction"]] += part
    assert got == {"to_upstream": data, "to_client": b"bye"}
    (end,) = [record for record in records if record["kind"] == "end-of-stream"]
    assert (end["direction"], end["offset"]) == ("to_upstream", len(data))
    assert ("to_client", 3) in {(r["direction"], r["offset"]) for r in records if r["kind"] == "reset"}
    assert process.complaints == []


def test_json_in_order(command: Start, echo: Echo, workers: str) -> None:
    """Records of a connection: its start, what passed, its end."""
    process = command("-x", "--log-format=json", workers, echo.name)
    eventually(lambda: process.stdout)
    port = int(re.findall(r":(\d+)\"", process.stdout[0])[0])
    count = 30
    for _ in range(count):
        with connect(("127.0.0.1", port)) as client:
            assert echoes(client, b"hello")
    eventually(lambda: sum('"end"' in line for line in process.stdout) == count)
    kinds: dict[int, list[str]] = {}
    for record in map(json.loads, process.stdout[1:]):
        kinds.setdefault(record["id"], []).append(record["kind"])
    order = ["new", "connected", "data", "data", "end-of-stream", "end-of-stream", "end"]
    assert kinds == dict.fromkeys(range(1, count + 1), order)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
@pytest.mark.parametrize("mode", ["auto", "never"])
def test_color_on_a_terminal(command: Start, echo: Echo, stack: contextlib.ExitStack, mode: str) -> None:
    terminal, other = os.openpty()
    stack.callback(os.close, terminal)
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
    command("-x", f"--color={mode}", echo.name, stdout=other, env=environment)
    os.close(other)
    lines = Lines(terminal)
    with connect(address_in(next(lines))) as client:
        assert echoes(client)
    first = next(line for line in lines if " length=" in line)
    assert first.startswith("\x1b[36m> " if mode == "auto" else "> ")


@pytest.mark.parametrize("sandbox", ["off", "require"])
def test_in_the_sandbox(command: Start, echo: Echo, sandbox: str) -> None:
    process = command("-x", f"--sandbox={sandbox}", echo.name)
    eventually(lambda: process.stdout or process.process.poll() is not None)
    if not process.stdout:
        pytest.skip(f"no sandbox here: {process.stderr}")
    with connect(process.address) as client:
        assert echoes(client)
    assert Shown(over(process)).bytes[1, "<"] == b"still there"


# --- output that is slow ---


class Lines(Iterator[str]):
    """Lines of a descriptor, which nobody reads before they are asked for."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(os.dup(descriptor), "r", encoding="utf-8", newline="\n")

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            self._file.close()
            raise StopIteration
        return line.rstrip("\r\n")


def address_in(line: str) -> tuple[str, int]:
    host, _, port = line.removeprefix("Listening on ").rpartition(":")
    return host, int(port)


def stopped_pipe(command: Start, stack: contextlib.ExitStack, *args: str) -> tuple[Command, Lines]:
    """The command, and its stdout, which is read only by who asks for its lines: as a `less` that was stopped."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    process = command(*args, stdout=writer)
    os.close(writer)
    return process, Lines(reader)


def rss(process: Command) -> int:
    needs_proc()
    return resident(process.process.pid)


def both_ways(address: tuple[str, int], upstream: Upstream, size: int) -> None:
    """So many zeros from the client, and as many back."""
    with connect(address) as client, upstream.accept() as server:
        for source, sink in ((client, server), (server, client)):
            with in_background(send_and_shut, source, bytes(size)):
                assert sum(len(part) for part in iter(lambda s=sink: s.recv(MIB), b"")) == size


@pytest.mark.parametrize("mode", ["-x", "-A"])
def test_output_that_stands_still(
    command: Start, upstream: Upstream, stack: contextlib.ExitStack, workers: str, mode: str
) -> None:
    """100 MiB pass, though nobody reads; later each byte has been shown, or is counted in its place."""
    process, lines = stopped_pipe(command, stack, mode, "--dump-limit=off", workers, upstream.name)
    address = address_in(next(lines))
    before = rss(process)
    both_ways(address, upstream, 50 * MIB)
    assert rss(process) - before < 20 * MIB, "the rings, and what the log thread has taken"
    seen: list[str] = []
    for line in lines:
        seen.append(line)
        if line.startswith("= #1 over"):
            break
    shown = Shown(seen)
    for sign in "><":
        assert shown.reached[1, sign] == 50 * MIB
        assert f"{sign} #1 end of stream after {50 * MIB:,} bytes" in shown.others
    assert sum(shown.gaps.values()) > 64 * MIB
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []


@pytest.mark.timed
def test_output_that_stands_still_costs_no_throughput(
    command: Start, upstream: Upstream, stack: contextlib.ExitStack
) -> None:
    """About as fast as with an output that is read and thrown away."""
    quick = command("-x", upstream.name)
    _, lines = stopped_pipe(command, stack, "-x", upstream.name)
    address = address_in(next(lines))

    def ratio() -> float:
        start = time.monotonic()
        both_ways(quick.address, upstream, 50 * MIB)
        middle = time.monotonic()
        both_ways(address, upstream, 50 * MIB)
        return (time.monotonic() - middle) / (middle - start)

    at_best(ratio, 1.5, tries=2)


def test_a_gap_in_json(command: Start, upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """Told with its place and size, also if nothing passes any more; reads that are cut tell their whole size."""
    process, lines = stopped_pipe(command, stack, "-A", "--log-format=json", upstream.name)
    port = int(re.findall(r":(\d+)\"", next(lines))[0])
    reached = {"to_upstream": 0, "to_client": 0}
    gaps = 0
    with connect(("127.0.0.1", port)) as client, upstream.accept() as server:
        with in_background(client.sendall, bytes(120 * MIB)):
            read_exactly(server, 120 * MIB)
        server.sendall(b"bye")
        read_exactly(client, 3)
        for line in lines:
            record = json.loads(line)
            if record["kind"] in ("data", "gap"):
                assert record["offset"] == reached[record["direction"]]
                reached[record["direction"]] += record["size"]
                gaps += record["size"] * (record["kind"] == "gap")
                assert len(base64.b64decode(record.get("data", ""))) <= 4096
            if reached == {"to_upstream": 120 * MIB, "to_client": 3}:
                break
    assert gaps > MIB
    assert process.complaints == []


def test_many_connections_while_output_stands_still(
    command: Start, echo: Echo, stack: contextlib.ExitStack, workers: str
) -> None:
    """Memory is bounded: of more than a thousand ends the others are told as a sum, and none twice."""
    _, lines = stopped_pipe(command, stack, "-x", "-q", "--dump-limit=off", workers, echo.name)
    address = address_in(next(lines))
    with connect(address) as client:
        for _ in range(20):
            assert echoes(client, payload(MIB))
    for _ in range(1500):
        with connect(address) as client:
            assert echoes(client, b"hello")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
    seen: list[str] = []
    for line in lines:
        seen.append(line)
        if line.startswith("= the ends of"):
            break
    shown = Shown(seen)
    assert len(set(shown.ended)) == len(shown.ended)
    assert 500 <= shown.lost_ends <= 501
    assert len(shown.ended) + shown.lost_ends in (1500, 1501)  # the last one may be late
    told = sum(shown.reached.values()) + shown.lost
    assert told in (40 * MIB + 10 * 1500, 40 * MIB + 10 * 1500 - 10, 40 * MIB + 10 * 1500 - 5)
    with connect(address) as client:
        assert echoes(client)
    assert next(line for line in lines if line.startswith("> ") and "#1502" in line).endswith("length=11 from=0 to=10")


def test_stop_while_output_stands_still(command: Start, upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """It ends all the same, and says how much is not shown."""
    process, lines = stopped_pipe(command, stack, "-x", upstream.name)
    both_ways(address_in(next(lines)), upstream, 50 * MIB)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    (line,) = process.complaints
    match = re.fullmatch(r"([\d,]+) bytes that passed are not shown: output is too slow", line)
    assert match
    shown = Shown(list(lines))
    assert 0 <= sum(shown.reached.values()) + number(match[1]) - 100 * MIB <= 61440  # the last read is shown in part


def test_reader_that_went_away(command: Start, echo: Echo, stack: contextlib.ExitStack) -> None:
    """As a `head`: bytes flow on."""
    reader, writer = os.pipe()
    process = command("-x", "-q", echo.name, stdout=writer)
    os.close(writer)
    address = address_in(next(Lines(reader)))
    os.close(reader)
    with connect(address) as client:
        for _ in range(50):
            assert echoes(client, payload(1000))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    unwritten, unshown = process.complaints
    assert re.fullmatch(r"[\d,]+ log lines could not be written", unwritten)
    assert unshown == "100,000 bytes that passed are not shown: Broken pipe"


def test_reader_of_records_that_went_away(command: Start, echo: Echo) -> None:
    """What is lost is said on stderr: nobody reads it where the records were to be."""
    reader, writer = os.pipe()
    process = command("-x", "--log-format", "json", echo.name, stdout=writer)
    os.close(writer)
    listening = json.loads(next(Lines(reader)))["listener"]
    os.close(reader)
    with connect(("127.0.0.1", int(listening.rpartition(":")[2]))) as client:
        assert echoes(client, payload(1000))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "2,000 bytes that passed are not shown: Broken pipe" in process.stderr


def test_reader_that_is_slow_and_does_not_block(command: Start, echo: Echo, stack: contextlib.ExitStack) -> None:
    """As a terminal that another program has made non-blocking: all is shown."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = command("-x", "-q", "--dump-limit", "off", echo.name, stdout=writer)
    os.close(writer)
    lines = Lines(reader)
    address = address_in(next(lines))
    with connect(address) as client:
        assert echoes(client, payload(200_000))
    seen = []
    for line in lines:
        seen.append(line)
        if line.startswith("= #1 over"):
            break
    os.close(reader)
    shown = Shown(seen)
    assert (shown.reached[1, ">"], shown.reached[1, "<"], sum(shown.gaps.values())) == (200_000, 200_000, 0)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
