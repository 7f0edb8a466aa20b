"""The library: a Proxy in a program or a test, from import to the last thread."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from support.command import proxy_threads, run
from support.machine import descriptors
from support.peers import Echo, Upstream, connect, free_port, relays
from support.streams import read_all, read_exactly
from support.waiting import eventually, in_background, pause

import tcpproxy
from tcpproxy import Event, Proxy, StartError, TcpProxyError, UsageError, WorkerError
from tcpproxy.errors import describe

NOT_OURS = "203.0.113.1"  # reserved for documentation (RFC 5737)


def refuses(address: tuple[str, int]) -> bool:
    """The port should be a `free_port`: one that the kernel has chosen may be another test's at once."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # it was in the queue of a listener that has closed since
        return False
    return False


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
    with Proxy(echo.name, workers=workers, port=free_port()) as proxy:
        assert relays(proxy.address)
        assert len([name for name in proxy_threads() if "worker" in name]) == workers
    eventually(lambda: not proxy_threads())
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
    with pytest.raises(ZeroDivisionError), Proxy(echo.name, port=free_port()) as proxy:
        raise ZeroDivisionError
    assert refuses(proxy.address)
    eventually(lambda: not proxy_threads())


def test_async_context_manager(echo: Echo) -> None:
    """The event loop goes on while the proxy starts, runs and stops."""

    async def main() -> tuple[str, int]:
        async with Proxy(echo.name, port=free_port()) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.address)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
            writer.close()
            await writer.wait_closed()
        return proxy.address

    address = asyncio.run(main())
    assert refuses(address)
    eventually(lambda: not proxy_threads())


def test_async_stop_does_not_block_the_loop(echo: Echo) -> None:
    """A grace is waited for in a thread: what the stop waits for ends by a task of the same loop."""

    async def let_go(held: socket.socket) -> None:
        for _ in range(10):
            await asyncio.sleep(0.01)
        held.close()

    async def main() -> bool:
        async with Proxy(echo.name, grace=30) as proxy:
            held = connect(proxy.address)
            eventually(lambda: proxy.stats().active == 1)
            ticker = asyncio.create_task(let_go(held))  # begins to run when this block is over
        ended = ticker.done()
        await ticker
        return ended

    assert asyncio.run(main())


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
    assert relays(relayed, b"%d" % turn)


def test_many_at_once(echo: Echo) -> None:
    """Side by side, each on a port of its own, and chained, each in front of the one before."""
    before = descriptors()
    with contextlib.ExitStack() as stack:
        beside = [stack.enter_context(Proxy(echo.name)) for _ in range(20)]
        assert len({proxy.address for proxy in beside}) == 20
        assert all(relays(proxy.address) for proxy in beside)
        last = beside[0]
        for _ in range(10):
            last = stack.enter_context(Proxy("{}:{}".format(*last.address)))
        assert relays(last.address, bytes(100_000))
        assert [proxy.stats().accepted for proxy in beside] == [2] + [1] * 19
    eventually(lambda: not proxy_threads())
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
            assert relays(proxy.address)
    eventually(lambda: not proxy_threads())
    del proxy
    eventually(lambda: descriptors() <= before)


def test_start_and_stop_without_a_block(echo: Echo) -> None:
    proxy = Proxy(echo.name, port=free_port())
    assert proxy.start() is proxy
    assert relays(proxy.address)
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
    with Proxy(echo.name, workers=workers, port=free_port()) as proxy:
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
    eventually(lambda: not proxy_threads())


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
    proxy = Proxy(upstream.name, grace=20, port=free_port())
    with proxy, connect(proxy.address) as client, upstream.accept() as server:
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

    with Proxy(echo.name, on_event=stop_at_end, port=free_port()) as proxy:
        proxies.append(proxy)
        assert relays(proxy.address)
        assert proxy.wait(5), "stop() in on_event does nothing"
        eventually(lambda: refuses(proxy.address))


