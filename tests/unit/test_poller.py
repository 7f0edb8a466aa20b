"""The poller contract: each sentence of poller.pxd as a test that every poller has to pass."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType

import pytest
from networks import Closed
from support.machine import descriptors, resource
from support.peers import reset
from support.streams import choke, payload
from support.waiting import TIMEOUT, at_best, in_background

from tcpproxy._core.worker import POLLER

Pair = tuple[socket.socket, socket.socket]
MakePair = Callable[[], Pair]

IN, OUT, EOF, ERROR, URGENT = 1, 2, 4, 8, 16
WAKE_UP = [((1 << 64) - 1, 0)]
MS = 1_000_000
SOON = 5000 * MS
"""Nanoseconds in which an event that is due must have come."""


@pytest.fixture
def poller(door: ModuleType, stack: contextlib.ExitStack) -> object:
    return stack.enter_context(contextlib.closing(door.PollerDoor()))


@pytest.fixture
def listener(stack: contextlib.ExitStack) -> socket.socket:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.setblocking(False)
    return listener


def wait_for(poller: object, tag: int, bits: int) -> int:
    """Waits until all these bits were reported for this tag. Returns whatever was reported for it."""
    seen = 0
    deadline = time.monotonic() + SOON / 1e9
    while seen & bits != bits:
        assert time.monotonic() < deadline, f"bits {bits:05b} are due, {seen:05b} were reported"
        for its_tag, its_bits in poller.wait(SOON // 10):  # type: ignore[attr-defined]
            if its_tag == tag:
                seen |= its_bits
    return seen


def plain(events: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without URGENT, which a poller that cannot know says with every IN."""
    return [(tag, bits & ~URGENT) for tag, bits in events]


def quiet(poller: object, timeout_ms: int = 20) -> bool:
    """Is there nothing to report?"""
    return poller.wait(timeout_ms * MS) == []  # type: ignore[attr-defined]


def settle(poller: object) -> None:
    """Lets reports of the past come out: one for a bit that is not true (any more) is harmless."""
    for _ in range(20):
        if quiet(poller):
            return
    raise AssertionError("it does not stop reporting")


WOKEN = [(2**64 - 1, 0)]
"""What a wait says of a wake-up."""


def told(poller: object, timeout_ns: int = SOON, room: int = 64) -> set[int]:
    """The tags that the next reports are about; each of them must say READY_IN."""
    events = poller.wait(timeout_ns, room)  # type: ignore[attr-defined]
    events = [event for event in events if event not in WOKEN]
    assert all(bits & IN for _, bits in events), events
    return {tag for tag, _ in events}


class Owner:
    """Of one socket: reads as half.pyx does, trusting the poller as far as the contract goes, and no further."""

    def __init__(self, poller: object, sock: socket.socket, tag: int = 1) -> None:
        self.poller, self.sock, self.tag = poller, sock, tag
        self.ready, self.read_to_eagain, self.ended = 0, False, False
        self.data = bytearray()
        self.waits = 0
        assert poller.add(sock.fileno(), tag) == 0  # type: ignore[attr-defined]

    def listen(self, timeout_ns: int = SOON) -> bool:
        events = self.poller.wait(timeout_ns)  # type: ignore[attr-defined]
        self.waits += 1
        for tag, bits in events:
            assert tag == self.tag
            self.ready |= bits & (IN | OUT)
            self.read_to_eagain |= bits & (EOF | URGENT) != 0
        return bool(events)

    def read(self, size: int = 1000) -> None:
        while self.ready & IN and not self.ended:
            try:
                part = self.sock.recv(size)
            except BlockingIOError:
                self._drained()
                continue
            except ConnectionResetError:
                self.ended = True
                continue
            self.data += part
            self.ended = not part
            if part and len(part) < size and not self.read_to_eagain:
                self._drained()

    def _drained(self) -> None:
        self.ready &= ~IN
        self.poller.rearm(self.tag, IN)  # type: ignore[attr-defined]

    def read_to_the_end(self) -> bytes:
        while not self.ended:
            assert self.listen(), f"stalled behind {len(self.data)} bytes"
            self.read()
        return bytes(self.data)


