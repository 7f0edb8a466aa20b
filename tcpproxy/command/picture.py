"""The content of the live view. `top` formats it; `view` decides when it is updated and drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..report.event import Event
from ..report.table import Rates
from ..views import Connection, Stats

MANY = 2000
"""With more connections the view is updated only every SLOW_PERIOD: an update interrupts each worker, and makes an
object of each connection.
"""

PERIOD, SLOW_PERIOD = 1.0, 5.0
"""Seconds between two updates."""

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
"""Sort keys, in the order of the key `s`, each with whether the largest comes first."""


@dataclass
class Picture:
    """The content of a view.

    Attributes:
        route: where the proxy listens, and where it forwards to.
        up: seconds since the start of the view.
        stats: numbers of the proxy.
        rate: bytes per second to upstream and to clients.
        history: `rate` in each of the last seconds, oldest first.
        connections: the live connections, sorted.
        rates: the rates of each connection.
        ended: events of the connections that have just ended.
        lines: the last lines of the log, each with whether it is about trouble.
        order, reverse: the sort key of `connections`, and whether its order is reversed.
        first: the index of the first connection that is shown.
        paused: the content is not updated.
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
        """Is it updated less often, because there are many connections?"""
        return len(self.connections) > MANY

    @property
    def period(self) -> float:
        """Seconds until the next update."""
        return SLOW_PERIOD if self.is_slow else PERIOD

    def sort(self) -> None:
        """Sorts the connections."""
        key, largest_first = SORTS[self.order]
        self.connections = sorted(
            self.connections, key=lambda it: key(it, self.rates), reverse=largest_first != self.reverse
        )
