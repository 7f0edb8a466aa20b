"""A proxy whose upstream is itself: refused at start. Two that forward to each other: bounded."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import pytest
from networks import resolve_to
from support.command import Command
from support.machine import cpu_while_asleep, descriptors
from support.peers import connect, free_port, reset
from support.streams import read_exactly
from support.waiting import TIMEOUT, at_best, eventually

import tcpproxy

ITSELF = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1", "localhost"),
    ("127.0.0.1", "0.0.0.0"),
    ("127.0.0.1", "[::ffff:127.0.0.1]"),
    ("0.0.0.0", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.5"),
    ("0.0.0.0", "0.0.0.0"),
    ("0.0.0.0", "[::ffff:127.0.0.1]"),
    ("localhost", "localhost"),
    ("localhost", "127.0.0.1"),
    ("::1", "[::1]"),
    ("::1", "[::]"),
    ("::", "[::1]"),
    ("::", "[::]"),
    ("::", "127.0.0.1"),
    ("::", "0.0.0.0"),
    ("::", "localhost"),
    ("::", "[::ffff:127.0.0.1]"),
]


@pytest.mark.parametrize(("bind", "host"), ITSELF)
def test_target_is_itself(bind: str, host: str) -> None:
    """Row 51: refused at start, whatever the address is called; nothing is left that listens."""
    port = free_port()
    before = descriptors()
    with pytest.raises(tcpproxy.UsageError, match="own address"):
        tcpproxy.Proxy(f"{host}:{port}", bind=bind, port=port).start().stop()
    assert descriptors() == before
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize(("bind", "host"), [("127.0.0.1", "127.0.0.5"), ("127.0.0.5", "localhost")])
def test_target_is_a_neighbour(bind: str, host: str) -> None:
    """Row 51: the same port at another address of this machine is somebody else."""
    upstream_host = "127.0.0.1" if host == "localhost" else host
    with socket.create_server((upstream_host, 0)) as listener:
        port = listener.getsockname()[1]
        with tcpproxy.Proxy(f"{host}:{port}", bind=bind, port=port) as proxy, connect(proxy.address) as client:
            listener.settimeout(TIMEOUT)
            server, _ = listener.accept()
            with server:
                client.sendall(b"hello")
                assert read_exactly(server, 5) == b"hello"


def test_command_with_itself_as_target(command: Callable[..., Command]) -> None:
    """Row 51: a sentence and the exit code of a mistake in usage, before it says that it listens."""
    port = free_port()
    process = command("-l", str(port), f"localhost:{port}")
    assert process.wait() == 2
    assert process.stdout == []
    assert "own address" in process.stderr[-1]


def test_circle_of_two(make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Row 51: two proxies that forward to each other cannot know; max-connections bounds what one client starts."""
    port = free_port()
    first = make_proxy(f"127.0.0.1:{port}", max_connections=20)
    second = make_proxy(f"127.0.0.1:{first.address[1]}", port=port, max_connections=20)
    before = descriptors()
    with connect(first.address) as client:
        eventually(lambda: first.stats().active == second.stats().active == 20)
        assert descriptors() - before <= 1 + 2 * 2 * 20
        # Full, it is quiet: one look every 100 ms.
        start, wakeups = time.monotonic(), first.stats().wakeups + second.stats().wakeups
        at_best(lambda: cpu_while_asleep(os.getpid(), 1.0), 0.1)
        wakeups = first.stats().wakeups + second.stats().wakeups - wakeups
        assert wakeups < 60 * (time.monotonic() - start)
        assert first.stats().accepted + second.stats().accepted <= 40
        reset(client)
    start = time.monotonic()
    first.stop()
    second.stop()
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("hosts", [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_one_of_two_addresses_is_its_own(monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, str]) -> None:
    """A server on ::1 alone, and the same port: as `-l 5173 localhost:5173` with a server of Node.js."""
    resolve_to(monkeypatch, *hosts)
    events: list[tcpproxy.Event] = []
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        with (
            tcpproxy.Proxy(f"both.test:{port}", port=port, on_event=events.append) as proxy,
            connect(proxy.address) as client,
        ):
            listener.settimeout(TIMEOUT)
            server, _ = listener.accept()
            with server:
                client.sendall(b"hello")
                assert read_exactly(server, 5) == b"hello"
            assert proxy.stats().accepted == 1
    warnings = [event.text for event in events if event.kind == "warning"]
    own = f"127.0.0.1:{port}"
    assert warnings == [f"both.test:{port} is this proxy itself ({own}) and others; only the others are used"]


def test_the_other_address_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is reset, once: the proxy does not connect to itself instead."""
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    port = free_port()
    with tcpproxy.Proxy(f"both.test:{port}", port=port) as proxy:
        with pytest.raises(ConnectionResetError), connect(proxy.address) as client:  # the reset may be that early
            client.recv(1)
        eventually(lambda: proxy.stats().ended == 1)
        assert proxy.stats().accepted == 1


def test_a_name_that_becomes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the start, when nothing can be refused any more: a lookup without an answer, and no loop."""
    answers = resolve_to(monkeypatch, "::1")
    monkeypatch.setattr("tcpproxy.lookups.TTL", 0.01)
    monkeypatch.setattr("tcpproxy.network.resolver.TTL", 0.01)
    monkeypatch.setattr("tcpproxy.network.resolver.MAX_STALE", 0.0)
    port = free_port()
    events: list[tcpproxy.Event] = []
    with tcpproxy.Proxy(f"both.test:{port}", port=port, on_event=events.append) as proxy:
        answers[:] = ["127.0.0.1"]

        def refused_as_own() -> bool:
            with pytest.raises(ConnectionResetError), connect(proxy.address) as client:
                client.recv(1)
            return any("own address" in event.text for event in events)

        eventually(refused_as_own)
        assert all(event.client for event in events if event.kind == "failed")


def test_interface_to_listen_on() -> None:
    """Its name is no address, and the error says so."""
    name = socket.if_nameindex()[0][1]
    with pytest.raises(tcpproxy.StartError) as caught:
        tcpproxy.Proxy(9, bind=name).start()
    assert str(caught.value) == (f"cannot listen on {name}: that is a network interface, expected one of its addresses")
