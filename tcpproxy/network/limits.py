"""Limits of the system: descriptors of this process, and ports of outgoing connections."""

from __future__ import annotations

import contextlib
import socket

from .._core.worker import LIMITS
from ..config.config import Config


def raise_descriptor_limit() -> None:
    """Raises the soft limit of open files of this process to the hard limit. Does nothing where there are no limits."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    # macOS: the hard limit is infinite, but setrlimit refuses values above a limit that getrlimit does not return. That
    # limit is never below OPEN_MAX (10240).
    for limit in (hard, *(1 << bits for bits in range(20, 13, -1)), 10240):
        if limit != hard and limit <= soft:
            return
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return


def connection_limit(config: Config) -> tuple[int, str]:
    """Returns the limit on connections at a time, and a warning if there are too few descriptors for it."""
    asked = config.clients.max_connections
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except ImportError:
        return asked or LIMITS["connections"], ""
    if soft == resource.RLIM_INFINITY:
        return asked or LIMITS["connections"], ""
    # A connection needs two descriptors. Others are for listeners, pollers, pipes (32 a worker, two descriptors each),
    # logs, lookups, and the program. With few descriptors there are fewer pipes; a connection without one copies.
    pipes = 0 if config.speed.zero_copy == "off" else min(64 * config.operating.workers, soft // 8)
    fits = min(LIMITS["connections"], max(1, (soft - 40 - 8 * config.operating.workers - pipes) // 2))
    if asked is None:
        return fits, ""
    if asked > fits:
        label = config.labels["max_connections"]
        return asked, f"{label} {asked} is more than the limit of {soft} open files allows ({fits})"
    return asked, ""


def check_room(listeners: list[socket.socket]) -> None:
    """Raises OSError if there are no descriptors for a single connection, which needs two."""
    with contextlib.ExitStack() as probes:
        for listener in listeners[:1] * 2:
            probes.enter_context(listener.dup())


def ephemeral_ports() -> tuple[int, int]:
    """The first and the last port that the kernel gives to outgoing connections; all ports if it does not tell them."""
    with contextlib.suppress(OSError, ValueError), open("/proc/sys/net/ipv4/ip_local_port_range", "rb") as file:
        first, last = map(int, file.read().split())
        return first, last
    return 1, 65535
