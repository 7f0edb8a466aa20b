"""The forwards of a proxy that starts or runs: their ports, their targets, and the detection of loops."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence

from ..config.endpoints import Endpoint
from ..config.forwards import ForwardSpec
from ..errors import UsageError
from .listening import Port
from .resolver import Address, Resolver
from .unix import UnixPort


class Target:
    """A target of a forward. A connection goes to the first target of the forward that can be reached.

    Args:
        place: the target, as it was given.

    Attributes:
        name: `place` as text.
        resolver: looks up the host name of `place`; None: its address is numeric.
        addresses: the known addresses of `place`.
    """

    def __init__(self, place: Endpoint) -> None:
        self.place = place
        self.name = str(place)
        self.resolver: Resolver | None = None
        self.addresses: list[Address] = []

    @property
    def lookup_error(self) -> str:
        """Why the last look-up failed; empty: it succeeded, or there was none."""
        return self.resolver.lookup_error if self.resolver else ""


class Forwarding:
    """One forward of a proxy that starts or runs.

    Args:
        spec: the forward, as it was given.

    Attributes:
        targets: where it connects to, in the order of attempts.
        port: where it listens; None: not yet.
    """

    def __init__(self, spec: ForwardSpec) -> None:
        self.spec = spec
        self.targets = [Target(each) for each in spec.targets]
        self.port: Port | UnixPort | None = None

    @property
    def target(self) -> str:
        """All targets, as one text."""
        return ",".join(each.name for each in self.targets)

    @property
    def addresses(self) -> list[Address]:
        """The known addresses of all targets."""
        return [address for each in self.targets for address in each.addresses]

    def is_own(self, address: Address) -> bool:
        """Does a connection to this address reach this forward's own port?"""
        return self.port is not None and self.port.is_own(address)

    def hang(self, on: bool) -> None:
        """Sets whether connect() to the next listeners hangs. Has no effect on UNIX sockets, which cannot do that."""
        if isinstance(self.port, Port):
            self.port.hangs = on

    def keep(self) -> None:
        """Keeps the port after its listeners have been closed: see `Port.keep`."""
        if self.port:
            self.port.keep()


def listen(forward: Forwarding, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Returns listening sockets of a forward. `stack` closes them: each worker has duplicates.

    Raises:
        StartError: an address cannot be listened on.
    """
    listeners = forward.port.listen() if forward.port else []
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def places_of(forwards: Sequence[Forwarding]) -> str:
    """Returns where the forwards listen, as one text; empty if nowhere."""
    return ", ".join(name for each in forwards if each.port for name in each.port.names)


def leave_out_circles(forwards: Sequence[Forwarding], label: str, note: Callable[[str], None]) -> None:
    """Removes the addresses of targets that lead back to their own forward.

    One forward may lead to another: 8080 to 9090, and 9090 to a server. Other addresses of a target stay: for example,
    `-l 5173 localhost:5173` reaches a server that listens only on ::1.

    Args:
        forwards: all forwards of a proxy; their ports are bound.
        label: the name of the argument of a forward, for errors.
        note: called with a sentence for each target that loses addresses.

    Raises:
        UsageError: all addresses of a target lead back.
    """
    # First treat the targets that keep an address. Without their removed addresses, other targets may be in no loop.
    for needed in True, False:
        for forward in forwards:
            for each in forward.targets:
                back = _leading_to(forward, forwards)
                others = [address for address in each.addresses if not _comes_to(back, address)]
                if needed and each.addresses and not others:
                    continue
                if each.addresses and not others:
                    raise _circle(forward, each, back, len(forwards), label)
                if each.resolver:
                    each.resolver.leave_out(_among(back))
                if len(others) < len(each.addresses):
                    own = places_of(back)
                    note(f"{each.name} is this proxy itself ({own}) and others; only the others are used")
                each.addresses = others


def _leading_to(goal: Forwarding, forwards: Sequence[Forwarding]) -> list[Forwarding]:
    """Returns a forward, and the forwards whose connections may reach it, directly or through others."""
    found = [goal]
    for reached in found:
        for each in forwards:
            if each not in found and any(map(reached.is_own, each.addresses)):
                found.append(each)
    return found


def _comes_to(forwards: Sequence[Forwarding], address: Address) -> bool:
    return any(each.is_own(address) for each in forwards)


def _among(forwards: Sequence[Forwarding]) -> Callable[[Address], bool]:
    return lambda address: _comes_to(forwards, address)


def _circle(forward: Forwarding, target: Target, back: Sequence[Forwarding], count: int, label: str) -> UsageError:
    if count == 1:
        return UsageError(f"remote {target.name!r} is this proxy's own address, expected another one")
    first = next(it for it in back if _comes_to([it], target.addresses[0]))
    way = "" if first is forward else f", by way of {first.spec.text!r}"
    return UsageError(f"{label} {forward.spec.text!r} leads back to itself{way}, expected another target")


def all_targets(forwards: Sequence[Forwarding]) -> list[Target]:
    """The targets of all forwards, in order. A worker identifies a target by its index in this list."""
    return [target for each in forwards for target in each.targets]
