"""A Printer that keeps its lines for a full-screen view, which they would garble on the terminal."""

from __future__ import annotations

import collections
import os
import threading
from collections.abc import Iterable
from typing import Any

from ..native import monotonic
from ..text import clean
from .event import Event, EventKind
from .fields import LEVELS
from .printer import Printer

FEWEST, MOST = 50, 500
"""The most lines that are kept: of all, and of trouble."""

RECENT = 60.0
"""When the view ends, lines about trouble of the last RECENT seconds are printed."""

TROUBLE = -2
"""Stands for the descriptor of stderr, for warnings and errors."""


class KeptLines(Printer):
    """Keeps the last lines.

    If stderr is no terminal, the lines for stderr are also written to it.

    Args:
        options: those of Printer, without `json`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._numbered = True  # the view names connections by their numbers
        self._screen = os.isatty(self._stderr)
        self._through = False
        self._lock = threading.Lock()
        self._kept: collections.deque[tuple[str, bool]] = collections.deque(maxlen=FEWEST)
        self._trouble: collections.deque[tuple[float, str]] = collections.deque(maxlen=MOST)
        self._troubles = 0

    @property
    def kinds(self) -> tuple[EventKind, ...]:
        """Those of Printer and `end`, because the Reporter keeps the connections that have ended."""
        kinds = super().kinds
        return kinds if "end" in kinds else (*kinds, "end")

    def many(self, events: Iterable[Event]) -> None:
        """Keeps the lines of events. The ends of connections have lines with `debug` only."""
        super().many(event for event in events if event.kind != "end" or self._debug)

    def print_lines(self, lines: list[str]) -> None:
        """Keeps lines that are no event."""
        self._write(self._stderr, lines)

    def lines(self) -> list[tuple[str, bool]]:
        """The last lines, each with whether it is about trouble."""
        with self._lock:
            return list(self._kept)

    def release(self) -> list[str]:
        """From now on lines are written. Returns the lines about recent trouble that stderr has not got yet."""
        with self._lock:
            self._through = True
            if not self._screen:
                return []
            recent = [line for when, line in self._trouble if when >= monotonic() - RECENT]
            older = self._troubles - len(recent)
            self._troubles = 0
            self._trouble.clear()
        return [f"{older:,} earlier lines about trouble are not repeated"] * bool(older) + recent

    def _stream(self, event: Event) -> int:
        stream = super()._stream(event)
        return TROUBLE if stream == self._stderr and LEVELS.get(event.kind, "warning") == "warning" else stream

    def _write(self, target: int, lines: list[str]) -> bool:
        stream = self._stderr if target == TROUBLE else target
        if not self._through:
            lines = [clean(line) for line in lines]
            with self._lock:
                self._kept.extend((line, target == TROUBLE) for line in lines)
                if target == TROUBLE:
                    self._trouble.extend((monotonic(), line) for line in lines)
                    self._troubles += len(lines)
        if self._through or (stream == self._stderr and not self._screen):
            return super()._write(stream, lines)
        return True
