"""Listening sockets that others have made: the program, systemd, a predecessor of this process."""

from __future__ import annotations

import _socket
import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterable

from ..errors import StartError, UsageError
from ..text import quoted
from .listening import PLACES, Port, own_addresses, where, written

UNIX_FAMILY = getattr(socket, "AF_UNIX", None)
FAMILIES = (socket.AF_INET, socket.AF_INET6, UNIX_FAMILY)
EXPECTED = "expected a listening TCP or UNIX socket"


def check_given(sockets: object, name: Callable[[int], str] = "sockets[{}]".format) -> list[socket.socket]:
    """Checks sockets to accept clients from, and returns them as a list.

    Args:
        sockets: what was given.
        name: returns the name of the socket with this index, for errors.

    Raises:
        UsageError: there are none or too many, or one does not listen for connections by TCP or to a UNIX socket.
    """
    found = list(sockets) if isinstance(sockets, Iterable) and not isinstance(sockets, str | bytes) else None
    if not found or not all(isinstance(each, socket.socket) for each in found):
        raise UsageError(f"sockets {quoted(sockets)} are no sockets, expected a list of listening ones")
    if len(found) > PLACES:
        raise UsageError(f"{len(found)} sockets are given, expected at most {PLACES}")
    for index, each in enumerate(found):
        if problem := _problem(each):
            raise UsageError(f"{name(index)} {problem}, {EXPECTED}")
    return found


def _problem(given: socket.socket) -> str:
    """Returns what is wrong with a socket, as the end of a sentence; empty if it listens for connections."""
    if given.fileno() < 0:
        return "is closed"
    if given.family not in FAMILIES:
        return f"is a socket of family {int(given.family)}"
    if given.type != socket.SOCK_STREAM:
        is_udp = given.type == socket.SOCK_DGRAM and given.family != UNIX_FAMILY
        return "is a UDP socket" if is_udp else "is no stream socket"
    with contextlib.suppress(OSError):  # Windows knows the option only for a bound socket
        if given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return ""
    with contextlib.suppress(OSError):
        given.getpeername()
        return "is a connection (of a socket unit with Accept=yes?)"
    return "does not listen"


def _duplicate(given: socket.socket) -> socket.socket:
    """Returns a duplicate of a socket, without making the socket blocking even for a moment.

    `given.dup()` may do that, and all processes that have the socket share the flag. Then accept() in a worker of
    another proxy would block, and delay its connections.
    """
    return socket.socket(given.family, given.type, given.proto, fileno=_socket.dup(given.fileno()))


def _never_wait(listener: socket.socket) -> None:
    """Makes a socket non-blocking, for all processes that share it.

    Another process may make it blocking again, as systemd does when it starts another service with the same socket
    without `NonBlocking=yes`. So accept() also gets a time-out of 1 ms.
    """
    listener.setblocking(False)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))


class GivenPort(Port):
    """Duplicates of sockets that were given, with the methods of Port.

    Duplicates share the non-blocking flag, so the given sockets become non-blocking, too. They are never shut down,
    because other processes may use them.

    Args:
        given: what `check_given` returned.

    Raises:
        StartError: one was closed meanwhile, or there are no descriptors.
    """

    def __init__(self, given: list[socket.socket]) -> None:  # without super().__init__, which binds
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
        self.names = [written(each) for each in self.addresses]

    def listen(self) -> list[socket.socket]:
        """Returns duplicates, which listen already; the caller closes them."""
        with contextlib.ExitStack() as undo:
            sockets = [undo.enter_context(each.dup()) for each in self._keepers]
            undo.pop_all()
            return sockets
