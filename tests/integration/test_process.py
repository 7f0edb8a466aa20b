"""The life of a process that relays: signals, its port, what it keeps."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import Command
from support.machine import needs_proc
from support.peers import Echo, Upstream, connect, free_port, reset
from support.streams import MIB, echoes, is_over, payload, read_all, send_and_shut
from support.waiting import TIMEOUT, at_best, bounds, eventually, in_background

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Start = Callable[..., Command]


def seconds_until_refused(address: tuple[str, int]) -> float:
    """The port should be a `free_port`: one that the kernel has chosen may be another test's at once."""
    start = time.monotonic()
    while True:
        try:
            socket.create_connection(address, TIMEOUT).close()
        except ConnectionRefusedError:
            return time.monotonic() - start
        except ConnectionResetError:  # it was in the queue of the listener when that was closed
            continue


@contextlib.contextmanager
def bulk(command: Command, upstream: Upstream) -> Iterator[None]:
    """Keeps a worker busy with as many bytes as it can move."""
    with connect(command.address) as client, upstream.accept() as server:

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client.sendall(bytes(1 << 18))

        with in_background(send), in_background(is_over, server):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)


# --- signals ---


@bounds(1, 0.05)
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_listening_within_50_ms(
    command: Start, upstream: Upstream, number: signal.Signals, busy: bool, bound: float
) -> None:
    """Rows 97, 99: also while the workers are busy. The best of several tries, because the machine may be busy, too."""

    def time_to_refuse() -> float:
        process = command(upstream.name, "--grace", "0", "-l", str(free_port()))
        with bulk(process, upstream) if busy else contextlib.nullcontext():
            address = process.address
            process.signal(number)
            took = seconds_until_refused(address)
        assert process.wait() == 0
        return took

    at_best(time_to_refuse, bound)