# --- "reports edges: ..., first for what is true at the time of adding" ---


def test_reports_first_what_is_true_when_it_is_added(poller: object, make_pair: MakePair) -> None:
    ours, _ = make_pair()
    assert poller.add(ours.fileno(), 1) == 0
    assert poller.wait(SOON) == [(1, OUT)]


def test_reports_bytes_that_were_there_before(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    peer.sendall(b"early")
    ours.recv(1, socket.MSG_PEEK)
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)


def test_reports_an_end_that_was_there_before(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    peer.sendall(b"early")
    peer.close()
    assert Owner(poller, ours).read_to_the_end() == b"early"


def test_reports_a_reset_that_was_there_before(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    reset(peer)
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)


def test_a_bit_is_not_reported_again_as_long_as_it_is_true(poller: object, make_pair: MakePair) -> None:
    """Edges: bytes that nobody reads do not make the loop spin."""
    ours, peer = make_pair()
    peer.sendall(b"unread")
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)
    assert quiet(poller)


def test_the_tag_comes_back_whole(poller: object, make_pair: MakePair) -> None:
    """All of its 64 bits, each socket under its own."""
    tags = [0, 1, 0x0123_4567_89AB_CDE0, 0xFFFF_FFFE_FFFF_FFF0]
    for tag in tags:
        assert poller.add(make_pair()[0].fileno(), tag) == 0
    assert sorted(poller.wait(SOON)) == [(tag, OUT) for tag in tags]


# --- "after that ... the same bit must be reported again once it is true again" ---


def test_in_is_reported_again_after_a_rearm(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    owner = Owner(poller, ours)
    expected = b""
    for number in range(5):
        peer.sendall(b"part %d " % number)
        expected += b"part %d " % number
        while len(owner.data) < len(expected):
            assert owner.listen()
            owner.read()
        assert quiet(poller)
    assert owner.data == expected


def test_in_is_reported_if_bytes_came_before_the_rearm(poller: object, make_pair: MakePair) -> None:
    """The race that stalls a connection for ever: between the read that would have blocked and the rearm."""
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    peer.sendall(b"first")
    wait_for(poller, 1, IN)
    assert ours.recv(100) == b"first"
    with pytest.raises(BlockingIOError):
        ours.recv(100)
    peer.sendall(b"second")
    while ours.recv(100, socket.MSG_PEEK) != b"second":
        pass
    poller.rearm(1, IN)
    wait_for(poller, 1, IN)


def test_out_is_reported_again_after_a_rearm(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    for _ in range(3):
        sent = choke(ours)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.send(b"x")
        poller.rearm(1, OUT)
        settle(poller)
        while sent:
            sent -= len(peer.recv(1 << 20))
        wait_for(poller, 1, OUT)


def test_one_bit_waits_while_the_other_is_used(poller: object, make_pair: MakePair) -> None:
    """A half with unsent bytes does not read: its READY_IN stays as it is while READY_OUT comes and goes."""
    ours, peer = make_pair()
    peer.sendall(b"unread")
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)
    sent = choke(ours)
    ours.setblocking(False)
    poller.rearm(1, OUT)
    settle(poller)
    while sent:
        sent -= len(peer.recv(1 << 20))
    wait_for(poller, 1, OUT)
    assert ours.recv(100) == b"unread"
    poller.rearm(1, IN)
    assert quiet(poller)
    peer.sendall(b"more")
    wait_for(poller, 1, IN)


# --- "READY_IN as long as a connection waits (level)", "several pollers may watch one listener" ---


def test_a_listener_reports_as_long_as_a_connection_waits(
    poller: object, listener: socket.socket, stack: contextlib.ExitStack
) -> None:
    assert poller.add(listener.fileno(), 15, 1) == 0
    assert quiet(poller)
    for _ in range(2):
        stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    for _ in range(2):
        for _ in range(5):
            assert plain(poller.wait(SOON)) == [(15, IN)]
        stack.enter_context(listener.accept()[0])
    assert quiet(poller)


def test_one_of_several_pollers_is_woken(
    door: ModuleType, poller: object, listener: socket.socket, stack: contextlib.ExitStack
) -> None:
    other = stack.enter_context(contextlib.closing(door.PollerDoor()))
    woken = threading.Event()
    found: list[object] = []

    def wait(it: object) -> None:
        if events := it.wait(SOON):  # type: ignore[attr-defined]
            found.append(plain(events))
            woken.set()

    for it in (poller, other):
        # A copy for each, as each worker has its own.
        own = stack.enter_context(listener.dup())
        assert it.add(own.fileno(), 15, 1) == 0
    with in_background(wait, poller), in_background(wait, other):
        stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
        assert woken.wait(SOON / 1e9)
        poller.wake()
        other.wake()
    assert [(15, IN)] in found


def test_a_listener_that_was_removed_is_silent_and_may_come_back(
    poller: object, listener: socket.socket, stack: contextlib.ExitStack
) -> None:
    """Row 53: accepting pauses that way, and goes on."""
    stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    for _ in range(3):
        assert poller.add(listener.fileno(), 15, 1) == 0
        assert plain(poller.wait(SOON)) == [(15, IN)]
        poller.remove(15, 1)
        assert quiet(poller)


# --- "an error or a full hang-up is reported together with READY_IN and READY_OUT" ---


def test_a_reset_is_reported_with_in_and_out(poller: object, make_pair: MakePair) -> None:
    """Also to an owner that waits for neither."""
    ours, peer = make_pair()
    peer.sendall(b"unread")
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)
    reset(peer)
    wait_for(poller, 1, IN | OUT)


