"""The addresses that connections to upstream come from."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from ..errors import StartError
from .resolver import Address

FAMILIES = {4: "IPv4", 16: "IPv6"}
"""The name of the family, by the length of a raw address."""


def own_addresses(sources: Sequence[str]) -> list[Address]:
    """Raw addresses of this machine, with port 0.

    Args:
        sources: IP addresses, at most one of each family.

    Raises:
        StartError: one is not this machine's.
    """
    found = []
    for text in sources:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        try:
            (*_, place), *_ = socket.getaddrinfo(text, 0, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            with socket.socket(family) as trial:
                trial.bind(place)
        except OSError as error:
            what = f"cannot connect from {text}, which is no address of this machine"
            raise StartError.because(what, error) from error
        raw = socket.inet_pton(family, text.partition("%")[0])
        found.append((raw, 0, int(place[3]) if len(place) == 4 else 0))
    return found


def families(sources: Sequence[str]) -> set[int]:
    """The lengths of the raw addresses that can be reached from these sources; without a source: all."""
    return {16 if ":" in text else 4 for text in sources} or set(FAMILIES)
