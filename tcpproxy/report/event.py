"""Event: a fact about a proxy or one of its connections, made from the core's event records."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import describe

REASONS = (
    "",
    "client-eof",
    "upstream-eof",
    "client-reset",
    "upstream-reset",
    "idle",
    "half-close-timeout",
    "connect-refused",
    "connect-timeout",
    "unreachable",
    "dns",
    "limit",
    "shutdown",
)
KINDS = ("", "new", "end", "failed", "accept-error", "limit")
NEW = KINDS.index("new")


class Event(NamedTuple):
    """A fact about the proxy or one of its connections. Addresses are `host:port`, empty where there is none."""

    kind: str
    """`new`, `end`, `failed` (upstream not reached, or the client turned away: its reason is `limit`), `accept-error`,
    `limit`; from the proxy itself `listening`, `warning`, `lost` (lines or records that were left out)."""
    reason: str = ""
    """Why it ended or failed: one of REASONS."""
    error: int = 0
    """errno behind it, 0: none."""
    client: str = ""
    upstream: str = ""
    to_upstream: int = 0
    """Bytes delivered from client to upstream."""
    to_client: int = 0
    duration: float = 0.0
    """Seconds since the client was accepted."""
    connect_time: float = 0.0
    """Seconds from there until upstream was connected, 0: it was not."""
    text: str = ""
    """`listening`: the address; `warning`: the sentence; `failed`: what the system said; `lost`: how many of what."""


def wanted(kinds: tuple[str, ...]) -> int:
    """The mask that makes a worker report these kinds."""
    return sum(1 << KINDS.index(kind) for kind in kinds)


Record = tuple[int, int, int, str, str, int, int, float, float]
"""What Worker.take_events returns."""


def is_new(record: Record) -> bool:
    """Is it a new connection?"""
    return record[0] == NEW


def decode(record: Record, problem: str) -> Event:
    """A record of the core as an Event; `problem`: why the last look-up of upstream's name failed."""
    kind, reason, error, client, upstream, to_upstream, to_client, duration, connect_time = record
    text = ""
    if REASONS[reason] == "dns":
        text = f"failed to lookup address information: {problem or 'no answer in time'}"
    elif error:
        text = f"{describe(error)} (os error {error})"
    return Event(
        KINDS[kind], REASONS[reason], error, client, upstream, to_upstream, to_client, duration, connect_time, text
    )