def test_a_reset_is_reported_to_who_waits_to_send(poller: object, make_pair: MakePair) -> None:
    """Row 19."""
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    choke(ours)
    ours.setblocking(False)
    poller.rearm(1, OUT)
    settle(poller)
    reset(peer)
    wait_for(poller, 1, IN | OUT)


def test_a_full_hang_up_is_reported_with_in_and_out(poller: object, make_pair: MakePair) -> None:
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    ours.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b""
    peer.close()
    wait_for(poller, 1, IN | OUT)


def test_a_refused_connection_is_reported_with_in_and_out(poller: object, stack: contextlib.ExitStack) -> None:
    """Row 20: and the socket says why."""
    closed = stack.enter_context(contextlib.closing(Closed()))
    ours = stack.enter_context(socket.socket())
    ours.setblocking(False)
    ours.connect_ex((closed.host, closed.port))
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, IN | OUT)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


# --- "a short read no longer means drained": ends and urgent marks ---


def test_an_end_that_comes_between_event_and_read_is_reported(poller: object, make_pair: MakePair) -> None:
    """Row 68: the read is short and the owner knows of no end yet."""
    ours, peer = make_pair()
    owner = Owner(poller, ours)
    assert owner.listen()
    peer.sendall(b"last bytes")
    while not owner.ready & IN:
        assert owner.listen()
    peer.close()
    owner.read()
    assert owner.read_to_the_end() == b"last bytes"


@pytest.mark.parametrize("ending", ["close", "reset", "urgent and close"])
def test_no_end_is_lost_wherever_it_falls(poller: object, make_pair: MakePair, ending: str) -> None:
    """Rows 68, 87: bytes and an end that arrive in every order with the owner's reads. 100 connections."""
    for number in range(100):
        ours, peer = make_pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        owner = Owner(poller, ours, number)
        data = payload(1 + number * 37, number)

        def send(peer: socket.socket = peer, data: bytes = data) -> None:
            peer.sendall(data[:-1])
            if ending == "urgent and close":
                peer.send(data[-1:], socket.MSG_OOB)
            else:
                peer.sendall(data[-1:])
            reset(peer) if ending == "reset" else peer.close()

        if number % 2:
            with in_background(send):
                owner.read_to_the_end()
        else:
            send()
            owner.read_to_the_end()
        # A reset may overtake bytes on a direct connection too; an end may not.
        assert owner.data == data or ending == "reset"
        poller.remove(number)
        ours.close()


