"""What the command says, and outputs that fail: bytes flow, whatever becomes of the lines."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Command
from support.machine import needs, needs_proc, resource
from support.peers import Echo, Upstream, connect, name_of, reset
from support.streams import echoes, is_over, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background

import tcpproxy
from tcpproxy.errors import describe
from tcpproxy.report.printer import Printer

Start = Callable[..., Command]


# --- outputs that fail ---


def listening_port(process: Command) -> int:
    """Asked of the kernel, where the process cannot say it."""
    needs_proc()

    def ports() -> list[int]:
        handles = Path(f"/proc/{process.process.pid}/fd")
        inodes = {os.readlink(handle)[8:-1] for handle in handles.iterdir() if handle.is_symlink()}
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes]

    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):  # a descriptor was closed meanwhile
            found[:] = ports()
        return bool(found)

    eventually(look, TIMEOUT, "it does not listen")
    return found[0]


def full_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Reading and writing end of a pipe that takes no more; the writing end blocks."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    return reader, writer


def broken_pipe(stack: contextlib.ExitStack) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    stack.callback(os.close, writer)
    return writer


def dev_full(stack: contextlib.ExitStack) -> int:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    return stack.enter_context(open("/dev/full", "wb", buffering=0)).fileno()


FAILING = {"dev-full": dev_full, "broken-pipe": broken_pipe, "full-pipe": lambda stack: full_pipe(stack)[1]}


def assert_relays_and_ends(process: Command) -> None:
    address = ("127.0.0.1", listening_port(process))
    with connect(address) as early:
        for _ in range(20):
            with connect(address) as client, in_background(send_and_shut, client, payload(100_000)):
                assert read_all(client) == payload(100_000)
        assert echoes(early)
        early.shutdown(socket.SHUT_WR)
        assert read_all(early) == b""
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize("which", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
@pytest.mark.parametrize("kind", FAILING)
def test_output_that_fails(
    stack: contextlib.ExitStack, command: Start, echo: Echo, kind: str, which: list[str]
) -> None:
    """Row 101: bytes flow and the exit is clean, whatever becomes of the lines."""
    process = command(echo.name, "-d", **{name: FAILING[kind](stack) for name in which})
    assert_relays_and_ends(process)
    if "stderr" not in which and kind != "full-pipe":
        assert "22 log lines could not be written" in process.stderr  # one listener, 21 connections


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_that_is_closed(command: Start, echo: Echo, closed: str) -> None:
    """Row 101: the numbers 0 to 2 are not given to sockets; else a log line would reach a peer."""
    needs("sh")
    process = command(echo.name, "-d", wrapper=("sh", "-c", f'exec "$@" {closed}', "sh"))
    assert_relays_and_ends(process)


def test_disk_that_is_full_for_a_while(command: Start, echo: Echo, tmp_path: Path) -> None:
    """Row 101: bytes flow; once there is room again lines are whole, and those that are not are counted."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = command(echo.name, "--workers", "1", stdout=file)
    eventually(lambda: b"\n" in log.read_bytes(), TIMEOUT)
    address = ("127.0.0.1", listening_port(process))
    names = []

    def relay(times: int) -> None:
        for _ in range(times):
            with connect(address) as client:
                names.append(name_of(client))
                assert echoes(client)

    # The limit of a file's size does to writes what a full disk does: the last one is cut, the next ones fail.
    pid, full = process.process.pid, log.stat().st_size + len(f"New connection from {address}") * 3 // 2
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
    relay(20)
    eventually(lambda: log.stat().st_size == full)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    relay(5)
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 0
    lines = log.read_text().splitlines()
    whole = [line for line in lines[1:] if line.removeprefix("New connection from ") in names]
    assert whole[-5:] == [f"New connection from {name}" for name in names[-5:]]
    assert len(lines) <= 1 + len(whole) + 1
    assert process.complaints == [f"{25 - len(whole)} log lines could not be written"]


