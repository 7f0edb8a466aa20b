"""What a Proxy tells its program: address, numbers, connections, events."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from unittest import mock

import pytest
from networks import Closed, Silent
from support.command import proxy_threads, run
from support.peers import Echo, Upstream, connect, free_port, name_of, relays, reset
from support.streams import fill, read_all, read_exactly
from support.waiting import at_best, eventually, in_background

from tcpproxy import Connection, Event, Proxy, Stats
from tcpproxy.errors import describe

# --- what it says of itself ---


def test_address_before_start(echo: Echo) -> None:
    proxy = Proxy(echo.name)
    assert proxy.addresses == []
    with pytest.raises(RuntimeError, match="not been started"):
        _ = proxy.address


def test_address(echo: Echo) -> None:
    """As socket.create_connection wants it; it stays readable after the end."""
    with Proxy(echo.name) as proxy:
        host, port = proxy.address
        assert host == "127.0.0.1"
        assert 1024 <= port <= 65535
        assert proxy.addresses == [proxy.address]
        with socket.create_connection(proxy.address, 10):
            pass
    assert proxy.address == (host, port)
    port = free_port()
    with Proxy(echo.name, port=port) as chosen:
        assert chosen.address == (host, port)
    with Proxy(echo.name, port=str(port)) as again:
        assert again.address == (host, port)


@pytest.mark.parametrize("workers", [1, 2])
def test_stats(upstream: Upstream, workers: int) -> None:
    """Row 37 in small: exact at any time, and after the end."""
    proxy = Proxy(upstream.name, workers=workers)
    assert isinstance(proxy.stats(), Stats)
    assert not any(dataclasses.astuple(proxy.stats()))
    with proxy:
        assert proxy.stats().accepted_by_worker == (0,) * workers
        for number in range(1, 5):
            client = connect(proxy.address)
            server = upstream.accept()
            client.sendall(bytes(1000))
            read_exactly(server, 1000)
            server.sendall(bytes(300))
            read_exactly(client, 300)
            eventually(
                lambda number=number: (
                    (proxy.stats().bytes_to_upstream, proxy.stats().bytes_to_client) == (1000 * number, 300 * number)
                )
            )
            stats = proxy.stats()
            assert (stats.accepted, stats.active, stats.ended, stats.failed) == (number, 1, number - 1, 0)
            client.close()
            read_all(server)
            server.close()
            eventually(lambda: proxy.stats().active == 0)
        assert (proxy.stats().accept_errors, proxy.stats().events_lost) == (0, 0)
    stats = proxy.stats()
    assert (stats.accepted, stats.active, stats.ended, stats.failed) == (4, 0, 4, 0)
    assert (stats.bytes_to_upstream, stats.bytes_to_client) == (4000, 1200)
    assert sum(stats.accepted_by_worker) == 4
    assert len(stats.accepted_by_worker) == workers


def test_stats_of_failures(closed: Closed) -> None:
    """Row 40."""
    with Proxy(closed.name) as proxy:
        for _ in range(3):
            with pytest.raises(ConnectionResetError), connect(proxy.address) as client:
                client.recv(1)
        eventually(lambda: proxy.stats().ended == 3)
        assert proxy.stats().failed == 3


def test_idle_proxy_does_not_wake_up(echo: Echo) -> None:
    """Row 28: nothing to do, and an idle connection is nothing to do either."""
    with Proxy(echo.name, workers=2) as proxy, connect(proxy.address) as client:
        client.sendall(b"hello")
        read_exactly(client, 5)

        def wakeups() -> int:
            before = proxy.stats().wakeups
            assert not proxy.wait(0.5)
            return proxy.stats().wakeups - before

        at_best(wakeups, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_connections(upstream: Upstream, workers: int) -> None:
    """The live ones, each with its names, bytes and age."""
    proxy = Proxy(upstream.name, workers=workers)
    assert proxy.connections() == []
    with proxy:
        assert proxy.connections() == []
        began = time.monotonic()
        pairs = [(connect(proxy.address), upstream.accept()) for _ in range(4)]
        for number, (client, server) in enumerate(pairs):
            client.sendall(bytes(100 + number))
            read_exactly(server, 100 + number)
            server.sendall(bytes(7))
            read_exactly(client, 7)
        eventually(lambda: sum(it.to_client for it in proxy.connections()) == 28)
        found = {it.client: it for it in proxy.connections()}
        age = time.monotonic() - began
        assert len(found) == 4
        assert [it.id for it in proxy.connections()] == [1, 2, 3, 4]
        for number, (client, _) in enumerate(pairs):
            it = found["{}:{}".format(*client.getsockname())]
            assert isinstance(it, Connection)
            assert (it.upstream, it.state, it.to_upstream, it.to_client) == (upstream.name, "relaying", 100 + number, 7)
            assert 0 <= it.age <= age + 0.01
            assert 0 < it.connect_time <= it.age - it.idle
            assert (it.waiting_for_upstream, it.waiting_for_client) == (0, 0)
            assert it.outgoing == name_of(pairs[number][1], peer=True)
        for client, server in pairs[:3]:
            client.close()
            read_all(server)
            server.close()
        eventually(lambda: len(proxy.connections()) == 1)
        last = "{}:{}".format(*pairs[3][0].getsockname())
        assert [it.client for it in proxy.connections()] == [last]
    assert proxy.connections() == []
    for peer in pairs[3]:
        peer.close()


@pytest.mark.parametrize("ending", ["client", "upstream"])
@pytest.mark.parametrize("end", ["eof", "reset"])
@pytest.mark.parametrize("workers", [1, 2])
def test_outgoing_address_to_the_end(upstream: Upstream, workers: int, end: str, ending: str) -> None:
    """The address that upstream has seen is in every record of the connection, also after a reset by upstream."""
    events: list[Event] = []
    with Proxy(upstream.name, workers=workers, on_event=events.append) as proxy:
        client, server = connect(proxy.address), upstream.accept()
        outgoing = name_of(server, peer=True)
        eventually(lambda: [it.outgoing for it in proxy.connections()] == [outgoing])
        near, far = (client, server) if ending == "client" else (server, client)
        near.close() if end == "eof" else reset(near)
        with far, contextlib.suppress(ConnectionResetError):
            assert far.recv(1) == b""
        proxy.stop(grace=5)
    last = events[-1]
    assert (last.kind, last.reason, last.outgoing) == ("end", f"{ending}-{end}", outgoing)


@pytest.mark.parametrize("zero_copy", ["off", "always"])
@pytest.mark.parametrize("slow", ["client", "upstream"])
def test_connection_shows_who_is_slow(upstream: Upstream, slow: str, zero_copy: str) -> None:
    """Bytes wait in the proxy for the side that does not read, and for no other; they are gone once it reads."""
    with (
        Proxy(upstream.name, zero_copy=zero_copy) as proxy,
        connect(proxy.address) as client,
        upstream.accept() as server,
    ):
        near, far = (server, client) if slow == "client" else (client, server)
        sent = fill(near, 0.2)
        eventually(lambda: waiting(proxy, slow) > 0)
        (it,) = proxy.connections()
        assert waiting(proxy, "upstream" if slow == "client" else "client") == 0
        assert it.idle < it.age
        read_exactly(far, sent)
        eventually(lambda: waiting(proxy, slow) == 0)


def waiting(proxy: Proxy, side: str) -> int:
    (it,) = proxy.connections()
    return it.waiting_for_client if side == "client" else it.waiting_for_upstream


@pytest.mark.parametrize("workers", [1, 2])
def test_idle_time(upstream: Upstream, workers: int) -> None:
    """It counts from the last byte in either direction; before the first one from the connect."""
    with (
        Proxy(upstream.name, workers=workers) as proxy,
        connect(proxy.address) as client,
        upstream.accept() as server,
    ):
        for near, far in ((client, server), (server, client)):
            threading.Event().wait(0.1)  # the time under test
            (quiet,) = proxy.connections()
            assert 0.1 <= quiet.idle <= quiet.age
            before = time.monotonic()
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            (busy,) = proxy.connections()
            assert busy.idle <= time.monotonic() - before + 0.001 < busy.age


def test_connection_that_is_not_connected(stack: contextlib.ExitStack) -> None:
    silent = stack.enter_context(contextlib.closing(Silent()))
    with Proxy(silent.name) as proxy, connect(proxy.address):
        eventually(lambda: [it.state for it in proxy.connections()] == ["connecting"])
        (it,) = proxy.connections()
        assert (it.upstream, it.outgoing, it.connect_time) == ("", "", 0)
        assert it.idle == it.age


def test_views_while_connections_come_and_go(echo: Echo) -> None:
    """Row 72: from several threads at once, to the end and after it."""
    with Proxy(echo.name, workers=2) as proxy:
        over = threading.Event()

        def look() -> int:
            looks = 0
            while not over.is_set():
                assert all(it.client for it in proxy.connections())
                assert proxy.stats().active >= 0
                looks += 1
            return looks

        with in_background(look) as first, in_background(look) as second:
            try:
                for _ in range(200):
                    assert relays(proxy.address)
                proxy.stop()
            finally:
                over.set()
        assert first[0] > 0  # type: ignore[operator]
        assert second[0] > 0  # type: ignore[operator]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("busy_poll", ["off", "auto", "1000"])
def test_worker_hears_of_everything(echo: Echo, busy_poll: str) -> None:
    """Row 99: what another thread wants of a worker reaches it, also while it polls before it sleeps."""
    done = run(
        """