def test_urgent_byte_in_the_middle_of_a_stream(poller: object, make_pair: MakePair) -> None:
    """Row 86: recv stops at the mark; what is behind it is not left lying there."""
    ours, peer = make_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    owner = Owner(poller, ours)
    expected = b""
    for _ in range(20):
        peer.sendall(b"before")
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"behind")
        expected += b"before!behind"
    while len(owner.data) < len(expected):
        assert owner.listen(), f"stalled behind {bytes(owner.data)!r}"
        owner.read()
    assert owner.data == expected


# --- "hang-up, error and urgent mark must not be reported more than once for one cause" ---


@pytest.mark.parametrize("cause", ["end", "hang-up", "reset", "urgent"])
def test_one_cause_one_report(poller: object, make_pair: MakePair, cause: str) -> None:
    """Row 69: an owner that leaves them lying is not woken again."""
    ours, peer = make_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    if cause == "urgent":
        peer.send(b"!", socket.MSG_OOB)
    elif cause == "reset":
        reset(peer)
    else:
        if cause == "hang-up":
            ours.shutdown(socket.SHUT_WR)
        peer.close()
    wait_for(poller, 1, IN)
    settle(poller)  # a hang-up may come in two steps, then it must be over
    assert quiet(poller, 100)


def test_a_hang_up_does_not_spin_for_an_owner_that_reads_to_the_end(poller: object, make_pair: MakePair) -> None:
    """Row 69: a rearm that finds nothing new is answered once at most."""
    ours, peer = make_pair()
    owner = Owner(poller, ours)
    ours.shutdown(socket.SHUT_WR)
    peer.sendall(payload(100_000))
    peer.close()
    assert owner.read_to_the_end() == payload(100_000)
    assert owner.waits < 50
    while not quiet(poller):
        owner.waits += 1
        assert owner.waits < 50


# --- "poller_move: `to` takes its place; `watch` is free" ---


def test_a_moved_watch_goes_on(poller: object, make_pair: MakePair) -> None:
    pairs = [make_pair() for _ in range(3)]
    for tag, (ours, _) in enumerate(pairs):
        poller.add(ours.fileno(), tag)
    assert len(poller.wait(SOON)) == 3
    for tag in (1, 0, 1):
        poller.move(tag)
        pairs[tag][1].sendall(b"x")
        assert told(poller) == {tag}
        assert pairs[tag][0].recv(10) == b"x"
        poller.rearm(tag, IN)
    poller.remove(0)
    pairs[0][0].close()
    pairs[1][1].sendall(b"x")
    assert told(poller) == {1}


# --- "poller_remove, which is called right before the socket is closed" ---


@pytest.mark.parametrize("gone", [0, 1, 2], ids=["first", "middle", "last"])
def test_the_others_live_on_when_one_is_removed(poller: object, make_pair: MakePair, gone: int) -> None:
    pairs = [make_pair() for _ in range(3)]
    for tag, (ours, _) in enumerate(pairs):
        poller.add(ours.fileno(), tag)
    assert len(poller.wait(SOON)) == 3
    for _, peer in pairs:
        peer.sendall(b"x")
    poller.remove(gone)
    pairs[gone][0].close()
    rest = {tag for tag in range(3) if tag != gone}
    for _ in range(3):
        seen: set[int] = set()
        while seen != rest:
            tags = told(poller)
            assert tags, f"{rest - seen} were forgotten"
            seen |= tags
        for tag in rest:
            assert pairs[tag][0].recv(10) == b"x"
            poller.rearm(tag, IN)
            pairs[tag][1].sendall(b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="needs numbers that dup2 can choose")