def test_drain(upstream: Upstream) -> None:
    """Row 97: no new connections at once, the live ones stay."""
    proxy = Proxy(upstream.name, port=free_port())
    with proxy, connect(proxy.address) as client, upstream.accept() as server:
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
        assert relays(proxy.address)
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
    port = free_port()
    for remote, bind in (("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("localhost", "127.0.0.1")):
        with pytest.raises(UsageError, match="is this proxy's own address"):
            Proxy(f"{remote}:{port}", bind=bind, port=port).start()
    assert refuses(("127.0.0.1", port))


def test_own_address_in_other_words() -> None:
    """Row 51: an IPv4 address in IPv6 clothes leads to the same place."""
    port = free_port()
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
            assert relays(proxy.address)


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
    assert str(caught.value).startswith(f"{next(iter(options))} ")


async def never_awaited(event: Event) -> None:
    raise AssertionError


@pytest.mark.parametrize("callback", [5, "print", [], never_awaited], ids=["5", "text", "list", "coroutine"])
def test_bad_callback(echo: Echo, callback: object) -> None:
    """Row 95: when it is made, and not in the log at each event."""
    with pytest.raises(UsageError, match=r"^on_event .*, expected "):
        Proxy(echo.name, on_event=callback)  # type: ignore[arg-type]


BAD_WAITS = ["soon", "", "-1", b"1s", [], True, float("nan"), "400d"]


@pytest.mark.parametrize("value", BAD_WAITS, ids=repr)
def test_bad_waits(echo: Echo, value: object) -> None:
    """A sentence, before anything has been stopped; also in a callback, and in a coroutine."""
    seen: list[str] = []

    def on_event(event: Event) -> None:
        with pytest.raises(UsageError, match=r"^grace "):
            proxy.stop(value)  # type: ignore[arg-type]
        seen.append(event.kind)

    proxy = Proxy(echo.name, on_event=on_event)
    with proxy, connect(proxy.address) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        for call in (proxy.stop, lambda value: asyncio.run(proxy.astop(value))):
            with pytest.raises(UsageError, match=r"^grace .* is (not a duration|out of range), expected "):
                call(value)
        for call in (proxy.wait, lambda value: asyncio.run(proxy.await_end(value))):
            with pytest.raises(UsageError, match=r"^timeout .* is (not a duration|out of range), expected "):
                call(value)
        assert repr(proxy).endswith("listening>")
        client.sendall(b"y")
        assert client.recv(1) == b"y"
    assert "new" in seen


@pytest.mark.parametrize("value", [math.inf, 10**400, 1e300, "1h", 3600, None], ids=lambda it: str(it)[:10])
@pytest.mark.parametrize("workers", [1, 2])
def test_long_waits(echo: Echo, workers: int, value: float | str | None) -> None:
    """For ever, or nearly so: a stop lasts until the connection has ended, a wait until somebody stops."""
    for verb in ("stop", "astop"):
        with Proxy(echo.name, workers=workers, grace=3600) as proxy, connect(proxy.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"

            def stop(proxy: Proxy = proxy, verb: str = verb) -> None:
                done = getattr(proxy, verb)(value)
                if verb == "astop":
                    asyncio.run(done)

            def await_end(proxy: Proxy = proxy) -> None:
                asyncio.run(proxy.await_end(value))

            with in_background(proxy.wait, value), in_background(await_end), in_background(stop):
                assert proxy.wait(10)
                client.sendall(b"y")
                assert client.recv(1) == b"y"
                client.close()


@pytest.mark.parametrize("value", [0, -1, -math.inf, -(10**400), "0s", "20ms", 0.02], ids=lambda it: str(it)[:10])
def test_short_waits(upstream: Upstream, value: float | str) -> None:
    """A number below 0, as of a deadline that has passed, is 0."""
    with Proxy(upstream.name, grace=3600) as proxy, connect(proxy.address) as client, upstream.accept():
        assert not proxy.wait(value)
        assert not asyncio.run(proxy.await_end(value))
        proxy.stop(value)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("remote", ["", "localhost", "localhost:0", None, 8.0, b"localhost:80", ("localhost", "")])
def test_bad_remote(remote: object) -> None:
    """Row 95."""
    with pytest.raises(UsageError, match=r"^(port of )?remote "):
        Proxy(remote)  # type: ignore[arg-type]


def test_public_names() -> None:
    """What `from tcpproxy import *` brings is there and has words; a Literal cannot (test_public_face.py)."""
    for name in tcpproxy.__all__:
        assert getattr(tcpproxy, name).__doc__ or name in ("EventKind", "Reason", "State")
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


def addresses(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Gives the name `many` so many addresses, each of this machine."""
    real = socket.getaddrinfo

    def look_up(host: object, *args: object, **options: object) -> object:
        if host == "many" and options.get("flags"):
            raise socket.gaierror(socket.EAI_NONAME, "it is no number")
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
        assert all(relays(address) for address in proxy.addresses)
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
        with pytest.raises(StartError, match=r"^cannot start a proxy for localhost:9: can't start new thread$"):
            proxy.start()
    assert [name for name in proxy_threads() if name != "tcpproxy-lookup"] == []
    assert seen == []
    assert descriptors() == before
    proxy.stop()


def test_what_was_handed_to_a_thread_that_cannot_start(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker accepts while the second one is started, and gives it a connection: that is reset, too."""
    real = threading.Thread.start
    clients: list[socket.socket] = []
    proxy = Proxy(upstream.name, workers=2)

    def start(thread: threading.Thread) -> None:
        if thread.name == "tcpproxy-worker-1":
            clients.extend(connect(proxy.address) for _ in range(2))
            eventually(lambda: proxy.stats().accepted == 1)
            pause(0.1)  # of the second one, which is in the inbox, nothing tells
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(StartError):
            proxy.start()
    assert len(clients) == 2
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