import socket, sys, tcpproxy
for _ in range(5):
    with tcpproxy.Proxy(sys.argv[1], workers=2, busy_poll=sys.argv[2]) as proxy:
        with socket.create_connection(proxy.address) as client:
            for _ in range(int(sys.argv[3])):
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                assert len(proxy.connections()) == 1
""",
        echo.name,
        busy_poll,
        "200" if os.name == "posix" else "10",  # 20 to 100 ms each under wine
        within=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- events ---


def test_events_of_a_connection(upstream: Upstream) -> None:
    """In order, in one thread of the proxy's own, and all of them before stop() has returned."""
    events: list[tuple[Event, str]] = []
    proxy = Proxy(upstream.name, on_event=lambda event: events.append((event, threading.current_thread().name)))
    before = time.time() - 0.001
    with proxy:
        client = connect(proxy.address)
        server = upstream.accept()
        name, outgoing = name_of(client), "{}:{}".format(*server.getpeername())
        client.sendall(b"question")
        read_exactly(server, 8)
        server.sendall(b"answer")
        read_exactly(client, 6)
        client.close()
        read_all(server)
        server.close()
        eventually(lambda: proxy.stats().ended == 1)
    assert {thread for _, thread in events} == {"tcpproxy-log"}
    listening, new, connected, end = (event for event, _ in events)
    assert listening._replace(time=0) == Event("listening", text="{}:{}".format(*proxy.address), target=upstream.name)
    assert (new.kind, new.client) == ("new", name)
    assert (connected.kind, connected.client, connected.upstream) == ("connected", name, upstream.name)
    assert {new.id, connected.id, end.id} == {1}
    assert connected.outgoing == end.outgoing == outgoing
    assert connected.connect_time == connected.duration == end.connect_time
    assert before <= listening.time <= new.time <= connected.time <= end.time <= time.time()
    assert (end.kind, end.reason, end.client, end.upstream) == ("end", "client-eof", name, upstream.name)
    assert (end.to_upstream, end.to_client) == (8, 6)
    assert 0 < end.connect_time <= end.duration < 20


