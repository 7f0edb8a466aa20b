"""Everything a proxy is told, checked and converted. Nothing here touches a socket or a thread."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..values import parse_busy_poll, parse_duration, parse_number, parse_size, parse_word
from .endpoints import Endpoint, parse_bind, parse_endpoint

WORKERS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a proxy needs to know. Times in seconds, sizes in bytes; `make` builds one from what people write."""

    remote: Endpoint
    bind: str
    port: int
    workers: int
    connect_timeout: float
    half_close_timeout: float
    idle_timeout: float
    keepalive: int
    grace: float
    max_connections: int | None
    max_connections_per_source: int
    """0: any number."""
    buffer_size: int
    socket_buffer: int
    """0: the system's own choice."""
    zero_copy: str
    busy_poll: int

    @classmethod
    def make(
        cls,
        remote: str,
        *,
        bind: str = "127.0.0.1",
        port: int | str = 0,
        workers: int | str = 1,
        connect_timeout: float | str = 10,
        half_close_timeout: float | str = 60,
        idle_timeout: float | str | None = None,
        keepalive: float | str | None = 60,
        grace: float | str = 0,
        max_connections: int | str | None = None,
        max_connections_per_source: int | str | None = None,
        buffer_size: int | str = 65536,
        socket_buffer: int | str | None = None,
        zero_copy: str = "auto",
        busy_poll: int | str = "auto",
    ) -> Config:
        """Checks and converts; the arguments are described in `tcpproxy.Proxy`.

        Raises:
            UsageError: the first argument that cannot be meant.
        """
        return cls(
            remote=parse_endpoint(remote),
            bind=parse_bind(bind),
            port=parse_number("local-port", port, 0, 65535),
            workers=parse_number("workers", workers, 1, WORKERS_LIMIT),
            connect_timeout=parse_duration("connect-timeout", connect_timeout, least=0.001),
            half_close_timeout=parse_duration("half-close-timeout", half_close_timeout),
            idle_timeout=parse_duration("idle-timeout", idle_timeout, least=0.001, off=True),
            keepalive=math.ceil(parse_duration("keepalive", keepalive, least=1, most=32767, off=True)),
            grace=parse_duration("grace", grace),
            max_connections=None
            if max_connections is None
            else parse_number("max-connections", max_connections, 1, 10**6),
            max_connections_per_source=0
            if max_connections_per_source is None
            else parse_number("max-connections-per-source", max_connections_per_source, 1, 10**6),
            buffer_size=parse_size("buffer-size", buffer_size, 1024, 16 * 1024**2),
            socket_buffer=parse_size("socket-buffer", socket_buffer, 4096, 1024**3, off=True),
            # "always", from the first byte on, is for tests
            zero_copy=parse_word("zero-copy", zero_copy, ("auto", "off"), ("always",)),
            busy_poll=parse_busy_poll(busy_poll),
        )