def test_lines_that_nobody_reads_are_dropped_and_counted(
    stack: contextlib.ExitStack, command: Start, echo: Echo
) -> None:
    """Row 101: 5000 connections while stdout blocks; when it is read at last, lines and drops add up."""
    reader, writer = full_pipe(stack)
    process = command(echo.name, "--workers", "1", stdout=writer)
    address = ("127.0.0.1", listening_port(process))
    for _ in range(5000):
        reset(connect(address))
    with connect(address) as client:
        assert echoes(client)
        os.set_blocking(reader, False)
        said = bytearray()

        def dropped() -> int:
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(reader, 1 << 16))
            found = [
                re.fullmatch(r"(\d+) log records were dropped: output is too slow", line) for line in process.stderr
            ]
            return sum(int(match[1]) for match in found if match)

        eventually(lambda: dropped() + said.count(b"New connection from ") == 5001, 10, "they do not add up")
        assert dropped() > 0
        assert echoes(client)
        assert len(process.stderr) == 1


# --- what it says ---


def test_the_words_of_the_original(command: Start, upstream: Upstream) -> None:
    """Row 102, and the command's documentation: exactly these lines, each on its stream."""
    process = command(upstream.name, "-d")
    with connect(process.address) as client, upstream.accept() as server:
        name, outgoing = name_of(client), re.escape(name_of(server, peer=True))
        send_and_shut(client, b"hello")
        assert read_all(server) == b"hello"
        send_and_shut(server, b"goodbye")
        assert read_all(client) == b"goodbye"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout == [f"Listening on 127.0.0.1:{process.address[1]}", f"New connection from {name} #1"]
    assert process.stderr[:2] == [
        f"Transferred 5 bytes from proxy client {name} to upstream server #1",
        f"Transferred 7 bytes from upstream server to proxy client {name} #1",
    ]
    route = f"from {outgoing} to {re.escape(upstream.name)}"
    assert re.fullmatch(
        rf"Closed {re.escape(name)} after \d+\.\d{{3}} s, connected in \d+\.\d ms {route}: client-eof #1",
        process.stderr[2],
    )
    assert process.complaints == process.stderr[:3]


def test_words_without_debug(command: Start, echo: Echo) -> None:
    """Stdout as with -d, and nothing on stderr."""
    process = command(echo.name, "--workers", "1")  # lines of several workers may be a little out of order
    names = []
    for _ in range(3):
        with connect(process.address) as client:
            names.append(name_of(client))
            assert echoes(client)
    eventually(lambda: len(process.stdout) == 4)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout[1:] == [f"New connection from {name}" for name in names]
    assert process.complaints == []


