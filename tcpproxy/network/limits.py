"""How many connections the descriptors of this process allow."""

from __future__ import annotations

import contextlib

from ..config.config import Config

MOST = 1_000_000
"""Connections at a time, however many descriptors there are: some systems allow a thousand times as many."""


def raise_descriptor_limit() -> None:
    """Lifts the soft limit of open files towards the hard one, for the process, where the platform has such limits."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    # macOS calls the hard limit infinite and refuses what is above a number of its own, nowhere below OPEN_MAX (10240).
    for limit in (hard, *(1 << bits for bits in range(20, 13, -1)), 10240):
        if limit != hard and limit <= soft:
            return
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


def connection_limit(config: Config) -> tuple[int, str]:
    """How many connections at a time, and a warning if descriptors will not reach for as many as were asked for."""
    asked = config.clients.max_connections
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:
        return asked or MOST, ""
    if soft == resource.RLIM_INFINITY:
        return asked or MOST, ""
    # Two a connection; the rest for listeners, pollers and pipes (32 a worker, two descriptors each), for logs,
    # look-ups and what the program has open besides.
    # Few descriptors: fewer pipes, and who gets none is copied.
    pipes = 0 if config.speed.zero_copy == "off" else min(64 * config.operating.workers, soft // 8)
    fits = min(MOST, max(1, (soft - 40 - 8 * config.operating.workers - pipes) // 2))
    if asked is None:
        return fits, ""
    if asked > fits:
        return asked, (f"max-connections {asked} is more than the limit of {soft} open files allows ({fits})")
    return asked, ""
