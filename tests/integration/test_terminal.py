"""What a person sees at a terminal: the first line, the last one, and the live connections on request."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from support.command import SUMMARY, Command
from support.peers import Echo, Upstream, connect, name_of
from support.streams import echoes, fill, read_exactly
from support.waiting import TIMEOUT, eventually

if sys.platform == "win32":
    pytest.skip("no pseudo-terminals and no SIGUSR1 here", allow_module_level=True)

import fcntl
import struct
import termios

Start = Callable[..., Command]
ROW = re.compile(r"#(\d+) ")


class Terminal:
    """A pseudo-terminal, and the lines that appear on it."""

    def __init__(self, columns: int = 0) -> None:
        self._leader, self.end = os.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.text = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
            while data := os.read(self._leader, 4096):
                self.text += data

    @property
    def lines(self) -> list[str]:
        return self.text.decode().replace("\r\n", "\n").split("\n")[:-1]

    def close(self) -> None:
        os.close(self.end)
        self._reader.join(TIMEOUT)
        os.close(self._leader)


@pytest.fixture
def terminal(stack: contextlib.ExitStack) -> Iterator[Terminal]:
    return stack.enter_context(contextlib.closing(Terminal()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_and_last_line(command: Start, echo: Echo, terminal: Terminal, number: signal.Signals) -> None:
    """Where it forwards to and how to stop it; at the end what it has done."""
    process = command(f"localhost:{echo.port}", stderr=terminal.end)
    with connect(process.address) as client:
        assert echoes(client, b"hello")
    eventually(lambda: terminal.lines)
    assert re.fullmatch(
        rf"Forwarding to localhost:{echo.port} \((127.0.0.1|::1)( and \d more)?\); Ctrl-C stops", terminal.lines[0]
    )
    process.signal(number)
    assert process.wait() == 0
    eventually(lambda: len(terminal.lines) > 1)
    assert SUMMARY.fullmatch(terminal.lines[-1])
    assert ": 1 connection; 5 B to upstream, 5 B to clients" in terminal.lines[-1]
    assert [line.split(" from ")[0] for line in process.stdout[1:]] == ["New connection"]


def test_first_line_for_an_address(command: Start, echo: Echo, terminal: Terminal) -> None:
    command(echo.name, stderr=terminal.end)
    eventually(lambda: terminal.lines)
    assert terminal.lines == [f"Forwarding to {echo.name}; Ctrl-C stops"]


@pytest.mark.parametrize("options", [("-q",), ("--log-format", "json")], ids=["quiet", "json"])
def test_a_terminal_that_gets_neither(command: Start, echo: Echo, terminal: Terminal, options: tuple[str, ...]) -> None:
    process = command(echo.name, *options, stderr=terminal.end)
    eventually(lambda: process.stdout, TIMEOUT)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert terminal.lines == []


@pytest.mark.parametrize("options", [(), ("-q",), ("-d",)], ids=["", "quiet", "debug"])
def test_without_a_terminal(command: Start, echo: Echo, options: tuple[str, ...]) -> None:
    """A pipe gets the last line with -d, and the first one never."""
    process = command(echo.name, *options)
    assert process.address
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
    assert len(process.stderr) == (1 if "-d" in options else 0)


def test_json_sums_up(command: Start, echo: Echo) -> None:
    process = command(echo.name, "--log-format", "json")
    eventually(lambda: process.stdout, TIMEOUT)
    host, _, port = json.loads(process.stdout[0])["listener"].rpartition(":")
    with connect((host, int(port))) as client:
        assert echoes(client, b"hello")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    last = json.loads(process.stdout[-1])
    assert last["kind"] == "summary"
    assert (last["accepted"], last["active"], last["failed"], last["refused"]) == (1, 0, 0, 0)
    assert (last["to_upstream"], last["to_client"]) == (5, 5)
    assert SUMMARY.fullmatch(last["text"])


def test_no_sum_of_a_start_that_fails(command: Start, echo: Echo, terminal: Terminal) -> None:
    process = command("-l", str(echo.port), "127.0.0.1:1", stderr=terminal.end)
    assert process.wait() == 1
    eventually(lambda: terminal.lines)
    assert len(terminal.lines) == 1
    assert terminal.lines[0].startswith("tcpproxy: ")


# --- the live connections ---

SIGNALS = [getattr(signal, name) for name in ("SIGUSR1", "SIGINFO") if hasattr(signal, name)]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_table_on_request(command: Start, upstream: Upstream, workers: str, number: signal.Signals) -> None:
    """One line for each live connection, with the slow side; the relay goes on, and a table can be asked for again."""
    process = command(upstream.name, "--workers", workers)
    with (
        connect(process.address) as first,
        upstream.accept() as first_server,
        connect(process.address) as second,
        upstream.accept() as second_server,
    ):
        first.sendall(b"hello")
        assert read_exactly(first_server, 5) == b"hello"
        fill(second_server, 0.2)
        process.signal(number)
        eventually(lambda: len(process.stderr) == 4)
        assert re.search(r": 2 connections, 2 open; \S+ \S+ to upstream, ", process.stderr[0])
        rows = {ROW.search(line)[1]: line for line in process.stderr[2:]}  # type: ignore[index]
        assert all(text in rows["1"] for text in (name_of(first), upstream.name, "relaying", " 5 B "))
        assert rows["1"].endswith("0 B/s")
        assert re.search(r" client \(\S+ \S+\)$", rows["2"]), rows["2"]
        second.close()
        second_server.close()
        first.sendall(b"hello")
        assert read_exactly(first_server, 5) == b"hello"
        eventually(lambda: asked_again(process, number), TIMEOUT)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def asked_again(process: Command, number: signal.Signals) -> bool:
    """Whether a table without the second connection has come: the signal may come while a table is made."""
    process.signal(number)
    return len(process.stderr) > 6 and not any(line.lstrip().startswith("#2 ") for line in process.stderr[-2:])


def test_table_in_json(command: Start, upstream: Upstream) -> None:
    """A record each, with the same names as that of an end."""
    process = command(upstream.name, "--log-format", "json", "-q")
    eventually(lambda: process.stdout, TIMEOUT)
    host, _, port = json.loads(process.stdout[0])["listener"].rpartition(":")
    with connect((host, int(port))) as client, upstream.accept() as server:
        client.sendall(b"hello")
        assert read_exactly(server, 5) == b"hello"
        process.signal(signal.SIGUSR1)
        eventually(lambda: len(process.stdout) == 3)
        summary, connection = map(json.loads, process.stdout[1:])
        assert (summary["kind"], summary["accepted"], summary["active"]) == ("summary", 1, 1)
        assert (connection["kind"], connection["id"], connection["state"]) == ("connection", 1, "relaying")
        assert (connection["client"], connection["outgoing"]) == (name_of(client), name_of(server, peer=True))
        assert (connection["to_upstream"], connection["to_client"]) == (5, 0)
        assert 0 < connection["connect_time"] <= connection["age"]
    assert process.complaints == []


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_table_fits_the_terminal(command: Start, echo: Echo, stack: contextlib.ExitStack, columns: int) -> None:
    terminal = stack.enter_context(contextlib.closing(Terminal(columns)))
    process = command(echo.name, stderr=terminal.end)
    with connect(process.address) as client:
        assert echoes(client)
        process.signal(signal.SIGUSR1)
        eventually(lambda: len(terminal.lines) >= 4)
    assert ("idle" in terminal.lines[2]) == (columns >= 120)
    assert columns < 80 or max(map(len, terminal.lines[2:])) <= columns


def test_table_of_no_connection(command: Start, echo: Echo) -> None:
    process = command(echo.name)
    assert process.address
    process.signal(signal.SIGUSR1)
    eventually(lambda: process.stderr)
    assert re.search(r": 0 connections; 0 B to upstream, 0 B to clients$", process.stderr[0])


def test_table_that_nobody_reads(command: Start, echo: Echo, stack: contextlib.ExitStack) -> None:
    """Row 101: an output that blocks delays neither the bytes nor Ctrl-C."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    process = command(echo.name, stderr=writer)
    with connect(process.address) as client:
        for _ in range(3):
            process.signal(signal.SIGUSR1)
            assert echoes(client)
    process.signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0


def test_a_request_that_is_ignored(command: Start, echo: Echo) -> None:
    """What was ignored at the start stays so."""
    wrapper = (
        sys.executable,
        "-c",
        "import os, signal, sys; signal.signal(signal.SIGUSR1, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])",
    )
    process = command(echo.name, wrapper=wrapper)
    with connect(process.address) as client:
        process.signal(signal.SIGUSR1)
        assert echoes(client)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
