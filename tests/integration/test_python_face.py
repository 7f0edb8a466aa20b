"""The library: a Proxy in a program or a test, from import to the last thread."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from support import Echo, Upstream, connect, descriptors, eventually, in_background, read_all, read_exactly, reset

import tcpproxy
from tcpproxy import Connection, Event, Proxy, StartError, Stats, TcpProxyError, UsageError, WorkerError
from tcpproxy.errors import describe

NOT_OURS = "203.0.113.1"  # reserved for documentation (RFC 5737)


def proxy_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tcpproxy")]


def echoes(address: tuple[str, int], data: bytes = b"hello") -> bool:
    with connect(address) as client:
        client.sendall(data)
        return read_exactly(client, len(data)) == data


def refuses(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was in the queue of a listener that has closed since
        return False
    return False


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    # Away from the source tree, so that the installed package runs. Every warning is an error on stderr.
    argv = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *args]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=30)


# --- from start to stop ---


def test_import_does_nothing() -> None:
    """No thread, no descriptor, no handler, no exit hook, no logging set up."""
    done = run("""
import atexit, os, signal, socket, sys, threading
state = lambda: (os.name == "posix" and os.listdir("/dev/fd"), threading.enumerate(), atexit._ncallbacks(),
                 [signal.getsignal(it) for it in signal.valid_signals()],
                 signal.set_wakeup_fd(-1))
before = state()
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(("socket.", "signal.")) else None)
import tcpproxy
proxy = tcpproxy.Proxy("localhost:80")
assert not seen, seen
assert state() == before, (state(), before)
logging = sys.modules.get("logging")
assert logging is None or not logging.getLogger().handlers
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_context_manager(echo: Echo, workers: int) -> None:
    """Listening before the block begins; nothing is left when it is over."""
    with Proxy(echo.name, workers=workers) as proxy:
        assert echoes(proxy.address)
        assert len([name for name in proxy_threads() if "worker" in name]) == workers
    assert proxy_threads() == []
    assert refuses(proxy.address)
    assert proxy.failure is None


def test_stop_gives_descriptors_back(echo: Echo) -> None:
    """Row 106: at the end, not when somebody forgets the object."""
    before = descriptors()
    proxy = Proxy(echo.name, workers=2).start()
    assert descriptors() > before
    proxy.stop()
    assert descriptors() == before


def test_context_manager_passes_an_exception_on(echo: Echo) -> None:
    with pytest.raises(ZeroDivisionError), Proxy(echo.name) as proxy:
        raise ZeroDivisionError
    assert refuses(proxy.address)
    assert proxy_threads() == []


def test_async_context_manager(echo: Echo) -> None:
    """The event loop goes on while the proxy starts, runs and stops."""

    async def main() -> tuple[str, int]:
        async with Proxy(echo.name) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
            writer.close()
            await writer.wait_closed()
        return proxy.address

    address = asyncio.run(main())
    assert refuses(address)
    assert proxy_threads() == []


def test_async_stop_does_not_block_the_loop(echo: Echo) -> None:
    """A grace that is used up is waited for in a thread."""

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        async with Proxy(echo.name, grace=0.5) as proxy:
            held = connect(proxy.address)
            eventually(lambda: proxy.stats().active == 1)
            ticks = 0
        held.close()
        ticker.cancel()
        return ticks

    assert asyncio.run(main()) >= 10


def test_async_start_that_fails(echo: Echo) -> None:
    async def main() -> None:
        async with Proxy(echo.name, bind=NOT_OURS):
            pass

    with pytest.raises(StartError):
        asyncio.run(main())


@pytest.fixture
def relayed(echo: Echo) -> Iterator[tuple[str, int]]:
    """How a test suite would use it."""
    with Proxy(echo.name) as proxy:
        yield proxy.address


@pytest.mark.parametrize("turn", range(3))
def test_as_a_fixture(relayed: tuple[str, int], turn: int) -> None:
    assert echoes(relayed, b"%d" % turn)