def test_quiet(command: Start, echo: Echo) -> None:
    """With -q no line for a new connection; with -d besides, its end is still told."""
    process = command(echo.name, "-q", "-d")
    with connect(process.address) as client:
        assert echoes(client)
    eventually(lambda: len(process.stderr) == 3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout == [f"Listening on 127.0.0.1:{process.address[1]}"]


def test_words_with_ipv6(command: Start, echo: Echo) -> None:
    """IPv6 addresses are in brackets; with both families there is a line for each, with one port."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process = command(echo.name, "-b", "localhost")
    port = process.address[1]
    eventually(lambda: len(process.stdout) == 2)
    assert sorted(process.stdout) == [f"Listening on 127.0.0.1:{port}", f"Listening on [::1]:{port}"]
    with connect(("::1", port)) as client:
        assert echoes(client)
        eventually(lambda: len(process.stdout) == 3)
        assert process.stdout[2] == f"New connection from {name_of(client)}"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def be_refused(address: tuple[str, int], times: int) -> None:
    """Connects, and is turned away; perhaps before connect() has returned."""
    for _ in range(times):
        with contextlib.suppress(ConnectionResetError), connect(address) as client:
            assert is_over(client)


def test_words_about_a_refused_connection(command: Start, closed_port: int) -> None:
    """Rows 40, 102: one line on stderr, with what the system said."""
    process = command(f"127.0.0.1:{closed_port}")
    be_refused(process.address, 1)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    name = process.stdout[1].removeprefix("New connection from ")
    refused = errno.ECONNREFUSED
    text = f"Error establishing upstream connection: {describe(refused)} (os error {refused})"
    assert process.stderr == [f"{text} (127.0.0.1:{closed_port} for client {name})"]


def end_by(reason: str, process: Command, client: socket.socket, server: socket.socket) -> None:
    near, far = (client, server) if reason.startswith("client") else (server, client)
    if reason.endswith("-eof"):
        near.close()
        assert is_over(far)
    elif reason.endswith("-reset"):
        reset(near)
        assert is_over(far)
    elif reason == "half-close-timeout":
        client.shutdown(socket.SHUT_WR)
        assert is_over(client)
    elif reason == "shutdown":
        process.signal(signal.SIGTERM)
        assert is_over(client)
    else:
        assert is_over(client)
    far.close()


REASONS = ["client-eof", "upstream-eof", "client-reset", "upstream-reset", "half-close-timeout", "idle", "shutdown"]


@pytest.mark.parametrize("options", [(), ("-d",), ("-q",)], ids=["", "debug", "quiet"])
@pytest.mark.parametrize("reason", REASONS)
def test_json_lines_and_reasons(command: Start, upstream: Upstream, reason: str, options: tuple[str, ...]) -> None:
    """Row 102: stdout has an object a line, with the start and the end of a connection; stderr has nothing."""
    options += ("--half-close-timeout", "100ms" if reason == "half-close-timeout" else "60s", "--grace", "0")
    options += ("--idle-timeout", "100ms" if reason == "idle" else "off", "--workers", "1")
    before = time.time()
    process = command(upstream.name, "--log-format", "json", *options)
    listening = first_record(process)
    assert listening["target"] == upstream.name
    assert (listening["pid"], listening["version"]) == (process.process.pid, tcpproxy.__version__)
    host, _, port = listening["listener"].rpartition(":")
    with connect((host, int(port))) as client, upstream.accept() as server:
        name, outgoing = name_of(client), name_of(server, peer=True)
        client.sendall(b"12345")
        assert read_exactly(server, 5) == b"12345"
        end_by(reason, process, client, server)
    eventually(lambda: len(process.stdout) >= (2 if "-q" in options else 4))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
    records = [record for record in map(json.loads, process.stdout) if record["kind"] not in ("stopping", "summary")]
    starts = [] if "-q" in options else ["new", "connected"]
    assert [record["kind"] for record in records] == ["listening", *starts, "end"]
    assert {(record["id"], record["client"], record["target"]) for record in records[1:]} == {(1, name, upstream.name)}
    end = records[-1]
    assert end["reason"] == reason
    assert (end["upstream"], end["outgoing"]) == (upstream.name, outgoing)
    assert (end["to_upstream"], end["to_client"]) == (5, 0)
    assert 0 < end["connect_time"] <= end["duration"] < 5
    times = [datetime.datetime.fromisoformat(record["time"]).timestamp() for record in records]
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-1] <= time.time() + 0.001


def first_record(process: Command) -> dict[str, Any]:
    eventually(lambda: process.stdout or process.process.poll() is not None, TIMEOUT)
    return json.loads(process.stdout[0])  # type: ignore[no-any-return]


def json_port(process: Command) -> int:
    return int(first_record(process)["listener"].rpartition(":")[2])


def test_json_of_a_refused_connection(command: Start, closed_port: int) -> None:
    """Row 40."""
    process = command(f"127.0.0.1:{closed_port}", "--log-format", "json")
    be_refused(("127.0.0.1", json_port(process)), 1)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
    (failed,) = (record for record in map(json.loads, process.stdout) if record["kind"] == "failed")
    assert (failed["reason"], failed["error"]) == ("connect-refused", "ECONNREFUSED")
    assert failed["upstream"] == failed["target"] == f"127.0.0.1:{closed_port}"
    assert (failed["to_upstream"], failed["connect_time"], failed["outgoing"]) == (0, 0, "")


def test_json_of_a_start_that_fails(command: Start, echo: Echo) -> None:
    """The error that ends the command is a record like the others, in the same stream."""
    process = command("--log-format", "json", "-l", str(echo.port), "127.0.0.1:1")
    assert process.wait() == 1
    assert process.stderr == []
    (fatal,) = map(json.loads, process.stdout)
    assert (fatal["kind"], fatal["level"], fatal["exit_code"]) == ("fatal", "error", 1)
    assert f"127.0.0.1:{echo.port}" in fatal["text"]


def test_json_of_a_flood(command: Start, closed_port: int) -> None:
    """Row 103: what is held back is counted in a field."""
    process = command(f"127.0.0.1:{closed_port}", "-q", "--log-format", "json")
    be_refused(("127.0.0.1", json_port(process)), 100)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    records = list(map(json.loads, process.stdout))
    shown = [record for record in records if record["kind"] == "failed"]
    counts = [record["lost"] for record in records if record["kind"] == "lost"]
    assert len(shown) + sum(counts) == 100
    assert counts


EVIL = "a\x9b2Jb\x9dc\u2028d\u202ee.invalid"
"""CSI and OSC of the C1 set, which terminals obey, a line separator and a turn of the direction of writing."""


@pytest.mark.parametrize("kind", ["warning", "failed", "listening", "new", "end", "lost"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_in_an_event(form: str, kind: str) -> None:
    """Row 102: whatever an event carries, it makes no further line, and has nothing that a terminal obeys."""
    reader, writer = os.pipe()
    evil = f"{EVIL}\r\nNew connection from 192.0.2.1:1\x1b[2J\x00\x7f\udc80"
    printer = Printer(debug=True, json=form == "json", stdout=writer, stderr=writer)
    printer(tcpproxy.Event(kind, "client-eof", 5, evil, evil, text=evil))
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode()
    assert printer.unwritten == 0
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == (3 if kind == "end" and form == "text" else 1)
    assert all(line.isprintable() for line in lines), repr(text)
    if form == "json":
        said = json.loads(text)
        assert evil in said.values()


@pytest.mark.parametrize(
    "remote", [f"{EVIL}:80", f"{EVIL}\r\n:80", "\x1b[2J\n:80", "127.0.0.1:80\nx", f"127.0.0.1:{EVIL}"]
)
@pytest.mark.parametrize("bind", ["127.0.0.1", EVIL])
def test_control_characters_in_what_is_refused(command: Start, remote: str, bind: str) -> None:
    """Rows 95, 102: one line, exit code 2."""
    process = command(remote, "-b", bind, env={**os.environ, "PYTHONUTF8": "1"})
    assert process.wait() == 2
    assert process.stdout == []
    (line,) = process.stderr
    assert line.isprintable(), repr(line)


# --- floods ---

REFUSED = "Error establishing upstream connection: "
MORE = re.compile(r"(\d+) more lines of the kind failed \(connect-refused\) were not shown")


def refused_and_counted(process: Command) -> tuple[int, int]:
    counts = [int(match[1]) for line in process.stderr if (match := MORE.fullmatch(line))]
    return sum(line.startswith(REFUSED) for line in process.stderr), sum(counts)


def test_a_flood_of_refused_connections(command: Start, closed_port: int) -> None:
    """Row 103: ten lines a second at most; the rest is counted, and said without another connection."""
    process = command(f"127.0.0.1:{closed_port}")
    start = time.monotonic()
    be_refused(process.address, 500)
    seconds = time.monotonic() - start
    eventually(lambda: sum(refused_and_counted(process)) == 500, 10, "lines and counts do not add up")
    shown, counted = refused_and_counted(process)
    assert 10 <= shown <= 10 * (seconds + 2)
    assert len(process.stderr) - shown <= seconds + 3
    assert counted > 0


def test_a_flood_that_ends_with_the_process(command: Start, closed_port: int) -> None:
    """Row 103: what was held back in the last second is counted all the same."""
    process = command(f"127.0.0.1:{closed_port}")
    be_refused(process.address, 100)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert sum(refused_and_counted(process)) == 100
