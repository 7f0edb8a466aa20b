"""Event records to log lines: on stdout and stderr for the command, through `logging` for a program."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from .errors import describe

REASONS = (
    "",
    "client-eof",
    "upstream-eof",
    "client-reset",
    "upstream-reset",
    "idle",
    "half-close-timeout",
    "connect-refused",
    "connect-timeout",
    "unreachable",
    "dns",
    "limit",
    "shutdown",
)
KINDS = ("", "new", "end", "failed", "accept-error", "limit")
NEW = KINDS.index("new")

BURST = 10
"""Failed connections of one reason that get a line in one second; the rest are counted and said in one line."""


class Event(NamedTuple):
    """A fact about the proxy or one of its connections. Addresses are `host:port`, empty where there is none."""

    kind: str
    """`new`, `end`, `failed` (upstream not reached, or the client turned away: its reason is `limit`), `accept-error`,
    `limit`; from the proxy itself `listening`, `warning`, `lost` (lines or records that were left out)."""
    reason: str = ""
    """Why it ended or failed: one of REASONS."""
    error: int = 0
    """errno behind it, 0: none."""
    client: str = ""
    upstream: str = ""
    to_upstream: int = 0
    """Bytes delivered from client to upstream."""
    to_client: int = 0
    duration: float = 0.0
    """Seconds since the client was accepted."""
    connect_time: float = 0.0
    """Seconds from there until upstream was connected, 0: it was not."""
    text: str = ""
    """`listening`: the address; `warning`: the sentence; `failed`: what the system said; `lost`: how many of what."""


def wanted(kinds: tuple[str, ...]) -> int:
    """The mask that makes a worker report these kinds."""
    return sum(1 << KINDS.index(kind) for kind in kinds)


Record = tuple[int, int, int, str, str, int, int, float, float]
"""What Worker.take_events returns."""


def is_new(record: Record) -> bool:
    """Is it a new connection?"""
    return record[0] == NEW


def decode(record: Record, problem: str) -> Event:
    """A record of the core as an Event; `problem`: why the last look-up of upstream's name failed."""
    kind, reason, error, client, upstream, to_upstream, to_client, duration, connect_time = record
    text = ""
    if REASONS[reason] == "dns":
        text = f"failed to lookup address information: {problem or 'no answer in time'}"
    elif error:
        text = f"{describe(error)} (os error {error})"
    return Event(
        KINDS[kind], REASONS[reason], error, client, upstream, to_upstream, to_client, duration, connect_time, text
    )


def clean(text: str) -> str:
    """The text with everything that could move a cursor or begin a line made visible (log injection)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Flood:
    """Lets a few lines of a kind through each second and counts the rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, tuple[float, int, int]] = {}  # when it began, lines in it, how many may pass

    def admit(self, key: str, burst: int, *, told: bool = True) -> bool:
        """May this line pass? Ask `overdue` first: here a second that is over is forgotten. `told`: it is counted."""
        start, count, _ = self._seconds.get(key, (-1.0, 0, burst))
        if self._clock() - start >= 1:
            start, count = self._clock(), 0
        self._seconds[key] = (start, count + 1, burst if told else count + 1)
        return count < burst

    def overdue(self, final: bool = False) -> dict[str, int]:
        """How many lines were held back in seconds that are over (`final`: in any), by kind; each is told once."""
        now = self._clock()
        over = {key: count - burst for key, (start, count, burst) in self._seconds.items() if final or now - start >= 1}
        for key in over:
            del self._seconds[key]
        return {key: count for key, count in over.items() if count > 0}

    @property
    def pending(self) -> bool:
        """Is there something that `overdue` will have to say?"""
        return any(count > burst for _, count, burst in self._seconds.values())


