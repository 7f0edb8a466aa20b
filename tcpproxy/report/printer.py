"""Events as lines on stdout and stderr, for the command."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
from collections.abc import Iterable

from ..text import clean
from .event import Event, EventKind, Record, decode
from .ratelimit import RateLimit
from .sentences import sentences

UNREACHED = ("connect-refused", "unreachable", "dns")
"""Reasons that a refusal by this process's own sandbox can have."""

BURST = 10
"""Failed connections of one reason that get a line each in a second; one more line counts the others."""


class Printer:
    """Writes events as lines, in the words of the original command. Never raises; counts what cannot be written.

    Args:
        debug: print how each connection ended.
        quiet: print no line for a new connection.
        json: print one JSON object a line instead of text.
        remote: the target as it was given, for a failure without an address.
        suspicion: a sentence for the first time that upstream is not reached; empty: none.
        stdout, stderr: descriptors to write to.
    """

    def __init__(
        self,
        *,
        debug: bool = False,
        quiet: bool = False,
        json: bool = False,
        remote: str = "upstream",
        suspicion: str = "",
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        self._debug, self._quiet, self._json, self._remote = debug, quiet, json, remote
        self._suspicion = suspicion
        self._stdout, self._stderr = stdout, stderr
        self._rate_limit = RateLimit()
        self._torn: dict[int, bool] = {}
        """Descriptors whose last line is incomplete, because a disk was full."""
        self.unwritten = 0
        """Lines that stdout or stderr would not take."""

    @property
    def kinds(self) -> tuple[EventKind, ...]:
        """The kinds of event that it wants from the core."""
        kinds: list[EventKind] = ["failed", "accept-error", "limit"]
        if not self._quiet:
            kinds.append("new")
        if self._debug:
            kinds.append("end")
        return tuple(kinds)

    @property
    def wants_outgoing(self) -> bool:
        """Does it print the proxy's own address toward upstream, which costs a system call per connection?"""
        return self._debug or self._json

    def __call__(self, event: Event) -> None:
        self.many([event])

    def many(self, events: Iterable[Event]) -> None:
        """Prints them in order, with one write where several in a row go to the same place."""
        self.flush_suppressed()
        shown = list(filter(self._admitted, events))
        if self._suspicion and any(event.reason in UNREACHED for event in shown):
            shown.append(Event("warning", text=self._suspicion))
            self._suspicion = ""
        for target, group in itertools.groupby(shown, self._target):
            self._write(target, [line for event in group for line in self._lines(event)])

    def print_new(self, records: Iterable[Record]) -> None:
        """Prints new connections without an Event for each: there may be tens of thousands a second.

        Through `many` they took a tenth of all CPU time while connections came and went.
        """
        if self._json:
            self.many([decode(record, "") for record in records])
        else:
            self.flush_suppressed()
            lines = [f"New connection from {record[4]}" + f" #{record[3]}" * self._debug for record in records]
            self._write(self._stdout, lines)

    def flush_suppressed(self, final: bool = False) -> bool:
        """Says how many lines the rate limit has suppressed in the last seconds. True: call again a second later."""
        for key, count in self._rate_limit.take_suppressed(final).items():
            lost = Event("lost", text=f"{count} more lines of the kind {key} were not shown")
            self._write(self._target(lost), self._lines(lost))
        return self._rate_limit.pending

    def _admitted(self, event: Event) -> bool:
        if event.kind == "failed":
            return self._rate_limit.admit(f"{event.kind} ({event.reason})", BURST)
        # A lasting condition, checked again ten times a second: one line a second, and repeats are not counted.
        return event.kind not in ("accept-error", "limit") or self._rate_limit.admit(event.kind, 1, counted=False)

    def _target(self, event: Event) -> int:
        return self._stdout if event.kind in ("listening", "new") else self._stderr

    def _lines(self, event: Event) -> list[str]:
        return [self._as_json(event)] if self._json else sentences(event, self._remote, numbered=self._debug)

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

    def _as_json(self, event: Event) -> str:
        import json

        fields: dict[str, object] = {"time": round(time.time(), 3)}
        fields.update({name: value for name, value in event._asdict().items() if value or name == "kind"})
        if event.kind == "end":
            fields.update(to_upstream=event.to_upstream, to_client=event.to_client)
        return json.dumps(fields)


def final_line(text: str, kind: str = "") -> None:
    """Writes a line to stderr at the very end. It is dropped where writing would fail or block.

    Args:
        text: the line.
        kind: of the JSON object to write instead; empty: the line itself.
    """
    if kind:
        import json

        text = json.dumps({"time": round(time.time(), 3), "kind": kind, "text": text})
    with contextlib.suppress(OSError, ValueError):
        if os.name == "nt" or select.select([], [2], [], 1)[1]:  # Windows: select takes sockets only
            os.write(2, f"{clean(text)}\n".encode("utf-8", "backslashreplace"))
