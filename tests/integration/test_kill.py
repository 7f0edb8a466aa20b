"""Connections that the program ends: exact when the call returns, and what each peer sees."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest
from networks import Closed, Silent
from support.peers import Echo, Link, Upstream, connect, reset
from support.states import STATES
from support.streams import MIB, bulk, echoes, is_over, payload, read_all, read_exactly, read_until_reset
from support.waiting import TIMEOUT, eventually, in_background, pause

from tcpproxy import Event, Proxy, UsageError

MakeProxy = Callable[..., Proxy]
ENDS = pytest.mark.parametrize("end", ["reset", "close"])


@pytest.fixture(params=["1", "2", "1 always", "2 always"])
def proxy(request: pytest.FixtureRequest, make_proxy: MakeProxy, upstream: Upstream) -> Proxy:
    """With one worker and two, copying at first and splicing from the first byte."""
    workers, _, mode = request.param.partition(" ")
    return make_proxy(upstream.name, workers=int(workers), **({"zero_copy": mode} if mode else {}))


def pair(proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that has relayed a byte."""
    client = stack.enter_context(connect(proxy.address))
    server = stack.enter_context(upstream.accept())
    client.sendall(b"x")
    assert read_exactly(server, 1) == b"x"
    return client, server


def sees_reset(sock: socket.socket) -> bool:
    return read_until_reset(sock) is not None


# --- what peers and callers see ---


@ENDS
def test_both_peers_see_the_end(
    proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack, events: list[Event], end: str
) -> None:
    pairs = [pair(proxy, upstream, stack) for _ in range(8)]
    assert proxy.kill(end) == 8  # type: ignore[arg-type]
    ends = [event for event in events if event.kind == "end"]
    assert [(event.reason, event.error, event.to_upstream, event.to_client) for event in ends] == [
        ("killed", 0, 1, 0)
    ] * 8
    stats = proxy.stats()
    assert (stats.accepted, stats.active, stats.ended, stats.events_lost) == (8, 0, 8, 0)
    assert proxy.connections() == []
    assert {(it.state, it.reason, it.to_upstream) for it in proxy.connections(ended=True)} == {("ended", "killed", 1)}
    for peer in (peer for each in pairs for peer in each):
        assert sees_reset(peer) if end == "reset" else peer.recv(1) == b""
    assert proxy.kill(end) == 0  # type: ignore[arg-type]


@ENDS
def test_no_byte_crosses_afterwards(
    proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack, events: list[Event], end: str
) -> None:
    """In the middle of bulk both ways: what has been delivered is what the event says, to the byte."""
    pairs = [pair(proxy, upstream, stack) for _ in range(3)]
    both = [*pairs, *((server, client) for client, server in pairs)]
    with contextlib.suppress(ConnectionError), bulk(both):
        before = proxy.stats()
        proxy.wait_for(since=before, to_upstream=8 * MIB, to_client=8 * MIB, timeout=TIMEOUT)
        assert proxy.kill(end) == 3  # type: ignore[arg-type]
        stats = proxy.stats()
        ends = [event for event in events if event.kind == "end"]
        assert sum(event.to_upstream for event in ends) == stats.bytes_to_upstream
        assert sum(event.to_client for event in ends) == stats.bytes_to_client
        pause(0.1)
        later = proxy.stats()
        assert (later.bytes_to_upstream, later.bytes_to_client) == (stats.bytes_to_upstream, stats.bytes_to_client)


