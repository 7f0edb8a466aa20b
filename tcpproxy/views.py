"""What a proxy shows of itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["resolving", "connecting", "relaying", "closing"]
"""What a live connection is doing.

resolving: it waits for the addresses of upstream's name.
connecting: it connects to upstream.
relaying: bytes pass.
closing: it passes on a reset, or discards what a peer sends after both ends.
"""


@dataclass(frozen=True, slots=True)
class Stats:
    """Numbers since the start, over all workers."""

    accepted: int
    """Connections accepted."""
    active: int
    """Connections alive now."""
    ended: int
    """Connections that are over, for whatever reason."""
    failed: int
    """Connections among `ended` whose upstream was not reached."""
    refused: int
    """Clients that were reset at once, not among `accepted`: too many of their source, or no memory for another one."""
    bytes_to_upstream: int
    """Bytes delivered to upstream."""
    bytes_to_client: int
    """Bytes delivered to clients."""
    bytes_spliced: int
    """Bytes among these that never left the kernel."""
    accept_errors: int
    """Calls of accept that failed."""
    events_lost: int
    """Event records that were dropped because nobody took them in time."""
    wakeups: int
    """Returns of workers from waiting for events. The number stands still while nothing happens."""
    polls_hit: int
    """Busy polls that brought an event."""
    polls_missed: int
    """Busy polls that brought none."""
    accepted_by_worker: tuple[int, ...]
    """Connections that each worker has served."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A live connection, at the moment of asking."""

    id: int
    """Its number, from 1, in the order of accept."""
    client: str
    """The client's address, `host:port`."""
    upstream: str
    """Upstream's address, `host:port`; empty until it is connected."""
    state: State
    """What it is doing."""
    to_upstream: int
    """Bytes delivered to upstream."""
    to_client: int
    """Bytes delivered to the client."""
    age: float
    """Seconds since the client was accepted."""
