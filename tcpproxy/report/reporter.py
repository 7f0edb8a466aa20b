"""The log thread of a proxy: takes event records out of its workers and gives them, as Events, to a sink."""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable

from .._core.worker import Worker
from .event import KINDS, Event, decode, is_new
from .printer import Printer
from .sink import logging_sink

AT_ONCE = 256
"""Records taken from one worker before the others have their turn."""


class Reporter:
    """What a proxy reports, and to whom.

    Args:
        sink: called with each Event, in the log thread; a Printer may get many at once. None: the logger `tcpproxy`.
    """

    def __init__(self, sink: Callable[[Event], None] | None) -> None:
        self._sink = sink
        self._printer = sink if isinstance(sink, Printer) else None
        self._notes: collections.deque[Event] = collections.deque()

    def prepare(self) -> None:
        """At the start, before there is a thread; not before, since it imports what registers an exit hook."""
        if self._sink is None:
            self._sink = logging_sink()

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the sink wants to hear of."""
        return self._printer.kinds if self._printer else KINDS[1:]

    def note(self, kind: str, text: str) -> None:
        """Reports something that does not come from a worker; from any thread."""
        self._notes.append(Event(kind, text=text))

    def run(
        self,
        workers: list[Worker],
        threads: list[threading.Thread],
        bell: socket.socket,
        stopped: threading.Event,
        problem: Callable[[], str],
    ) -> None:
        """Reports until the workers are over.

        Args:
            workers, threads: the workers, and the threads that run them.
            bell: readable when a worker has news after a silence.
            stopped: set at the end.
            problem: why the last look-up of upstream's name failed, empty if it did not.
        """
        told, tell = 0, 0.0  # of those that were lost; when to tell again
        while True:
            last = not any(thread.is_alive() for thread in threads)
            most = self._some(workers, problem())
            lost = sum(worker.counters()["events_lost"] for worker in workers)
            if lost != told and (time.monotonic() >= tell or (last and not most)):
                self._emit([Event("lost", text=f"{lost - told} log records were dropped: output is too slow")])
                told, tell = lost, time.monotonic() + 1
            if most == AT_ONCE:
                continue  # more is waiting, and what does not fit behind it is lost
            if most:
                stopped.wait(0.02)  # gathers what comes meanwhile, so that a flood rings no bell per record
            elif last:
                if self._printer:
                    self._printer.settle(final=True)
                return
            else:
                nothing = [worker.await_events() for worker in workers]  # each of them rings from now on
                if all(nothing) and not self._notes:
                    held = self._printer is not None and self._printer.settle()
                    bell.settimeout(1.0 if held or lost != told else None)
                    with contextlib.suppress(TimeoutError):
                        bell.recv(4096)

    def _some(self, workers: list[Worker], problem: str) -> int:
        """Reports some records. Returns the most that one worker had, up to AT_ONCE."""
        while self._notes:
            self._emit([self._notes.popleft()])
        taken = [worker.take_events(AT_ONCE) for worker in workers]
        for new, records in itertools.groupby(itertools.chain.from_iterable(taken), is_new):
            if new and self._printer:
                self._printer.newcomers(records)
            else:
                self._emit([decode(record, problem) for record in records])
        return max(map(len, taken))

    def _emit(self, events: list[Event]) -> None:
        if self._printer:
            self._printer.many(events)
            return
        assert self._sink is not None  # since `prepare`
        for event in events:
            try:
                self._sink(event)
            except BaseException:  # a callback of the program's: its mistake must not end the log
                import logging

                logging.getLogger("tcpproxy").exception("on_event failed")
