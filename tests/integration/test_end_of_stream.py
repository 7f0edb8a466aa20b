"""The end of a stream is passed on, behind every byte, and the other direction lives on."""

from __future__ import annotations

import contextlib
import functools
import select
import socket
import threading
import time
from collections.abc import Callable

import pytest
from support.machine import sockets
from support.peers import Link, Upstream, connect, reset
from support.streams import KIB, MIB, fill, payload, read_all, read_exactly, send_and_shut, send_until_full
from support.waiting import TIMEOUT, bounds, eventually, in_background, pause

import tcpproxy

proxied = pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
"""For what a direct connection does not do: half-close-timeout."""


@functools.cache
def plenty() -> bytes:
    """More than fits between two peers."""
    return payload(48 * MIB)


def send_and_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.close()


def read_slowly(sock: socket.socket, size: int) -> bytes:
    """Everything up to the end of file, in small reads with a little time between them."""
    parts = []
    while part := sock.recv(size):
        parts.append(part)
        pause(0.001)
    return b"".join(parts)


def idle(link: Link) -> bool:
    return link.proxy is None or link.proxy.stats().active == 0


def test_half_close_then_the_answer(link: Link) -> None:
    """Rows 1, 2: one side ends, the other still answers."""
    near, far = link.pair()
    with near, far:
        send_and_shut(near, b"question")
        assert read_all(far) == b"question"
        send_and_shut(far, b"answer")
        assert read_all(near) == b"answer"


def test_half_close_then_a_conversation_of_one(link: Link) -> None:
    """Rows 1, 2: after the end of one direction the other carries one message after the other, not only a last one."""
    near, far = link.pair()
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        for number in range(100):
            message = payload(1 + number * 100, number)
            far.sendall(message)
            assert read_exactly(near, len(message)) == message
        far.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""
    eventually(lambda: idle(link))


def test_five_mebibytes_after_a_fin(link: Link) -> None:
    """Row 3."""
    near, far = link.pair()
    data = payload(5 * MIB)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        with in_background(send_and_shut, far, data):
            assert read_all(near) == data


def test_send_and_close_with_a_slow_reader(link: Link) -> None:
    """Rows 4, 10: the sender is gone long before its bytes have arrived."""
    near, far = link.pair()
    data = payload(20 * MIB)
    with far, in_background(send_and_close, near, data):
        received = bytearray()
        while part := far.recv(100_000):
            received += part
    assert received == data


def test_slow_reader_that_keeps_sending(link: Link) -> None:
    """Row 5: the answer ends while its reader still sends; nothing is destroyed by a reset."""
    near, far = link.pair()
    data = payload(8 * MIB)
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            near.sendall(bytes(1000))

    def listen() -> None:
        while far.recv(65536):
            pass

    with near, far, in_background(send_and_shut, far, data):
        with in_background(listen):
            with in_background(chatter):
                received = bytearray()
                while part := near.recv(50_000):
                    received += part
                stop.set()
            near.shutdown(socket.SHUT_WR)
        assert received == data


@pytest.mark.parametrize("size", [1, 1000, 60 * KIB])
def test_write_and_close_at_once(link: Link, size: int) -> None:
    """Row 6."""
    data = payload(size)
    for _ in range(30):
        near, far = link.pair()
        with far:
            send_and_close(near, data)
            assert read_all(far) == data
    eventually(lambda: idle(link))


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
@pytest.mark.parametrize("size", [1, 1000, 60 * KIB])
def test_client_that_is_gone_before_upstream_is_connected(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], workers: int, size: int
) -> None:
    """Row 6: the client connects, writes and closes without waiting for anything."""
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    data = payload(size)
    for _ in range(50):
        send_and_close(connect(proxy.address if proxy else (upstream.host, upstream.port)), data)
        with upstream.accept() as far:
            assert read_all(far) == data


def test_one_gone_the_other_closes_at_the_end_of_file(link: Link) -> None:
    """Row 7: a peer that keeps its connection alive closes it when it sees the end; then nothing is left of it."""
    before = sockets()
    near, far = link.pair()
    with far:
        near.sendall(b"request")
        assert read_exactly(far, 7) == b"request"
        far.sendall(b"answer")
        assert read_exactly(near, 6) == b"answer"
        near.close()
        assert far.recv(1) == b""
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)


def test_one_gone_the_other_goes_on_sending(link: Link) -> None:
    """Row 7: who goes on sending to a peer that has closed hears of it."""
    near, far = link.pair()
    near.close()

    def send_for_ever() -> None:
        while True:
            far.sendall(bytes(64 * KIB))

    with far:
        assert far.recv(1) == b""
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_for_ever()
    eventually(lambda: idle(link))


@proxied
def test_one_gone_the_other_stays(make_link: Callable[..., Link], swapped: bool, events: list[tcpproxy.Event]) -> None:
    """Rows 7, 8: a peer that stays open and idle sees the end of file at once, and does not hold the relay for ever."""
    link = make_link(half_close_timeout=0.5)
    before = sockets()
    near, far = link.pair()
    with far:
        near.close()
        assert far.recv(1) == b""
        eventually(lambda: idle(link) and sockets() <= before + 1)
        eventually(lambda: [event for event in events if event.kind == "end"])
        assert events[-1].reason == "half-close-timeout"


