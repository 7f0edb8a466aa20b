"""A half: one direction between two sockets, the pump alone."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import pytest
from support.machine import needs_splice, resource
from support.peers import reset
from support.streams import choke, payload, read_all, read_exactly
from support.waiting import TIMEOUT, eventually, in_background

Pair = tuple[socket.socket, socket.socket]

IN, OUT = 1, 2
WAIT, MORE, MOVED = 0, 1, 2
OPEN, DRAINING, SHUT, BROKEN = range(4)
SOON = 5_000_000_000
SIZE, BUDGET = 1000, 4000


class Direction(NamedTuple):
    half: object
    sender: socket.socket
    """The peer of the source."""
    source: socket.socket
    sink: socket.socket
    receiver: socket.socket
    """The peer of the sink."""


@pytest.fixture(params=["off", "always"], ids=["copy", "splice"])
def zero_copy(request: pytest.FixtureRequest) -> str:
    """Every test but those of one way alone is about both."""
    return request.param


@pytest.fixture
def make(door: ModuleType, make_pair: Callable[[], Pair], zero_copy: str) -> Callable[..., Direction]:
    """Makes a direction that has heard that its sink can take bytes."""
    if zero_copy == "always" and sys.platform != "linux":
        pytest.skip("needs splice")

    def make(size: int = SIZE, budget: int = BUDGET) -> Direction:
        (source, sender), (sink, receiver) = make_pair(), make_pair()
        half = door.HalfDoor(source.fileno(), sink.fileno(), size, budget, zero_copy)
        while not half.ready[1] & OUT:
            assert half.listen(SOON)
        return Direction(half, sender, source, sink, receiver)

    return make


@pytest.fixture
def it(make: Callable[..., Direction]) -> Direction:
    return make()


def arrive(it: Direction, count: int) -> None:
    """Waits until so many bytes can be read, and the half has heard of it."""

    def here() -> bool:
        it.half.listen(SOON // 100)
        return bool(it.half.ready[0] & IN) and len(it.source.recv(1 << 22, socket.MSG_PEEK)) >= count

    eventually(here, 10, f"{count} bytes have not arrived, or no event told of them")


def listen(it: Direction) -> None:
    """Waits for one report of the poller."""
    assert it.half.listen(SOON), "no event"


def stuff(it: Direction) -> int:
    """Fills the sink, so that it takes nothing; returns how much the receiver has to read first."""
    sent = choke(it.sink)
    it.sink.setblocking(False)
    return sent


def test_nothing_is_done_for_bits_that_are_not_set(it: Direction) -> None:
    it.sender.sendall(b"x")
    arrive(it, 1)
    it.half.ready = (0, OUT)
    assert it.half.turn() == WAIT
    assert it.half.delivered == 0
    assert it.source.recv(10) == b"x"


def test_moves_bytes_and_waits_for_more(it: Direction) -> None:
    """Row 32: a short read means drained, and saves the call that would say so."""
    for number in range(5):
        it.sender.sendall(b"%d" % number)
        arrive(it, 1)
        assert it.half.turn() == MOVED
        assert not it.half.ready[0] & IN
        assert it.receiver.recv(10) == b"%d" % number
        assert it.half.turn() == WAIT
    assert it.half.delivered == 5
    assert it.half.state == OPEN
    assert it.half.kept == (None, None)
    assert it.half.errors == (0, 0)


def test_a_full_read_may_mean_more(it: Direction) -> None:
    it.sender.sendall(payload(SIZE))
    arrive(it, SIZE)
    assert it.half.turn() == MOVED
    assert not it.half.ready[0] & IN, "it has read until it would have blocked"
    assert it.receiver.recv(SIZE + 1) == payload(SIZE)


def test_a_false_hint_is_harmless(it: Direction) -> None:
    """Row 71: a read that would block clears the bit, and nothing else happens."""
    it.half.ready = (IN, OUT)
    assert it.half.turn() == WAIT
    assert it.half.ready == (0, OUT)
    assert it.half.state == OPEN
    it.sender.sendall(b"x")
    listen(it)
    assert it.half.turn() == MOVED


@pytest.mark.skipif(sys.platform == "win32", reason="WSAPoll does not announce an end behind bytes")
def test_a_short_read_proves_nothing_once_an_end_is_announced(it: Direction) -> None:
    """Rows 68, 87: bytes and FIN behind one event, of which no other follows."""
    it.sender.sendall(b"last words")
    it.sender.close()
    while not (it.half.ready[0] & IN and it.half.read_to_eagain):
        listen(it)
    assert it.half.turn() == MOVED
    assert it.half.state == SHUT
    assert read_all(it.receiver) == b"last words"


def test_an_end_that_was_not_announced_is_heard_of(it: Direction) -> None:
    it.sender.sendall(b"last words")
    arrive(it, 10)
    it.half.read_to_eagain = False
    it.sender.close()
    while it.half.state != SHUT:
        if it.half.turn() == WAIT:
            listen(it)
    assert read_all(it.receiver) == b"last words"


@pytest.mark.parametrize("zero_copy", ["off"])
def test_a_turn_keeps_to_its_budget(it: Direction) -> None:
    """Row 34: one bulk stream does not starve the others."""
    data = payload(10 * BUDGET)
    it.sender.sendall(data)
    arrive(it, len(data))
    received = b""
    for turn in range(1, 10):
        assert it.half.turn() == MOVED | MORE
        assert it.half.delivered == turn * BUDGET
        received += read_exactly(it.receiver, BUDGET)
    it.half.turn()
    assert it.half.turn() == WAIT
    assert received + read_exactly(it.receiver, BUDGET) == data


@needs_splice
@pytest.mark.parametrize("zero_copy", ["always"])
def test_a_turn_goes_over_its_budget_by_one_pipe_at_most(door: ModuleType, make: Callable[..., Direction]) -> None:
    """Rows 34, 84: in splice mode too, a turn ends."""
    it = make(budget=1)
    data = payload(8 << 20)
    with in_background(it.sender.sendall, data):
        received = b""
        while len(received) < len(data):
            it.half.listen(1_000_000)
            before = it.half.delivered
            it.half.turn()
            assert it.half.delivered - before <= door.PIPE_ROOM
            received += read_exactly(it.receiver, it.half.delivered - len(received))
    assert received == data


@pytest.mark.parametrize("zero_copy", ["off"])
def test_what_the_sink_does_not_take_is_kept_and_nothing_more_is_read(it: Direction) -> None:
    """Rows 27, 38: memory is bounded by the buffer size, the rest stays in the kernel."""
    ahead = stuff(it)
    data = payload(10 * SIZE)
    it.sender.sendall(data)
    arrive(it, len(data))
    it.half.turn()
    assert it.half.kept == (SIZE, None)
    assert it.half.delivered == 0
    assert it.half.ready[0] & IN, "there is more to read"
    assert not it.half.ready[1] & OUT
    for _ in range(3):
        assert it.half.turn() == WAIT
    assert it.source.recv(1 << 20, socket.MSG_PEEK) == data[SIZE:]
    read_exactly(it.receiver, ahead)
    received = b""
    while len(received) < len(data):
        listen(it)
        while it.half.turn() & MORE:
            pass
        received += read_exactly(it.receiver, it.half.delivered - len(received))
    assert received == data
    assert it.half.kept == (None, None)


@needs_splice
@pytest.mark.parametrize("zero_copy", ["always"])
def test_what_the_sink_does_not_take_stays_in_the_pipe(it: Direction) -> None:
    """Rows 67, 79, 85: nothing more is read, and the pipe is nobody else's until it is empty."""
    ahead = stuff(it)
    first, later = payload(40_000), payload(5_000, 2)
    it.sender.sendall(first)
    arrive(it, len(first))
    it.half.turn()
    held = it.half.kept[1]
    assert held
    assert it.half.pipes == (0, 1)
    it.sender.sendall(later)
    arrive(it, len(first) - held + len(later))
    for _ in range(3):
        assert it.half.turn() == WAIT
    assert it.half.kept == (None, held)
    assert it.source.recv(1 << 20, socket.MSG_PEEK) == first[held:] + later
    read_exactly(it.receiver, ahead)
    received = b""
    while len(received) < len(first + later):
        listen(it)
        while it.half.turn() & MORE:
            pass
        received += read_exactly(it.receiver, it.half.delivered - len(received))
    assert received == first + later
    assert it.half.kept == (None, None)
    assert it.half.pipes == (1, 1)


