"""Faults in force together: their names, and the numbers of their rules in the core (`Rule` of _core/plan.pxd)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from . import faults
from .directions import DIRECTIONS, STREAMS
from .errors import UsageError
from .faults import Fault
from .text import quoted

KINDS = ("cut", "timeout", "idle", "latency", "slow_close", "bandwidth", "slicer", "stall", "dial")
"""The constants RULE_ of _core/plan.pxd in their order; the first is 1."""

ENDS = ("close", "reset", "stall")
"""The constants END_ of _core/plan.pxd in their order; the first is 1."""

ALL = 2**64 - 1

NO_RULES = ("refuse", "hang")
"""Kinds without a rule in the core. For them the proxy closes or changes its listeners."""


@dataclass(frozen=True)
class Installed:
    """A fault that is in force, or will be.

    Attributes:
        fault: the fault.
        name: its name, given by `named`.
        key: a number from 1 that the proxy never gives to another fault; an update does not change it.
        since: the id of the last connection that was accepted before the fault was in force.
    """

    fault: Fault
    name: str
    key: int
    since: int = 0


def named(faults: Iterable[Fault | str], beside: Mapping[str, Fault] | None = None) -> dict[str, Fault]:
    """Gives distinct names to faults that will be in force together; the second one with a label gets LABEL#2.

    Args:
        faults: the faults, or their texts.
        beside: the faults that are in force already, by name.

    Returns:
        The faults by name, in their order.

    Raises:
        UsageError: a text is no fault, a name is given twice, or two faults slice the same direction.
    """
    before = dict(beside or {})
    result: dict[str, Fault] = {}
    sliced: set[str] = set()
    for fault in before.values():
        sliced |= _sliced(fault)
    for each in faults:
        fault = each if isinstance(each, Fault) else Fault.parse(each)
        name, number = fault.label, 1
        while name in result or name in before:
            if fault.name:
                raise UsageError(f"fault {quoted(str(fault))}: another one has this name")
            number += 1
            name = f"{fault.label}#{number}"
        result[name] = fault
        if sliced & _sliced(fault):
            raise UsageError(f"fault {quoted(str(fault))}: another slicer has this direction")
        sliced |= _sliced(fault)
    return result


def _sliced(fault: Fault) -> set[str]:
    """Returns the directions that a fault slices: none, unless it is a slicer."""
    if fault.kind != "slicer":
        return set()
    return set(DIRECTIONS) if fault.stream == "both" else {fault.stream}


def name_number(name: str) -> int:
    """Returns the number of a fault's name for the dice: its FNV-1a hash of 64 bits."""
    number = 0xCBF29CE484222325
    for byte in name.encode():
        number = (number ^ byte) * 0x100000001B3 & ALL
    return number


def rule(installed: Installed, seed: int) -> dict[str, int]:
    """Returns the fields of a fault's rule that are not 0. The rule has no window (start, for, repeat).

    Args:
        installed: a fault whose kind is not in NO_RULES.
        seed: the proxy's seed, for a fault that has none.
    """
    fault = installed.fault
    result = {
        "key": installed.key,
        "streams": STREAMS[fault.stream],
        "fault": name_number(installed.name),
        "seed": seed if fault.seed is None else fault.seed,
        "since": installed.since,
        "live": fault.live,
        "first": fault.first,
        "nth": fault.nth,
        "every": fault.every,
        "connection": fault.connection,
        "times": fault.times,
        # A product with a power of two is exact.
        "share": min(int(float(fault.toxicity) * 2**64), ALL),
        "by_bytes": fault.after_bytes is not None,
        "after_bytes": fault.after_bytes,
        "after_ns": _ns(fault.after),
        "shared": fault.scope == "proxy",
        **_client(fault.client),
        **_own(fault),
    }
    return {name: int(value) for name, value in result.items() if value}


def _own(fault: Fault) -> dict[str, Any]:
    """Returns the fields that depend on the kind."""
    match fault:
        case faults.limit_data():
            return {**_kind("cut"), "by_bytes": True, "after_bytes": fault.bytes, "end": _end(fault.end)}
        case faults.reset_peer() | faults.close():
            end = "reset" if isinstance(fault, faults.reset_peer) else "close"
            return {**_kind("cut"), "delay_ns": _ns(fault.timeout), "end": _end(end)}
        case faults.timeout():
            kind = "idle" if fault.idle else "timeout"
            return {**_kind(kind), "delay_ns": _ns(fault.timeout), "end": _end(fault.end)}
        case faults.latency():
            normal = fault.distribution == "normal"
            return {
                **_kind("latency"),
                "delay_ns": _ns(fault.latency),
                "jitter_ns": _ns(fault.jitter),
                "normal": normal,
            }
        case faults.slow_close():
            return {**_kind("slow_close"), "delay_ns": _ns(fault.delay)}
        case faults.bandwidth():
            return {**_kind("bandwidth"), "rate": fault.rate, "burst": fault.burst}
        case faults.slicer():
            return {
                **_kind("slicer"),
                "size": fault.average_size,
                "variation": fault.size_variation,
                "delay_ns": _ns(fault.delay),
            }
        case faults.stall():
            return _kind("stall")
        case faults.blackhole():
            return {**_kind("dial"), "live": False}
        case faults.connect_delay():
            return {**_kind("dial"), "live": False, "delay_ns": max(1, _ns(fault.delay))}
    raise ValueError(f"{fault.kind} is no rule")


def _kind(name: str) -> dict[str, int]:
    return {"kind": KINDS.index(name) + 1}


def _end(name: str) -> int:
    return ENDS.index(name) + 1


def _ns(time: object) -> int:
    """Returns the time of a fault in nanoseconds; 0 for None."""
    return time // timedelta(microseconds=1) * 1000 if isinstance(time, timedelta) else 0


def _client(network: str | None) -> dict[str, int]:
    """Returns the fields of a network in the core's form: IPv6, with IPv4 addresses as ::ffff:a.b.c.d."""
    if network is None:
        return {}
    import ipaddress  # few faults need it

    it = ipaddress.ip_network(network)
    address, bits = int(it.network_address), it.prefixlen
    if it.version == 4:
        address, bits = address | 0xFFFF << 32, bits + 96
    return {"client_high": address >> 64, "client_low": address & ALL, "client_bits": bits}
