"""What the live view shows: facts, without their looks (`top`) and without the moment when they are shown (`view`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..report.event import Event
from ..report.table import Rates
from ..views import Connection, Stats

MANY = 2000
"""With more connections than that a picture is made every SLOW_PERIOD: it interrupts each worker, and makes an object
of each connection.
"""

PERIOD, SLOW_PERIOD = 1.0, 5.0
"""Seconds from one picture to the next."""

Sorting = Callable[[Connection, Rates], Any]

SORTS: dict[str, tuple[Sorting, bool]] = {
    "rate": (lambda it, rates: sum(rates[it.id]), True),
    "#": (lambda it, _: it.id, False),
    "client": (lambda it, _: it.client, False),
    "age": (lambda it, _: it.age, True),
    "idle": (lambda it, _: it.idle, True),
    "bytes": (lambda it, _: it.to_upstream + it.to_client, True),
    "waiting": (lambda it, _: it.waiting_for_upstream + it.waiting_for_client, True),
}
"""What connections are sorted by, in the order of the key `s`; the second: the largest first."""


@dataclass
class Picture:
    """What a view shows.

    Attributes:
        route: where the proxy listens, and where it forwards to.
        up: seconds since the start of the view.
        stats: numbers of the proxy.
        rate: bytes per second to upstream and to clients.
        history: the same for each of the last seconds, oldest first.
        connections: those alive, sorted.
        rates: of each of them.
        ended: those that have ended a moment ago.
        lines: the last lines of the log, each with: is it about trouble?
        order, reverse: what they are sorted by, and whether the other way round.
        first: number of the first connection that is shown.
        paused: the picture does not change.
        help: the keys are shown instead of connections.
        keys: there is a keyboard.
    """

    route: tuple[str, str]
    stats: Stats
    up: float = 0.0
    rate: tuple[float, float] = (0.0, 0.0)
    history: list[tuple[float, float]] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    rates: Rates = field(default_factory=dict)
    ended: list[Event] = field(default_factory=list)
    lines: list[tuple[str, bool]] = field(default_factory=list)
    order: str = "rate"
    reverse: bool = False
    first: int = 0
    paused: bool = False
    help: bool = False
    keys: bool = True

    @property
    def is_slow(self) -> bool:
        """Is it drawn less often, for the number of connections?"""
        return len(self.connections) > MANY

    @property
    def period(self) -> float:
        """Seconds until the next one."""
        return SLOW_PERIOD if self.is_slow else PERIOD

    def sort(self) -> None:
        """Puts the connections in order."""
        key, largest_first = SORTS[self.order]
        self.connections = sorted(
            self.connections, key=lambda it: key(it, self.rates), reverse=largest_first != self.reverse
        )