def test_short_writes_keep_the_order(make: Callable[..., Direction]) -> None:
    """Row 38: a small send buffer and reads larger than it; every read is sent in pieces."""
    it = make(size=1 << 19, budget=1 << 20)
    it.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = payload(3 << 20)
    sent, received, kept = 0, b"", 0
    it.sender.setblocking(False)
    while len(received) < len(data):
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += it.sender.send(data[sent : sent + (1 << 19)])
        it.half.listen(1_000_000)
        it.half.turn()
        kept += it.half.kept != (None, None)
        received += read_exactly(it.receiver, it.half.delivered - len(received))
    assert received == data
    assert kept > 5, "nothing was ever kept: this proved nothing"


def test_the_end_is_passed_on_behind_the_bytes(it: Direction) -> None:
    """Row 10: and the other direction of both sockets stays open."""
    it.sender.sendall(b"all of it")
    it.sender.shutdown(socket.SHUT_WR)
    while it.half.state != SHUT:
        listen(it)
        it.half.turn()
    assert it.half.ended
    assert read_all(it.receiver) == b"all of it"
    it.receiver.sendall(b"answer")
    it.sink.settimeout(5)
    assert it.sink.recv(10) == b"answer"


def test_the_end_waits_for_what_is_kept(it: Direction) -> None:
    """Row 10: an end that was declared while bytes were kept; no byte more is read."""
    ahead = stuff(it)
    data = payload(10 * SIZE)
    it.sender.sendall(data)
    arrive(it, len(data))
    it.half.turn()
    kept = sum(part or 0 for part in it.half.kept)
    assert kept
    it.sender.sendall(b"too late")
    it.half.state = DRAINING
    assert it.half.turn() == WAIT
    assert it.half.state == DRAINING
    read_exactly(it.receiver, ahead)
    while it.half.state == DRAINING:
        listen(it)
        it.half.turn()
    assert it.half.state == SHUT
    assert it.half.kept == (None, None)
    assert read_all(it.receiver) == data[:kept]
    it.source.settimeout(TIMEOUT)
    assert read_exactly(it.source, len(data) - kept + 8) == data[kept:] + b"too late", "not read by the half"


