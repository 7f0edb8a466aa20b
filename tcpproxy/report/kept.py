"""A Printer that keeps its lines for a view of the whole screen, which a line on the terminal would tear."""

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
"""Lines that are kept at least; lines of trouble."""

RECENT = 60.0
"""Seconds for which trouble is worth repeating, once the view is gone."""

TROUBLE = -2
"""Stands for stderr, for events that are trouble."""


class KeptLines(Printer):
    """Keeps the last lines.

    Where stderr is no terminal, the lines for stderr are written to it as well.

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
        """With the ends of connections, which the Reporter keeps."""
        kinds = super().kinds
        return kinds if "end" in kinds else (*kinds, "end")

    def many(self, events: Iterable[Event]) -> None:
        """Keeps their lines; the ends of connections make lines with `debug` only."""
        super().many(event for event in events if event.kind != "end" or self._debug)

    def print_lines(self, lines: list[str]) -> None:
        """Keeps them."""
        self._write(self._stderr, lines)

    def lines(self) -> list[tuple[str, bool]]:
        """The last lines, each with: is it about trouble?"""
        with self._lock:
            return list(self._kept)

    def release(self) -> list[str]:
        """From now on lines are written. Returns what to say once on stderr: recent trouble that was only kept."""
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
