"""Waits for the numbers of a proxy. A part of Proxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from . import awaiting
from .crew import Crew
from .errors import UsageError, WaitTimeout
from .native import Event as Signal
from .native import monotonic
from .report.table import measure, table
from .text import quoted
from .values import parse_limit, parse_number
from .views import Connection, Stats


class Wanted(TypedDict, total=False):
    """The numbers that `wait_for` waits for; None is the same as leaving a number out."""

    accepted: int | None
    active: int | None
    ended: int | None
    to_upstream: int | None
    to_client: int | None


class Waits:
    """The methods that wait for the numbers of a proxy."""

    _crew: Crew | None
    _stopping: Signal

    if TYPE_CHECKING:  # Proxy has them

        def stats(self) -> Stats: ...
        def connections(self, ended: bool = False) -> list[Connection]: ...

    def wait_for(
        self, *, since: Stats | None = None, timeout: float | str | None = 5.0, **numbers: Unpack[Wanted]
    ) -> Stats:
        """Waits until the proxy's numbers have reached all of the given ones at the same time.

        Args:
            since: subtract these numbers first, except `active`; None: count from the start of the proxy.
            timeout: seconds, or a text like `250ms`; None: no limit.
            accepted: connections accepted, at least.
            active: connections alive, exactly.
            ended: connections that have ended, at least.
            to_upstream: bytes delivered to upstream, at least.
            to_client: bytes delivered to clients, at least.

        Returns:
            The numbers at that time.

        Raises:
            WaitTimeout: the time is over, or the proxy has ended; the text shows numbers and connections.
            UsageError: the timeout is no duration, or a number is invalid.
        """
        __tracebackhide__ = True
        return awaiting.poll(self._looking_for(numbers, since, timeout))

    async def wait_for_async(
        self, *, since: Stats | None = None, timeout: float | str | None = 5.0, **numbers: Unpack[Wanted]
    ) -> Stats:
        """`wait_for` without blocking the event loop."""
        __tracebackhide__ = True
        return await awaiting.poll_async(self._looking_for(numbers, since, timeout))

    def _is_over(self) -> bool:
        """Has the proxy ended, or failed to start?"""
        crew = self._crew
        return self._stopping.is_set() and not (crew and crew.running)

    def _looking_for(
        self, numbers: Wanted, since: Stats | None, timeout: float | str | None
    ) -> Callable[[], Stats | None]:
        """Returns the function that `wait_for` polls. It returns the numbers when they are reached, until then None."""
        __tracebackhide__ = True
        wanted = _Goal(numbers, since)
        limit = parse_limit("timeout", timeout)
        deadline = monotonic() + limit

        def look() -> Stats | None:
            __tracebackhide__ = True
            over = self._is_over()  # asked first: then the numbers are final
            stats = self.stats()
            missing = wanted.missing(stats)
            if not missing:
                return stats
            if over or monotonic() >= deadline:
                when = "before the proxy ended" if over else f"within {limit:g} s"
                known = self.connections(ended=True)
                lines = table(known, measure([], known, 0), None) if known else ["no connections"]
                raise WaitTimeout("\n".join([f"not {when}: {missing}", *lines]))
            return None

        return look


class _Goal:
    """The checked numbers of a `wait_for`."""

    def __init__(self, numbers: Wanted, since: Stats | None) -> None:
        if unknown := numbers.keys() - Wanted.__annotations__.keys():
            raise TypeError(f"wait_for() got an unexpected keyword argument {min(unknown)!r}")
        if since is not None and not isinstance(since, Stats):
            raise UsageError(f"since {quoted(since)} is no Stats, expected what stats() returns")
        given = cast("dict[str, int | None]", numbers)
        checked = {name: parse_number(name, value, 0, 2**64) for name, value in given.items() if value is not None}
        self._active = checked.pop("active", None)
        self._totals = {f"bytes_{name}" if name[:3] == "to_" else name: value for name, value in checked.items()}
        self._since = {name: getattr(since, name) if since else 0 for name in self._totals}

    def missing(self, stats: Stats) -> str:
        """Returns a text of the numbers that are not reached; empty: all are."""
        found = []
        for name, value in self._totals.items():
            if (now := getattr(stats, name) - self._since[name]) < value:
                found.append(f"{name} {now} of {value}")
        if self._active is not None and stats.active != self._active:
            found.append(f"active {stats.active}, not {self._active}")
        return ", ".join(found)
