"""What a call has done is known when it returns: events are delivered, listeners closed. And events come at once."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
from networks import Closed
from support.command import strace
from support.peers import Echo, connect, echoes
from support.waiting import TIMEOUT, at_best, bounds, eventually, in_background

from tcpproxy import Event, Proxy, crew
from tcpproxy.network import listening as network
from tcpproxy.report.reporter import FEW, GATHER
from tcpproxy.wakeup import Wakeup

pytestmark = pytest.mark.parametrize("workers", [1, 2])


KINDS = ("listening", "new", "connected", "end")
"""Events of connections that go well; the first one comes once."""


def connected(stack: contextlib.ExitStack, proxy: Proxy, count: int) -> list[socket.socket]:
    clients = [stack.enter_context(connect(proxy.address)) for _ in range(count)]
    for client in clients:
        assert echoes(client)
    return clients


def test_abort_returns_when_the_ends_are_told(echo: Echo, workers: int) -> None:
    """Also where several have been written at once, and again and again. Nothing is reported twice."""
    for count in (1, 50) * 10:
        events: list[Event] = []
        with Proxy(echo.name, workers=workers, on_event=events.append) as proxy, contextlib.ExitStack() as stack:
            connected(stack, proxy, count)
            proxy.abort()
            ends = [event for event in events if event.kind == "end"]
            assert Counter(event.reason for event in ends) == {"shutdown": count}
            assert sorted(event.id for event in ends) == list(range(1, count + 1))
            assert (proxy.stats().active, proxy.connections()) == (0, [])
        assert Counter(event.kind for event in events) == {kind: 1 if kind == "listening" else count for kind in KINDS}


def test_start_returns_when_it_is_told(echo: Echo, workers: int) -> None:
    events: list[Event] = []
    with Proxy(echo.name, workers=workers, on_event=events.append) as proxy:
        host, port = proxy.address
        assert [(event.kind, event.text) for event in events] == [("listening", f"{host}:{port}")]


def test_drain_returns_when_nobody_listens(echo: Echo, workers: int) -> None:
    for _ in range(20):
        with Proxy(echo.name, workers=workers) as proxy, contextlib.ExitStack() as stack:
            client = connected(stack, proxy, 1)[0]
            proxy.drain()
            with pytest.raises(ConnectionRefusedError):
                connect(proxy.address)
            assert echoes(client), "connections go on"
            client.close()


def test_drain_and_abort_before_the_start_and_after_the_end(echo: Echo, workers: int) -> None:
    proxy = Proxy(echo.name, workers=workers)
    proxy.drain()
    proxy.abort()
    proxy.start()
    with connect(proxy.address) as client:
        assert echoes(client)
    proxy.stop()
    proxy.drain()
    proxy.abort()


@pytest.mark.parametrize("verb", ["abort", "drain"])
def test_called_while_another_thread_starts(
    echo: Echo, workers: int, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start goes on to its end, but no client is served."""
    starting, go_on = threading.Event(), threading.Event()

    original = network.Port.listen

    def listen(port: network.Port) -> object:
        listeners = original(port)
        starting.set()
        assert go_on.wait(TIMEOUT)
        return listeners

    monkeypatch.setattr(network.Port, "listen", listen)
    proxy = Proxy(echo.name, workers=workers)
    with in_background(proxy.start):
        assert starting.wait(TIMEOUT)
        getattr(proxy, verb)()
        go_on.set()
    assert proxy.wait(0)
    eventually(lambda: "stopped" in repr(proxy), TIMEOUT)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    proxy.stop()
    assert proxy.stats().accepted == 0


@bounds(0.5, 0.005)
def test_events_come_at_once(echo: Echo, workers: int, bound: float) -> None:
    """From connect to `new` and from close to `end`, at the median of some."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with Proxy(echo.name, workers=workers, on_event=events.put) as proxy:
        assert events.get(timeout=TIMEOUT).kind == "listening"

        def latency() -> float:
            times = []
            for _ in range(9):
                start = time.monotonic()
                with connect(proxy.address) as client:
                    assert events.get(timeout=TIMEOUT).kind == "new"
                    times.append(time.monotonic() - start)
                    assert events.get(timeout=TIMEOUT).kind == "connected"
                    assert echoes(client)
                    start = time.monotonic()
                assert events.get(timeout=TIMEOUT).kind == "end"
                times.append(time.monotonic() - start)
                threading.Event().wait(0.03)  # few: the next one is not of the same 20 ms
            return statistics.median(times)

        at_best(latency, bound)


def test_a_sink_that_blocks_holds_no_caller_for_long(echo: Echo, workers: int) -> None:
    """The log thread's drain limit is 3 s; `start` is bounded by it as well."""
    free = threading.Event()

    def block(event: Event) -> None:
        if event.kind == "end":
            free.wait(TIMEOUT)

    with Proxy(echo.name, workers=workers, on_event=block) as proxy, contextlib.ExitStack() as stack:
        stack.callback(free.set)
        connected(stack, proxy, 2)
        start = time.monotonic()
        proxy.abort()
        assert 1 < time.monotonic() - start < TIMEOUT / 2