def test_many_at_once(echo: Echo) -> None:
    """Side by side, each on a port of its own, and chained, each in front of the one before."""
    before = descriptors()
    with contextlib.ExitStack() as stack:
        beside = [stack.enter_context(Proxy(echo.name)) for _ in range(20)]
        assert len({proxy.address for proxy in beside}) == 20
        assert all(echoes(proxy.address) for proxy in beside)
        last = beside[0]
        for _ in range(10):
            last = stack.enter_context(Proxy("{}:{}".format(*last.address)))
        assert echoes(last.address, bytes(100_000))
        assert [proxy.stats().accepted for proxy in beside] == [2] + [1] * 19
    assert proxy_threads() == []
    del beside, last
    eventually(lambda: descriptors() <= before)


def test_hundred_in_a_row(echo: Echo) -> None:
    """Row 106: descriptors and threads are given back each time."""
    for _ in range(3):  # what is made once and kept
        with Proxy(echo.name):
            pass
    before = descriptors()
    for _ in range(100):
        with Proxy(echo.name) as proxy:
            assert echoes(proxy.address)
    assert proxy_threads() == []
    del proxy
    eventually(lambda: descriptors() <= before)


def test_start_and_stop_without_a_block(echo: Echo) -> None:
    proxy = Proxy(echo.name)
    assert proxy.start() is proxy
    assert echoes(proxy.address)
    proxy.stop()
    assert refuses(proxy.address)


