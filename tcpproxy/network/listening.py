"""Listening sockets: made, described, checked."""

from __future__ import annotations

import contextlib
import socket
import sys

from .._core.worker import LIMITS
from ..config.config import Config
from ..errors import StartError, UsageError
from .resolver import Address

BACKLOG = 4096
"""Connections that the kernel queues for a listener; the system may have a lower limit (Linux: net.core.somaxconn)."""

_V4_MAPPED = bytes(10) + b"\xff\xff"


def listen(config: Config, target: list[Address]) -> list[socket.socket]:
    """Listens on every address of `bind`, all on one port.

    Args:
        config: the address, the port, and the remote for error texts.
        target: upstream's addresses, none of which may lead back here.

    Raises:
        StartError: an address cannot be listened on.
        UsageError: upstream is one of these listeners.
    """
    places = _bind_places(config)
    for attempt in range(8):
        sockets: list[socket.socket] = []
        port = config.listening.port
        try:
            for family, host in places:
                sockets.append(_bind(family, host, port, config, target))
                port = sockets[0].getsockname()[1]
            for listener in sockets:
                listener.listen(BACKLOG)
        except OSError as error:
            for listener in sockets:
                listener.close()
            if config.listening.port == 0 and len(places) > 1 and sockets and attempt < 7:
                continue  # a port that is free in one family may be taken in the other
            if isinstance(error, StartError):
                raise
            raise StartError(f"cannot listen on {config.listening.bind} port {port}", error) from error
        except UsageError:
            for listener in sockets:
                listener.close()
            raise
        return sockets
    raise AssertionError("unreachable")


def _bind_places(config: Config) -> list[tuple[int, str]]:
    """Returns (family, address) of every address to listen on."""
    if config.listening.bind == "localhost":
        both = [(int(socket.AF_INET), "127.0.0.1")]
        return [*both, (int(socket.AF_INET6), "::1")] if _is_local(socket.AF_INET6, "::1") else both
    try:
        found = socket.getaddrinfo(config.listening.bind, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error if isinstance(error, OSError) else OSError(str(error))
        raise StartError(f"cannot listen on {config.listening.bind}", OSError(why.strerror or str(why))) from error
    places: list[tuple[int, str]] = []
    for family, _, _, _, where in found:
        host = str(where[0])
        if len(where) == 4 and where[3] and "%" not in host:
            host = f"{host}%{where[3]}"
        if (int(family), host) not in places:
            places.append((int(family), host))
    if len(places) > LIMITS["listeners"]:
        why = OSError(f"it has {len(places)} addresses, expected at most {LIMITS['listeners']}")
        raise StartError(f"cannot listen on {config.listening.bind}", why)
    return places


def _bind(family: int, host: str, port: int, config: Config, target: list[Address]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # On Windows SO_REUSEADDR lets two sockets listen on one port, and a port in TIME_WAIT is free without it.
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] alone accepts both families; localhost and a name with several addresses have a socket for each.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind(socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)[0][4])
        if _reaches(listener, target):
            raise UsageError(f"remote {str(config.remote)!r} is this proxy's own address, expected another one")
    except OSError as error:
        listener.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartError(f"cannot listen on {where}", error) from error
    except UsageError:
        listener.close()
        raise
    return listener


def _reaches(listener: socket.socket, target: list[Address]) -> bool:
    """Returns whether a connection to one of these addresses reaches this listener."""
    host, port = listener.getsockname()[:2]
    own = socket.inet_pton(listener.family, host.partition("%")[0])
    for raw, target_port, _ in target:
        raw = raw.removeprefix(_V4_MAPPED)
        family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
        if target_port != port:
            continue
        if raw == own or (not any(own) and (family == listener.family or len(own) == 16)):
            if raw == own or not any(raw) or _is_local(family, socket.inet_ntop(family, raw)):
                return True
        elif not any(raw) and family == listener.family:
            return True
    return False


def _is_local(family: int, host: str) -> bool:
    """Returns whether it is an address of this machine: only such a one can be bound."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return True
    return False


def where(listener: socket.socket) -> tuple[str, int]:
    """Returns (host, port); a link-local IPv6 host has its scope."""
    host, port, *more = listener.getsockname()
    if more and more[1] and "%" not in host:
        host = f"{host}%{socket.if_indextoname(more[1])}"
    return host, port


def address(listener: socket.socket) -> str:
    """Returns its address as `HOST:PORT` or `[IPv6]:PORT`."""
    host, port = where(listener)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_public(listener: socket.socket) -> bool:
    """Returns whether other machines may reach it."""
    host = listener.getsockname()[0]
    return not (host.startswith("127.") or host == "::1")


def small_buffers(listener: socket.socket, config: Config) -> str:
    """Returns a warning if the system gave this socket smaller buffers than `socket_buffer`, or an empty text."""
    asked = config.memory.socket_buffer
    scale = 2 if sys.platform == "linux" else 1  # Linux doubles the value, and returns the doubled one
    names = (("sending", socket.SO_SNDBUF, "wmem_max"), ("receiving", socket.SO_RCVBUF, "rmem_max"))
    for what, option, limit in names:
        got = listener.getsockopt(socket.SOL_SOCKET, option) // scale
        if got < asked:
            hint = f" (net.core.{limit})" if scale == 2 else ""
            return f"socket-buffer {asked} is more than the system allows for {what}: {got} bytes{hint}"
    return ""