def test_events_of_failures(closed: Closed) -> None:
    """Row 40."""
    events: list[Event] = []
    with (
        Proxy(closed.name, on_event=events.append) as proxy,
        pytest.raises(ConnectionResetError),
        connect(proxy.address) as client,
    ):
        client.recv(1)
    failed = events[-1]
    assert (failed.kind, failed.reason, failed.error) == ("failed", "connect-refused", errno.ECONNREFUSED)
    assert failed.upstream == closed.name
    assert failed.text == f"{describe(errno.ECONNREFUSED)} (os error {errno.ECONNREFUSED})"


def test_warning_beyond_loopback(echo: Echo) -> None:
    """Row 93."""
    events: list[Event] = []
    with Proxy(echo.name, bind="0.0.0.0", on_event=events.append) as proxy:
        pass
    where = f"0.0.0.0:{proxy.address[1]}"
    assert [event._replace(time=0) for event in events] == [
        Event("listening", text=where, target=echo.name),
        Event("warning", text=f"listening on {where}, which other machines may reach"),
    ]


def test_callback_that_raises(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    """Row 101: it is said in the log, the relay goes on, and so do the events."""
    seen = []

    def careless(event: Event) -> None:
        seen.append(event.kind)
        raise ZeroDivisionError("careless")

    with Proxy(echo.name, on_event=careless) as proxy:
        for _ in range(3):
            assert relays(proxy.address)
    assert sorted(seen) == ["connected"] * 3 + ["end"] * 3 + ["listening"] + ["new"] * 3
    assert len(caplog.records) == 10
    assert {record.name for record in caplog.records} == {"tcpproxy"}
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


def test_callback_that_blocks(echo: Echo) -> None:
    """Row 101: the relay does not notice, and stop() does not wait for it for ever."""
    go_on = threading.Event()
    try:
        with Proxy(echo.name, on_event=lambda _: go_on.wait(30)) as proxy:
            for _ in range(20):
                assert relays(proxy.address)
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < 5
    finally:
        go_on.set()
    eventually(lambda: not proxy_threads())


def test_callback_may_look_at_its_proxy(echo: Echo) -> None:
    """Row 72: stats and connections from inside on_event."""
    proxies: list[Proxy] = []
    looks: list[tuple[Stats, list[Connection]]] = []

    def look(event: Event) -> None:
        if event.kind == "end":
            looks.append((proxies[0].stats(), proxies[0].connections()))

    with Proxy(echo.name, on_event=look) as proxy:
        proxies.append(proxy)
        assert relays(proxy.address)
        eventually(lambda: looks)
    assert looks[0][0].accepted == 1


class Collector(list[Event]):
    """A callback that is empty, and so is false, until it was called."""

    __call__ = list.append


@pytest.mark.parametrize("make", [mock.Mock, mock.MagicMock, Collector])
def test_any_callable_is_a_callback(echo: Echo, make: Callable[[], Callable[[Event], None]]) -> None:
    """What tests put there: it gets every event, whatever other attributes it has or seems to have."""
    callback = make()
    with Proxy(echo.name, on_event=callback) as proxy:
        assert relays(proxy.address)
    calls = callback if isinstance(callback, Collector) else [it.args[0] for it in callback.call_args_list]
    assert sorted(event.kind for event in calls) == ["connected", "end", "listening", "new"]


def test_default_sink_is_logging(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    """The logger `tcpproxy`: connections at DEBUG, the address at INFO, trouble at WARNING."""
    with caplog.at_level(logging.DEBUG, "tcpproxy"), Proxy(echo.name, bind="0.0.0.0") as proxy:
        assert relays(("127.0.0.1", proxy.address[1]))
    assert {record.name for record in caplog.records} == {"tcpproxy"}
    told = [(record.levelno, record.tcpproxy_kind) for record in caplog.records]  # type: ignore[attr-defined]
    assert sorted(told) == [
        (logging.DEBUG, "connected"),
        (logging.DEBUG, "end"),
        (logging.DEBUG, "new"),
        (logging.INFO, "listening"),
        (logging.WARNING, "warning"),
    ]


def test_default_sink_is_quiet(echo: Echo) -> None:
    """A program that has set up no logging sees nothing of connections that go well."""
    done = run(
        """
import sys, socket, tcpproxy
with tcpproxy.Proxy(sys.argv[1]) as proxy, socket.create_connection(proxy.address) as client:
    client.sendall(b"x")
    assert client.recv(1) == b"x"
""",
        echo.name,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_peers_that_reset_leave_no_trace(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    """Row 17: for the default sink too, a reset is a normal end."""
    with caplog.at_level(logging.INFO, "tcpproxy"), Proxy(upstream.name) as proxy:
        for _ in range(10):
            client = connect(proxy.address)
            server = upstream.accept()
            reset(client)
            with contextlib.suppress(ConnectionResetError):
                server.recv(1)
            server.close()
        eventually(lambda: proxy.stats().ended == 10)
    assert [record.tcpproxy_kind for record in caplog.records] == ["listening"]  # type: ignore[attr-defined]
