"""Listening sockets: made, described, checked."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable

from .._core.worker import LIMITS
from ..config.config import Config
from ..errors import StartError, UsageError
from .resolver import Address, numeric

BACKLOG = 4096
"""Connections that the kernel queues for a listener; the system may have a lower limit (Linux: net.core.somaxconn)."""

_V4_MAPPED = bytes(10) + b"\xff\xff"


def known_places(bind: str) -> list[Address]:
    """Returns what `bind` means without a look-up, with port 0; nothing if it is a name that has to be looked up."""
    if bind != "localhost":
        return numeric(bind, 0) or []
    both = [(b"\x7f\0\0\1", 0, 0)]
    return [*both, (bytes(15) + b"\1", 0, 0)] if _is_local(socket.AF_INET6, "::1") else both


def no_place(bind: str, why: str) -> StartError:
    """Returns what to raise if the look-up of `bind` has failed, because of `why`."""
    if _is_interface(bind):
        why = "that is a network interface, expected one of its addresses"
    return StartError.because(f"cannot listen on {bind}", OSError(why))


def listen(config: Config, found: list[Address], target: list[Address]) -> list[socket.socket]:
    """Listens on every address of `bind`, all on one port.

    Args:
        config: the port, and what error texts need.
        found: the addresses that `bind` means; their ports are not used.
        target: upstream's addresses, not all of which may lead back here.

    Raises:
        StartError: an address cannot be listened on.
        UsageError: upstream is these listeners, and nothing else.
    """
    if len(found) > LIMITS["listeners"]:
        why = OSError(f"it has {len(found)} addresses, expected at most {LIMITS['listeners']}")
        raise StartError.because(f"cannot listen on {config.listening.bind}", why)
    places = [_place(each) for each in found]
    for attempt in range(8):
        sockets: list[socket.socket] = []
        port = config.listening.port
        try:
            for family, host in places:
                sockets.append(_bind(family, host, port))
                port = sockets[0].getsockname()[1]
            is_own = own_addresses(sockets)
            if target and all(map(is_own, target)):
                raise UsageError(f"remote {str(config.remote)!r} is this proxy's own address, expected another one")
            for listener in sockets:
                listener.listen(BACKLOG)
        except OSError as error:
            for listener in sockets:
                listener.close()
            if config.listening.port == 0 and len(places) > 1 and sockets and attempt < 7:
                continue  # a port that is free in one family may be taken in the other
            if isinstance(error, StartError):
                raise
            raise StartError.because(f"cannot listen on {config.listening.bind} port {port}", error) from error
        except UsageError:
            for listener in sockets:
                listener.close()
            raise
        return sockets
    raise AssertionError("unreachable")


def _place(address: Address) -> tuple[int, str]:
    """Returns its family, and the host as `getaddrinfo` reads it."""
    raw, _, scope = address
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, raw)
    return int(family), f"{host}%{scope}" if scope else host


def _bind(family: int, host: str, port: int) -> socket.socket:
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
    except OSError as error:
        listener.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartError.because(f"cannot listen on {where}", error) from error
    return listener


def own_addresses(listeners: list[socket.socket]) -> Callable[[Address], bool]:
    """Returns a function that tells whether a connection to an address reaches one of these listeners.

    It needs the listeners no more.
    """
    places = []
    for listener in listeners:
        host, port = listener.getsockname()[:2]
        places.append((listener.family, socket.inet_pton(listener.family, host.partition("%")[0]), port))

    def is_own(target: Address) -> bool:
        return any(target[1] == port and _reaches(family, own, target[0]) for family, own, port in places)

    return is_own


def _reaches(listening: int, own: bytes, target: bytes) -> bool:
    """Returns whether a connection to `target` reaches a listener of this family at `own`, on the same port."""
    target = target.removeprefix(_V4_MAPPED)
    family = socket.AF_INET if len(target) == 4 else socket.AF_INET6
    if target == own:
        return True
    if not any(own) and (family == listening or len(own) == 16):
        return not any(target) or _is_local(family, socket.inet_ntop(family, target))
    return not any(target) and family == listening


def _is_interface(name: str) -> bool:
    """Returns whether it is the name of a network interface."""
    with contextlib.suppress(OSError, ValueError):
        return socket.if_nametoindex(name) > 0
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
        host = f"{host}%{more[1]}"
        with contextlib.suppress(OSError):  # the interface is gone
            host = f"{host.partition('%')[0]}%{socket.if_indextoname(more[1])}"
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
            label = config.labels["socket_buffer"]
            return f"{label} {asked} is more than the system allows for {what}: {got} bytes{hint}"
    return ""