@pytest.mark.parametrize("verb", ["abort", "drain", "stop"])
def test_called_by_the_sink(echo: Echo, workers: int, verb: str) -> None:
    """It does not wait for itself."""
    called = threading.Event()
    proxy: Proxy

    def sink(event: Event) -> None:
        if event.kind == "new":
            getattr(proxy, verb)()
            called.set()

    proxy = Proxy(echo.name, workers=workers, on_event=sink)
    with proxy:
        with contextlib.suppress(ConnectionError), connect(proxy.address):  # an abort may be faster than connect()
            assert called.wait(TIMEOUT)
        assert called.wait(TIMEOUT)
        assert proxy.wait(TIMEOUT)
        eventually(lambda: proxy.stats().active == 0, TIMEOUT)


@pytest.mark.parametrize("verbs", [("abort", "abort"), ("stop", "abort"), ("drain", "abort"), ("stop", "drain")])
def test_several_threads_at_once(echo: Echo, workers: int, verbs: tuple[str, str]) -> None:
    """Each call returns, and all facts are told once."""
    for _ in range(10):
        events: list[Event] = []
        with Proxy(echo.name, workers=workers, on_event=events.append) as proxy, contextlib.ExitStack() as stack:
            connected(stack, proxy, 5)
            together = threading.Barrier(2, timeout=TIMEOUT)

            def call(verb: str, run: Callable[[], object] = together.wait, proxy: Proxy = proxy) -> None:
                run()
                getattr(proxy, verb)()

            with in_background(call, verbs[0]):
                call(verbs[1])
        assert Counter(event.kind for event in events) == {kind: 1 if kind == "listening" else 5 for kind in KINDS}


class CountedWakeup(Wakeup):
    """Counts the bytes that have woken its thread."""

    count = 0

    def wait(self, timeout: float | None = None) -> None:
        self._reader.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            CountedWakeup.count += len(self._reader.recv(4096))


def test_a_flood_is_gathered_and_nothing_is_lost(echo: Echo, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections come faster than one by one: their events are in batches, and each is there once.

    No record of a batch but the first wakes the log thread.
    """
    count = 3_000 if os.name == "posix" else 300  # under wine a connection takes 15 ms
    events: list[Event] = []
    monkeypatch.setattr(crew, "Wakeup", CountedWakeup)
    monkeypatch.setattr(CountedWakeup, "count", 0)
    with Proxy(echo.name, workers=workers, on_event=events.append) as proxy:
        begun = time.monotonic()
        for _ in range(count):
            connect(proxy.address).close()
        eventually(lambda: proxy.stats().ended == count, TIMEOUT)
        slow = (time.monotonic() - begun) / GATHER * (FEW + 1)  # connections that come one by one after all
        assert CountedWakeup.count < max(2 * count / 10, slow), "a wake-up a record, or nearly"
        proxy.abort()
        assert proxy.stats().events_lost == 0
    assert sorted(event.id for event in events if event.kind == "new") == list(range(1, count + 1))
    assert sorted(event.id for event in events if event.kind in ("end", "failed")) == list(range(1, count + 1))


# --- an event is true when it is delivered ---

TRUE = """
import queue, socket, struct, sys, tcpproxy
heard, kind, workers, target = queue.SimpleQueue(), sys.argv[1], int(sys.argv[2]), sys.argv[3]
def tell(event):
    heard.put((event.kind, event.reason, proxy.stats().active))
def next_of(kind):
    while True:
        event = heard.get(timeout=20)
        if event[0] == kind:
            return event[1:]
limit = None if kind == "handed" else 1
proxy = tcpproxy.Proxy(target, on_event=tell, workers=workers, max_connections_per_source=limit)
with proxy:
    clients = []
    for turn in range(5):
        client = socket.create_connection(proxy.address)
        clients.append(client)
        if kind == "failed":
            reason, active = next_of("failed")
            assert (reason, active) == ("connect-refused", 0), (turn, reason, active)
            continue
        assert next_of("new") == ("", turn + 1 if kind == "handed" else 1), turn
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        if kind == "limit":
            with socket.create_connection(proxy.address) as other:
                assert next_of("failed") == ("limit", 1), turn
        if kind != "handed":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            assert next_of("end") == ("client-reset", 0), turn      # the next client comes at once, and is served
"""


@pytest.mark.parametrize("kind", ["end", "failed", "limit", "handed"])
def test_an_event_is_true_when_it_is_delivered(echo: Echo, closed: Closed, workers: int, kind: str) -> None:
    """The numbers have changed before the program hears why, and the client's source has room for another connection.

    Calls that stand between the two take 30 ms here: of a reset, or of a hand-over to another worker.
    """
    slow = strace("-e", "inject=setsockopt,write:delay_exit=30000", "-o", os.devnull)
    target = closed.name if kind == "failed" else echo.name
    argv = [*slow, sys.executable, "-c", TRUE, kind, str(workers), target]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=3 * TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
