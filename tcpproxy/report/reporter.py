"""The log thread of a proxy: takes event records from its workers and passes them, as Events, to a sink."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from .._core.capture import TapReader
from .._core.worker import KINDS, Worker
from ..native import Event as Signal
from ..native import Thread, monotonic, wall
from ..network.forwarding import Forwarding, Target, all_targets
from ..tap.dump import Piece
from ..wakeup import Wakeup
from .event import Event, EventKind, Record, decode, is_new
from .over import Over
from .printer import Printer
from .sink import LoggingSink

if TYPE_CHECKING:
    from ..inforce import Faults

AT_ONCE = 256
"""Most records taken from one worker in a pass."""

ALL = 1_000_000
"""More records or pieces than there is room for."""

PIECES = 64
"""Most pieces of a dump taken in a pass, some 300 KiB of text."""

GATHER = 0.02
"""Seconds that the log thread waits between two passes while records come fast. No worker wakes it meanwhile. The ring
then has room for 100,000 records a second. 3,000 connections in a row took 14 wake-ups, instead of 2,400 without."""

STALL = 1.0
"""The most seconds that the end of a connection waits for the connection's bytes, to be printed after them: a capture
may stand still."""

FEW = 8
"""Records within GATHER that are delivered at once, each with a wake-up of the log thread, which takes some 50 us."""


class Reporter:
    """Delivers the events of a proxy to its sink.

    Args:
        sink: called with each Event, in the log thread; a Printer may get many at once. None: the logger `tcpproxy`.
    """

    def __init__(self, sink: Callable[[Event], None] | None) -> None:
        self.faults: Faults | None = None
        """Has the names of faults, and counts what they have done; None: there are none."""
        self._sink = sink
        self._printer = sink if isinstance(sink, Printer) else None
        self._notes: collections.deque[Event | list[str]] = collections.deque()
        self._flushes: collections.deque[Signal] = collections.deque()
        self._workers: list[Worker] = []
        self._threads: list[Thread] = []
        self._wakeup: Wakeup | None = None
        self._targets: Sequence[Target] = ()
        self._forwards: Sequence[Forwarding] = ()  # of each target
        self._tap: TapReader | None = None
        self._trouble: Callable[[], str] = str
        self._later: list[Piece] = []
        """Pieces that were recorded after the last events were taken."""
        self.over = Over()
        self._ended = False
        self._window, self._recent = 0.0, 0  # the start of an interval of GATHER, and the number of records in it
        self._lost, self._next_lost = 0, 0.0  # lost records that were reported; the earliest time of the next report

    def open(
        self,
        workers: list[Worker],
        threads: list[Thread],
        wakeup: Wakeup,
        forwards: Sequence[Forwarding],
        tap: TapReader | None = None,
        trouble: Callable[[], str] = str,
    ) -> None:
        """Prepares `run`. Called before any thread starts, because it imports `logging`, which registers an exit hook.

        Args:
            workers, threads: the workers, and the threads that run them and read the tap.
            wakeup: wakes the log thread; a worker uses it when it writes a record while the log thread sleeps.
            forwards: have the targets, and the errors of their last lookups.
            tap: has the pieces of a dump, for a Printer; None: there is no dump.
            trouble: called in each pass; returns a new warning, or an empty text.
        """
        self._workers, self._threads, self._wakeup = workers, threads, wakeup
        self._tap, self._trouble = tap, trouble
        if self._sink is None:
            self._sink = LoggingSink(several=len(forwards) > 1)
        self._targets = all_targets(forwards)
        self._forwards = [each for each in forwards for _ in each.targets]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of event that the sink uses."""
        return self._printer.kinds if self._printer else KINDS

    @property
    def wants_outgoing(self) -> bool:
        """Does the sink use the proxy's own address toward upstream? Valid after `open`."""
        return not isinstance(self._sink, Printer | LoggingSink) or self._sink.wants_outgoing

    @property
    def prints(self) -> bool:
        """Is the sink a Printer, whose outputs may block?"""
        return self._printer is not None

    def note(self, kind: EventKind, text: str, target: str = "") -> None:
        """Reports an event that does not come from a worker; from any thread."""
        self._notes.append(Event(kind, text=text, time=wall(), target=target))
        if self._wakeup:
            self._wakeup.wake()

    def note_lines(self, lines: list[str]) -> None:
        """Prints lines as they are, in the order of notes, if the sink is a Printer; from any thread."""
        self._notes.append(lines)
        if self._wakeup:
            self._wakeup.wake()

    def flush(self, timeout: float) -> bool:
        """Waits until the sink has got all records and notes from before the call. From any thread but the log thread.

        Args:
            timeout: seconds to wait at most, for a sink that blocks.

        Returns:
            False if the time was over first.
        """
        delivered = Signal()
        self._flushes.append(delivered)
        if self._ended:
            return True
        if self._wakeup:
            self._wakeup.wake()
        return delivered.wait(timeout)

    def run(self) -> None:
        """The log thread: reports until the workers have ended."""
        assert self._wakeup is not None  # since `open`
        try:
            while self._pass(self._wakeup):
                pass
        finally:
            self._ended = True
            self._release(len(self._flushes))

    def _pass(self, wakeup: Wakeup) -> bool:
        """Reports all there is, then waits for more. False: the workers have ended, and everything is reported."""
        last = not any(thread.is_alive() for thread in self._threads)
        flushes = len(self._flushes)
        shown = False
        if text := self._trouble():
            self._notes.append(Event("warning", text=text, time=wall()))
        if self._tap and self._printer:
            most, shown = self._drain_with_pieces(self._tap, self._printer)
        else:
            most = self._drain()
        unsaid = self._say_lost(last and not most)
        if most == AT_ONCE:
            return True  # read on at once: a full ring drops records
        self._release(flushes)
        if shown:
            return True
        if most:
            if self._are_many(most):
                wakeup.wait(GATHER)
        elif last:
            if self._printer:
                self._printer.flush_suppressed(final=True)
            return False
        else:
            # From now on a record or a piece wakes this thread.
            empty = [worker.await_events() for worker in self._workers]
            if self._tap:
                empty.append(self._tap.await_pieces())
            if all(empty) and not self._notes and not self._flushes:
                suppressed = self._printer is not None and self._printer.flush_suppressed()
                wakeup.wait(1.0 if suppressed or unsaid else None)
        return True

    def _release(self, count: int) -> None:
        """Releases the first `count` callers of `flush`."""
        for _ in range(count):
            self._flushes.popleft().set()

    def _are_many(self, count: int) -> bool:
        """Do records come fast? Adds the `count` records of this pass."""
        now = monotonic()
        if now - self._window > GATHER:
            self._window, self._recent = now, 0
        self._recent += count
        return self._recent > FEW

    def _say_lost(self, final: bool) -> bool:
        """Reports the number of dropped records, at most once a second. True: some are still to be reported."""
        lost = sum(worker.counters()["events_lost"] for worker in self._workers)
        if lost != self._lost and (final or monotonic() >= self._next_lost):
            text = f"{lost - self._lost} log records were dropped: output is too slow"
            self._emit([Event("lost", text=text, time=wall(), lost=lost - self._lost)])
            self._lost, self._next_lost = lost, monotonic() + 1
        return lost != self._lost

    def _drain(self) -> int:
        """Reports notes, and some records. Returns the most that one worker had, up to AT_ONCE."""
        self._emit_notes()
        taken = [worker.take_events(AT_ONCE) for worker in self._workers]
        for new, records in itertools.groupby(itertools.chain.from_iterable(taken), is_new):
            if new and self._printer:
                self._printer.print_new(records, self._of_new)
            else:
                self._emit(self._decode(records))
        return max(map(len, taken))

    def _drain_with_pieces(self, tap: TapReader, printer: Printer) -> tuple[int, bool]:
        """Reports notes, records and pieces. The pieces of a connection come after its start and before its end.

        Returns:
            The most records that one worker had, below AT_ONCE; whether there may be more pieces.
        """
        self._emit_notes()
        before = tap.now()  # for earlier pieces, the records `new` and `connected` are taken now, or were before
        taken = [worker.take_events(ALL) for worker in self._workers]
        records = list(itertools.chain.from_iterable(taken))
        connected = [record for record in records if record[0] == "connected"]
        others = [record for record in records if record[0] not in ("new", "connected")]
        if len(connected) + len(others) < len(records):
            printer.print_new(filter(is_new, records), self._of_new)
        self._emit(self._decode(connected))
        if others:
            tap.sync(STALL)  # the pieces then have all bytes of the connections that have ended
        pieces = self._later + [Piece(*piece) for piece in tap.take(ALL if others else PIECES)]
        over = {record[3] for record in others}  # ended: all their pieces are shown now, also more recent ones
        self._later = [piece for piece in pieces if piece.time_ns > before and piece.id not in over]
        printer.show(piece for piece in pieces if piece.time_ns <= before or piece.id in over)
        if others:
            self._emit(self._decode(others))
        return min(max(map(len, taken)), AT_ONCE - 1), bool(pieces)

    def _emit_notes(self) -> None:
        while self._notes:
            note = self._notes.popleft()
            if isinstance(note, Event):
                self._emit([note])
            elif self._printer:
                self._printer.print_lines(note)

    @property
    def _of_new(self) -> list[str]:
        """All targets that a new connection may go to, by the number of the first one."""
        return [each.target for each in self._forwards]

    def _decode(self, records: Iterable[Record]) -> list[Event]:
        return [self._event(record) for record in records]

    def _event(self, record: Record) -> Event:
        kind, key, number = record[0], record[12], record[-1]
        target = self._targets[number]
        name = self._forwards[number].target if kind == "new" else target.name
        instead = self._targets[key].name if kind == "upstream-down" and key != number else ""
        return decode(record, name, target.lookup_error, self.faults, instead)

    def _emit(self, events: list[Event]) -> None:
        self.over.add(events)
        if self._printer:
            self._printer.many(events)
            return
        assert self._sink is not None  # since `open`
        for event in events:
            try:
                self._sink(event)
            except BaseException:  # an error of the program's callback must not end the log thread
                import logging

                with contextlib.suppress(BaseException):  # nor may one of a logging handler
                    logging.getLogger("tcpproxy").exception("on_event failed")
