"""Serves /metrics for Prometheus, and /healthz and /readyz for probes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from ..config.config import Config
from ..config.endpoints import Endpoint
from ..errors import StartError, UsageError
from ..network.unix import Folders, bind_path
from ..proxy import Proxy
from .pulse import Pulse
from .webserver import MOST, Answer

PULSE_WITHIN = 1.0
"""Seconds within which all workers have to answer; a busy one answers in milliseconds."""


def open_monitor(config: Config, place: Endpoint) -> tuple[socket.socket, Callable[[Proxy], Answer]]:
    """Listens at `place`.

    Returns:
        The listening socket, and a function that returns the answers for a proxy.

    Raises:
        UsageError: prometheus-client is not installed.
        StartError: the place cannot be listened on.
    """
    try:
        from ..metrics import exposition
    except ImportError as error:
        if not (error.name or "").startswith("prometheus_client"):
            raise
        name = config.labels["metrics"]
        raise UsageError(
            f"{name} needs prometheus-client, which is not installed: pip install 'tcpproxy[metrics]'"
        ) from None
    try:
        listener = _listen_unix(place.path, config.listening.unix_mode) if place.path else _listen(place)
    except (OSError, OverflowError) as error:
        raise StartError.because(f"cannot serve metrics at {place}", error) from error
    return listener, lambda proxy: _answers(proxy, exposition(proxy))


def _listen(place: Endpoint) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    both = place.host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((place.host, place.port), family=family, backlog=MOST, dualstack_ipv6=both)


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Returns a listening UNIX socket. Replaces the file of a process that has ended."""
    with contextlib.closing(Folders()) as folders:
        folders.lock(path)
        listener = bind_path(path, mode)
        try:
            listener.listen(MOST)
        except BaseException:
            listener.close()
            raise
    return listener


def _answers(proxy: Proxy, metrics: Callable[[str], tuple[bytes, str]]) -> Answer:
    """Returns a function that answers requests, by their path."""

    def ask() -> None:
        if crew := proxy._crew:  # none before the start
            crew.sync()

    pulse = Pulse(ask)

    def answer(path: str, accept: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            body, content_type = metrics(accept)
            return 200, content_type, body
        if path == "/healthz":
            problem = "" if pulse.beats(PULSE_WITHIN) else "a worker does not answer"
        elif path == "/readyz":
            problem = _unready(proxy)
        else:
            return 404, "text/plain", b"expected /metrics, /healthz or /readyz\n"
        return 503 if problem else 200, "text/plain", f"{problem or 'ok'}\n".encode()

    return answer


def _unready(proxy: Proxy) -> str:
    """Returns why the proxy is not ready for new clients; empty if it is.

    It is ready also if upstream is down, because other instances of the service could not reach upstream either.
    """
    state, crew = proxy._state, proxy._crew
    if state != "listening" or not crew:
        return state
    active = proxy.stats().active
    return f"{active} of {crew.limit} connections" if active >= crew.limit else ""
