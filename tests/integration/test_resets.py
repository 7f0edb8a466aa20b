"""A reset is passed on, behind the bytes that a direct connection would have delivered, and it is nobody's error."""

from __future__ import annotations

import contextlib
import functools
import itertools
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
from support.command import Command, strace
from support.machine import fcntl, sockets, tells_resets, termios
from support.peers import Link, Upstream, connect, reset
from support.streams import KIB, MIB, fill, hears_of_reset, payload, read_exactly, read_until_reset, send_until_full
from support.waiting import TIMEOUT, bounds, ends, eventually, in_background, pause

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


def send_for_ever(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(64 * KIB))


def idle(link: Link) -> bool:
    return link.proxy is None or link.proxy.stats().active == 0


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
            reasons = [line.split()[-2] for line in process.stderr if line.startswith("Closed")]
            assert sorted(reasons) == ["client-reset", "upstream-reset"]  # each worker has its own record of events
        else:
            assert process.complaints == []


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
    assert process.complaints == []


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
