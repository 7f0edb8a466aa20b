"""Events as lines on stdout and stderr, for the command."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
from collections.abc import Iterable, Mapping, Sequence

from ..native import wall
from ..tap.dump import JSON_KINDS, Dump, Piece, lost
from ..tap.dump import fields as piece_fields
from ..text import clean
from .event import OF_TARGETS, Event, EventKind, Record, decode
from .fields import fields, json_line
from .ratelimit import RateLimit
from .sentences import origin, sentences

UNREACHED = ("connect-refused", "unreachable", "dns")
"""Reasons that a refusal by the process's own sandbox may have."""

BURST = 10
"""Lines a second for failed connections of one reason; one more line counts the others."""


CHANGES = 4
"""Lines a second about whether one target answers; one more line counts the others."""

_CHANGES_OF = "upstream "
"""Before the name of a target, in keys of the rate limit; no reason begins with it."""


class Printer:
    """Writes events as lines, in the words of the original command. Never raises; counts what cannot be written.

    Args:
        debug: print how each connection ended.
        quiet: print no line for a new connection.
        json: print one JSON object a line instead of text, all on `stdout`, with the end of each connection.
        several: there are several forwards: lines about listeners and connections name the target.
        about: JSON: further fields of `listening`.
        dump: formats the bytes that pass; None: they are not shown.
        stdout, stderr: descriptors to write to.

    Attributes:
        suspicion: a warning to print the first time that upstream is not reached; empty: none.
    """

    def __init__(
        self,
        *,
        debug: bool = False,
        quiet: bool = False,
        json: bool = False,
        several: bool = False,
        about: Mapping[str, object] | None = None,
        dump: Dump | None = None,
        stdout: int = 1,
        stderr: int = 2,
    ) -> None:
        self._debug, self._quiet, self._json, self._several = debug, quiet, json, several
        self._about = about or {}
        self._dump = dump
        self._numbered = debug or dump is not None
        """Does each line about a connection end with its number? Other lines name the connection by it."""
        self.suspicion = ""
        self._stdout, self._stderr = stdout, stderr
        self._rate_limit = RateLimit()
        self._answers: dict[str, bool] = {}
        """Whether each target answers that has had an event."""
        self._torn: dict[int, bool] = {}
        """Descriptors whose last line is incomplete, because a disk was full."""
        self.unwritten = 0
        """Lines that could not be written."""
        self.failure: OSError | None = None
        """The last error of a write."""
        self.shown = 0
        """Bytes of a dump that are printed, or counted in a line about bytes that are not shown."""

    @property
    def kinds(self) -> tuple[EventKind, ...]:
        """The kinds of event that the core should report."""
        kinds: list[EventKind] = ["failed", "accept-error", "limit", *OF_TARGETS]
        if not self._quiet:
            kinds += ["new", "connected"] if self._json else ["new"]
        if self._debug or self._json:
            kinds += ["end", "fault"]
        return tuple(kinds)

    @property
    def wants_outgoing(self) -> bool:
        """Does it print the proxy's own address toward upstream, which costs a system call per connection?"""
        return self._debug or self._json

    def __call__(self, event: Event) -> None:
        self.many([event])

    def many(self, events: Iterable[Event]) -> None:
        """Prints events in order, with one write for neighbours that go to the same descriptor."""
        self.flush_suppressed()
        shown = list(filter(self._admitted, events))
        if self.suspicion and any(event.reason in UNREACHED for event in shown):
            shown.append(Event("warning", text=self.suspicion, time=wall()))
            self.suspicion = ""
        for target, group in itertools.groupby(shown, self._stream):
            self._write(target, [line for event in group for line in self._lines(event)])

    def print_lines(self, lines: list[str]) -> None:
        """Prints lines that are no event, in the format of the log: on stderr, JSON on stdout."""
        self._write(self._stdout if self._json else self._stderr, lines)

    def print_new(self, records: Iterable[Record], targets: Sequence[str]) -> None:
        """Prints new connections without an Event for each: there may be tens of thousands a second.

        Printing them by `many` took a tenth of all CPU time while connections came and went.

        Args:
            records: of the kind `new`.
            targets: all targets of a forward as one text, by the number of its first target.
        """
        if self._json:
            self.many([decode(record, targets[record[-1]], "") for record in records])
        else:
            self.flush_suppressed()
            routes = [f" -> {target}" * self._several for target in targets]
            lines = [
                f"New connection from {origin(record[4], record[-3])}{routes[record[-1]]}"
                + f" #{record[3]}" * self._numbered
                for record in records
            ]
            self._write(self._stdout, lines)

    def show(self, pieces: Iterable[Piece]) -> None:
        """Prints pieces of what passes, each with one write."""
        for piece in pieces:
            if piece.kind == "end" and self._debug:
                continue  # the line "Closed" says the same
            if self._json:
                done = self._show_as_json(piece)
            else:
                done = self._put(self._stdout, self._dump(piece).encode()) if self._dump else True
            if done and piece.kind in ("data", "gap", "lost"):
                self.shown += piece.size

    def _show_as_json(self, piece: Piece) -> bool:
        if piece.kind == "lost":
            return self._write(self._stdout, self._lines(Event("lost", text=lost(piece), lost=piece.size)))
        if piece.kind not in JSON_KINDS:
            return True
        line = json_line(JSON_KINDS[piece.kind], piece.time_ns / 1e9, piece_fields(piece))
        return self._write(self._stdout, [line])

    def flush_suppressed(self, final: bool = False) -> bool:
        """Prints how many lines the rate limit has suppressed. Returns True if it is to be called again in a second."""
        for key, count in self._rate_limit.take_suppressed(final).items():
            lost = self._suppressed(key, count)
            self._write(self._stream(lost), self._lines(lost))
        return self._rate_limit.pending

    def _suppressed(self, key: str, count: int) -> Event:
        if not key.startswith(_CHANGES_OF):
            text = f"{count} more lines of the kind failed ({key}) were not shown"
            return Event("lost", key, text=text, lost=count)  # type: ignore[arg-type]  # the key is a reason
        target = key.removeprefix(_CHANGES_OF)
        state = "answers" if self._answers[target] else "does not answer"
        text = f"{count} more changes of upstream {target} were not shown; it {state} now"
        return Event("lost", text=text, lost=count, target=target)

    def _admitted(self, event: Event) -> bool:
        if event.kind == "failed":
            return self._rate_limit.admit(event.reason, BURST)
        if event.kind in OF_TARGETS:
            self._answers[event.target] = event.kind == "upstream-up"
            return self._rate_limit.admit(_CHANGES_OF + event.target, CHANGES)
        # The core reports a lasting condition ten times a second: print one line a second, and do not count repeats.
        return event.kind not in ("accept-error", "limit") or self._rate_limit.admit(event.kind, 1, counted=False)

    def _stream(self, event: Event) -> int:
        return self._stdout if self._json or event.kind in ("listening", "new") else self._stderr

    def _lines(self, event: Event) -> list[str]:
        if not self._json:
            return sentences(event, numbered=self._numbered, several=self._several)
        about = self._about if event.kind == "listening" else {}
        return [json_line(event.kind, event.time or wall(), {**fields(event), **about})]

    def _write(self, target: int, lines: list[str]) -> bool:
        if not "".join(lines).isprintable():
            lines = [clean(line) for line in lines]
        return self._put(target, "\n".join([*lines, ""]).encode("utf-8", "backslashreplace"))

    def _put(self, target: int, data: bytes) -> bool:
        """Writes whole lines. False: not all of them could be written."""
        if self._torn.get(target):
            data = b"\n" + data
        try:
            while data:
                try:
                    size = os.write(target, data)
                except BlockingIOError:  # another process has made the shared file non-blocking: it is only slow
                    select.select([], [target], [])
                    continue
                self._torn[target] = data[size - 1 : size] != b"\n"
                data = data[size:]
        except OSError as error:
            self.failure = error
            self.unwritten += data.removeprefix(b"\n").count(b"\n")
            return False
        return True


def final_line(text: str, to: int = 2) -> bool:
    """Writes a line at the very end. Drops it if the write would fail or block.

    Args:
        text: the line.
        to: the descriptor.

    Returns:
        False if the line was dropped.
    """
    return final_lines([text], to)


def final_lines(lines: list[str], to: int = 2) -> bool:
    """`final_line` for several lines."""
    with contextlib.suppress(OSError, ValueError):
        if lines and (os.name == "nt" or select.select([], [to], [], 1)[1]):  # Windows: select takes sockets only
            os.write(to, "".join(f"{clean(line)}\n" for line in lines).encode("utf-8", "backslashreplace"))
            return True
    return False


def final_words(kind: str, text: str, json: bool, stdout: int = 1, **values: object) -> None:
    """`final_line` in the format of the log: `text` on stderr, or with `json` a record with `values` on `stdout`.

    If `stdout` does not take the record, `text` goes to stderr.
    """
    if not json or not final_line(json_line(kind, wall(), {**values, "text": text}), stdout):
        final_line(text)