def test_a_half_that_is_over_does_nothing(it: Direction) -> None:
    """Row 13."""
    it.sender.sendall(b"unread")
    arrive(it, 6)
    for state in (SHUT, BROKEN):
        it.half.state = state
        assert it.half.turn() == WAIT
        assert it.half.state == state
    assert it.source.recv(10) == b"unread"


def test_bytes_before_a_reset_are_delivered(it: Direction) -> None:
    """Rows 17, 18: the end is told by the state, since the sink must hear of it by a reset."""
    it.sender.sendall(b"last words")
    arrive(it, 10)
    reset(it.sender)
    while it.half.state == OPEN:
        listen(it)
        it.half.turn()
    assert it.half.state == BROKEN
    assert it.half.errors == (errno.ECONNRESET, 0)
    assert it.half.delivered == 10
    assert not it.half.ended
    assert it.receiver.recv(100) == b"last words"
    it.receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        it.receiver.recv(1)  # no end of file: the stream was cut


def test_a_sink_that_was_reset(it: Direction) -> None:
    """Rows 21, 23: EPIPE or ECONNRESET, no signal, nothing kept."""
    reset(it.receiver)
    listen(it)
    it.sender.sendall(payload(SIZE))
    arrive(it, SIZE)
    it.half.turn()
    assert it.half.state == BROKEN
    assert it.half.errors[0] == 0
    assert it.half.errors[1] in (errno.EPIPE, errno.ECONNRESET)
    assert it.half.delivered == 0
    assert it.half.kept == (None, None)
    assert it.half.turn() == WAIT


def test_a_sink_that_is_reset_while_bytes_are_kept_for_it(it: Direction) -> None:
    """Rows 19, 21."""
    stuff(it)
    it.sender.sendall(payload(SIZE))
    arrive(it, SIZE)
    it.half.turn()
    assert it.half.kept != (None, None)
    reset(it.receiver)
    while it.half.state == OPEN:
        listen(it)
        it.half.turn()
    assert it.half.state == BROKEN
    assert it.half.errors[1] in (errno.EPIPE, errno.ECONNRESET)
    assert it.half.kept == (None, None)


def test_an_end_of_file_after_a_failure_is_no_end_of_file(it: Direction) -> None:
    """A failed send took the socket's error away: recv says 0 where it means reset."""
    it.sender.close()
    while not it.half.ready[0] & IN:
        listen(it)
    it.half.errors = (errno.EPIPE, 0)
    it.half.turn()
    assert it.half.state == BROKEN
    it.receiver.setblocking(False)
    with pytest.raises(BlockingIOError):
        it.receiver.recv(1)


def test_breaking_forgets_what_was_kept(it: Direction) -> None:
    stuff(it)
    it.sender.sendall(payload(SIZE))
    arrive(it, SIZE)
    it.half.turn()
    assert it.half.kept != (None, None)
    it.half.break_off()
    assert it.half.state == BROKEN
    assert it.half.kept == (None, None)
    assert it.half.pipes == (0, 0), "a pipe that is not empty is closed, never lent again (row 85)"


def test_breaking_does_not_undo_an_end_that_was_passed_on(it: Direction) -> None:
    it.half.state = SHUT
    it.half.break_off()
    assert it.half.state == SHUT


