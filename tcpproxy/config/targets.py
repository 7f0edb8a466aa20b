"""What a test has in its hands as a target: URLs, sockets and servers."""

from __future__ import annotations

import os
from typing import Any

from ..errors import UsageError
from ..text import quoted
from .endpoints import Remote
from .habits import is_url, url_target, without_password
from .urls import reachable


def target_of(target: Any) -> Remote:
    """Returns where `target` listens, in a form that Proxy takes.

    Raises:
        UsageError: it has no TCP address to connect to.
    """
    if isinstance(target, str):
        if target.isascii() and target.isdecimal():  # a port, as variables of the environment have it
            return int(target)
        return _of_url(target) if is_url(target) else target
    if isinstance(target, int | tuple | os.PathLike):
        return target
    place = _place(target)
    if isinstance(place, tuple) and len(place) in (2, 4) and isinstance(place[0], str):
        return (reachable(place[0]), *place[1:])
    expected = "expected HOST:PORT, a URL, (host, port), a port, a listening socket, or a server"
    raise UsageError(f"target {quoted(target)} cannot be connected to, {expected}")


def _of_url(url: str) -> str:
    place = url_target(url)
    if not place or place.endswith(":PORT"):
        missing = "port" if place else "host"
        raise UsageError(f"target {quoted(without_password(url))} has no {missing}, expected SCHEME://HOST:PORT")
    return place


def _place(target: Any) -> object:
    """Returns the address of a socket or server; None, or something that is no address, if it has none."""
    if hasattr(target, "getsockname"):
        return target.getsockname()
    if hasattr(target, "extra_attributes"):  # a listener of anyio
        from anyio.abc import SocketAttribute

        return target.extra(SocketAttribute.local_address, None)
    for name in ("sockets", "listeners", "server_address", "socket"):  # of asyncio, trio, socketserver, trio
        if (found := getattr(target, name, None)) is None:
            continue
        if isinstance(found, tuple) and found and isinstance(found[0], str):
            return found
        return _place(next(iter(found), None)) if isinstance(found, list | tuple) else _place(found)
    port = getattr(target, "port", None)
    return (getattr(target, "host", None) or "localhost", port) if isinstance(port, int | str) and port else None
