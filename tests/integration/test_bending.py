"""Faults on real connections: what each peer gets to the byte, and how its connection ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from support.machine import fcntl, termios
from support.peers import Echo, Link, Upstream, connect, reset
from support.states import STATES
from support.streams import KIB, MIB, echoes, is_over, payload, read_all, read_exactly, read_until_reset, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

import tcpproxy
from tcpproxy import crew
from tcpproxy.faults import latency
from tcpproxy.handles import KNOWN
from tcpproxy.network import listening

pytestmark = pytest.mark.skipif(not hasattr(termios, "TIOCOUTQ"), reason="asks the kernel what is not acknowledged")

FIRST = payload(3000, 1)
"""What has passed when a fault comes or goes while the connection lives."""

WRITES = {"single-bytes": payload(300, 2), "bulk": payload(2 * MIB, 3)}


class Outcome(NamedTuple):
    digest: str
    end: str
    """Of the receiver: eof or reset."""
    source_end: str
    """Of the sender, if it does not end by itself."""


def digest(data: bytes) -> str:
    return f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()[:16]}"


def unacknowledged(sock: socket.socket) -> int:
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def send(sock: socket.socket, data: bytes, kind: str) -> str:
    """Returns reset if the kernel says so to a call, which it does once."""
    try:
        for part in [data] if kind == "bulk" else [bytes([byte]) for byte in data]:
            sock.sendall(part)
    except ConnectionResetError:
        return "reset"
    except BrokenPipeError:  # after an end of file
        pass
    return ""


def finish(sock: socket.socket, how: str) -> None:
    """Ends what a peer sends, as `how` says, once all of it has left."""
    if how == "half-close":
        sock.shutdown(socket.SHUT_WR)
    elif how == "reset":
        eventually(lambda: unacknowledged(sock) == 0)
        reset(sock)


def receive(sock: socket.socket) -> tuple[bytes, str]:
    """Everything that comes, and how that ends: by errno, not just "closed"."""
    parts = []
    try:
        while part := sock.recv(64 * KIB):
            parts.append(part)
    except ConnectionResetError:
        return b"".join(parts), "reset"
    return b"".join(parts), "eof"


@pytest.fixture(params=[False, True], ids=["up", "down"])
def down(request: pytest.FixtureRequest) -> bool:
    """The direction that has the fault, and in which the bytes go."""
    return request.param


@pytest.fixture(params=["before", "live", "removed"])
def when(request: pytest.FixtureRequest) -> str:
    """Is the fault installed before the connection, while it lives, or removed while it lives?"""
    return request.param


@pytest.fixture(params=list(WRITES))
def writes(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["", "late-reader"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


Carry = Callable[..., Outcome]


@pytest.fixture
def carry(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], down: bool, when: str, writes: str, late: bool
) -> Carry:
    """Sends through a proxy with a fault, and tells what the receiver has got."""
    stream = "down" if down else "up"

    def run(text: str, end: str) -> Outcome:
        fault = f"{stream}:{text}"
        proxy = make_proxy(upstream.name, workers=2, faults=() if when == "live" else fault, seed=1)
        client = connect(proxy.address)
        server = upstream.accept()
        sender, receiver = (server, client) if down else (client, server)
        with client, server:
            head = b""
            if when != "before":
                sender.sendall(FIRST)
                if "stall" not in text:
                    head = read_exactly(receiver, len(FIRST))
                if when == "live":
                    handle = proxy.fault(fault)
                else:
                    proxy.faults[0].remove()
            with in_background(lambda: (send(sender, WRITES[writes], writes), finish(sender, end))) as sent:
                if late:
                    pause(0.15)
                if when == "live" and "stall" in text:
                    handle.wait_fired()
                    handle.remove()
                data, how = receive(receiver)
                if how == "eof" and end != "reset":
                    assert_half_close_is_kept(receiver, sender, end)
                source_end = "" if end else receive(sender)[1]
            if not end:
                source_end = sent[0][0] or source_end
            eventually(lambda: proxy.stats().active == 0 or not end)
        return Outcome(digest(head + data), how, source_end)

    return run


def assert_half_close_is_kept(receiver: socket.socket, sender: socket.socket, end: str) -> None:
    """The other direction goes on after the end of this one; not after a cut."""
    if end == "half-close":
        send_and_shut(receiver, b"answer")
        assert read_all(sender) == b"answer"


def everything(when: str, writes: str) -> str:
    return digest((FIRST if when != "before" else b"") + WRITES[writes])


SOFT = [
    "latency=20ms",
    "latency=15ms,jitter=15ms,distribution=normal",
    "latency=10ms,after_bytes=100",
    "bandwidth=30MB/s",
    "slicer=5000,size_variation=4000",
    "slow_close=30ms",
    "timeout=10s,idle=true",
    "limit_data=100MB",
    "reset_peer,after_bytes=100MB",
]


@pytest.mark.parametrize("end", ["half-close", "reset"])
@pytest.mark.parametrize("text", SOFT)
def test_nothing_is_lost(carry: Carry, text: str, end: str, when: str, writes: str) -> None:
    """A fault that delays, or that is not reached: all bytes, and the end of the sender, an RST as an RST."""
    assert carry(text, end) == (everything(when, writes), "eof" if end == "half-close" else "reset", "")


@pytest.mark.parametrize("end", ["half-close", "reset"])
@pytest.mark.parametrize("when", ["live", "removed"])
def test_a_stall_loses_nothing(carry: Carry, end: str, when: str, writes: str) -> None:
    """What it has held is delivered when it is removed, the end of the sender as well."""
    assert carry("stall", end) == (everything(when, writes), "eof" if end == "half-close" else "reset", "")


CUTS = [
    ("limit_data=250", "eof"),
    ("limit_data=250,end=reset", "reset"),
    ("reset_peer,after_bytes=250", "reset"),
    ("close,after_bytes=250", "eof"),
    ("reset_peer,after_bytes=250,timeout=20ms", "reset"),
    ("limit_data=0", "eof"),
    ("reset_peer,after_bytes=0", "reset"),
]


@pytest.mark.parametrize(("text", "end"), CUTS)
@pytest.mark.parametrize("when", ["before", "live"])
def test_cuts(carry: Carry, text: str, end: str, when: str, writes: str) -> None:
    """Exactly so many bytes, counted from when the fault has taken the connection; the sender sees the end, too."""
    passed = 0 if "=0" in text else 250
    before = FIRST if when == "live" else b""
    assert carry(text, "") == (digest(before + WRITES[writes][:passed]), end, end)


# --- others ---


def end_of(events: list[tcpproxy.Event]) -> tcpproxy.Event:
    eventually(lambda: "end" in [it.kind for it in events])
    return next(it for it in events if it.kind == "end")


def is_reset(address: tuple[str, int]) -> bool:
    """Is a client reset at once? It may hear of that in connect()."""
    try:
        with connect(address) as client:
            return not echoes(client, b"?")
    except (ConnectionResetError, BrokenPipeError):
        return True


def test_reset_and_close_at_accept(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream) -> None:
    """The first connection ends before upstream is connected to; the second and the third are relayed."""
    proxy = make_proxy(upstream.name, faults=["reset_peer,nth=1", "close,nth=2"])
    assert is_reset(proxy.address)
    with connect(proxy.address) as client:
        client.sendall(b"unread")
        assert client.recv(1) == b""
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"3")
        assert server.recv(1) == b"3"


@pytest.mark.parametrize("live", [False, True], ids=["before", "live"])
@pytest.mark.parametrize(("text", "end"), [("timeout=50ms", "eof"), ("timeout=50ms,end=reset", "reset")])
def test_timeout(
    make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream, text: str, end: str, live: bool, down: bool
) -> None:
    """Bytes of the direction are discarded, those of the other one pass; then both ends."""
    fault = f"{'down' if down else 'up'}:{text}"
    proxy = make_proxy(upstream.name, faults=() if live else fault)
    with connect(proxy.address) as client, upstream.accept() as server:
        sender, receiver = (server, client) if down else (client, server)
        if live:
            proxy.fault(fault)
        sender.sendall(b"lost")
        receiver.sendall(b"other way")
        assert read_exactly(sender, 9) == b"other way"
        assert receive(receiver) == (b"", end)
        assert receive(sender) == (b"", end)


def test_a_hole_is_no_stream(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream) -> None:
    """A timeout that is removed resets the connection if it has discarded bytes; else the connection goes on."""
    proxy = make_proxy(upstream.name, workers=2)
    with contextlib.ExitStack() as stack:
        (victim, one), (other, two) = [
            (stack.enter_context(connect(proxy.address)), stack.enter_context(upstream.accept())) for _ in range(2)
        ]
        handle = proxy.fault("to_upstream:timeout=0")
        victim.sendall(b"lost")
        handle.wait_fired()
        handle.remove()
        assert receive(victim) == (b"", "reset")
        assert receive(one) == (b"", "reset")
        other.sendall(b"lives")
        assert read_exactly(two, 5) == b"lives"


def test_a_cut_in_time_does_not_wait_for_a_reader(
    make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream, down: bool
) -> None:
    """A receiver that has stopped to read does not hold a reset back."""
    stream = "down" if down else "up"
    proxy = make_proxy(upstream.name, faults=f"{stream}:reset_peer,timeout=200ms")
    with connect(proxy.address) as client, upstream.accept() as server:
        sender, receiver = (server, client) if down else (client, server)
        assert send(sender, bytes(64 * MIB), "bulk") == "reset"
        read_until_reset(receiver)


def echo_time(client: socket.socket) -> float:
    begin = time.monotonic()
    assert echoes(client)
    return time.monotonic() - begin


def test_both_directions_have_one_verdict(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """With toxicity: a connection has the fault in both directions or in none; raising it frees no connection."""
    proxy = make_proxy(echo.name, faults="both:latency=40ms,toxicity=0.5", seed=8123, workers=2)

    def slow() -> list[bool]:
        found = []
        for client in clients:
            took = min(echo_time(client) for _ in range(4))  # a busy machine may be slow, but not four times
            assert took < 0.040 or took >= 0.080
            found.append(took > 0.060)
        return found

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(12)]
        first = slow()
        assert 0 < sum(first) < 12
        assert slow() == first
        proxy.faults[0].update(toxicity=0.8)
        later = slow()
        assert all(after >= before for before, after in zip(first, later, strict=True))


def test_the_same_seed_the_same_connections(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """However many workers there are."""
    found = []
    for workers in (1, 2, 4):
        proxy = make_proxy(echo.name, faults="reset_peer,toxicity=30%", seed=5, workers=workers)
        found.append([])
        found[-1] = [is_reset(proxy.address) for _ in range(40)]
    assert found[0] == found[1] == found[2]
    assert 0 < sum(found[0]) < 40


def test_idle_clocks_stand_still_while_bytes_are_held(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """Neither the idle limit nor that of a half-close ends a connection whose bytes the proxy holds."""
    proxy = make_proxy(echo.name, idle_timeout=0.1, half_close_timeout=0.1, faults="both:latency=400ms")
    with connect(proxy.address) as client:
        send_and_shut(client, b"hello")
        assert read_all(client) == b"hello"


def test_pause_and_faults(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """What is due while the proxy is paused leaves when that is over; the worker sleeps meanwhile."""
    proxy = make_proxy(echo.name, faults="both:latency=20ms")
    with connect(proxy.address) as client:
        with proxy.pause():
            client.sendall(b"held")
            pause(0.1)
            before = proxy.stats().wakeups
            pause(0.2)
            assert proxy.stats().wakeups - before < 20
        assert read_exactly(client, 4) == b"held"
        with proxy.pause("to_upstream"), proxy.fault("stall"):
            client.sendall(b"more")
            pause(0.05)
        assert read_exactly(client, 4) == b"more"


def test_an_idle_worker_sleeps(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream) -> None:
    """Faults that hold for good, or that wait for a reader, do not make it spin."""
    proxy = make_proxy(upstream.name, faults=["to_upstream:stall", "to_client:latency=1ms"], socket_buffer="64KiB")
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(bytes(64 * KIB))
        server.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                server.send(bytes(64 * KIB))
        pause(0.1)
        before = proxy.stats().wakeups
        pause(0.3)
        assert proxy.stats().wakeups - before < 20


def test_recordings_are_what_the_peer_was_given(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """In the order and up to the position of a cut; what is held is not in them yet."""
    proxy = make_proxy(echo.name, record=True, faults=["limit_data=5,first=1", "to_upstream:stall,nth=2"])
    with connect(proxy.address) as client:
        client.sendall(b"0123456789")
        assert receive(client) == (b"01234", "eof")
    eventually(lambda: proxy.stats().ended == 1)
    recording = proxy.recordings[0]
    assert (bytes(recording.to_upstream), bytes(recording.to_client)) == (b"0123456789", b"01234")
    with connect(proxy.address) as client:
        client.sendall(b"held")
        eventually(lambda: proxy.connections() and proxy.connections()[0].waiting_for_upstream == 4)
        assert bytes(proxy.recordings[1].to_upstream) == b""
        proxy.restore()
        assert read_exactly(client, 4) == b"held"
        assert bytes(proxy.recordings[1].to_upstream) == b"held"


@pytest.mark.parametrize("record", [False, True], ids=["", "recorded"])
def test_a_fault_takes_over_what_is_buffered(
    make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream, record: bool
) -> None:
    """Bulk in pipes and buffers of a live connection, with a reader that has stopped: nothing is lost or sent twice."""
    data = payload(16 * MIB)
    proxy = make_proxy(upstream.name, record=4 * KIB if record else False)
    with connect(proxy.address) as client, upstream.accept() as server, in_background(send_and_shut, client, data):
        eventually(lambda: proxy.connections()[0].waiting_for_upstream > 0)
        with proxy.fault("to_upstream:stall"):
            pause(0.05)
        with proxy.fault("to_upstream:latency=5ms"):
            assert digest(read_all(server)) == digest(data)


@pytest.mark.parametrize("workers", [1, 4])
def test_changes_under_load_lose_nothing(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, workers: int) -> None:
    """A thousand changes of the faults, on connections that carry bulk and on new ones."""
    proxy = make_proxy(echo.name, workers=workers)
    texts = ["both:latency=2ms", "to_upstream:bandwidth=50MB/s", "slicer=3000", "stall", "to_upstream:limit_data=100GB"]
    stop = threading.Event()
    data = payload(64 * KIB)

    def traffic() -> int:
        rounds = 0
        while not stop.is_set():
            with connect(proxy.address) as client:
                for _ in range(10):
                    client.sendall(data)
                    assert read_exactly(client, len(data)) == data
                    rounds += 1
        return rounds

    with contextlib.ExitStack() as stack:
        results = [stack.enter_context(in_background(traffic)) for _ in range(12)]
        stack.callback(stop.set)
        for number in range(500):
            with proxy.fault(texts[number % 5], texts[(number + 1) % 5]):
                if number % 50 == 0:
                    pause(0.01)
    assert all(rounds for result in results for rounds in result)
    assert proxy.stats().failed == 0
    assert proxy.faults == ()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "text", ["both:latency=2ms", "both:stall", "both:stall,first=1", "to_upstream:slicer=100", "to_client:slicer=100"]
)
def test_each_state_goes_on(
    make_proxy: Callable[..., tcpproxy.Proxy],
    upstream: Upstream,
    state: Callable[..., None],
    swapped: bool,
    text: str,
    events: list[tcpproxy.Event],
) -> None:
    """A fault that comes and goes, or that takes no connection that there is, changes no end."""
    proxy = make_proxy(upstream.name, workers=2)
    near, far = Link(upstream, proxy, swapped).pair(b"x")
    with near, far:
        far.sendall(read_exactly(far, 1))
        read_exactly(near, 1)
        with contextlib.suppress(OSError):
            state(near, far)
        for _ in range(3):
            with proxy.fault(text):
                pause(0.01)
        open_ends = [end for end in (near, far) if end.fileno() >= 0]
        for end in open_ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
        with contextlib.ExitStack() as stack:
            for end in open_ends:
                stack.enter_context(in_background(is_over, end))
        proxy.wait_for(active=0, timeout=TIMEOUT)
    assert end_of(events).reason in ("client-eof", "upstream-eof", "client-reset", "upstream-reset")
    assert end_of(events).error != errno.ENOMEM


def test_positions_count_on_while_there_is_no_fault(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event]
) -> None:
    """The position of an event is that of the stream, whatever faults came and went before."""
    proxy = make_proxy(echo.name)
    with connect(proxy.address) as client, proxy.fault("to_upstream:latency=1ms"):
        for _ in range(3):
            with proxy.fault("to_client:latency=1ms"):
                assert echoes(client, b"12345")
            assert echoes(client, b"12345")
        with proxy.fault("limit_data=2,end=reset"):
            client.sendall(b"12345")
            assert receive(client) == (b"12", "reset")
    assert end_of(events).to_client == 32
    assert [it.to_client for it in events if it.kind == "fault"][-1] == 32


# --- the same again ---


@pytest.mark.parametrize(
    ("faults", "where"),
    [
        (["reset_peer,after_bytes=700,toxicity=40%", "close,after_bytes=0,nth=3"], {"reset_peer": 700, "close": 0}),
        (
            ["to_upstream:limit_data=1300,toxicity=30%,end=reset", "to_upstream:stall,after_bytes=50,every=7"],
            {"limit_data": 1300, "stall": 50},
        ),
    ],
    ids=["down", "up"],
)
def test_the_same_log_however_the_bytes_are_cut(
    make_proxy: Callable[..., tcpproxy.Proxy],
    echo: Echo,
    events: list[tcpproxy.Event],
    faults: list[str],
    where: dict[str, int],
) -> None:
    """Connections and positions at which faults act do not depend on the reads, nor on the workers.

    One direction at a time: which of two directions comes first to a cut is left to chance.
    """
    jitter = "both:latency=1ms,jitter=1ms,toxicity=50%"
    data = payload(2000)
    logs = []
    for size, workers in ((1, 1), (7, 2), (65536, 4), (65536, 1)):
        events.clear()
        proxy = make_proxy(echo.name, faults=[*faults, jitter], seed=8123, workers=workers)
        for number in range(1, 22):
            with connect(proxy.address) as client:
                ending = send_in_pieces(client, data, size)
                if "stall" in where and number % 7 == 0:
                    proxy.faults[1].wait_fired(number // 7)
                    continue
                if ending == "":
                    with contextlib.suppress(OSError):  # it was reset meanwhile
                        client.shutdown(socket.SHUT_WR)
                receive(client)
        proxy.abort()
        acted = [it for it in events if it.kind == "fault" and it.text.rpartition("_to_")[0] in where]
        logs.append(
            sorted((it.id, it.text, it.to_upstream if "to_upstream" in it.text else it.to_client) for it in acted)
        )
    assert logs[0] == logs[1] == logs[2] == logs[3]
    assert {(name.rpartition("_to_")[0], at) for _, name, at in logs[0]} == set(where.items())


def send_in_pieces(sock: socket.socket, data: bytes, size: int) -> str:
    """Returns reset if the kernel says so."""
    try:
        for at in range(0, len(data), size):
            sock.sendall(data[at : at + size])
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    return ""


# --- when a client is accepted ---


def test_blackhole(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream) -> None:
    """Nothing happens to the client; it is reset when the fault goes. Others are connected."""
    proxy = make_proxy(upstream.name, faults="blackhole,nth=1", connect_timeout=0.1, workers=2)
    with connect(proxy.address) as client, connect(proxy.address) as other, upstream.accept() as server:
        client.sendall(b"lost")
        other.sendall(b"2")
        assert server.recv(1) == b"2"
        pause(0.2)
        assert proxy.stats().active == 2
        assert proxy.faults[0].fired == 1
        proxy.restore()
        assert receive(client) == (b"", "reset")
        assert echoes_between(other, server)


def echoes_between(one: socket.socket, other: socket.socket) -> bool:
    one.sendall(b"to")
    other.sendall(b"fro")
    return (read_exactly(other, 2), read_exactly(one, 3)) == (b"to", b"fro")


def test_connect_delay(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """Upstream is connected to later, and the limit for that begins then; at once when the fault goes."""
    proxy = make_proxy(echo.name, faults="connect_delay=200ms", connect_timeout=0.1)
    with connect(proxy.address) as client:
        begin = time.monotonic()
        assert echoes(client)
        assert time.monotonic() - begin >= 0.190
        begin = time.monotonic()
        assert echoes(client)
        assert time.monotonic() - begin < 0.1
    proxy.faults[0].update(delay="1h")
    with connect(proxy.address) as client:
        proxy.faults[0].wait_fired(2)
        proxy.restore()
        assert echoes(client)


def test_connect_delay_and_a_client_that_leaves(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    proxy = make_proxy(echo.name, faults="connect_delay=1h")
    client = connect(proxy.address)
    proxy.faults[0].wait_fired()
    reset(client)
    eventually(lambda: proxy.stats().active == 0)


def test_refuse(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """New clients are refused, on the same port; what is connected lives, and the verbs of the proxy go with it."""
    proxy = make_proxy(echo.name, workers=2)
    with connect(proxy.address) as client:
        for _ in range(3):
            with proxy.fault("refuse"):
                with pytest.raises(ConnectionRefusedError):
                    connect(proxy.address)
                assert echoes(client)
            with connect(proxy.address) as other:
                assert echoes(other)
    with proxy.down("keep"):
        proxy.fault("refuse")
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    proxy.restore()
    with connect(proxy.address) as client:
        assert echoes(client)


def test_refuse_from_the_start(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    proxy = make_proxy(echo.name, faults="refuse")
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    proxy.faults[0].remove()
    with connect(proxy.address) as client:
        assert echoes(client)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems cannot let clients hang")


def hangs(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=0.3).close()
    except TimeoutError:
        return True
    return False


@linux
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "localhost"])
def test_hang(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, bind: str, workers: int) -> None:
    """Connecting does not complete; open connections go on, and clients that still try are connected in the end."""
    proxy = make_proxy(echo.name, workers=workers, bind=bind)
    with connect(proxy.address) as client:
        with proxy.fault("hang"):
            assert all(hangs(address[:2]) for address in proxy.addresses)
            assert echoes(client)
            with socket.socket(socket.AF_INET6 if ":" in proxy.address[0] else socket.AF_INET) as late:
                late.setblocking(False)
                late.connect_ex(proxy.address)
                pause(0.1)
                assert proxy.stats().accepted == 1
                proxy.restore()
                late.settimeout(TIMEOUT)
                assert echoes(late)
        assert echoes(client)
        with connect(proxy.address) as other:
            assert echoes(other)


@linux
def test_hang_from_the_start_and_beside_others(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """A port that refuses does so; when it listens again, its clients hang."""
    proxy = make_proxy(echo.name, faults="hang", workers=2)
    assert hangs(proxy.address)
    with proxy.down(), pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    assert hangs(proxy.address)
    with proxy.fault("refuse"):
        proxy.faults[0].remove()
        proxy.fault("hang")
    assert hangs(proxy.address)
    with proxy.fault("refuse"):
        proxy.faults[0].remove()
    assert is_accepted(proxy.address)


def is_accepted(address: tuple[str, int]) -> bool:
    with connect(address) as client:
        return echoes(client)


@linux
def test_clients_that_wait_are_no_clients_that_hang(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """Who has connected before, and was not accepted, is accepted."""
    proxy = make_proxy(echo.name, max_connections=1)
    with connect(proxy.address) as first:
        assert echoes(first)
        with connect(proxy.address) as second:
            second.sendall(b"hello")
            with proxy.fault("hang"):
                first.close()
                assert read_exactly(second, 5) == b"hello"


def test_hang_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence, whichever way it is given."""
    words = "^clients of UNIX sockets cannot hang, expected a proxy that listens on TCP ports only$"
    if sys.platform.startswith("linux"):
        with pytest.raises(tcpproxy.UsageError, match=words):
            tcpproxy.Proxy(forwards=[f"{tmp_path}/socket:127.0.0.1:1"], faults="hang")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(tcpproxy.UsageError, match=r"^this system cannot let clients hang, expected Linux; blackhole"):
        tcpproxy.Proxy("127.0.0.1:1", faults=["latency=1ms", "hang,start=1h"])