def test_an_end_of_file_for_who_still_sends(proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """Not a reset, although its bytes are unread; every byte that was delivered arrives before it."""
    client, server = pair(proxy, upstream, stack)
    data = payload(4 * MIB)
    with in_background(client.sendall, data):
        read_exactly(server, MIB)
        assert proxy.kill("close") == 1
        (ended,) = proxy.connections(ended=True)
        assert read_all(server) == data[MIB : ended.to_upstream - 1]
    assert client.recv(1) == b""
    client.close()
    server.close()


@ENDS
def test_clients_that_are_not_accepted_yet(make_proxy: MakeProxy, echo: Echo, end: str) -> None:
    """What has been connected at the time of the call is ended."""
    proxy = make_proxy(echo.name, workers=2)
    for _ in range(200):
        with connect(proxy.address) as client:
            assert proxy.kill(end) == 1  # type: ignore[arg-type]
            assert is_over(client)
    assert (proxy.stats().accepted, proxy.stats().active) == (200, 0)


@ENDS
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("workers", [1, 2])
def test_in_each_state(
    upstream: Upstream,
    make_proxy: MakeProxy,
    events: list[Event],
    workers: int,
    swapped: bool,
    end: str,
    state: Callable[..., None],
) -> None:
    """The peers are told, and the end is reported once, when the call returns."""
    proxy = make_proxy(upstream.name, workers=workers)
    near, far = Link(upstream, proxy, swapped).pair(b"x")
    read_exactly(far, 1)
    with contextlib.suppress(OSError):
        state(near, far)
    killed = proxy.kill(end)  # type: ignore[arg-type]
    assert killed == sum(event.reason == "killed" for event in events)
    assert proxy.stats().active == 0
    for peer in (near, far):
        if peer.fileno() >= 0:
            assert is_over(peer)
            peer.close()
    assert proxy.kill(end) == 0  # type: ignore[arg-type]
    proxy.stop(grace=5)
    assert sum(event.kind == "end" for event in events) == 1
    assert proxy.stats().ended == 1


@ENDS
def test_while_it_connects(make_proxy: MakeProxy, silent: Silent, events: list[Event], end: str) -> None:
    proxy = make_proxy(silent.name)
    with connect(proxy.address) as client:
        client.sendall(b"a question")
        eventually(lambda: [it.state for it in proxy.connections()] == ["connecting"])
        assert proxy.kill(end) == 1  # type: ignore[arg-type]
        assert sees_reset(client) if end == "reset" else client.recv(1) == b""
    (ended,) = [event for event in events if event.kind == "end"]
    assert (ended.reason, ended.connect_time) == ("killed", 0)


def test_the_last_words_arrive_after_a_stop(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """The grace of a stop waits for connections that were ended by FIN, too: a reset would destroy sent bytes."""
    proxy = make_proxy(upstream.name)
    with connect(proxy.address) as client, upstream.accept() as server:
        server.sendall(payload(MIB // 4))
        proxy.wait_for(to_client=MIB // 4)
        assert proxy.kill("close") == 1
        with in_background(proxy.stop, TIMEOUT):
            assert read_all(server) == b""
            assert read_all(client) == payload(MIB // 4)
            client.close()
            server.close()


@ENDS
@pytest.mark.parametrize("workers", [1, 2])
def test_the_end_is_true(make_proxy: MakeProxy, upstream: Upstream, workers: int, end: str) -> None:
    """When it is delivered, the connection is not counted any more, and both peers have been sent their end."""
    seen: list[object] = []

    def look(event: Event) -> None:
        if event.kind == "end" and event.id == 1:
            live = len(proxy.connections()), proxy.stats().active
            with connect(proxy.address) as client:  # of a source that may have one
                assert echoes_through(client)
            seen.append((live, [is_over(peer) for peer in peers]))

    def echoes_through(client: socket.socket) -> bool:
        client.sendall(b"y")
        with upstream.accept() as server:
            return read_exactly(server, 1) == b"y"

    proxy = make_proxy(upstream.name, workers=workers, max_connections_per_source=1, on_event=look)
    with contextlib.ExitStack() as stack:
        peers = pair(proxy, upstream, stack)
        assert proxy.kill(end, only=1) == 1  # type: ignore[arg-type]
    assert seen == [((0, 0), [True, True])]


# --- which ones ---


def test_only_one(proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack) -> None:
    pairs = [pair(proxy, upstream, stack) for _ in range(4)]
    assert proxy.kill(only=3) == 1
    assert sees_reset(pairs[2][0])
    assert proxy.kill(only=3) == 0
    assert [it.id for it in proxy.connections()] == [1, 2, 4]
    assert [proxy.kill(only=number) for number in (0, -1, 99, 2**64)] == [0, 0, 0, 0]


def test_those_that_a_function_wants(proxy: Proxy, upstream: Upstream, stack: contextlib.ExitStack) -> None:
    pairs = [pair(proxy, upstream, stack) for _ in range(4)]
    port = pairs[1][0].getsockname()[1]
    assert proxy.kill(only=lambda it: it.client.endswith(f":{port}")) == 1
    assert proxy.kill(only=lambda it: it.id % 2) == 2
    assert [it.id for it in proxy.connections()] == [4]
    assert proxy.kill(only=lambda _: False) == 0
    with pytest.raises(ZeroDivisionError):
        proxy.kill(only=lambda it: 1 // 0)
    for wrong in (True, "1", 1.0, [1]):
        with pytest.raises(UsageError, match=r"^only .* is no id, expected "):
            proxy.kill(only=wrong)  # type: ignore[arg-type]
    assert len(proxy.connections()) == 1


def test_words_that_are_none(proxy: Proxy) -> None:
    with pytest.raises(UsageError, match="end 'rst' is unknown, expected reset or close"):
        proxy.kill("rst")  # type: ignore[arg-type]


def test_before_the_start_and_after_the_end(echo: Echo) -> None:
    proxy = Proxy(echo.name)
    assert proxy.kill() == 0
    with proxy:
        assert proxy.kill() == 0
    assert proxy.kill() == 0


def test_while_it_drains(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name)
    with connect(proxy.address) as client:
        assert echoes(client)
        proxy.drain()
        assert proxy.kill() == 1
        assert sees_reset(client)


# --- many, and from everywhere ---


def test_more_than_the_ring_has_room_for(make_proxy: MakeProxy, echo: Echo) -> None:
    """1,024 records of a worker: all ends are delivered all the same, when the call returns, and not at once."""
    count = 1500
    events: list[Event] = []

    def take(event: Event) -> None:
        if event.reason:
            pause(0.0005)
        events.append(event)

    proxy = make_proxy(echo.name, on_event=take)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            assert echoes(stack.enter_context(connect(proxy.address)), b"x")
        assert proxy.kill() == count
        assert sum(event.reason == "killed" for event in events) == count
        assert proxy.stats().events_lost == 0
        assert len(proxy.connections(ended=True)) == 1000


def test_from_on_event(make_proxy: MakeProxy, echo: Echo) -> None:
    """Each new connection is ended by its own event. The call does not wait for events that it delays itself."""
    killed: list[int] = []

    def end(event: Event) -> None:
        if event.kind == "new":
            killed.append(proxy.kill(only=event.id))

    proxy = make_proxy(echo.name, on_event=end, workers=2)
    for _ in range(20):
        with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
            assert is_over(client)
    eventually(lambda: killed == [1] * 20)


def test_while_clients_come_and_go(make_proxy: MakeProxy, echo: Echo, events: list[Event]) -> None:
    """Clients that connect again at once do not keep a call from returning, and nothing is counted twice."""
    proxy = make_proxy(echo.name, workers=2)
    stop = threading.Event()

    def reconnect() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(proxy.address) as client:
                client.sendall(b"again")
                while client.recv(5) and not stop.is_set():
                    client.sendall(b"again")

    def kill(end: str) -> int:
        return sum(proxy.kill(end) for _ in range(100))  # type: ignore[arg-type]

    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(in_background(reconnect))
        stack.callback(stop.set)
        with in_background(kill, "reset") as resets, in_background(kill, "close") as closes:
            pass
    proxy.kill()
    stats = proxy.stats()
    assert (stats.active, stats.accepted, stats.events_lost) == (0, stats.ended, 0)
    assert sum(event.reason == "killed" for event in events) >= resets[0] + closes[0]  # type: ignore[operator]
    assert sum(event.kind == "end" for event in events) == stats.ended


@ENDS
def test_recording(make_proxy: MakeProxy, upstream: Upstream, stack: contextlib.ExitStack, end: str) -> None:
    """It ends there, with what was delivered."""
    proxy = make_proxy(upstream.name, record=True)
    client, server = pair(proxy, upstream, stack)
    server.sendall(b"answer")
    read_exactly(client, 6)
    assert proxy.kill(end) == 1  # type: ignore[arg-type]
    (recording,) = proxy.recordings
    assert (recording.reason, recording.to_upstream, recording.to_client) == ("killed", b"x", b"answer")
    assert repr(recording).endswith("ended: killed>")


def test_a_source_may_come_again(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, max_connections_per_source=1)
    for end in ("close", "reset") * 5:
        with connect(proxy.address) as client:
            assert echoes(client)
            assert proxy.kill(end) == 1  # type: ignore[arg-type]


def test_upstream_that_was_not_reached(make_proxy: MakeProxy, closed: Closed) -> None:
    proxy = make_proxy(closed.name)
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
        assert is_over(client)
    proxy.wait_for(ended=1)
    (ended,) = proxy.connections(ended=True)
    assert (ended.state, ended.reason, ended.id) == ("ended", "connect-refused", 1)


def test_ended_connections_stay_after_the_end(echo: Echo) -> None:
    with Proxy(echo.name) as proxy:
        with connect(proxy.address) as client:
            assert echoes(client)
        proxy.wait_for(ended=1)
        with connect(proxy.address) as client:
            assert echoes(client)
            reset(client)
        proxy.wait_for(ended=2)
    assert [(it.id, it.reason) for it in proxy.connections(ended=True)] == [(1, "client-eof"), (2, "client-reset")]
    assert proxy.connections() == []
