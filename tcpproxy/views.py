"""What a proxy shows of itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers since the start, over all workers."""

    accepted: int
    active: int
    """Connections alive now."""
    ended: int
    failed: int
    """Connections among `ended` whose upstream was not reached."""
    refused: int
    """Clients turned away at once, not among `accepted`: too many of their source, or no memory for another one."""
    bytes_to_upstream: int
    bytes_to_client: int
    bytes_spliced: int
    """Those that never left the kernel."""
    accept_errors: int
    events_lost: int
    """Event records that nobody took in time."""
    wakeups: int
    """How often a worker was woken; stands still while nothing happens."""
    polls_hit: int
    """Busy polls that brought an event, and those that did not."""
    polls_missed: int
    accepted_by_worker: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """A live connection, at the moment of asking."""

    client: str
    upstream: str
    """Empty until it is connected."""
    state: str
    """`resolving`, `connecting`, `relaying` or `closing`."""
    to_upstream: int
    to_client: int
    age: float
    """Seconds since the client was accepted."""