def test_both_close_at_once(link: Link, events: list[tcpproxy.Event]) -> None:
    """Row 9."""
    before = sockets()
    for _ in range(100):
        near, far = link.pair()
        start = threading.Barrier(2)

        def shut(sock: socket.socket, start: threading.Barrier) -> None:
            start.wait()
            sock.shutdown(socket.SHUT_WR)

        with near, far:
            with in_background(shut, near, start):
                shut(far, start)
            assert near.recv(1) == far.recv(1) == b""
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)
    if not link.direct:
        eventually(lambda: sum(event.kind != "connected" for event in events) == 201)
        assert {event.kind for event in events} - {"connected"} == {"listening", "new", "end"}
        assert {(event.reason, event.error) for event in events if event.kind == "end"} <= {
            ("client-eof", 0),
            ("upstream-eof", 0),
        }


def test_end_behind_bytes_that_wait(link: Link) -> None:
    """Row 10: every buffer on the way is full when the end comes; the reader gets all of it, then the end of file."""
    near, far = link.pair()
    data = plenty()
    with near, far:
        sent = send_until_full(near, data)
        near.shutdown(socket.SHUT_WR)
        assert read_slowly(far, 256 * KIB) == data[:sent]


@proxied
@bounds(4, 1.1)
def test_half_close_timeout(make_link: Callable[..., Link], events: list[tcpproxy.Event], bound: float) -> None:
    """Row 11: several connections end one direction and fall silent. None is closed too early, and, as the machine may
    be busy, at least one in time (10 %).
    """
    link = make_link(half_close_timeout=1)
    assert link.proxy
    with contextlib.ExitStack() as stack:
        made = time.monotonic()  # a batch that has accepted a client, and reads its end, has the time of its beginning
        pairs = [link.pair() for _ in range(5)]
        for pair in pairs:
            stack.enter_context(pair[0])
            stack.enter_context(pair[1])
        begin = {}
        for near, far in pairs:
            begin[near] = time.monotonic()
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
        took = []
        waiting = {near for near, _ in pairs}
        while waiting:
            assert time.monotonic() < made + TIMEOUT, (took, link.proxy.stats(), link.proxy.connections())
            for near in select.select(waiting, [], [], 1)[0]:
                took.append(time.monotonic() - begin[near])
                assert time.monotonic() - made > 0.999
                waiting.remove(near)
                # A stream that was cut must not look like one that is complete.
                with pytest.raises(ConnectionResetError):
                    near.recv(1)
    assert min(took) <= bound, took
    assert max(took) < 5, took
    eventually(lambda: idle(link) and sum(event.kind == "end" for event in events) == 5)
    assert {event.reason for event in events if event.kind == "end"} == {"half-close-timeout"}


@proxied
def test_half_close_timeout_is_for_inactivity(make_link: Callable[..., Link]) -> None:
    """Row 11: every byte arms it anew, so a slow answer may take longer than the time-out in all."""
    link = make_link(half_close_timeout=1.5)

    def answer_slowly(near: socket.socket, far: socket.socket) -> bool:
        """False: it was cut, as is right where a machine stands still between two bytes for that long."""
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(5):
                pause(0.4)
                before = time.monotonic()
                far.sendall(b"x")
                assert near.recv(1) == b"x"
            after = time.monotonic()
            with pytest.raises(ConnectionResetError):
                near.recv(1)
            assert time.monotonic() - before > 1.499
            assert time.monotonic() - after < 5
            return True
        return False

    for _ in range(5):
        near, far = link.pair()
        with near, far:
            if answer_slowly(near, far):
                return
    pytest.fail("a slow answer was cut five times")


@proxied
def test_half_close_timeout_leaves_open_connections_alone(make_link: Callable[..., Link]) -> None:
    """Row 11: a connection of which neither direction has ended may be silent for longer."""
    link = make_link(half_close_timeout=0.2)
    near, far = link.pair()
    with near, far:
        pause(0.8)
        near.sendall(b"still here")
        assert read_exactly(far, 10) == b"still here"


@proxied
def test_first_end_closes_both(make_link: Callable[..., Link], events: list[tcpproxy.Event], swapped: bool) -> None:
    """Row 11: half_close_timeout=0, with what was sent before the end."""
    link = make_link(half_close_timeout=0)
    before = sockets()
    near, far = link.pair()
    with near, far:
        send_and_shut(near, b"question")
        assert read_all(far) == b"question"
        begin = time.monotonic()
        assert near.recv(1) == b""
        assert time.monotonic() - begin < 4, "it waited for the other peer to close"
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)
    eventually(lambda: events[-1].kind == "end")
    assert events[-1].reason == ("upstream-eof" if swapped else "client-eof")


