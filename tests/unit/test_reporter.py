"""The log thread: it delivers at once, gathers while records come fast, and says what it could not have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from support.waiting import TIMEOUT, in_background

from tcpproxy._core.worker import Worker
from tcpproxy.config.forwards import parse_forward
from tcpproxy.network.forwarding import Forwarding
from tcpproxy.report.event import Event, Record
from tcpproxy.report.reporter import AT_ONCE, FEW, GATHER, Reporter
from tcpproxy.wakeup import Wakeup

RECORD: Record = ("new", "", 0, 1, "127.0.0.1:1", "", "", 0, 0, 0.0, 0.0, 0.0, 0, "", "", 0)
FORWARDS = [Forwarding(parse_forward("forwards", "0:db:80"))]


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


class Waits(Wakeup):
    """A wake-up that never sleeps, and counts who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[float | None] = []

    def wait(self, timeout: float | None = None) -> None:
        self.timeouts.append(timeout)


@pytest.fixture
def wakeup() -> Iterator[Waits]:
    waits = Waits()
    yield waits
    waits.close()


def report(worker: Flooded, wakeup: Wakeup) -> list[Event]:
    """What is reported until such a worker, which has ended, has nothing left."""
    events: list[Event] = []
    reporter = Reporter(events.append)
    reporter.open([cast(Worker, worker)], [], wakeup, FORWARDS)
    reporter.run()
    return events


def test_a_flood_is_taken_without_waiting(wakeup: Waits) -> None:
    """A reader that waits with records left to take loses some of those to come: 13,000 a second were the most."""
    assert len(report(Flooded(10_000), wakeup)) == 10_000
    assert len(wakeup.timeouts) <= 1


@pytest.mark.parametrize(("count", "gathers"), [(1, False), (FEW, False), (FEW + 1, True), (AT_ONCE - 1, True)])
def test_only_many_records_are_gathered(wakeup: Waits, count: int, gathers: bool) -> None:
    assert len(report(Flooded(count), wakeup)) == count
    assert wakeup.timeouts == ([GATHER] if gathers else [])


@pytest.mark.parametrize("lost", [1, 3])
def test_what_was_lost_is_told_once_a_second(wakeup: Waits, lost: int) -> None:
    """All of it, in the end."""
    start = time.monotonic()
    told = [int(event.text.split()[0]) for event in report(Flooded(10_000, lost), wakeup) if event.kind == "lost"]
    assert sum(told) == 10_000 * lost
    assert len(told) <= 2 + time.monotonic() - start


class Trickle(Flooded):
    """A worker that goes on until it is told to end; records are added from outside."""

    def __init__(self) -> None:
        super().__init__(0)

    def add(self, count: int) -> None:
        self._left += count


@pytest.fixture
def running() -> Iterator[tuple[Trickle, Reporter, list[Event], Callable[[], None]]]:
    """A worker, the reporter that runs beside it, what it has reported, and how to make its sink block."""
    worker, wakeup, events, free = Trickle(), Wakeup(), list[Event](), threading.Event()
    free.set()
    over = threading.Event()
    alive = threading.Thread(target=over.wait, daemon=True)
    alive.start()

    def sink(event: Event) -> None:
        free.wait(TIMEOUT)
        events.append(event)

    reporter = Reporter(sink)
    reporter.open([cast(Worker, worker)], [alive], wakeup, FORWARDS)
    with in_background(reporter.run):
        yield worker, reporter, events, free.clear
        free.set()
        over.set()
        alive.join(TIMEOUT)
        wakeup.wake()
    wakeup.close()


@pytest.mark.parametrize("count", [0, 1, FEW, 200, 1_000])
def test_a_flush_delivers_what_was_there(
    running: tuple[Trickle, Reporter, list[Event], Callable[[], None]], count: int
) -> None:
    worker, reporter, events, _ = running
    for turn in range(1, 20):
        worker.add(count)
        reporter.note("warning", "a note")
        assert reporter.flush(TIMEOUT)
        assert len(events) == turn * (count + 1)


def test_a_flush_does_not_wait_for_the_end_of_a_gathering(
    running: tuple[Trickle, Reporter, list[Event], Callable[[], None]],
) -> None:
    worker, reporter, _, _ = running
    times = []
    for _ in range(50):
        worker.add(FEW + 1)
        start = time.monotonic()
        assert reporter.flush(TIMEOUT)
        times.append(time.monotonic() - start)
    assert min(times) < GATHER / 2, times


def test_a_flush_does_not_wait_for_a_sink_that_blocks(
    running: tuple[Trickle, Reporter, list[Event], Callable[[], None]],
) -> None:
    worker, reporter, _, block = running
    block()
    worker.add(1)
    assert not reporter.flush(0.05)


def test_a_flush_after_the_end(wakeup: Waits) -> None:
    reporter = Reporter(lambda event: None)
    reporter.open([cast(Worker, Flooded(1))], [], wakeup, FORWARDS)
    reporter.run()
    assert reporter.flush(TIMEOUT)
