"""The log thread: it keeps up with a flood of records, and says what it could not have, without a flood of its own."""

from __future__ import annotations

import socket
import threading
import time
from typing import cast

import pytest

from tcpproxy._core.worker import Worker
from tcpproxy.report.event import NEW, Event, Record
from tcpproxy.report.reporter import Reporter

RECORD: Record = (NEW, 0, 0, "127.0.0.1:1", "", 0, 0, 0.0, 0.0)


class Flooded:
    """What the log thread sees of a worker with so many records, each of which cost `lost` others their place."""

    def __init__(self, count: int, lost: int = 0) -> None:
        self._left, self._each, self._lost = count, lost, 0

    def take_events(self, most: int) -> list[Record]:
        taken = min(most, self._left)
        self._left -= taken
        self._lost += taken * self._each
        return [RECORD] * taken

    def counters(self) -> dict[str, int]:
        return {"events_lost": self._lost}

    def await_events(self) -> bool:
        return not self._left


class Waits(threading.Event):
    """An event that is set already, and counts who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.set()
        self.count = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.count += 1
        return super().wait(timeout)


def report(worker: Flooded) -> tuple[list[Event], int]:
    """What is reported until such a worker, which has ended, has nothing left; and how often the thread waited."""
    events: list[Event] = []
    waits = Waits()
    bell, far = socket.socketpair()
    with bell, far:
        Reporter(events.append).run([cast(Worker, worker)], [], bell, waits, str)
    return events, waits.count


def test_a_flood_is_taken_without_waiting() -> None:
    """Whoever waits with records left to take loses some of those to come: 13,000 a second were the most."""
    events, waits = report(Flooded(10_000))
    assert len(events) == 10_000
    assert waits <= 1


@pytest.mark.parametrize("lost", [1, 3])
def test_what_was_lost_is_told_once_a_second(lost: int) -> None:
    """All of it, in the end."""
    start = time.monotonic()
    events, _ = report(Flooded(10_000, lost))
    told = [int(event.text.split()[0]) for event in events if event.kind == "lost"]
    assert sum(told) == 10_000 * lost
    assert len(told) <= 2 + time.monotonic() - start