@pytest.mark.parametrize("zero_copy", ["off"])
@pytest.mark.usefixtures("short_of_memory")
def test_bytes_that_could_not_be_kept_break_the_stream(make: Callable[..., Direction]) -> None:
    """A receiver must not take for the whole what has a hole: the sink failed, by ENOMEM."""
    it = make(size=1 << 16, budget=1 << 18)
    stuff(it)
    it.sender.sendall(payload(1 << 16))
    arrive(it, 1 << 16)
    it.half.turn(without_memory=True)
    assert it.half.state == BROKEN
    assert it.half.errors == (0, errno.ENOMEM)
    assert it.half.kept == (None, None)
    assert it.half.delivered == 0


# --- splice ---


def relay_some(it: Direction, sizes: list[int]) -> bytes:
    """Moves chunks one after the other, each as a whole; returns what was received."""
    received = b""
    for seed, size in enumerate(sizes):
        it.sender.sendall(payload(size, seed))
        arrive(it, size)
        while it.half.turn() & MORE:
            pass
        received += read_exactly(it.receiver, size)
    return received


@needs_splice
@pytest.mark.parametrize("zero_copy", ["auto"])
def test_splices_while_reads_are_large_and_copies_while_they_are_small(make: Callable[..., Direction]) -> None:
    """Row 78."""
    it = make(size=20_000, budget=200_000)
    sizes = [1000] * 10
    assert relay_some(it, sizes) == b"".join(payload(size, seed) for seed, size in enumerate(sizes))
    assert it.half.spliced == 0
    sizes = [100_000] * 5
    assert relay_some(it, sizes) == b"".join(payload(size, seed) for seed, size in enumerate(sizes))
    bulk = it.half.spliced
    assert bulk > 0
    relay_some(it, [1000] * 20)
    few = it.half.spliced
    assert few - bulk < 20_000
    relay_some(it, [1000] * 10)
    assert it.half.spliced == few, "it copies again"


@needs_splice
@pytest.mark.parametrize("zero_copy", ["always"])
def test_splices_from_the_first_byte_if_told_to(it: Direction) -> None:
    assert relay_some(it, [5000]) == payload(5000, 0)
    assert it.half.spliced == 5000
    assert it.half.pipes == (1, 1)


@needs_splice
@pytest.mark.parametrize("zero_copy", ["always"])
def test_copies_when_no_pipe_is_to_be_had(it: Direction, stack: contextlib.ExitStack) -> None:
    """Row 63: out of descriptors, and back to splicing when there are some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    with open(os.devnull) as lowest:
        number = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    assert relay_some(it, [5000, 300]) == payload(5000, 0) + payload(300, 1)
    assert it.half.spliced == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert relay_some(it, [5000]) == payload(5000, 0)
    assert it.half.spliced == 5000


@needs_splice
@pytest.mark.parametrize("zero_copy", ["always"])
def test_the_pipes_of_a_worker_are_bounded_and_used_again(door: ModuleType, it: Direction) -> None:
    """Rows 63, 85."""
    for _ in range(3):
        assert it.half.borrow_pipes(100) == door.PIPE_LIMIT
        assert it.half.pipes == (4, 4), "a few are kept"
    assert relay_some(it, [5000]) == payload(5000, 0)
    assert it.half.pipes == (4, 4)


@pytest.mark.parametrize("zero_copy", ["always"])
def test_many_small_segments(it: Direction) -> None:
    """Rows 67, 82: a pipe is full of slots long before it is full of bytes; "would block" is not "drained"."""
    data = payload(3000)
    for start in range(len(data)):
        it.sender.sendall(data[start : start + 1])
    arrive(it, len(data))
    while it.half.turn() & MORE:
        pass
    assert it.half.delivered == len(data)
    assert read_exactly(it.receiver, len(data)) == data


@pytest.mark.parametrize("followed_by", ["more", "end"])
def test_urgent_byte(it: Direction, followed_by: str) -> None:
    """Rows 82, 86, 87: splice answers "would block" or 0 at the mark, with bytes unread behind it."""
    it.source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    for _ in range(3):
        it.sender.sendall(payload(5000))
        it.sender.send(b"!", socket.MSG_OOB)
        if followed_by == "more":
            it.sender.sendall(b"behind")
    it.sender.shutdown(socket.SHUT_WR)
    while it.half.state != SHUT:
        listen(it)
        while it.half.turn() & MORE:
            pass
    assert read_all(it.receiver) == (payload(5000) + b"!" + b"behind" * (followed_by == "more")) * 3
