"""A reset is passed on, behind the bytes that a direct connection would have delivered, and it is nobody's error."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from networks import Namespace, Silent
from support.command import Command, strace
from support.machine import cpu_seconds, fcntl, sockets, tells_resets, termios
from support.peers import Link, Upstream, connect, reset
from support.streams import KIB, MIB, fill, payload, read_all, read_exactly, send_until_full
from support.waiting import TIMEOUT, at_best, bounds, eventually, in_background, pause

import tcpproxy

pytestmark = pytest.mark.skipif(not tells_resets(), reason="needs a system that tells a later reader of a reset")

both_ways = pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
"""For tests that make their own connections."""


@functools.cache
def plenty() -> bytes:
    """More than fits between two peers."""
    return payload(48 * MIB)


def unacknowledged(sock: socket.socket) -> int:
    return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]


def read_until_reset(sock: socket.socket, size: int = 1 << 20, every: float = 0) -> bytes:
    """What comes before the reset; an end of file is a failure."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while True:
            parts.append(sock.recv(size))
            assert parts[-1], f"end of file after {sum(map(len, parts))} bytes, not a reset"
            pause(every)
    return b"".join(parts)


def hears_of_reset(sock: socket.socket, within: float) -> bool:
    """Does the kernel report an error or hang-up of it? Unlike a read, this works after the end of file too."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(within * 1000))


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(64 * KIB))


def idle(link: Link) -> bool:
    return link.proxy is None or link.proxy.stats().active == 0


def ends(events: list[tcpproxy.Event], count: int = 1) -> list[tcpproxy.Event]:
    """The `end` events, once there are so many; no other trouble was reported."""
    eventually(lambda: sum(event.kind == "end" for event in events) >= count)
    assert {event.kind for event in events} == {"listening", "new", "end"}
    return [event for event in events if event.kind == "end"]


# --- idle ---


@bounds(1, 0.010)
def test_reset_while_idle(link: Link, swapped: bool, events: list[tcpproxy.Event], bound: float) -> None:
    """Rows 16, 17: the other side hears of it in less than 10 ms (median), and it is not reported as trouble."""
    before = sockets()
    took = []
    for _ in range(21):
        near, far = link.pair()
        with far:
            near.sendall(b"ping")
            assert read_exactly(far, 4) == b"ping"
            begin = time.monotonic()
            reset(near)
            with pytest.raises(ConnectionResetError):
                far.recv(1)
            took.append(time.monotonic() - begin)
    assert statistics.median(took) < bound, took
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)
    if not link.direct:
        assert {event.reason for event in ends(events, 21)} == {"upstream-reset" if swapped else "client-reset"}


def test_reset_after_the_own_end(link: Link, swapped: bool, events: list[tcpproxy.Event]) -> None:
    """Row 16: a peer that had ended its direction, and waited for the answer, gives up; the other is told at once."""
    near, far = link.pair()
    with far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        assert not hears_of_reset(far, 0)
        reset(near)
        assert hears_of_reset(far, TIMEOUT)  # the half-close-timeout is a minute
    eventually(lambda: idle(link))
    if not link.direct:
        assert ends(events)[0].reason == ("upstream-reset" if swapped else "client-reset")


def test_reset_after_the_end_of_the_other(link: Link) -> None:
    """Row 16: a peer that has read the end of the other direction gives up instead of answering."""
    near, far = link.pair()
    with near:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        reset(far)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    eventually(lambda: idle(link))


def test_close_with_unread_bytes(link: Link) -> None:
    """Rows 16, 17: the kernel makes it a reset; so it is for the other side."""
    for _ in range(20):
        near, far = link.pair()
        with far:
            far.sendall(b"never read")
            assert near.recv(1, socket.MSG_PEEK) == b"n"
            near.close()
            with pytest.raises(ConnectionResetError):
                far.recv(1)
    eventually(lambda: idle(link))


def test_shutdown_after_a_reset(link: Link, events: list[tcpproxy.Event]) -> None:
    """Row 13: one side resets while the other ends its direction; whichever comes first, both are over."""
    before = sockets()
    for _ in range(100):
        near, far = link.pair()
        start = threading.Barrier(2)

        def shut(sock: socket.socket, start: threading.Barrier) -> None:
            start.wait()
            with contextlib.suppress(OSError):  # not connected any more
                sock.shutdown(socket.SHUT_WR)

        with far:
            with in_background(shut, far, start):
                start.wait()
                reset(near)
            with contextlib.suppress(ConnectionResetError):
                assert far.recv(1) == b""
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)
    if not link.direct:
        assert len(ends(events, 100)) == 100


def test_command_has_no_error_line(command: Callable[..., Command], upstream: Upstream) -> None:
    """Rows 16, 17: resets are normal ends for the command: no line at all without -d, a reason with it."""
    for options in ((), ("-d",)):
        process = command(*options, upstream.name)
        for swapped in (False, True):
            client, server = connect(process.address), upstream.accept()
            near, far = (server, client) if swapped else (client, server)
            with far:
                reset(near)
                with pytest.raises(ConnectionResetError):
                    far.recv(1)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        if options:
            assert not [line for line in process.stderr if "rror" in line]
            reasons = [line.rpartition(": ")[2] for line in process.stderr if line.startswith("Closed")]
            assert sorted(reasons) == ["client-reset", "upstream-reset"]  # each worker has its own record of events
        else:
            assert process.stderr == []


# --- behind data ---


@pytest.mark.parametrize("size", [1, 1000, 32 * KIB])
def test_data_then_reset_at_once(link: Link, size: int) -> None:
    """Row 18: what has arrived before the reset is delivered before the reset."""
    data = payload(size)
    for _ in range(50):
        near, far = link.pair()
        with far:
            near.sendall(data)
            reset(near)
            assert read_until_reset(far) == data


def test_data_then_reset_with_a_slow_receiver(link: Link, swapped: bool, events: list[tcpproxy.Event]) -> None:
    """Rows 18, 21: all buffers on the way are full, the sender resets, the receiver begins to read some time later, a
    little at a time. It gets every byte that the sender's kernel knows to have arrived, and so say the counters.
    """
    near, far = link.pair()
    data = plenty()
    with far:
        arrived = send_until_full(near, data) - unacknowledged(near)
        reset(near)
        pause(0.3)
        received = read_until_reset(far, 128 * KIB, 0.002)
    assert arrived <= len(received)
    assert received == data[: len(received)]
    if link.proxy:
        eventually(lambda: idle(link))
        event = ends(events)[0]
        assert event.reason == ("upstream-reset" if swapped else "client-reset")
        stats = link.proxy.stats()
        if swapped:
            assert (0, len(received)) == (event.to_upstream, event.to_client)
        else:
            assert (len(received), 0) == (event.to_upstream, event.to_client)
        assert (stats.bytes_to_upstream, stats.bytes_to_client) == (event.to_upstream, event.to_client)


@pytest.mark.parametrize("workers", [1])
def test_receiver_slower_than_the_linger(link: Link) -> None:
    """Row 18: the 5 s that last bytes may take are for a receiver that has stopped, not for one that goes on slowly."""
    near, far = link.pair()
    data = plenty()
    with far:
        arrived = send_until_full(near, data) - unacknowledged(near)
        reset(near)
        received = read_until_reset(far, arrived // 30, 0.25)
    assert arrived <= len(received)
    assert received == data[: len(received)]


def test_reset_while_the_other_is_stalled(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], events: list[tcpproxy.Event]
) -> None:
    """Rows 19, 21: a peer resets while the other one does not read what waits for it. That may take 5 s, not for ever;
    then the reset is passed on, and what was lost is not counted.
    """
    proxy = make_proxy(upstream.name, workers=2)
    before = sockets()
    with contextlib.ExitStack() as stack:
        fars = []
        for swapped in (False, True):
            near, far = Link(upstream, proxy, swapped).pair()
            fars.append(stack.enter_context(far))
            fill(near)
            reset(near)
        begin = time.monotonic()
        eventually(lambda: proxy.stats().active == 0, within=9)
        assert time.monotonic() - begin > 3
        assert sockets() <= before + 2
        reasons = {event.reason: event for event in ends(events, 2)}
        assert reasons.keys() == {"client-reset", "upstream-reset"}
        assert 0 < len(read_until_reset(fars[0])) <= reasons["client-reset"].to_upstream
        assert 0 < len(read_until_reset(fars[1])) <= reasons["upstream-reset"].to_client


def test_both_reset_with_bytes_on_the_way(link: Link, events: list[tcpproxy.Event]) -> None:
    """Row 21: nobody is left to deliver to; everything is given back at once."""
    before = sockets()
    for _ in range(2):
        near, far = link.pair()
        with in_background(fill, far):
            fill(near)
        reset(near)
        reset(far)
    eventually(lambda: idle(link), within=4, what="still relaying")
    eventually(lambda: sockets() <= before)
    if not link.direct:
        assert {event.reason for event in ends(events, 2)} <= {"client-reset", "upstream-reset"}


# --- under way ---


def test_reset_while_the_writer_is_blocked(link: Link, swapped: bool, events: list[tcpproxy.Event]) -> None:
    """Row 19: the writer's call ends with an error, and sockets come back, long before any time-out."""
    before = sockets()
    near, far = link.pair()
    fill(near)

    def write() -> float:
        with near, pytest.raises((ConnectionResetError, BrokenPipeError)):
            near.sendall(bytes(48 * MIB))
        return time.monotonic()

    with in_background(write) as ended:
        begin = time.monotonic()
        reset(far)
    assert ended[0] - begin < 4
    eventually(lambda: idle(link), within=4, what="still relaying")
    eventually(lambda: sockets() <= before)
    if not link.direct:
        assert ends(events)[0].reason == ("client-reset" if swapped else "upstream-reset")


