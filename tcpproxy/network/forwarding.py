"""Forwards at work: their ports, their targets, and what of a target would lead back to the proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence

from ..config.forwards import ForwardSpec
from ..errors import UsageError
from .listening import Port
from .resolver import Address, Resolver
from .unix import UnixPort


class Forwarding:
    """One forward of a proxy that starts or runs.

    Args:
        spec: as it was given.

    Attributes:
        target: where it connects to, as it was given.
        resolver: looks the target's name up; None: it has a numeric address.
        addresses: the target's, as far as they are known.
        port: where it listens; None: not yet.
    """

    def __init__(self, spec: ForwardSpec) -> None:
        self.spec = spec
        self.target = str(spec.target)
        self.resolver: Resolver | None = None
        self.addresses: list[Address] = []
        self.port: Port | UnixPort | None = None

    @property
    def lookup_error(self) -> str:
        """Why the last look-up failed; empty: it did not, or there was none."""
        return self.resolver.lookup_error if self.resolver else ""

    def is_own(self, address: Address) -> bool:
        """Does a connection to this address come to this forward?"""
        return self.port is not None and self.port.is_own(address)

    def hang(self, on: bool) -> None:
        """Makes the clients of listeners to come hang: a Port alone can do that."""
        if isinstance(self.port, Port):
            self.port.hangs = on

    def keep(self) -> None:
        """Keeps the port, once its listeners have been closed: see `Port.keep`."""
        if self.port:
            self.port.keep()


def listen(forward: Forwarding, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Listening sockets of a forward, which `stack` closes: each worker has duplicates.

    Raises:
        StartError: an address cannot be listened on.
    """
    listeners = forward.port.listen() if forward.port else []
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def places_of(forwards: Sequence[Forwarding]) -> str:
    """Where they listen, as one text; empty: nowhere."""
    return ", ".join(name for each in forwards if each.port for name in each.port.names)


def leave_out_circles(forwards: Sequence[Forwarding], label: str, note: Callable[[str], None]) -> None:
    """Takes from the targets' addresses those from which a connection would come back to its own forward.

    One forward may lead to another: 8080 to 9090, and 9090 to a server. Of a target with several addresses those that
    lead elsewhere stay, so that `-l 5173 localhost:5173` can reach a server that listens on ::1 alone.

    Args:
        forwards: all of a proxy, bound.
        label: what a forward is called, in errors.
        note: called with a sentence for each target of which something is left out.

    Raises:
        UsageError: all addresses of a target lead back.
    """
    # First those that have a choice: without their way back, another one's may be no circle any more.
    for needed in True, False:
        for each in forwards:
            back = _leading_to(each, forwards)
            others = [address for address in each.addresses if not _comes_to(back, address)]
            if needed and each.addresses and not others:
                continue
            if each.addresses and not others:
                raise _circle(each, back, len(forwards), label)
            if each.resolver:
                each.resolver.leave_out(_among(back))
            if len(others) < len(each.addresses):
                own = places_of(back)
                note(f"{each.target} is this proxy itself ({own}) and others; only the others are used")
            each.addresses = others


def _leading_to(goal: Forwarding, forwards: Sequence[Forwarding]) -> list[Forwarding]:
    """The forward, and those whose connections may come to it, perhaps by way of others."""
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


def _circle(each: Forwarding, back: Sequence[Forwarding], count: int, label: str) -> UsageError:
    if count == 1:
        return UsageError(f"remote {each.target!r} is this proxy's own address, expected another one")
    first = next(it for it in back if _comes_to([it], each.addresses[0]))
    way = "" if first is each else f", by way of {first.spec.text!r}"
    return UsageError(f"{label} {each.spec.text!r} leads back to itself{way}, expected another target")
