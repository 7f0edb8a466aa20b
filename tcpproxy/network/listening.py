"""Makes, describes and checks listening sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable

from .._core.worker import LIMITS, hang
from ..config.config import Config
from ..config.endpoints import Endpoint
from ..config.forwards import ForwardSpec
from ..errors import StartError
from ..text import quoted
from .resolver import Address, numeric
from .unix import bound_path, comes_to

BACKLOG = 4096
"""How many connections the kernel queues for a listener; the system may have a lower limit (net.core.somaxconn)."""

PLACES = LIMITS["listeners"] // LIMITS["forwards"]
"""The most addresses that one forward may listen on."""

_V4_MAPPED = bytes(10) + b"\xff\xff"

KEEPS_BESIDE = sys.platform == "linux"
"""Can another socket be bound to the port of a listener? On Linux: if both have SO_REUSEADDR and it does not listen."""


def known_places(bind: str) -> list[Address]:
    """Returns the addresses of `bind`, with port 0; empty if it is a name that has to be looked up."""
    if bind != "localhost":
        return numeric(bind, 0) or []
    both = [(b"\x7f\0\0\1", 0, 0)]
    return [*both, (bytes(15) + b"\1", 0, 0)] if _is_local(socket.AF_INET6, "::1") else both


def no_place(bind: str, why: str) -> StartError:
    """Returns the error for a `bind` whose look-up has failed, because of `why`."""
    if _is_interface(bind):
        why = "that is a network interface, expected one of its addresses"
    return StartError.because(f"cannot listen on {bind}", OSError(why))


class Port:
    """The port of a forward, on every address of its host. The proxy keeps the port also while it does not listen.

    The *keepers*, sockets that are bound and do not listen, reserve the port: the kernel refuses clients, and other
    programs cannot bind it. On Linux the keepers exist all the time. On other systems they become the next listeners,
    and new ones are bound after the listeners have been closed.

    Args:
        spec: the forward, whose listener is a host and a port.
        found: the addresses of the host; their ports are not used.
        several: the proxy has other forwards, so that errors name this one.

    Raises:
        StartError: an address cannot be bound.
    """

    def __init__(self, spec: ForwardSpec, found: list[Address], several: bool = False) -> None:
        self._host, self._port = spec.listener.host, spec.listener.port
        self._which = f" for {quoted(spec.text)}" if several else ""
        if len(found) > PLACES:
            why = OSError(f"it has {len(found)} addresses, expected at most {PLACES}")
            raise StartError.because(f"cannot listen on {self._host}{self._which}", why)
        self._places = [_place(each) for each in found]
        self._closed = False
        self.hangs = False
        """Does connect() to the next listeners hang?"""
        self._keepers: list[socket.socket] = []
        for attempt in range(8):
            try:
                self._keepers = self._bind_all()
                break
            except StartError:
                # A port that is free in one family may be taken in the other.
                if spec.listener.port or len(self._places) == 1 or attempt == 7 or not self._port:
                    raise
                self._port = 0
        self.is_own = own_addresses(self._keepers)
        """Tells whether a connection to an address reaches this port."""
        self.addresses = [where(keeper) for keeper in self._keepers]
        self.names = [written(each) for each in self.addresses]

    def _bind_all(self) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for family, host in self._places:
                sockets.append(_bind(family, host, self._port, self._which))
                self._port = sockets[0].getsockname()[1]
        except OSError as error:
            _close_all(sockets)
            if isinstance(error, StartError):
                raise
            raise self._refused(error) from error
        return sockets

    def _refused(self, error: OSError) -> StartError:
        return StartError.because(f"cannot listen on {self._host} port {self._port}{self._which}", error)

    def listen(self) -> list[socket.socket]:
        """Returns listening sockets, which the caller closes.

        Raises:
            StartError: an address cannot be listened on; the port stays reserved.
        """
        try:
            return self._listen()
        except StartError:
            if KEEPS_BESIDE:
                _share(self._keepers, False)
            raise

    def _listen(self) -> list[socket.socket]:
        if KEEPS_BESIDE:
            _share(self._keepers, True)
            sockets = self._bind_all()
        else:
            sockets, self._keepers = self._keepers or self._bind_all(), []
        try:
            for listener in sockets:
                if self.hangs:
                    hang(listener.fileno(), True)
                listener.listen(BACKLOG)
        except OSError as error:
            _close_all(sockets)
            raise self._refused(error) from error
        return sockets

    def keep(self) -> None:
        """Reserves the port again. To be called when all its listeners have been closed.

        Raises:
            StartError: another process has taken the port meanwhile; never on Linux.
        """
        if KEEPS_BESIDE:
            _share(self._keepers, False)
        elif not self._keepers:
            self._keepers = self._bind_all()
        if self._closed:
            self.close()

    def forget(self) -> None:
        """To be called in a forked child: closes its copies of the sockets."""
        self.close()

    def close(self) -> None:
        """Releases the port."""
        self._closed = True
        keepers, self._keepers = self._keepers, []
        _close_all(keepers)


def _close_all(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _share(keepers: list[socket.socket], on: bool) -> None:
    """Allows or forbids other sockets to bind the same addresses.

    It is allowed only while the proxy listens, because otherwise another program could take the port.
    """
    for keeper in keepers:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, on)


def _place(address: Address) -> tuple[int, str]:
    """Returns the family of an address, and its host in the form that `getaddrinfo` reads."""
    raw, _, scope = address
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    host = socket.inet_ntop(family, raw)
    return int(family), f"{host}%{scope}" if scope else host


def _bind(family: int, host: str, port: int, which: str) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # On Windows SO_REUSEADDR lets two sockets listen on one port, and is not needed for a port in TIME_WAIT.
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] alone accepts both families; localhost and a name with several addresses have a socket for each.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        # Only a scope needs getaddrinfo, which imports the codec for IDNA: a millisecond.
        scoped = "%" in host
        listener.bind(
            socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)[0][4] if scoped else (host, port)
        )
    except OSError as error:
        listener.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise StartError.because(f"cannot listen on {where}{which}", error) from error
    return listener


def own_addresses(listeners: list[socket.socket]) -> Callable[[Address], bool]:
    """Returns a function that tells whether a connection to an address reaches one of these listeners.

    The listeners may be closed before it is called.
    """
    places, paths = [], []
    for listener in listeners:
        place = where(listener)
        if isinstance(place, str):
            paths.append(place)
            continue
        host, port = place
        v6 = listener.family == socket.AF_INET6 and listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        places.append((listener.family, socket.inet_pton(listener.family, host.partition("%")[0]), port, bool(v6)))

    def is_own(target: Address) -> bool:
        is_v4 = len(target[0].removeprefix(_V4_MAPPED)) == 4
        return any(comes_to(target, path) for path in paths) or any(
            target[1] == port and not (is_v4 and v6_only) and _reaches(family, own, target[0])
            for family, own, port, v6_only in places
        )

    return is_own


def _reaches(listening: int, own: bytes, target: bytes) -> bool:
    """Does a connection to `target` reach a listener at `own`, of the family `listening`, if the ports are equal?"""
    target = target.removeprefix(_V4_MAPPED)
    family = socket.AF_INET if len(target) == 4 else socket.AF_INET6
    if target == own:
        return True
    if not any(own) and (family == listening or len(own) == 16):
        return not any(target) or _is_local(family, socket.inet_ntop(family, target))
    return not any(target) and family == listening


def _is_interface(name: str) -> bool:
    """Is it the name of a network interface?"""
    with contextlib.suppress(OSError, ValueError):
        return socket.if_nametoindex(name) > 0
    return False


def _is_local(family: int, host: str) -> bool:
    """Is it an address of this machine? Only those can be bound."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return True
    return False


