"""Converts networks into the core's sorted table of bounds: see _core/admission.pxd. Pure functions."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network

_END = 1 << 128
_MAPPED = 0xFFFF << 32
"""The first of the IPv4-mapped IPv6 addresses, which stand for IPv4 addresses in the table."""

_MAPPED_END = _MAPPED + (1 << 32)


def admitted(allow: Iterable[Network] | None, deny: Iterable[Network]) -> bytes:
    """Returns the table of the clients that may connect: those in `allow` (None: all) that are not in `deny`."""
    allowed = [0] if allow is None else _bounds(allow)
    denied = _bounds(deny)
    found: list[int] = []
    for point in sorted({*allowed, *denied}):
        if (_has(allowed, point) and not _has(denied, point)) != (len(found) % 2 == 1):
            found.append(point)
    return _packed(found)


def bounds(networks: Iterable[Network]) -> bytes:
    """The table of bounds of some networks."""
    return _packed(_bounds(networks))


def _packed(bounds: Iterable[int]) -> bytes:
    """Returns the bounds as bytes, 16 for each, in network order; without one after the last address."""
    return b"".join(bound.to_bytes(16, "big") for bound in bounds if bound < _END)


def _bounds(networks: Iterable[Network]) -> list[int]:
    """Returns the sorted bounds of the union of networks: the first begins a range, the second ends it, and so on.

    An IPv6 network, like ::/0, includes no IPv4-mapped addresses.
    """
    depth: dict[int, int] = {}
    for network in networks:
        for first, end in _ranges(network):
            depth[first] = depth.get(first, 0) + 1
            depth[end] = depth.get(end, 0) - 1
    bounds, level = [], 0
    for point in sorted(depth):
        before, level = level, level + depth[point]
        if (before > 0) != (level > 0):
            bounds.append(point)
    return bounds


def _ranges(network: Network) -> Iterable[tuple[int, int]]:
    """Returns the ranges of a network: the first address of each, and the one after its last."""
    first = int(network.network_address)
    if network.version == 4:
        return [(_MAPPED + first, _MAPPED + first + network.num_addresses)]
    end = first + network.num_addresses
    if first <= _MAPPED < end:
        return [each for each in ((first, _MAPPED), (_MAPPED_END, end)) if each[0] < each[1]]
    return [(first, end)]


def _has(bounds: list[int], point: int) -> bool:
    """Is the address in a range of these bounds?"""
    return bisect.bisect_right(bounds, point) % 2 == 1