def test_no_warnings_from_python(echo: Echo) -> None:
    """With every warning on: no socket or thread is left to the garbage collector."""
    done = run(
        """
import gc, sys, socket, tcpproxy
for _ in range(3):
    with tcpproxy.Proxy(sys.argv[1], workers=2) as proxy:
        with socket.create_connection(proxy.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    try:
        tcpproxy.Proxy(sys.argv[1], bind="203.0.113.1").start()
    except tcpproxy.StartError:
        pass
    try:
        tcpproxy.Proxy(sys.argv[1], bind="localhost", port=int(sys.argv[1].rpartition(":")[2])).start()
    except tcpproxy.StartError:
        pass
    except tcpproxy.UsageError:
        pass
del proxy
gc.collect()
""",
        echo.name,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_exit_without_stop(echo: Echo) -> None:
    """Row 100: a program that ends with a proxy running, and a connection in it, ends like any other."""
    done = run(
        """
import sys, socket, tcpproxy
proxy = tcpproxy.Proxy(sys.argv[1], workers=2, grace=60).start()
client = socket.create_connection(proxy.address)
client.sendall(b"x")
assert client.recv(1) == b"x"
client.detach()
print("done")
""",
        echo.name,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# --- stopping ---


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_from_another_thread(echo: Echo, workers: int) -> None:
    """`wait` tells when somebody has."""
    with Proxy(echo.name, workers=workers) as proxy:
        assert not proxy.wait(0)
        with in_background(proxy.stop):
            assert proxy.wait(10)
        assert refuses(proxy.address)


@pytest.mark.parametrize("workers", [1, 2])
def test_stop_from_many_threads_at_once(echo: Echo, workers: int) -> None:
    """Row 31: all return when it is over, and no sooner."""
    for _ in range(10):
        proxy = Proxy(echo.name, workers=workers).start()
        held = [connect(proxy.address) for _ in range(5)]
        for client in held:
            client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
        alive = []

        def stop(proxy: Proxy = proxy, alive: list[str] = alive) -> None:
            proxy.stop()
            alive.extend(name for name in proxy_threads() if "worker" in name)

        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(in_background(stop))
        assert alive == []
        assert proxy.stats().active == 0
        for client in held:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()
    assert proxy_threads() == []


def test_stop_twice_and_before_start(echo: Echo) -> None:
    """Row 98: it costs nothing."""
    Proxy(echo.name).stop()
    with Proxy(echo.name) as proxy:
        proxy.stop()
        proxy.stop()
    proxy.stop()


@pytest.mark.parametrize("bind", [NOT_OURS, "no-such-name.invalid"])
def test_stop_after_a_start_that_failed(echo: Echo, bind: str) -> None:
    """Row 96: `finally: proxy.stop()` must not hide why it could not start."""
    proxy = Proxy(echo.name, bind=bind)
    with pytest.raises(StartError):
        proxy.start()
    proxy.stop()
    assert proxy.stats().accepted == 0
    assert proxy.connections() == []


def test_stop_with_a_grace(upstream: Upstream) -> None:
    """Row 97: connections may end by themselves; what is left after the grace is reset."""
    with Proxy(upstream.name, grace=20) as proxy, connect(proxy.address) as client, upstream.accept() as server:
        with in_background(proxy.stop) as stopped:
            assert proxy.wait(10)
            client.sendall(b"question")
            assert read_exactly(server, 8) == b"question"
            server.sendall(b"answer")
            assert read_exactly(client, 6) == b"answer"
            assert not stopped
            client.close()
            assert read_all(server) == b""
            server.close()
            ended = time.monotonic()
        assert refuses(proxy.address)  # not asked before: a client that just slips in would be a connection to wait for
        assert time.monotonic() - ended < 5, "it waits on although the last connection has ended"
    with Proxy(upstream.name, grace=20) as proxy, connect(proxy.address) as client, upstream.accept():
        began = time.monotonic()
        proxy.stop(grace=0.3)
        assert 0.25 < time.monotonic() - began < 5
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_stop_by_a_callback(echo: Echo) -> None:
    """A program that stops its proxy at the first event of some kind does not wait for itself, and it does stop."""
    proxies: list[Proxy] = []

    def stop_at_end(event: Event) -> None:
        if event.kind == "end":
            proxies[0].stop()

    with Proxy(echo.name, on_event=stop_at_end) as proxy:
        proxies.append(proxy)
        assert echoes(proxy.address)
        assert proxy.wait(5), "stop() in on_event does nothing"
        eventually(lambda: refuses(proxy.address))


def test_drain(upstream: Upstream) -> None:
    """Row 97: no new connections at once, the live ones stay."""
    with Proxy(upstream.name) as proxy, connect(proxy.address) as client, upstream.accept() as server:
        proxy.drain()
        assert proxy.wait(0)
        eventually(lambda: refuses(proxy.address))
        client.sendall(b"still there?")
        assert read_exactly(server, 12) == b"still there?"


def test_abort(upstream: Upstream) -> None:
    """Row 98: the live ones are reset."""
    with Proxy(upstream.name, grace=60) as proxy, connect(proxy.address) as client, upstream.accept() as server:
        began = time.monotonic()
        proxy.abort()
        for peer in client, server:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        proxy.stop()
        assert time.monotonic() - began < 5


# --- what goes wrong ---


def test_start_twice(echo: Echo) -> None:
    """A Proxy starts once, whether it still runs or not; the running one is not hurt."""
    with Proxy(echo.name) as proxy:
        with pytest.raises(RuntimeError, match="starts once"):
            proxy.start()
        with pytest.raises(RuntimeError, match="starts once"), proxy:
            pass
        assert echoes(proxy.address)
    with pytest.raises(RuntimeError, match="starts once"):
        proxy.start()


def test_errors_are_what_they_are_called(upstream: Upstream) -> None:
    """Rows 95, 96: one family, each also of the built-in kind that a program would look for, with an exit code."""
    with pytest.raises(UsageError) as usage:
        Proxy("nowhere")
    assert isinstance(usage.value, TcpProxyError)
    assert isinstance(usage.value, ValueError)
    assert usage.value.exit_code == 2
    proxy = Proxy(upstream.name, port=upstream.port, bind="127.0.0.1")
    with pytest.raises((StartError, UsageError)):
        proxy.start()
    with Proxy(upstream.name) as first, pytest.raises(StartError) as start:
        Proxy(upstream.name, port=first.address[1]).start()
    assert isinstance(start.value, TcpProxyError)
    assert isinstance(start.value, OSError)
    assert (start.value.errno, start.value.exit_code) == (errno.EADDRINUSE, 1)
    assert str(start.value) == f"cannot listen on 127.0.0.1:{first.address[1]}: {describe(errno.EADDRINUSE)}"
    assert issubclass(WorkerError, TcpProxyError)
    assert issubclass(WorkerError, OSError)


def test_own_address_as_upstream() -> None:
    """Row 51: a proxy in front of itself is refused, before it listens."""
    with Proxy("127.0.0.1:9") as other:
        port = other.address[1]
    for remote, bind in (("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")):
        with pytest.raises(UsageError, match="is this proxy's own address"):
            Proxy(f"{remote}:{port}", bind=bind, port=port).start()
    assert refuses(("127.0.0.1", port))


def test_own_address_in_other_words() -> None:
    """Row 51: an IPv4 address in IPv6 clothes leads to the same place."""
    with Proxy("127.0.0.1:9") as other:
        port = other.address[1]
    with pytest.raises(UsageError, match="is this proxy's own address"), Proxy(f"[::ffff:127.0.0.1]:{port}", port=port):
        pass


def test_out_of_descriptors(echo: Echo) -> None:
    """Rows 53, 96: no descriptors for a start: a StartError with errno, nothing left behind, and later it works."""
    if sys.platform == "win32":
        pytest.skip("no limit of open sockets here")
    done = run(
        """
import contextlib, errno, os, resource, socket, sys, tcpproxy
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with tcpproxy.Proxy(sys.argv[1], workers=2):
    pass
full = []
with contextlib.suppress(OSError):
    while True:
        full.append(os.open(os.devnull, os.O_RDONLY))
failures = 0
while full:
    os.close(full.pop())
    before = len(full)
    try:
        with tcpproxy.Proxy(sys.argv[1], workers=2) as proxy:
            break
    except tcpproxy.StartError as error:
        assert error.errno == errno.EMFILE, error
        failures += 1
    probe = []
    with contextlib.suppress(OSError):
        while True:
            probe.append(os.open(os.devnull, os.O_RDONLY))
    assert len(probe) >= failures, (len(probe), failures)
    for fd in probe:
        os.close(fd)
assert failures > 3
for fd in full:
    os.close(fd)
with tcpproxy.Proxy(sys.argv[1], workers=2) as proxy, socket.create_connection(proxy.address) as client:
    client.sendall(b"x")
    assert client.recv(1) == b"x"
""",
        echo.name,
    )
    assert (done.returncode, done.stderr) == (0, "")


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
    with Proxy(echo.name, port=port) as again:
        assert again.address == (host, port)
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


def test_stats_of_failures(upstream: Upstream) -> None:
    """Row 40."""
    with Proxy(upstream.name) as proxy:
        upstream.close()
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
        proxy.stats()
        quiet = proxy.stats().wakeups
        assert not proxy.wait(0.5)
        assert proxy.stats().wakeups - quiet <= 2


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
        for number, (client, _) in enumerate(pairs):
            it = found["{}:{}".format(*client.getsockname())]
            assert isinstance(it, Connection)
            assert (it.upstream, it.state, it.to_upstream, it.to_client) == (upstream.name, "relaying", 100 + number, 7)
            assert 0 <= it.age <= age + 0.01
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
                    assert echoes(proxy.address)
                proxy.stop()
            finally:
                over.set()
        assert first[0] > 0  # type: ignore[operator]
        assert second[0] > 0  # type: ignore[operator]


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
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- events ---


def test_events_of_a_connection(upstream: Upstream) -> None:
    """In order, in one thread of the proxy's own, and all of them before stop() has returned."""
    events: list[tuple[Event, str]] = []
    proxy = Proxy(upstream.name, on_event=lambda event: events.append((event, threading.current_thread().name)))
    with proxy:
        client = connect(proxy.address)
        server = upstream.accept()
        name = "{}:{}".format(*client.getsockname())
        client.sendall(b"question")
        read_exactly(server, 8)
        server.sendall(b"answer")
        read_exactly(client, 6)
        client.close()
        read_all(server)
        server.close()
        eventually(lambda: proxy.stats().ended == 1)
    assert {thread for _, thread in events} == {"tcpproxy-log"}
    listening, new, end = (event for event, _ in events)
    assert listening == Event("listening", text="{}:{}".format(*proxy.address))
    assert (new.kind, new.client) == ("new", name)
    assert (end.kind, end.reason, end.client, end.upstream) == ("end", "client-eof", name, upstream.name)
    assert (end.to_upstream, end.to_client) == (8, 6)
    assert 0 < end.connect_time <= end.duration < 20


def test_events_of_failures(upstream: Upstream) -> None:
    """Row 40."""
    events: list[Event] = []
    with Proxy(upstream.name, on_event=events.append) as proxy:
        upstream.close()
        with pytest.raises(ConnectionResetError), connect(proxy.address) as client:
            client.recv(1)
    failed = events[-1]
    assert (failed.kind, failed.reason, failed.error) == ("failed", "connect-refused", errno.ECONNREFUSED)
    assert failed.upstream == upstream.name
    assert failed.text == f"{describe(errno.ECONNREFUSED)} (os error {errno.ECONNREFUSED})"


def test_warning_beyond_loopback(echo: Echo) -> None:
    """Row 93."""
    events: list[Event] = []
    with Proxy(echo.name, bind="0.0.0.0", on_event=events.append) as proxy:
        pass
    where = f"0.0.0.0:{proxy.address[1]}"
    assert events == [
        Event("listening", text=where),
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
            assert echoes(proxy.address)
    assert sorted(seen) == ["end"] * 3 + ["listening"] + ["new"] * 3
    assert len(caplog.records) == 7
    assert {record.name for record in caplog.records} == {"tcpproxy"}
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


def test_callback_that_blocks(echo: Echo) -> None:
    """Row 101: the relay does not notice, and stop() does not wait for it for ever."""
    go_on = threading.Event()
    try:
        with Proxy(echo.name, on_event=lambda _: go_on.wait(30)) as proxy:
            for _ in range(20):
                assert echoes(proxy.address)
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
        assert echoes(proxy.address)
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
        assert echoes(proxy.address)
    calls = callback if isinstance(callback, Collector) else [it.args[0] for it in callback.call_args_list]
    assert sorted(event.kind for event in calls) == ["end", "listening", "new"]


def test_default_sink_is_logging(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    """The logger `tcpproxy`: connections at DEBUG, the address at INFO, trouble at WARNING."""
    with caplog.at_level(logging.DEBUG, "tcpproxy"), Proxy(echo.name, bind="0.0.0.0") as proxy:
        assert echoes(("127.0.0.1", proxy.address[1]))
    assert {record.name for record in caplog.records} == {"tcpproxy"}
    told = [(record.levelno, record.getMessage().split()[0]) for record in caplog.records]
    assert sorted(told) == [
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


# --- arguments ---


def test_options_in_numbers_and_in_words(echo: Echo) -> None:
    """Row 95: both ways of writing mean the same."""
    numbers = Proxy(echo.name, connect_timeout=0.25, half_close_timeout=300, buffer_size=65536, workers=2, grace=1)
    words = Proxy(
        echo.name, connect_timeout="250ms", half_close_timeout="5m", buffer_size="64KiB", workers="2", grace="1s"
    )
    assert numbers.config == words.config
    for proxy in numbers, words:
        with proxy:
            assert echoes(proxy.address)


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"port": -1},
        {"port": "http"},
        {"port": None},
        {"port": True},
        {"bind": ""},
        {"bind": None},
        {"workers": 0},
        {"workers": 2.0},
        {"connect_timeout": 0},
        {"connect_timeout": None},
        {"connect_timeout": float("nan")},
        {"half_close_timeout": -1},
        {"idle_timeout": "soon"},
        {"keepalive": 0.5},
        {"grace": None},
        {"max_connections": 0},
        {"buffer_size": 0},
    ],
    ids=str,
)
def test_bad_option(echo: Echo, options: dict[str, object]) -> None:
    """Row 95: at once, when it is made and not when it starts; the sentence names the option."""
    with pytest.raises(UsageError) as caught:
        Proxy(echo.name, **options)  # type: ignore[arg-type]
    name = next(iter(options)).replace("_", "-").replace("port", "local-port")
    assert str(caught.value).startswith(f"{name} ")


@pytest.mark.parametrize("remote", ["", "localhost", "localhost:0", None, 80, b"localhost:80", ("localhost", 80)])
def test_bad_remote(remote: object) -> None:
    """Row 95."""
    with pytest.raises(UsageError, match=r"^(port of )?remote "):
        Proxy(remote)  # type: ignore[arg-type]


def test_public_names() -> None:
    """What `from tcpproxy import *` brings is there and has words."""
    for name in tcpproxy.__all__:
        assert getattr(tcpproxy, name).__doc__
    assert tcpproxy.__version__.count(".") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child(echo: Echo) -> None:
    """Row 73: a child has no proxy: it may stop it, exit and start another, and the parent's goes on."""
    done = run(
        """
import os, socket, sys, tcpproxy, warnings
warnings.simplefilter("ignore")                 # fork with threads: that is the point here
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
client = socket.create_connection(proxy.address)
client.sendall(b"x")
assert client.recv(1) == b"x"
child = os.fork()
if child == 0:
    client.close()
    proxy.stop()
    assert proxy.connections() == []
    with tcpproxy.Proxy(sys.argv[1]) as own, socket.create_connection(own.address) as another:
        another.sendall(b"x")
        assert another.recv(1) == b"x"
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
client.sendall(b"y")
assert client.recv(1) == b"y"
client.close()
proxy.stop()
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
    assert [record.getMessage().split()[0] for record in caplog.records] == ["listening"]


def addresses(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Gives the name `many` so many addresses, each of this machine."""
    real = socket.getaddrinfo

    def look_up(host: object, *args: object, **options: object) -> object:
        if host == "many":
            return [info for each in range(count) for info in real(f"127.0.0.{each + 1}", *args, **options)]  # type: ignore[arg-type,call-overload]
        return real(host, *args, **options)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.skipif(sys.platform == "darwin", reason="has one address of loopback")
def test_name_with_many_addresses(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 96: a worker has room for 16 listeners. One more is no reason for another kind of error, or for a leak."""
    addresses(monkeypatch, 16)
    with Proxy(echo.name, bind="many", workers=2) as proxy:
        assert len(proxy.addresses) == 16
        assert all(echoes(address) for address in proxy.addresses)
    before = descriptors()
    addresses(monkeypatch, 17)
    with pytest.raises(StartError, match=r"^cannot listen on many: it has 17 addresses, expected at most 16$"):
        Proxy(echo.name, bind="many", workers=2).start()
    assert descriptors() == before


@pytest.mark.parametrize("which", ["tcpproxy-worker-1", "tcpproxy-log", "tcpproxy-names"])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_thread_that_cannot_start(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Row 96: the system refuses one of the threads. Those that had started have ended before the error is raised."""
    real = threading.Thread.start
    seen: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == which:
            raise RuntimeError("can't start new thread")
        real(thread)

    def slow(event: Event) -> None:
        threading.Event().wait(0.3)
        seen.append(event.kind)

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        proxy = Proxy("localhost:9", workers=2, on_event=slow)
        with pytest.raises(RuntimeError):
            proxy.start()
    assert [name for name in proxy_threads() if name != "tcpproxy-lookup"] == []
    assert seen == (["listening"] if which == "tcpproxy-names" else [])
    assert descriptors() == before
    proxy.stop()