def test_a_number_that_is_used_again_belongs_to_the_new_socket(
    poller: object, make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    """Row 65."""
    ours, peer = make_pair()
    other, other_peer = make_pair()
    number = ours.fileno()
    poller.add(number, 1)
    wait_for(poller, 1, OUT)
    peer.sendall(b"x")
    poller.remove(1)
    ours.close()
    os.dup2(other.fileno(), number)
    stack.callback(os.close, number)
    poller.add(number, 2)
    assert poller.wait(SOON) == [(2, OUT)]
    assert quiet(poller)
    other_peer.sendall(b"x")
    assert told(poller) == {2}


# --- "poller_free: sockets still watched stay open" ---


def test_sockets_outlive_their_poller(door: ModuleType, make_pair: MakePair) -> None:
    before = descriptors()
    ours, peer = make_pair()
    poller = door.PollerDoor()
    poller.add(ours.fileno(), 1)
    poller.close()
    assert descriptors() == before + 2
    peer.sendall(b"still here")
    ours.settimeout(TIMEOUT)
    assert ours.recv(100) == b"still here"


# --- "poller_new: NULL: no descriptors" ---


@pytest.mark.parametrize("missing", [1, 2])
def test_no_poller_without_descriptors(door: ModuleType, stack: contextlib.ExitStack, missing: int) -> None:
    """Row 57: and what it had got until then is given back."""
    before = descriptors()
    with contextlib.closing(door.PollerDoor()):
        free = descriptors() - before - missing
    if free < 0:
        pytest.skip(f"this poller needs fewer than {missing} descriptors")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as lowest:
        number = lowest.fileno()
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + free, hard))
    with pytest.raises(MemoryError):
        door.PollerDoor()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before


# --- "poller_wait fills `events` and returns their number, 0 after a time-out" ---