def test_reset_mid_transfer(link: Link, events: list[tcpproxy.Event]) -> None:
    """Rows 19, 21: the reader gives up in the middle, at different moments, while bytes pass in both directions."""
    before = sockets()

    def write(sock: socket.socket) -> None:
        with sock, pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever(sock)

    def drain(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(64 * KIB):
                pass

    for size in (1, 10_000, 300_000, 3 * MIB):
        near, far = link.pair()
        with in_background(write, near), in_background(drain, near):
            far.sendall(bytes(10_000))
            read_exactly(far, size)
            reset(far)
    eventually(lambda: idle(link), within=4, what="still relaying")
    eventually(lambda: sockets() <= before)
    if not link.direct:
        assert len(ends(events, 4)) == 4


def test_answer_behind_a_reset(link: Link) -> None:
    """Rows 18, 19: a peer answers early and closes without reading the rest of the request, as web servers do with one
    that is too large. The writer's next sends fail, yet the answer, which had arrived before the reset, can be read.
    """
    for _ in range(10):
        near, far = link.pair()
        with near:
            near.sendall(b"beginning of a long request")
            assert far.recv(1) == b"b"
            far.sendall(b"too large")
            assert near.recv(1, socket.MSG_PEEK) == b"t"
            reset(far)
            assert read_until_reset(near) == b"too large"


def test_aborted_read_is_no_error(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 22: ECONNABORTED from a read ends the connection like a reset, without a line, and no other connection."""
    # In each thread the fifth read fails; no thread but the worker reads so often when there is nothing to print.
    inject = strace("-o", "/dev/null", "-e", "inject=recvfrom:error=ECONNABORTED:when=5")
    process = command("-q", "--zero-copy", "auto", "--workers", "1", upstream.name, wrapper=inject)
    client = connect(process.address)
    with client, upstream.accept() as server:

        def send_one_by_one() -> None:
            for _ in range(5):  # with kqueue the third may fail: its bytes are read until a read would block
                client.sendall(b"x")
                assert server.recv(1) == b"x"

        with pytest.raises(ConnectionResetError):
            send_one_by_one()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with connect(process.address) as client, upstream.accept() as server:
        client.sendall(b"y")
        assert server.recv(1) == b"y"
    process.signal(signal.SIGTERM)
    process.wait()
    assert process.stderr == []


EMBEDDED = """
import signal, sys, tcpproxy
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with tcpproxy.Proxy(sys.argv[1]) as proxy:
    print(proxy.address[1], flush=True)
    sys.stdin.read()
print("alive")
"""


def test_no_signal_in_an_embedding_program(upstream: Upstream) -> None:
    """Row 23: sending to a peer that has reset raises no SIGPIPE, even in a program that would die of it."""
    with subprocess.Popen(
        [sys.executable, "-c", EMBEDDED, upstream.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    ) as program:
        assert program.stdin
        assert program.stdout
        port = int(program.stdout.readline())
        for swapped in itertools.chain.from_iterable([(False, True)] * 10):
            client, server = connect(("127.0.0.1", port)), upstream.accept()
            near, far = (server, client) if swapped else (client, server)
            near.sendall(bytes(MIB))
            far.recv(1)
            reset(far)
            with near, pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_for_ever(near)
        program.stdin.close()
        assert program.stdout.read() == b"alive\n"
        assert program.wait(TIMEOUT) == 0


# --- connecting ---


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
        quiet, talking, ended = (stack.enter_context(connect(process.address)) for _ in range(3))
        talking.sendall(b"hello")
        ended.sendall(b"hello")
        ended.shutdown(socket.SHUT_WR)
        eventually(lambda: len(process.stdout) == 4)
        at_best(used_in_two_seconds, 0.1)
        for client in (quiet, talking, ended):
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


# --- a peer that vanishes ---

HERE, THERE = "192.0.2.1", "192.0.2.2"
TCP_RTO_MAX_MS = 44
"""Of Linux 6.15 and later, and missing from Python."""


@pytest.fixture
def here(namespaces: Callable[[], Namespace]) -> Namespace:
    """A network namespace for the proxy and the peers that stay, so that the machine's own network is left alone."""
    return namespaces()


@pytest.fixture
def there(namespaces: Callable[[], Namespace], here: Namespace) -> Namespace:
    """A network namespace for the peers that vanish, linked to `here`."""
    there = namespaces()
    here.join(there)
    here.address("v", f"{HERE}/30")
    there.address("v", f"{THERE}/30")
    return there


def across(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command], keepalive: int
) -> tuple[list[Command], list[socket.socket]]:
    """A connection from `there`, one to there, and one to there of a proxy without keepalive, as control.

    Returns the first two proxies, and of all three connections the end that is here.
    """
    upstream = stack.enter_context(contextlib.closing(here.call(Upstream)))
    far_away = stack.enter_context(contextlib.closing(there.call(Upstream, THERE)))
    seconds = str(keepalive)
    from_there = command("-d", "--keepalive", seconds, "-b", HERE, upstream.name, wrapper=here.wrapper)
    to_there = command("-d", "--keepalive", seconds, far_away.name, wrapper=here.wrapper)
    control = command("--keepalive", "off", far_away.name, wrapper=here.wrapper)
    here_is = []
    for process, client_from, at in (
        (from_there, there, upstream),
        (to_there, here, far_away),
        (control, here, far_away),
    ):
        client = stack.enter_context(client_from.call(connect, process.address))
        server = stack.enter_context(at.accept())
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        here_is.append(server if client_from is there else client)
    return [from_there, to_there], here_is


def check_reasons(from_there: Command, to_there: Command) -> None:
    """Who is there has vanished, and each proxy says which side that was."""
    for process, reason in ((from_there, "client-reset"), (to_there, "upstream-reset")):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.stderr[-1].endswith(f": {reason}")


def test_vanished_peer(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command]
) -> None:
    """Row 24: a client and an upstream vanish without a word; keepalive finds out, and the others are told.

    A connection of a proxy without keepalive, as control, stays.
    """
    proxies, (server, client, unaware) = across(here, there, stack, command, keepalive=1)
    pause(2.5)
    # They have answered the first questions, so nothing has happened.
    assert not select.select([server, client, unaware], [], [], 0)[0]
    there.ip("link", "set", "v", "down")  # whatever is sent there is lost from now on
    begin = time.monotonic()
    for sock in (server, client):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert time.monotonic() - begin < 15
    assert not select.select([unaware], [], [], 0)[0]
    check_reasons(*proxies)