@pytest.mark.parametrize("number", SIGNALS)
def test_connections_go_on_after_the_first_signal(command: Start, echo: Echo, number: signal.Signals) -> None:
    """Row 97: the process ends with 0 when the last of them has ended, long before the grace is over."""
    process = command(echo.name, "--grace", "1h", "-l", str(free_port()))
    with connect(process.address) as client, connect(process.address) as other:
        assert echoes(client)
        assert echoes(other)
        process.signal(number)
        seconds_until_refused(process.address)
        assert echoes(client, payload(5 * MIB // 100))
        other.shutdown(socket.SHUT_WR)
        assert read_all(other) == b""
        assert process.process.poll() is None
        assert echoes(client)
        send_and_shut(client, b"the end")
        assert read_all(client) == b"the end"
    assert process.wait(5) == 0
    assert process.complaints == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_rest_is_reset_when_grace_is_over(command: Start, echo: Echo, number: signal.Signals) -> None:
    """Row 97."""
    process = command(echo.name, "--grace", "400ms", "-d")
    with connect(process.address) as client:
        assert echoes(client)
        start = time.monotonic()
        process.signal(number)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert 0.38 <= time.monotonic() - start < 5
    assert process.wait() == 0
    assert process.complaints[-1].endswith(": shutdown #1")


def test_without_connections_grace_is_not_waited_for(command: Start, echo: Echo) -> None:
    """Row 97."""
    process = command(echo.name, "--grace", "1h")
    with connect(process.address) as client:
        assert echoes(client)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    process.signal(signal.SIGTERM)
    assert process.wait(5) == 0


@bounds(1, 0.1)
@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_it_at_once(
    command: Start, upstream: Upstream, first: signal.Signals, second: signal.Signals, bound: float
) -> None:
    """Rows 98, 99: connections are reset within 100 ms, with a busy worker; exit code 0, no traceback."""

    def time_to_reset() -> float:
        process = command(upstream.name, "--grace", "1h", "--workers", "2", "-l", str(free_port()))
        with bulk(process, upstream), connect(process.address) as client, upstream.accept() as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            process.signal(first)
            seconds_until_refused(process.address)
            start = time.monotonic()
            process.signal(second)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            took = time.monotonic() - start
            with pytest.raises(ConnectionResetError):
                server.recv(1)
        assert process.wait(5) == 0
        assert process.complaints == []
        return took

    at_best(time_to_reset, bound)


def test_a_burst_of_signals(command: Start, echo: Echo) -> None:
    """Row 98: further signals do the same as the second."""
    process = command(echo.name, "--grace", "1h")
    with connect(process.address) as client:
        assert echoes(client)

        def told() -> bool:  # again and again, for the kernel makes one of signals that come too fast
            with contextlib.suppress(ProcessLookupError):
                process.signal(signal.SIGINT)
            return bool(select.select([client], [], [], 0)[0])

        eventually(told)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert process.wait(5) in (0, -signal.SIGINT)  # the last may come when Python has given its handlers back already
    assert process.complaints == []


# --- the same port again ---


def test_restart_at_once_on_the_same_port(command: Start, upstream: Upstream) -> None:
    """Row 105, as far as it goes: after a stop, with connections in TIME_WAIT, and after a kill amid connections."""
    port = free_port()
    process = command(upstream.name, "-l", str(port))
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        done = connect(process.address)
        with upstream.accept() as server:
            send_and_shut(server, b"bye")
            assert read_all(done) == b"bye"
            done.close()  # the proxy was told to end first: the TIME_WAIT is its
        with connect(process.address) as live, upstream.accept() as server:
            server.sendall(b"x")
            assert live.recv(1) == b"x"
            if end == signal.SIGTERM:
                live.shutdown(socket.SHUT_WR)
                server.shutdown(socket.SHUT_WR)
            process.signal(end)
            process.wait()
            process = command(upstream.name, "-l", str(port))
            assert process.address == ("127.0.0.1", port)


def test_a_successor_starts_while_the_predecessor_drains(command: Start, echo: Echo) -> None:
    """Row 105: old connections stay with the old process, new ones go to the new one, on the same port."""
    old = command(echo.name, "--grace", "1h", "-l", str(free_port()))
    with connect(old.address) as before:
        assert echoes(before)
        old.signal(signal.SIGTERM)
        seconds_until_refused(old.address)
        new = command(echo.name, "-l", str(old.address[1]))
        with connect(new.address) as after:
            assert echoes(after)
            assert echoes(before)
            eventually(lambda: len(new.stdout) == 2)
    assert old.wait(5) == 0


# --- what it keeps ---


def rss(process: Command) -> int:
    needs_proc()
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def mixed_batch(process: Command, upstream: Upstream) -> None:
    """100 connections at once: a third is reset, by either side; the others end in order, some without a byte."""
    clients = [connect(process.address) for _ in range(100)]
    for number, client in enumerate(clients):
        if number % 6 == 1:
            client.close()
        else:
            client.sendall(bytes([number]))
    for server in [upstream.accept() for _ in clients]:
        if head := server.recv(1):
            client = clients[head[0]]
            match head[0] % 6:
                case 0:
                    reset(client)
                case 3:
                    reset(server)
                case 4:
                    send_and_shut(server, payload(20_000))
        server.close()
    for client in clients:
        client.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [("-q",), ("-d",)], ids="".join)
def test_ten_thousand_mixed_connections(command: Start, upstream: Upstream, options: tuple[str, ...]) -> None:
    """Row 106, scaled to 10,000: descriptors as before, at most 1 MiB more memory."""
    needs_proc()
    process = command(upstream.name, "--zero-copy", "auto", *options)  # no pipes, which may stay for later
    handles = Path(f"/proc/{process.process.pid}/fd")

    def count() -> int:
        return len(list(handles.iterdir()))

    process.address  # noqa: B018  it listens
    baseline = count()
    for _ in range(20):
        mixed_batch(process, upstream)
    eventually(lambda: count() == baseline, 10, f"{count()} descriptors, {baseline} before")
    before = rss(process)
    for _ in range(100):
        mixed_batch(process, upstream)
    eventually(lambda: count() == baseline, 10, f"{count()} descriptors, {baseline} before")
    assert rss(process) - before <= MIB
    if (
        "-d" in options
    ):  # a beginning and an end of each; what a log thread that gets no processor has to leave out, it counts

        def told() -> int:
            dropped = [line.split()[0] for line in process.stderr if line.endswith("output is too slow")]
            shown = sum(line.startswith(("New ", "Closed ")) for line in [*process.stdout, *process.stderr])
            return shown + sum(map(int, dropped))

        eventually(lambda: told() == 24_000, 3 * TIMEOUT, "beginnings or ends are missing")


def test_a_plain_run_imports_nothing_that_it_does_not_need(command: Start) -> None:
    """What only some options and errors need takes milliseconds of every start."""
    process = command("127.0.0.1:9", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    process.address  # noqa: B018  it listens
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    imported = {line.rpartition("|")[2].strip() for line in process.stderr}
    assert "tcpproxy.command.cli" in imported
    heavy = {"asyncio", "email", "http.server", "ipaddress", "logging", "prometheus_client", "rich"}
    light = {"base64", "encodings.idna", "locale", "shutil", "textwrap"}
    names = "faults rules handles fixtures metrics network.networks command.manual"
    assert imported & (heavy | light | {f"tcpproxy.{name}" for name in names.split()}) == set()