def where(listener: socket.socket) -> tuple[str, int] | str:
    """Returns (host, port) of a listener, with the scope of a link-local IPv6 host; of a UNIX socket, its path."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return bound_path(listener)
    host, port, *more = listener.getsockname()
    if more and more[1] and "%" not in host:
        host = f"{host}%{more[1]}"
        with contextlib.suppress(OSError):  # the interface is gone
            host = f"{host.partition('%')[0]}%{socket.if_indextoname(more[1])}"
    return host, port


def written(place: tuple[str, int] | str) -> str:
    """Returns a result of `where` as text."""
    return place if isinstance(place, str) else str(Endpoint(*place))


def strangers(listener: socket.socket) -> str:
    """Describes who else can connect to a listener, for a warning.

    Empty if only this machine can, or for a UNIX socket only this user and group.

    Args:
        listener: a socket that is bound.
    """
    name = listener.getsockname()
    if isinstance(name, str):  # the file of a UNIX socket
        mode = 0
        with contextlib.suppress(OSError):  # it is gone, or in a folder that this user cannot search
            mode = os.stat(name).st_mode
        return "every user of this machine" if mode & 0o002 else ""
    if isinstance(name, bytes):  # an abstract name, which has no permissions
        return "every user of this machine"
    return "" if name[0].startswith("127.") or name[0] == "::1" else "other machines"


def small_buffers(listener: socket.socket, config: Config) -> str:
    """Returns a warning if the system gave a listener smaller buffers than `socket_buffer`; else an empty text."""
    asked = config.memory.socket_buffer
    if not isinstance(listener.getsockname(), tuple):  # a UNIX socket: accepted sockets do not inherit its buffers
        return ""
    scale = 2 if sys.platform == "linux" else 1  # Linux doubles the value, and returns the doubled one
    names = (("sending", socket.SO_SNDBUF, "wmem_max"), ("receiving", socket.SO_RCVBUF, "rmem_max"))
    for what, option, limit in names:
        got = listener.getsockopt(socket.SOL_SOCKET, option) // scale
        if got < asked:
            hint = f" (net.core.{limit})" if scale == 2 else ""
            label = config.labels["socket_buffer"]
            return f"{label} {asked} is more than the system allows for {what}: {got} bytes{hint}"
    return ""