@bounds(15, 8.5)
@pytest.mark.parametrize("window", ["open", "closed"])
def test_vanished_peer_that_owes_an_answer(
    here: Namespace,
    there: Namespace,
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
    window: str,
    bound: float,
) -> None:
    """Row 24: with bytes on their way to it keepalive is silent; a peer that vanishes is found as soon all the same.

    A connection of a proxy without keepalive, as control, stays.
    """
    proxies, here_is = across(here, there, stack, command, keepalive=2)
    if window == "closed":
        for sock in here_is:
            fill(sock)
    begin = time.monotonic()
    there.ip("link", "set", "v", "down")  # whatever is sent there is lost from now on
    if window == "open":
        for sock in here_is:
            sock.sendall(b"to nobody")
    for sock in here_is[:2]:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    # Two seconds and three times one; ticks of a second, and questions at growing intervals.
    assert 3.5 < time.monotonic() - begin < bound
    assert not select.select([here_is[2]], [], [], 0)[0]
    check_reasons(*proxies)


# Behind a window that shrank the kernel itself gives up after two seconds without an answer, at this keepalive.
@pytest.mark.parametrize("room", [None, pytest.param(2048, id="window that shrinks", marks=pytest.mark.timed)])
def test_a_peer_that_does_not_read_is_not_dead(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command], room: int | None
) -> None:
    """Rows 24 and 30: one that answers every probe of its closed window is kept, for longer than a dead one would be.

    When it dies then, probes have become rare, and it is found all the same.
    """
    far_away = stack.enter_context(contextlib.closing(there.call(Upstream, THERE)))
    process = command("-d", "--keepalive", "1", far_away.name, wrapper=here.wrapper)
    pairs = []
    for _ in range(2):
        client = stack.enter_context(here.call(connect, process.address))
        server = stack.enter_context(far_away.accept())
        if room:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        pairs.append((client, server, fill(client)))
    assert not select.select([client for client, _, _ in pairs], [], [], 9)[0]  # a dead one has four seconds
    client, server, stuck = pairs[0]
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == bytes(stuck)
    try:
        client.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 120000)
    except OSError:
        return  # probes cannot be bounded by this kernel: the dead peer would have minutes
    there.ip("link", "set", "v", "down")
    begin = time.monotonic()
    with pytest.raises(ConnectionResetError):
        pairs[1][0].recv(1)
    assert time.monotonic() - begin < 15


def test_reset_of_the_one_that_is_waited_for(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], stack: contextlib.ExitStack
) -> None:
    """Rows 19, 21: a peer has reset, and what it had sent waits in the proxy's kernel for the other one, which does not
    read, and then resets too: nothing waits any more, and the relay ends long before its time is over.
    """
    upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)  # what it accepts inherits it
    proxy = make_proxy(upstream.name, workers=2)
    for swapped in (False, True):
        client = socket.socket()
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        client.connect(proxy.address)
        server = stack.enter_context(upstream.accept())
        near, far = (server, stack.enter_context(client)) if swapped else (stack.enter_context(client), server)
        near.sendall(bytes(512 * KIB))
        eventually(lambda: [it.to_upstream + it.to_client for it in proxy.connections()] == [512 * KIB])
        reset(near)
        eventually(lambda: [it.state for it in proxy.connections()] == ["closing"])
        reset(far)
        eventually(lambda: proxy.stats().active == 0, within=4)