class Printer:
    """Writes events as lines, in the words of the original command. Never raises; what cannot be written is counted.

    Args:
        debug: a line or more per connection end.
        quiet: no line per connection.
        json: one object a line instead of text.
        stdout, stderr: descriptors to write to.
    """

    def __init__(
        self, *, debug: bool = False, quiet: bool = False, json: bool = False, stdout: int = 1, stderr: int = 2
    ) -> None:
        self._debug, self._quiet, self._json = debug, quiet, json
        self._stdout, self._stderr = stdout, stderr
        self._flood = Flood()
        self._torn: dict[int, bool] = {}
        """Of a descriptor: a disk became full amid its last line."""
        self.unwritten = 0
        """Lines that stdout or stderr would not take."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What this printer has a line for."""
        new, end = () if self._quiet else ("new",), ("end",) if self._debug else ()
        return ("failed", "accept-error", "limit", *new, *end)

    def __call__(self, event: Event) -> None:
        self.many([event])

    def many(self, events: Iterable[Event]) -> None:
        """Prints them in order, with one write where several in a row go to the same place."""
        self.settle()
        for target, group in itertools.groupby(filter(self._admitted, events), self._target):
            self._write(target, [line for event in group for line in self._lines(event)])

    def newcomers(self, records: Iterable[Record]) -> None:
        """Prints new connections, of which there may be tens of thousands a second, without an Event for each.

        Through `many` they took a tenth of all processor time while connections came and went.
        """
        if self._json:
            self.many([decode(record, "") for record in records])
        else:
            self.settle()
            self._write(self._stdout, [f"New connection from {record[3]}" for record in records])

    def settle(self, final: bool = False) -> bool:
        """Says how many lines were held back in the last seconds. Returns whether it has to be called once more."""
        for key, count in self._flood.overdue(final).items():
            lost = Event("lost", text=f"{count} more lines of the kind {key} were not shown")
            self._write(self._target(lost), self._lines(lost))
        return self._flood.pending

    def _admitted(self, event: Event) -> bool:
        if event.kind == "failed":
            return self._flood.admit(f"{event.kind} ({event.reason})", BURST)
        # A state that lasts, and is looked at again ten times a second: its line says so, and how often says nothing.
        return event.kind not in ("accept-error", "limit") or self._flood.admit(event.kind, 1, told=False)

    def _target(self, event: Event) -> int:
        return self._stdout if event.kind in ("listening", "new") else self._stderr

    def _lines(self, event: Event) -> list[str]:
        return [self._as_json(event)] if self._json else self._as_text(event)

    def _write(self, target: int, lines: list[str]) -> None:
        if not "".join(lines).isprintable():
            lines = [clean(line) for line in lines]
        data = "\n".join([*lines, ""]).encode("utf-8", "backslashreplace")
        if self._torn.get(target):
            data = b"\n" + data
        try:
            while data:
                size = os.write(target, data)
                self._torn[target] = data[size - 1 : size] != b"\n"
                data = data[size:]
        except OSError:
            self.unwritten += data.removeprefix(b"\n").count(b"\n")

    def _as_text(self, event: Event) -> list[str]:
        match event.kind:
            case "listening":
                return [f"Listening on {event.text}"]
            case "new":
                return [f"New connection from {event.client}"]
            case "failed" if event.reason == "limit" and not event.error:
                return [f"Refused {event.client}: its source has as many connections as it may"]
            case "failed":
                where = f" ({event.upstream or 'upstream'} for client {event.client})"
                return [f"Error establishing upstream connection: {event.text or event.reason}{where}"]
            case "accept-error":
                return [f"Error accepting a connection: {event.text}; trying again every 100 ms"]
            case "limit":
                return ["The limit of connections is reached; new ones wait"]
            case "end":
                connect = f", connected in {event.connect_time * 1000:.1f} ms" if event.connect_time else ""
                return [
                    f"Transferred {event.to_upstream} bytes from proxy client {event.client} to upstream server",
                    f"Transferred {event.to_client} bytes from upstream server to proxy client {event.client}",
                    f"Closed {event.client} after {event.duration:.3f} s{connect}: {event.reason}",
                ]
            case "lost":
                return [event.text]
        return [f"{event.kind}: {event.text}"]

    def _as_json(self, event: Event) -> str:
        import json

        fields: dict[str, object] = {"time": round(time.time(), 3)}
        fields.update({name: value for name, value in event._asdict().items() if value or name == "kind"})
        if event.kind == "end":
            fields.update(to_upstream=event.to_upstream, to_client=event.to_client)
        return json.dumps(fields)


def logging_sink() -> Callable[[Event], None]:
    """The default sink of a Proxy in a program: the logger `tcpproxy`, connections at DEBUG, trouble at WARNING."""
    import logging  # not above: the command does without; and not in the log thread, where it could meet an exit

    logger = logging.getLogger("tcpproxy")
    levels = {"listening": logging.INFO, "new": logging.DEBUG, "end": logging.DEBUG}

    def sink(event: Event) -> None:
        level = levels.get(event.kind, logging.WARNING)
        if logger.isEnabledFor(level):
            with contextlib.suppress(Exception):  # a handler's mistake is not the proxy's
                logger.log(level, "%s", " ".join(clean(str(part)) for part in event if part))

    return sink


def last_words(text: str) -> None:
    """A line on stderr at the very end: not written where that would fail or wait."""
    with contextlib.suppress(OSError, ValueError):
        if os.name == "nt" or select.select([], [2], [], 1)[1]:  # where only sockets can be asked
            os.write(2, f"{clean(text)}\n".encode("utf-8", "backslashreplace"))