@proxied
def test_first_end_closes_both_behind_all_bytes(make_link: Callable[..., Link]) -> None:
    """Row 11: half_close_timeout=0 and a slow reader: it gets every byte that was sent before the first end."""
    link = make_link(half_close_timeout=0)
    near, far = link.pair()
    data = plenty()
    with near, far:
        sent = send_until_full(near, data)
        near.shutdown(socket.SHUT_WR)
        assert read_slowly(far, 256 * KIB) == data[:sent]
        begin = time.monotonic()
        assert near.recv(1) == b""
        assert time.monotonic() - begin < 4, "it waited for the other peer to close"


@proxied
def test_first_end_keeps_what_the_other_way_waits(make_link: Callable[..., Link]) -> None:
    """Row 11: half_close_timeout=0; the first end comes from a reader which is behind. It gets what was on its way to
    it, then the end of file, and no reset.
    """
    link = make_link(half_close_timeout=0)
    near, far = link.pair()
    data = plenty()
    with near, far:
        sent = send_until_full(far, data)
        assert link.proxy
        moved = link.proxy.stats()
        delivered = moved.bytes_to_upstream + moved.bytes_to_client
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        begin = time.monotonic()
        received = read_slowly(near, 256 * KIB)
        assert time.monotonic() - begin < 4, "it waited for the other peer to close"
        assert delivered < len(received) <= sent
        assert received == data[: len(received)]


def test_first_end_does_not_wait_for_ever(upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Row 11: half_close_timeout=0; a peer ignores its end of file and goes on sending, another one ends its own
    direction and does not read what waits for it. Both hold the relay for 5 s, not longer.
    """
    proxy = make_proxy(upstream.name, half_close_timeout=0)
    with contextlib.ExitStack() as stack:
        senders = []
        for swapped in (False, True):
            near, far = Link(upstream, proxy, swapped).pair()
            fill(far)
            near.shutdown(socket.SHUT_WR)
            stack.callback(near.close)
            stack.callback(far.close)
            near, far = Link(upstream, proxy, swapped).pair()
            near.close()
            assert far.recv(1) == b""
            senders.append(stack.enter_context(far))

        def send_and_count() -> int:
            for far in senders:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    far.sendall(b"x" * 1000)
            return proxy.stats().active

        eventually(lambda: send_and_count() == 0, within=8)


def test_nothing_sent_a_thousand_times(link: Link, events: list[tcpproxy.Event]) -> None:
    """Row 12: connections that carry no byte leave nothing behind and are no trouble."""
    before = sockets()
    for _ in range(1000):
        near, far = link.pair()
        near.close()
        assert far.recv(1) == b""
        far.close()
    eventually(lambda: idle(link))
    eventually(lambda: sockets() <= before)
    if link.proxy:

        def told() -> int:  # what a log thread without a processor has to leave out, it counts
            dropped = sum(int(event.text.split()[0]) for event in events if event.kind == "lost")
            return dropped + sum(event.kind != "lost" for event in events)

        eventually(lambda: told() == 3001, TIMEOUT)
        assert {event.kind for event in events} - {"lost", "connected"} == {"listening", "new", "end"}
        stats = link.proxy.stats()
        assert (stats.accepted, stats.ended, stats.failed, stats.accept_errors) == (1000, 1000, 0, 0)
        assert stats.bytes_to_upstream == stats.bytes_to_client == 0


def test_shutdown_twice(link: Link) -> None:
    """Row 13: to end a direction again, or together with the close, changes nothing."""
    near, far = link.pair()
    with near, far:
        send_and_shut(near, b"question")
        near.shutdown(socket.SHUT_WR)
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"question"
        send_and_shut(far, b"answer")
        with contextlib.suppress(OSError):  # not connected any more, if the end of file has come back already
            far.shutdown(socket.SHUT_WR)
        assert read_all(near) == b"answer"
    eventually(lambda: idle(link))


def test_full_direction_does_not_stop_the_other(link: Link) -> None:
    """Row 14."""
    near, far = link.pair()
    data, back = plenty(), payload(5 * MIB, 2)
    with near, far:
        sent = send_until_full(near, data)
        with in_background(far.sendall, back):
            assert read_exactly(near, len(back)) == back
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == data[:sent]


@pytest.mark.parametrize("buffer_size", [65536, 1024])
def test_both_ways_at_once(make_link: Callable[..., Link], buffer_size: int) -> None:
    """Row 15, also with a buffer much smaller than the writes."""
    link = make_link(buffer_size=buffer_size)
    size = 24 * MIB if buffer_size == 65536 else 4 * MIB
    forth, back = payload(size, 1), payload(size, 2)
    near, far = link.pair()
    with near, far:
        with (
            in_background(send_and_shut, near, forth),
            in_background(send_and_shut, far, back),
            in_background(read_all, far) as at_far,
        ):
            assert read_all(near) == back
        assert at_far == [forth]
    eventually(lambda: idle(link))


def test_a_reset_reaches_a_reader_that_waits(link: Link) -> None:
    """Rows 16, 17: as on a direct connection, behind the bytes before it."""
    near, far = link.pair()
    far.settimeout(None)  # a recv that waits in the kernel, and for nothing else
    with far:
        near.sendall(b"last words")
        assert read_exactly(far, 10) == b"last words"
        with in_background(pytest.raises, ConnectionResetError, far.recv, 1):
            pause(0.3)
            reset(near)
    eventually(lambda: idle(link))
