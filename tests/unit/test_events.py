"""The ring of event records: one writer that never waits, one reader that may sleep."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import ModuleType

import pytest
from support.waiting import TIMEOUT, in_background

from tcpproxy._core.worker import KINDS, REASONS

NEW, END = 1, 3

Bell = tuple[socket.socket, socket.socket]


@pytest.fixture
def bell(stack: contextlib.ExitStack) -> Bell:
    """(the reader's end, the ring's end)"""
    reader, writer = (stack.enter_context(end) for end in socket.socketpair())
    reader.setblocking(False)
    writer.setblocking(False)
    return reader, writer


def rings(bell: Bell) -> int:
    """How often it has rung since the last time."""
    try:
        return len(bell[0].recv(4096))
    except BlockingIOError:
        return 0


def test_records_come_out_in_order_for_many_rounds(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW | 1 << END)
    assert ring.take() is None
    for number in range(0, 1000, 5):
        for each in range(5):
            assert ring.write(NEW if each % 2 else END, number + each)
        assert [ring.take() for _ in range(6)] == [
            *((NEW if each % 2 else END, number + each) for each in range(5)),
            None,
        ]
    assert ring.lost == 0


def test_a_ring_that_is_emptied_begins_again(door: ModuleType, bell: Bell) -> None:
    """Memory that was never needed is never touched."""
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW)
    for number in range(0, 99, 3):
        assert [ring.place(NEW, number + each) for each in range(3)] == [0, 1, 2]
        assert [ring.take() for _ in range(4)] == [*((NEW, number + each) for each in range(3)), None]


def test_a_ring_that_is_never_empty_uses_all_of_its_memory(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW)
    assert [ring.place(NEW, number) for number in range(3)] == [0, 1, 2]
    assert [ring.take() for _ in range(2)] == [(NEW, 0), (NEW, 1)]
    assert [ring.place(NEW, number) for number in range(3, 12)] == [3, 4, 5, 6, 7, 0, 1, None, None]
    assert [ring.take() for _ in range(9)] == [(NEW, number) for number in range(2, 10)] + [None]
    assert ring.place(NEW, 12) == 0


def test_what_nobody_wants_is_neither_written_nor_lost(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(8, bell[1].fileno(), 1 << END)
    assert ring.claim(NEW) is None
    assert ring.lost == 0
    assert ring.write(END, 1)
    assert [ring.take(), ring.take()] == [(END, 1), None]


def test_what_does_not_fit_is_counted(door: ModuleType, bell: Bell) -> None:
    """Row 101: a reader that does not come loses records, and the writer never waits for it."""
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW)
    assert [ring.write(NEW, number) for number in range(11)] == [True] * 8 + [False] * 3
    assert ring.lost == 3
    assert ring.take() == (NEW, 0)
    assert [ring.write(NEW, number) for number in (11, 12)] == [True, False]
    assert ring.lost == 4
    assert [ring.take() for _ in range(9)] == [(NEW, number) for number in (*range(1, 8), 11)] + [None]


def test_a_claimed_record_is_clean_whatever_was_there_before(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(2, bell[1].fileno(), 1 << NEW)
    for number in range(4):
        assert ring.write(NEW, number + 1)
        ring.take()
    assert ring.claim(NEW)


def test_a_record_is_seen_when_it_is_published_and_not_before(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(2, bell[1].fileno(), 1 << NEW)
    assert ring.claim(NEW)
    assert ring.take() is None
    assert ring.sleep()
    assert rings(bell) == 0


def test_the_bell_rings_once_for_a_sleeping_reader(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW)
    ring.write(NEW, 1)
    assert rings(bell) == 0, "nobody sleeps"
    assert ring.take()
    assert ring.sleep()
    assert ring.asleep
    ring.write(NEW, 2)
    assert not ring.asleep
    ring.write(NEW, 3)
    assert rings(bell) == 1
    assert not ring.sleep(), "there are records"


def test_a_lost_record_does_not_ring(door: ModuleType, bell: Bell) -> None:
    ring = door.RingDoor(2, bell[1].fileno(), 1 << NEW)
    ring.write(NEW, 1)
    ring.write(NEW, 2)
    assert not ring.sleep()
    assert not ring.write(NEW, 3)
    assert rings(bell) == 0


def test_a_bell_that_is_full_or_gone_stops_nobody(door: ModuleType, bell: Bell) -> None:
    """Rows 23, 101."""
    ring = door.RingDoor(8, bell[1].fileno(), 1 << NEW)
    with contextlib.suppress(BlockingIOError):
        while True:
            bell[1].send(bytes(4096))
    ring.sleep()
    assert ring.write(NEW, 1)
    bell[0].close()
    ring.sleep()
    assert ring.write(NEW, 2)
    assert [ring.take(), ring.take()] == [(NEW, 1), (NEW, 2)]


def test_a_reader_that_sleeps_misses_nothing(door: ModuleType, bell: Bell) -> None:
    """A writer in a thread of its own against a reader that sleeps as often as it can."""
    ring = door.RingDoor(16, bell[1].fileno(), 1 << NEW)
    bell[0].settimeout(TIMEOUT)
    count, naps = 100_000, 0
    deadline = time.monotonic() + TIMEOUT
    while naps <= 10:  # a reader that was never faster than the writer has proved nothing
        assert time.monotonic() < deadline, f"the reader slept {naps} times"
        expected = 0
        with in_background(ring.write_many, NEW, count):
            while expected < count:
                if found := ring.take():
                    assert found == (NEW, expected)
                    expected += 1
                elif ring.sleep():
                    naps += 1
                    bell[0].recv(4096)
        assert ring.take() is None


def test_a_writer_that_is_done_has_left_everything(door: ModuleType, bell: Bell) -> None:
    """The last record of a thread that ends is there for whoever has joined it."""
    ring = door.RingDoor(1024, bell[1].fileno(), 1 << NEW)
    thread = threading.Thread(target=ring.write_many, args=(NEW, 1000))
    thread.start()
    thread.join(TIMEOUT)
    assert [ring.take() for _ in range(1001)] == [(NEW, number) for number in range(1000)] + [None]


def test_names(door: ModuleType) -> None:
    """Kinds and reasons have the names that Python gets, in the order of their numbers; the first kind is 1."""
    assert door.names(False) == ("", *KINDS)
    assert door.names(True) == REASONS
