"""Listening sockets that somebody else has made: the program, systemd, a predecessor."""

from __future__ import annotations

import _socket
import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterable

from ..config.endpoints import Endpoint
from ..errors import StartError, UsageError
from ..text import quoted
from .listening import PLACES, Port, own_addresses, where

FAMILIES = {socket.AF_INET: "TCP", socket.AF_INET6: "TCP", getattr(socket, "AF_UNIX", None): "UNIX"}


def check_given(sockets: object, name: Callable[[int], str] = "sockets[{}]".format) -> list[socket.socket]:
    """Returns them as a list.

    Args:
        sockets: what was given.
        name: what errors call the socket with this index.

    Raises:
        UsageError: they are none, too many, or one does not listen for TCP connections.
    """
    found = list(sockets) if isinstance(sockets, Iterable) and not isinstance(sockets, str | bytes) else None
    if not found or not all(isinstance(each, socket.socket) for each in found):
        raise UsageError(f"sockets {quoted(sockets)} are no sockets, expected a list of listening ones")
    if len(found) > PLACES:
        raise UsageError(f"{len(found)} sockets are given, expected at most {PLACES}")
    for index, each in enumerate(found):
        if problem := _problem(each):
            raise UsageError(f"{name(index)} {problem}, expected a listening TCP socket")
    return found


def _problem(given: socket.socket) -> str:
    """What is wrong with it, as the end of a sentence; nothing: it listens for TCP connections."""
    if given.fileno() < 0:
        return "is closed"
    if FAMILIES.get(given.family) != "TCP":
        return f"is a {FAMILIES.get(given.family, given.family)} socket"
    if given.type != socket.SOCK_STREAM:
        return "is a UDP socket" if given.type == socket.SOCK_DGRAM else "is no stream socket"
    with contextlib.suppress(OSError):  # Windows: only where it is asked of a socket that is bound
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return ""
    with contextlib.suppress(OSError):
        given.getpeername()
        return "is a connection (of a socket unit with Accept=yes?)"
    return "does not listen"


def _duplicate(given: socket.socket) -> socket.socket:
    """A duplicate, which has not made the socket a blocking one, not even for a moment.

    `given.dup()` may do so, and the change is seen by all who have the socket: accept() of a worker of another process,
    or of a predecessor in this one, would then wait for a client, and its connections with it.
    """
    return socket.socket(given.family, given.type, given.proto, fileno=_socket.dup(given.fileno()))


def _never_wait(listener: socket.socket) -> None:
    """Makes it non-blocking, for all who have it; and if one of them takes that back, accept() waits for 1 ms only.

    systemd does so when it starts a service with a socket that another one has, too (without `NonBlocking=yes`).
    """
    listener.setblocking(False)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))


class GivenPort(Port):
    """Sockets that were given. The proxy has duplicates, which do not block; nor do the given ones from now on.

    Others may have the sockets: they are never shut down, and listen for ever.

    Args:
        given: what `check_given` returned.

    Raises:
        StartError: one was closed meanwhile, or there are no descriptors.
    """

    def __init__(self, given: list[socket.socket]) -> None:  # not the parent's: nothing is bound
        self._keepers = []
        with contextlib.ExitStack() as undo:
            for each in given:
                try:
                    self._keepers.append(undo.enter_context(_duplicate(each)))
                except OSError as error:
                    raise StartError.because("cannot listen on a socket that was given", error) from error
                _never_wait(self._keepers[-1])
            undo.pop_all()
        self.is_own = own_addresses(self._keepers)
        self.addresses = [where(each) for each in self._keepers]
        self.names = [str(Endpoint(*each)) for each in self.addresses]

    def listen(self) -> list[socket.socket]:
        """Returns duplicates. They listen already."""
        with contextlib.ExitStack() as undo:
            sockets = [undo.enter_context(each.dup()) for each in self._keepers]
            undo.pop_all()
            return sockets
