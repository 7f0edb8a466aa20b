"""Resets before or just after an upstream is reached, and upstreams that refuse."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable

import pytest
from networks import Silent
from support.command import Command
from support.machine import cpu_seconds, sockets, tells_resets
from support.peers import Upstream, connect, reset
from support.streams import hears_of_reset, read_until_reset
from support.waiting import at_best, ends, eventually, pause

import tcpproxy

pytestmark = pytest.mark.skipif(not tells_resets(), reason="needs a system that tells a later reader of a reset")

both_ways = pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
"""For tests that make their own connections."""


@pytest.mark.parametrize("workers", [1, 2])
def test_client_resets_while_connecting(
    silent: Silent, make_proxy: Callable[..., tcpproxy.Proxy], workers: int, events: list[tcpproxy.Event]
) -> None:
    """Row 20: upstream has not answered yet when the client resets; nothing is left of either."""
    proxy = make_proxy(silent.name, workers=workers)
    before = sockets()
    clients = [connect(proxy.address) for _ in range(10)]
    eventually(lambda: [item.state for item in proxy.connections()] == ["connecting"] * 10)
    for client in clients:
        reset(client)
    eventually(lambda: proxy.stats().active == 0 and sockets() <= before, within=4)
    assert {event.reason for event in ends(events, 10)} == {"client-reset"}


def test_no_wake_up_loop_while_connecting(silent: Silent, command: Callable[..., Command]) -> None:
    """Rows 25, 26: a connect under way, also of clients that have sent something or have ended, costs nothing."""
    process = command("--workers", "1", "--connect-timeout", "60s", silent.name)

    def used_in_two_seconds() -> float:
        begin = cpu_seconds(process.process.pid)
        pause(2)
        return cpu_seconds(process.process.pid) - begin

    with contextlib.ExitStack() as stack:
        quiet, listening, talking, ended = (stack.enter_context(connect(process.address)) for _ in range(4))
        listening.shutdown(socket.SHUT_WR)
        talking.sendall(b"hello")
        ended.sendall(b"hello")
        ended.shutdown(socket.SHUT_WR)
        eventually(lambda: len(process.stdout) == 5)
        at_best(used_in_two_seconds, 0.1)
        for client in (quiet, listening, talking, ended):
            assert not hears_of_reset(client, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_refused(make_proxy: Callable[..., tcpproxy.Proxy], workers: int, events: list[tcpproxy.Event]) -> None:
    """Row 25: the socket, not the hint, tells that a connect failed, and why; every client is told by a reset."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        proxy = make_proxy("{}:{}".format(*nobody.getsockname()), workers=workers)
        before = sockets()

        def ask(question: bytes) -> bytes:
            with connect(proxy.address) as client:  # which may be reset before connect returns
                client.sendall(question)
                return client.recv(1)

        for number in range(50):
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                ask(b"hello" * (number % 2))
        eventually(lambda: proxy.stats().active == 0 and sockets() <= before)
    eventually(lambda: sum(event.kind == "failed" for event in events) == 50)
    assert {(event.reason, event.error) for event in events if event.kind == "failed"} == {
        ("connect-refused", errno.ECONNREFUSED)
    }
    assert not [event for event in events if event.kind == "end"]


@both_ways
@pytest.mark.parametrize("banner", [b"", b"220 too busy\r\n"])
def test_upstream_resets_just_after_connect(
    upstream: Upstream,
    make_proxy: Callable[..., tcpproxy.Proxy],
    workers: int,
    banner: bytes,
    events: list[tcpproxy.Event],
) -> None:
    """Rows 20, 25: upstream accepts, says a word or none, and resets. The client gets the word and the reset, as it
    would directly: this is a connection that ended, not one that failed.
    """
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    before = sockets()
    for _ in range(100):
        with connect(proxy.address if proxy else (upstream.host, upstream.port)) as client:
            server = upstream.accept()
            if banner:
                server.sendall(banner)
            reset(server)
            assert read_until_reset(client) == banner
    eventually(lambda: sockets() <= before)
    if proxy:
        assert {event.reason for event in ends(events, 100)} == {"upstream-reset"}
        assert proxy.stats().failed == 0


@both_ways
def test_upstream_goes_without_accepting(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], workers: int
) -> None:
    """Row 25: the kernel of upstream has connected, but its program ends before it accepts."""
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    with connect(proxy.address if proxy else (upstream.host, upstream.port)) as client:
        client.sendall(b"hello")
        if proxy:
            eventually(lambda: [item.to_upstream for item in proxy.connections()] == [5])
        upstream.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@both_ways
def test_client_resets_just_after_connect(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], workers: int, events: list[tcpproxy.Event]
) -> None:
    """Rows 18, 20: the client connects, sends and resets before upstream is reached; no trouble, nothing left."""
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    before = sockets()
    for number in range(200):
        client = connect(proxy.address if proxy else (upstream.host, upstream.port))
        if number % 2:
            client.sendall(b"hello")
        reset(client)
    if proxy:
        eventually(lambda: proxy.stats().ended == 200 and sockets() <= before)
        assert {event.reason for event in ends(events, 200)} == {"client-reset"}
    with connect(proxy.address if proxy else (upstream.host, upstream.port)) as client:
        client.sendall(b"alive")

        def find_it() -> bool:
            with upstream.accept() as server, contextlib.suppress(ConnectionResetError):
                return server.recv(5) == b"alive"
            return False

        eventually(find_it)