def test_no_more_events_than_there_is_room(poller: object, make_pair: MakePair) -> None:
    """Those left out come with the next call."""
    for tag in range(7):
        poller.add(make_pair()[0].fileno(), tag)
    batches = [poller.wait(SOON, 3) for _ in range(3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(event for batch in batches for event in batch) == [(tag, OUT) for tag in range(7)]
    assert quiet(poller)


def test_more_events_than_any_batch(poller: object, stack: contextlib.ExitStack) -> None:
    for tag in range(300):
        ends = socket.socketpair()
        for end in ends:
            stack.enter_context(end)
        assert poller.add(ends[0].fileno(), tag) == 0
    seen: list[tuple[int, int]] = []
    while len(seen) < 300:
        events = poller.wait(SOON, 1000)
        assert events
        seen += events
    assert sorted(seen) == [(tag, OUT) for tag in range(300)]


def test_a_busy_socket_does_not_hide_the_others(
    poller: object, listener: socket.socket, make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    """Row 35: a listener that is ready all the time, and room for one event."""
    poller.add(listener.fileno(), 15, 1)
    stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    for tag in range(5):
        poller.add(make_pair()[0].fileno(), tag)
    seen = [poller.wait(SOON, 1)[0][0] for _ in range(30)]
    assert set(seen) == {15, *range(5)}


@pytest.mark.parametrize("timeout_ns", [1, 400_000, 1_200_000, 2_900_000, 20 * MS])
def test_a_time_out_is_never_early(poller: object, timeout_ns: int) -> None:
    """Row 74: nor much too late."""

    def time_to_return() -> int:
        start = time.monotonic_ns()
        assert poller.wait(timeout_ns) == []
        return time.monotonic_ns() - start

    assert min(at_best(time_to_return, timeout_ns + 20 * MS, tries=15)) >= timeout_ns


def test_a_time_out_is_rounded_up_not_to_nothing(poller: object) -> None:
    """A timer due in 100 µs must not turn into calls that return at once until it is."""
    start = time.monotonic_ns()
    for _ in range(10):
        assert poller.wait(100_000) == []
    assert time.monotonic_ns() - start >= 10 * 100_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not every system can")
@pytest.mark.parametrize("timeout_us", [100, 300, 1100])
def test_an_exact_time_out_is_not_rounded_up(poller: object, timeout_us: int) -> None:
    def late() -> int:
        start = time.monotonic_ns()
        assert poller.wait(timeout_us * 1000, exact=True) == []
        return time.monotonic_ns() - start - timeout_us * 1000

    assert min(at_best(late, 400_000)) >= 0


@pytest.mark.parametrize("timeout_ns", [-1, 0, 1 << 40, (1 << 63) - 1_000_000])
def test_an_exact_wait_for_an_event(poller: object, make_pair: MakePair, timeout_ns: int) -> None:
    ours, _peer = make_pair()
    poller.add(ours.fileno(), 1)
    assert poller.wait(timeout_ns, exact=True) == [(1, OUT)]


def test_an_entry_that_is_left_out_does_not_end_the_wait(poller: object, make_pair: MakePair) -> None:
    """A reset one has no more to report. WSAPoll marks what it is to leave out, which is no event, and hides none."""
    (gone, its_peer), (ours, peer) = make_pair(), make_pair()
    poller.add(gone.fileno(), 1)
    poller.add(ours.fileno(), 2)
    reset(its_peer)
    wait_for(poller, 1, IN | OUT)
    settle(poller)
    start = time.monotonic_ns()
    assert poller.wait(200 * MS) == []
    assert time.monotonic_ns() - start >= 200 * MS
    peer.sendall(b"x")
    assert told(poller) == {2}


def test_a_time_out_of_zero_does_not_wait(poller: object) -> None:
    def time_to_return() -> int:
        start = time.monotonic_ns()
        assert poller.wait(0) == []
        return time.monotonic_ns() - start

    at_best(time_to_return, MS // 2)


@pytest.mark.parametrize("timeout_ns", [-1, 1 << 40, (1 << 63) - 1_000_000], ids=["for ever", "long", "longest"])
def test_waits_as_long_as_it_takes(poller: object, make_pair: MakePair, timeout_ns: int) -> None:
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    returned = threading.Event()

    def wait() -> object:
        result = poller.wait(timeout_ns)
        returned.set()
        return result

    with in_background(wait) as result:
        assert not returned.wait(0.1)
        peer.sendall(b"x")
    assert result[0][0][1] & IN


def test_a_signal_is_no_error(poller: object, stack: contextlib.ExitStack) -> None:
    """Row 39: never EINTR."""
    caught: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    stack.callback(signal.signal, signal.SIGALRM, before)
    stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    for _ in range(5):
        assert poller.wait(50 * MS) == []
    assert caught


# --- "poller_wake ...: the wait under way, or else the next one, ends early"; "a wake-up is an event too" ---


def test_wakes_a_wait_under_way(poller: object) -> None:
    for _ in range(20):
        with in_background(poller.wait, -1) as result:
            poller.wake()
        assert result == [WAKE_UP]


def test_wakes_the_next_wait_and_no_other(poller: object) -> None:
    poller.wake()
    assert poller.wait(10_000 * MS) == WAKE_UP
    start = time.monotonic_ns()
    assert poller.wait(30 * MS) == []
    assert time.monotonic_ns() - start >= 30 * MS


def test_who_does_not_wait_sees_the_wake_up_too(poller: object) -> None:
    """Else a loop that polls busily would use it up and then sleep over what it was woken for."""
    poller.wake()
    assert poller.wait(0) == WAKE_UP
    assert poller.wait(0) == []


def test_a_hundred_thousand_wake_ups_that_nobody_waits_for(poller: object) -> None:
    """The waker never blocks, the poller still works, and comes to rest."""
    with in_background(poller.wake, 100_000):
        pass
    assert poller.wait(10_000 * MS) == WAKE_UP
    waits = 0
    while not quiet(poller):
        waits += 1
        assert waits < 10_000
    poller.wake()
    assert poller.wait(10_000 * MS) == WAKE_UP


def test_wake_ups_hide_no_event(poller: object, make_pair: MakePair) -> None:
    """Even with room for one."""
    ours, peer = make_pair()
    poller.add(ours.fileno(), 1)
    wait_for(poller, 1, OUT)
    for _ in range(20):
        peer.sendall(b"x")
        poller.wake()
        assert told(poller, room=1) or told(poller, room=1), "the wake-up may take one wait, not two"
        assert ours.recv(10) == b"x"
        poller.rearm(1, IN)


def test_events_hide_no_wake_up(poller: object, make_pair: MakePair) -> None:
    """Even with room for one, and more sockets ready than that."""
    for tag in range(5):
        poller.add(make_pair()[0].fileno(), tag)
    poller.wake()
    seen = [poller.wait(SOON, 1) for _ in range(6)]
    assert WAKE_UP in seen
    assert sorted(events[0][0] for events in seen if events != WAKE_UP) == list(range(5))


def test_it_says_which_one_it_is(door: ModuleType) -> None:
    assert door.POLLER == POLLER
    assert POLLER in ("epoll", "kqueue", "poll", "WSAPoll")