# --- windows ---


def test_windows_open_and_close(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """By the clock of the proxy; what was held goes on when the window closes."""
    begin = time.monotonic()
    proxy = make_proxy(echo.name, faults=["both:stall,start=1s,for=200ms", "refuse,start=1s,for=200ms"])
    with connect(proxy.address) as client:
        assert echoes(client)
        assert time.monotonic() - begin < 1
        eventually(lambda: not accepts(proxy.address))
        client.sendall(b"held")
        proxy.faults[0].wait_fired()
        assert read_exactly(client, 4) == b"held"
        assert time.monotonic() - begin >= 1.2
        eventually(lambda: accepts(proxy.address))
        assert echoes(client)


def test_windows_of_a_fault_that_comes_later(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """They count from when it is in force, however old the proxy is, and whether or not it had faults before."""
    for before in ((), "to_upstream:latency=1us"):
        proxy = make_proxy(echo.name, faults=before)
        with connect(proxy.address) as client:
            assert echoes(client)
            pause(0.1)
            begin = time.monotonic()
            with proxy.fault("both:stall,start=50ms,for=50ms") as held:
                while not held.fired:
                    assert time.monotonic() - begin < TIMEOUT
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"
            assert time.monotonic() - begin >= 0.1


def test_waiting_in_vain(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """It does not wait on when the fault is gone, or the proxy."""
    proxy = make_proxy(echo.name, faults=["stall", "to_upstream:stall"])
    down, up = proxy.faults
    with pytest.raises(tcpproxy.WaitTimeout, match=r"^not within 0\.01 s: stall_to_client fired on 0 of 1 "):
        down.wait_fired(timeout=0.01)
    for end, text in ((down.remove, "before it was removed: stall_to_client"), (proxy.stop, "before the proxy ended")):
        handle = down if end == down.remove else up
        with (
            in_background(lambda end=end: (pause(0.05), end())),
            pytest.raises(tcpproxy.WaitTimeout, match=f"^not {text}"),
        ):
            handle.wait_fired(timeout=None)


def test_a_port_that_the_system_does_not_let_open(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call raises and has changed nothing; once more it does what it says."""

    def fail(*_: object) -> None:
        raise tcpproxy.StartError(errno.EMFILE, "no descriptors")

    proxy = make_proxy(echo.name, faults="to_upstream:latency=1us")
    refuse = proxy.fault("refuse", "stall,first=1")
    with monkeypatch.context() as patch:
        patch.setattr(listening.Port, "listen", fail)
        with pytest.raises(tcpproxy.StartError, match="no descriptors"):
            refuse.remove()
    assert [it.name for it in proxy.faults] == ["latency_to_upstream", "refuse", "stall_to_client"]
    assert not accepts(proxy.address)
    refuse.remove()
    assert [it.name for it in proxy.faults] == ["latency_to_upstream"]
    assert accepts(proxy.address)
    with monkeypatch.context() as patch:
        patch.setattr(crew.Crew, "hang", fail)
        patch.setattr(listening.Port, "keep", fail)
        for text in ("hang", "refuse") if sys.platform == "linux" else ("refuse",):
            with pytest.raises(tcpproxy.StartError, match="no descriptors"):
                proxy.fault(text, "stall")
    assert len(proxy.faults) == 1
    assert len(proxy._every_fault) == 3
    with connect(proxy.address) as client:
        assert echoes(client)


def test_a_stop_ends_the_windows(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """Their thread is over when it returns, also if it is about to change something."""
    for _ in range(200):
        make_proxy(echo.name, faults="stall,for=5ms,repeat=10ms").stop(0)
        assert "tcpproxy-faults" not in [it.name for it in threading.enumerate()]


def test_a_window_that_cannot_close(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can listen again, for want of descriptors: it is said once, and tried until it can be done."""
    proxy = make_proxy(echo.name, faults="refuse,for=100ms")
    tries = []

    def fail(*_: object) -> None:
        tries.append(1)
        raise tcpproxy.StartError(errno.EMFILE, "cannot listen")

    monkeypatch.setattr(listening.Port, "listen", fail)
    eventually(lambda: len(tries) > 1)
    assert not accepts(proxy.address)
    monkeypatch.undo()
    eventually(lambda: accepts(proxy.address))
    assert [it.text for it in events if it.kind == "warning"] == ["cannot listen; it is tried again"]
    with connect(proxy.address) as client:
        assert echoes(client)


def accepts(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True


# --- handles and events ---


def test_handle(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event]) -> None:
    proxy = make_proxy(echo.name)
    with connect(proxy.address) as client, proxy.fault(latency("30ms")) as held:
        assert (held.name, held.fired, held.connections) == ("latency_to_client", 0, ())
        client.sendall(b"x")
        held.wait_fired()
        assert client.recv(1) == b"x"
        eventually(lambda: held.connections == (1,))
        assert proxy.faults == (held,)
        held.update(latency="10s")
        with pytest.raises(tcpproxy.WaitTimeout, match=r"fired on 1 of 2 connections"):
            held.wait_fired(2, timeout=0.01)
        with pytest.raises(tcpproxy.UsageError, match=r"^timeout nan "):
            held.wait_fired(2, timeout=float("nan"))
        for wrong in ("x", None, True, 1.5, -1):
            with pytest.raises(tcpproxy.UsageError, match=r"^n .* is not a whole number"):
                held.wait_fired(wrong)  # type: ignore[arg-type]
        client.sendall(b"y")
    assert (proxy.faults, held.fired) == ((), 1)
    with pytest.raises(tcpproxy.UsageError, match="not in force any more"):
        held.update(latency="1s")
    held.remove()
    end = end_of(events)
    assert end.faults == ("latency_to_client",)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_connections_say(make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream, workers: int) -> None:
    """Which faults have acted, as soon as they have, and what they hold; without faults neither."""
    chosen = "connection=1"
    faults = [
        f"to_upstream:stall,{chosen}",
        f"to_client:latency=1h,{chosen}",
        "to_client:latency=1ms,name=unused,connection=7",
    ]
    proxy = make_proxy(upstream.name, workers=workers, faults=faults)
    with contextlib.ExitStack() as stack:
        (client, server), (other, its_server) = [
            (stack.enter_context(connect(proxy.address)), stack.enter_context(upstream.accept())) for _ in range(2)
        ]
        assert [(it.faults, it.held) for it in proxy.connections()] == [((), (0, 0))] * 2
        client.sendall(b"12345")
        proxy.faults[0].wait_fired()
        assert [(it.faults, it.held) for it in proxy.connections()] == [(("stall_to_upstream",), (5, 0)), ((), (0, 0))]
        server.sendall(b"123")
        other.sendall(b"12")
        assert read_exactly(its_server, 2) == b"12"
        proxy.faults[1].wait_fired()
        both = ("stall_to_upstream", "latency_to_client")
        first, second = proxy.connections()
        assert (set(first.faults), first.held, second.faults) == ({*both}, (5, 3), ())
        assert (first.waiting_for_upstream, first.waiting_for_client) == (5, 3)
        proxy.restore()
        assert read_exactly(client, 3) == b"123"
        assert read_exactly(server, 5) == b"12345"
        eventually(lambda: [{*it.faults} for it in proxy.connections()] == [{*both}, set()])
        assert [it.held for it in proxy.connections()] == [(0, 0)] * 2
    first, second = sorted(eventually_over(proxy, 2), key=lambda it: it.id)
    assert ({*first.faults}, second.faults) == ({*both}, ())


def eventually_over(proxy: tcpproxy.Proxy, count: int) -> list[tcpproxy.Connection]:
    proxy.wait_for(ended=count)
    return proxy.connections(ended=True)


def test_connections_while_faults_change(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """connections() during changes gives the names of faults that have acted, and no others."""
    proxy = make_proxy(echo.name, workers=2, faults="both:latency=1us,name=always")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            with proxy.fault("to_client:latency=1s,connection=99,name=never", "stall,connection=99"):
                pass

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(4)]
        assert all(echoes(client) for client in clients)
        stack.enter_context(in_background(change))
        stack.callback(stop.set)
        for _ in range(200):
            assert [it.faults for it in proxy.connections()] == [("always",)] * 4


def test_event_and_end(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event]) -> None:
    """The event of a cut has its position; the end has the name of the fault."""
    proxy = make_proxy(echo.name, faults="limit_data=3,end=reset,name=cut")
    with connect(proxy.address) as client:
        client.sendall(b"hello")
        assert receive(client) == (b"hel", "reset")
    end = end_of(events)
    assert (end.reason, end.faults, end.to_client) == ("fault", ("cut",), 3)
    fault = next(it for it in events if it.kind == "fault")
    assert (fault.text, fault.id, fault.to_client) == ("cut", 1, 3)
    assert [it.kind for it in events if it.id] == ["new", "connected", "fault", "end"]


def test_one_shot(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """`times=1`: the first connection with an answer loses it; the request was done."""
    proxy = make_proxy(echo.name, faults="reset_peer,after_bytes=0,times=1", workers=2)
    with connect(proxy.address) as client:
        client.sendall(b"x")
        assert receive(client) == (b"", "reset")
    assert proxy.faults[0].fired == 1
    with connect(proxy.address) as client:
        assert echoes(client)


def test_faults_of_one_call_have_one_handle(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    proxy = make_proxy(echo.name)
    both = proxy.fault("latency=1ms", "latency=2ms")
    assert [both[0].name, both[1].name, len(both)] == ["latency_to_client", "latency_to_client#2", 2]
    with pytest.raises(tcpproxy.UsageError, match=r"expected handle\[0\]"):
        both.update(latency="1s")
    both[0].remove()
    assert proxy.faults == (both[1],)
    both[1].update(jitter="1ms")
    assert str(both[1].fault) == "latency=2ms,jitter=1ms"
    proxy.restore()
    assert proxy.faults == ()


def test_wrong_faults_change_nothing(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    with pytest.raises(tcpproxy.UsageError, match=r"100 has no unit|'100' has no unit, expected '100ms' or '100s'"):
        tcpproxy.Proxy(1, faults="latency=100")
    with pytest.raises(tcpproxy.UsageError, match="seed"):
        tcpproxy.Proxy(1, seed=-1)
    proxy = make_proxy(echo.name, faults="slicer=10")
    with pytest.raises(tcpproxy.UsageError, match="another slicer"):
        proxy.fault("latency=1ms", "slicer=20")
    with pytest.raises(tcpproxy.UsageError, match="expected 32 at most"):
        proxy.fault(*["latency=1ms"] * 32)
    assert [it.name for it in proxy.faults] == ["slicer_to_client"]
    with pytest.raises(tcpproxy.UsageError, match="faults 5 are no faults, expected"):
        tcpproxy.Proxy(1, faults=5)  # type: ignore[arg-type]
    with pytest.raises(tcpproxy.UsageError, match="has a name of its own already"):
        proxy.faults[0].update(name="other")


def test_first_faults_of_several_threads(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """None is lost."""
    for _ in range(20):
        proxy = make_proxy(echo.name)
        together = threading.Barrier(4)

        def install(number: int, proxy: tcpproxy.Proxy = proxy, together: threading.Barrier = together) -> None:
            together.wait(TIMEOUT)
            proxy.fault(f"latency=1us,name=fault-{number}")

        with contextlib.ExitStack() as stack:
            for number in range(4):
                stack.enter_context(in_background(install, number))
        assert sorted(it.name for it in proxy.faults) == [f"fault-{number}" for number in range(4)]
        proxy.abort()


def test_a_client_that_waits_is_from_before(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """A connection that was made before the fault is live, also if no worker has accepted it yet."""
    proxy = make_proxy(echo.name, workers=2)
    for _ in range(200):
        with connect(proxy.address) as client, proxy.fault("reset_peer,first=1", "close,live=false,after_bytes=0"):
            assert echoes(client)


def test_a_fault_is_known_for_as_long_as_it_is_in_force(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event]
) -> None:
    """However many others have come and gone since."""
    proxy = make_proxy(echo.name)
    held = proxy.fault("latency=1us")
    for _ in range(KNOWN + 10):
        proxy.fault("to_upstream:latency=1us").remove()
    with connect(proxy.address) as client:
        assert echoes(client)
    assert end_of(events).faults == ("latency_to_client",)
    assert held.connections == (1,)
    assert held in proxy._every_fault


@pytest.mark.parametrize("text", ["limit_data=100", "limit_data=100,scope=proxy"])
def test_a_limit_behind_the_end_of_a_direction(
    make_proxy: Callable[..., tcpproxy.Proxy], upstream: Upstream, text: str
) -> None:
    """It has nothing to cut any more: the other direction goes on, and the worker does not poll in vain."""
    proxy = make_proxy(upstream.name)
    with connect(proxy.address) as client, upstream.accept() as server, proxy.fault(text) as limit:
        server.sendall(bytes(50))
        server.shutdown(socket.SHUT_WR)
        assert read_all(client) == bytes(50)
        limit.update(bytes=10)
        client.sendall(b"x")
        assert read_exactly(server, 1) == b"x"
        before = proxy.stats().wakeups
        pause(0.2)
        assert proxy.stats().wakeups - before < 20


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_limit_of_all_ends_idle_connections(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, workers: int, end: str
) -> None:
    """At once, and not when a byte comes; again when a limit that was raised is reached."""
    proxy = make_proxy(echo.name, workers=workers, faults=f"limit_data=10,scope=proxy,end={end}")
    limit = proxy.faults[0]
    for turn in range(2):
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(connect(proxy.address)) for _ in range(5)]
            for each in idle[:5]:
                each.sendall(b"1")
                assert read_exactly(each, 1) == b"1"
            idle[0].sendall(b"12345")
            proxy.wait_for(ended=5 * turn + 5, active=0)
            for each in idle[1:]:
                if end == "close":
                    assert read_all(each) == b""
                else:
                    with pytest.raises(ConnectionResetError):
                        each.recv(1)
        limit.update(bytes=20)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("text", ["limit_data=5", "to_upstream:limit_data=5", "close=1ms", "timeout=1ms"])
def test_a_connection_that_is_cut_by_fin_is_over(
    make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, events: list[tcpproxy.Event], text: str, workers: int
) -> None:
    """Also while its peers are still there, so that nobody waits for them; what they send then is discarded."""
    proxy = make_proxy(echo.name, workers=workers)
    with connect(proxy.address) as client:
        assert echoes(client, b"1234")
        with proxy.fault(text):
            client.sendall(b"56789")
            proxy.wait_for(ended=1, active=0, timeout=TIMEOUT / 5)
            assert end_of(events).reason == "fault"
            assert proxy.connections() == []
            read_all(client)
            client.sendall(b"more")
    proxy.stop(0)
    assert [it.kind for it in events].count("end") == 1


def test_a_restore_tries_everything(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """If nobody can listen again, the other faults are gone, and the pause is over."""
    proxy = make_proxy(echo.name)
    with connect(proxy.address) as client:
        assert echoes(client)
        proxy.fault("refuse", "stall")
        proxy.pause()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tcpproxy.refusing.listen", fail_to_listen)
            with pytest.raises(tcpproxy.StartError, match="no descriptors"):
                proxy.restore()
        assert [it.name for it in proxy.faults] == ["refuse"]
        assert echoes(client)
        proxy.restore()
        assert proxy.faults == ()
        with connect(proxy.address) as other:
            assert echoes(other)


def fail_to_listen(*_: object) -> None:
    raise tcpproxy.StartError(errno.EMFILE, "no descriptors")
