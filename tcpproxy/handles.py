"""Handles of the faults in force in a proxy, and the state of each fault."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from . import awaiting
from .errors import UsageError, WaitTimeout
from .faults import Fault
from .native import monotonic
from .rules import ALL, Installed
from .values import parse_limit, parse_number

if TYPE_CHECKING:
    from .inforce import Faults

KNOWN = 1000
"""A handle keeps the last KNOWN ids of connections. The last KNOWN faults are remembered after their removal."""


class Entry:
    """A fault that is or was in force."""

    def __init__(self, installed: Installed) -> None:
        self.installed = installed
        self.connections: collections.deque[int] = collections.deque(maxlen=KNOWN)
        self.fired = 0
        """On how many connections the fault has acted; valid after its removal. Before, see `Faults.fired`."""
        self.begun = 0.0
        """When it was put in force, a time of `monotonic`; 0: the proxy has not started."""

    @property
    def is_shared_limit(self) -> bool:
        """Does it end all connections after a number of bytes that they share?"""
        return self.installed.fault.kind == "limit_data" and self.installed.fault.scope == "proxy"

    def window(self, now: float) -> tuple[bool, float]:
        """Returns whether its window is open at `now`, and when that changes; inf: never. Times of `monotonic`."""
        is_open, change = window(self.installed.fault, now - self.begun if self.begun else 0.0)
        return is_open, self.begun + change if self.begun else math.inf


class Handle:
    """Faults that were put in force together. A context manager, which removes them.

    `handle[0]` is a handle of the first fault alone.
    """

    def __init__(self, faults: Faults, entries: tuple[Entry, ...]) -> None:
        self._faults, self._entries = faults, entries

    def __repr__(self) -> str:
        return f"<Handle {', '.join(it.installed.name for it in self._entries)}>"

    def __getitem__(self, number: int) -> Handle:
        return Handle(self._faults, (self._entries[number],))

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    @property
    def name(self) -> str:
        """The name of the first fault."""
        return self._entries[0].installed.name

    @property
    def fault(self) -> Fault:
        """The first fault, with its updates."""
        return self._entries[0].installed.fault

    @property
    def fired(self) -> int:
        """The number of connections on which the fault has acted; of several faults, the sum."""
        return sum(map(self._faults.fired, self._entries))

    @property
    def connections(self) -> tuple[int, ...]:
        """The ids of the connections on which the faults have acted; for each fault the last 1,000."""
        return tuple(dict.fromkeys(number for it in self._entries for number in it.connections.copy()))

    def update(self, **changes: Any) -> None:
        """Changes attributes of a fault, for all connections. The change is in force when it returns.

        In a connection that the fault has taken and still takes, positions and times count as before.

        Args:
            **changes: attributes of the fault, except `name`.

        Raises:
            UsageError: a value is invalid, the fault was removed, or the handle has several faults.
        """
        if len(self._entries) != 1:
            raise UsageError(f"{len(self._entries)} faults cannot be updated at once, expected handle[0] or the like")
        self._faults.update(self._entries[0], changes)

    def remove(self) -> None:
        """Removes the faults. Bytes that they hold are delivered, in order. Repeating the call is harmless.

        Raises:
            StartError: after `refuse`, the port cannot be listened on again; nothing has changed.
        """
        self._faults.remove(self._entries)

    def wait_fired(self, n: int = 1, timeout: float | str | None = 5.0) -> None:
        """Waits until `fired` is at least `n`.

        Args:
            n: a number of connections.
            timeout: seconds, or a text like `250ms`; None: no limit.

        Raises:
            WaitTimeout: the time is over, or the faults were removed or the proxy has ended before.
            UsageError: the timeout is no duration, or `n` no number.
        """
        __tracebackhide__ = True
        awaiting.poll(self._looking(n, timeout))

    async def wait_fired_async(self, n: int = 1, timeout: float | str | None = 5.0) -> None:
        """`wait_fired` without blocking the event loop."""
        __tracebackhide__ = True
        await awaiting.poll_async(self._looking(n, timeout))

    def _looking(self, n: int, timeout: float | str | None) -> Callable[[], int | None]:
        """Returns the function that `wait_fired` polls. It returns `fired`, or None while that is below `n`."""
        n = parse_number("n", n, 0, ALL)
        limit = parse_limit("timeout", timeout)
        deadline = monotonic() + limit

        def look() -> int | None:
            __tracebackhide__ = True
            end = self._faults.end_of(self._entries)  # before reading the number, which is final after the end
            fired = self.fired
            if fired >= n:
                return fired
            if end or monotonic() >= deadline:
                names = ", ".join(it.installed.name for it in self._entries)
                raise WaitTimeout(f"not {end or f'within {limit:g} s'}: {names} fired on {fired} of {n} connections")
            return None

        return look


def window(fault: Fault, time: float) -> tuple[bool, float]:
    """Tells whether the window of a fault (start, for, repeat) is open.

    Args:
        fault: the fault.
        time: seconds since it was put in force.

    Returns:
        Whether it is open, and when that changes, in seconds since the fault was put in force; inf: never.
    """
    start, length, every = map(_seconds, (fault.start, fault.for_, fault.repeat))
    since = time - (start or 0.0)
    if since < 0:
        return False, start or 0.0
    if length is None:
        return True, math.inf
    base = time - since
    if every:
        base += since // every * every
        since = time - base
    if since < length:
        return True, base + length
    return False, base + every if every else math.inf


def _seconds(time: object) -> float | None:
    return time.total_seconds() if isinstance(time, timedelta) else None
