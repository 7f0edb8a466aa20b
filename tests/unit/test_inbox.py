"""Commands to a worker: many writers, one reader, no locks."""

from __future__ import annotations

import contextlib
from types import ModuleType

from support.waiting import in_background


def test_first_in_first_out(door: ModuleType) -> None:
    queue = door.InboxDoor()
    assert queue.pop() is None
    for fd in (7, 8, 9):
        assert queue.push(fd, target=fd - 5)
    assert [queue.pop() for _ in range(4)] == [(7, 2, 16, 7), (8, 3, 16, 8), (9, 4, 16, 9), None]


def test_a_full_queue_takes_nothing_and_loses_nothing(door: ModuleType) -> None:
    queue = door.InboxDoor()
    room = door.INBOX_LIMIT
    assert all(queue.push(fd) for fd in range(room))
    assert not queue.push(room)
    assert not queue.push(room)
    assert queue.pop()[0] == 0
    assert queue.push(room + 1), "there is room for one again"
    assert not queue.push(room + 2)
    assert [queue.pop()[0] for _ in range(room)] == [*range(1, room), room + 1]
    assert queue.pop() is None


def test_many_rounds(door: ModuleType) -> None:
    """Each cell is used again and again, by a queue that is never full nor always empty."""
    queue = door.InboxDoor()
    waiting: list[int] = []
    for step in range(4 * door.INBOX_LIMIT):
        for fd in (3 * step, 3 * step + 1):
            if queue.push(fd):
                waiting.append(fd)
        assert queue.pop()[0] == waiting.pop(0)
        if len(waiting) > 300:
            assert [queue.pop()[0] for _ in waiting] == waiting
            waiting.clear()
            assert queue.pop() is None


def test_many_writers(door: ModuleType) -> None:
    """Row 36: nothing is lost, nothing comes twice, each writer's sockets come in its order with their clients."""
    queue = door.InboxDoor()
    writers, count = 4, 20_000
    expected = [0] * writers
    with contextlib.ExitStack() as threads:
        for target in range(writers):
            threads.enter_context(in_background(queue.push_many, target, count))
        while sum(expected) < writers * count:
            if found := queue.pop():
                fd, target, length, _ = found
                assert (fd, length) == (expected[target], expected[target])
                expected[target] += 1
    assert queue.pop() is None
