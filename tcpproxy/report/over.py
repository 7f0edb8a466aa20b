"""The last connections that have ended."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from ..native import monotonic
from ..views import Connection
from .event import Event

MOST = 1000
"""Connections that are kept."""


class Over:
    """Keeps the last connections that have ended. One thread adds; any thread reads."""

    def __init__(self) -> None:
        self._kept: collections.deque[tuple[float, Event]] = collections.deque(maxlen=MOST)

    def add(self, events: Iterable[Event]) -> None:
        """Keeps the events that end a connection."""
        for event in events:
            if event.id and event.kind in ("end", "failed"):
                self._kept.append((monotonic(), event))

    def last(self, seconds: float | None = None) -> list[Event]:
        """The events, the latest at the end; with `seconds`, only those of the last `seconds`."""
        since = None if seconds is None else monotonic() - seconds
        return [event for when, event in self._kept.copy() if since is None or when >= since]

    def connections(self) -> list[Connection]:
        """The connections, in the order of their ends."""
        return [_connection(event) for event in self.last()]


def _connection(it: Event) -> Connection:
    return Connection(
        it.id,
        it.client,
        it.upstream,
        "ended",
        it.to_upstream,
        it.to_client,
        age=it.duration,
        connect_time=it.connect_time,
        idle=0.0,
        waiting_for_upstream=0,
        waiting_for_client=0,
        outgoing=it.outgoing,
        reason=it.reason,
        target=it.target,
        faults=it.faults,
        via=it.via,
    )
